"""Parameters: values that may change without a new version."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import model_validator

from pipelines.contract.language.base import Model, check_limits, check_type, check_value
from pipelines.contract.node_state import Scalar


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
        check_limits(self)
        return self

    def check(self, value: object) -> Scalar:
        """`value` as this parameter's type. Raises ValueError with one line of why not."""
        check_type(self.type, value)
        check_value(self, value)
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
