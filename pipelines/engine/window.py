"""Tumbling event-time windows over mergeable parts: memory depends on groups and open windows, never on rows.

Every aggregate is kept as parts that merge (`avg` as sum and count), one DuckDB statement makes the parts of a batch, a fold in
Python merges them into the open windows, and a last statement turns the parts of closed windows into rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.windows import Window
from pipelines.engine.aggregate import exact_sum, is_exact, mean_value, sum_value
from pipelines.engine.connection import quote
from pipelines.engine.expression import Call
from pipelines.engine.ipc import TIMESTAMP
from pipelines.engine.state import Parts, State, WindowKey
from pipelines.engine.statement import Statement
from pipelines.engine.transform import keep_columns

Merge = Callable[[Any, Any], Any]


def _add(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


def _least(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else min(a, b)


def _most(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else max(a, b)


def _earliest(a: Any, b: Any) -> Any:
    """Of two (time, value): the earlier, the one that came first on a tie."""
    return b if a is None else a if b is None or a[0] <= b[0] else b


def _latest(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None or a[0] > b[0] else b


def _pool(a: Any, b: Any) -> Any:
    """Of two (n, mean, m2): the moments of both together (Chan, Golub and LeVeque 1979)."""
    if a is None or b is None:
        return b if a is None else a
    n, delta = a[0] + b[0], b[1] - a[1]
    return (n, a[1] + delta * b[0] / n, a[2] + b[2] + delta * delta * a[0] * b[0] / n)


@dataclass(frozen=True)
class Part:
    """One mergeable part: SQL that makes it of a batch's rows, and how two of them merge."""

    sql: str
    merge: Merge


def parts_of(call: Call, type_: str) -> tuple[list[Part], str]:
    """The parts of an aggregate call whose argument is of `type_`, and the SQL of its value over `{0}`, `{1}` ... of them."""
    name, argument, rest = call.name, call.argument, call.rest
    if type_.startswith("DECIMAL"):
        argument = f"CAST({argument} AS DOUBLE)"
    if name in ("count", "count_star"):
        return [Part(call.text, _add)], "coalesce({0}, 0)"
    if name in ("min", "max"):
        return [Part(f"{name}({argument}){rest}", _least if name == "min" else _most)], "{0}"
    if name in ("first", "last"):
        chosen = "arg_min" if name == "first" else "arg_max"
        picked = f"{chosen}({{'t': _et, 'v': {argument}}}, {{'t': _et, 'r': _row}}){rest}"
        return [Part(picked, _earliest if name == "first" else _latest)], "{0}.v"
    if name == "stddev":
        n, mean, var = (f"{function}({argument}){rest}" for function in ("count", "avg", "var_pop"))
        pooled = f"CASE WHEN {n} > 0 THEN {{'n': CAST({n} AS DOUBLE), 'mean': {mean}, 'm2': {var} * {n}}} END"
        return [Part(pooled, _pool)], "CASE WHEN {0}.n > 1 THEN sqrt({0}.m2 / ({0}.n - 1)) END"
    count = Part(f"count({argument}){rest}", _add)
    if is_exact(call, type_):
        sums = [Part(sql, _add) for sql in exact_sum(argument, rest)]
        if name == "sum":
            return sums, sum_value("{0}", "{1}", "{2}")
        return [*sums, count], mean_value("{0}", "{1}", "{2}", "{3}")
    total = Part(f"sum({argument}){rest}", _add)
    return ([total], "{0}") if name == "sum" else ([total, count], "CAST({0} AS DOUBLE) / nullif({1}, 0)")


@dataclass(frozen=True)
class WindowPlan:
    """A window, bound. `select` are (column, SQL over the parts `_p0`..., type); `schema` is that of its rows; `wheres` are the
    conditions of the sinks that take some of them."""

    engine: duckdb.DuckDBPyConnection
    name: str
    spec: Window
    definition: str
    parts: tuple[Part, ...]
    select: tuple[tuple[str, str, str], ...]
    where: str
    part_types: tuple[pa.DataType, ...]
    by_types: tuple[pa.DataType, ...]
    schema: pa.Schema
    wheres: Mapping[str, str]

    @property
    def grace_us(self) -> int:
        """How long after its start a window takes rows, in event time."""
        return self.spec.every + self.spec.lateness

    @cached_property
    def grouping(self) -> Statement:
        """Over `_rows`: parts per window start and group; rows that came too late apart, with `_late` true."""
        keys = "".join(f", {quote(name)}" for name in self.spec.by)
        parts = "".join(f", {part.sql} AS _p{i}" for i, part in enumerate(self.parts))
        sql = f"SELECT _late, _start{keys}, count(*) AS _n{parts} FROM ({self._staged}) GROUP BY ALL ORDER BY min(_row)"
        return Statement(self.engine, sql, "_rows")

    @cached_property
    def late_rows(self) -> Statement:
        return Statement(self.engine, f"SELECT _row FROM ({self._staged}) WHERE _late ORDER BY _row", "_rows")

    @property
    def _staged(self) -> str:
        every, where = self.spec.every, f" WHERE TRY({self.where})" if self.where else ""
        start = f"_et - ((_et % {every}) + {every}) % {every}"
        return f"SELECT *, _start + {self.grace_us} <= _before AS _late FROM (SELECT *, {start} AS _start FROM _rows{where})"

    @cached_property
    def emission(self) -> Statement:
        """Over `_closed`: rows of closed windows from their parts, and the `keep_column`s of sinks."""
        keys = "".join(f", {quote(name)}" for name in self.spec.by)
        values = "".join(f", TRY_CAST(({sql}) AS {type_}) AS {quote(column)}" for column, sql, type_ in self.select)
        rows = f"SELECT _event_time, _window_start, _window_end{keys}{values}, _rows, _partial FROM _closed"
        return Statement(self.engine, f"SELECT *{keep_columns(self.wheres)} FROM ({rows})", "_closed")


