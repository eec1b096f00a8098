"""The stateless part of a pipeline as ONE DuckDB statement over the batch: parse, enforce, filter, derive, enrich.

Every row keeps its place and gets a fate: 0 alive, 1 undecodable, 2 invalid, then three codes per step. An expression that errors
on a row decides that row's fate only: it runs inside `TRY([..])`, which is NULL by error and `[NULL]` by NULL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.steps import Step
from pipelines.engine.connection import literal, quote
from pipelines.engine.enforce import FieldSql, in_calendar

ALIVE, UNDECODABLE, INVALID = 0, 1, 2
_STEP_BASE = 10
FILTERED, FILTERED_NULL, FAILED = 0, 1, 2  # within a step's three codes


def step_fate(step: int, what: int) -> int:
    return _STEP_BASE + 3 * step + what


def read_fate(code: int) -> tuple[str, int]:
    """(`alive` | `undecodable` | `invalid` | `filtered` | `filtered_null` | `failed`, step index or -1)."""
    if code < _STEP_BASE:
        return ("alive", "undecodable", "invalid")[code], -1
    step, what = divmod(code - _STEP_BASE, 3)
    return ("filtered", "filtered_null", "failed")[what], step


@dataclass(frozen=True)
class BoundStep:
    """A step with its expressions as SQL: `columns` are (name, sql, type) in order; a filter has one, named ""."""

    step: Step
    index: int
    columns: tuple[tuple[str, str, str], ...]
    constant: bool = False  # enrich: the same for every row, cannot fail


def stateless_sql(
    fields: Sequence[FieldSql],
    structure: str | None,
    steps: Sequence[BoundStep],
    columns: Mapping[str, str],
    event_time: str | None,
    meta: Sequence[str],
    wheres: Mapping[str, str],
) -> str:
    """The SQL over `_in`. Columns out: `_row`, `_fate`, `_reasons`, `_raw` (of rows to quarantine), `_et` (event time in
    microseconds, NULL without one), the used `_meta_*`, `columns`, those of an accepted row, and `keep_column`s of sinks."""
    layers = [
        ("_d", _parse_layer(structure)),
        ("_v", _value_layer(fields)),
        ("_s", _fate_layer(fields, is_json=structure is not None)),
    ]
    for step in steps:
        layers += _step_layers(step, f"_s{len(layers)}", layers[-1][0])
    names = "".join(f", {quote(name)}" for name in [*(f"_meta_{word}" for word in meta), *columns])
    stamp = f"epoch_us({quote(event_time)})" if event_time else "CAST(NULL AS BIGINT)"
    quarantined = f"_fate IN ({UNDECODABLE}, {INVALID}) OR (_fate >= {_STEP_BASE} AND (_fate - {_STEP_BASE}) % 3 = {FAILED})"
    with_ = ",\n".join(f"{name} AS ({sql})" for name, sql in layers)
    return (
        f"WITH {with_}\nSELECT _row, _fate, _reasons, CASE WHEN {quarantined} THEN _line END AS _raw, "
        f"{stamp} AS _et{names}{keep_columns(wheres)} FROM {layers[-1][0]}"
    )


def keep_column(sink: str) -> str:
    """The name of the column that says whether a sink takes a row."""
    return f"_keep_{sink}"


def keep_columns(wheres: Mapping[str, str]) -> str:
    return "".join(f", coalesce(TRY({where}), false) AS {quote(keep_column(sink))}" for sink, where in wheres.items())


def _parse_layer(structure: str | None) -> str:
    if structure is None:
        return "SELECT * FROM _in"
    is_object = "json_valid(_line) AND left(ltrim(_line, ' \t'), 1) = '{'"
    parsed = f"SELECT *, CASE WHEN _bad IS NULL AND {is_object} THEN _line END AS _json FROM _in"
    document = f"json_transform(_json, {literal(structure)})" if structure != "{}" else "NULL"
    return f"SELECT *, {document} AS _doc FROM ({parsed})"


def _value_layer(fields: Sequence[FieldSql]) -> str:
    values = "".join(f", {field.value} AS {quote(field.name)}" for field in fields)
    return f"SELECT *{values} FROM _d"


def _fate_layer(fields: Sequence[FieldSql], *, is_json: bool) -> str:
    undecodable = "_bad IS NOT NULL" + (" OR _json IS NULL" if is_json else "")
    keeps = " AND ".join(field.keeps_contract for field in fields)
    reasons = ", ".join(reason for field in fields for reason in field.reasons)
    fate = f"CASE WHEN {undecodable} THEN {UNDECODABLE} WHEN {keeps} THEN {ALIVE} ELSE {INVALID} END"
    why = (
        f"CASE _fate WHEN {UNDECODABLE} THEN [coalesce(_bad, 'not a JSON object')] "
        f"WHEN {INVALID} THEN list_filter([{reasons}], lambda _x: _x IS NOT NULL) END"
    )
    return f"SELECT *, {why} AS _reasons FROM (SELECT *, {fate} AS _fate FROM _v)"


def _step_layers(bound: BoundStep, name: str, source: str) -> list[tuple[str, str]]:
    if bound.constant:
        added = "".join(f", {sql} AS {quote(column)}" for column, sql, _ in bound.columns)
        return [(name, f"SELECT *{added} FROM {source}")]
    layers = []
    for i, (column, sql, type_) in enumerate(bound.columns):
        this = f"{name}_{i}"
        tried = f"SELECT *, CASE WHEN _fate = 0 THEN TRY([{sql}]) END AS _t FROM {source}"
        layers.append(
            (this, _filter_layer(bound.index, tried) if not column else _derive_layer(bound.index, column, type_, tried))
        )
        source = this
    return layers


def _filter_layer(step: int, tried: str) -> str:
    fate = (
        f"CASE WHEN _fate <> 0 THEN _fate WHEN _t IS NULL THEN {step_fate(step, FAILED)} "
        f"WHEN _t[1] IS NULL THEN {step_fate(step, FILTERED_NULL)} WHEN _t[1] THEN 0 ELSE {step_fate(step, FILTERED)} END"
    )
    why = _failure(step, "filter")
    return f"SELECT * EXCLUDE (_t) REPLACE ({fate} AS _fate, {why} AS _reasons) FROM ({tried})"


def _derive_layer(step: int, column: str, type_: str, tried: str) -> str:
    unfit = "_t IS NULL" + _UNFIT.get(type_, "")
    fate = f"CASE WHEN _fate = 0 AND ({unfit}) THEN {step_fate(step, FAILED)} ELSE _fate END"
    why = _failure(step, f"derive.{column}", unfit)
    value = f"TRY_CAST(_t[1] AS {type_})"
    return f"SELECT * EXCLUDE (_t) REPLACE ({fate} AS _fate, {why} AS _reasons), {value} AS {quote(column)} FROM ({tried})"


DERIVED_BYTES_MAX = 16 * 1024  # of a derived text: a row must fit a segment, and texts must not double from step to step
_UNFIT = {
    "DOUBLE": " OR NOT isfinite(_t[1])",
    "TIMESTAMP": f" OR NOT ({in_calendar('CAST(_t[1] AS TIMESTAMP)')})",
    "VARCHAR": f" OR strlen(_t[1]) > {DERIVED_BYTES_MAX}",
}


def _failure(step: int, what: str, unfit: str = "_t IS NULL") -> str:
    why = "overflow, division by zero, too long a text, or a value that does not convert"
    text = f"steps[{step}].{what}: the expression fails on this row ({why})"
    return f"CASE WHEN _fate = 0 AND ({unfit}) THEN [{literal(text)}] ELSE _reasons END"


def count_fates(result: pa.Table) -> dict[int, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(result["_fate"]).to_pylist()}
