"""Triggers on silence: groups that should speak, and sources that do.

Silence is node time. It is counted from the last row of the group, from the start of the runner, and from when its source came
back, whichever is latest. A group is only said to be silent when its source spoke after that; when the source itself is silent,
it is that one incident, not one for each of its groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.engine.cells import GONE, changed
from pipelines.engine.state import Group, State
from pipelines.engine.triggers import alarm as machine
from pipelines.engine.triggers.alarm import NORMAL, Moment
from pipelines.engine.triggers.arrived import Arrived, as_tuple, from_tuple
from pipelines.engine.triggers.incident import Book, Shelves, Suppression, Transition, in_order, is_more
from pipelines.engine.triggers.plan import AbsentPlan

CLOCK, BEGUN = "triggers", ("begun",)  # the cell that says since when node time counts: the start, or the end of a pause
_NEVER = 1 << 62
_Heard = tuple[int, str, int]  # node time, source, event time


class Silence:
    """What one trigger knows of who spoke, while a batch is evaluated. A cache: all of it follows from the cells."""

    def __init__(self, plan: AbsentPlan, state: State) -> None:
        self.plan, self.spec = plan, plan.spec
        self.book, self.down = self.books = [Book(identity, state.lineage, state) for identity in plan.identities]
        self.cells, self.source_cells = state.of(plan.owner), state.of(plan.source_owner)
        self.heard: dict[Any, _Heard] = {from_tuple(key): value for key, value in self.cells.items()}
        self.sources: dict[str, tuple[int, int]] = {key[0]: value for key, value in self.source_cells.items()}  # last row, back
        self.touched: dict[Any, Any] = {}
        self.expected = None if plan.expected is None else {from_tuple(key) for key in plan.expected}
        self.next_us = 0  # node time before which no group can be silent too long

    def is_of(self, state: State) -> bool:
        cells = self.cells is state.of(self.plan.owner) and (bool(self.cells) or not self.heard)
        return cells and self.source_cells is state.of(self.plan.source_owner) and all(book.is_of(state) for book in self.books)

    def begin(self) -> None:
        for book in self.books:
            book.begin()

    def transitions(self) -> list[Transition]:
        return [transition for book in self.books for transition in book.transitions]

    # -- rows

    def rows(self, state: State, rows: Arrived | None, arrival_us: int, suppression: Sequence[Suppression]) -> None:
        if rows is not None and rows.n:
            self._source_spoke(rows, suppression)
            self._groups_spoke(rows, suppression)
        for one in suppression:
            one.advance(_NEVER, arrival_us)

    def _source_spoke(self, rows: Arrived, suppression: Sequence[Suppression]) -> None:
        name, arrival_us = rows.source, rows.arrival_us
        _, back_us = self.sources.get(name, (0, 0))
        alarm = self.down.alarm((name,))
        if alarm != NORMAL:
            for one in suppression[1:]:
                one.advance(rows.row[0] - 1, arrival_us)  # it is back before its row says anything
            moment = Moment(False, True, arrival_us, arrival_us, suppressor=_suppressor(suppression[1:], (name,)))
            self.down.see((name,), moment, dict, rows.row[0], at_us=rows.te_us[0])
            if alarm.active and not alarm.latched:
                back_us, self.next_us = arrival_us, 0
        self.sources[name] = (arrival_us, back_us)

    def _groups_spoke(self, rows: Arrived, suppression: Sequence[Suppression]) -> None:
        keys, arrival_us = rows.keys(self.plan.by), rows.arrival_us
        unfit = rows.unfit if self.spec.quality == "good" else None
        places = [i for i in range(rows.n) if not unfit[i]] if unfit is not None else range(rows.n)
        quiet = {from_tuple(key) for key, alarm in self.book.alarms.items() if alarm != NORMAL and not is_more(key)}
        last: dict[Any, int] = {}
        for i in places:
            key = keys[i]
            last[key] = i
            if key in quiet:
                self._speaks(rows, i, as_tuple(key, self.plan.by), suppression)
        for key, i in last.items():
            if self.expected is None and key not in self.heard and len(self.heard) >= self.spec.max_groups:
                if not self.book.has_limit("groups"):
                    first = {keys[j]: j for j in reversed(places)}
                    self._refuse(rows, first[key])
            elif self.expected is None or key in self.expected:
                self.heard[key] = self.touched[key] = (arrival_us, rows.source, rows.te_us[i])
        self.next_us = min(self.next_us, arrival_us + min(self.spec.absent or 0, self._seen_us))

    def _refuse(self, rows: Arrived, i: int) -> None:
        text = f"more than {self.spec.max_groups} groups: new ones are not watched"
        self.book.limit("groups", True, rows.te_us[i], rows.row[i], text)

    def _speaks(self, rows: Arrived, i: int, group: Group, suppression: Sequence[Suppression]) -> None:
        for one in suppression[:1]:
            one.advance(rows.row[i], rows.arrival_us)
        suppressor, clear_for_us = _suppressor(suppression, group), self._us(self.spec.clear_for)
        moment = Moment(False, True, rows.arrival_us, rows.arrival_us, clear_for_us=clear_for_us, suppressor=suppressor)
        told: Mapping[str, Any] = {"silent_s": 0}
        self.book.see(group, moment, lambda: told, rows.row[i], at_us=rows.te_us[i])

    # -- timers

    def pass_time(self, state: State, arrival_us: int, now_us: int, suppression: Sequence[Suppression]) -> None:
        for one in suppression:
            one.advance(_NEVER, arrival_us)
        begun_us = int(state.of(CLOCK)[BEGUN])
        absent_us = self.spec.absent or 0
        for name in self.plan.sources if self.expected is not None else list(self.sources):
            since_us = max(self.sources.get(name, (0, 0))[0], begun_us)
            silent_us = arrival_us - since_us
            grace_us = self._grace_us if since_us == begun_us else 0
            if silent_us >= max(absent_us, grace_us):
                told = {"silent_s": silent_us / 1e6}
                suppressor = _suppressor(suppression[1:], (name,))
                moment = Moment(True, False, arrival_us, arrival_us, for_us=self._us(self.spec.for_), suppressor=suppressor)
                self.down.see((name,), moment, lambda told=told: told, -1, at_us=now_us)  # type: ignore[misc]
        if arrival_us >= self.next_us:
            self._look_at_groups(arrival_us, now_us, begun_us, suppression)
        for book in self.books:
            for group in in_order(g for g, alarm in book.alarms.items() if alarm.is_open and not is_more(g)):
                book.pass_time(group, arrival_us, now_us)

    def _look_at_groups(self, arrival_us: int, now_us: int, begun_us: int, suppression: Sequence[Suppression]) -> None:
        absent_us, next_us = self.spec.absent or 0, _NEVER
        for key in sorted(self.heard if self.expected is None else self.expected, key=repr):
            heard_us, source, te_us = self.heard.get(key, (0, "", 0))
            forgotten_us = max(heard_us, begun_us) + self._seen_us
            if arrival_us >= forgotten_us:
                self._forget(key, now_us)
                continue
            since_us = max(heard_us, begun_us, self.sources.get(source, (0, 0))[1])
            due_us = max(since_us + absent_us, begun_us + self._grace_us if since_us == begun_us else 0)
            next_us = min(next_us, due_us, forgotten_us)
            if arrival_us < due_us or not self._is_source_alive(source, due_us):
                continue
            group, silent_us = as_tuple(key, self.plan.by), arrival_us - since_us
            at_us = te_us + arrival_us - heard_us if heard_us else now_us
            suppressor = _suppressor(suppression, group)
            moment = Moment(True, False, arrival_us, arrival_us, for_us=self._us(self.spec.for_), suppressor=suppressor)
            told: Mapping[str, Any] = {"silent_s": silent_us / 1e6}
            self.book.see(group, moment, lambda told=told: told, -1, at_us=at_us)  # type: ignore[misc]
        self.next_us = next_us
        for group in in_order(g for g, a in self.book.alarms.items() if a.is_open and not is_more(g)):
            if self.expected is not None and from_tuple(group) not in self.expected:
                self.book.by_hand(group, machine.retire(self.book.alarms[group], "no longer expected"), now_us)

    def _is_source_alive(self, source: str, due_us: int) -> bool:
        """Whether it spoke when the group should have spoken at the latest; of one never heard, whether any did."""
        if source:
            return self.sources.get(source, (0, 0))[0] >= due_us
        return any(last_us >= due_us for last_us, _ in self.sources.values())

    def _forget(self, key: Any, now_us: int) -> None:
        group = as_tuple(key, self.plan.by)
        del self.heard[key]
        self.touched[key] = GONE
        if self.book.alarm(group).is_open:
            self.book.by_hand(group, machine.retire(self.book.alarms[group], "not seen any more"), now_us)
        self.book.limit("groups", False, now_us, -1, "")

    @property
    def _seen_us(self) -> int:
        return _NEVER if self.plan.seen_us is None else self.plan.seen_us

    @property
    def _grace_us(self) -> int:
        return self.spec.start_grace or 0

    @staticmethod
    def _us(delay: int | str) -> int:
        return delay if isinstance(delay, int) else 0

    # -- by hand, and state

    def by_hand(self, verb: str, incident: str, by: str, reason: str, at_us: int) -> bool:
        for book in self.books:
            for group, alarm in book.alarms.items():
                if alarm.incident == incident:
                    act = machine.acknowledge if verb == "acknowledge" else machine.reset
                    book.by_hand(group, act(book.identity.rules, alarm, by, reason), at_us)
                    return True
        return False

    def shelve(self, shelves: Shelves, at_us: int, arrival_us: int) -> None:
        for book in self.books:
            book.shelve(shelves, at_us, arrival_us)

    def commit(self, state: State, captured: Mapping[str, pa.Table]) -> State:
        if self.touched:
            changes = {as_tuple(key, self.plan.by): value for key, value in self.touched.items()}
            state = state.put(self.plan.owner, changed(self.cells, changes))
            self.cells, self.touched = state.of(self.plan.owner), {}
        if any(self.source_cells.get((name,)) != spoke for name, spoke in self.sources.items()):
            state = state.put(self.plan.source_owner, {(name,): spoke for name, spoke in self.sources.items()})
            self.source_cells = state.of(self.plan.source_owner)
        for book in self.books:
            state = book.commit(state)
        return state


def _suppressor(suppression: Sequence[Suppression], group: Group) -> str:
    return suppression[0].of(group) if suppression else ""
