"""Windows with fixed bounds: rows merge into panes, one cell per pane and group; a window is made of its panes when it closes.

A row is late when its window came out before; within `keep` it corrects the window, which then comes out again with a higher
`_revision`, together with all other corrections up to the next multiple of the plan's grid. What is due before a late row comes
out before it counts, so that the split into batches does not show (I14).

Cells of a window, by owner: the panes `(start, *group) -> (rows, rows that came out, parts)`; `.emitted`, of windows that may be
corrected: `(start, *group) -> (times it came out, values held before it)`; `.dirty`: `(start, *group) -> when the correction is
due`; `.held`: `group -> (start, held values)`; `.marks`: `("closed",) -> the latest due time that came out`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.state import Cells, Key, State
from pipelines.engine.watermark import FAR_US
from pipelines.engine.windows.aggregates import Closing
from pipelines.engine.windows.emission import in_order, rows_of
from pipelines.engine.windows.frame import Frame
from pipelines.engine.windows.index import Places, add, remove
from pipelines.engine.windows.plan import Every, WindowPlan
from pipelines.engine.windows.rows import Rows

TOO_LATE, OVER_LIMIT = "too_late", "over_limit"
AHEAD_MAX = 1000  # cells more than an hour ahead of the watermark: stamps from a wrong clock
SMALL = 400  # rows below which a loop is faster than columns
_CLOSED = ("closed",)
_NEW = (0, 0, None)

Refused = list[tuple[int, str]]  # (row, reason)


@dataclass
class Contribution:
    """What a batch did to one window."""

    state: State
    refused: Refused = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    replaced: int = 0

    def closed(self, state: State, table: pa.Table | None) -> None:
        """Windows came out on the way."""
        self.state = state
        if table is not None:
            self.tables.append(table)


def closed_us(plan: WindowPlan, state: State) -> int | None:
    return state.of(f"{plan.owner}.marks").get(_CLOSED)


def contribute(plan: WindowPlan, state: State, rows: Rows) -> Contribution:
    made = Contribution(state)
    cuts = [*_cuts(plan, rows)]
    for start, stop in pairwise([0, *(cut for cut, _ in cuts if cut), len(rows)]):
        corrected_us = next((before for cut, before in cuts if cut == start), None)
        if corrected_us is not None:
            made.closed(*close(plan, made.state, corrected_us))
            made.state = now_closed(plan, made.state, plan.panes.around(corrected_us - plan.lateness_us)[0] + plan.lateness_us)
        _merge(plan, made, rows.slice(start, stop), corrected_us)
    return made


def _cuts(plan: WindowPlan, rows: Rows) -> Iterator[tuple[int, int]]:
    """(index, watermark) of the rows before which windows must come out: those that are late for some window and yet count. Of
    rows between which nothing falls due, the first."""
    if not len(rows) or not (plan.corrects or plan.overlaps):
        return
    starts, ends = plan.panes.assign(rows.times)
    first_ends = pc.add(starts, plan.panes.slide) if isinstance(plan.panes, Every) else ends
    over = pc.less_equal(pc.add(first_ends, plan.lateness_us), rows.before)
    corrects = pc.and_(over, pc.greater(pc.add(ends, plan.hold_us), rows.before))
    last: tuple[int, int] | None = None
    for i in pc.indices_nonzero(corrects).to_pylist():
        before = rows.before[i].as_py()
        epoch = (before // plan.grid_us, plan.panes.around(before - plan.lateness_us)[0])
        if epoch != last:
            yield i, before
        last = epoch


def _merge(plan: WindowPlan, made: Contribution, rows: Rows, corrected_us: int | None) -> None:
    if not len(rows):
        return
    if len(rows) >= SMALL and not plan.is_keyed and _measured(plan, made, rows, corrected_us):
        return
    _Fold(plan, made, corrected_us).run(rows)


# -- a few rows, one by one


class _Fold:
    def __init__(self, plan: WindowPlan, made: Contribution, corrected_us: int | None) -> None:
        self.plan, self.made, self.corrected_us = plan, made, corrected_us
        self._open()

    def _open(self) -> None:
        cells = self.made.state.of(self.plan.owner)
        self.starts = self.plan.index.starts(cells)
        self.cells = dict(cells)
        self.pending: dict[Key, list[int]] = {}
        self.opened = 0
        self.corrected: dict[Key, None] = {}
        self.plan.index.lost()

    def run(self, rows: Rows) -> None:
        kind, hold = self.plan.panes, self.plan.hold_us
        befores, ats, groups = rows.before.to_pylist(), rows.at.to_pylist(), rows.groups
        for i, time in enumerate(rows.times.to_pylist()):
            start, end = kind.around(time)
            if end + hold <= befores[i]:
                self._refuse(rows, i, TOO_LATE)
                continue
            key = (start, *groups[i])
            places = self.pending.get(key)
            if places is None:
                if key not in self.cells and not self._has_room(rows, key, befores[i], ats[i]):
                    self._refuse(rows, i, OVER_LIMIT)
                    continue
                places = self.pending[key] = []
            places.append(i)
            if self.corrected_us is not None and self._first_due(start, end) <= befores[i]:
                self.corrected[key] = None
        self._flush(rows)

    def _first_due(self, start: int, end: int) -> int:
        """When the first window that holds the pane is due."""
        kind = self.plan.panes
        return (start + kind.slide if isinstance(kind, Every) else end) + self.plan.lateness_us

    def _refuse(self, rows: Rows, i: int, reason: str) -> None:
        self.made.refused.append((rows.numbers[i].as_py(), reason))

    def _has_room(self, rows: Rows, key: Key, before_us: int, at_us: int) -> bool:
        """Whether one more cell may open; if so, it is."""
        plan = self.plan
        if len(self.cells) + self.opened >= plan.cells_max:
            self._flush(rows)
            self.made.closed(*close(plan, self.made.state, before_us))
            self._open()
            if len(self.cells) >= plan.cells_max:
                return False
        if len(self.starts.get(key[:1], ())) >= plan.spec.max_groups:
            return False
        if key[0] > at_us + FAR_US and ahead(self.starts, at_us) >= AHEAD_MAX:
            return False
        add(self.starts, key[:1], key)
        self.opened += 1
        return True

    def _flush(self, rows: Rows) -> None:
        plan, lists, times = self.plan, rows.lists, rows.times.to_pylist()
        for key, places in self.pending.items():
            old = self.cells.get(key)
            if plan.is_keyed:
                self.cells[key] = self._replaced(old, rows, places, times)
            else:
                self.cells[key] = _grown(plan, old, places, times, lists)
        self.made.state = self.made.state.put(plan.owner, self.cells)
        plan.index.now(self.made.state.of(plan.owner))
        mark_corrected(plan, self.made, self.corrected, self.corrected_us)
        self.pending, self.corrected = {}, {}

    def _replaced(self, old: Any, rows: Rows, places: Sequence[int], times: Sequence[int]) -> Any:
        """A cell that keeps its rows: one that comes again takes the place of its older revision."""
        _, out, kept = old or (0, 0, {})
        kept = dict(kept)
        for i in places:
            taken = rows.taken is None or rows.taken[i]
            self.made.replaced += rows.keys[i] in kept
            kept[rows.keys[i]] = (times[i], tuple(rows.lists[name][i] for name in self.plan.reads) if taken else None)
        return (len(kept), out, kept)


def ahead(starts: Places, at_us: int) -> int:
    return sum(len(keys) for (start,), keys in starts.items() if start > at_us + FAR_US)


def _grown(plan: WindowPlan, old: Any, places: Sequence[int], times: Sequence[int], lists: Any) -> Any:
    n, out, parts = old or (0, 0, (None,) * len(plan.parts))
    known: dict[str, tuple[list[int], list[Any]]] = {}
    for name in plan.reads:
        mine = [i for i in places if lists[name][i] is not None]
        known[name] = ([times[i] for i in mine], [lists[name][i] for i in mine])
    grown = tuple(part.grown(value, *known[part.column]) for part, value in zip(plan.parts, parts, strict=True))
    return (n + len(places), out, grown)


def mark_corrected(plan: WindowPlan, made: Contribution, panes: dict[Key, None], corrected_us: int | None) -> None:
    """The windows of these panes that came out, will again."""
    if not panes or corrected_us is None or not plan.corrects:
        return
    emitted_owner, dirty_owner = f"{plan.owner}.emitted", f"{plan.owner}.dirty"
    emitted, dirty = dict(made.state.of(emitted_owner)), dict(made.state.of(dirty_owner))
    due = (corrected_us // plan.grid_us + 1) * plan.grid_us
    for pane, *group in panes:
        for start, end in windows_of(plan, pane):
            if end + plan.lateness_us <= corrected_us < end + plan.hold_us:
                key = (start, *group)
                dirty.setdefault(key, due)
                emitted.setdefault(key, (0, None))
    made.state = made.state.put(emitted_owner, emitted).put(dirty_owner, dirty)


def windows_of(plan: WindowPlan, pane: int) -> Iterator[tuple[int, int]]:
    """Start and end of each window that holds the pane."""
    kind = plan.panes
    if isinstance(kind, Every):
        for start in range(pane - kind.every + kind.slide, pane + 1, kind.slide):
            yield start, start + kind.every
    else:
        yield kind.around(pane)


# -- many rows at once


def _measured(plan: WindowPlan, made: Contribution, rows: Rows, corrected_us: int | None) -> bool:
    """Whether the rows could be merged by columns, with the same result as by a loop."""
    starts, ends = plan.panes.assign(rows.times)
    bounds = pc.add(ends, plan.hold_us)
    late = None
    if pc.min(bounds).as_py() <= rows.before[-1].as_py():
        late = pc.less_equal(bounds, rows.before)
        on_time = pc.invert(late)
        kept, starts, ends = rows.filter(on_time), starts.filter(on_time), ends.filter(on_time)
    else:
        kept = rows
    if not len(kept):
        _refuse_late(made, rows, late)
        return True
    codes, keys = _cells_of(starts, kept)
    cells = made.state.of(plan.owner)
    if not _have_room(plan, cells, keys, kept):
        return False
    frame = Frame(codes, len(keys), kept.times)
    held = {i for i, part in enumerate(plan.parts) if part.is_sequential}
    wanted = [None if i in held else part.measure(kept.values[part.column], frame) for i, part in enumerate(plan.parts)]
    if any(one is None and i not in held for i, one in enumerate(wanted)):
        return False
    found = [one() if one is not None else frame.lists(kept.values[plan.parts[i].column]) for i, one in enumerate(wanted)]
    _refuse_late(made, rows, late)
    _join(plan, made, keys, frame.counts, found, held)
    if corrected_us is not None and plan.corrects:
        mark_corrected(plan, made, _corrected(plan, kept, starts, ends), corrected_us)
    return True


def _refuse_late(made: Contribution, rows: Rows, late: pa.Array | None) -> None:
    if late is not None:
        made.refused += [(number, TOO_LATE) for number in rows.numbers.filter(late).to_pylist()]


def _cells_of(starts: pa.Array, rows: Rows) -> tuple[pa.Array, list[Key]]:
    """The number of each row's cell, and the key of each number, in order of appearance."""
    ends = pc.min_max(starts).as_py()
    columns = [*rows.by] if ends["min"] == ends["max"] else [starts, *rows.by]
    codes: pa.Array | None = None
    keys: list[Key] = [()]
    for column in columns:
        words = column.dictionary_encode(null_encoding="encode")
        values = words.dictionary.to_pylist()
        if codes is None:
            codes, keys = words.indices, [(value,) for value in values]
        else:
            pairs = pc.add(pc.multiply(codes.cast(pa.int64()), len(values)), words.indices.cast(pa.int64()))
            both = pairs.dictionary_encode()
            codes = both.indices
            keys = [(*keys[pair // len(values)], values[pair % len(values)]) for pair in both.dictionary.to_pylist()]
    if codes is None:
        codes = pa.repeat(pa.scalar(0, pa.int32()), len(starts))
    return codes, keys if columns and columns[0] is starts else [(ends["min"], *key) for key in keys]


def _have_room(plan: WindowPlan, cells: Cells, keys: Sequence[Key], rows: Rows) -> bool:
    """Whether no limit can be met on the way."""
    fresh: dict[int, int] = {}
    for key in keys:
        if key not in cells:
            fresh[key[0]] = fresh.get(key[0], 0) + 1
    if not fresh:
        return True
    starts = plan.index.starts(cells)
    if len(cells) + sum(fresh.values()) > plan.cells_max:
        return False
    if any(n + len(starts.get((start,), ())) > plan.spec.max_groups for start, n in fresh.items()):
        return False
    at_us = rows.at[0].as_py()
    far = sum(n for start, n in fresh.items() if start > at_us + FAR_US)
    return not far or far + ahead(starts, at_us) <= AHEAD_MAX


def _join(
    plan: WindowPlan, made: Contribution, keys: Sequence[Key], counts: Sequence[int], found: Sequence[list[Any]], held: set[int]
) -> None:
    old = made.state.of(plan.owner)
    starts, cells = plan.index.starts(old), dict(old)
    plan.index.lost()
    for i, key in enumerate(keys):
        cell = cells.get(key)
        if cell is None:
            add(starts, key[:1], key)
        n, out, parts = cell or (0, 0, (None,) * len(plan.parts))
        joined = tuple(
            part.grown(parts[p], *found[p][i]) if p in held else part.joined(parts[p], found[p][i])
            for p, part in enumerate(plan.parts)
        )
        cells[key] = (n + counts[i], out, joined)
    made.state = made.state.put(plan.owner, cells)
    plan.index.now(made.state.of(plan.owner))


def _corrected(plan: WindowPlan, rows: Rows, starts: pa.Array, ends: pa.Array) -> dict[Key, None]:
    first_ends = pc.add(starts, plan.panes.slide) if isinstance(plan.panes, Every) else ends
    emitted = pc.less_equal(pc.add(first_ends, plan.lateness_us), rows.before)
    if not pc.any(emitted).as_py():
        return {}
    _, keys = _cells_of(starts.filter(emitted), rows.filter(emitted))
    return dict.fromkeys(keys)


# -- closing


def close(
    plan: WindowPlan, state: State, reached_us: int | None, *, early: bool = False, partial: bool = False
) -> tuple[State, pa.Table | None]:
    """The windows that are due at `reached_us`, and the corrections; `early`: all. `partial` marks their rows."""
    cells = state.of(plan.owner)
    if not cells:
        return state, None
    due = _due(plan, state, cells, reached_us, early=early)
    if due:
        state, due = _with_held(plan, state, due)
        state = _account(plan, state, due, reached_us)
    state = _forget(plan, state, reached_us, early=early)
    return state, rows_of(plan, due, reached_us, partial=partial) if due else None


def _due(plan: WindowPlan, state: State, cells: Cells, reached_us: int | None, *, early: bool) -> list[Closing]:
    closed, starts = closed_us(plan, state), plan.index.starts(cells)
    emitted, dirty = state.of(f"{plan.owner}.emitted"), state.of(f"{plan.owner}.dirty")
    found: list[Closing] = []
    for start, end in _windows_due(plan, starts, reached_us, closed, early=early):
        groups = dict.fromkeys(key[1:] for pane in _panes_of(plan, start) for key in starts.get((pane,), ()))
        fresh = [group for group in groups if (start, *group) not in emitted]
        found += [_closing(plan, cells, start, end, end + plan.lateness_us, group, 0) for group in fresh]
    for (start, *words), due in dirty.items():
        if early or (reached_us is not None and due <= reached_us):
            group, end = tuple(words), plan.panes.around(start)[1]
            found.append(_closing(plan, cells, start, end, due, group, emitted[start, *group][0]))
    return in_order(found)


def _windows_due(
    plan: WindowPlan, starts: Places, reached_us: int | None, closed: int | None, *, early: bool
) -> Iterator[tuple[int, int]]:
    if not early and reached_us is None:
        return
    windows: dict[int, int] = {}
    kind, lateness = plan.panes, plan.lateness_us
    step = kind.slide if isinstance(kind, Every) else 0
    for (pane,) in starts:
        if not early and reached_us is not None and pane + step + lateness > reached_us:
            continue
        windows |= dict(windows_of(plan, pane))
    for start, end in windows.items():
        due = end + lateness
        if (closed is None or due > closed) and (early or (reached_us is not None and due <= reached_us)):
            yield start, end


def _panes_of(plan: WindowPlan, start: int) -> Sequence[int]:
    kind = plan.panes
    return range(start, start + kind.every, kind.slide) if isinstance(kind, Every) else (start,)


def _closing(plan: WindowPlan, cells: Cells, start: int, end: int, due: int, group: Key, revision: int) -> Closing:
    mine = [cell for pane in _panes_of(plan, start) if (cell := cells.get((pane, *group)))]
    rows = sum(cell[0] for cell in mine)
    if plan.is_keyed:
        parts: Sequence[Any] = _folded(plan, [row for cell in mine for row in cell[2].items()])
    else:
        parts = mine[0][2]
        for cell in mine[1:]:
            parts = tuple(part.joined(a, b) for part, a, b in zip(plan.parts, parts, cell[2], strict=True))
    return Closing(start, end, end, due, group, revision, rows, parts)


def _folded(plan: WindowPlan, rows: Sequence[tuple[Key, Any]]) -> Sequence[Any]:
    """The parts of rows that were kept one by one."""
    taken = sorted((row for row in rows if row[1][1] is not None), key=lambda r: (r[1][0], [str(word) for word in r[0]]))
    times = [time for _, (time, _) in taken]
    lists = {name: [values[i] for _, (_, values) in taken] for i, name in enumerate(plan.reads)}
    parts: Sequence[Any] = _grown(plan, None, range(len(taken)), times, lists)[2]
    return parts


def _with_held(plan: WindowPlan, state: State, due: list[Closing]) -> tuple[State, list[Closing]]:
    """The closings with the values that held when they began, which each leaves to the next of its group."""
    if not plan.held:
        return state, due
    owner, cells, emitted = f"{plan.owner}.held", state.of(plan.owner), state.of(f"{plan.owner}.emitted")
    left, found = dict(state.of(owner)), []
    for closing in due:
        known = emitted.get((closing.start_us, *closing.group))
        before = left.get(closing.group, (0, None))[1] if known is None else known[1]
        found.append(replace(closing, before=_by_part(plan, before)))
        pane = cells.get((closing.start_us, *closing.group))
        if known is None and pane is not None:
            left[closing.group] = (closing.start_us, _held_after(plan, pane, before))
            left = _newest_groups(left, plan.spec.max_groups)
    return state.put(owner, left), found


def _by_part(plan: WindowPlan, held: Sequence[Any] | None) -> Sequence[Any]:
    values: list[Any] = [None] * len(plan.parts)
    for place, value in zip(plan.held, held or (), strict=False):
        values[place] = value
    return values


def _newest_groups(left: dict[Key, Any], most: int) -> dict[Key, Any]:
    """At most twice `most` groups are remembered after they fell silent."""
    if len(left) <= 2 * most:
        return left
    return dict(sorted(left.items(), key=lambda item: (item[1][0], [str(word) for word in item[0]]))[-most:])


def _held_after(plan: WindowPlan, pane: Any, before: Any) -> Any:
    parts = _folded(plan, list(pane[2].items())) if plan.is_keyed else pane[2]
    old = before or (None,) * len(plan.held)
    return tuple(parts[place][2] if parts[place] is not None else value for place, value in zip(plan.held, old, strict=True))


def _account(plan: WindowPlan, state: State, due: Sequence[Closing], reached_us: int | None) -> State:
    """Which rows came out (I4): those of a pane, with the last window that holds it. And what closed."""
    cells, emitted, dirty = (dict(state.of(plan.owner + more)) for more in ("", ".emitted", ".dirty"))
    plan.index.lost()
    n = 0
    for closing in due:
        key = (closing.start_us, *closing.group)
        if (cell := cells.get(key)) is not None:
            n += cell[0] - cell[1]
            cells[key] = (cell[0], cell[0], cell[2])
        dirty.pop(key, None)
        if plan.corrects:
            before = tuple(closing.before[place] for place in plan.held) if closing.before else None
            emitted[key] = (closing.revision + 1, before)
    state = state.put(plan.owner, cells).put(f"{plan.owner}.emitted", emitted).put(f"{plan.owner}.dirty", dirty)
    plan.index.now(state.of(plan.owner))  # the same keys
    # A window far ahead (a wrong clock) says nothing about those before it.
    ends = [c.end_us + plan.lateness_us for c in due if reached_us is not None and c.start_us <= reached_us]
    if ends:
        state = now_closed(plan, state, max(ends))
    return state.with_counts("streams", f"windows.{plan.name}", {"emitted": n})


def now_closed(plan: WindowPlan, state: State, due_us: int) -> State:
    old = closed_us(plan, state)
    return state if old is not None and old >= due_us else state.put(f"{plan.owner}.marks", {_CLOSED: due_us})


def _forget(plan: WindowPlan, state: State, reached_us: int | None, *, early: bool) -> State:
    """Drop what cannot change any more."""
    if early:
        for more in ("", ".emitted", ".dirty"):
            state = state.put(plan.owner + more, {})
        return state
    if reached_us is None:
        return state
    keep = plan.hold_us + (plan.grid_us if plan.corrects else 0)
    starts = plan.index.starts(state.of(plan.owner))
    gone = [pane for pane in starts if plan.panes.around(pane[0])[1] + keep <= reached_us]
    if not gone:
        return state
    cells = dict(state.of(plan.owner))
    plan.index.lost()
    for key in [key for pane in gone for key in starts[pane]]:
        del cells[key]
        remove(starts, key[:1], key)
    state = state.put(plan.owner, cells)
    plan.index.now(state.of(plan.owner))
    if not plan.corrects:
        return state
    emitted = state.of(f"{plan.owner}.emitted")
    return state.put(
        f"{plan.owner}.emitted",
        {key: value for key, value in emitted.items() if plan.panes.around(key[0])[1] + keep > reached_us},
    )


def forget_time_line(plan: WindowPlan, state: State) -> State:
    """Event time started again: nothing is closed yet, nothing is held."""
    return state.put(f"{plan.owner}.marks", {}).put(f"{plan.owner}.held", {})
