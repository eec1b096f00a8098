"""How long the value of an expression can get, told from its syntax tree: what grows without bound is refused before it ships.

A value of `|| [..] replace` and the like has at most `factor` times the bytes of each column it names plus a constant. A product
of two columns, as in `replace(a, 'x', b)`, has no such factor: two texts of 256 KiB would make one of 64 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

FACTOR_MAX = 64
CONSTANT_MAX = 64 * 1024
PADDED_MAX = 1024  # characters that lpad and rpad may fill up to
_NUMBER = 64.0  # bytes, more than any number or time has as text

_LONGER = {  # functions of one text: how much longer at most
    **dict.fromkeys(("hex", "to_hex", "to_base64", "base64", "regexp_escape"), 2),
    **dict.fromkeys(("lower", "lcase", "upper", "ucase", "nfc_normalize", "url_encode"), 3),
    "translate": 4,
    **dict.fromkeys(("bin", "to_binary"), 8),
    **dict.fromkeys(("string_split", "str_split", "split", "string_to_array", "regexp_split_to_array", "str_split_regex"), 24),
    **dict.fromkeys(("string_split_regex", "regexp_extract_all", "json_keys", "parse_path"), 24),
}
_SUMS = frozenset(
    {"||", "concat", "list_value", "struct_pack", "overlay", "greatest", "least", "if", "ifnull", "nullif"}
    | {"list_concat", "list_cat", "array_concat", "array_cat", "constant_or_null", "coalesce"}
)
_PRODUCTS = frozenset({"replace", "regexp_replace"})
_PATHS = frozenset({"json_extract_string", "->>", "json_exists"})
_PADS = frozenset({"lpad", "rpad"})
_SAME = frozenset(
    {"substr", "substring", "left", "right", "ltrim", "rtrim", "trim", "reverse", "split_part", "regexp_extract", "url_decode"}
    | {"strip_accents", "from_base64", "unhex", "from_hex", "encode", "decode", "json_extract_string", "->>", "list_sort"}
    | {"list_reverse_sort", "list_slice", "array_slice", "list_extract", "array_extract", "list_element", "struct_extract"}
    | {"list_first", "list_last", "list_min", "list_max", "list_any_value", "list_aggregate", "list_aggr", "parse_filename"}
    | {"parse_dirname"}
)

_LEAST_ARGUMENTS = {
    **dict.fromkeys([*_SAME, *_LONGER, "concat_ws"], 1),
    **dict.fromkeys([*_PATHS, *_PADS, "array_to_string"], 2),  # after the others: some are in both
    **dict.fromkeys(_PRODUCTS, 3),
}


class Unbounded(Exception):
    """Why a value has no bound."""


Growth = tuple[Mapping[str, float], float]  # (factor by column, constant)
_NONE: Growth = ({}, _NUMBER)


def unbounded(tree: Mapping[str, Any]) -> str:
    """Why an expression may not be evaluated, "" if it may."""
    try:
        for part in _functions(tree):
            factors, constant = _growth(part)
            if max(factors.values(), default=0) > FACTOR_MAX or constant > CONSTANT_MAX:
                return f"a value could get more than {FACTOR_MAX} times as long as a column"
    except Unbounded as why:
        return str(why)
    return ""


def _functions(tree: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if tree.get("class") == "FUNCTION":
        yield tree
    for child in _children(tree):
        yield from _functions(child)


def _growth(node: Mapping[str, Any]) -> Growth:
    kind = node.get("class")
    if kind == "COLUMN_REF":
        return {str(node["column_names"][0]).lower(): 1.0}, 0.0
    if kind == "CONSTANT":
        return {}, float(len(str((node.get("literal") or {}).get("text", "")).encode()))
    if kind == "FUNCTION":
        return _of_function(str(node["function_name"]), [a["expression"] for a in node["arguments"]])
    if kind in ("CASE", "OPERATOR", "CAST"):
        return _sum(map(_growth, _children(node)))
    return _NONE  # conditions, parameters


def _of_function(name: str, arguments: Sequence[Mapping[str, Any]]) -> Growth:
    if len(arguments) < _LEAST_ARGUMENTS.get(name, 0):
        return _NONE  # it does not bind
    if name == "concat_ws":  # the first stands between all others
        between = _growth(arguments[0])
        return _sum([*map(_growth, arguments[1:]), _scaled(between, lambda n: n * len(arguments))])
    if name == "array_to_string":
        return _product("array_to_string", _growth(arguments[0]), _NONE, _growth(arguments[1]))
    if name in _PATHS and "*" in str((arguments[1].get("literal") or {"text": "*"}).get("text", "")):
        raise Unbounded(f"the path in {name}() is a text without *")
    if name in _SUMS:
        return _sum(map(_growth, arguments))
    if name in _PRODUCTS:
        return _product(name, *map(_growth, arguments[:3]))
    if name in _PADS:
        return _padded(name, _growth(arguments[0]), arguments[1])
    if name in _SAME or name in _LONGER:
        return _scaled(_growth(arguments[0]), lambda n: n * _LONGER.get(name, 1))
    if name == "strftime":
        return _scaled(_sum(map(_growth, arguments)), lambda n: n * 16)
    return _NONE


def _sum(parts: Iterable[Growth]) -> Growth:
    factors: dict[str, float] = {}
    constant = 0.0
    for more, fixed in parts:
        constant += fixed
        for column, factor in more.items():
            factors[column] = factors.get(column, 0.0) + factor
    return factors, constant


def _product(name: str, text: Growth, searched: Growth, by: Growth = ({}, 0.0)) -> Growth:
    if by[0] and text[0]:
        raise Unbounded(f"{name}() of one column by another has no bound on its result")
    if by[0]:
        return _scaled(by, lambda n: n * (text[1] + 1))
    found = searched[1] if name == "replace" and not searched[0] else 1.0  # bytes of what is replaced, at least
    times = max(1.0, by[1] / max(found, 1.0)) if name == "replace" else 1.0 + by[1]
    return _scaled(text, lambda n: n * times)


def _padded(name: str, text: Growth, count: Mapping[str, Any]) -> Growth:
    literal = str((count.get("literal") or {}).get("text", ""))
    if not literal.isdigit() or int(literal) > PADDED_MAX:
        raise Unbounded(f"the length in {name}() is a number up to {PADDED_MAX}")
    return _sum([text, ({}, 4.0 * int(literal))])


def _scaled(growth: Growth, by: Callable[[float], float]) -> Growth:
    return {column: by(factor) for column, factor in growth[0].items()}, by(growth[1])


def _children(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The expressions right below."""
    found: list[Mapping[str, Any]] = []
    _collect(list(node.values()), found)
    return [child for child in found if child["class"] != "TYPE"]


def _collect(value: Any, found: list[Mapping[str, Any]]) -> None:
    if isinstance(value, Mapping):
        if "class" in value:
            found.append(value)
        else:
            _collect(list(value.values()), found)
    elif isinstance(value, list):
        for item in value:
            _collect(item, found)
