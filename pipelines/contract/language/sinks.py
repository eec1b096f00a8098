"""Sinks: each one is a stream of rows."""

from __future__ import annotations

from pydantic import Field

from pipelines.contract.language.base import Expression, Model, Table, Word


class LakeSink(Model):
    table: Table


class Sink(Model):
    """A stream of rows to a lake table: of the accepted rows, or `from` a window; only those that match `where`."""

    lake: LakeSink
    from_: Word | None = Field(None, alias="from")
    where: Expression | None = None
