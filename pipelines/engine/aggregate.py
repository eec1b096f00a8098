"""Aggregates in SQL, such that the order and the split of the rows do not show in the result (I14).

A sum of doubles depends on its order, so it is not summed as doubles: each value is cut into two integers on fixed grids, which
add exactly in any order. Values of 2**66 and above (and inf, NaN) are summed as doubles beside them.
"""

from __future__ import annotations

from pipelines.engine.expression import Call

_HIGH_GRID, _LOW_GRID = 2.0**30, 2.0**126
_LARGE = 2.0**66  # high parts below 2**96: 2**31 of them fit into a HUGEINT


NUMERIC = frozenset(
    {"sum", "avg", "mean", "first", "last", "min", "max"}
)  # aggregates whose SQL depends on their argument's type


def exact_sum(argument: str, rest: str) -> list[str]:
    """The three aggregates whose merged results `sum_value` turns into the sum of doubles. `rest` follows each call."""
    x = f"CAST(({argument}) AS DOUBLE)"
    high = f"trunc({x} * {_HIGH_GRID!r})"
    low = f"({x} - {high} / {_HIGH_GRID!r}) * {_LOW_GRID!r}"
    fits = f"abs({x}) < {_LARGE!r}"
    return [
        f"sum(CASE WHEN {fits} THEN CAST({high} AS HUGEINT) END){rest}",
        f"sum(CASE WHEN {fits} THEN CAST({low} AS HUGEINT) END){rest}",
        f"sum(CASE WHEN NOT ({fits}) THEN {x} END){rest}",
    ]


def sum_value(high: str, low: str, large: str) -> str:
    """The sum, within one unit in its last place, NULL over no values."""
    small = f"CAST({high} AS DOUBLE) / {_HIGH_GRID!r} + CAST({low} AS DOUBLE) / {_LOW_GRID!r}"
    return f"CASE WHEN {high} IS NULL THEN {large} ELSE {small} + coalesce({large}, 0.0) END"


def mean_value(high: str, low: str, large: str, count: str) -> str:
    """The mean, within one unit in its last place; of equal values exactly that value. NULL over no values."""
    whole, rest = f"CAST({high} AS HUGEINT) // {count}", f"CAST({high} AS HUGEINT) % {count}"
    below = f"(CAST({rest} AS DOUBLE) * {_LOW_GRID / _HIGH_GRID!r} + CAST({low} AS DOUBLE)) / {count} / {_LOW_GRID!r}"
    small = f"CAST({whole} AS DOUBLE) / {_HIGH_GRID!r} + {below}"
    return f"CASE WHEN {high} IS NULL THEN {large} / nullif({count}, 0) ELSE {small} + coalesce({large}, 0.0) / {count} END"


def over_span(call: Call, frame: str, type_: str) -> str:
    """An aggregate of a trigger over a window frame; `type_` is that of its argument."""
    rest = f"{call.rest} OVER {frame}"
    if not is_exact(call, type_):
        return f"{call.text} OVER {frame}"
    high, low, large = (f"({part})" for part in exact_sum(call.argument, rest))
    if call.name == "sum":
        return sum_value(high, low, large)
    return mean_value(high, low, large, f"(count({call.argument}){rest})")


def is_exact(call: Call, type_: str) -> bool:
    """Whether the call needs `exact_sum`: integers add exactly as they are."""
    return call.name in ("sum", "avg", "mean") and not call.distinct and type_.startswith(("DOUBLE", "FLOAT", "DECIMAL"))
