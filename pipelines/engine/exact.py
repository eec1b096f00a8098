"""Sums that do not depend on the order or the split of what is summed (I14): every double is an integer times a power of two.

A sum is kept as `(m, e)`, the number m * 2**e with m odd, or (0, 0). It is rounded once, when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Exact = tuple[int, int]
ZERO: Exact = (0, 0)
_LIMBS_MAX = 4  # 150 bits at 64 Ki rows; values that span more are summed one by one
_LARGE, _SMALL = 2.0**400, 2.0**-400  # between them no step below leaves the range of a double
_SPLITTER = 134217729.0  # 2**27 + 1, see Dekker 1971


def exact_sum(values: Sequence[float]) -> Exact:
    """Of finite doubles."""
    return _total([value.as_integer_ratio() for value in values])


def exact_sum_of_squares(values: Sequence[float]) -> Exact:
    ratios = [value.as_integer_ratio() for value in values]
    return _total([(n * n, d * d) for n, d in ratios])


def _total(ratios: Sequence[tuple[int, int]]) -> Exact:
    if not ratios:
        return ZERO
    finest = max(d for _, d in ratios)
    return _normal(sum(n * (finest // d) for n, d in ratios), 1 - finest.bit_length())


def add(a: Exact, b: Exact) -> Exact:
    if a[1] > b[1]:
        a, b = b, a
    return _normal(a[0] + (b[0] << (b[1] - a[1])), a[1])


def _normal(m: int, e: int) -> Exact:
    if not m:
        return ZERO
    zeros = (m & -m).bit_length() - 1
    return (m >> zeros, e + zeros)


def ratio(sum_: Exact, divisor: int = 1) -> float | None:
    """The sum over `divisor` as the nearest double; None where there is none."""
    m, e = sum_
    try:
        return m / (divisor << -e) if e < 0 else (m << e) / divisor
    except OverflowError:
        return None


def standard_deviation(count: int, sum_: Exact, squares: Exact) -> float | None:
    """Of a sample, None below two values."""
    if count < 2:
        return None
    s, q = _fraction(sum_), _fraction(squares)
    variance = (count * q - s * s) / (count * (count - 1))
    try:
        return math.sqrt(variance)
    except OverflowError:
        return None


def _fraction(sum_: Exact) -> Fraction:
    m, e = sum_
    return Fraction(m << e) if e >= 0 else Fraction(m, 1 << -e)


def limbs(values: pa.Array) -> list[pa.Array] | None:
    """Arrays of doubles that sum up to `values` (finite, or null) element by element, and whose own sums, over any rows of them,
    are exact in any order. None where that takes too many (Demmel and Nguyen 2015)."""
    found: list[pa.Array] = []
    room = len(values).bit_length() + 1
    rest = values
    while len(found) < _LIMBS_MAX:
        most = _magnitude(rest)
        if most == 0:
            return found or [values]
        if not _SMALL < most < _LARGE:
            return None
        grid = 2.0 ** (math.frexp(most)[1] + room - 53)
        high = pc.subtract(pc.add(rest, 1.5 * 2.0**52 * grid), 1.5 * 2.0**52 * grid)  # rounds to a multiple of the grid
        found.append(high)
        rest = pc.subtract(rest, high)
    return found if _magnitude(rest) == 0 else None


def square_limbs(values: pa.Array) -> list[pa.Array] | None:
    """The same for the squares of `values`."""
    sizes = pc.abs(values)
    least = pc.min(pc.if_else(pc.equal(sizes, 0.0), None, sizes)).as_py()
    if least is not None and not (least > math.sqrt(_SMALL) and _magnitude(values) < math.sqrt(_LARGE)):
        return None
    scaled = pc.multiply(values, _SPLITTER)
    high = pc.subtract(scaled, pc.subtract(scaled, values))
    low = pc.subtract(values, high)
    square = pc.multiply(values, values)
    error = pc.subtract(pc.multiply(high, high), square)
    error = pc.add(pc.add(error, pc.multiply(2.0, pc.multiply(high, low))), pc.multiply(low, low))
    parts = limbs(square), limbs(error)
    return [*parts[0], *parts[1]] if parts[0] is not None and parts[1] is not None else None


def _magnitude(values: pa.Array) -> float:
    """The largest absolute value."""
    ends: Any = pc.min_max(values).as_py()
    return 0.0 if ends["min"] is None else max(abs(ends["min"]), abs(ends["max"]))
