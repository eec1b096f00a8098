"""Event-time windows."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipelines.contract.duration import Duration
from pipelines.contract.language.base import Column, Expression, Model


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
