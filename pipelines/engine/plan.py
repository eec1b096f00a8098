"""compile_plan: every expression of a pipeline bound and typed before anything ships, by the same code everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import duckdb
import pyarrow as pa

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.language.sinks import Sink
from pipelines.contract.language.triggers import Trigger
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec import PipelineSpec, load_spec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.aggregate import NUMERIC, over_span
from pipelines.engine.bind import Binder, Columns, NodeFacts, first_line
from pipelines.engine.decode import META
from pipelines.engine.exits import check_exits
from pipelines.engine.expression import Call, Span
from pipelines.engine.fate import Fates
from pipelines.engine.functions import SPAN_AGGREGATES
from pipelines.engine.records import RecordsPlan, compile_records, schema_columns
from pipelines.engine.sinks import check_select
from pipelines.engine.stage import Stage, Stages
from pipelines.engine.trigger import SPAN, TriggerPlan
from pipelines.engine.types import TIMESTAMP, stored, to_arrow
from pipelines.engine.window import WindowPlan, compile_window

__all__ = ["NodeFacts", "Plan", "check_spec", "compile_plan", "example_params", "load_checked"]

_EXAMPLE_VALUE: dict[str, Scalar] = {"boolean": False, "integer": 0, "double": 0.0, "string": ""}


@dataclass(frozen=True)
class Plan:
    """A pipeline ready to run on one node with one set of parameters. `columns` are those of an accepted row; `row_wheres` the
    sinks that take some of the accepted rows only."""

    spec: PipelineSpec
    params: Mapping[str, Scalar]
    engine: duckdb.DuckDBPyConnection
    fates: Fates
    records: Mapping[str, RecordsPlan]
    stages: Sequence[Stage]
    columns: Columns
    windows: Mapping[str, WindowPlan]
    triggers: Mapping[str, TriggerPlan]
    row_wheres: Mapping[str, str]
    warnings: Sequence[Problem] = ()  # what compiles and may still not be what was meant

    @cached_property
    def row_schema(self) -> pa.Schema:
        """What a row stream carries: `_event_time` and the columns."""
        return pa.schema([("_event_time", TIMESTAMP), *((name, stored(to_arrow(c.type))) for name, c in self.columns.items())])


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


def compile_plan(
    spec: PipelineSpec,
    params: Mapping[str, Scalar] | None = None,
    node: NodeFacts | None = None,
    *,
    secrets: Mapping[str, str] | None = None,
    lookups: Mapping[str, pa.Table] | None = None,
) -> Plan:
    """Bind a pipeline. `params` default to the declared defaults; `secrets` and `lookups` (tables from files) are those of the
    node: without them the plan checks, but must not run. Raises `SpecError`."""
    values = dict(params) if params is not None else spec.defaults()
    unset = [name for name in spec.params if values.get(name) is None]
    if unset:
        raise SpecError(
            [
                spec.locate(Problem("has no value", f"params.{name}", f"set it: tidewire set {spec.pipeline} {name}=..."))
                for name in unset
            ]
        )
    compiler = _Compiler(Binder(spec, values, node or NodeFacts(), secrets, lookups))
    plan = compiler.compile()
    if compiler.binder.problems:
        raise SpecError(sorted((spec.locate(p) for p in compiler.binder.problems), key=lambda p: (p.line, p.column)))
    return plan


class _Compiler:
    def __init__(self, binder: Binder) -> None:
        self.binder, self.spec = binder, binder.spec
        self.columns: Columns = {}

    def compile(self) -> Plan:
        binder, fates = self.binder, Fates()
        stages = Stages(binder, fates)
        self.columns = stages.add(self.spec.steps, schema_columns(self.spec))
        windows: dict[str, WindowPlan] = {}
        for name, window in self.spec.windows.items():
            if (bound := compile_window(binder, name, window, self.columns, windows)) is not None:
                windows[name] = bound
        triggers = {name: alarm for name, t in self.spec.triggers.items() if (alarm := self._trigger(name, t))}
        outputs = {name: getattr(window, "columns", {}) for name, window in windows.items()}
        check_exits(binder, self.columns, outputs, (self.spec.event_time or "") if stages.time_is_sensitive else "")
        check_select(binder, {None: self.columns, **{name: window.schema.names for name, window in windows.items()}})
        wheres = {
            n: binder.hidden(w, self.columns) for n, s in self.spec.sinks.items() if not s.from_ and (w := self._where(n, s))
        }
        extras = [(name, sql, type_) for name, (sql, type_) in binder.extras.items()]
        records = {n: made for n, s in self.spec.sources.items() if (made := compile_records(binder, n, s)) is not None}
        run = () if binder.problems else stages.finish(extras)
        warnings = [self.spec.locate(problem) for problem in stages.warnings]
        plan = Plan(
            self.spec, binder.params, binder.engine, fates, records, run, self.columns, windows, triggers, wheres, warnings
        )
        if not binder.problems:
            self._try_statements(plan)
        return plan

    def _where(self, name: str, sink: Sink) -> str:
        """The condition of a sink over the rows; "" for all."""
        return self.binder.row(sink.where, f"sinks.{name}.where", self.columns, "BOOLEAN").sql if sink.where else ""

    def _trigger(self, name: str, trigger: Trigger) -> TriggerPlan | None:
        path, before = f"triggers.{name}", len(self.binder.problems)
        self.binder.check_by(trigger.by, f"{path}.by", self.columns)
        aggregates: list[tuple[str, str]] = []
        used: set[str] = set()
        when = self._condition(trigger.when, f"{path}.when", trigger.by, aggregates, used)
        clear = f"NOT ({when})"
        if trigger.clear_when:
            clear = self._condition(trigger.clear_when, f"{path}.clear_when", trigger.by, aggregates, used)
        self._check_message(trigger, f"{path}.message")
        if len(self.binder.problems) > before:
            return None
        kept = tuple(column for column in [*self.columns, *(f"_meta_{word}" for word in META)] if column.lower() in used)
        definition = self._definition("triggers", name, kept)
        node = self.binder.node.name or self.binder.node.id
        return TriggerPlan(
            self.binder.engine,
            name,
            self.spec.pipeline,
            node,
            trigger,
            definition,
            kept,
            tuple(aggregates),
            when,
            clear,
            self.binder.params,
        )

    def _condition(self, text: str, path: str, by: Sequence[str], aggregates: list[tuple[str, str]], used: set[str]) -> str:
        """The SQL of a condition over `_a<i>`; its aggregates are appended to `aggregates`, the columns it reads to `used`."""
        hint = "use an aggregate: max(temp_c) > 80, or count(*) filter (where ...) >= 4"
        expression = self.binder.aggregate_expression(
            text, path, self.columns, by, SPAN_AGGREGATES, "a condition looks at the rows of the span", hint
        )
        if expression is None:
            return "NULL"
        replacements = self.binder.replacements(expression, self.columns)
        self.binder.type_of(expression.replace(replacements), self.columns, path, must_be="BOOLEAN")
        used |= {("_meta_" + words[1] if words[0] == "meta" else words[0]).lower() for words, _ in expression.columns}
        final: dict[Span, str] = {}
        for call in expression.aggregates(replacements):
            final[call.span] = f"_a{len(aggregates)}"
            aggregates.append((call.label, over_span(call, SPAN, self._argument_type(call, path))))
        return expression.replace_calls(final, replacements)

    def _argument_type(self, call: Call, path: str) -> str:
        if call.distinct or call.name not in NUMERIC:
            return ""
        return self.binder.type_of(call.argument, self.columns, path, raw=True)

    def _check_message(self, trigger: Trigger, path: str) -> None:
        known = {*trigger.by, *self.spec.params, "count", "node"}
        for word in re.findall(r"\{([^{}]*)\}", trigger.message):
            if word not in known:
                self.binder.complain(
                    path,
                    f"there is nothing to fill {{{word}}} with{did_you_mean(word, known)}",
                    f"known here: {', '.join(sorted(known))}",
                )

    def _definition(self, part: Literal["windows", "triggers"], name: str, kept: Sequence[str] = ()) -> str:
        """Identity of state: it is carried over between versions while this stays the same (design, section 6)."""
        return sha256(self.spec.definition(part, name) + canonical_json(list(kept)))[7:23]

    def _try_statements(self, plan: Plan) -> None:
        """Bind the statements whole: what every part allowed must also go together."""
        from pipelines.engine.run import dry_run

        try:
            dry_run(plan)
        except duckdb.Error as error:
            self.binder.complain(
                "",
                f"the pipeline does not compile: {first_line(error)}",
                "this is a defect of Tidewire: please report it with the file",
            )


def _sql_type(type_: pa.DataType) -> str:
    for name in ("BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR", "TIMESTAMP", "BLOB"):
        if stored(to_arrow(name)) == stored(type_):
            return name
    return "VARCHAR"
