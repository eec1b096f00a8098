"""Conditions that Arrow decides just as DuckDB would: boolean columns, columns compared with a constant or a column of the same
type, and what combines them. A filter of nothing else needs no statement, which costs a small batch most of its time.

What the two decide differently does not come here: NaN is no value of the schema, and constants fit the column's type exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Condition = Callable[[pa.Table], pa.Array]
Place = tuple[str, str]  # where a column stands in the row table, and its SQL type

_TRUE, _UNKNOWN = pa.scalar(True), pa.scalar(None, pa.bool_())
_TYPES = {"BOOLEAN": pa.bool_(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "VARCHAR": pa.string()}
_PYTHON: Mapping[str, type[Any]] = {"BOOLEAN": bool, "BIGINT": int, "DOUBLE": float, "VARCHAR": str}
_COMPARE: Mapping[str, Callable[[Any, Any], pa.Array]] = {
    "COMPARE_EQUAL": pc.equal,
    "COMPARE_NOTEQUAL": pc.not_equal,
    "COMPARE_LESSTHAN": pc.less,
    "COMPARE_GREATERTHAN": pc.greater,
    "COMPARE_LESSTHANOREQUALTO": pc.less_equal,
    "COMPARE_GREATERTHANOREQUALTO": pc.greater_equal,
}
_MIRRORED = {
    "COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
    "COMPARE_GREATERTHAN": "COMPARE_LESSTHAN",
    "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
}
_DOUBLE = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?", re.ASCII)
_DIGITS_MAX = 15  # of a decimal that is the same double however it is read


def plain_condition(tree: Mapping[str, Any], columns: Mapping[str, Place], params: Mapping[str, Any]) -> Condition | None:
    """`columns` by name in lower case: those whose values are as the schema has them. None: it is left to DuckDB."""
    match tree["type"]:
        case "COLUMN_REF":
            place, type_ = _column(tree, columns)
            return (lambda rows: rows[place].combine_chunks()) if type_ == "BOOLEAN" else None
        case "CONJUNCTION_AND" | "CONJUNCTION_OR" | "OPERATOR_NOT" as word:
            parts = [plain_condition(child, columns, params) for child in tree["children"]]
            ready = [part for part in parts if part is not None]
            if len(ready) < len(parts):
                return None
            if word == "OPERATOR_NOT":
                return lambda rows: pc.invert(ready[0](rows))
            join = pc.and_kleene if word == "CONJUNCTION_AND" else pc.or_kleene
            return lambda rows: reduce(join, [part(rows) for part in ready])
        case "CASE_EXPR":  # true, or NULL: what an aggregate counts
            check, *others = tree["case_checks"]
            when = plain_condition(check["when_expr"], columns, params)
            ends = [(node.get("literal") or {}).get("kind") for node in (check["then_expr"], tree["else_expr"])]
            if when is None or others or ends != ["BOOLEAN", "NULL_LITERAL"] or _literal(check["then_expr"]) is not True:
                return None
            return lambda rows: pc.if_else(pc.fill_null(when(rows), False), _TRUE, _UNKNOWN)
    return _comparison(tree, columns, params) if tree["type"] in _COMPARE else None


def _comparison(tree: Mapping[str, Any], columns: Mapping[str, Place], params: Mapping[str, Any]) -> Condition | None:
    word, left, right = tree["type"], tree["left"], tree["right"]
    if left["class"] != "COLUMN_REF":
        word, left, right = _MIRRORED.get(word, word), right, left
    place, type_ = _column(left, columns)
    if type_ not in _TYPES or (type_ == "BOOLEAN" and word not in ("COMPARE_EQUAL", "COMPARE_NOTEQUAL")):
        return None
    compare = _COMPARE[word]
    if right["class"] == "COLUMN_REF":
        other, other_type = _column(right, columns)
        if other_type != type_:
            return None
        return lambda rows: compare(rows[place].combine_chunks(), rows[other].combine_chunks())
    constant = _constant(right, type_, params)
    return None if constant is None else lambda rows: compare(rows[place].combine_chunks(), constant)


def _column(node: Mapping[str, Any], columns: Mapping[str, Place]) -> Place:
    names = node.get("column_names", ())
    return columns.get(names[0].lower(), ("", "")) if len(names) == 1 else ("", "")


def _constant(node: Mapping[str, Any], type_: str, params: Mapping[str, Any]) -> pa.Scalar | None:
    """As a value of the type, None where that is not exactly what it says."""
    value: Any = params.get(node["identifier"]) if node["class"] == "PARAMETER" else _literal(node)
    if node["class"] == "CAST":
        value = _cast(node)
    if type_ == "DOUBLE" and type(value) is int and abs(value) <= 2**53:
        value = float(value)
    if type(value) is not _PYTHON[type_] or (type_ == "BIGINT" and abs(value) >= 2**63):
        return None
    return pa.scalar(value, _TYPES[type_]) if type_ != "DOUBLE" or math.isfinite(value) else None


def _cast(node: Mapping[str, Any]) -> int | float | None:
    """A number as `connection.literal` writes it."""
    to, inner = node["type_expr"].get("type_name"), _literal(node["child"])
    if to == "BIGINT" and type(inner) is int:
        return inner
    return float(inner) if to == "DOUBLE" and isinstance(inner, str) and _DOUBLE.fullmatch(inner) else None


def _literal(node: Mapping[str, Any]) -> bool | int | float | str | None:
    literal = node.get("literal") or {}
    text = str(literal.get("text"))
    match literal.get("kind"):
        case "BOOLEAN":
            return text.lower() == "true"
        case "INTEGER":
            return int(text)
        case "NUMERIC" if len(text) <= _DIGITS_MAX and set(text) <= set("-0123456789."):
            return float(text)
        case "STRING":
            return text
    return None
