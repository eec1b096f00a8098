"""compile_plan: every expression of a pipeline bound and typed before anything ships, by the same code everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

import duckdb
import pyarrow as pa

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.language.sinks import Sink
from pipelines.contract.language.sources import Source
from pipelines.contract.language.steps import Step
from pipelines.contract.language.triggers import Trigger
from pipelines.contract.language.windows import Window
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec import PipelineSpec, load_spec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine import enforce
from pipelines.engine.aggregate import NUMERIC, over_span
from pipelines.engine.connection import literal, open_engine, quote
from pipelines.engine.decode import META
from pipelines.engine.enforce import SQL_TYPES
from pipelines.engine.expression import Call, Expression, Span, param_replacements, parse
from pipelines.engine.functions import AGGREGATES, SPAN_AGGREGATES
from pipelines.engine.ipc import TIMESTAMP
from pipelines.engine.statement import Statement
from pipelines.engine.transform import BoundStep, stateless_sql
from pipelines.engine.trigger import SPAN, TriggerPlan
from pipelines.engine.window import Part, WindowPlan, parts_of, window_fields

ARROW_TYPES = {
    "BOOLEAN": pa.bool_(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "TIMESTAMP": TIMESTAMP,
}
T = TypeVar("T")
_EXAMPLE_VALUE: dict[str, Scalar] = {"boolean": False, "integer": 0, "double": 0.0, "string": ""}


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
class SourcePlan:
    spec: Source
    stateless: Statement
    delimiter: str | None  # None: JSON lines
    csv_fields: tuple[tuple[str, str], ...]
    meta: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A pipeline ready to run on one node with one set of parameters. `columns` are those of an accepted row, with SQL types."""

    spec: PipelineSpec
    params: Mapping[str, Scalar]
    engine: duckdb.DuckDBPyConnection
    sources: Mapping[str, SourcePlan]
    columns: Mapping[str, str]
    windows: Mapping[str, WindowPlan]
    triggers: Mapping[str, TriggerPlan]

    @cached_property
    def row_schema(self) -> pa.Schema:
        """What a row stream carries: `_event_time` and the columns."""
        return pa.schema([("_event_time", TIMESTAMP), *((name, ARROW_TYPES[t]) for name, t in self.columns.items())])


def check_spec(spec: PipelineSpec) -> None:
    """Raise `SpecError` with every problem and its place, unless the pipeline compiles."""
    compile_plan(spec, example_params(spec))


def load_checked(text: str, file: str = "") -> PipelineSpec:
    """The pipeline in `text`. Raises `SpecError` with every problem found: shape first, then what expressions mean."""
    spec = load_spec(text, file)
    check_spec(spec)
    return spec


def example_params(spec: PipelineSpec) -> dict[str, Scalar]:
    """The defaults, and some value of the right type where there is none: enough to bind every expression."""
    return {name: p.default if p.default is not None else _EXAMPLE_VALUE[p.type] for name, p in spec.params.items()}


def compile_plan(spec: PipelineSpec, params: Mapping[str, Scalar] | None = None, node: NodeFacts | None = None) -> Plan:
    """Bind a pipeline. `params` default to the declared defaults. Raises `SpecError`."""
    values = dict(params) if params is not None else spec.defaults()
    unset = [name for name in spec.params if values.get(name) is None]
    if unset:
        raise SpecError(
            [
                spec.locate(Problem("has no value", f"params.{name}", f"set it: tidewire set {spec.pipeline} {name}=..."))
                for name in unset
            ]
        )
    compiler = _Compiler(spec, values, node or NodeFacts())
    plan = compiler.compile()
    if compiler.problems:
        raise SpecError(sorted((spec.locate(p) for p in compiler.problems), key=lambda p: (p.line, p.column)))
    return plan


