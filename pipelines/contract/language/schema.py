"""The schema: the contract that a record keeps or is quarantined for."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipelines.contract.language.base import Model, Type, check_limits
from pipelines.contract.node_state import Scalar


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
            check_limits(self)
        return self
