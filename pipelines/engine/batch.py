"""Lines and batches: what a source hands over, and the facts it knows of each line (`meta.*`)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.records.spans import Spans

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

META = {
    **dict.fromkeys(("source", "file", "topic", "key", "quality", "quality_code"), "VARCHAR"),
    "offset": "BIGINT",
    "received_at": "TIMESTAMP",
    **dict.fromkeys(("retained", "replayed"), "BOOLEAN"),
}
_TYPES = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "TIMESTAMP": pa.timestamp("us"), "BOOLEAN": pa.bool_()}


@dataclass(frozen=True)
class Lines:
    """Framed records without line ends, as a column (`text`) or where they lie (`spans`): `texts` is one of them, the other is
    made of it when it is asked for. `offsets`: their byte positions in the input; `bad` index -> why not decodable."""

    texts: pa.StringArray | Spans
    offsets: pa.Int64Array
    bad: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def text(self) -> pa.StringArray:
        return self.texts.texts() if isinstance(self.texts, Spans) else self.texts

    @cached_property
    def spans(self) -> Spans:
        return self.texts if isinstance(self.texts, Spans) else Spans.of(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def without_first(self) -> Lines:
        rest = slice(1, None)
        texts = self.texts.pick(rest) if isinstance(self.texts, Spans) else self.texts[rest]
        return Lines(texts, self.offsets[1:], {i - 1: why for i, why in self.bad.items() if i})


@dataclass(frozen=True)
class Batch:
    """What a source hands over at once. No lines: a timer. Times in microseconds: `arrival_us` in node time, which never steps;
    `received_at_us` of the wall clock, a label. `header` names the columns of CSV lines. `facts` are words of `meta.*` that the
    source knows: one value for all lines, or an array of one for each; `topic.machine` is what `{machine}` stood for."""

    source: str
    arrival_us: int
    received_at_us: int
    lines: Lines | None = None
    file: str = ""
    header: tuple[str, ...] = ()
    facts: Mapping[str, pa.Array | str | int | bool | datetime | None] = field(default_factory=dict)


def meta_type(word: str) -> str:
    """The SQL type of `meta.<word>`; words of two parts, such as `topic.machine`, are text."""
    return META.get(word, "VARCHAR")


def meta_column(word: str) -> str:
    """The column of the row table that holds it."""
    return "_meta_" + word.replace(".", "_")


def meta_values(batch: Batch, word: str) -> pa.Array:
    """One value a line; NULL where the source does not know."""
    assert batch.lines is not None, "a timer has no rows"
    type_ = _TYPES[meta_type(word)]
    if word == "offset" and word not in batch.facts:
        return batch.lines.offsets
    known: Mapping[str, Any] = {
        "source": batch.source,
        "file": batch.file,
        "received_at": batch.received_at_us,
        "quality": "good",
        "retained": False,
        "replayed": False,
        **batch.facts,
    }
    value = known.get(word)
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        values = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
        return values.cast(type_)
    return pa.repeat(pa.scalar(value, type_), len(batch.lines))


def unfit_lines(batch: Batch) -> pa.Array | None:
    """Whether each line is of bad quality, retained or replayed, and so must not raise an alarm. None: none is."""
    if not batch.facts.keys() & {"quality", "retained", "replayed"}:
        return None
    bad = pc.equal(meta_values(batch, "quality"), pa.scalar("bad"))
    old = pc.or_kleene(meta_values(batch, "retained"), meta_values(batch, "replayed"))
    unfit = pc.fill_null(pc.or_kleene(bad, old), False)
    return unfit if pc.any(unfit).as_py() else None


def parse_header(line: bytes, delimiter: str) -> tuple[str, ...]:
    """The column names of a CSV file's first line; a byte order mark is dropped."""
    text = line.removeprefix(_BYTE_ORDER_MARK).decode(errors="replace").rstrip("\r\n")
    try:
        (row,) = csv.reader([text], delimiter=delimiter)
    except (csv.Error, ValueError):
        return (text,)
    return tuple(name.strip() for name in row)
