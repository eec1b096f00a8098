"""Which conditions cannot fail on any row: comparisons of values of one kind, and what combines them. They go without TRY, which
takes longer than all the rest of a plain filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_TYPE = {"BOOLEAN": "boolean", "BIGINT": "integer", "DOUBLE": "double", "VARCHAR": "text"}
_OF_LITERAL = {"BOOLEAN": "boolean", "INTEGER": "integer", "NUMERIC": "decimal", "STRING": "text"}
_COMPARISONS = frozenset(
    f"COMPARE_{word}" for word in ("EQUAL", "NOTEQUAL", "LESSTHAN", "GREATERTHAN", "LESSTHANOREQUALTO", "GREATERTHANOREQUALTO")
)
_ALIKE = (frozenset({"integer", "double"}), frozenset({"double", "decimal"}))  # as doubles, which every such value fits


def is_total(tree: Mapping[str, Any], types: Mapping[str, str], params: Mapping[str, Any]) -> bool:
    """Whether the condition has a value, or NULL, on every row. `types`: SQL types by column, in lower case."""
    return _kind(tree, types, params) == "boolean"


def _kind(node: Mapping[str, Any], types: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Of the value; "" where it may fail, or is of another kind."""
    match node["class"]:
        case "COLUMN_REF":
            names = node["column_names"]
            return _OF_TYPE.get(types.get(names[0].lower(), ""), "") if len(names) == 1 else ""
        case "CONSTANT":
            return _of_literal(node.get("literal") or {})
        case "PARAMETER":
            value = params.get(node["identifier"])
            return {bool: "boolean", int: "integer", float: "double", str: "text"}.get(type(value), "")
        case "COMPARISON" if node["type"] in _COMPARISONS:
            kinds = {_kind(node[side], types, params) for side in ("left", "right")}
            return "boolean" if "" not in kinds and (len(kinds - {"decimal"}) == len(kinds) == 1 or kinds in _ALIKE) else ""
        case "CONJUNCTION":
            return "boolean" if all(_kind(child, types, params) == "boolean" for child in node["children"]) else ""
        case "OPERATOR" if node["type"] == "OPERATOR_NOT":
            return "boolean" if _kind(node["children"][0], types, params) == "boolean" else ""
        case "OPERATOR" if node["type"] in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
            return "boolean" if _kind(node["children"][0], types, params) else ""
    return ""


def _of_literal(literal: Mapping[str, Any]) -> str:
    kind = _OF_LITERAL.get(str(literal.get("kind")), "")
    if kind == "integer" and abs(int(literal["text"])) >= 2**63:
        return ""
    return kind
