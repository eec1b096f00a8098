"""The rows of one batch that contribute to a window, by cell: one hash aggregation for all that is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


class Frame:
    """`codes` are the numbers of the rows' cells, 0 to `size` - 1; `times` their event times. Parts ask with `want`, and read
    when all have asked."""

    def __init__(self, codes: pa.Array, size: int, times: pa.Array) -> None:
        self.codes, self.size, self.times = codes, size, times
        self._wanted: list[tuple[pa.Array, str]] = []

    def want(self, values: pa.Array, function: str) -> Callable[[], list[Any]]:
        """What Arrow's `hash_<function>` gives of `values` in each cell."""
        place = len(self._wanted)
        self._wanted.append((values, function))
        return lambda: self._results[place]

    def pairs(self, values: pa.Array) -> list[tuple[int, Any, int]]:
        """(cell, value, how many rows) of each value that is not null."""
        table = pa.table({"c": self.codes, "v": values}).drop_null()
        found = table.group_by(["c", "v"], use_threads=False).aggregate([([], "count_all")])
        return list(zip(found["c"].to_pylist(), found["v"].to_pylist(), found["count_all"].to_pylist(), strict=True))

    def lists(self, values: pa.Array) -> list[tuple[list[int], list[Any]]]:
        """(times, values) of each cell in arrival order, without nulls."""
        found: list[tuple[list[int], list[Any]]] = [([], []) for _ in range(self.size)]
        for code, time, value in zip(self._code_list, self._time_list, values.to_pylist(), strict=True):
            if value is not None:
                times, mine = found[code]
                times.append(time)
                mine.append(value)
        return found

    @cached_property
    def origin_us(self) -> int:
        """The least event time."""
        return int(pc.min(self.times).as_py() or 0)

    @cached_property
    def order(self) -> pa.Array | None:
        """A number per row that grows with event time and, within one, with arrival; None where it does not fit 64 bits."""
        span, n = int(pc.max(self.times).as_py() or 0) - self.origin_us + 1, len(self.times)
        if span * n >= 2**62:
            return None
        return pc.add(pc.multiply(pc.subtract(self.times, self.origin_us), n), self._rows)

    @cached_property
    def counts(self) -> list[int]:
        """How many rows each cell has."""
        return self._results[-1]

    @cached_property
    def _results(self) -> list[list[Any]]:
        columns = {f"v{i}": values for i, (values, _) in enumerate(self._wanted)}
        wanted = [(f"v{i}", function) for i, (_, function) in enumerate(self._wanted)]
        table = pa.table({"c": self.codes, **columns}).group_by("c", use_threads=False).aggregate([*wanted, ([], "count_all")])
        return [self._by_cell(table, name) for name in [*(f"{name}_{function}" for name, function in wanted), "count_all"]]

    def _by_cell(self, table: pa.Table, column: str) -> list[Any]:
        found: list[Any] = [None] * self.size
        for code, value in zip(table["c"].to_pylist(), table[column].to_pylist(), strict=True):
            found[code] = value
        return found

    @cached_property
    def _rows(self) -> pa.Array:
        return pa.array(range(len(self.codes)), pa.int64())

    @cached_property
    def _code_list(self) -> Sequence[int]:
        return list(self.codes.to_pylist())

    @cached_property
    def _time_list(self) -> Sequence[int]:
        return list(self.times.to_pylist())
