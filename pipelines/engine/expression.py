"""One SQL expression of a pipeline: parsed by DuckDB itself, checked against what is allowed, rewritten by spans.

The AST is what `json_serialize_sql` gives; every node carries the byte span of its text, so a rewrite replaces spans and the
author's text stays as written everywhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.connection import literal
from pipelines.engine.functions import ALL_AGGREGATES, ROW_FUNCTIONS, WINDOW_AGGREGATES, WORDS_INSTEAD
from pipelines.engine.growth import unbounded

_PREFIX = "SELECT "
DEPTH_MAX = 128  # levels: what walks a tree, here and in DuckDB, walks it by recursion
_ALLOWED = frozenset(
    {"FUNCTION", "COLUMN_REF", "PARAMETER", "CONSTANT", "CAST", "CASE", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN"}
)
_REFUSED = {
    "SUBQUERY": "a subquery is not allowed: an expression sees one row",
    "WINDOW": "OVER is not allowed: it would see only this batch, silently",
    "STAR": "* is not allowed here: name the columns",
    "LAMBDA": "a lambda is not allowed",
}
_CAST_TYPES = frozenset(
    {"BOOLEAN", "BIGINT", "INTEGER", "DOUBLE", "VARCHAR", "TIMESTAMP", "SMALLINT", "TINYINT", "FLOAT", "DECIMAL"}
    | {"BOOL", "INT", "HUGEINT", "REAL", "NUMERIC", "TEXT", "STRING", "DATE", "TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"}
    | {"BLOB", "INTERVAL"}
)


_TOKEN = re.compile(r"""\b[eExX]'|'(?:[^']|'')*'|"(?:[^"]|"")*"|--|/\*|;|\$\w*\$|[()]""")
_DISTINCT = re.compile(r"\A\s*distinct\b", re.IGNORECASE)
_DISTINCT_CALL = re.compile(r"(count\s*\(\s*)?\bdistinct(?=\s*\()", re.IGNORECASE)  # on its own a keyword to DuckDB
_DISTINCT_NAME = "_tw_dist"  # as long, so that places stay
_FILTER = re.compile(r"\s*filter\s*\(\s*(?:where\s)?(.*)\)\s*\Z", re.IGNORECASE | re.DOTALL)
_SEPARATOR = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[()\[\],]""")
_REFUSED_TOKENS = {
    "--": "YAML comments start with #",
    "/*": "YAML comments start with #",
    ";": "write one expression",
    "e'": "write text in 'single quotes', without escapes",
    "x'": "write text in 'single quotes', without escapes",
}


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` of the expression's UTF-8 text."""

    start: int
    end: int

    def __contains__(self, other: Span) -> bool:
        return self.start <= other.start and other.end <= self.end


@dataclass(frozen=True)
class Call:
    """An aggregate call: `name(argument)rest`, where `rest` is its FILTER clause or nothing; `label` is the author's text.
    `arguments` and `condition` are the same in pieces, as the author wrote them."""

    label: str
    name: str
    span: Span
    argument: str
    rest: str
    distinct: bool
    arguments: tuple[str, ...] = ()
    condition: str = ""

    @property
    def text(self) -> str:
        return f"{self.name.removesuffix('_star')}({self.argument}){self.rest}"


