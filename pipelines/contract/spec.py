"""PipelineSpec: what a pipeline file says, checked for shape. What its expressions mean is checked by engine/plan.py."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from pipelines.contract import yaml_reader
from pipelines.contract.duration import Duration
from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.frames import canonical_json
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec_problems import did_you_mean, explain

LANGUAGE = 1
RESERVED_TABLES = frozenset({"segments", "quarantine", "incidents", "ledgers", "nodes"})
RESERVED_COLUMNS = frozenset({"node", "meta"})

_PIPELINE = re.compile(r"[a-z][a-z0-9-]{0,62}\Z")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}\Z")


def _pipeline_name(text: str) -> str:
    if not _PIPELINE.match(text):
        raise ValueError(
            "a pipeline's name has lower-case letters, digits and dashes, starts with a letter, and has at most 63 characters"
        )
    return text


def _word(text: str) -> str:
    if text.startswith("_"):
        raise ValueError("names that start with _ are Tidewire's own")
    if not _WORD.match(text):
        raise ValueError("a name has letters, digits and underscores, starts with a letter, and has at most 63 characters")
    return text


def _column(text: str) -> str:
    if text.lower() in RESERVED_COLUMNS:
        raise ValueError(f'"{text}" is a reserved word: {text}.* are the facts of the {"node" if text == "node" else "row"}')
    return _word(text)


def _table(text: str) -> str:
    if text.lower() in RESERVED_TABLES:
        raise ValueError(f'"{text}" is one of Tidewire\'s own tables')
    return _word(text).lower()


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _exactly_one(model: BaseModel, noun: str, kinds: tuple[str, ...]) -> None:
    set_ = [kind for kind in kinds if getattr(model, kind) is not None]
    names = ", ".join(kind.rstrip("_") for kind in kinds)
    if len(set_) != 1:
        raise ValueError(f"a {noun} has exactly one kind of: {names}" + (f"; here are {' and '.join(set_)}" if set_ else ""))


PipelineName = Annotated[str, AfterValidator(_pipeline_name)]
Word = Annotated[str, AfterValidator(_word)]
Column = Annotated[str, AfterValidator(_column)]
Table = Annotated[str, AfterValidator(_table)]
Expression = Annotated[str, Field(min_length=1, max_length=8192)]
Texts = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
Type = Literal["boolean", "integer", "double", "string", "timestamp"]

_PYTHON: dict[str, type | tuple[type, ...]] = {"boolean": bool, "integer": int, "double": (int, float), "string": str}


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class _Limited(Protocol):
    """What a value may be: a parameter or a field."""

    type: Any
    default: Any
    min: Any
    max: Any
    one_of: Any


def _check_limits(limited: _Limited) -> None:
    """Raise ValueError unless default and limits fit the type and each other."""
    if limited.min is not None and limited.max is not None and limited.min > limited.max:
        raise ValueError(f"the min is above the max: {limited.min:g} > {limited.max:g}")
    for value in limited.one_of or []:
        _check_type(limited.type, value)
    if limited.default is not None:
        _check_type(limited.type, limited.default)
        _check_value(limited, limited.default)


def _check_type(type_: str, value: object) -> None:
    if not isinstance(value, _PYTHON[type_]) or (isinstance(value, bool) and type_ != "boolean"):
        raise ValueError(f"{json.dumps(value, default=str)} is not of type {type_}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if type_ == "integer" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} is not an integer of 64 bits")


def _check_value(limited: _Limited, value: Any) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if limited.min is not None and value < limited.min:
            raise ValueError(f"{value} is below the minimum {limited.min:g}")
        if limited.max is not None and value > limited.max:
            raise ValueError(f"{value} is above the maximum {limited.max:g}")
    if limited.one_of is not None and value not in limited.one_of:
        raise ValueError(f"{json.dumps(value)} is not one of {', '.join(map(str, limited.one_of))}")


class Param(Model):
    """A value that may change per deployment, centrally or on site, without a new version."""

    type: Literal["boolean", "integer", "double", "string"]
    default: Scalar = None  # None: must be set before the pipeline can run
    min: float | None = None
    max: float | None = None
    one_of: list[Scalar] | None = None
    description: str = ""

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        _check_limits(self)
        return self

    def check(self, value: object) -> Scalar:
        """`value` as this parameter's type. Raises ValueError with one line of why not."""
        _check_type(self.type, value)
        _check_value(self, value)
        result: Any = float(value) if self.type == "double" else value  # type: ignore[arg-type]  # checked above
        return result  # type: ignore[no-any-return]  # a Scalar by the checks above

    def parse(self, text: str) -> Scalar:
        """The value that a word on a command line means. Raises ValueError as `check` does."""
        if self.type == "string":
            return self.check(text)
        try:
            value = json.loads(text)
        except ValueError:
            raise ValueError(f"{text!r} is not of type {self.type}") from None
        return self.check(value)


