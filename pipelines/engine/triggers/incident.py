"""Incidents: what a trigger's alarms give besides their state, and the limits on how many there are.

An incident's id is made of lineage, pipeline, trigger, group and occurrence: the same in a replay, on a restart and under a new
version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.contract.language.triggers import Action, Trigger
from pipelines.engine.cells import GONE, changed
from pipelines.engine.state import Group, State
from pipelines.engine.triggers import alarm as machine
from pipelines.engine.triggers.alarm import ACKNOWLEDGED, CLEARED, NORMAL, RAISED, Alarm, Moment, Rules, Step

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FORGOTTEN, _SHELF = ("\0more", "forgotten"), ("\0more", "shelf")
_OF_KIND = {"degraded": "{trigger} cannot judge: too few rows", "source_down": "{trigger}: nothing comes from source {source}"}
MORE = "\0more"  # the group of the one incident that stands for what is beyond a limit


@dataclass(frozen=True)
class Transition:
    """One step in the life of an incident: a row of the `incidents` table, and what actions are told. `state`, `acknowledged`
    and `flags` are those after it; `sounds`: whether its actions are performed; `n`: the n-th of this incident."""

    incident: str
    pipeline: str
    trigger: str
    group: str  # JSON of the values of `by`
    transition: str
    severity: str
    message: str
    at_us: int  # event time
    by: str = ""
    reason: str = ""
    value: str = "{}"  # JSON: the aggregates of the conditions at that row, and `count`
    state: str = "active"
    acknowledged: bool = False
    flags: str = ""
    advice: str = ""
    sounds: bool = True
    n: int = 1
    escalation: int = -1  # which step of `escalate`
    row: int = -1


@dataclass(frozen=True)
class Identity:
    """What all incidents of one trigger share. `kind`: "", or "degraded"."""

    name: str
    pipeline: str
    node: str
    spec: Trigger
    params: Mapping[str, Any]
    by: tuple[str, ...]
    rules: Rules
    kind: str = ""

    @property
    def trigger(self) -> str:
        return f"{self.name}.{self.kind}" if self.kind else self.name

    @property
    def owner(self) -> str:
        """Whose cells the alarms are: they survive new definitions, so that incidents keep their identity."""
        return f"alarm.{self.trigger}"

    @property
    def severity(self) -> str:
        return "warning" if self.kind and self.spec.severity == "critical" else self.spec.severity

    def incident_id(self, lineage: str, group: Sequence[Any], occurrence: int) -> str:
        words = json.dumps([lineage, self.pipeline, self.trigger, list(group), occurrence], default=str)
        return "i" + hashlib.sha256(words.encode()).hexdigest()[:15]

    def words(self, group: Sequence[Any]) -> dict[str, Any]:
        return {"more": group[1]} if is_more(group) else dict(zip(self.by, group, strict=True))

    def render(self, words: Mapping[str, Any]) -> str:
        """The message with `{name}` of group, parameters, values, `count` and `node` filled in."""
        known = {**self.params, "node": self.node, "node.name": self.node, "trigger": self.name, **words}
        text = _OF_KIND.get(self.kind, self.spec.message) or self.name
        return _PLACEHOLDER.sub(lambda found: _shown(known[found[1]]) if found[1] in known else found[0], text)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "true" if value is True else "false" if value is False else str(value)


_ACTIONS = {
    **dict.fromkeys((machine.RAISED, machine.RAISED_AGAIN, machine.UNSUPPRESSED, machine.UNSHELVED), "on_raise"),
    **dict.fromkeys((machine.ACKNOWLEDGED, machine.SHELVED), "on_ack"),
    **dict.fromkeys((machine.CLEARED, machine.RESET, machine.RETIRED), "on_clear"),
}


def wanted_actions(spec: Trigger, transition: Transition) -> Sequence[Action]:
    """What is to be done at a transition."""
    actions, what = spec.actions, transition.transition
    if not transition.sounds:
        return ()
    if what == machine.ESCALATED:
        return sorted(spec.escalate, key=lambda step: step.after)[transition.escalation].actions
    if transition.trigger.endswith(".degraded"):
        return actions.on_degraded if _ACTIONS.get(what) == "on_raise" else ()
    if what == machine.REMINDED:
        return actions.on_raise if actions.on_remind is None else actions.on_remind
    return getattr(actions, _ACTIONS[what], ()) if what in _ACTIONS else ()


Values = Mapping[str, Any]  # label of an aggregate -> its value; `count`


class Shelf(NamedTuple):
    """What people decided last about annunciating an incident or a trigger, and who."""

    is_on: bool
    by: str = ""
    reason: str = ""


NOT_SHELVED = Shelf(False)
Shelves = Mapping[str, Shelf]  # of incidents by id, of triggers by name (`silent.source_down` is another than `silent`)


@dataclass(slots=True)
class Change:
    """A group became active or cleared at a row: what suppressed triggers follow."""

    row: int
    group: Group
    active: bool
    at_us: int


class Book:
    """The alarms of one trigger while a batch is evaluated. A cache: all of it follows from the cells it was made of."""

    def __init__(self, identity: Identity, lineage: str, state: State) -> None:
        self.identity, self.lineage = identity, lineage
        self.cells = state.of(identity.owner)
        self.alarms: dict[Group, Alarm] = {key: Alarm(*value) for key, value in self.cells.items()}
        self.open = sum(a.is_open for k, a in self.alarms.items() if not is_more(k))
        self.beyond = sum(a.is_beyond for a in self.alarms.values())
        self.floor = self.alarms.get(_FORGOTTEN, NORMAL).occurrence  # groups that are not known had so many incidents, or fewer
        self.blank = NORMAL._replace(occurrence=self.floor)
        self.touched: dict[Group, Any] = {}
        self.transitions: list[Transition] = []
        self.changes: list[Change] = []

    def is_of(self, state: State) -> bool:
        same = self.cells is state.of(self.identity.owner) and self.lineage == state.lineage
        return same and (bool(self.cells) or not self.alarms)

    def begin(self) -> None:
        self.transitions, self.changes = [], []

    def commit(self, state: State) -> State:
        """The state with what changed."""
        if not self.touched:
            return state
        state = state.put(self.identity.owner, changed(self.cells, self.touched))
        self.cells, self.touched = state.of(self.identity.owner), {}
        return state

    def alarm(self, group: Group) -> Alarm:
        return self.alarms.get(group, self.blank)

    def forget(self, group: Group, since_us: int) -> bool:
        """Forget a group without an incident that did nothing since then, so that its id is never given again."""
        alarm = self.alarms.get(group)
        if alarm is None:
            return True
        if alarm._replace(occurrence=0, raises=()) != NORMAL or any(at > since_us for at in alarm.raises):
            return False
        if alarm.occurrence > self.floor:
            self.floor = alarm.occurrence
            self.blank = NORMAL._replace(occurrence=self.floor)
            self.alarms[_FORGOTTEN] = self.touched[_FORGOTTEN] = self.blank
        del self.alarms[group]
        self.touched[group] = GONE
        return True

    def active_groups(self) -> list[Group]:
        return [group for group, alarm in self.alarms.items() if alarm.active and not is_more(group)]

    def start_afresh(self, reason: str, at_us: int) -> dict[Group, Any]:
        """Close all that is open. The cells for other groups: an id that was given is never given again."""
        for group in in_order(self.alarms):
            self.by_hand(group, machine.retire(self.alarms[group], reason), at_us)
        floor = max([self.floor, *(alarm.occurrence for alarm in self.alarms.values())])
        kept = {_SHELF: self.alarms[_SHELF]} if self.is_shelved else {}
        return {_FORGOTTEN: NORMAL._replace(occurrence=floor), **kept} if floor else kept

    def follow(self, rules: Rules, at_us: int) -> None:
        """Let go of what only the rules of an older version held open."""
        for group, alarm in list(self.alarms.items()):
            if alarm.latched and not rules.latch:
                self.put(group, alarm._replace(latched=False))
            elif alarm.is_open and not alarm.active and rules.ack != "required":
                self.by_hand(group, machine.retire(alarm, "retired: it need not be acknowledged any more"), at_us)

    # -- what people shelve

    @property
    def is_shelved(self) -> bool:
        """Whether all incidents of this trigger are, those to come too."""
        return _SHELF in self.alarms

    def shelve(self, shelves: Shelves, at_us: int, arrival_us: int) -> list[Group]:
        """Follow what is shelved now: nothing that is not in `shelves` stays so. The groups whose alarms changed."""
        of_trigger = shelves.get(self.identity.trigger, NOT_SHELVED)
        if of_trigger.is_on != self.is_shelved:
            self.put(_SHELF, NORMAL._replace(shelved=(machine.BY_TRIGGER,)) if of_trigger.is_on else NORMAL)
        changed_groups = []
        for group in in_order(g for g, alarm in self.alarms.items() if alarm.is_open):
            before = self.alarms[group]
            if not is_more(group):
                self._follow_shelf(group, machine.BY_TRIGGER, of_trigger, at_us, arrival_us)
            self._follow_shelf(group, machine.BY_ITSELF, shelves.get(before.incident, NOT_SHELVED), at_us, arrival_us)
            if self.alarms[group] is not before:
                changed_groups.append(group)
        return changed_groups

    def _follow_shelf(self, group: Group, what: str, shelf: Shelf, at_us: int, arrival_us: int) -> None:
        alarm = self.alarms[group]
        if shelf.is_on and what not in alarm.shelved:
            self.by_hand(group, machine.shelve(alarm, what, shelf.by, shelf.reason), at_us)
        elif not shelf.is_on and what in alarm.shelved:
            self.by_hand(group, machine.unshelve(alarm, what, shelf.by, shelf.reason, arrival_us), at_us)

    # -- inputs

    def see(
        self,
        group: Group,
        moment: Moment,
        values: Callable[[], Values],
        row: int,
        *,
        silent: bool = False,
        at_us: int | None = None,
    ) -> Alarm:
        """One row or timer of a group. `at_us`: what to tell as the time, where the group has none."""
        old = self.alarm(group)
        moment = moment._replace(shelved=True) if self.is_shelved else moment
        look = machine.see_silence if silent else machine.see
        seen = old
        if old.is_beyond and self.open < self.identity.spec.max_open:
            seen = old._replace(active=False, since_us=0)  # there is room now: what holds is raised
        new, steps = look(self.identity.rules, seen, moment, lambda n: self._id(group, n))
        if seen is not old and not new.is_open:
            new, steps = look(self.identity.rules, old, moment, lambda n: self._id(group, n))
        if new is not old:
            new = self._take(group, old, new, steps, moment.t_us if at_us is None else at_us, values, row)
        return new

    def pass_time(self, group: Group, arrival_us: int, at_us: int) -> None:
        old = self.alarm(group)
        new, steps = machine.pass_time(self.identity.rules, old, arrival_us)
        if new is not old:
            self._take(group, old, new, steps, at_us, dict, -1)

    def suppress(self, group: Group, suppressor: str, at_us: int, arrival_us: int, row: int) -> None:
        old = self.alarms[group]
        new, steps = machine.suppress(self.identity.rules, old, suppressor, arrival_us)
        if new is not old:
            self._take(group, old, new, steps, at_us, dict, row)

    def by_hand(self, group: Group, result: tuple[Alarm, Sequence[Step]], at_us: int) -> None:
        self._take(group, self.alarms[group], *result, at_us, dict, -1)

    def has_limit(self, what: str) -> bool:
        return (MORE, what) in self.alarms and self.alarms[MORE, what].is_open

    def put(self, group: Group, alarm: Alarm) -> None:
        if alarm._replace(occurrence=0) == NORMAL and alarm.occurrence <= self.floor:
            self.alarms.pop(group, None)
            self.touched[group] = GONE
        else:
            self.alarms[group] = self.touched[group] = alarm

    # -- what becomes of it

    def _id(self, group: Group, occurrence: int) -> str:
        return self.identity.incident_id(self.lineage, group, occurrence)

    def _take(
        self,
        group: Group,
        old: Alarm,
        new: Alarm,
        steps: Sequence[Step],
        at_us: int,
        values: Callable[[], Values],
        row: int,
    ) -> Alarm:
        if not old.is_open and new.is_open and self.open >= self.identity.spec.max_open:
            new, steps = Alarm(active=True, occurrence=old.occurrence), ()  # beyond the limit: counted, without an incident
        if new.latched and not new.is_open:
            new = NORMAL._replace(occurrence=new.occurrence)
        self.put(group, new)
        for step in steps:
            if step.incident:
                self._write(group, step, at_us, values(), row)
        if old.active != new.active:
            self.changes.append(Change(row, group, new.active, at_us))
        self.open += new.is_open - old.is_open
        beyond = new.is_beyond - old.is_beyond
        if beyond:
            self.beyond += beyond
            self.limit("open incidents", self.beyond > 0, at_us, row, f"and more: {self.identity.spec.max_open} are open")
        return new

    def limit(self, what: str, reached: bool, at_us: int, row: int, message: str) -> None:
        """One incident for all that is beyond a limit; it performs no actions."""
        group = (MORE, what)
        old = self.alarm(group)
        if old.is_open == reached:
            return
        if reached:
            incident = self._id(group, old.occurrence + 1)
            new = Alarm(active=True, occurrence=old.occurrence + 1, incident=incident, steps=1)
            step = Step(RAISED, incident, message, "", False, new)
        else:
            new = NORMAL._replace(occurrence=old.occurrence)
            step = Step(CLEARED, old.incident, "", "", False, new._replace(steps=2))
        self.put(group, new)
        self._write(group, step, at_us, {}, row)

    def _write(self, group: Group, step: Step, at_us: int, values: Values, row: int) -> None:
        identity, after = self.identity, step.after
        words = identity.words(group)
        self.transitions.append(
            Transition(
                incident=step.incident,
                pipeline=identity.pipeline,
                trigger=identity.trigger,
                group=json.dumps(words, default=str, ensure_ascii=False),
                transition=step.what,
                severity=identity.severity,
                message=identity.render({**values, **words}),
                at_us=at_us,
                by=step.by,
                reason=step.reason,
                value=json.dumps({k: v for k, v in values.items() if k != "value"}, default=str, ensure_ascii=False),
                state=after.state,
                acknowledged=after.acknowledged or step.what == ACKNOWLEDGED,
                flags=",".join(after.flags),
                advice=identity.spec.advice,
                sounds=step.sounds,
                n=after.steps,
                escalation=after.escalated - 1 if step.what == machine.ESCALATED else -1,
                row=row,
            )
        )


def is_more(group: Sequence[Any]) -> bool:
    """Whether this is no group, but what is beyond a limit."""
    return len(group) > 0 and group[0] == MORE


def in_order(groups: Iterable[Group]) -> list[Group]:
    """One order whatever way they were remembered."""
    return sorted(groups, key=repr)


def open_incidents(state: State) -> int:
    return sum(Alarm(*alarm).is_open for cells in alarms_of(state) for alarm in cells.values())


def alarms_of(state: State) -> list[Mapping[Group, Any]]:
    """The alarms of each trigger."""
    return [cells for owner, cells in sorted(state.cells.items()) if owner.startswith("alarm.")]


class Suppression:
    """What other triggers say about this one while a batch is evaluated: an incident of theirs suppresses those of ours that
    agree in the columns that both group by."""

    def __init__(self, book: Book, others: Mapping[str, Book]) -> None:
        self.book = book
        self.followed = [(name, _Followed(other, book.identity.by)) for name, other in others.items()]
        pending = [(c.row, i, n, c) for i, (_, f) in enumerate(self.followed) for n, c in enumerate(f.book.changes)]
        self.pending = sorted(pending, key=lambda change: change[:3], reverse=True)

    def of(self, group: Group) -> str:
        return next((name for name, followed in self.followed if followed.covers(group)), "")

    def advance(self, row: int, arrival_us: int) -> None:
        """Follow what happened up to this row."""
        while self.pending and self.pending[-1][0] <= row:
            at, i, _, change = self.pending.pop()
            self.followed[i][1].follow(change)
            for group in in_order(self.book.active_groups()):
                self.book.suppress(group, self.of(group), change.at_us, arrival_us, at)


class _Followed:
    def __init__(self, book: Book, by: tuple[str, ...]) -> None:
        self.book = book
        shared = [name for name in by if name in book.identity.by]
        self.mine = [by.index(name) for name in shared]
        self.theirs = [book.identity.by.index(name) for name in shared]
        active = dict.fromkeys(book.active_groups())
        for change in reversed(book.changes):
            if change.active:
                active.pop(change.group, None)
            else:
                active[change.group] = None
        self.counts = Counter(self._key(group) for group in active)

    def _key(self, group: Group) -> Group:
        return tuple(group[i] for i in self.theirs)

    def follow(self, change: Change) -> None:
        self.counts[self._key(change.group)] += 1 if change.active else -1

    def covers(self, group: Group) -> bool:
        return self.counts[tuple(group[i] for i in self.mine)] > 0
