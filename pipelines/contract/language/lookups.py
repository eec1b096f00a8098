"""Lookup tables: rows beside the pipeline that steps take columns from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from pipelines.contract.artifact import parse_reference
from pipelines.contract.language.base import Column, Model, Texts, Type
from pipelines.contract.node_state import Scalar

LOOKUP_ROWS_MAX = 1_000_000
LOOKUP_BYTES_MAX = 64 * 1024 * 1024  # of a CSV file


def _reference(text: str) -> str:
    parse_reference(text)
    return text


class LookupTable(Model):
    """A table of the node: `rows` written here, or a CSV with a header line: a `file` of the node, or an `artifact` that the
    control plane keeps (`NAME` for the newest, `NAME@N` for one that stays). `key` tells its rows apart.

    `columns` types it. Without it, inline columns have the type of their values, and those of a CSV are strings.
    """

    NOUN, ONE_OF = "lookup table", ("rows", "file", "artifact")

    rows: list[dict[Column, Scalar]] | None = Field(None, min_length=1)
    file: str | None = Field(None, min_length=1)
    artifact: Annotated[str, AfterValidator(_reference)] | None = None
    key: Texts
    columns: dict[Column, Type] = {}