class Json(Model):
    """One JSON object a line (RFC 8259, jsonlines)."""


class Csv(Model):
    """Delimited lines. The first line of each file names the columns, unless `columns` does."""

    delimiter: str = Field(",", min_length=1, max_length=1)
    columns: list[str] | None = None


def _decode_short_form(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


class Decode(Model):
    """How bytes become records: exactly one kind; `decode: json` is short for `decode: {json: {}}`."""

    json_: Json | None = Field(None, alias="json")
    csv: Csv | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, "decoder", ("json_", "csv"))
        return self


class FileSource(Model):
    """Lines of the files that match; follows growing and new files, resumes where the last commit stood."""

    path: Texts


class SimulatedValue(Model):
    base: float = 20.0
    swing: Annotated[float, Field(ge=0)] = 0.0
    period: Duration = 600_000_000
    noise: Annotated[float, Field(ge=0)] = 0.0


class SimulatedFault(Model):
    """`offset` adds `by` to the value of the first `sensors` sensors from `at` on for `lasts`, again each `every`.
    `garbage`, `missing` and `text` spoil a `share` of the rows: bytes that do not decode, no value, a value that is no number."""

    kind: Literal["offset", "garbage", "missing", "text"]
    at: Duration = 0
    lasts: Duration = 0
    every: Duration = 0
    sensors: int = Field(1, ge=1)
    by: float = 0.0
    share: float = Field(0.0, ge=0, le=1)


class SimulateSource(Model):
    """Seeded sensors: the same seed gives the same rows `{"ts", "sensor", "value", "n"}` as JSON lines, for ever."""

    seed: int = 0
    sensors: int = Field(4, ge=1, le=10_000)
    every: Duration = 1_000_000  # each sensor speaks once in this time
    rows: int | None = Field(None, ge=1)  # then it ends; None: for ever
    start: str | None = None  # event time of the first row (ISO 8601, UTC); None: when the pipeline first starts
    value: SimulatedValue = SimulatedValue()
    faults: list[SimulatedFault] = []


class Source(Model):
    """Where rows come from: exactly one kind, and how its bytes are decoded."""

    file: FileSource | None = None
    simulate: SimulateSource | None = None
    decode: Annotated[Decode, BeforeValidator(_decode_short_form)] = Decode.model_validate({"json": {}})

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, "source", ("file", "simulate"))
        if self.simulate and not self.decode.json_:
            raise ValueError("a simulate source gives JSON lines: remove `decode` or write `decode: json`")
        return self


class FieldSpec(Model):
    """One column of the contract. `from` is a path into the record (`data.t`), a CSV column, or `meta.*`; default: its name."""

    type: Type
    from_: str | None = Field(None, alias="from")
    nullable: bool = False
    default: Scalar = None
    min: float | None = None
    max: float | None = None
    one_of: list[Scalar] | None = Field(None, min_length=1)
    event_time: bool = False
    format: str | None = None  # strptime format of a timestamp; default ISO 8601
    unit: str | None = None  # of a timestamp: s, ms, us or ns since 1970; of a number: documentation
    description: str = ""

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.event_time and (self.type != "timestamp" or self.nullable):
            raise ValueError("event_time needs `type: timestamp` and may not be nullable")
        if (self.min is not None or self.max is not None) and self.type not in ("integer", "double"):
            raise ValueError(f"min and max are for numbers, this is a {self.type}")
        if self.format and self.type != "timestamp":
            raise ValueError("format is for timestamps")
        if self.format and "%" not in self.format:
            like = f"; write `unit: {self.format}`" if self.format in ("s", "ms", "us", "ns") else ", like %d/%m/%Y %H:%M:%S"
            raise ValueError(f'"{self.format}" is not a strptime format{like}')
        if self.type == "timestamp" and self.unit not in (None, "s", "ms", "us", "ns"):
            raise ValueError(f"the unit of a timestamp is s, ms, us or ns, not {self.unit}")
        if self.type == "timestamp" and (self.default is not None or self.one_of):
            raise ValueError("a timestamp has no default and no one_of")
        if self.type != "timestamp":
            _check_limits(self)
        return self


class Step(Model):
    """One row step: exactly one of filter, derive, enrich."""

    filter: Expression | None = None
    derive: dict[Column, Expression] | None = Field(None, min_length=1)
    enrich: dict[Column, str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, "step", ("filter", "derive", "enrich"))
        return self


