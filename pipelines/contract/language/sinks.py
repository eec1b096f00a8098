"""Sinks: each one is a stream of rows. What becomes of the bytes of records that were rejected. The buffer for both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipelines.contract.language.base import Column, Expression, Model, Table, Word
from pipelines.contract.size import Size, format_size

PRIORITY_DEFAULT, PRIORITY_LAST = 5, 9  # 1 comes first
BUFFER_BYTES_MIN = 1 << 20  # a segment has up to half of it


def _once(columns: list[str]) -> list[str]:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f'"{twice[0]}" stands here twice')
    return columns


def _priority(number: int) -> int:
    if not 1 <= number <= PRIORITY_LAST:
        raise ValueError(f"{number} is no priority: write 1 (first) to {PRIORITY_LAST} (last)")
    return number


class LakeSink(Model):
    table: Table


class Sink(Model):
    """A stream of rows to a lake table: of the accepted rows, `from` a window, or `from` what a trigger captures; only those
    that match `where`, only the columns in `select`. `priority` is its place on the link and its weight in a full buffer."""

    lake: LakeSink
    from_: Word | None = Field(None, alias="from")
    where: Expression | None = None
    select: Annotated[list[Column], AfterValidator(_once), Field(min_length=1)] | None = None
    priority: Annotated[int, AfterValidator(_priority)] = Field(
        PRIORITY_DEFAULT, json_schema_extra={"minimum": 1, "maximum": PRIORITY_LAST}
    )


def _room_for_segments(size: int) -> int:
    if size < BUFFER_BYTES_MIN:
        raise ValueError(f"{format_size(size)} is too small for a buffer: write {format_size(BUFFER_BYTES_MIN)} or more")
    return size


class Buffer(Model):
    """How much of the node's buffer the streams of this pipeline may hold together while the lake is out of reach, and what
    happens then. Without `max_size`: what the node gives."""

    max_size: Annotated[Size, AfterValidator(_room_for_segments)] | None = None
    when_full: Literal["drop_oldest", "drop_newest", "block"] = "drop_oldest"


class Quarantine(Model):
    """Where the raw bytes of rejected records go. The default is `upload`, and `local` once a field is `sensitive`."""

    raw: Literal["upload", "local", "drop"] | None = None
