"""Alarms, and what to do about them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.contract.duration import Duration
from pipelines.contract.language.base import Column, Expression, Model, exactly_one


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
        exactly_one(self, "action", ("log", "webhook", "exec"))
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