@dataclass(frozen=True)
class Expression:
    """A parsed expression and the place it stands at, for messages. Build with `parse`."""

    text: str
    path: str
    tree: Mapping[str, Any]

    @cached_property
    def columns(self) -> list[tuple[tuple[str, ...], Span]]:
        """Every column reference: its dotted words and its span."""
        return [(tuple(n["column_names"]), _span(n)) for n in _walk(self.tree) if n.get("class") == "COLUMN_REF"]

    @cached_property
    def params(self) -> list[tuple[str, Span]]:
        """Every `$name`."""
        return [(n["identifier"], _span(n)) for n in _walk(self.tree) if n.get("class") == "PARAMETER"]

    def aggregates(self, replacements: Mapping[Span, str] | None = None) -> list[Call]:
        """The aggregate calls in text order, with spans inside them replaced. None stands within another."""
        found = [n for n in _walk(self.tree) if n.get("class") == "FUNCTION" and n["function_name"] in ALL_AGGREGATES]
        return sorted((self._call(node, replacements or {}) for node in found), key=lambda call: call.span.start)

    def columns_outside_aggregates(self) -> set[str]:
        calls = self.aggregates()
        return {names[0] for names, span in self.columns if not any(span in call.span for call in calls)}

    def replace_calls(self, calls: Mapping[Span, str], replacements: Mapping[Span, str]) -> str:
        """The text with whole calls replaced, and what stands outside of them."""
        outside = {span: text for span, text in replacements.items() if not any(span in call for call in calls)}
        return self.replace({**calls, **outside})

    def replace(self, replacements: Mapping[Span, str]) -> str:
        """The text with each span replaced; spans do not overlap."""
        data, out, at = self.text.encode(), [], 0
        for span in sorted(replacements, key=lambda s: s.start):
            out += [data[at : span.start].decode(), replacements[span]]
            at = span.end
        return "".join(out) + data[at:].decode()

    def problem(self, message: str, hint: str = "") -> Problem:
        return Problem(message, self.path, hint)

    def _cut(self, span: Span) -> str:
        return self.text.encode()[span.start : span.end].decode()

    def _call(self, node: Mapping[str, Any], replacements: Mapping[Span, str]) -> Call:
        span = _span(node)
        inner = {Span(s.start - span.start, s.end - span.start): text for s, text in replacements.items() if s in span}
        text = Expression(self._cut(span), self.path, {}).replace(inner)
        argument, rest = _split_call(text)
        arguments, condition = tuple(_split_arguments(_DISTINCT.sub("", argument))), ""
        distinct = bool(node["distinct"])
        if len(node["arguments"]) == 1 and not distinct and argument.strip() != "*":
            argument = f"TRY({argument})"  # an error on a row counts as NULL there, and never fails the batch
        if found := _FILTER.match(rest):
            condition = found[1]
            rest = f" FILTER (WHERE TRY({condition}))"
        return Call(self._cut(span), node["function_name"], span, argument, rest, distinct, arguments, condition)


def parse(engine: duckdb.DuckDBPyConnection, text: str, path: str, aggregates: frozenset[str] = frozenset()) -> Expression:
    """Parse and check. `aggregates` are the aggregate functions allowed here. Raises `SpecError` at `path`."""
    for token in _TOKEN.findall(text):
        if token.strip().lower() in _REFUSED_TOKENS or token.startswith("$"):
            hint = _REFUSED_TOKENS.get(token.strip().lower(), "write text in 'single quotes'")
            raise SpecError([Problem(f"{token.strip()} is not allowed in an expression", path, hint)])
    readable = _DISTINCT_CALL.sub(lambda found: found[0] if found[1] else _DISTINCT_NAME, text)
    ((raw,),) = engine.execute("SELECT json_serialize_sql(?)", [_PREFIX + readable]).fetchall()
    try:
        parsed = json.loads(raw.replace(_DISTINCT_NAME, "distinct"))
    except RecursionError:
        raise _too_deep(path) from None
    if parsed["error"]:
        if "expression depth" in parsed["error_message"]:
            raise _too_deep(path)
        raise SpecError([Problem(_parser_message(parsed["error_message"]), path, _parser_hint(text))])
    node = parsed["statements"][0]["node"] if len(parsed["statements"]) == 1 else {}
    extras = ("where_clause", "having", "qualify", "sample")
    plain = node.get("type") == "SELECT_NODE" and len(node["select_list"]) == 1 and not any(node[k] for k in extras)
    if not plain or node["from_table"]["type"] != "EMPTY" or node["modifiers"] or node["group_expressions"]:
        raise SpecError(
            [Problem("this is not one expression", path, "write what would stand between SELECT and FROM, without commas")]
        )
    tree = node["select_list"][0]
    if _depth(tree) > DEPTH_MAX or _depth_of_brackets(text) > DEPTH_MAX:
        raise _too_deep(path)
    if tree.get("alias"):
        raise SpecError([Problem("AS is not allowed: the key on the left is the name", path, "remove `AS ...`")])
    expression = Expression(text, path, tree)
    problems = list(_check(expression, aggregates))
    if problems:
        raise SpecError(problems)
    return expression


def _too_deep(path: str) -> SpecError:
    hint = "give parts of it a name with derive: in steps before; a long chain of + or || counts a level per term"
    return SpecError([Problem(f"nested too deep: more than {DEPTH_MAX} levels", path, hint)])


def _depth(tree: Mapping[str, Any]) -> int:
    """How many nodes stand within each other."""
    deepest, left = 0, [(0, list[Any]([tree]))]
    while left:
        depth, values = left.pop()
        for value in values:
            if isinstance(value, Mapping):
                here = depth + ("class" in value)
                deepest = max(deepest, here)
                left.append((here, list(value.values())))
            elif isinstance(value, list):
                left.append((depth, value))
    return deepest


def _depth_of_brackets(text: str) -> int:
    depth = deepest = 0
    for sign in _TOKEN.findall(text):
        depth += (sign == "(") - (sign == ")")
        deepest = max(deepest, depth)
    return deepest


