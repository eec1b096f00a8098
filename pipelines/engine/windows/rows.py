"""The rows that a window reads of one batch: only the columns it needs, those its condition holds for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.ipc import TIMESTAMP
from pipelines.engine.state import Key
from pipelines.engine.windows.plan import WindowPlan


@dataclass(frozen=True)
class Rows:
    """`before` is the watermark that each row met, `at` that of its source after it. `keys`, of rows that another window gave:
    their start and group there."""

    numbers: pa.Array
    times: pa.Array
    before: pa.Array
    at: pa.Array
    by: Sequence[pa.Array]
    values: Mapping[str, pa.Array]
    keys: Sequence[Key] = ()
    taken: Sequence[bool] | None = None  # of rows with `keys`: whether the condition holds

    def __len__(self) -> int:
        return len(self.times)

    def slice(self, start: int, stop: int) -> Rows:
        cut = [start, stop - start]
        taken = self.taken[start:stop] if self.taken is not None else None
        numbers, times, before, at = (a.slice(*cut) for a in (self.numbers, self.times, self.before, self.at))
        values = {name: a.slice(*cut) for name, a in self.values.items()}
        by = [a.slice(*cut) for a in self.by]
        return Rows(numbers, times, before, at, by, values, self.keys[start:stop], taken)

    def filter(self, mask: pa.Array) -> Rows:
        numbers, times, before, at = (a.filter(mask) for a in (self.numbers, self.times, self.before, self.at))
        values = {name: a.filter(mask) for name, a in self.values.items()}
        return Rows(numbers, times, before, at, [a.filter(mask) for a in self.by], values)

    @cached_property
    def groups(self) -> Sequence[Key]:
        return list(zip(*(a.to_pylist() for a in self.by), strict=True)) if self.by else [()] * len(self)

    @cached_property
    def lists(self) -> Mapping[str, Sequence[Any]]:
        return {name: a.to_pylist() for name, a in self.values.items()}


def of_pipeline(plan: WindowPlan, table: pa.Table, closed_us: int | None) -> Rows:
    """`table` are accepted rows with `_et`, `_row`, `_before` and `_at`."""
    rows = _read(plan, table, table["_et"].combine_chunks(), table["_at"].combine_chunks(), closed_us)
    if not plan.where:
        return rows
    mask = table[plan.where].combine_chunks()
    return rows if pc.all(mask, skip_nulls=False).as_py() else rows.filter(mask)


def of_window(plan: WindowPlan, table: pa.Table, closed_us: int | None) -> Rows:
    """`table` are emitted rows of the window that `plan` takes from. A row counts where it starts; its watermark is the one that
    made it due."""
    assert plan.source is not None
    n = table.num_rows
    if plan.inputs is not None:
        hidden = plan.inputs(table)
        for name in hidden.column_names:
            table = table.append_column(name, hidden[name])
    table = table.append_column("_row", pa.repeat(pa.scalar(-1, pa.int32()), n))
    before = pc.subtract(table["_due"], 1)
    table = table.append_column("_before", before).append_column("_at", before)
    starts = table["_window_start"].combine_chunks().cast(pa.int64())
    rows = _read(plan, table, starts, before.combine_chunks(), closed_us)
    mask = table[plan.where].combine_chunks() if plan.where else None
    if plan.is_keyed:
        keys = list(zip(starts.to_pylist(), *(table[name].to_pylist() for name in plan.source.by), strict=True))
        taken = [bool(yes) for yes in mask.to_pylist()] if mask is not None else [True] * n
        return Rows(rows.numbers, rows.times, rows.before, rows.at, rows.by, rows.values, keys, taken)
    return rows if mask is None else rows.filter(mask)


def _read(plan: WindowPlan, table: pa.Table, times: pa.Array, at: pa.Array, closed_us: int | None) -> Rows:
    before = table["_before"].combine_chunks()
    if closed_us is not None and len(before) and before[0].as_py() < closed_us:
        before = pc.max_element_wise(before, pa.scalar(closed_us, pa.int64()))
    by = [_whole(table[name]) for name in plan.by]
    return Rows(_whole(table["_row"]), times, before, at, by, {name: _plain(table[name]) for name in plan.reads})


def _plain(values: pa.ChunkedArray) -> pa.Array:
    """Timestamps as microseconds."""
    whole = _whole(values)
    return whole.cast(TIMESTAMP).cast(pa.int64()) if pa.types.is_timestamp(whole.type) else whole


def _whole(values: pa.ChunkedArray) -> pa.Array:
    whole = values.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
