"""`NAME.cases.yaml`: what a pipeline must do, in virtual time. Its format, checked; play.py plays it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from pipelines.contract import yaml_reader
from pipelines.contract.duration import Duration, parse_duration
from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.language.base import Model, Word
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec_problems import explain

START = "2026-01-01T00:00:00Z"
RECORDS_MAX = 1_000_000  # that `repeat` may make of one entry
_AT = re.compile(r"at\s+(\S.*)\Z")

INSTANTS = "at <time>"  # what a hint calls the keys that begin with `at`

Record = dict[str, Any]
_SEVERAL = ("exactly", "any_order", "contains", "count")


def _is_several(value: Any) -> bool:
    return isinstance(value, (list, int)) or (isinstance(value, dict) and bool(value) and set(value) <= set(_SEVERAL))


def _several(value: Any) -> Any:
    """The short forms of `Several`: a list is `exactly`, a number `count`."""
    if isinstance(value, list):
        return {"exactly": value}
    return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _by_name(value: Any) -> Any:
    """Expectations by name; without a name they are for the only one there is."""
    return {"": value} if _is_several(value) else value


def _reason(value: Any) -> Any:
    return {"reason": value} if isinstance(value, str) else value


_TRANSITIONS = (
    *("raised", "cleared", "latched", "acknowledged", "reset", "retired", "reminded", "escalated"),
    *("suppressed", "unsuppressed", "shelved", "unshelved", "unreliable", "reliable"),
)


def _incident(value: Any) -> Any:
    """`overheating raised` is short for `{trigger: overheating, transition: raised}`."""
    if not isinstance(value, str):
        return value
    words = value.split()
    if len(words) != 2:
        example = f"TRIGGER {value}" if value in _TRANSITIONS else "TRIGGER raised"
        raise ValueError(f'"{value}" is not a trigger and a transition: write `{example}`')
    return {"trigger": words[0], "transition": words[1]}


def _action(value: Any) -> Any:
    return {"like": value} if isinstance(value, str) else value


def _alarm(value: Any) -> Any:
    return [{"state": value}] if isinstance(value, str) else [value] if isinstance(value, dict) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _lines(value: Any) -> Any:
    return value.splitlines() if isinstance(value, str) else value


class Quarantined(Model):
    """A quarantined record. `reason`: what one of its reasons contains, or `/regex/`; text alone is short for it."""

    reason: str | None = None
    reasons: list[str] | None = None  # all of them, in any order
    step: str | None = None
    raw: str | None = None
    source: str | None = None


class IncidentStep(Model):
    """A transition of an incident. `overheating raised` is short for trigger and transition."""

    trigger: str | None = None
    transition: str | None = None
    group: Record | None = None
    severity: str | None = None
    message: str | None = None
    at: Any = None
    by: str | None = None
    reason: str | None = None
    value: Record | None = None
    state: str | None = None
    acked: bool | None = None
    flags: list[str] | None = None
    advice: str | None = None


class ActionTaken(Model):
    """A planned action. Text alone is what its kind or one of its settings contains; a kind holds settings, as in a trigger."""

    like: str | None = None
    trigger: str | None = None
    transition: str | None = Field(None, alias="on")
    kinds: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _collect_kinds(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        own = {"like", "trigger", "on"}
        return {k: v for k, v in value.items() if k in own} | {"kinds": {k: v for k, v in value.items() if k not in own}}


class AlarmState(Model):
    """The state of a trigger's newest incident in a group. `cleared`: back to normal, and somebody has yet to acknowledge it;
    `closed`: over; `none`: there never was one."""

    group: Record | None = None
    state: Literal["active", "cleared", "closed", "none"] | None = None
    acked: bool | None = None
    flags: list[str] | None = None


class _Several(Model):
    """How many there are, and which: `exactly` these in order, in `any_order`, or `contains` at least these in this order."""

    count: int | None = Field(None, ge=0)

    def expected(self) -> tuple[str, list[Any]] | None:
        for mode in ("exactly", "any_order", "contains"):
            if (value := getattr(self, mode)) is not None:
                return mode, value
        return None


class Rows(_Several):
    exactly: list[Record] | None = None
    any_order: list[Record] | None = None
    contains: list[Record] | None = None


_Reason = Annotated[Quarantined, BeforeValidator(_reason)]
_Incident = Annotated[IncidentStep, BeforeValidator(_incident)]
_Action = Annotated[ActionTaken, BeforeValidator(_action)]


class Reasons(_Several):
    exactly: list[_Reason] | None = None
    any_order: list[_Reason] | None = None
    contains: list[_Reason] | None = None


class Incidents(_Several):
    exactly: list[_Incident] | None = None
    any_order: list[_Incident] | None = None
    contains: list[_Incident] | None = None


class ActionsTaken(_Several):
    exactly: list[_Action] | None = None
    any_order: list[_Action] | None = None
    contains: list[_Action] | None = None


RowsByName = Annotated[dict[str, Annotated[Rows, BeforeValidator(_several)]], BeforeValidator(_by_name)]


class Expect(Model):
    """What must have happened since the last `expect` of the case; at the end of a case, in the whole case."""

    nothing: bool = False
    rows: RowsByName | None = None  # by sink; without a name: those of the only sink of rows
    windows: RowsByName | None = None  # by window or sink
    quarantine: Annotated[Reasons | None, BeforeValidator(_several)] = None
    incidents: Annotated[Incidents | None, BeforeValidator(_several)] = None
    actions: Annotated[ActionsTaken | None, BeforeValidator(_several)] = None
    alarms: dict[str, Annotated[list[AlarmState], BeforeValidator(_alarm)]] = {}  # by trigger: how it stands now
    ledger: dict[str, Any] = {}  # figures since the case began: of all sources, or by source or stream


class Who(Model):
    """Which incident a person acts on, and who that is."""

    trigger: str
    group: Record | None = None
    by: str = "tester"
    reason: str = ""


def _who(value: Any) -> Any:
    return {"trigger": value} if isinstance(value, str) else value


Acted = Annotated[Who | None, BeforeValidator(_who)]


class Act(Model):
    """What happens at an instant, in this order: params, stop or restart, link, rows, acknowledgements; then `expect`."""

    params: dict[str, Scalar] = {}
    stop: bool = False
    restart: bool = False
    link: Literal["up", "down"] | None = None
    source: Word | None = None
    rows: list[Record] = []
    lines: Annotated[list[str], BeforeValidator(_lines)] = []
    repeat: int = Field(1, ge=1, le=RECORDS_MAX)
    every: Duration = 1_000_000
    meta: dict[str, Any] = {}
    file: str = "cases"
    ack: Acted = None
    reset: Acted = None
    shelve: Acted = None
    unshelve: Acted = None
    expect: Expect | None = None


class Node(Model):
    """The node that a case runs on: what `node.*` means."""

    id: str = "node-1"
    name: str = "node-1"
    labels: dict[str, str] = {}
    facts: dict[str, str] = {}


class Case(Model):
    """One story in virtual time."""

    name: str = Field(min_length=1)
    description: str = ""
    params: dict[str, Scalar] = {}
    node: Node | None = None
    secrets: dict[str, str] = {}
    lookups: dict[str, list[Record]] = {}
    start: str = START
    finish: bool = False  # the input ends after the last instant: open windows are emitted
    instants: dict[str, list[Act]] = Field({}, alias="at <time>")  # INSTANTS
    expect: Expect | None = None

    @model_validator(mode="before")
    @classmethod
    def _collect_instants(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        instants = {k: _listed(v) if v is not None else {} for k, v in value.items() if isinstance(k, str) and _AT.match(k)}
        return {k: v for k, v in value.items() if k not in instants} | ({INSTANTS: instants} if instants else {})

    @property
    def start_us(self) -> int:
        return to_us(self.start)


class CasesFile(Model):
    """Cases of one pipeline: of `pipeline`, a path beside this file, or of the file with the same name; and what all of them
    start from."""

    pipeline: str = ""
    params: dict[str, Scalar] = {}
    node: Node | None = None
    secrets: dict[str, str] = {}
    lookups: dict[str, list[Record]] = {}
    cases: list[Case] = Field(min_length=1)

    _source: yaml_reader.Source = PrivateAttr(default_factory=lambda: yaml_reader.Source(None))

    @property
    def source(self) -> yaml_reader.Source:
        return self._source

    def problem(self, path: yaml_reader.Path, message: str, hint: str = "") -> Problem:
        return Problem(message, yaml_reader.format_path(path), hint).at(*self._source.place(path), file=self._source.file)


@dataclass(frozen=True)
class Instant:
    """An act at its time after the start; `path` leads to it in the file."""

    at_us: int
    key: str
    act: Act
    path: yaml_reader.Path


def load_cases(text: str, file: str = "") -> CasesFile:
    """The cases in `text`. Raises `SpecError` with every problem and its place."""
    source = yaml_reader.read(text, file)
    if not isinstance(source.data, dict):
        raise SpecError([Problem("a cases file is a map of keys", file=file, line=1, column=1, hint="start with `cases:`")])
    try:
        cases = CasesFile.model_validate(source.data)
    except ValidationError as error:
        problems = list(explain(error, CasesFile, source))
        raise SpecError(sorted(problems, key=lambda problem: (problem.line, problem.column))) from None
    cases._source = source
    if misfits := list(_misfits(cases)):
        raise SpecError(misfits)
    return cases


def instants(cases: CasesFile, index: int) -> list[Instant]:
    """The acts of a case in the order of time; those of one instant in that of the file. Raises ValueError for a bad `at`."""
    data = cases.source.data["cases"][index]
    found = []
    for key, acts in cases.cases[index].instants.items():
        match = _AT.match(key)
        assert match, "only such keys are collected"
        at_us = parse_duration(match[1])
        base: yaml_reader.Path = ("cases", index, key)
        many = isinstance(data.get(key), list)
        found += [Instant(at_us, key, act, (*base, i) if many else base) for i, act in enumerate(acts)]
    return sorted(found, key=lambda instant: instant.at_us)


def to_us(text: str) -> int:
    """Microseconds of an ISO 8601 time; UTC unless it has an offset. Raises ValueError."""
    when = datetime.fromisoformat(text)
    offset_us = round(when.utcoffset().total_seconds() * 1e6) if when.utcoffset() is not None else 0  # type: ignore[union-attr]  # not None
    naive = when.replace(tzinfo=None) - datetime(1970, 1, 1)  # noqa: DTZ001 - a difference of two naive times
    return (naive.days * 86_400 + naive.seconds) * 1_000_000 + naive.microseconds - offset_us


def _misfits(cases: CasesFile) -> Iterator[Problem]:
    names: set[str] = set()
    for i, case in enumerate(cases.cases):
        if case.name in names:
            yield cases.problem(("cases", i, "name"), f'two cases are named "{case.name}"', "rename one: -k finds cases by name")
        names.add(case.name)
        yield from _time_misfits(cases, i)


def _time_misfits(cases: CasesFile, index: int) -> Iterator[Problem]:
    case = cases.cases[index]
    try:
        _ = case.start_us
    except ValueError:
        yield cases.problem(("cases", index, "start"), f'"{case.start}" is not a time', f"write it as {START}")
    try:
        acts = instants(cases, index)
    except ValueError as error:
        key = str(error).split("'")[1] if "'" in str(error) else ""
        path = next((k for k in case.instants if k.endswith(key)), "")
        yield cases.problem(("cases", index, path), str(error), "write `at 3s:` or `at 1m30s:`")
        return
    stopped = False
    for instant in acts:
        stopped = (stopped or instant.act.stop) and not instant.act.restart
        act = instant.act
        if stopped and (act.rows or act.lines or act.ack or act.reset or act.shelve or act.unshelve):
            yield cases.problem(instant.path, "the pipeline is stopped here", "start it again before this with `restart: true`")
        if instant.act.rows and instant.act.lines:
            yield cases.problem(
                instant.path, "rows and lines at once", "write them as two entries of a list: the order is theirs"
            )
    if not acts and not case.expect:
        yield cases.problem(("cases", index), "nothing happens in this case", "add `at 0s:` with `rows:` and `expect:`")
