"""Sinks: each one is a stream of rows. And what becomes of the bytes of records that were rejected."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipelines.contract.language.base import Column, Expression, Model, Table, Word


def _once(columns: list[str]) -> list[str]:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f'"{twice[0]}" stands here twice')
    return columns


class LakeSink(Model):
    table: Table


class Sink(Model):
    """A stream of rows to a lake table: of the accepted rows, `from` a window, or `from` what a trigger captures; only those
    that match `where`, only the columns in `select`."""

    lake: LakeSink
    from_: Word | None = Field(None, alias="from")
    where: Expression | None = None
    select: Annotated[list[Column], AfterValidator(_once), Field(min_length=1)] | None = None


class Quarantine(Model):
    """Where the raw bytes of rejected records go. The default is `upload`, and `local` once a field is `sensitive`."""

    raw: Literal["upload", "local", "drop"] | None = None
