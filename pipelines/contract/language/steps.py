"""Row steps, in order."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipelines.contract.language.base import Column, Expression, Model, exactly_one


class Step(Model):
    """One row step: exactly one of filter, derive, enrich."""

    filter: Expression | None = None
    derive: dict[Column, Expression] | None = Field(None, min_length=1)
    enrich: dict[Column, str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        exactly_one(self, "step", ("filter", "derive", "enrich"))
        return self
