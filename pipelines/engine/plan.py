"""compile_plan: every expression of a pipeline bound and typed before anything ships, by the same code everywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import duckdb
import pyarrow as pa

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.language.sinks import Sink
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec import PipelineSpec, load_spec
from pipelines.engine.bind import Binder, Columns, NodeFacts, first_line
from pipelines.engine.exits import check_exits
from pipelines.engine.fate import Fates
from pipelines.engine.records.reader import RecordsPlan, compile_records, schema_columns
from pipelines.engine.sinks import check_select
from pipelines.engine.stage import Stage, Stages
from pipelines.engine.triggers.plan import AnyPlan, compile_triggers
from pipelines.engine.types import TIMESTAMP, stored, to_arrow
from pipelines.engine.windows.feed import WindowPlan, compile_window

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
    triggers: Mapping[str, AnyPlan]
    row_wheres: Mapping[str, str]
    warnings: Sequence[Problem] = ()  # what compiles and may still not be what was meant

    @cached_property
    def key(self) -> str | None:
        """What tells one sender from another, for the watermark: what rows are grouped by first."""
        windows = (window.by for window in self.spec.windows.values() if window.from_ is None)
        over_rows = [t for t in self.spec.triggers.values() if not getattr(t, "from_", None)]
        triggers = ([*(getattr(t, "each", None) or []), *t.by] for t in over_rows)
        return next((by[0] for by in (*windows, *triggers) if by and by[0] in self.columns), None)

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
    lookups: Mapping[str, pa.Table | None] | None = None,
) -> Plan:
    """Bind a pipeline. `params` default to the declared defaults; `secrets` and `lookups` (tables from CSV, as texts) are those
    of the node: without them, or with None for a table, the plan checks, but must not run. Raises `SpecError`."""
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
        outputs = {name: window.columns for name, window in windows.items()}
        triggers = compile_triggers(binder, self.columns, outputs)
        check_exits(binder, self.columns, outputs, (self.spec.event_time or "") if stages.time_is_sensitive else "")
        streams: dict[str | None, Collection[str]] = {name: window.schema.names for name, window in windows.items()}
        streams |= {t.capture.to: self.columns for t in self.spec.triggers.values() if t.capture}
        check_select(binder, {None: self.columns, **streams})
        of_rows = {n: s for n, s in self.spec.sinks.items() if s.from_ not in self.spec.windows}
        wheres = {n: binder.hidden(w, self.columns) for n, s in of_rows.items() if (w := self._where(n, s))}
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
