"""PipelineSpec: what a pipeline file says, checked for shape. What its expressions mean is checked by engine/plan.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PrivateAttr, ValidationError

from pipelines.contract import interpolate, yaml_reader
from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.frames import canonical_json
from pipelines.contract.language.base import LOG, Column, Model, PipelineName, Word
from pipelines.contract.language.lookups import LookupTable
from pipelines.contract.language.params import Param
from pipelines.contract.language.schema import FieldSpec, KeepUnknown, UnknownFields
from pipelines.contract.language.sinks import Buffer, Quarantine, Sink
from pipelines.contract.language.sources import Source
from pipelines.contract.language.steps import Step
from pipelines.contract.language.triggers import Trigger
from pipelines.contract.language.windows import Window
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec_problems import did_you_mean, explain

LANGUAGE = 1


class PipelineSpec(Model):
    """A whole pipeline file. `locate` gives a problem its line and column."""

    tidewire: Literal[1]
    pipeline: PipelineName
    description: str = ""
    owner: str = ""
    params: dict[Word, Param] = {}
    sources: dict[Word, Source] = Field(min_length=1)
    schema_: dict[Column, FieldSpec] = Field(alias="schema", min_length=1)
    unknown_fields: UnknownFields = "ignore"
    on_invalid: Literal["quarantine", "drop"] = "quarantine"
    quarantine: Quarantine = Quarantine()
    lookups: dict[Word, LookupTable] = {}
    steps: list[Step] = []
    windows: dict[Word, Window] = {}
    triggers: dict[Word, Trigger] = {}
    sinks: dict[Word, Sink] = {}
    buffer: Buffer = Buffer()

    _source: yaml_reader.Source = PrivateAttr(default_factory=lambda: yaml_reader.Source(None))

    @property
    def event_time(self) -> str | None:
        """The field that stamps a row, or None: rows are stamped with node time on arrival."""
        return next((name for name, spec in self.schema_.items() if spec.event_time), None)

    @property
    def raw_policy(self) -> Literal["upload", "local", "drop"]:
        """What becomes of the raw bytes of rejected records: with a sensitive field they stay on the node."""
        return self.quarantine.raw or ("local" if _sensitive(self) else "upload")

    def defaults(self) -> dict[str, Scalar]:
        """By name, each as its type: 80 of a double is 80.0, or its digest would not be that of a 80.0 which somebody set."""
        return {name: None if p.default is None else p.check(p.default) for name, p in self.params.items()}

    def lake_tables(self) -> dict[str, str]:
        """Sink -> the table that takes its segments: of a window all revisions, from which the lake makes the sink's table."""
        return {name: sink.lake.table + LOG * (sink.from_ in self.windows) for name, sink in self.sinks.items()}

    def canonical_bytes(self) -> bytes:
        """What is hashed, signed, stored and run: JSON without defaults, comments or layout; the order of keys is kept."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()

    def locate(self, problem: Problem) -> Problem:
        return self._source.locate(problem)

    def definition(self, part: Literal["windows", "triggers"], name: str) -> bytes:
        """What decides which rows a window or trigger sees and what it keeps of them: state is carried over while this stays."""
        whole = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        after = ("actions", "severity", "message", "for", "when", "clear_when") if part == "triggers" else ()
        own = {k: v for k, v in whole[part][name].items() if k not in after}
        return canonical_json([whole["schema"], whole.get("steps"), part, name, own])


def load_spec(text: str, file: str = "") -> PipelineSpec:
    """The pipeline in `text` (YAML, or its canonical JSON). Raises `SpecError` with every problem and its place."""
    source = yaml_reader.read(text, file)
    if not isinstance(source.data, dict):
        raise SpecError([Problem("a pipeline is a map of keys", file=file, line=1, column=1, hint="start with `tidewire: 1`")])
    try:
        spec = PipelineSpec.model_validate(source.data)
    except ValidationError as error:
        problems = list(explain(error, PipelineSpec, source))
        raise SpecError(sorted(problems, key=lambda problem: (problem.line, problem.column))) from None
    spec._source = source
    problems = [*_misfits(spec), *interpolate.check(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True))]
    misfits = [source.locate(problem) for problem in problems]
    if misfits:
        raise SpecError(misfits)
    return spec


def _sensitive(spec: PipelineSpec) -> list[str]:
    return [name for name, field in spec.schema_.items() if getattr(field, "sensitive", False)]


def _stream_misfits(spec: PipelineSpec) -> Iterator[Problem]:
    """Streams that a sink can take: those of windows, and those that triggers capture."""
    streams = set(spec.windows)
    for name, trigger in spec.triggers.items():
        if trigger.capture is None:
            continue
        if trigger.capture.to in streams:
            message = f'"{trigger.capture.to}" is the name of another stream'
            yield Problem(message, f"triggers.{name}.capture.to", "windows and captures share their names: choose another")
        streams.add(trigger.capture.to)
    for name, sink in spec.sinks.items():
        if sink.from_ is not None and sink.from_ not in streams:
            message = f'there is no window or capture "{sink.from_}"{did_you_mean(sink.from_, streams)}'
            yield Problem(message, f"sinks.{name}.from", "without `from:` a sink takes the accepted rows")


def _block_misfits(spec: PipelineSpec) -> Iterator[Problem]:
    """I15: a pipeline that waits for room reads nothing meanwhile."""
    if spec.buffer.when_full != "block":
        return
    forgetful = [name for name, source in spec.sources.items() if source.simulate is not None]
    if not forgetful and not spec.triggers:
        return
    why = f'source "{forgetful[0]}" does not' if forgetful else f'trigger "{next(iter(spec.triggers))}" would be mute meanwhile'
    message = f"block is accepted only for file and http sources, which lose nothing by it, in pipelines without triggers: {why}"
    yield Problem(message, "buffer.when_full", "write drop_oldest or drop_newest")


def _listening_misfits(spec: PipelineSpec) -> Iterator[Problem]:
    at: dict[str, str] = {}
    for name, source in spec.sources.items():
        if source.http is None:
            continue
        if source.http.token is not None and not re.fullmatch(r"\$\{secret:[^}]+\}", source.http.token):
            message = "the token is a secret of the node, never part of the file"
            yield Problem(message, f"sources.{name}.http.token", "write ${secret:name}")
        if source.http.listen in at:
            message = f'source "{at[source.http.listen]}" listens on {source.http.listen} already'
            yield Problem(message, f"sources.{name}.http.listen", "give each a port of its own")
        at[source.http.listen] = name


def _misfits(spec: PipelineSpec) -> Iterator[Problem]:
    """What each part may say, but not together."""
    if spec.quarantine.raw == "upload" and (sensitive := _sensitive(spec)):
        message = f'the raw bytes of rejected records hold "{sensitive[0]}", which is sensitive'
        yield Problem(message, "quarantine.raw", "local keeps them on the node, drop forgets them")
    stamps = [name for name, f in spec.schema_.items() if f.event_time]
    if len(stamps) > 1:
        message = f"only one field can be the event_time, here are {' and '.join(stamps)}"
        yield Problem(message, f"schema.{stamps[1]}.event_time", "remove one of them")
    seen: set[str] = set()
    for name in spec.schema_:
        if name.lower() in seen:
            yield Problem(
                "two fields differ only in upper and lower case", f"schema.{name}", "SQL does not tell them apart: rename one"
            )
        seen.add(name.lower())
    yield from _stream_misfits(spec)
    unknown = spec.unknown_fields
    if isinstance(unknown, KeepUnknown) and unknown.keep.lower() in seen:
        yield Problem(f'there is a field "{unknown.keep}" already', "unknown_fields.keep", "choose another name for the column")
    yield from _block_misfits(spec)
    yield from _listening_misfits(spec)
    tables: set[str] = set()
    for name, sink in spec.sinks.items():
        if sink.lake.table in tables:
            yield Problem("two sinks write to the same table", f"sinks.{name}.lake.table", "give each its own")
        tables.add(sink.lake.table)
