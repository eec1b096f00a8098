"""The aggregates of windows: which parts each keeps of the rows, and its value over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

import duckdb

from pipelines.engine import exact
from pipelines.engine.bind import Binder, Columns
from pipelines.engine.connection import quote
from pipelines.engine.expression import Call
from pipelines.engine.windows import sketch
from pipelines.engine.windows.parts import (
    Count,
    Counts,
    DecimalSum,
    Distinct,
    DoubleSum,
    First,
    Held,
    IntegerSum,
    Last,
    Least,
    Most,
    Part,
    SquareSum,
    time_average,
)

EDGES_MAX = 1000
_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)\Z")
_NUMBERS = ("BOOLEAN", "BIGINT", "DOUBLE", "DECIMAL")
_PLAIN = re.compile(r'(?:[A-Za-z][A-Za-z0-9_]*|"[^"]+")\Z')


class Inputs(Protocol):
    """The rows that a window reads: their columns, and hidden ones that hold an expression over them."""

    binder: Binder
    columns: Columns

    def hidden(self, sql: str) -> str: ...


@dataclass(frozen=True)
class Closing:
    """A window of one group that is emitted: its parts, and for each `Held` part the value that held when it began. The last
    value of a `Held` part holds until `until_us`."""

    start_us: int
    end_us: int
    until_us: int
    due_us: int
    group: tuple[Any, ...]
    revision: int
    rows: int
    parts: Sequence[Any]
    before: Sequence[Any] = ()


@dataclass(frozen=True)
class Aggregate:
    type: str
    value: Callable[[Closing], Any]


@dataclass
class Aggregates:
    """Binds the aggregate calls of one window; equal parts are kept once."""

    inputs: Inputs
    path: str
    parts: dict[Part, int] = field(default_factory=dict)

    def bind(self, call: Call) -> Aggregate | None:
        """None when it has a problem, which is collected."""
        name = "distinct" if call.distinct else {"mean": "avg", "count_star": "count"}.get(call.name, call.name)
        wanted = {"quantile": 2, "histogram": 2}.get(name, 1)
        if len(call.arguments) != wanted and not (name == "count" and call.arguments == ("",)):
            self._complain(f"{name}() takes {wanted} argument{'s' if wanted > 1 else ''}", _SHAPES.get(name, f"write {name}(x)"))
            return None
        if name == "count" and call.arguments[0] in ("", "*"):
            return self._rows(call.condition)
        type_ = self.inputs.binder.type_of(call.arguments[0], self.inputs.columns, self.path)
        if not self._fits(name, type_):
            return None
        return _BIND[name](self, call, type_)

    # -- one method per aggregate

    def _rows(self, condition: str) -> Aggregate:
        if not condition:
            return Aggregate("BIGINT", lambda c: c.rows)
        return self._counted(f"CASE WHEN {condition} THEN true END")

    def _count(self, call: Call, type_: str) -> Aggregate:
        return self._counted(self._value(call, type_))

    def _counted(self, sql: str) -> Aggregate:
        at = self._part(Count, sql)
        return Aggregate("BIGINT", lambda c: c.parts[at] or 0)

    def _sum(self, call: Call, type_: str) -> Aggregate:
        if type_ in ("BOOLEAN", "BIGINT"):
            at = self._part(IntegerSum, self._value(call, "BIGINT", type_))
            return Aggregate("BIGINT", lambda c: _fitting(c.parts[at], 63))
        if found := _DECIMAL.match(type_):
            scale = int(found[2])
            at = self._part(DecimalSum, self._value(call, type_), scale)
            return Aggregate(f"DECIMAL(38,{scale})", lambda c: _decimal(c.parts[at], scale))
        at = self._part(DoubleSum, self._value(call, "DOUBLE", type_))
        return Aggregate("DOUBLE", lambda c: None if c.parts[at] is None else exact.ratio(c.parts[at]))

    def _avg(self, call: Call, type_: str) -> Aggregate:
        if type_ in ("BOOLEAN", "BIGINT") or _DECIMAL.match(type_):
            found = _DECIMAL.match(type_)
            scale, kept = (int(found[2]), type_) if found else (0, "BIGINT")
            sql = self._value(call, kept, type_)
            total = self._part(DecimalSum, sql, scale) if found else self._part(IntegerSum, sql)
            n, unit = self._part(Count, sql), 10**scale
            return Aggregate("DOUBLE", lambda c: c.parts[total] / (c.parts[n] * unit) if c.parts[n] else None)
        sql = self._value(call, "DOUBLE", type_)
        total, n = self._part(DoubleSum, sql), self._part(Count, sql)
        return Aggregate("DOUBLE", lambda c: exact.ratio(c.parts[total], c.parts[n]) if c.parts[n] else None)

    def _stddev(self, call: Call, type_: str) -> Aggregate:
        sql = self._value(call, "DOUBLE", type_)
        n, total, squares = (self._part(kind, sql) for kind in (Count, DoubleSum, SquareSum))
        return Aggregate(
            "DOUBLE", lambda c: exact.standard_deviation(c.parts[n], c.parts[total], c.parts[squares]) if c.parts[n] else None
        )

    def _end(self, call: Call, type_: str) -> Aggregate:
        kind = {"min": Least, "max": Most, "first": First, "last": Last}[call.name]
        at = self._part(kind, self._value(call, type_))
        if call.name in ("min", "max"):
            return Aggregate(type_, lambda c: c.parts[at])
        return Aggregate(type_, lambda c: c.parts[at] and c.parts[at][1])

    def _distinct(self, call: Call, type_: str) -> Aggregate:
        at = self._part(Distinct, self._value(call, type_))
        return Aggregate("BIGINT", lambda c: 0 if c.parts[at] is None else sketch.count_distinct(c.parts[at]))

    def _time_avg(self, call: Call, type_: str) -> Aggregate:
        at = self._part(Held, self._value(call, "DOUBLE", type_))

        def value(c: Closing) -> float | None:
            before = c.before[at] if c.before else None
            return None if c.parts[at] is None else time_average(c.parts[at], before, c.start_us, c.until_us)

        return Aggregate("DOUBLE", value)

    def _quantile(self, call: Call, type_: str) -> Aggregate | None:
        q = self._constant(call.arguments[1], "DOUBLE")
        if not isinstance(q, float) or not 0 <= q <= 1:
            self._complain("the second argument of quantile() is a share between 0 and 1", _SHAPES["quantile"])
            return None
        sql = self._value(call, "DOUBLE", type_)
        counts = self._part(Counts, sketch.bucket_sql(f"({sql})"), True)
        least, most = self._part(Least, sql), self._part(Most, sql)

        def value(c: Closing) -> float | None:
            if c.parts[counts] is None:
                return None
            found = sketch.quantile(c.parts[counts], q)
            return None if found is None else min(max(found, c.parts[least]), c.parts[most])

        return Aggregate("DOUBLE", value)

    def _histogram(self, call: Call, type_: str) -> Aggregate | None:
        edges = self._constant(call.arguments[1], "DOUBLE[]")
        if not edges or None in edges or edges != sorted(set(edges)) or len(edges) > EDGES_MAX:
            self._complain(f"the edges of histogram() are 1 to {EDGES_MAX:,} rising numbers", _SHAPES["histogram"])
            return None
        x = f"({self._value(call, 'DOUBLE', type_)})"
        below = " ".join(f"WHEN {x} < {edge!r} THEN {i}" for i, edge in enumerate(edges))
        at = self._part(Counts, f"CASE {below} WHEN {x} IS NOT NULL THEN {len(edges)} END")
        places = range(len(edges) + 1)
        return Aggregate("BIGINT[]", lambda c: [(c.parts[at] or {}).get(place, 0) for place in places])

    # -- what they share

    def _fits(self, name: str, type_: str) -> bool:
        if name in ("sum", "avg", "stddev", "time_avg", "quantile", "histogram") and not type_.startswith(_NUMBERS):
            self._complain(f"{name}() is of numbers, this is of type {type_}", "cast it: CAST(x AS DOUBLE)")
            return False
        if name in ("min", "max", "distinct") and (type_.endswith("[]") or type_.startswith("STRUCT(")):
            self._complain(f"{name}() is of single values, this is of type {type_}", "take one element of it")
            return False
        return True

    def _value(self, call: Call, type_: str, own: str = "") -> str:
        """SQL of the argument as `type_`, NULL where the filter does not hold or the value is not finite."""
        argument = call.arguments[0]
        plain = _PLAIN.match(argument) and argument.strip('"').lower() in {name.lower() for name in self.inputs.columns}
        if plain and not call.condition and own in ("", type_):
            return argument
        sql = f"CAST(({argument}) AS {type_})"
        if type_ == "DOUBLE" and not plain:
            sql = f"CASE WHEN isfinite({sql}) THEN {sql} END"
        return f"CASE WHEN ({call.condition}) THEN {sql} END" if call.condition else sql

    def _part(self, kind: Callable[..., Part], sql: str, *more: Any) -> int:
        """The place of a part over the values of `sql`."""
        spelt = {name.lower(): name for name in self.inputs.columns}
        column = spelt.get(sql.strip('"').lower()) or self.inputs.hidden(sql)
        return self.parts.setdefault(kind(column, *more), len(self.parts))

    def _constant(self, text: str, type_: str) -> Any:
        try:
            ((value,),) = self.inputs.binder.engine.execute(f"SELECT CAST({text} AS {type_})").fetchall()
        except duckdb.Error:
            return None
        return value

    def _complain(self, message: str, hint: str) -> None:
        self.inputs.binder.complain(self.path, message, hint)


_SHAPES = {"quantile": "write quantile(x, 0.95)", "histogram": "write histogram(x, [10, 20, 50])"}
_BIND: dict[str, Callable[[Aggregates, Call, str], Aggregate | None]] = {
    "count": Aggregates._count,
    "sum": Aggregates._sum,
    "avg": Aggregates._avg,
    "stddev": Aggregates._stddev,
    **dict.fromkeys(("min", "max", "first", "last"), Aggregates._end),
    "distinct": Aggregates._distinct,
    "time_avg": Aggregates._time_avg,
    "quantile": Aggregates._quantile,
    "histogram": Aggregates._histogram,
}


def value_column(i: int) -> str:
    """The column that holds the value of a window's aggregate `i` while the rest of its expression is computed."""
    return quote(f"_v{i}")


def _fitting(value: int | None, bits: int) -> int | None:
    return value if value is not None and -(2**bits) <= value < 2**bits else None


def _decimal(units: int | None, scale: int) -> Decimal | None:
    if units is None or abs(units) >= 10**38:
        return None
    return Decimal((int(units < 0), tuple(map(int, str(abs(units)))), -scale))