def contribute(plan: WindowPlan, state: State, rows: pa.Table) -> tuple[State, list[int]]:
    """Merge accepted rows (with `_et`, `_row`, `_before`) into the open windows. Also the `_row`s that came too late."""
    closed_us = state.closed.get((plan.name, plan.definition))
    if closed_us is not None:
        before = pc.max_element_wise(rows["_before"], closed_us)
        rows = rows.set_column(rows.schema.get_field_index("_before"), "_before", before)
    windows = dict(state.windows)
    contributed = late = 0
    for group in plan.grouping.rows(rows):
        contributed += group["_n"]
        if group["_late"]:
            late += group["_n"]
            continue
        key = WindowKey(plan.name, plan.definition, group["_start"], tuple(group[name] for name in plan.spec.by))
        made = Parts(group["_n"], tuple(_plain(group[f"_p{i}"]) for i in range(len(plan.parts))))
        windows[key] = _merge(plan.parts, windows[key], made) if key in windows else made
    state = replace(state, windows=windows)
    state = state.with_counts("streams", f"windows.{plan.name}", {"contributed": contributed, "too_late": late})
    return state, plan.late_rows(rows)["_row"].to_pylist() if late else []


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(value.values())
    return int(value) if isinstance(value, Decimal) else value  # a HUGEINT


def _merge(parts: Sequence[Part], a: Parts, b: Parts) -> Parts:
    return Parts(a.rows + b.rows, tuple(p.merge(x, y) for p, x, y in zip(parts, a.values, b.values, strict=True)))


def close(
    plan: WindowPlan, state: State, reached_us: int | None, *, early: bool = False, partial: bool = False
) -> tuple[State, pa.Table | None]:
    """Emit the windows whose end plus lateness event time has reached; `early`: all of them. Rows for a window that was emitted
    are late from then on. `partial` marks the rows of windows that would have taken more."""
    mine = (plan.name, plan.definition)
    due = [
        key
        for key in state.windows
        if (key.window, key.definition) == mine
        and (early or (reached_us is not None and key.start_us + plan.grace_us <= reached_us))
    ]
    if not due:
        return state, None
    due.sort(key=lambda k: (k.start_us, [(v is not None, str(v)) for v in k.group]))
    rows = plan.emission(_closed_table(plan, state, due, partial))
    emitted = sum(state.windows[key].rows for key in due)
    gone = set(due)
    # A window far ahead (a wrong clock) says nothing about those before it.
    ends = [key.start_us + plan.grace_us for key in due if reached_us is not None and key.start_us <= reached_us]
    closed = {**state.closed, mine: max([*ends, state.closed.get(mine, ends[0])])} if ends else state.closed
    state = replace(state, windows={k: parts for k, parts in state.windows.items() if k not in gone}, closed=closed)
    return state.with_counts("streams", f"windows.{plan.name}", {"emitted": emitted}), rows


def forget_time_line(state: State) -> State:
    """Event time started again: no window is closed yet."""
    return replace(state, closed={})


def _closed_table(plan: WindowPlan, state: State, due: Iterable[WindowKey], partial: bool) -> pa.Table:
    keys = list(due)
    starts = [key.start_us for key in keys]
    ends = pa.array([start + plan.spec.every for start in starts], TIMESTAMP)
    columns: dict[str, Any] = {"_event_time": ends, "_window_start": pa.array(starts, TIMESTAMP), "_window_end": ends}
    for i, (name, type_) in enumerate(zip(plan.spec.by, plan.by_types, strict=True)):
        columns[name] = pa.array([key.group[i] for key in keys], type_)
    for i, type_ in enumerate(plan.part_types):
        columns[f"_p{i}"] = pa.array([_struct(state.windows[key].values[i], type_) for key in keys], type_)
    columns["_rows"] = pa.array([state.windows[key].rows for key in keys], pa.int64())
    columns["_partial"] = pa.repeat(partial, len(keys))
    return pa.table(columns)


def no_closed(plan: WindowPlan) -> pa.Table:
    """The table `_closed` without rows, to bind the emission against."""
    return _closed_table(plan, State(""), [], False)


def _struct(value: Any, type_: pa.DataType) -> Any:
    return dict(zip([f.name for f in type_], value, strict=True)) if isinstance(value, tuple) else value


def window_fields(by: Mapping[str, pa.DataType], select: Mapping[str, pa.DataType]) -> pa.Schema:
    own = [("_event_time", TIMESTAMP), ("_window_start", TIMESTAMP), ("_window_end", TIMESTAMP)]
    return pa.schema([*own, *by.items(), *select.items(), ("_rows", pa.int64()), ("_partial", pa.bool_())])
