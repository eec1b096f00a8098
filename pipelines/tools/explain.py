"""What a pipeline means: each part in words, and, given input, the rows after every step and why the others fell out.

Rows after a step are those of the pipeline that ends there, run by the same engine: what is shown is what happens.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.contract.duration import US_PER, format_duration
from pipelines.contract.errors import TidewireError
from pipelines.contract.language.base import Model
from pipelines.contract.language.lookups import LookupTable
from pipelines.contract.spec import PipelineSpec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.batch import Batch, Lines, parse_header
from pipelines.engine.bind import Column
from pipelines.engine.fate import ALIVE
from pipelines.engine.plan import Plan, compile_plan, example_params
from pipelines.engine.records.framing import open_framer
from pipelines.engine.run import finish, run_batch, run_steps
from pipelines.engine.state import State
from pipelines.tools.matching import show

ROWS_SHOWN = 20
NOW_US = 1_767_225_600 * US_PER["s"]  # node time of rows that are walked through: 2026-01-01


@dataclass(frozen=True)
class Part:
    """A titled part of an explanation: facts (label, words), then a table. `note` is what else there is to say of the table."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        made: dict[str, Any] = {"title": self.title}
        made |= {"facts": [list(fact) for fact in self.facts]} if self.facts else {}
        if self.columns:
            made |= {"rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows]}
        return made | ({"note": self.note} if self.note else {})


# -- without input


def explain(spec: PipelineSpec) -> Iterator[Part]:
    """What each part compiles to. Raises `SpecError` when the pipeline does not."""
    plan = compile_plan(spec, example_params(spec))
    yield Part(f"pipeline {spec.pipeline}", list(_about(spec)))
    for name, source in spec.sources.items():
        yield Part(f"source {name}", list(_source(source)))
    for name, table in spec.lookups.items():
        yield Part(f"lookup {name}", list(_lookup(table)))
    plans = [_until(spec, n) for n in range(len(spec.steps) + 1)]
    yield Part("schema", list(_contract(spec)), ("COLUMN", "TYPE"), _column_rows(plans[0].columns))
    for n in range(len(spec.steps)):
        yield _step(spec, n, plans[n].columns, plans[n + 1].columns)
    for name in spec.windows:
        yield Part(f"window {name}", list(_window(spec, name)), ("COLUMN", "TYPE"), _schema_rows(plan.windows[name].schema))
    for name in spec.triggers:
        yield Part(f"trigger {name}", list(_trigger(spec, name)))
    for name, sink in spec.sinks.items():
        schema = plan.windows[sink.from_].schema if sink.from_ and sink.from_ in plan.windows else plan.row_schema
        chosen = getattr(sink, "select", None)
        rows = [row for row in _schema_rows(schema) if not chosen or row[0] in chosen]
        yield Part(f"sink {name}", list(_sink(sink)), ("COLUMN", "TYPE"), rows)


def _lookup(table: LookupTable) -> Iterator[tuple[str, str]]:
    if table.artifact:
        stays = "that one, until a version names another" if "@" in table.artifact else "the newest, without a restart"
        yield "rows", f"artifact {table.artifact} of the control plane: {stays}; a node keeps what it has while it is cut off"
    elif table.file:
        yield "rows", f"CSV file {table.file} on the node, read again when it changes"
    else:
        yield "rows", f"{len(table.rows or ())} in the pipeline itself"
    yield "key", ", ".join(table.key)


def _about(spec: PipelineSpec) -> Iterator[tuple[str, str]]:
    if spec.description:
        yield "is for", spec.description
    for name, param in spec.params.items():
        limits = [f"{word} {getattr(param, word)}" for word in ("min", "max", "one_of") if getattr(param, word) is not None]
        default = "no default: it must be set" if param.default is None else f"default {_value(param.default)}"
        yield f"${name}", ", ".join([param.type, default, *limits])
    policy = {"quarantine": "are quarantined with all their reasons", "drop": "are counted and dropped"}
    yield "bad records", policy[spec.on_invalid]
    if spec.on_invalid == "quarantine":
        raw = {"upload": "go up with the reasons", "local": "stay on the node", "drop": "are not kept"}
        yield "raw bytes", raw[spec.raw_policy]
    if spec.triggers:
        yield "alarms", "are evaluated on the node that runs this, over its rows alone; no safety function"


_PROMISES = {
    "file": "read at least once, stored exactly once: after a restart it goes on right after the last committed record",
    "http": "answered 200 once it is committed: at least once, exactly once with an Idempotency-Key",
    "simulate": "seeded: the same rows for ever, on from the last committed one",
    "mqtt": "as the broker delivers: at least once with QoS 1",
}


def _source(source: Any) -> Iterator[tuple[str, str]]:
    kind = _kind(source, except_for=("framing", "encoding", "decode", "schema"))
    yield "kind", f"{kind}: {_settings(getattr(source, kind, None))}"
    framing = _kind(source.framing) if source.framing else "lines"
    yield "records", f"cut by {framing}, decoded as {_kind(source.decode)}"
    yield "promise", _PROMISES.get(kind, "best effort before it is read, exactly once after")


def _contract(spec: PipelineSpec) -> Iterator[tuple[str, str]]:
    stamp = spec.event_time
    yield "event time", f"the field {stamp}" if stamp else "arrival, in node time: no field is event_time"
    if sensitive := [name for name, f in spec.schema_.items() if getattr(f, "sensitive", False)]:
        yield "sensitive", f"{', '.join(sensitive)}: not allowed out of the node unless redacted"


def _step(spec: PipelineSpec, n: int, before: Mapping[str, Column], after: Mapping[str, Column]) -> Part:
    step = spec.steps[n]
    kind = _kind(step)
    gone = [name for name in before if name not in after]
    facts = [(kind, _settings(getattr(step, _attribute(step, kind))))]
    facts += [("takes away", ", ".join(gone))] if gone else []
    changed = {name: column for name, column in after.items() if before.get(name) != column}
    if not changed and not gone:
        facts.append(("columns", "as before"))
    return Part(f"steps[{n}]", facts, ("COLUMN", "TYPE") if changed else (), _column_rows(changed))


def _window(spec: PipelineSpec, name: str) -> Iterator[tuple[str, str]]:
    window = spec.windows[name]
    yield "kind", _window_kind(window)
    yield (
        "of",
        (f"the rows of window {window.from_}" if window.from_ else "the accepted rows")
        + (f" where {window.where}" if window.where else ""),
    )
    yield "group", f"one row per {', '.join(window.by)}" if window.by else "one row for all"
    yield "select", "; ".join(f"{column} = {text}" for column, text in window.select.items())
    late = f" plus {format_duration(window.lateness)} of lateness" if window.lateness else ""
    yield "emitted", f"when the watermark passes its end{late}"
    if window.keep:
        yield (
            "late rows",
            f"correct it for {format_duration(window.keep)}: it is emitted again; then they are quarantined as too_late",
        )
    else:
        yield "late rows", "are quarantined as too_late"
    yield "memory", f"mergeable parts of each open window and group, at most {window.max_groups:,} groups; not the rows"


def _window_kind(window: Any) -> str:
    if window.gap is not None:
        longest = f", at most {format_duration(window.max)} long" if window.max else ""
        return f"a session: ends when {format_duration(window.gap)} pass without a row{longest}"
    if window.at is not None:
        return f"from {', '.join(window.at)} of the day to the next of them, in {window.timezone}"
    if window.slide is not None:
        return f"sliding: the last {format_duration(window.every)}, again each {format_duration(window.slide)}"
    zone = f", from midnight in {window.timezone}" if window.timezone else ""
    return f"tumbling: {format_duration(window.every)}{zone}"


def _trigger(spec: PipelineSpec, name: str) -> Iterator[tuple[str, str]]:
    trigger = spec.triggers[name]
    yield (
        "incident",
        f"one per group of {', '.join(trigger.by)}, {trigger.severity}" if trigger.by else f"one, {trigger.severity}",
    )
    if trigger.absent is not None:
        yield "raised", f"when a group sent nothing for {format_duration(trigger.absent)}"
        yield "cleared", "when it speaks again"
    else:
        yield "looks at", _looks_at(trigger)
        yield "raised", f"when {trigger.when}{_held(trigger.for_)}"
        clear = (
            f"when {trigger.clear_when}, and not the condition" if trigger.clear_when else "when the condition is no longer true"
        )
        yield "cleared", clear + _held(trigger.clear_for)
        if trigger.only_when:
            yield "only", f"while {trigger.only_when}{_held(trigger.only_delay)}"
        if trigger.degraded_when:
            yield "cannot judge", f"while {trigger.degraded_when}: told as an incident of {name}.degraded"
        no_data = {"hold": "nothing changes", "clear": "it clears", "raise": "it is raised"}
        yield "no rows", no_data[trigger.on_no_data]
        quality = "rows of bad quality, retained and replayed ones never raise it"
        yield "ignores", quality if trigger.quality == "good" else "no row: quality any"
    acks = {"required": "somebody must acknowledge", "optional": "may be acknowledged", "none": "needs no acknowledgement"}
    yield "people", acks[trigger.ack] + ("; it stays until somebody resets it" if trigger.latch else "")
    if trigger.suppressed_by:
        yield "suppressed", f"while {' or '.join(trigger.suppressed_by)} is active"
    for on, actions in trigger.actions.model_dump(mode="json", by_alias=True, exclude_defaults=True).items():
        yield on, "; ".join(_words(action) for action in actions)
    for step in trigger.escalate:
        what = "; ".join(_words(a.model_dump(mode="json", by_alias=True, exclude_defaults=True)) for a in step.actions)
        yield f"after {format_duration(step.after)}", what + (" unless acknowledged" if step.unless else "")
    for word in ("remind", "flapping", "capture", "max_open", "max_groups"):
        if word in trigger.model_fields_set:
            yield word, _words(trigger.model_dump(mode="json", by_alias=True)[word])


def _looks_at(trigger: Any) -> str:
    if trigger.from_:
        return f"the rows of window {trigger.from_}"
    if trigger.is_latest:
        stale = f", unless older than {format_duration(trigger.stale_after)}" if trigger.stale_after else ""
        return f"the newest row of each {', '.join(trigger.each) or 'group'}{stale}"
    return f"the rows of the last {format_duration(trigger.over)} of event time"


def _held(delay: int | str) -> str:
    if isinstance(delay, str):
        return f", held for {delay} seconds"
    return f", held for {format_duration(delay)}" if delay else ""


def _sink(sink: Any) -> Iterator[tuple[str, str]]:
    shown = sink.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    yield "takes", f"the rows of {shown.pop('from')}" if sink.from_ else "the accepted rows"
    if where := shown.pop("where", ""):
        yield "where", where
    shown.pop("select", None)
    yield "to", _words(shown)
    yield "promise", "its own stream: kept on the node until the lake has it, stored exactly once"


# -- with input


@dataclass
class Walk:
    """The input of a walk: records of one source, at most `limit`."""

    source: str
    batch: Batch
    read: int  # records there were
    lines: list[str] = field(default_factory=list)


def open_input(spec: PipelineSpec, source: str, data: bytes, limit: int) -> Walk:
    """The first records of `data` as the source would have cut them. Raises TidewireError for a source that there is not."""
    if source not in spec.sources:
        cause = f'there is no source "{source}"{did_you_mean(source, spec.sources)}'
        raise TidewireError(cause, op="explain", hint=f"known: {', '.join(spec.sources)}")
    found = spec.sources[source]
    lines = open_framer(found.framing).frame(data, 0, is_last=True).lines if data else None
    header: tuple[str, ...] = ()
    if lines is None or not len(lines):
        raise TidewireError("there is no record in it", op="explain", hint="give it raw records, as the source would read them")
    if found.decode.csv:
        header = tuple(found.decode.csv.columns or ())
        if not header:
            header = parse_header(lines.text[0].as_py().encode(), found.decode.csv.delimiter)
            lines = _sliced(lines, 1, len(lines))
    kept = _sliced(lines, 0, limit)
    return Walk(source, Batch(source, NOW_US, NOW_US, kept, "input", header), len(lines), kept.text.to_pylist())


def _sliced(lines: Lines, start: int, stop: int) -> Lines:
    bad = {i - start: why for i, why in lines.bad.items() if start <= i < stop}
    return Lines(lines.text[start:stop], lines.offsets[start:stop], bad)


Lookups = Mapping[str, pa.Table | None]


def walk(spec: PipelineSpec, given: Walk, lookups: Lookups | None = None) -> Iterator[Part]:
    """The rows after every step, and everything that comes of them. `lookups`: tables from CSV, as texts; without one its table
    is empty. Raises `SpecError` when the pipeline does not compile."""
    shown = f"the first {len(given.lines)} of {given.read} records" if given.read > len(given.lines) else ""
    yield Part(
        f"input of source {given.source}",
        columns=("RECORD", "TEXT"),
        rows=[(str(i), text) for i, text in enumerate(given.lines)],
        note=shown,
    )
    before: dict[int, Mapping[str, Any]] | None = None
    for n in range(len(spec.steps) + 1):
        plan = _until(spec, n, lookups)
        records = plan.records[given.source].read(given.batch)
        _, table = run_steps(plan, State("explain"), given.batch, records)
        rows = {row["_row"]: row for row in table.to_pylist()}
        yield _rows_after(spec, plan, n, rows, before, records.reasons)
        before = rows
    yield from _outcome(spec, given, lookups)


def _rows_after(
    spec: PipelineSpec,
    plan: Plan,
    n: int,
    rows: Mapping[int, Mapping[str, Any]],
    before: Mapping[int, Mapping[str, Any]] | None,
    reasons: Mapping[int, Sequence[str]],
) -> Part:
    """The rows after `n` steps: those alive, and those that fell out here with why."""
    names = list(plan.columns)
    made: list[Sequence[str]] = []
    lost: Counter[str] = Counter()
    for at, row in rows.items():
        if row["_fate"] == ALIVE:
            made.append((str(at), *(_cell(row[name]) for name in names), ""))
            continue
        if before is not None and before[at]["_fate"] != ALIVE:
            continue
        fate = plan.fates[row["_fate"]]
        why = "; ".join(reasons.get(at, ())) if fate.step < 0 else fate.reason
        lost[fate.kind] += 1
        values = [_cell(before[at].get(name)) if before is not None else "" for name in names]
        made.append((str(at), *values, f"{fate.kind.replace('_', ' ')}{': ' + why if why else ''}"))
    title = f"after steps[{n - 1}] {_kind(spec.steps[n - 1])}" if n else "decoded and checked against the schema"
    alive = sum(row["_fate"] == ALIVE for row in rows.values())
    note = ", ".join(
        [
            f"{alive} row goes on" if alive == 1 else f"{alive} rows go on",
            *(f"{count} {kind.replace('_', ' ')}" for kind, count in lost.items()),
        ]
    )
    return Part(title, columns=("ROW", *names, "FELL OUT"), rows=made, note=note)


def _outcome(spec: PipelineSpec, given: Walk, lookups: Lookups | None) -> Iterator[Part]:
    """What the whole pipeline gives when the input ends there."""
    plan = compile_plan(spec, example_params(spec), secrets=_example_secrets(spec), lookups=lookups)
    state, output = run_batch(plan, State("explain"), given.batch)
    state, last = finish(plan, state)
    output += last
    for name, sink in spec.sinks.items():
        tables = output.rows.get(name, [])
        rows = [row for table in tables for row in table.to_pylist()]
        columns = list(tables[0].column_names) if tables else []
        of = f" (window {sink.from_})" if sink.from_ else ""
        cells = [[_cell(row[column]) for column in columns] for row in rows[:ROWS_SHOWN]]
        yield Part(f"sink {name}{of}", columns=columns, rows=cells, note=_count(len(rows), "row"))
    incidents = [(t.trigger, t.transition, t.group, t.severity, t.message or "") for t in output.transitions]
    if spec.triggers:
        yield Part(
            "incidents",
            columns=("TRIGGER", "TRANSITION", "GROUP", "SEVERITY", "MESSAGE"),
            rows=incidents[:ROWS_SHOWN],
            note=_count(len(incidents), "transition"),
        )
    counts = state.sources.get(given.source, {})
    yield Part("ledger", [(name, str(count)) for name, count in counts.items() if count])


def _until(spec: PipelineSpec, steps: int, lookups: Lookups | None = None) -> Plan:
    """The pipeline up to a step, with nothing behind it."""
    cut = spec.model_copy(update={"steps": spec.steps[:steps], "windows": {}, "triggers": {}, "sinks": {}})
    cut._source = spec._source
    return compile_plan(cut, example_params(cut), secrets=_example_secrets(spec), lookups=lookups)


def _example_secrets(spec: PipelineSpec) -> Mapping[str, str]:
    """A stand-in for every secret: a walk on a laptop has none."""
    return dict.fromkeys(re.findall(r"\$\{secret:([^}]+)\}", spec.canonical_bytes().decode()), "example")


# -- words


def _count(n: int, noun: str) -> str:
    more = f", the first {ROWS_SHOWN} are shown" if n > ROWS_SHOWN else ""
    return f"{n} {noun}{'' if n == 1 else 's'}{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    return show(value).replace("\n", "\\n")


def _kind(model: Model, except_for: Sequence[str] = ()) -> str:
    """The one word that a choice of kinds has set."""
    for name, info in type(model).model_fields.items():
        if getattr(model, name) is not None and name not in except_for and name in model.model_fields_set:
            return info.alias or name
    return "json"


def _attribute(model: Model, word: str) -> str:
    return next(name for name, info in type(model).model_fields.items() if word in (info.alias, name))


def _settings(value: Any) -> str:
    if isinstance(value, Model):
        return _words(value.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    if isinstance(value, Mapping):
        return "; ".join(f"{key} = {_settings(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(value: Any) -> str:
    """A part of the file in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(one)}".strip() for key, one in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_words(one) for one in value) + "]"
    return _value(value)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _column_rows(columns: Mapping[str, Column]) -> list[Sequence[str]]:
    return [(name, column.type + (" sensitive" if column.sensitive else "")) for name, column in columns.items()]


def _schema_rows(schema: Any) -> list[Sequence[str]]:
    return [(field.name, _SQL_TYPES.get(str(field.type), str(field.type))) for field in schema]


_SQL_TYPES = {
    "string": "VARCHAR",
    "double": "DOUBLE",
    "int64": "BIGINT",
    "bool": "BOOLEAN",
    "binary": "BLOB",
    "timestamp[us, tz=UTC]": "TIMESTAMP",
}
