"""Sessions: rows of a group with less than `gap` of event time between them, at most `max` from first to last.

A row may join a session, start one, or close the gap between two. It is late when the session it would make came out before.
Cells: `(start, *group) -> (rows, 0, parts, last time)`; `.marks`: `("closed",) -> the latest due time that came out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.engine.state import Cells, Key, State
from pipelines.engine.watermark import FAR_US
from pipelines.engine.windows.aggregates import Closing
from pipelines.engine.windows.emission import in_order, rows_of
from pipelines.engine.windows.index import add, remove
from pipelines.engine.windows.panes import AHEAD_MAX, OVER_LIMIT, TOO_LATE, Contribution, now_closed
from pipelines.engine.windows.plan import WindowPlan
from pipelines.engine.windows.rows import Rows


@dataclass
class _Session:
    start: int
    last: int
    rows: int
    parts: Sequence[Any]
    places: list[int] = field(default_factory=list)  # of rows that are not in `parts` yet


def contribute(plan: WindowPlan, state: State, rows: Rows) -> Contribution:
    made = Contribution(state)
    _Fold(plan, made, rows).run()
    return made


class _Fold:
    """Only groups that have rows are looked at: `loaded` are their sessions."""

    def __init__(self, plan: WindowPlan, made: Contribution, rows: Rows) -> None:
        self.plan, self.made, self.rows = plan, made, rows
        self.times = rows.times.to_pylist()
        self.before, self.at = rows.before.to_pylist(), rows.at.to_pylist()
        self._open()

    def _open(self) -> None:
        self.cells = self.made.state.of(self.plan.owner)
        self.groups = self.plan.index.groups(self.cells)
        self.loaded: dict[Key, list[_Session]] = {}
        self.count = len(self.cells)

    def run(self) -> None:
        for i, group in enumerate(self.rows.groups):
            if (refused := self._add(i, group)) is not None:
                self.made.refused.append((self.rows.numbers[i].as_py(), refused))
        self._store()

    def _sessions(self, group: Key) -> list[_Session]:
        if group not in self.loaded:
            cells = [(key[0], self.cells[key]) for key in self.groups.get(group, ())]
            self.loaded[group] = [_Session(start, last, rows, parts) for start, (rows, _, parts, last) in cells]
        return self.loaded[group]

    def _due(self, one: _Session) -> int:
        return self.plan.session.end(one.start, one.last) + self.plan.lateness_us

    def _add(self, i: int, group: Key) -> str | None:
        """None, or why the row cannot be counted."""
        time = self.times[i]
        joined = self._joined(time, self.before[i], group)
        if not joined:
            one = _Session(time, time, 0, (None,) * len(self.plan.parts))
            if self._due(one) <= self.before[i]:
                return TOO_LATE
            if not self._has_room(time, self.before[i], self.at[i]):
                return OVER_LIMIT
            self._sessions(group).append(one)
            self.count += 1
        else:
            one = joined[0]
        one.start, one.last = min(one.start, time), max(one.last, time)
        one.rows += 1
        one.places.append(i)
        if len(joined) > 1:
            self._merge(one, joined[1], group)
        return None

    def _joined(self, time: int, before: int, group: Key) -> list[_Session]:
        """The open sessions that a row at `time` belongs to, the earlier first."""
        gap, most = self.plan.session.gap, self.plan.session.max
        found: list[_Session] = []
        low = high = time
        for one in sorted(self._sessions(group), key=lambda s: s.start):
            near = one.start - gap < time < one.last + gap and self._due(one) > before
            if near and (most is None or max(high, one.last) - min(low, one.start) < most):
                found.append(one)
                low, high = min(low, one.start), max(high, one.last)
        return found

    def _merge(self, one: _Session, later: _Session, group: Key) -> None:
        self._settle(one)
        self._settle(later)
        one.parts = tuple(part.joined(a, b) for part, a, b in zip(self.plan.parts, one.parts, later.parts, strict=True))
        one.rows, one.last = one.rows + later.rows, max(one.last, later.last)
        self.loaded[group] = [s for s in self.loaded[group] if s is not later]
        self.count -= 1

    def _settle(self, one: _Session) -> None:
        """Take the waiting rows into the parts."""
        grown = []
        for part, value in zip(self.plan.parts, one.parts, strict=True):
            values = self.rows.lists[part.column]
            mine = [i for i in one.places if values[i] is not None]
            grown.append(part.grown(value, [self.times[i] for i in mine], [values[i] for i in mine]))
        one.parts, one.places = tuple(grown), []

    def _has_room(self, time: int, before: int, at: int) -> bool:
        most = self.plan.spec.max_groups
        if self.count >= most:
            self._store()
            self.made.closed(*close(self.plan, self.made.state, before))
            self._open()
            if self.count >= most:
                return False
        if time <= at + FAR_US:
            return True
        self._store()
        self._open()
        far = sum(int(key[0] > at + FAR_US) for key in self.cells)
        return far < min(AHEAD_MAX, most // 2)

    def _store(self) -> None:
        plan, index = self.plan, self.plan.index
        cells, due = dict(self.cells), index.due_us
        known = due is not None or not self.cells
        index.lost()
        for group, mine in self.loaded.items():
            for key in self.groups.pop(group, ()):
                del cells[key]
            for one in mine:
                self._settle(one)
                key = (one.start, *group)
                cells[key] = (one.rows, 0, one.parts, one.last)
                add(self.groups, group, key)
                due = min(due, self._due(one)) if due is not None else self._due(one)
        self.made.state = self.made.state.put(plan.owner, cells)
        index.now(self.made.state.of(plan.owner))
        index.due_us = due if known else None


def close(
    plan: WindowPlan, state: State, reached_us: int | None, *, early: bool = False, partial: bool = False
) -> tuple[State, pa.Table | None]:
    """The sessions that nothing came to for `gap`; `early`: all. `partial` marks their rows."""
    cells, index = state.of(plan.owner), plan.index
    groups = index.groups(cells)
    if not cells or (not early and (reached_us is None or (index.due_us is not None and index.due_us > reached_us))):
        return state, None
    due = [c for c in _closings(plan, cells) if early or (reached_us is not None and c.due_us <= reached_us)]
    if not due:
        index.due_us = min(c.due_us for c in _closings(plan, cells))
        return state, None
    left = dict(cells)
    index.lost()
    for c in due:
        del left[(c.start_us, *c.group)]
        remove(groups, c.group, (c.start_us, *c.group))
    state = state.put(plan.owner, left)
    index.now(state.of(plan.owner))
    index.due_us = min((c.due_us for c in _closings(plan, left)), default=None)
    ends = [c.due_us for c in due if reached_us is not None and c.start_us <= reached_us]
    if ends:
        state = now_closed(plan, state, max(ends))
    state = state.with_counts("streams", f"windows.{plan.name}", {"emitted": sum(c.rows for c in due)})
    return state, rows_of(plan, in_order(due), reached_us, partial=partial)


def _closings(plan: WindowPlan, cells: Cells) -> list[Closing]:
    found = []
    for (start, *group), (rows, _, parts, last) in cells.items():
        end = plan.session.end(start, last)
        found.append(Closing(start, end, last, end + plan.lateness_us, tuple(group), 0, rows, parts))
    return found