class Window(Model):
    """A tumbling event-time window: one row per group when the watermark passes its end plus `lateness`."""

    every: Duration
    by: list[Column] = []
    where: Expression | None = None
    select: dict[Column, Expression] = Field(min_length=1)
    lateness: Duration = 0

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.every <= 0:
            raise ValueError("every must be longer than nothing")
        if twice := set(self.by) & set(self.select):
            raise ValueError(f'"{sorted(twice)[0]}" stands in both by and select')
        return self


class LogAction(Model):
    message: str | None = None


class WebhookAction(Model):
    """POST of the incident as JSON, with the action's id as `Idempotency-Key`."""

    url: str = Field(pattern=r"^https?://")
    headers: dict[str, str] = {}
    timeout: Duration = 5_000_000


class ExecAction(Model):
    """Run a program that local policy allows, without a shell. The incident arrives as TIDEWIRE_* variables and JSON on stdin."""

    program: str = Field(pattern=r"^/")
    args: list[str] = []


def _action_short_form(value: Any) -> Any:
    if value == "log":
        return {"log": {}}
    return {**value, "log": {}} if isinstance(value, dict) and "log" in value and value["log"] is None else value


class Action(Model):
    """What to do on a transition: exactly one kind. After `valid_for` it is recorded as expired, not performed."""

    log: LogAction | None = None
    webhook: WebhookAction | None = None
    exec: ExecAction | None = None
    valid_for: Duration | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        _exactly_one(self, "action", ("log", "webhook", "exec"))
        return self

    @property
    def kind(self) -> str:
        return "log" if self.log else "webhook" if self.webhook else "exec"


Actions = list[Annotated[Action, BeforeValidator(_action_short_form)]]


class TriggerActions(Model):
    on_raise: Actions = []
    on_ack: Actions = []
    on_clear: Actions = []

    def every(self) -> list[Action]:
        return [*self.on_raise, *self.on_ack, *self.on_clear]


class Trigger(Model):
    """An alarm over the rows of the last `over` of event time, one incident per group of `by`."""

    over: Duration
    by: list[Column] = []
    when: Expression
    for_: Duration = Field(0, alias="for")
    clear_when: Expression | None = None
    severity: Literal["critical", "warning", "info"] = "warning"
    message: str = ""
    actions: TriggerActions = TriggerActions()

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.over <= 0:
            raise ValueError("over must be longer than nothing")
        return self


class LakeSink(Model):
    table: Table


class Sink(Model):
    """A stream of rows to a lake table: of the accepted rows, or `from` a window; only those that match `where`."""

    lake: LakeSink
    from_: Word | None = Field(None, alias="from")
    where: Expression | None = None


class PipelineSpec(Model):
    """A whole pipeline file. `locate` gives a problem its line and column."""

    tidewire: Literal[1]
    pipeline: PipelineName
    description: str = ""
    owner: str = ""
    params: dict[Word, Param] = {}
    sources: dict[Word, Source] = Field(min_length=1)
    schema_: dict[Column, FieldSpec] = Field(alias="schema", min_length=1)
    on_invalid: Literal["quarantine", "drop"] = "quarantine"
    steps: list[Step] = []
    windows: dict[Word, Window] = {}
    triggers: dict[Word, Trigger] = {}
    sinks: dict[Word, Sink] = {}

    _source: yaml_reader.Source = PrivateAttr(default_factory=lambda: yaml_reader.Source(None))

    @property
    def event_time(self) -> str | None:
        """The field that stamps a row, or None: rows are stamped with node time on arrival."""
        return next((name for name, spec in self.schema_.items() if spec.event_time), None)

    def defaults(self) -> dict[str, Scalar]:
        return {name: param.default for name, param in self.params.items()}

    def lake_tables(self) -> dict[str, str]:
        return {name: sink.lake.table for name, sink in self.sinks.items()}

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
        problems = [source.locate(problem) for problem in explain(error, PipelineSpec)]
        raise SpecError(sorted(problems, key=lambda problem: (problem.line, problem.column))) from None
    spec._source = source
    misfits = [source.locate(problem) for problem in _misfits(spec)]
    if misfits:
        raise SpecError(misfits)
    return spec


def _misfits(spec: PipelineSpec) -> Iterator[Problem]:
    """What each part may say, but not together."""
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
    tables: set[str] = set()
    for name, sink in spec.sinks.items():
        if sink.from_ is not None and sink.from_ not in spec.windows:
            message = f'there is no window "{sink.from_}"{did_you_mean(sink.from_, spec.windows)}'
            yield Problem(message, f"sinks.{name}.from", "without `from:` a sink takes the accepted rows")
        if sink.lake.table in tables:
            yield Problem("two sinks write to the same table", f"sinks.{name}.lake.table", "give each its own")
        tables.add(sink.lake.table)
