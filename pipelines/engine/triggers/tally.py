"""Aggregates that rows enter and leave, each in constant time or nearly so, exact in any order (I14).

`Sliding` ones lose their oldest row first (a span), `Replacing` ones any row (the newest of each key). A row brings one value to
each: None counts as none; for first and last NULL is a value too, and `ABSENT` none; arg_min and arg_max take (argument, value).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Protocol

ABSENT: Any = object()
GRID = 126  # doubles are summed as integer multiples of 2**-126: exact for all but the tiniest
Key = Any


class Tally(Protocol):
    def add(self, value: Any, key: Key) -> None: ...

    def remove(self, value: Any, key: Key) -> None: ...

    def result(self) -> Any: ...


class Count:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n += 1

    def remove(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n -= 1

    def result(self) -> int:
        return self.n


class CountIf(Count):
    def add(self, value: Any, key: Key) -> None:
        if value:
            self.n += 1

    def remove(self, value: Any, key: Key) -> None:
        if value:
            self.n -= 1


class All(Count):
    """bool_and and bool_or."""

    __slots__ = ("any", "true")

    def __init__(self, any_: bool) -> None:
        super().__init__()
        self.true, self.any = 0, any_

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n += 1
            self.true += value

    def remove(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n -= 1
            self.true -= value

    def result(self) -> Any:
        if not self.n:
            return None
        return self.true > 0 if self.any else self.true == self.n


def on_grid(values: list[Any]) -> list[Any]:
    """Doubles as integers that add up exactly; what is not finite counts as none."""
    ldexp = math.ldexp
    try:
        return [None if value is None else int(ldexp(value, GRID)) for value in values]
    except (OverflowError, ValueError):
        return [None if value is None or not math.isfinite(value) else int(Fraction(value) * 2**GRID) for value in values]


class Sum:
    """Of integers. Doubles come as integers on the grid, see `prepared`."""

    __slots__ = ("grid", "n", "total")

    def __init__(self, grid: int) -> None:
        self.n = self.total = 0
        self.grid = grid

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n += 1
            self.total += value

    def remove(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n -= 1
            self.total -= value

    def result(self) -> Any:
        if not self.n:
            return None
        return _ratio(self.total, 1 << self.grid) if self.grid else self.total


class Mean(Sum):
    __slots__ = ()

    def result(self) -> Any:
        return _ratio(self.total, self.n << self.grid) if self.n else None


def _ratio(a: int, b: int) -> float | None:
    try:
        return a / b
    except OverflowError:
        return None


class Spread:
    """Variance or standard deviation, of a sample or of all."""

    __slots__ = ("grid", "n", "root", "sample", "squares", "total")

    def __init__(self, grid: int, root: bool, sample: bool) -> None:
        self.n = self.total = self.squares = 0
        self.grid, self.root, self.sample = grid, root, sample

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n += 1
            self.total += value
            self.squares += value * value

    def remove(self, value: Any, key: Key) -> None:
        if value is not None:
            self.n -= 1
            self.total -= value
            self.squares -= value * value

    def result(self) -> Any:
        if self.n < (2 if self.sample else 1):
            return None
        above = self.n * self.squares - self.total * self.total
        variance = _ratio(above, (self.n * (self.n - self.sample)) << (2 * self.grid))
        return variance if variance is None or not self.root else math.sqrt(variance)


class Distinct:
    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            self.counts[value] = self.counts.get(value, 0) + 1

    def remove(self, value: Any, key: Key) -> None:
        if value is not None:
            if self.counts[value] == 1:
                del self.counts[value]
            else:
                self.counts[value] -= 1

    def result(self) -> int:
        return len(self.counts)


class Sorted:
    """All values in order: quantiles, and the extremes where any row may leave."""

    __slots__ = ("read", "values")

    def __init__(self, read: Callable[[list[Any]], Any]) -> None:
        self.values: list[Any] = []
        self.read = read

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            insort(self.values, value)

    def remove(self, value: Any, key: Key) -> None:
        if value is not None:
            del self.values[bisect_left(self.values, value)]

    def result(self) -> Any:
        return self.read(self.values) if self.values else None


def first_of(values: list[Any]) -> Any:
    return values[0]


def last_of(values: list[Any]) -> Any:
    return values[-1]


def continuous(q: float) -> Callable[[list[Any]], Any]:
    def read(values: list[Any]) -> float:
        at = q * (len(values) - 1)
        low = values[math.floor(at)]
        return float(low + (values[math.ceil(at)] - low) * (at - math.floor(at)))

    return read


def discrete(q: float) -> Callable[[list[Any]], Any]:
    def read(values: list[Any]) -> Any:
        n = len(values)
        return values[max(1, n - math.floor(n - q * n)) - 1]

    return read


class SlidingMax:
    """The candidates only: each is larger than all that came after it."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: deque[Any] = deque()

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            values = self.values
            while values and values[-1] < value:
                values.pop()
            values.append(value)

    def remove(self, value: Any, key: Key) -> None:
        if value is not None and self.values[0] == value:
            self.values.popleft()

    def result(self) -> Any:
        return self.values[0] if self.values else None


