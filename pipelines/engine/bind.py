"""Binder: binds and types the expressions of one pipeline, and collects what is wrong with them.

Expressions are parsed and checked by expression.py; here their names are resolved: columns, `$parameters`, `node.*`, `meta.*`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec import PipelineSpec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.batch import META, meta_column, meta_type
from pipelines.engine.connection import literal, open_engine, quote
from pipelines.engine.expression import Expression, Span, param_replacements, parse
from pipelines.engine.total import is_total
from pipelines.engine.types import storable

T = TypeVar("T")
EXTRA = "_x"  # hidden columns that triggers and windows ask of the last SQL stage


@dataclass(frozen=True)
class NodeFacts:
    """What `node.*` means: `node.id`, `node.name`, `node.labels.x` (short: `node.x`), `node.facts.x`."""

    id: str = ""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def look_up(self, words: Sequence[str]) -> str | None:
        if words[0] in ("id", "name") and len(words) == 1:
            return self.id if words[0] == "id" else self.name
        if words[0] in ("labels", "facts") and len(words) > 1:
            return (self.labels if words[0] == "labels" else self.facts).get(".".join(words[1:]))
        return self.labels.get(".".join(words))


@dataclass(frozen=True)
class Column:
    """A column of the rows: its SQL type, whether it carries what must not leave the node (`sensitive: true`), and whether it is
    known to be NULL in some rows."""

    type: str
    sensitive: bool = False
    nullable: bool = False


Columns = Mapping[str, Column]


@dataclass(frozen=True)
class Bound:
    """An expression, bound: its SQL, the storable type of its value, the columns it reads. `total`: it is a condition that fails
    on no row; `tree` is its syntax then."""

    sql: str
    type: str
    reads: frozenset[str] = frozenset()
    sensitive: bool = False
    total: bool = False
    tree: Mapping[str, Any] = field(default_factory=dict, compare=False)


_NOTHING = Bound("NULL", "VARCHAR")


class Binder:
    """`meta` are the words of `meta.*` in use; `extras` the hidden columns asked for, name -> (SQL, type)."""

    def __init__(
        self,
        spec: PipelineSpec,
        params: Mapping[str, Scalar],
        node: NodeFacts,
        secrets: Mapping[str, str] | None = None,
        lookups: Mapping[str, pa.Table | None] | None = None,
    ) -> None:
        self.spec, self.params, self.node = spec, params, node
        self.secrets, self.lookups = secrets, lookups  # None: not on a node, only checked
        self.engine = open_engine()
        self.problems: list[Problem] = []
        self.meta: set[str] = set()
        self.extras: dict[str, tuple[str, str]] = {}

    # -- row expressions

    def row(self, text: str, path: str, columns: Columns, must_be: str = "", *, meta: bool = True) -> Bound:
        """A row expression over `columns`; with problems, one that is NULL."""
        expression = self.parse(text, path, frozenset())
        if expression is None or not self.known_columns(expression, columns, meta=meta):
            return _NOTHING
        before = len(self.problems)
        sql = expression.replace(self.replacements(expression, columns, meta=meta))
        type_ = self.type_of(sql, columns, path, must_be) if len(self.problems) == before else ""
        reads = self.reads(expression, columns)
        if len(self.problems) > before:
            return _NOTHING
        types = {name.lower(): column.type for name, column in columns.items()}
        total = is_total(expression.tree, types, self.params)
        return Bound(sql, type_, reads, self.is_sensitive(reads, columns), total, expression.tree if total else {})

    def hidden(self, sql: str, columns: Columns, path: str = "") -> str:
        """The hidden column that holds `sql` over the final columns, in rows that are alive; NULL where it errors."""
        for name, (known, _) in self.extras.items():
            if known == sql:
                return name
        name = f"{EXTRA}{len(self.extras)}"
        self.extras[name] = (sql, self.type_of(sql, columns, path, raw=True))
        return name

    # -- expressions over several rows

    def aggregate_expression(
        self, text: str, path: str, columns: Columns, by: Sequence[str], allowed: frozenset[str], what: str, hint: str
    ) -> Expression | None:
        """A checked expression of aggregates over rows, None when it has a problem. `what` is said of one without aggregates."""
        before = len(self.problems)
        expression = self.parse(text, path, allowed)
        if expression is None:
            return None
        if not expression.aggregates():
            self.complain(path, what, hint)
        self._check_outside(expression, columns, by)
        self.replacements(expression, columns)
        return expression if len(self.problems) == before else None

    def check_by(self, by: Sequence[str], path: str, columns: Columns) -> None:
        for column in by:
            if column not in columns:
                self.complain(path, f'column "{column}" is not in the rows{did_you_mean(column, columns)}')
            elif columns[column].type == "TIMESTAMP":
                message = f'"{column}" is a timestamp: a group of its own for nearly every row'
                self.complain(path, message, "group by something that repeats")

    def _check_outside(self, expression: Expression, columns: Columns, by: Sequence[str]) -> None:
        inside_only = {name.lower() for name in columns} - {name.lower() for name in by}
        for column in sorted(expression.columns_outside_aggregates()):
            if column.lower() in inside_only or column == "meta":
                hint = "aggregate it, as in max(..), or add it to by:"
                self.complain(expression.path, f'"{column}" stands outside an aggregate', hint)

    # -- names

    def parse(self, text: str, path: str, aggregates: frozenset[str] = frozenset()) -> Expression | None:
        return self.collect(lambda: parse(self.engine, text, path, aggregates))

    def replacements(self, expression: Expression, columns: Columns, *, meta: bool = True) -> dict[Span, str]:
        """What to put for parameters, `node.*` and `meta.*`; empty when a name is unknown."""
        if not self.known_columns(expression, columns, meta=meta):
            return {}
        found = self.collect(lambda: param_replacements(expression, self.params)) or {}
        for words, span in expression.columns:
            if _is_fact(words, columns):
                found[span] = f"CAST({literal(self.node.look_up(words[1:]))} AS VARCHAR)"
            elif _is_meta(words, columns) and meta:
                word = ".".join(words[1:])
                self.meta.add(word)
                found[span] = quote(meta_column(word))
        return found

    def known_columns(self, expression: Expression, columns: Columns, *, meta: bool = True) -> bool:
        """Whether every name is known; complains of those that are not. `meta`: whether `meta.*` are among them."""
        known, ok = {name.lower() for name in columns}, True
        for words, _ in expression.columns:
            if words[0].lower() in known and (len(words) == 1 or self._is_struct(words[0], columns)):
                continue
            if _is_fact(words, columns) or (meta and _is_meta(words, columns)):
                continue
            ok = False
            if meta and words[0] == "meta" and len(words) > 1 and "meta" not in columns:
                message = f"there is no meta.{words[1]}{did_you_mean(words[1], META)}"
                self.complain(expression.path, message, f"known: {', '.join(META)}")
            else:
                where = "the schema" if expression.path.startswith("steps") else "the rows"
                message = f'column "{".".join(words)}" is not in {where}{did_you_mean(words[0], columns)}'
                self.complain(expression.path, message, f"known: {', '.join(columns)[:200] or 'none'}")
        return ok

    def reads(self, expression: Expression, columns: Columns) -> frozenset[str]:
        """The columns that an expression names, as `columns` spells them."""
        spelt = {name.lower(): name for name in columns}
        return frozenset(spelt[words[0].lower()] for words, _ in expression.columns if words[0].lower() in spelt)

    def is_sensitive(self, reads: frozenset[str], columns: Columns) -> bool:
        return any(columns[name].sensitive for name in reads)

    def _is_struct(self, name: str, columns: Columns) -> bool:
        found = next((column for known, column in columns.items() if known.lower() == name.lower()), None)
        return found is not None and found.type.startswith("STRUCT(")

    # -- types

    def type_of(self, sql: str, columns: Columns, path: str, must_be: str = "", *, raw: bool = False) -> str:
        """The storable SQL type of an expression, or DuckDB's own name of it when `raw`."""
        try:
            ((_, type_, *_),) = self.engine.execute(f"DESCRIBE SELECT ({sql}) FROM {self.empty(columns)}").fetchall()
        except duckdb.Error as error:
            hint = "check the types: || joins text, + adds numbers; cast with CAST(x AS DOUBLE)"
            self.complain(path, first_line(error), hint)
            return "VARCHAR"
        if raw:
            return str(type_)
        kept = storable(str(type_))
        if kept is None:
            message = f"the result is of type {type_}, which has no column type"
            self.complain(path, message, "cast it to BOOLEAN, BIGINT, DOUBLE, DECIMAL, VARCHAR or TIMESTAMP")
            return "VARCHAR"
        if must_be and kept != must_be:
            self.complain(path, f"this is a {kept.lower()}, not a condition", "compare with =, <, > or use and, or, not")
        return kept

    def arrow_type(self, sql: str, columns: Columns, path: str) -> pa.DataType:
        try:
            return self.engine.sql(f"SELECT {sql} AS _p FROM {self.empty(columns)}").to_arrow_table().schema.field(0).type
        except duckdb.Error as error:
            self.complain(path, first_line(error), "check the types of what is aggregated")
            return pa.null()

    def empty(self, columns: Columns) -> str:
        """A table of no rows with these columns and the row's own ones."""
        own = {"_et": "BIGINT", "_row": "INTEGER", **{meta_column(word): meta_type(word) for word in [*META, *self.meta]}}
        types = {**own, **{name: type_ for name, (_, type_) in self.extras.items()}, **{n: c.type for n, c in columns.items()}}
        nulls = ", ".join(f"CAST(NULL AS {type_}) AS {quote(name)}" for name, type_ in types.items())
        return f"(SELECT {nulls} LIMIT 0)"

    # -- problems

    def complain(self, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, path, hint))

    def collect(self, attempt: Callable[[], T]) -> T | None:
        """The result, or None with its problems collected."""
        try:
            return attempt()
        except SpecError as error:
            self.problems += error.problems
            return None


def _is_fact(words: Sequence[str], columns: Columns) -> bool:
    return words[0] == "node" and len(words) > 1 and "node" not in columns


def _is_meta(words: Sequence[str], columns: Columns) -> bool:
    known = len(words) == 3 or (len(words) == 2 and words[1] in META)  # meta.topic.machine, meta.quality
    return words[0] == "meta" and known and "meta" not in columns


def first_line(error: Exception) -> str:
    """A DuckDB error in one line, without its class."""
    first = str(error).strip().splitlines()[0]
    return re.sub(r"^(Binder|Catalog|Conversion|Parser|Invalid Input) Error: ", "", first)
