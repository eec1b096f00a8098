"""Columns of lake tables: which batch fits which table, and the lineage that ingest adds to every row. Pure.

Delta casts silently (2.5 into an integer column becomes 2), so types are compared and widened here, and never there.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_TIME = pa.timestamp("us", tz="UTC")


def _texts(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.string()) for name in names]


def _integers(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.int64()) for name in names]


LINEAGE = pa.schema(
    [
        *_texts("_node", "_run", "_stream"),
        *_integers("_seq", "_row"),
        *_texts("_pipeline"),
        *_integers("_version"),
        *_texts("_params"),
        ("_received_at", _TIME),
        *_texts("_clock"),
    ]
)
LINEAGE = pa.schema([field.with_nullable(False) for field in LINEAGE])  # which is cheaper to write, too
LOG_LINEAGE = pa.schema(_texts("_lineage", "_group"))  # of tables of a window's revisions
OWN_COLUMNS = frozenset({*LINEAGE.names, *LOG_LINEAGE.names})
SEGMENTS_SCHEMA = pa.schema(
    [
        *_texts("node", "run", "stream"),
        *_integers("seq"),
        *_texts("previous", "digest", "kind", "table_name"),
        *_integers("rows"),
        *_texts("payload_digest", "pipeline", "version"),
        *_integers("number"),
        *_texts("params"),
        *_integers("sealed_at_us", "node_time_us"),
        *_texts("clock", "engine", "positions", "ledgers"),
        *_integers("format"),
        *_texts("verdict", "reason"),  # verdict: stored | void | refused
        ("received_at", _TIME),
        *_texts("lookups", "lineage", "boot"),
        *_integers("utc_offset_us", "run_rows", "first"),
        *_texts("void", "stands_for", "stamps"),
        *_integers("run_stored"),  # of the run's `run_rows` so far, those in the table
    ]
)

COLUMNS_MAX = 500
_WIDER: dict[pa.DataType, pa.DataType] = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}


class Misfit(Exception):
    """Why a segment cannot go into its table."""


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """As a reader finds it: without dictionaries."""
    fields = (f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema)
    return pa.schema(list(fields))


def lake_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` in the lake's types, columns that are only NULL left out. Raises `Misfit` for a type the lake has not."""
    if len(set(schema.names)) != len(schema.names):
        raise Misfit("a column appears twice")
    taken = sorted(set(schema.names) & OWN_COLUMNS)
    if taken:
        raise Misfit(f"column {taken[0]} is added by the control plane")
    return pa.schema([_lake_field(field) for field in schema if not pa.types.is_null(field.type)])


def merged_schema(table: pa.Schema | None, batch: pa.Schema) -> pa.Schema:
    """The user columns of `table` once it also takes `batch`: each takes the batch's, or is new and nullable, or is nullable and
    the batch lacks it. Raises `Misfit` otherwise."""
    if table is None:
        return batch
    ours = {field.name: field for field in table if field.name not in OWN_COLUMNS}
    spelled = {name.lower(): name for name in ours}
    for field in batch:
        if spelled.setdefault(field.name.lower(), field.name) != field.name:
            raise Misfit(f"column {field.name} is spelled {spelled[field.name.lower()]} in the table")
        known = ours.get(field.name)
        if known is not None and not _takes(known.type, field.type):
            what = f"column {field.name} is {known.type} in the table, {field.type} in the segment"
            raise Misfit(f"{what}: give it the table's type, another name, or the sink another table")
        if known is None and not field.nullable:
            what = f"column {field.name} is not in the table and may not be empty for its earlier rows"
            raise Misfit(f"{what}: declare it nullable, or give the sink another table")
    required = [name for name, field in ours.items() if not field.nullable and name not in batch.names]
    if required:
        raise Misfit(f"column {required[0]} is required by the table, the segment lacks it: give the sink another table")
    return pa.schema([*ours.values(), *(field for field in batch if field.name not in ours)])


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` with exactly the columns of `schema`: NULL where it has none. Raises `Misfit` for a NULL in a required column."""
    columns = []
    for field in schema:
        if field.name in rows.column_names:
            column = rows.column(field.name).cast(field.type)
        else:
            column = pa.nulls(rows.num_rows, field.type)
        if not field.nullable and column.null_count:
            raise Misfit(f"column {field.name} is required by the table, the segment has rows without it")
        columns.append(column)
    return pa.table(columns, schema=schema)


def _lake_field(field: pa.Field[Any]) -> pa.Field[Any]:
    return pa.field(field.name, _lake_type(field.type, field.name), nullable=field.nullable)


def _lake_type(kind: pa.DataType, name: str) -> pa.DataType:
    """The same values in a type that Delta has."""
    is_ = pa.types
    if is_.is_dictionary(kind):
        return _lake_type(kind.value_type, name)
    if is_.is_large_string(kind) or is_.is_string_view(kind):
        return pa.string()
    if is_.is_large_binary(kind) or is_.is_binary_view(kind) or is_.is_fixed_size_binary(kind):
        return pa.binary()
    if is_.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", tz=kind.tz)
    if is_.is_list(kind) or is_.is_large_list(kind):
        return pa.list_(_lake_type(kind.value_type, name))
    if is_.is_struct(kind):
        return pa.struct([_lake_field(kind.field(i)) for i in range(kind.num_fields)])
    kind = _WIDER.get(kind, kind)
    plain = is_.is_boolean(kind) or is_.is_signed_integer(kind) or is_.is_float32(kind) or is_.is_float64(kind)
    known = plain or is_.is_string(kind) or is_.is_binary(kind) or is_.is_date32(kind) or is_.is_decimal128(kind)
    if known or (is_.is_timestamp(kind) and kind.unit == "us" and kind.tz in ("UTC", "+00:00", "Etc/UTC")):
        return kind
    raise Misfit(f"column {name} has type {kind}, which the lake has not")


def _takes(table: pa.DataType, batch: pa.DataType) -> bool:
    """Whether a column of the table takes every value of the segment's as it is: equal but for the names that formats give to
    list items, or declared wider: integers of more bits, double for float, decimals with at least as many digits on both sides
    of the point. A column of a Delta table itself never becomes wider: other readers could not read it."""
    if pa.types.is_list(table) and pa.types.is_list(batch):
        return _takes(table.value_type, batch.value_type)
    if pa.types.is_struct(table) and pa.types.is_struct(batch):
        fields = [(table.field(i), batch.field(i)) for i in range(min(table.num_fields, batch.num_fields))]
        return table.num_fields == batch.num_fields and all(x.name == y.name and _takes(x.type, y.type) for x, y in fields)
    if pa.types.is_decimal128(table) and pa.types.is_decimal128(batch):
        return bool(table.scale >= batch.scale and table.precision - table.scale >= batch.precision - batch.scale)
    is_integer, is_float = pa.types.is_signed_integer, pa.types.is_floating
    if (is_integer(table) and is_integer(batch)) or (is_float(table) and is_float(batch)):
        return bool(table.bit_width >= batch.bit_width)
    return bool(table.equals(batch))
