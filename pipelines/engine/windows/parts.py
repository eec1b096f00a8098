"""The mergeable parts of an aggregate: what a window keeps of its rows. Neither the order in which parts merge nor the split of
the rows shows in them (I14), except for `Held`, which follows the order of arrival.

Every part has two ways to be made, with equal results: `fold` takes the values of a few rows one by one, `measure` all cells of a
large batch at once, without a loop over rows. A part of nothing is None.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine import exact
from pipelines.engine.windows import sketch
from pipelines.engine.windows.frame import Frame

Measured = Callable[[], list[Any]]  # the part of each cell, once the frame has run


@dataclass(frozen=True)
class Part:
    """Of the values of `column`; nulls do not count."""

    column: str
    is_sequential: ClassVar[bool] = False  # it only grows row by row: `joined` is for panes, one after the other

    @abstractmethod
    def fold(self, times: Sequence[int], values: Sequence[Any]) -> Any:
        """Of the values (at least one, none null) of some rows in arrival order."""

    @abstractmethod
    def merge(self, a: Any, b: Any) -> Any:
        """Of two parts, the rows of `a` having come before those of `b`."""

    def measure(self, values: pa.Array, frame: Frame) -> Measured | None:
        """Of all cells; None: these values cannot be measured at once."""
        return None

    def grown(self, old: Any, times: Sequence[int], values: Sequence[Any]) -> Any:
        """`old` with more rows."""
        return self.joined(old, self.fold(times, values)) if values else old

    def joined(self, a: Any, b: Any) -> Any:
        return b if a is None else a if b is None else self.merge(a, b)


@dataclass(frozen=True)
class Count(Part):
    def fold(self, times: Sequence[int], values: Sequence[Any]) -> int:
        return len(values)

    def merge(self, a: int, b: int) -> int:
        return a + b

    def measure(self, values: pa.Array, frame: Frame) -> Measured:
        counts = frame.want(values, "count")
        return lambda: [n or None for n in counts()]


@dataclass(frozen=True)
class IntegerSum(Part):
    def fold(self, times: Sequence[int], values: Sequence[int]) -> int:
        return sum(values)

    def merge(self, a: int, b: int) -> int:
        return a + b

    def measure(self, values: pa.Array, frame: Frame) -> Measured:
        high = frame.want(pc.shift_right(values, 32), "sum")
        low = frame.want(pc.bit_wise_and(values, 0xFFFFFFFF), "sum")
        return lambda: [None if h is None else (h << 32) + w for h, w in zip(high(), low(), strict=True)]


@dataclass(frozen=True)
class DecimalSum(Part):
    """In units of the last of `scale` decimal places."""

    scale: int

    def fold(self, times: Sequence[int], values: Sequence[Decimal]) -> int:
        unit = 10**self.scale
        return sum(n * unit // d for n, d in (value.as_integer_ratio() for value in values))

    def merge(self, a: int, b: int) -> int:
        return a + b


@dataclass(frozen=True)
class DoubleSum(Part):
    def fold(self, times: Sequence[int], values: Sequence[float]) -> exact.Exact:
        return exact.exact_sum(values)

    def merge(self, a: exact.Exact, b: exact.Exact) -> exact.Exact:
        return exact.add(tuple(a), tuple(b))  # type: ignore[arg-type]  # pairs

    def measure(self, values: pa.Array, frame: Frame) -> Measured | None:
        return _measured_sum(exact.limbs(values), frame)


@dataclass(frozen=True)
class SquareSum(DoubleSum):
    def fold(self, times: Sequence[int], values: Sequence[float]) -> exact.Exact:
        return exact.exact_sum_of_squares(values)

    def measure(self, values: pa.Array, frame: Frame) -> Measured | None:
        return _measured_sum(exact.square_limbs(values), frame)


def _measured_sum(limbs: list[pa.Array] | None, frame: Frame) -> Measured | None:
    if limbs is None:
        return None
    sums = [frame.want(limb, "sum") for limb in limbs]

    def read() -> list[Any]:
        cells = zip(*(one() for one in sums), strict=True)
        return [None if cell[0] is None else exact.exact_sum(cell) for cell in cells]

    return read


@dataclass(frozen=True)
class Least(Part):
    def fold(self, times: Sequence[int], values: Sequence[Any]) -> Any:
        return min(values)

    def merge(self, a: Any, b: Any) -> Any:
        return min(a, b)

    def measure(self, values: pa.Array, frame: Frame) -> Measured:
        return frame.want(values, "min")


@dataclass(frozen=True)
class Most(Part):
    def fold(self, times: Sequence[int], values: Sequence[Any]) -> Any:
        return max(values)

    def merge(self, a: Any, b: Any) -> Any:
        return max(a, b)

    def measure(self, values: pa.Array, frame: Frame) -> Measured:
        return frame.want(values, "max")


@dataclass(frozen=True)
class First(Part):
    """(event time, value) of the earliest row, of the first to arrive among equals."""

    def fold(self, times: Sequence[int], values: Sequence[Any]) -> Any:
        at = min(range(len(times)), key=times.__getitem__)
        return (times[at], values[at])

    def merge(self, a: Any, b: Any) -> Any:
        return b if b[0] < a[0] else a

    def measure(self, values: pa.Array, frame: Frame) -> Measured | None:
        return _measured_end(values, frame, "min")


@dataclass(frozen=True)
class Last(Part):
    """(event time, value) of the latest row, of the last to arrive among equals."""

    def fold(self, times: Sequence[int], values: Sequence[Any]) -> Any:
        newest = max(times)
        at = max(i for i, time in enumerate(times) if time == newest)
        return (newest, values[at])

    def merge(self, a: Any, b: Any) -> Any:
        return a if a[0] > b[0] else b

    def measure(self, values: pa.Array, frame: Frame) -> Measured | None:
        return _measured_end(values, frame, "max")


def _measured_end(values: pa.Array, frame: Frame, function: str) -> Measured | None:
    order = frame.order
    if order is None:
        return None
    if values.null_count:
        order = pc.if_else(pc.is_valid(values), order, None)
    places = frame.want(order, function)

    def read() -> list[Any]:
        n, found = len(values), places()
        rows = pa.array([None if place is None else place % n for place in found], pa.int64())
        ends = zip(found, values.take(rows).to_pylist(), strict=True)
        return [None if place is None else (place // n + frame.origin_us, value) for place, value in ends]

    return read


@dataclass(frozen=True)
class Counts(Part):
    """How many values each bucket has. `bounded`: as many buckets as there are values, so they need a limit."""

    bounded: bool = False

    def fold(self, times: Sequence[int], values: Sequence[int]) -> dict[int, int]:
        return self._limited(Counter(values))

    def merge(self, a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
        return self._limited(Counter(a) + Counter(b))

    def _limited(self, counts: dict[int, int]) -> dict[int, int]:
        found = sketch.bounded(counts) if self.bounded else counts
        return {bucket: found[bucket] for bucket in sorted(found)}

    def measure(self, values: pa.Array, frame: Frame) -> Measured:
        def read() -> list[Any]:
            found: list[dict[int, int]] = [{} for _ in range(frame.size)]
            for code, bucket, n in frame.pairs(values):
                found[code][bucket] = n
            return [self._limited(counts) if counts else None for counts in found]

        return read


@dataclass(frozen=True)
class Distinct(Part):
    def fold(self, times: Sequence[int], values: Sequence[Any]) -> sketch.Distinct:
        return sketch.distinct_of(set(values))

    def merge(self, a: sketch.Distinct, b: sketch.Distinct) -> sketch.Distinct:
        return sketch.merge_distinct(a, b)

    def measure(self, values: pa.Array, frame: Frame) -> Measured:
        def read() -> list[Any]:
            found: list[list[Any]] = [[] for _ in range(frame.size)]
            for code, value, _ in frame.pairs(values):
                found[code].append(value)
            return [sketch.distinct_of(mine) if mine else None for mine in found]

        return read


@dataclass(frozen=True)
class Held(Part):
    """(first time, last time, last value, integral between them): each value holds until the next row. A row that is older than
    the newest has no weight. It grows row by row, so that doubles are added in one order however the rows were split."""

    is_sequential: ClassVar[bool] = True

    def fold(self, times: Sequence[int], values: Sequence[float]) -> Any:
        return self.grown(None, times, values)

    def grown(self, old: Any, times: Sequence[int], values: Sequence[float]) -> Any:
        if not values:
            return old
        first, last, held, integral = old or (times[0], times[0], values[0], 0.0)
        for time, value in zip(times, values, strict=True):
            if time >= last:
                integral += held * (time - last)
                last, held = time, value
        return (first, last, held, integral)

    def merge(self, a: Any, b: Any) -> Any:
        """Of two panes, one after the other."""
        return (a[0], b[1], b[2], a[3] + a[2] * (b[0] - a[1]) + b[3])


def time_average(held: Any, before: float | None, start_us: int, end_us: int) -> float | None:
    """Over `start_us` to `end_us`, with the value `before` holding at the start; without one, from the first row on."""
    first, last, value, integral = held
    total, since = (integral, first) if before is None else (before * (first - start_us) + integral, start_us)
    total += value * (end_us - last)
    result = total / (end_us - since) if end_us > since else value
    return result if math.isfinite(result) else None
