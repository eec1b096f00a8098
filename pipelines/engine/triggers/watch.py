"""Triggers: rows to conditions by aggregates that rows enter and leave (sight.py), conditions to incidents by the state machine
of alarm.py. What happens to all triggers of a pipeline: rows, time, people, the end of a version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.engine.cells import GONE, changed
from pipelines.engine.state import State
from pipelines.engine.triggers import alarm as machine
from pipelines.engine.triggers.absent import BEGUN, CLOCK, Silence
from pipelines.engine.triggers.alarm import NORMAL, Alarm
from pipelines.engine.triggers.arrived import Arrived, Pace, pace
from pipelines.engine.triggers.incident import Shelves, Suppression, Transition
from pipelines.engine.triggers.plan import AbsentPlan, AnyPlan, TriggerPlan
from pipelines.engine.triggers.sight import Sight

PACE = "pace"  # owner: see `pace`


@dataclass(frozen=True)
class Watched:
    """What the triggers gave: transitions in row order, and the captured rows by stream."""

    transitions: list[Transition] = field(default_factory=list)
    captured: dict[str, pa.Table] = field(default_factory=dict)


def watch(
    plans: Mapping[str, AnyPlan],
    state: State,
    rows: Arrived | None,
    arrival_us: int,
    now_us: int,
    windows: Mapping[str, Arrived] | None = None,
) -> tuple[State, Watched]:
    """Evaluate accepted rows and rows of windows, or, with None and no windows, a timer. `now_us`: the wall clock, a label for
    what has no event time."""
    if not plans:
        return state, Watched()
    if not state.of(CLOCK):
        state = state.put(CLOCK, {BEGUN: arrival_us})
    if rows is not None and any(plan.spec.max_age for plan in plans.values()):
        state = _paced(state, rows)
    sights: dict[str, Sight | Silence] = {}
    found = Watched()
    is_timer = rows is None and windows is None
    for name, plan in plans.items():
        sight = sights[name] = _sight(plan, state)
        plan.memory.clear()  # whatever happens now, it must not be taken for what the cells say
        suppression = _suppression(plan, sight, sights)
        if is_timer:
            sight.pass_time(state, arrival_us, now_us, suppression)
        else:
            mine = rows if plan.spec.from_ is None else (windows or {}).get(plan.spec.from_)
            sight.rows(state, mine, arrival_us, suppression)
        state = sight.commit(state, found.captured)
        plan.memory.append(sight)
        found.transitions.extend(sight.transitions())
    found.transitions.sort(key=lambda t: t.row)
    return state, found


def _sight(plan: AnyPlan, state: State) -> Sight | Silence:
    """What the plan remembers if it is of this state, or anew."""
    if plan.memory and plan.memory[0].is_of(state):
        sight: Sight | Silence = plan.memory[0]
        sight.begin()
        return sight
    return Silence(plan, state) if isinstance(plan, AbsentPlan) else Sight(plan, state)


def _suppression(plan: AnyPlan, sight: Sight | Silence, sights: Mapping[str, Sight | Silence]) -> list[Suppression]:
    names = [name for name in plan.spec.suppressed_by if name in sights]
    return [Suppression(book, {name: sights[name].book for name in names}) for book in sight.books] if names else []


def _paced(state: State, rows: Arrived) -> State:
    cells = state.of(PACE)
    old: Pace | None = cells.get((rows.source,))
    new = pace(old, rows)
    return state if new == old else state.put(PACE, {**cells, (rows.source,): new})


def dry_run(plans: Mapping[str, AnyPlan]) -> None:
    """Run the statements of triggers over no rows. Raises `duckdb.Error` for one that does not bind."""
    for plan in plans.values():
        if isinstance(plan, TriggerPlan):
            kept = {name: pa.array([], type_) for name, type_ in plan.kept.items()} or {"_": pa.array([], pa.int64())}
            plan.argument_values(pa.table(kept))
            plan.evaluation(pa.table({name: pa.array([], type_) for name, type_ in plan.values.items()}))


# -- by hand, and the end


def by_hand(
    plans: Mapping[str, AnyPlan], state: State, verb: str, incident: str, by: str, reason: str, at_us: int
) -> tuple[State, list[Transition]]:
    """Acknowledge or reset an open incident. Without effect on one that is closed, unknown, or has nothing to acknowledge."""
    for plan in plans.values():
        sight = _sight(plan, state)
        found = sight.by_hand(verb, incident, by, reason, at_us)
        if found:
            plan.memory.clear()
            state = sight.commit(state, {})
            plan.memory.append(sight)
            return state, sight.transitions()
        plan.memory[:] = [sight]
    return state, []


def shelve(
    plans: Mapping[str, AnyPlan], state: State, shelves: Shelves, at_us: int, arrival_us: int
) -> tuple[State, list[Transition]]:
    """Follow what is shelved now, all of it: what `shelves` does not name is not."""
    transitions: list[Transition] = []
    for plan in plans.values():
        sight = _sight(plan, state)
        plan.memory.clear()
        sight.shelve(shelves, at_us, arrival_us)
        state = sight.commit(state, {})
        plan.memory.append(sight)
        transitions += sight.transitions()
    return state, transitions


def hand_over(
    state: State, plans: Mapping[str, AnyPlan], successors: Mapping[str, AnyPlan], at_us: int
) -> tuple[State, list[Transition]]:
    """Close the incidents of triggers that are no more or that have other groups now, and forget the rows that the successors do
    not look at."""
    transitions: list[Transition] = []
    for name, plan in plans.items():
        successor = successors.get(name)
        heirs = {identity.owner: identity for identity in successor.identities} if successor else {}
        sight = _sight(plan, state)
        plan.memory.clear()
        for book in sight.books:
            heir = heirs.get(book.identity.owner)
            if heir is None:
                book.start_afresh("retired: the trigger was removed", at_us)
                state = state.put(book.identity.owner, {})
            elif successor is None or type(plan) is not type(successor) or heir.by != book.identity.by:
                state = state.put(heir.owner, book.start_afresh("retired: the trigger watches other groups now", at_us))
            else:
                book.follow(heir.rules, at_us)
                state = book.commit(state)
            transitions += book.transitions
        kept = successor.owners if successor is not None and successor.by == plan.by else ()
        for owner in plan.owners:
            state = state if owner in kept else state.put(owner, {})
    return (state if successors else state.put(CLOCK, {}).put(PACE, {})), transitions


def resume(state: State, arrival_us: int) -> State:
    """The state after a pause of the runner: what held before it is not known to have held through it in node time, and nobody
    was silent for it."""
    state = state.put(CLOCK, {BEGUN: arrival_us})
    for owner in [owner for owner in state.cells if owner.startswith("alarm.")]:
        cells = state.of(owner)
        changes = {key: new for key, old in cells.items() if (new := machine.pause(Alarm(*old))) != tuple(old)}
        state = state.put(owner, changed(cells, changes))
    return state


def forget_time_line(state: State, plans: Mapping[str, AnyPlan]) -> State:
    """Drop the rows in sight and what is under way: event time started again, and durations across it mean nothing."""
    for plan in plans.values():
        if isinstance(plan, AbsentPlan):
            continue
        for owner in plan.owners:
            state = state.put(owner, {})
        for identity in filter(None, (plan.identity, plan.degraded)):
            cells = state.of(identity.owner)
            forgotten = {key: (old, machine.forget_time_line(Alarm(*old))) for key, old in cells.items()}
            changes = {k: GONE if new == NORMAL else new for k, (old, new) in forgotten.items() if new != tuple(old)}
            state = state.put(identity.owner, changed(cells, changes))
    return state.put(PACE, {})
