"""Records and stages in their first form: replaced by records.py and stage.py as they land."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.sources import Source
from pipelines.contract.language.steps import Step
from pipelines.engine import enforce
from pipelines.engine.bind import Binder, Column, Columns
from pipelines.engine.connection import literal, quote
from pipelines.engine.decode import Batch, input_table
from pipelines.engine.fate import ALIVE, INVALID, UNDECODABLE, Fates
from pipelines.engine.state import State
from pipelines.engine.statement import Statement
from pipelines.engine.types import of_field, to_arrow


@dataclass(frozen=True)
class Records:
    columns: Mapping[str, pa.Array]
    count: int
    fate: pa.Array | None
    reasons: Mapping[int, tuple[str, ...]]
    line: pa.Array | None = None


@dataclass(frozen=True)
class RecordsPlan:
    statement: Statement
    delimiter: str | None
    csv_fields: tuple[tuple[str, str], ...]
    meta: set[str]
    types: Mapping[str, pa.DataType]

    def read(self, batch: Batch) -> Records:
        table = self._run(input_table(batch, self.delimiter, self.csv_fields, sorted(self.meta)))
        bad = table.filter(pc.not_equal(table["_fate"], ALIVE))
        reasons = {row: tuple(why) for row, why in zip(bad["_row"].to_pylist(), bad["_reasons"].to_pylist(), strict=True)}
        columns = {name: table[name].cast(type_).combine_chunks() for name, type_ in self.types.items()}
        columns |= {name: table[name].combine_chunks() for name in table.column_names if name.startswith("_meta_")}
        return Records(columns, table.num_rows, table["_fate"].cast(pa.int16()).combine_chunks(), reasons)

    def _run(self, table: pa.Table) -> pa.Table:
        try:
            return self.statement(table)
        except duckdb.Error as error:
            if table.num_rows == 1:
                if table["_bad"].null_count == 0:
                    raise
                bad = pa.array([f"the engine fails on it: {str(error).splitlines()[0][:200]}"])
                return self._run(table.set_column(table.schema.get_field_index("_bad"), "_bad", bad))
        middle = table.num_rows // 2
        return pa.concat_tables([self._run(table.slice(0, middle)), self._run(table.slice(middle))])


def compile_records(binder: Binder, name: str, source: Source) -> RecordsPlan:
    csv, schema = source.decode.csv, binder.spec.schema_
    feeds: list[tuple[str, str]] = []
    structure: str | None = None
    if csv:
        fields, feeds = enforce.csv_fields(schema)
    else:
        fields, structure = enforce.json_fields(schema)
    layers = [("_d", _parse_layer(structure)), ("_v", _value_layer(fields)), ("_s", _fate_layer(fields, structure is not None))]
    sql = f"WITH {', '.join(f'{n} AS ({s})' for n, s in layers)} SELECT * EXCLUDE (_line, _bad) FROM _s ORDER BY _row"
    types = {n: to_arrow(of_field(f)) for n, f in schema.items()}
    return RecordsPlan(Statement(binder.engine, sql, "_in"), csv.delimiter if csv else None, tuple(feeds), binder.meta, types)


def _parse_layer(structure: str | None) -> str:
    if structure is None:
        return "SELECT * FROM _in"
    is_object = "json_valid(_line) AND left(ltrim(_line, ' \t'), 1) = '{'"
    parsed = f"SELECT *, CASE WHEN _bad IS NULL AND {is_object} THEN _line END AS _json FROM _in"
    document = f"json_transform(_json, {literal(structure)})" if structure != "{}" else "NULL"
    return f"SELECT *, {document} AS _doc FROM ({parsed})"


def _value_layer(fields: Sequence[enforce.FieldSql]) -> str:
    return f"SELECT *{''.join(f', {field.value} AS {quote(field.name)}' for field in fields)} FROM _d"


def _fate_layer(fields: Sequence[enforce.FieldSql], is_json: bool) -> str:
    undecodable = "_bad IS NOT NULL" + (" OR _json IS NULL" if is_json else "")
    keeps = " AND ".join(field.keeps_contract for field in fields)
    reasons = ", ".join(reason for field in fields for reason in field.reasons)
    fate = f"CASE WHEN {undecodable} THEN {UNDECODABLE} WHEN {keeps} THEN {ALIVE} ELSE {INVALID} END"
    why = (
        f"CASE _fate WHEN {UNDECODABLE} THEN [coalesce(_bad, 'not a JSON object')] "
        f"WHEN {INVALID} THEN list_filter([{reasons}], lambda _x: _x IS NOT NULL) END"
    )
    return f"SELECT *, {why} AS _reasons FROM (SELECT *, {fate} AS _fate FROM _v)"


Stage = Callable[[State, pa.Table], tuple[State, pa.Table]]


class Stages:
    def __init__(self, binder: Binder, fates: Fates) -> None:
        self.binder, self.fates = binder, fates
        self.layers: list[tuple[str, str]] = []
        self.columns: Columns = {}

    def add(self, steps: Sequence[Step], columns: Columns) -> Columns:
        now = dict(columns)
        for i, step in enumerate(steps):
            if step.filter is not None:
                bound = self.binder.row(step.filter, f"steps[{i}].filter", now, "BOOLEAN")
                self._filter(i, bound.sql)
            elif step.derive:
                for name, text in step.derive.items():
                    path = f"steps[{i}].derive.{name}"
                    if self._is_new(name, path, now):
                        bound = self.binder.row(text, path, now)
                        self._derive(i, name, bound.type, bound.sql)
                        now[name] = Column(bound.type, bound.sensitive)
            else:
                for name, text in (step.enrich or {}).items():
                    path = f"steps[{i}].enrich.{name}"
                    if self._is_new(name, path, now):
                        self._layer(f"SELECT *, {self._fact(text, path)} AS {quote(name)} FROM {self._last}")
                        now[name] = Column("VARCHAR")
        self.columns = now
        return now

    def finish(self, extras: Sequence[tuple[str, str, str]]) -> list[Stage]:
        if not self.layers and not extras:
            return []
        added = "".join(f", CASE WHEN _fate = 0 THEN TRY({sql}) END AS {quote(name)}" for name, sql, _ in extras)
        with_ = f"WITH {', '.join(f'{n} AS ({s})' for n, s in self.layers)} " if self.layers else ""
        statement = Statement(self.binder.engine, f"{with_}SELECT *{added} FROM {self._last} ORDER BY _row", "_in")
        types = {name: to_arrow(column.type) for name, column in self.columns.items()}

        def stage(state: State, rows: pa.Table) -> tuple[State, pa.Table]:
            made = statement(rows)
            columns: dict[str, Any] = {n: made[n].cast(types[n]) if n in types else made[n] for n in made.column_names}
            return state, pa.table({**columns, "_fate": made["_fate"].cast(pa.int16())}).combine_chunks()

        return [stage]

    @property
    def _last(self) -> str:
        return self.layers[-1][0] if self.layers else "_in"

    def _layer(self, sql: str) -> None:
        self.layers.append((f"_s{len(self.layers)}", sql))

    def _is_new(self, name: str, path: str, columns: Columns) -> bool:
        if name.lower() in (known.lower() for known in columns):
            hint = "choose another name: a step adds columns, it does not replace them"
            self.binder.complain(path, f'there is a column "{name}" already', hint)
            return False
        return True

    def _fact(self, text: str, path: str) -> str:
        words = text.split(".")
        if words[0] != "node" or len(words) < 2 or not all(w.replace("-", "_").isidentifier() for w in words):
            self.binder.complain(path, f'"{text}" is no fact of the node', "write node.name, node.<label> or node.facts.<fact>")
            return "NULL"
        return f"CAST({literal(self.binder.node.look_up(words[1:]))} AS VARCHAR)"

    def _filter(self, step: int, sql: str) -> None:
        why = f"steps[{step}].filter: the expression fails on this row ({_WHY})"
        failed = self.fates.add("failed", step, why)
        null, no = self.fates.add("filtered_null", step), self.fates.add("filtered", step)
        fate = (
            f"CASE WHEN _fate <> 0 THEN _fate WHEN _t IS NULL THEN {failed} "
            f"WHEN _t[1] IS NULL THEN {null} WHEN _t[1] THEN 0 ELSE {no} END"
        )
        self._layer(f"SELECT * EXCLUDE (_t) REPLACE ({fate} AS _fate) FROM ({self._tried(sql)})")

    def _derive(self, step: int, name: str, type_: str, sql: str) -> None:
        why = f"steps[{step}].derive.{name}: the expression fails on this row ({_WHY})"
        failed = self.fates.add("failed", step, why)
        fate = f"CASE WHEN _fate = 0 AND (_t IS NULL{_UNFIT.get(type_, '')}) THEN {failed} ELSE _fate END"
        value = f"TRY_CAST(_t[1] AS {type_}) AS {quote(name)}"
        self._layer(f"SELECT * EXCLUDE (_t) REPLACE ({fate} AS _fate), {value} FROM ({self._tried(sql)})")

    def _tried(self, sql: str) -> str:
        return f"SELECT *, CASE WHEN _fate = 0 THEN TRY([{sql}]) END AS _t FROM {self._last}"


_WHY = "overflow, division by zero, too long a text, or a value that does not convert"
_UNFIT = {
    "DOUBLE": " OR NOT isfinite(_t[1])",
    "TIMESTAMP": f" OR NOT ({enforce.in_calendar('CAST(_t[1] AS TIMESTAMP)')})",
    "VARCHAR": " OR strlen(_t[1]) > 16384",
}
