"""lookup: columns of the row of a table that has the same key. The table stays in Arrow; its keys are a Python map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.lookups import LOOKUP_ROWS_MAX, LookupTable
from pipelines.contract.language.steps import Lookup
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.bind import Binder, Column
from pipelines.engine.fate import ALIVE
from pipelines.engine.stage import Stages, attach
from pipelines.engine.state import State
from pipelines.engine.statement import Statement
from pipelines.engine.steps.fold import group_keys

_SQL_OF = {pa.bool_(): "BOOLEAN", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.string(): "VARCHAR"}


@dataclass(frozen=True)
class Table:
    """A lookup table on this node."""

    name: str
    rows: pa.Table
    types: Mapping[str, str]  # column -> SQL type
    key: tuple[str, ...]

    @cached_property
    def at(self) -> Mapping[tuple[object, ...], int]:
        return {key: i for i, key in enumerate(group_keys(self.rows, self.key))}


def load_tables(binder: Binder) -> dict[str, Table]:
    """The tables of the pipeline. One from a CSV is empty as long as it is not given: then the pipeline is only checked."""
    loaded = {}
    for name, spec in binder.spec.lookups.items():
        if table := _load(binder, name, spec, f"lookups.{name}"):
            loaded[name] = table
    return loaded


def _load(binder: Binder, name: str, spec: LookupTable, path: str) -> Table | None:
    raw = _inline(spec) if spec.rows else _from_csv(binder, name, spec)
    columns: dict[str, pa.Array] = {}
    for column, type_ in spec.columns.items():
        if column not in raw.column_names:
            message = f'the table has no column "{column}"{did_you_mean(column, raw.column_names)}'
            binder.complain(f"{path}.columns.{column}", message)
            return None
        columns[column] = _typed(binder, raw[column].combine_chunks(), type_, f"{path}.columns.{column}")
    columns = {column: columns.get(column, raw[column].combine_chunks()) for column in raw.column_names}
    table = Table(name, pa.table(columns), {c: _SQL_OF.get(a.type, "TIMESTAMP") for c, a in columns.items()}, tuple(spec.key))
    return table if _check_key(binder, table, path) else None


def _inline(spec: LookupTable) -> pa.Table:
    assert spec.rows is not None, "the caller asked for inline rows"
    names = dict.fromkeys(name for row in spec.rows for name in row)
    return pa.table({name: _column([row.get(name) for row in spec.rows]) for name in names})


def _column(values: list[object]) -> pa.Array:
    """The values as one type: as texts when they are of several."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds != {int}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())  # type: ignore[arg-type]  # numbers
    if len(kinds) > 1:
        return pa.array([None if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values], pa.string())
    return pa.array(values, {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(next(iter(kinds), str), pa.string()))


def _from_csv(binder: Binder, name: str, spec: LookupTable) -> pa.Table:
    """The CSV as texts, an empty text as NULL; where the table is only checked, no rows of the columns it names."""
    given = (binder.lookups or {}).get(name)
    if given is None:
        if binder.lookups is not None and name not in binder.lookups:
            kind, hint = ("artifact", "fetch it first") if spec.artifact else ("file", "see that the file exists")
            there_is_none = f"there is no table from {spec.artifact or spec.file} on this node"
            binder.complain(f"lookups.{name}.{kind}", there_is_none, hint)
        uses = [step.lookup for step in binder.spec.steps if step.lookup and step.lookup.table == name]
        named = dict.fromkeys([*spec.key, *spec.columns, *(column for use in uses for column in use.take.values())])
        return pa.table({column: pa.array([], pa.string()) for column in named})
    return pa.table({column: _without_empty(given[column].combine_chunks()) for column in given.column_names})


def _without_empty(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(values, ""), None, values) if pa.types.is_string(values.type) else values


_CASTS = {
    "string": "_v",
    "boolean": "TRY_CAST(_v AS BOOLEAN)",
    "double": "CASE WHEN isfinite(TRY_CAST(_v AS DOUBLE)) THEN TRY_CAST(_v AS DOUBLE) END",
    "integer": "CASE WHEN regexp_full_match(_v, '\\s*[-+]?[0-9]+\\s*') THEN TRY_CAST(_v AS BIGINT) END",
    "timestamp": "TRY(make_timestamp(epoch_us(TRY_CAST(_v AS TIMESTAMPTZ))))",
}


def _typed(binder: Binder, values: pa.Array, type_: str, path: str) -> pa.Array:
    """The values as texts that spell values of the type, as the schema takes them."""
    sql = f"SELECT {_CASTS[type_]} AS v FROM (SELECT CAST(_v AS VARCHAR) AS _v FROM _table)"
    made = Statement(binder.engine, sql, "_table")(pa.table({"_v": values}))["v"].combine_chunks()
    lost = pc.and_(pc.is_null(made), pc.is_valid(values))
    if lost.true_count:
        binder.complain(path, f'"{str(values.filter(lost)[0])[:80]}" is not of type {type_}')
    return made


def _check_key(binder: Binder, table: Table, path: str) -> bool:
    for column in table.key:
        if column not in table.types:
            binder.complain(f"{path}.key", f'the table has no column "{column}"{did_you_mean(column, table.types)}')
            return False
    if table.rows.num_rows > LOOKUP_ROWS_MAX:
        binder.complain(path, f"the table has {table.rows.num_rows} rows, more than {LOOKUP_ROWS_MAX}")
        return False
    keys = group_keys(table.rows, table.key)
    if any(None in key for key in keys):
        binder.complain(path, "a row has no key", "every row needs a value in each column of `key:`")
        return False
    if len(table.at) < table.rows.num_rows:
        twice = next(key for i, key in enumerate(keys) if table.at[key] != i)
        told = ", ".join(map(str, twice))
        binder.complain(path, f"two rows have the key {told}", "a key finds one row: remove one, or add a column to `key:`")
        return False
    return True


def compile_lookup(stages: Stages, spec: Lookup, path: str) -> None:
    binder = stages.binder
    if spec.table not in binder.spec.lookups:
        message = f'there is no lookup table "{spec.table}"{did_you_mean(spec.table, binder.spec.lookups)}'
        binder.complain(f"{path}.table", message, "declare it under lookups:")
        return
    table = stages.tables.get(spec.table)
    by = spec.by or (list(table.key) if table else [])
    if table is None or not _fits(stages, spec, table, by, path):
        return
    sensitive = any(stages.columns[column].sensitive for column in by)
    keys = tuple(stages.place_of(column) for column in by)
    takes = {}
    for name, column in spec.take.items():
        if stages.is_new(name, f"{path}.take.{name}"):
            takes[stages.place(name, Column(table.types[column], sensitive, nullable=True))] = column
    missing = 0
    if spec.on_missing == "quarantine":
        missing = stages.fates.add("failed", stages.step, f'{path}: "{spec.table}" has no row with this key')
    stages.then(_LookUp(table, keys, takes, missing), keys, takes, early=not missing)


def _fits(stages: Stages, spec: Lookup, table: Table, by: list[str], path: str) -> bool:
    hint = "" if spec.by else f"the table's key is {', '.join(table.key)}; `by:` names the columns of the row that hold it"
    if not stages.known(by, f"{path}.by" if spec.by else path, hint):
        return False
    if len(by) != len(table.key):
        stages.binder.complain(f"{path}.by", f"the key of {table.name} has {len(table.key)} columns, here are {len(by)}")
        return False
    for column, key in zip(by, table.key, strict=True):
        if stages.columns[column].type != table.types[key]:
            message = f'"{column}" is {stages.columns[column].type}, "{key}" of the table is {table.types[key]}'
            stages.binder.complain(path, message, f"type it: lookups.{table.name}.columns, or derive a column of that type")
            return False
    unknown = [column for column in spec.take.values() if column not in table.types]
    for column in unknown:
        message = f'the table has no column "{column}"{did_you_mean(column, table.types)}'
        stages.binder.complain(f"{path}.take", message, f"it has {', '.join(table.types)}")
    return not unknown


@dataclass(frozen=True)
class _LookUp:
    table: Table
    keys: tuple[str, ...]  # places of the key
    takes: Mapping[str, str]  # place -> column of the table
    missing: int  # the fate of a row without a match; 0: its columns are NULL

    def __call__(self, state: State, rows: pa.Table) -> tuple[State, pa.Table]:
        get = self.table.at.get  # no key of the table is NULL
        found = pa.array([get(key) for key in group_keys(rows, self.keys)], pa.int64())
        made = {place: self.table.rows[column].combine_chunks().take(found) for place, column in self.takes.items()}
        if self.missing:
            lost = pc.and_(pc.equal(rows["_fate"], ALIVE), pc.is_null(found))
            made["_fate"] = pc.if_else(lost, pa.scalar(self.missing, pa.int16()), rows["_fate"])
        return state, attach(rows, made)