class _Compiler:
    def __init__(self, spec: PipelineSpec, params: Mapping[str, Scalar], node: NodeFacts) -> None:
        self.spec, self.params, self.node = spec, params, node
        self.engine = open_engine()
        self.problems: list[Problem] = []
        self.meta: set[str] = set(enforce.meta_words(list(spec.schema_.values())))
        self.columns: dict[str, str] = {name: SQL_TYPES[f.type] for name, f in spec.schema_.items()}

    def compile(self) -> Plan:
        self._check_meta_fields()
        self._check_formats()
        steps = [self._step(i, step) for i, step in enumerate(self.spec.steps)]
        windows = {name: bound for name, w in self.spec.windows.items() if (bound := self._window(name, w))}
        triggers = {name: alarm for name, t in self.spec.triggers.items() if (alarm := self._trigger(name, t))}
        wheres = {name: w for name, s in self.spec.sinks.items() if not s.from_ and (w := self._sink_where(name, s))}
        sources = {name: self._source(source, steps, wheres) for name, source in self.spec.sources.items()}
        plan = Plan(self.spec, self.params, self.engine, sources, dict(self.columns), windows, triggers)
        if not self.problems:
            self._try_statements(plan)
        return plan

    # -- the parts of a pipeline ------------------------------------------------------------------------------------------------

    def _check_meta_fields(self) -> None:
        for name, f in self.spec.schema_.items():
            word = (f.from_ or "").removeprefix("meta.")
            if f.from_ and f.from_.startswith("meta.") and word not in META:
                self._complain(
                    f"schema.{name}.from", f"there is no meta.{word}{did_you_mean(word, META)}", f"known: {', '.join(META)}"
                )
                self.meta.discard(word)

    def _check_formats(self) -> None:
        for name, f in self.spec.schema_.items():
            try:
                self.engine.execute(f"SELECT try_strptime('', {literal(f.format or '%Y')})").fetchall()
            except duckdb.Error as error:
                self._complain(f"schema.{name}.format", _first_line(error), "use %Y %m %d %H %M %S %f %z and the like")

    def _step(self, index: int, step: Step) -> BoundStep:
        path = f"steps[{index}]"
        if step.filter is not None:
            sql, _ = self._bind(step.filter, f"{path}.filter", self.columns, must_be="BOOLEAN")
            return BoundStep(step, index, (("", sql, "BOOLEAN"),))
        bound: list[tuple[str, str, str]] = []
        for name, text in (step.derive or step.enrich or {}).items():
            place = f"{path}.{'derive' if step.derive else 'enrich'}.{name}"
            if name.lower() in (c.lower() for c in self.columns):
                self._complain(
                    place,
                    f'there is a column "{name}" already',
                    "choose another name: a step adds columns, it does not replace them",
                )
                continue
            sql, type_ = self._bind(text, place, self.columns) if step.derive else (self._fact(text, place), "VARCHAR")
            self.columns[name] = type_
            bound.append((name, sql, type_))
        return BoundStep(step, index, tuple(bound), constant=step.enrich is not None)

    def _fact(self, text: str, path: str) -> str:
        words = text.split(".")
        if words[0] != "node" or len(words) < 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", w) for w in words):
            self._complain(path, f'"{text}" is no fact of the node', "write node.name, node.<label> or node.facts.<fact>")
            return "NULL"
        return f"CAST({literal(self.node.look_up(words[1:]))} AS VARCHAR)"

    def _source(self, source: Source, steps: Sequence[BoundStep], wheres: Mapping[str, str]) -> SourcePlan:
        csv, meta = source.decode.csv, tuple(sorted(self.meta))
        feeds: list[tuple[str, str]] = []
        structure: str | None = None
        if csv:
            fields, feeds = enforce.csv_fields(self.spec.schema_)
        else:
            fields, structure = enforce.json_fields(self.spec.schema_)
        sql = stateless_sql(fields, structure, steps, self.columns, self.spec.event_time, meta, wheres)
        return SourcePlan(source, Statement(self.engine, sql, "_in"), csv.delimiter if csv else None, tuple(feeds), meta)

    def _window(self, name: str, window: Window) -> WindowPlan | None:
        path, before = f"windows.{name}", len(self.problems)
        self._check_by(window.by, f"{path}.by")
        where = self._bind(window.where, f"{path}.where", self.columns, must_be="BOOLEAN")[0] if window.where else ""
        parts: list[Part] = []
        select = [self._aggregate(text, f"{path}.select.{column}", window.by, parts) for column, text in window.select.items()]
        if len(self.problems) > before:
            return None
        part_types = [self._arrow_type(part.sql, path) for part in parts]
        if len(self.problems) > before:
            return None
        over_parts = {f"_p{i}": self._type_of(p.sql, self.columns, path, raw=True) for i, p in enumerate(parts)} | self.columns
        typed = [
            (c, sql, self._type_of(sql, over_parts, f"{path}.select.{c}")) for c, sql in zip(window.select, select, strict=True)
        ]
        if len(self.problems) > before:
            return None
        by = {column: ARROW_TYPES[self.columns[column]] for column in window.by}
        schema = window_fields(by, {c: ARROW_TYPES[t] for c, _, t in typed})
        definition = self._definition("windows", name)
        sinks = {n: w for n, s in self.spec.sinks.items() if s.from_ == name and (w := self._sink_where(n, s, schema))}
        return WindowPlan(
            self.engine,
            name,
            window,
            definition,
            tuple(parts),
            tuple(typed),
            where,
            tuple(part_types),
            tuple(by.values()),
            schema,
            sinks,
        )

    def _aggregate(self, text: str, path: str, by: Sequence[str], parts: list[Part]) -> str:
        """The SQL of one `select` entry over parts, which are appended to `parts`."""
        hint = f"write one of {', '.join(sorted(AGGREGATES - {'count_star', 'mean'}))}"
        expression = self._over_rows(text, path, by, AGGREGATES, "a window's column is an aggregate", hint)
        if expression is None:
            return "NULL"
        replacements = self._replacements(expression, self.columns)
        final: dict[Span, str] = {}
        for call in expression.aggregates(replacements):
            made, value = parts_of(call, self._argument_type(call, path))
            final[call.span] = "(" + value.format(*(f"_p{len(parts) + i}" for i in range(len(made)))) + ")"
            parts += made
        return expression.replace_calls(final, replacements)

    def _trigger(self, name: str, trigger: Trigger) -> TriggerPlan | None:
        path, before = f"triggers.{name}", len(self.problems)
        self._check_by(trigger.by, f"{path}.by")
        aggregates: list[tuple[str, str]] = []
        used: set[str] = set()
        when = self._condition(trigger.when, f"{path}.when", trigger.by, aggregates, used)
        clear = f"NOT ({when})"
        if trigger.clear_when:
            clear = self._condition(trigger.clear_when, f"{path}.clear_when", trigger.by, aggregates, used)
        self._check_message(trigger, f"{path}.message")
        if len(self.problems) > before:
            return None
        kept = tuple(column for column in [*self.columns, *(f"_meta_{word}" for word in META)] if column.lower() in used)
        definition = self._definition("triggers", name, kept)
        node = self.node.name or self.node.id
        return TriggerPlan(
            self.engine, name, self.spec.pipeline, node, trigger, definition, kept, tuple(aggregates), when, clear, self.params
        )

    def _condition(self, text: str, path: str, by: Sequence[str], aggregates: list[tuple[str, str]], used: set[str]) -> str:
        """The SQL of a condition over `_a<i>`; its aggregates are appended to `aggregates`, the columns it reads to `used`."""
        hint = "use an aggregate: max(temp_c) > 80, or count(*) filter (where ...) >= 4"
        expression = self._over_rows(text, path, by, SPAN_AGGREGATES, "a condition looks at the rows of the span", hint)
        if expression is None:
            return "NULL"
        replacements = self._replacements(expression, self.columns)
        self._type_of(expression.replace(replacements), self.columns, path, must_be="BOOLEAN")
        used |= {("_meta_" + words[1] if words[0] == "meta" else words[0]).lower() for words, _ in expression.columns}
        final: dict[Span, str] = {}
        for call in expression.aggregates(replacements):
            final[call.span] = f"_a{len(aggregates)}"
            aggregates.append((call.label, over_span(call, SPAN, self._argument_type(call, path))))
        return expression.replace_calls(final, replacements)

    def _over_rows(
        self, text: str, path: str, by: Sequence[str], allowed: frozenset[str], what: str, hint: str
    ) -> Expression | None:
        """A checked expression of aggregates over rows, None when it has a problem."""
        before = len(self.problems)
        expression = self._parse(text, path, allowed)
        if expression is None:
            return None
        if not expression.aggregates():
            self._complain(path, what, hint)
        self._check_outside(expression, by)
        self._replacements(expression, self.columns)
        return expression if len(self.problems) == before else None

    def _argument_type(self, call: Call, path: str) -> str:
        if call.distinct or call.name not in NUMERIC:
            return ""
        return self._type_of(call.argument, self.columns, path, raw=True)

    def _check_message(self, trigger: Trigger, path: str) -> None:
        known = {*trigger.by, *self.spec.params, "count", "node"}
        for word in re.findall(r"\{([^{}]*)\}", trigger.message):
            if word not in known:
                self._complain(
                    path,
                    f"there is nothing to fill {{{word}}} with{did_you_mean(word, known)}",
                    f"known here: {', '.join(sorted(known))}",
                )

    def _sink_where(self, name: str, sink: Sink, window: pa.Schema | None = None) -> str:
        """The condition of a sink over the rows, or over those of its window; "" for all."""
        columns = self.columns if window is None else {f.name: _sql_type(f.type) for f in window}
        return self._bind(sink.where, f"sinks.{name}.where", columns, must_be="BOOLEAN")[0] if sink.where else ""

    def _definition(self, part: Literal["windows", "triggers"], name: str, kept: Sequence[str] = ()) -> str:
        """Identity of state: it is carried over between versions while this stays the same (design, section 6)."""
        return sha256(self.spec.definition(part, name) + canonical_json(list(kept)))[7:23]

    def _try_statements(self, plan: Plan) -> None:
        """Bind the statements whole: what every part allowed must also go together."""
        from pipelines.engine.run import dry_run

        try:
            dry_run(plan)
        except duckdb.Error as error:
            self._complain(
                "",
                f"the pipeline does not compile: {_first_line(error)}",
                "this is a defect of Tidewire: please report it with the file",
            )

    # -- expressions ------------------------------------------------------------------------------------------------------------

    def _bind(self, text: str, path: str, columns: Mapping[str, str], must_be: str = "") -> tuple[str, str]:
        """(SQL, type) of a row expression."""
        expression = self._parse(text, path, frozenset())
        if expression is None or not self._known_columns(expression, columns):
            return "NULL", "VARCHAR"
        before = len(self.problems)
        sql = expression.replace(self._replacements(expression, columns))
        return sql, self._type_of(sql, columns, path, must_be) if len(self.problems) == before else "VARCHAR"

    def _parse(self, text: str, path: str, aggregates: frozenset[str]) -> Expression | None:
        return self._collect(lambda: parse(self.engine, text, path, aggregates))

    def _replacements(self, expression: Expression, columns: Mapping[str, str]) -> dict[Span, str]:
        if not self._known_columns(expression, columns):
            return {}
        found = self._collect(lambda: param_replacements(expression, self.params)) or {}
        for words, span in expression.columns:
            if words[0] == "node" and len(words) > 1:
                found[span] = f"CAST({literal(self.node.look_up(words[1:]))} AS VARCHAR)"
            elif words[0] == "meta" and len(words) == 2 and words[1] in META:
                self.meta.add(words[1])
                found[span] = f"_meta_{words[1]}"
        return found

    def _known_columns(self, expression: Expression, columns: Mapping[str, str]) -> bool:
        known = {name.lower() for name in columns}
        ok = True
        for words, _ in expression.columns:
            if words[0] == "node" and len(words) > 1:
                continue
            if words[0] == "meta" and len(words) == 2 and columns is self.columns:
                if words[1] in META:
                    continue
                self._complain(
                    expression.path, f"there is no meta.{words[1]}{did_you_mean(words[1], META)}", f"known: {', '.join(META)}"
                )
            elif words[0].lower() not in known or len(words) > 1:
                where = "the schema" if expression.path.startswith("steps") else "the rows"
                self._complain(expression.path, f'column "{".".join(words)}" is not in {where}{did_you_mean(words[0], columns)}')
            else:
                continue
            ok = False
        return ok

    def _check_by(self, by: Sequence[str], path: str) -> None:
        for column in by:
            if column not in self.columns:
                self._complain(path, f'column "{column}" is not in the rows{did_you_mean(column, self.columns)}')
            elif self.columns[column] == "TIMESTAMP":
                self._complain(
                    path, f'"{column}" is a timestamp: a group of its own for nearly every row', "group by something that repeats"
                )

    def _check_outside(self, expression: Expression, by: Sequence[str]) -> None:
        columns = {name.lower() for name in self.columns} - {name.lower() for name in by}
        for column in sorted(expression.columns_outside_aggregates()):
            if column.lower() in columns or column == "meta":
                self._complain(
                    expression.path, f'"{column}" stands outside an aggregate', "aggregate it, as in max(..), or add it to by:"
                )

    def _type_of(self, sql: str, columns: Mapping[str, str], path: str, must_be: str = "", *, raw: bool = False) -> str:
        """The storable SQL type of an expression, or DuckDB's own name of it when `raw`."""
        try:
            ((_, type_, *_),) = self.engine.execute(f"DESCRIBE SELECT ({sql}) FROM {self._empty(columns)}").fetchall()
        except duckdb.Error as error:
            self._complain(
                path, _first_line(error), "check the types: || joins text, + adds numbers; cast with CAST(x AS DOUBLE)"
            )
            return "VARCHAR"
        if raw:
            return str(type_)
        storable = _STORABLE.get(re.sub(r"\(.*", "", str(type_)))
        if storable is None:
            self._complain(
                path, f"the result is of type {type_}, which has no column type", f"cast it to one of {', '.join(ARROW_TYPES)}"
            )
            return "VARCHAR"
        if must_be and storable != must_be:
            self._complain(path, f"this is a {storable.lower()}, not a condition", "compare with =, <, > or use and, or, not")
        return storable

    def _arrow_type(self, sql: str, path: str) -> pa.DataType:
        try:
            return self.engine.sql(f"SELECT {sql} AS _p FROM {self._empty(self.columns)}").to_arrow_table().schema.field(0).type
        except duckdb.Error as error:
            self._complain(path, _first_line(error), "check the types of what is aggregated")
            return pa.null()

    def _empty(self, columns: Mapping[str, str]) -> str:
        own = {"_et": "BIGINT", "_row": "INTEGER", **{f"_meta_{w}": t for w, t in META.items()}}
        nulls = ", ".join(f"CAST(NULL AS {t}) AS {quote(n)}" for n, t in {**own, **columns}.items())
        return f"(SELECT {nulls} LIMIT 0)"

    def _collect(self, attempt: Callable[[], T]) -> T | None:
        try:
            return attempt()
        except SpecError as error:
            self.problems += error.problems
            return None

    def _complain(self, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, path, hint))


_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
_STORABLE = {
    "BOOLEAN": "BOOLEAN",
    "VARCHAR": "VARCHAR",
    **dict.fromkeys(_INTEGERS, "BIGINT"),
    **dict.fromkeys(("FLOAT", "DOUBLE", "DECIMAL"), "DOUBLE"),
    **dict.fromkeys(
        ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE", "TIMESTAMP WITH TIME ZONE"), "TIMESTAMP"
    ),
}


def _sql_type(type_: pa.DataType) -> str:
    return next((name for name, arrow in ARROW_TYPES.items() if arrow == type_), "VARCHAR")


def _first_line(error: Exception) -> str:
    first = str(error).strip().splitlines()[0]
    return re.sub(r"^(Binder|Catalog|Conversion|Parser|Invalid Input) Error: ", "", first)
