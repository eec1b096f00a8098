"""Lookup tables: rows beside the pipeline that steps take columns from."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from pipelines.contract.language.base import Column, Model, Texts, Type
from pipelines.contract.node_state import Scalar

LOOKUP_ROWS_MAX = 1_000_000


class LookupTable(Model):
    """A table of the node: `rows` written here, or a CSV `file` with a header line. `key` tells its rows apart.

    `columns` types it. Without it, inline columns have the type of their values, and those of a file are strings.
    """

    NOUN, ONE_OF = "lookup table", ("rows", "file")

    rows: list[dict[Column, Scalar]] | None = Field(None, min_length=1)
    file: str | None = Field(None, min_length=1)
    artifact: str | None = None
    key: Texts
    columns: dict[Column, Type] = {}

    @model_validator(mode="before")
    @classmethod
    def _no_artifact_yet(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("artifact") is not None:
            raise ValueError("tables from artifacts come with fleet artifacts: for now write `rows:` or `file:`")
        return data
