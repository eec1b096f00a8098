"""Alarms, and what to do about them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from pipelines.contract.duration import Duration, format_duration, parse_duration
from pipelines.contract.language.base import Column, Expression, Model, Word
from pipelines.contract.node_state import Scalar

LATEST: Literal["latest"] = "latest"
_NUMBER_FIRST = re.compile(r"\s*[0-9]+(?:\.[0-9]+)?\s*[a-zA-Z]*\s*\Z")


def _delay(value: Any) -> Any:
    """A duration, or else an expression in seconds."""
    if isinstance(value, str) and not _NUMBER_FIRST.match(value):
        return value
    return parse_duration(value)


def _over(value: Any) -> Any:
    return value if value == LATEST else parse_duration(value)


def _write_duration(value: int | str) -> str:
    return value if isinstance(value, str) else format_duration(value)


def _longer_than_nothing(value: int) -> int:
    if value <= 0:
        raise ValueError("it must be longer than nothing")
    return value


Delay = Annotated[int | str, BeforeValidator(_delay), PlainSerializer(_write_duration, return_type=str)]
Over = Annotated[int | Literal["latest"], BeforeValidator(_over), PlainSerializer(_write_duration, return_type=str)]
Span = Annotated[Duration, AfterValidator(_longer_than_nothing)]


class LogAction(Model):
    message: str | None = None


class WebhookAction(Model):
    """POST of the incident as JSON, with the action's id as `Idempotency-Key`."""

    url: str = Field(pattern=r"^(https?://|\$\{)")
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

    NOUN, ONE_OF = "action", ("log", "webhook", "exec")

    log: LogAction | None = None
    webhook: WebhookAction | None = None
    exec: ExecAction | None = None
    valid_for: Duration | None = None

    @property
    def kind(self) -> str:
        return "log" if self.log else "webhook" if self.webhook else "exec"


Actions = list[Annotated[Action, BeforeValidator(_action_short_form)]]


class TriggerActions(Model):
    """What to do when an incident is raised, acknowledged, back to normal; every `remind`: `on_remind`, or `on_raise` again;
    when it cannot judge any more (`degraded_when`)."""

    on_raise: Actions = []
    on_ack: Actions = []
    on_clear: Actions = []
    on_remind: Actions | None = None
    on_degraded: Actions = []

    def every(self) -> list[Action]:
        return [*self.on_raise, *self.on_ack, *self.on_clear, *(self.on_remind or []), *self.on_degraded]


class Escalation(Model):
    """More actions when an incident is still open `after` its raise."""

    after: Span
    unless: Literal["acknowledged"] | None = None
    actions: Actions = Field(min_length=1)


class Flapping(Model):
    """An incident raised `raises` times `within` is chattering: it stays until it was calm for as long."""

    raises: int = Field(ge=2, le=100)
    within: Span


class ExpectLookup(Model):
    """One group for each key of a lookup table."""

    lookup: Word
    key: Column


class ExpectSeen(Model):
    """Each group that was heard of once, until it was silent for `seen`."""

    seen: Span


class Capture(Model):
    """A stream named `to`: the rows of the group from `before` the raise until `after` it."""

    before: Duration = 0
    after: Duration = 0
    to: Word


_OF_CONDITIONS = ("over", "from_", "each", "stale_after", "clear_when", "only_when", "only_delay", "degraded_when", "max_age")
_OF_ABSENCE = ("expect", "start_grace")


class Trigger(Model):
    """An alarm with one incident per group of `by`: a condition over rows (`when`), or their absence (`absent`)."""

    NOUN, ONE_OF = "trigger", ("when", "absent")

    over: Over | None = None
    from_: Word | None = Field(None, alias="from")
    each: list[Column] = []
    by: list[Column] = []
    stale_after: Span | None = None
    when: Expression | None = None
    for_: Delay = Field(0, alias="for")
    clear_when: Expression | None = None
    clear_for: Delay = 0
    only_when: Expression | None = None
    only_delay: Duration = 0
    degraded_when: Expression | None = None
    on_no_data: Literal["hold", "clear", "raise"] = "hold"
    absent: Span | None = None
    expect: list[Scalar] | ExpectLookup | ExpectSeen | None = None
    start_grace: Duration | None = None
    quality: Literal["good", "any"] = "good"
    max_age: Span | None = None
    suppressed_by: list[Word] = []
    latch: bool = False
    ack: Literal["required", "optional", "none"] = "optional"
    remind: Span | None = None
    escalate: list[Escalation] = []
    flapping: Flapping | None = None
    max_open: int = Field(1_000, ge=1, le=100_000)
    max_groups: int = Field(10_000, ge=1, le=1_000_000)
    capture: Capture | None = None
    severity: Literal["critical", "warning", "info"] = "warning"
    message: str = ""
    advice: str = ""
    actions: TriggerActions = TriggerActions()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.absent is not None:
            self._refuse(_OF_CONDITIONS, "absent")
            if isinstance(self.for_, str) or isinstance(self.clear_for, str):
                raise ValueError("beside absent, for and clear_for are durations")
            if self.on_no_data != "hold":
                raise ValueError("on_no_data has no meaning beside absent")
            if isinstance(self.expect, (list, ExpectLookup)) and len(self.by) != 1:
                raise ValueError("expect names the values of one column: give by one column")
            return self
        self._refuse(_OF_ABSENCE, "when")
        if self.over is None and self.from_ is None:
            raise ValueError("over is missing: a span such as 10s, or latest for the newest row of each")
        if self.over == 0:
            raise ValueError("over must be longer than nothing")
        if not self.is_latest and (self.each or self.stale_after):
            raise ValueError(f"{'each' if self.each else 'stale_after'} belongs to over: latest")
        if self.only_delay and not self.only_when:
            raise ValueError("only_delay has no meaning without only_when")
        return self

    def _refuse(self, names: tuple[str, ...], beside: str) -> None:
        for name in names:
            if getattr(self, name) not in (None, 0, []):
                raise ValueError(f"{name.rstrip('_')} has no meaning beside {beside}")

    @property
    def is_latest(self) -> bool:
        return self.over == LATEST or self.over is None

    @property
    def over_us(self) -> int | None:
        """The span; None: the newest rows."""
        return self.over if isinstance(self.over, int) else None
