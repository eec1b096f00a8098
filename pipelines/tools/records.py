"""Rows of a case as the bytes that a source would have given, stamped with the time of their instant."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from pipelines.contract.duration import US_PER, parse_duration
from pipelines.contract.language.schema import FieldSpec
from pipelines.contract.language.sources import Source
from pipelines.contract.spec import PipelineSpec
from pipelines.engine.batch import Lines
from pipelines.engine.records.framing import open_framer
from pipelines.tools.cases import Act

_OFFSET = re.compile(r"([+-])(\S+)\Z")


def encode(spec: PipelineSpec, source: Source, act: Act, start_us: int, now_us: int) -> tuple[Lines | None, tuple[str, ...]]:
    """The records of an act, and the column names where rows are CSV. Raises ValueError with what to write instead."""
    kind = decoder(source)
    if act.lines:
        text = "".join(f"{line}\n" for line in act.lines).encode(_CODECS.get(source.encoding, source.encoding))
        return open_framer(source.framing).frame(text, 0, is_last=True).lines, ()
    rows = [stamped(spec, row, start_us, now_us) for row in act.rows]
    if kind == "json":
        return _records([json.dumps(row, ensure_ascii=False) for row in rows]), ()
    if kind == "csv":
        header = _header(source, rows)
        delimiter = source.decode.csv.delimiter if source.decode.csv else ","
        return _records([_csv_line([row.get(name) for name in header], delimiter) for row in rows]), header
    raise ValueError(f"rows are for JSON and CSV sources, this one is decoded as {kind}: write its text as `lines: |`")


_CODECS = {"utf-16": "utf-16-le"}


def _records(texts: Sequence[str]) -> Lines:
    """Texts as records that lie one behind the other."""
    ends = list(accumulate(len(text.encode()) + 1 for text in texts))
    return Lines(pa.array(texts, pa.string()), pa.array([0, *ends[:-1]], pa.int64()))


def decoder(source: Source) -> str:
    """The kind of the source's decoder: `json`, `csv`, ..."""
    return next(iter(source.decode.model_dump(by_alias=True, exclude_none=True)), "json")


def stamped(spec: PipelineSpec, row: Mapping[str, Any], start_us: int, now_us: int) -> dict[str, Any]:
    """`row` with its event time: that of the instant where it has none; `3s` is after the start, `-2s` before the instant."""
    made: dict[str, Any] = json.loads(json.dumps(row))
    name = spec.event_time
    if name is None:
        return made
    field = spec.schema_[name]
    path = (field.from_ or name).split(".")
    if path[0] == "meta":
        return made
    if path[-1] not in row and len(path) > 1 and ".".join(path) in row:
        path = [".".join(path)]
    inner = made
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            return made
    at_us = _at(inner[path[-1]], start_us, now_us) if path[-1] in inner else now_us
    if at_us is not None:
        inner[path[-1]] = write_time(field, at_us)
    return made


def _at(value: Any, start_us: int, now_us: int) -> int | None:
    """The time that a duration in a case means; None: it is none, and stands as it is."""
    if not isinstance(value, str):
        return None
    signed = _OFFSET.match(value)
    try:
        if signed:
            return now_us + (1 if signed[1] == "+" else -1) * parse_duration(signed[2])
        return start_us + parse_duration(value)
    except ValueError:
        return None


def write_time(field: FieldSpec, us: int) -> Any:
    """A time as the records of this pipeline have it."""
    if field.unit in ("s", "ms", "us", "ns"):
        whole, rest = divmod(us * 1000, {"s": 1000 * US_PER["s"], "ms": 1000 * US_PER["ms"], "us": 1000, "ns": 1}[field.unit])
        return whole if not rest else us / US_PER[field.unit]
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    if field.format in (None, "iso"):
        return when.isoformat().replace("+00:00", "Z")
    local = when.astimezone(ZoneInfo(field.timezone)) if field.timezone else when
    return local.strftime(str(field.format))


def _header(source: Source, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    declared = source.decode.csv.columns if source.decode.csv else None
    if declared:
        return tuple(declared)
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _csv_line(values: Sequence[Any], delimiter: str) -> str:
    texts = ["" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    lines: list[str] = []
    csv.writer(_Into(lines), delimiter=delimiter, lineterminator="").writerow(texts)
    return lines[0]


class _Into:
    """A file for the csv module: what is written is appended to a list."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def write(self, text: str) -> int:
        self._lines.append(text)
        return len(text)