class SlidingMin(SlidingMax):
    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            values = self.values
            while values and values[-1] > value:
                values.pop()
            values.append(value)


class SlidingArg:
    """arg_max (sign 1) and arg_min (-1); of equals the first."""

    __slots__ = ("rows", "sign")

    def __init__(self, sign: int) -> None:
        self.rows: deque[tuple[Any, Any]] = deque()
        self.sign = sign

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            rows = self.rows
            while rows and (rows[-1][1] < value[1] if self.sign > 0 else rows[-1][1] > value[1]):
                rows.pop()
            rows.append(value)

    def remove(self, value: Any, key: Key) -> None:
        if value is not None and self.rows[0] is value:
            self.rows.popleft()

    def result(self) -> Any:
        return self.rows[0][0] if self.rows else None


class SlidingEnd:
    """first and last."""

    __slots__ = ("last", "values")

    def __init__(self, last: bool) -> None:
        self.values: deque[Any] = deque()
        self.last = last

    def add(self, value: Any, key: Key) -> None:
        if value is not ABSENT:
            self.values.append(value)

    def remove(self, value: Any, key: Key) -> None:
        if value is not ABSENT:
            self.values.popleft()

    def result(self) -> Any:
        return self.values[-1 if self.last else 0] if self.values else None


class ReplacingEnd:
    """first and last by the arrival of the rows that are there."""

    __slots__ = ("last", "values")

    def __init__(self, last: bool) -> None:
        self.values: dict[Key, Any] = {}
        self.last = last

    def add(self, value: Any, key: Key) -> None:
        if value is not ABSENT:
            self.values[key] = value

    def remove(self, value: Any, key: Key) -> None:
        if value is not ABSENT:
            del self.values[key]

    def result(self) -> Any:
        if not self.values:
            return None
        values = self.values.values()
        return next(reversed(values)) if self.last else next(iter(values))


class ReplacingArg(ReplacingEnd):
    __slots__ = ("sign",)

    def __init__(self, sign: int) -> None:
        super().__init__(False)
        self.sign = sign

    def add(self, value: Any, key: Key) -> None:
        if value is not None:
            self.values[key] = value

    def remove(self, value: Any, key: Key) -> None:
        if value is not None:
            del self.values[key]

    def result(self) -> Any:
        if not self.values:
            return None
        pick = max if self.sign > 0 else min
        return pick(self.values.values(), key=lambda row: row[1])[0]


class NotNull:
    """any_value: the first that is no NULL."""

    def __init__(self, inner: Tally) -> None:
        self.inner = inner

    def add(self, value: Any, key: Key) -> None:
        self.inner.add(ABSENT if value is None else value, key)

    def remove(self, value: Any, key: Key) -> None:
        self.inner.remove(ABSENT if value is None else value, key)

    def result(self) -> Any:
        return self.inner.result()


_SPREADS = {
    **dict.fromkeys(("stddev", "stddev_samp"), (True, True)),
    "stddev_pop": (True, False),
    **dict.fromkeys(("variance", "var_samp"), (False, True)),
    "var_pop": (False, False),
}
_SAME = {"mean": "avg", "max_by": "arg_max", "min_by": "arg_min", "median": "quantile_cont", "count_star": "count"}
SUMS = frozenset({"sum", "avg", *_SPREADS})
QUANTILES = frozenset({"quantile_cont", "quantile_disc"})
WITH_NULLS = frozenset({"first", "last"})
PAIRS = frozenset({"arg_max", "arg_min"})


def plain_name(name: str) -> str:
    """One name for each aggregate that has several."""
    return _SAME.get(name, name)


def make_tally(name: str, *, distinct: bool, whole: bool, replacing: bool, quantile: float = 0.5) -> Callable[[], Tally] | None:
    """What makes new tallies of an aggregate; None where there is none. `replacing`: any row may leave, not the oldest first."""
    grid = 0 if whole else GRID
    if name == "approx_count_distinct" or (name == "count" and distinct):
        return Distinct
    if distinct and name not in ("min", "max"):
        return None
    if name in _SPREADS:
        return lambda: Spread(grid, *_SPREADS[name])
    makers: Mapping[str, Callable[[], Tally]] = {
        "count": Count,
        "count_if": CountIf,
        "sum": lambda: Sum(grid),
        "avg": lambda: Mean(grid),
        "bool_and": lambda: All(False),
        "bool_or": lambda: All(True),
        "quantile_cont": lambda: Sorted(continuous(quantile)),
        "quantile_disc": lambda: Sorted(discrete(quantile)),
        "max": (lambda: Sorted(last_of)) if replacing else SlidingMax,
        "min": (lambda: Sorted(first_of)) if replacing else SlidingMin,
        "first": lambda: ReplacingEnd(False) if replacing else SlidingEnd(False),
        "last": lambda: ReplacingEnd(True) if replacing else SlidingEnd(True),
        "any_value": lambda: NotNull(ReplacingEnd(False) if replacing else SlidingEnd(False)),
        "arg_max": lambda: ReplacingArg(1) if replacing else SlidingArg(1),
        "arg_min": lambda: ReplacingArg(-1) if replacing else SlidingArg(-1),
    }
    return makers.get(name)
