"""Decoders: how the text of a record becomes named values."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from pipelines.contract.language.base import Model, exactly_one


class Json(Model):
    """One JSON object a line (RFC 8259, jsonlines)."""


class Csv(Model):
    """Delimited lines. The first line of each file names the columns, unless `columns` does."""

    delimiter: str = Field(",", min_length=1, max_length=1)
    columns: list[str] | None = None


def decode_short_form(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


class Decode(Model):
    """How bytes become records: exactly one kind; `decode: json` is short for `decode: {json: {}}`."""

    json_: Json | None = Field(None, alias="json")
    csv: Csv | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        exactly_one(self, "decoder", ("json_", "csv"))
        return self
