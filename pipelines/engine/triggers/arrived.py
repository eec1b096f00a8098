"""The accepted rows of one stretch of a batch as the triggers read them: columns as lists, made once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.triggers.tally import on_grid
from pipelines.engine.watermark import FAR_US

RELAX_US = 60_000_000  # a source that is steadily behind for so long is taken as live
Pace = tuple[int, int, int]  # see `pace`


class Arrived:
    """Rows with `_et`, `_row` and `_at`, the watermark of their source after them. `late_us`: how much older each is than the
    newest known of its source, see `pace`."""

    def __init__(self, rows: pa.Table, arrival_us: int, source: str = "") -> None:
        self.table, self.arrival_us, self.source = rows, arrival_us, source
        self.n = rows.num_rows
        self._lists: dict[str, list[Any]] = {}
        self._tuples: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        self._grids: dict[str, list[Any]] = {}
        self._keys: dict[tuple[str, ...], list[Any]] = {}
        self._stored: dict[tuple[str, ...], tuple[Any, pa.Table]] = {}
        self.row: list[int] = self.column("_row")
        self.at_us: list[int] = self.column("_at")
        self.te_us = self._times()
        self.unfit: list[bool] | None = None
        if "_unfit" in rows.column_names:
            self.unfit = [value is True for value in self.column("_unfit")]
        self.late_us: list[int] | None = None

    def column(self, name: str) -> list[Any]:
        found = self._lists.get(name)
        if found is None:
            found = self._lists[name] = self.table[name].to_pylist()
        return found

    def on_grid(self, name: str) -> list[Any]:
        """A column of doubles as integers that add up exactly."""
        found = self._grids.get(name)
        if found is None:
            found = self._grids[name] = on_grid(self.column(name))
        return found

    def keys(self, names: tuple[str, ...]) -> list[Any]:
        """One value per row that stands for those of `names`: the value itself of one column, else a tuple."""
        found = self._keys.get(names)
        if found is None:
            found = self._keys[names] = as_keys([self.column(name) for name in names], self.n)
        return found

    def tuples(self, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
        """The values of `names`, row by row."""
        found = self._tuples.get(names)
        if found is None:
            lists = [self.column(name) for name in names]
            found = self._tuples[names] = list(zip(*lists, strict=True)) if lists else [()] * self.n
        return found

    def as_stored(self, names: tuple[str, ...], places: list[int], stamps: list[int], first: int) -> pa.Table:
        """The rows at `places` with `stamps`; numbers count all rows from `first` on. Made once for all who ask alike."""
        asked, (before, table) = (places, stamps, first), self._stored.get(names, (None, None))
        if asked != before:
            columns, numbers = [self.table[name] for name in names], pa.arange(first, first + self.n)
            if len(places) < self.n:
                columns = [values.take(pa.array(places, pa.int64())) for values in columns]
                numbers = pa.array([first + i for i in places], pa.int64())
            arrivals = pa.repeat(pa.scalar(self.arrival_us, pa.int64()), len(places))
            own = [pa.array(stamps, pa.int64()), numbers, arrivals]
            table = pa.Table.from_arrays([*columns, *own], [*names, "_t", "_seq", "_arrival"])
            self._stored[names] = (asked, table)
        return table

    def _times(self) -> list[int]:
        """Never ahead of the watermark, never further behind it than a silent group is remembered."""
        if self.n < 256:
            both = zip(self.column("_et"), self.at_us, strict=True)
            return [max(min(et, at), at - FAR_US) for et, at in both]
        et, at = self.table["_et"], self.table["_at"]
        times: list[int] = pc.max_element_wise(pc.min_element_wise(et, at), pc.subtract(at, FAR_US)).to_pylist()
        return times


def as_keys(columns: Sequence[list[Any]], n: int) -> list[Any]:
    """One key per row."""
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)) if columns else [()] * n


def as_tuple(key: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """A key of `Arrived.keys` as the values of `names`."""
    return (key,) if len(names) == 1 else key


def from_tuple(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


def pace(old: Pace | None, rows: Arrived) -> Pace:
    """How far event time is ahead of node time in a live source, told from its rows alone: the most that was ever seen. Sets
    `late_us`. A backlog after an outage comes with the times it was made at, so its rows are late until it has caught up; so is a
    source whose clock was set back. One that keeps the same distance for `RELAX_US` of node time is live at that distance.

    (that lead, the least lag since the source is behind, the node time when that was seen); microseconds."""
    arrival_us = rows.arrival_us
    lead, least, least_arrival = old or (rows.at_us[0] - arrival_us, 0, arrival_us)
    late = []
    for te, at in zip(rows.te_us, rows.at_us, strict=True):
        lag = arrival_us + lead - at
        if lag <= 0:
            lead, lag, least, least_arrival = at - arrival_us, 0, 0, arrival_us
        elif not least or lag < least:
            least, least_arrival = lag, arrival_us
        elif arrival_us - least_arrival >= RELAX_US:
            lead, lag, least, least_arrival = at - arrival_us, 0, 0, arrival_us
        late.append(lag + at - te)
    rows.late_us = late
    return lead, least, least_arrival
