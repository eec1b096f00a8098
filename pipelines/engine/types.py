"""The types of columns: a field's type in SQL, an SQL type in Arrow within the engine, and as it is stored.

Within the engine a timestamp is naive UTC: with a zone DuckDB would need an extension. Stored and sent, it has the zone UTC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa

from pipelines.contract.language.schema import Element, FieldSpec, precision_of, scale_of

TIMESTAMP = pa.timestamp("us", tz="UTC")

_PLAIN = {
    "boolean": "BOOLEAN",
    "integer": "BIGINT",
    "double": "DOUBLE",
    "string": "VARCHAR",
    "timestamp": "TIMESTAMP",
    "binary": "BLOB",
}
_ARROW = {
    "BOOLEAN": pa.bool_(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "TIMESTAMP": pa.timestamp("us"),
    "BLOB": pa.binary(),
}
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
_STORED = {
    **{name: name for name in _ARROW},
    **dict.fromkeys(_INTEGERS, "BIGINT"),
    "FLOAT": "DOUBLE",
    **dict.fromkeys(("TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE", "TIMESTAMP WITH TIME ZONE"), "TIMESTAMP"),
}
_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)\Z")


def of_field(spec: FieldSpec | Element) -> str:
    """The SQL type of a field of the schema."""
    if spec.of is not None:
        return f"{of_field(spec.of)}[]"
    if spec.fields is not None:
        return "STRUCT(" + ", ".join(f'"{name}" {of_field(element)}' for name, element in spec.fields.items()) + ")"
    if spec.type == "decimal":
        return f"DECIMAL({precision_of(spec)},{scale_of(spec)})"
    return _PLAIN[spec.type]


def to_arrow(sql_type: str) -> pa.DataType:
    """The Arrow type within the engine of a storable SQL type. Raises ValueError for any other."""
    if sql_type in _ARROW:
        return _ARROW[sql_type]
    if found := _DECIMAL.match(sql_type):
        return pa.decimal128(int(found[1]), int(found[2]))
    if sql_type.endswith("[]"):
        return pa.list_(to_arrow(sql_type[:-2]))
    if sql_type.startswith("STRUCT("):
        return pa.struct([(name, to_arrow(type_)) for name, type_ in _members(sql_type)])
    raise ValueError(f"{sql_type} has no column type")


def stored(type_: pa.DataType) -> pa.DataType:
    """The Arrow type in which values of `type_` leave the engine: timestamps are UTC."""
    if pa.types.is_timestamp(type_):
        return TIMESTAMP
    if pa.types.is_list(type_):
        return pa.list_(stored(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, stored(field.type)) for field in type_])
    return type_


def storable(sql_type: str) -> str | None:
    """The SQL type in which a value of this SQL type is kept: integers as BIGINT, dates as TIMESTAMP. None: it cannot be."""
    if sql_type in _STORED:
        return _STORED[sql_type]
    if _DECIMAL.match(sql_type):
        return sql_type
    if sql_type.endswith("[]"):
        inner = storable(sql_type[:-2])
        return inner and f"{inner}[]"
    if sql_type.startswith("STRUCT("):
        kept = [(name, storable(type_)) for name, type_ in _members(sql_type)]
        return None if any(t is None for _, t in kept) else "STRUCT(" + ", ".join(f'"{n}" {t}' for n, t in kept) + ")"
    return None


def _members(sql_type: str) -> Iterator[tuple[str, str]]:
    """The (name, type) of `STRUCT(a T, "b c" U)`."""
    for part in _split(sql_type.removeprefix("STRUCT(")[:-1]):
        text = part.strip()
        if text.startswith('"'):
            end = text.index('"', 1)
            yield text[1:end], text[end + 1 :].strip()
        else:
            name, _, type_ = text.partition(" ")
            yield name, type_.strip()


def _split(text: str) -> Iterator[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    depth, start, quoted = 0, 0, False
    for i, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]
