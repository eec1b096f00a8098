"""Tumbling event-time windows over mergeable parts: memory depends on groups and open windows, never on rows.

Every aggregate is kept as parts that merge (`avg` as sum and count), one DuckDB statement makes the parts of a batch, a fold in
Python merges them into the open windows, and a last statement turns the parts of closed windows into rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.contract.spec import Window
from pipelines.engine.connection import quote
from pipelines.engine.ipc import TIMESTAMP
from pipelines.engine.state import Parts, State, WindowKey
from pipelines.engine.transform import execute

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


_AGGREGATE = re.compile(r"^\s*\w+\s*\(")


def parts_of(name: str, call: str) -> tuple[list[Part], str]:
    """The parts of an aggregate call, and the SQL of its value over columns `{0}`, `{1}` ... of those parts."""

    def renamed(function: str) -> str:
        return _AGGREGATE.sub(f"{function}(", call, count=1)

    if name in ("count", "count_star"):
        return [Part(call, _add)], "coalesce({0}, 0)"
    if name == "sum":
        return [Part(call, _add)], "{0}"
    if name in ("avg", "mean"):
        return [Part(f"CAST({renamed('sum')} AS DOUBLE)", _add), Part(renamed("count"), _add)], "{0} / nullif({1}, 0)"
    if name in ("min", "max"):
        return [Part(call, _least if name == "min" else _most)], "{0}"
    if name in ("first", "last"):
        inner = _AGGREGATE.sub("", call, count=1)
        chosen = "arg_min" if name == "first" else "arg_max"
        argument, rest = _split_call(inner)
        picked = f"{chosen}({{'t': _et, 'v': {argument}}}, {{'t': _et, 'r': _row}}){rest}"
        return [Part(picked, _earliest if name == "first" else _latest)], "{0}.v"
    n, mean, var = renamed("count"), renamed("avg"), renamed("var_pop")
    pooled = f"CASE WHEN {n} > 0 THEN {{'n': CAST({n} AS DOUBLE), 'mean': {mean}, 'm2': {var} * {n}}} END"
    return [Part(pooled, _pool)], "CASE WHEN {0}.n > 1 THEN sqrt({0}.m2 / ({0}.n - 1)) END"


def _split_call(inner: str) -> tuple[str, str]:
    """`x) filter (..)` -> (`x`, ` filter (..)`)."""
    depth = 0
    for i, char in enumerate(inner):
        depth += (char == "(") - (char == ")")
        if depth < 0:
            return inner[:i], inner[i + 1 :]
    return inner, ""


@dataclass(frozen=True)
class WindowPlan:
    """A window, bound. `select` are (column, SQL over the parts `_p0`..., type); `schema` is that of its rows."""

    name: str
    spec: Window
    definition: str
    parts: tuple[Part, ...]
    select: tuple[tuple[str, str, str], ...]
    where: str
    part_types: tuple[pa.DataType, ...]
    by_types: tuple[pa.DataType, ...]
    schema: pa.Schema

    @property
    def grouping(self) -> str:
        """One statement over `_rows`: parts per window start and group; late rows apart, with `_late` true and no parts."""
        every, where = self.spec.every, f" WHERE {self.where}" if self.where else ""
        keys = "".join(f", {quote(name)}" for name in self.spec.by)
        start = f"_et - ((_et % {every}) + {every}) % {every}"
        parts = "".join(f", {part.sql} AS _p{i}" for i, part in enumerate(self.parts))
        late = f"_start + {every + self.spec.lateness} <= _before"
        staged = f"SELECT *, {late} AS _late FROM (SELECT *, {start} AS _start FROM _rows{where})"
        return f"SELECT _late, _start{keys}, count(*) AS _n{parts} FROM ({staged}) GROUP BY ALL ORDER BY min(_row)"

    @property
    def late_rows(self) -> str:
        every, where = self.spec.every, f" AND ({self.where})" if self.where else ""
        start = f"_et - ((_et % {every}) + {every}) % {every}"
        return f"SELECT _row FROM _rows WHERE {start} + {every + self.spec.lateness} <= _before{where} ORDER BY _row"

    @property
    def emission(self) -> str:
        """One statement over `_closed`: rows of closed windows from their parts."""
        keys = "".join(f", {quote(name)}" for name in self.spec.by)
        values = "".join(f", TRY_CAST(({sql}) AS {type_}) AS {quote(column)}" for column, sql, type_ in self.select)
        return f"SELECT _event_time, _window_start, _window_end{keys}{values}, _rows, _partial FROM _closed"


def contribute(engine: duckdb.DuckDBPyConnection, plan: WindowPlan, state: State, rows: pa.Table) -> tuple[State, list[int]]:
    """Merge accepted rows (with `_et`, `_row`, `_before`) into the open windows. Also the `_row`s that came too late."""
    windows = dict(state.windows)
    contributed = late = 0
    for group in execute(engine, plan.grouping, {"_rows": rows}).to_pylist():
        contributed += group["_n"]
        if group["_late"]:
            late += group["_n"]
            continue
        key = WindowKey(plan.name, plan.definition, group["_start"], tuple(group[name] for name in plan.spec.by))
        made = Parts(group["_n"], tuple(_plain(group[f"_p{i}"]) for i in range(len(plan.parts))))
        windows[key] = _merge(plan.parts, windows[key], made) if key in windows else made
    state = replace(state, windows=windows)
    state = state.with_counts("streams", f"windows.{plan.name}", {"contributed": contributed, "too_late": late})
    too_late = execute(engine, plan.late_rows, {"_rows": rows})["_row"].to_pylist() if late else []
    return state, too_late


def _plain(value: Any) -> Any:
    return tuple(value.values()) if isinstance(value, dict) else value


def _merge(parts: Sequence[Part], a: Parts, b: Parts) -> Parts:
    return Parts(a.rows + b.rows, tuple(p.merge(x, y) for p, x, y in zip(parts, a.values, b.values, strict=True)))


def close(
    engine: duckdb.DuckDBPyConnection, plan: WindowPlan, state: State, watermark_us: int | None, *, partial: bool = False
) -> tuple[State, pa.Table | None]:
    """Emit the windows whose end plus lateness the watermark has passed; all of them when it is None."""
    grace = plan.spec.every + plan.spec.lateness
    due = [
        key
        for key in state.windows
        if key.window == plan.name
        and key.definition == plan.definition
        and (watermark_us is None or key.start_us + grace <= watermark_us)
    ]
    if not due:
        return state, None
    due.sort(key=lambda k: (k.start_us, [(v is not None, str(v)) for v in k.group]))
    rows = execute(engine, plan.emission, {"_closed": _closed_table(plan, state, due, partial)}).cast(plan.schema)
    emitted = sum(state.windows[key].rows for key in due)
    gone = set(due)
    state = replace(state, windows={key: parts for key, parts in state.windows.items() if key not in gone})
    return state.with_counts("streams", f"windows.{plan.name}", {"emitted": emitted}), rows


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


def open_rows(state: State, window: str) -> int:
    """Rows that contributed to windows still open (I4)."""
    return sum(parts.rows for key, parts in state.windows.items() if key.window == window)


def window_fields(by: Mapping[str, pa.DataType], select: Mapping[str, pa.DataType]) -> pa.Schema:
    own = [("_event_time", TIMESTAMP), ("_window_start", TIMESTAMP), ("_window_end", TIMESTAMP)]
    return pa.schema([*own, *by.items(), *select.items(), ("_rows", pa.int64()), ("_partial", pa.bool_())])