def param_replacements(expression: Expression, params: Mapping[str, Any]) -> dict[Span, str]:
    """What to put for each `$name`. Raises `SpecError` for a name that is no parameter."""
    problems = [
        expression.problem(f"there is no parameter ${name}{did_you_mean(name, params)}", "declare it under params:")
        for name, _ in expression.params
        if name not in params
    ]
    if problems:
        raise SpecError(problems)
    return {span: literal(params[name]) for name, span in expression.params}


def _check(expression: Expression, aggregates: frozenset[str]) -> Iterator[Problem]:
    nested = 0
    for node in _walk(expression.tree):
        kind = node.get("class")
        if kind is None or kind == "TYPE":
            continue
        if kind not in _ALLOWED:
            yield expression.problem(_REFUSED.get(kind, f"{kind.lower()} is not allowed in an expression"))
        elif kind == "FUNCTION":
            yield from _check_function(expression, node, aggregates)
            nested += node["function_name"] in aggregates and any(
                n.get("class") == "FUNCTION" and n["function_name"] in ALL_AGGREGATES for n in _walk(node) if n is not node
            )
        elif kind == "CAST" and str(node["type_expr"].get("type_name")).upper() not in _CAST_TYPES:
            yield expression.problem(
                f"a cast to {node['type_expr'].get('type_name')} is not allowed", f"cast to {', '.join(sorted(_CAST_TYPES))}"
            )
    if why := unbounded(expression.tree):
        yield expression.problem(why, "shorten the text before, or do it where the data is read")
    if nested:
        yield expression.problem("an aggregate within an aggregate is not allowed")


def _check_function(expression: Expression, node: Mapping[str, Any], aggregates: frozenset[str]) -> Iterator[Problem]:
    name = node["function_name"]
    if name in aggregates:
        if node["order_bys"]["orders"]:
            yield expression.problem(f"ORDER BY within {name}() is not allowed")
        if aggregates is WINDOW_AGGREGATES:
            if node["distinct"] and name != "count":
                yield expression.problem(f"DISTINCT is not allowed within {name}()", "count(distinct x) is")
            return
        arguments = [argument["expression"] for argument in node["arguments"]]
        plain = all(a.get("class") in ("COLUMN_REF", "CONSTANT", "PARAMETER") for a in arguments)
        if (node["distinct"] or len(arguments) > 1) and not plain:
            yield expression.problem(f"here {name}() takes plain columns", "derive the value in a step before")
    elif name in ALL_AGGREGATES:
        hint = (
            f"here: {', '.join(sorted(aggregates - {'count_star', 'mean'}))}"
            if aggregates
            else "aggregates belong in windows: and triggers:"
        )
        yield expression.problem(f"the aggregate {name}() is not allowed here", hint)
    elif node["schema"] or node["catalog"]:
        yield expression.problem(f"{node['schema']}.{name}() is not allowed: write the function's plain name")
    elif name not in ROW_FUNCTIONS:
        why = WORDS_INSTEAD.get(name, "it is not on the list of functions that give the same result for a row everywhere")
        yield expression.problem(f"{name}() is not allowed{did_you_mean(name, ROW_FUNCTIONS)}", why)


def _walk(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every AST node below `tree`, itself included, parents first."""
    if isinstance(tree, Mapping):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _walk(value)


def _split_call(text: str) -> tuple[str, str]:
    """`max(f(x)) filter (..)` -> (`f(x)`, ` filter (..)`); brackets within quotes do not count."""
    depth = start = 0
    for token in _TOKEN.finditer(text):
        if token[0] == "(":
            start = start or token.end()
            depth += 1
        elif token[0] == ")":
            depth -= 1
            if depth == 0:
                return text[start : token.start()], text[token.end() :]
    return text[start:], ""


def _split_arguments(text: str) -> Iterator[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    depth = start = 0
    for token in _SEPARATOR.finditer(text):
        if token[0] in "([":
            depth += 1
        elif token[0] in ")]":
            depth -= 1
        elif token[0] == "," and not depth:
            yield text[start : token.start()].strip()
            start = token.end()
    yield text[start:].strip()


def _span(node: Mapping[str, Any]) -> Span:
    start = int(node["query_location"]) - len(_PREFIX)
    return Span(start, start + int(node["query_location_length"]))


def _parser_message(message: str) -> str:
    first = message.strip().splitlines()[0]
    return "not an expression: " + re.sub(r"^(Parser Error: )", "", first)


def _parser_hint(text: str) -> str:
    if text.count("'") % 2 or text.count("(") != text.count(")"):
        return "a comma ends a {..} entry and ` #` starts a comment in YAML: put the expression in quotes or on its own line"
    return "expressions are SQL (DuckDB's dialect): text in 'single quotes', = to compare, and/or/not"
