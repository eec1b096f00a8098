"""Conditions over few values, without a DuckDB statement: simple SQL compiled to Python, exactly as DuckDB sees it.

What is not simple, or what DuckDB might see otherwise (overflow, division by zero, integers beyond 2**53), is left to DuckDB: at
compile time `compile_expressions` gives None, at run time the function raises `Abstain`. A property test compares both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

_SOURCE_MAX = 16_384  # of one expression: and/or in many levels double the text at each
_BRACKETS_MAX = 100  # within each other: Python reads no more than 200, and callers put the source into brackets of their own
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_EXACT_MAX = 2**53  # integers up to it are doubles as well
_COMPARE = {
    "COMPARE_EQUAL": "==",
    "COMPARE_NOTEQUAL": "!=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_LESSTHANOREQUALTO": "<=",
}
# The kinds of values; SMALL are integers that are known to be below 2**53, DECIMAL a literal with a point.
_SMALL, _INTEGER, _DOUBLE, _DECIMAL, _TEXT, _BOOLEAN, _TIME, _NULL = range(8)
_KINDS = {
    **dict.fromkeys(("BIGINT", "HUGEINT"), _INTEGER),
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "COUNT"), _SMALL),
    "DOUBLE": _DOUBLE,
    "VARCHAR": _TEXT,
    "BOOLEAN": _BOOLEAN,
    "TIMESTAMP": _TIME,
}


class Abstain(Exception):
    """DuckDB has to decide."""


class _Code(NamedTuple):
    """A Python expression, None where SQL has NULL; `value` is that of a constant."""

    text: str
    kind: int
    value: Any = None


@dataclass(frozen=True)
class Evaluate:
    """Calls give the values of the expressions for those of the names. `source` is a Python tuple over `_v0`, `_v1`.. and the
    names of `HELPERS`."""

    source: str
    call: Callable[..., tuple[Any, ...]]

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        return self.call(*values)


def compile_expressions(
    engine: duckdb.DuckDBPyConnection, expressions: Sequence[str], names: Mapping[str, str]
) -> Evaluate | None:
    """A function from the values of `names` (name -> SQL type, COUNT for counts), in that order, to those of the expressions."""
    arguments = {name.lower(): _Code(f"_v{i}", _KINDS.get(type_, -1)) for i, (name, type_) in enumerate(names.items())}
    writer = _Writer(arguments)
    try:
        codes = [writer.write(_tree(engine, text)).text for text in expressions]
    except (Abstain, RecursionError):
        return None
    source = f"({', '.join(codes)},)"
    if _brackets(source) > _BRACKETS_MAX:
        return None
    call = eval(f"lambda {', '.join(f'_v{i}' for i in range(len(names)))}: {source}", {**HELPERS})  # noqa: S307 - written above
    return Evaluate(source, call)


def _tree(engine: duckdb.DuckDBPyConnection, text: str) -> Mapping[str, Any]:
    ((raw,),) = engine.execute("SELECT json_serialize_sql(?)", [f"SELECT {text}"]).fetchall()
    tree: Mapping[str, Any] = json.loads(raw)["statements"][0]["node"]["select_list"][0]
    return tree


def _brackets(source: str) -> int:
    """How many brackets stand within each other."""
    depth = deepest = 0
    for sign in _QUOTED.sub("", source):
        depth += (sign == "(") - (sign == ")")
        deepest = max(deepest, depth)
    return deepest


class _Writer:
    def __init__(self, arguments: Mapping[str, _Code]) -> None:
        self.arguments = arguments
        self.temps = 0

    def write(self, node: Mapping[str, Any]) -> _Code:
        code = self._write(node)
        if len(code.text) > _SOURCE_MAX:
            raise Abstain
        return code

    def _write(self, node: Mapping[str, Any]) -> _Code:
        kind = node["class"]
        if kind == "COLUMN_REF" and len(node["column_names"]) == 1:
            code = self.arguments.get(node["column_names"][0].lower())
            if code is None or code.kind < 0:
                raise Abstain
            return code
        if kind == "CONSTANT":
            return _constant(node["literal"])
        if kind == "COMPARISON" and node["type"] in _COMPARE:
            return self._compare(_COMPARE[node["type"]], self.write(node["left"]), self.write(node["right"]))
        if kind == "BETWEEN":
            return self._between(*(self.write(node[part]) for part in ("input", "lower", "upper")))
        if kind == "CONJUNCTION":
            first, *rest = (self._truth(child) for child in node["children"])
            for other in rest:
                first = self._both(first, other) if node["type"] == "CONJUNCTION_AND" else self._either(first, other)
            return first
        if kind == "OPERATOR":
            return self._operator(node["type"], node["children"])
        if kind == "FUNCTION" and node["is_operator"]:
            return self._arithmetic(node["function_name"], [self.write(a["expression"]) for a in node["arguments"]])
        if kind == "CAST" and not node["try_cast"]:
            return self._cast(self.write(node["child"]), node["type_expr"]["type_name"])
        raise Abstain

    def _temp(self) -> str:
        self.temps += 1
        return f"_t{self.temps}"

    def _truth(self, node: Mapping[str, Any]) -> _Code:
        code = self.write(node)
        if code.kind not in (_BOOLEAN, _NULL):
            raise Abstain
        return code

    def _strict(self, codes: Sequence[_Code], form: str, kind: int) -> _Code:
        """`form` over values that are all there, else NULL."""
        temps = [code.text if code.value is not None else self._temp() for code in codes]
        bound = zip(codes, temps, strict=True)
        missing = [f"({temp} := {code.text}) is None" for code, temp in bound if code.value is None]
        value = form.format(*temps)
        return _Code(f"(None if {' or '.join(missing)} else {value})" if missing else value, kind)

    def _compare(self, operator: str, left: _Code, right: _Code) -> _Code:
        if _NULL in (left.kind, right.kind):
            return _Code("None", _BOOLEAN)
        a, b = _alike(left, right)
        if a.kind == _BOOLEAN and operator not in ("==", "!="):
            raise Abstain
        return self._strict((a, b), "({} " + operator + " {})", _BOOLEAN)

    def _between(self, value: _Code, low: _Code, high: _Code) -> _Code:
        temp = self._temp()
        once = value._replace(text=temp)
        code = self._both(self._compare(">=", once, low), self._compare("<=", once, high))
        return _Code(f"(({temp} := {value.text}), {code.text})[1]", _BOOLEAN)

    def _both(self, a: _Code, b: _Code) -> _Code:
        t = self._temp()
        return _Code(
            f"(False if ({t} := {a.text}) is False else {b.text} if {t} else (False if {b.text} is False else None))", _BOOLEAN
        )

    def _either(self, a: _Code, b: _Code) -> _Code:
        t = self._temp()
        return _Code(f"(True if ({t} := {a.text}) else {b.text} if {t} is False else ({b.text} or None))", _BOOLEAN)

    def _operator(self, type_: str, children: Sequence[Mapping[str, Any]]) -> _Code:
        if type_ == "OPERATOR_NOT":
            return self._strict([self._truth(children[0])], "(not {})", _BOOLEAN)
        if type_ in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
            code = self.write(children[0])
            if code.value is not None:
                return _Code(str(type_ == "OPERATOR_IS_NOT_NULL"), _BOOLEAN, type_ == "OPERATOR_IS_NOT_NULL")
            return _Code(f"({code.text} {'is' if type_ == 'OPERATOR_IS_NULL' else 'is not'} None)", _BOOLEAN)
        if type_ in ("COMPARE_IN", "COMPARE_NOT_IN"):
            found = self._in(*(self.write(child) for child in children))
            return found if type_ == "COMPARE_IN" else self._strict([found], "(not {})", _BOOLEAN)
        if type_ == "OPERATOR_COALESCE":
            return self._coalesce([self.write(child) for child in children])
        raise Abstain

    def _in(self, value: _Code, *others: _Code) -> _Code:
        temp = self._temp()
        once = value._replace(text=temp)
        code = self._compare("==", once, others[0])
        for other in others[1:]:
            code = self._either(code, self._compare("==", once, other))
        return _Code(f"(({temp} := {value.text}), {code.text})[1]", _BOOLEAN)

    def _coalesce(self, codes: Sequence[_Code]) -> _Code:
        kinds = {code.kind for code in codes}
        if _DOUBLE in kinds and kinds <= {_DOUBLE, _SMALL, _DECIMAL}:
            codes = [_as_double(code) for code in codes]
        elif len(kinds) > 1:
            raise Abstain
        first, *rest = codes
        for other in rest:
            temp = self._temp()
            first = _Code(f"({temp} if ({temp} := {first.text}) is not None else {other.text})", other.kind)
        return first

    def _arithmetic(self, operator: str, codes: Sequence[_Code]) -> _Code:
        if operator not in ("+", "-", "*", "/") or any(code.kind > _DOUBLE and code.kind != _DECIMAL for code in codes):
            raise Abstain
        if len(codes) == 1:
            if operator != "-" or codes[0].kind == _DECIMAL:
                raise Abstain
            return self._strict(codes, "(-{})", codes[0].kind)
        whole = all(code.kind in (_SMALL, _INTEGER) for code in codes)
        if not whole and not any(code.kind == _DOUBLE for code in codes):
            raise Abstain  # decimals
        if whole and operator != "/":
            return self._strict(codes, "_i({} " + operator + " {})", _SMALL)
        codes = [_as_double(code) for code in codes]
        return self._strict(codes, "_q({}, {})" if operator == "/" else "_f({} " + operator + " {})", _DOUBLE)

    def _cast(self, code: _Code, type_: str) -> _Code:
        if type_ == "DOUBLE" and code.kind in (_SMALL, _INTEGER, _DOUBLE, _DECIMAL):
            return self._strict([_as_double(code)], "{}", _DOUBLE) if code.value is None else _as_double(code)
        if type_ == "BIGINT" and code.kind in (_SMALL, _INTEGER):
            return code
        if type_ == {_TEXT: "VARCHAR", _BOOLEAN: "BOOLEAN"}.get(code.kind):
            return code
        raise Abstain


def _constant(literal: Mapping[str, Any]) -> _Code:
    kind, text = literal["kind"], literal.get("text", "")
    if kind == "NULL":
        return _Code("None", _NULL)
    if kind == "BOOLEAN":
        return _Code(text.capitalize(), _BOOLEAN, text == "true")
    if kind == "STRING":
        return _Code(repr(text), _TEXT, text)
    if kind == "INTEGER":
        value = int(text)
        if abs(value) > _EXACT_MAX:
            raise Abstain
        return _Code(f"({value})", _SMALL, value)
    if kind == "NUMERIC":
        is_double = "e" in text.lower()
        if not is_double and sum(c.isdigit() for c in text) > 15:
            raise Abstain
        return _Code(f"({float(text)!r})", _DOUBLE if is_double else _DECIMAL, float(text))
    raise Abstain


def _alike(a: _Code, b: _Code) -> tuple[_Code, _Code]:
    """Both as the type in which DuckDB compares them."""
    numbers = (_SMALL, _INTEGER, _DOUBLE, _DECIMAL)
    if a.kind in numbers and b.kind in numbers:
        if _DOUBLE in (a.kind, b.kind):
            return _as_double(a), _as_double(b)
        if _DECIMAL in (a.kind, b.kind) and _INTEGER in (a.kind, b.kind):
            raise Abstain
        return a, b
    if a.kind != b.kind:
        raise Abstain
    return a, b


def _as_double(code: _Code) -> _Code:
    if code.kind in (_DOUBLE, _DECIMAL):
        return code._replace(kind=_DOUBLE)
    if code.value is not None:
        return _Code(f"({float(code.value)!r})", _DOUBLE, float(code.value))
    return _Code(f"_d({code.text})", _DOUBLE)


def _double(value: int | None) -> float | None:
    if value is None:
        return None
    if -_EXACT_MAX <= value <= _EXACT_MAX:
        return float(value)
    raise Abstain


def _finite(value: float) -> float:
    if math.isfinite(value):
        return value
    raise Abstain


def _exact(value: int) -> int:
    if -_EXACT_MAX <= value <= _EXACT_MAX:
        return value
    raise Abstain


def _quotient(a: float, b: float) -> float:
    if b == 0:
        raise Abstain
    return _finite(a / b)


HELPERS = {"__builtins__": {}, "_d": _double, "_f": _finite, "_i": _exact, "_q": _quotient}
