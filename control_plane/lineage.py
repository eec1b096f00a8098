"""The columns that ingest adds to the rows of segments. Pure.

They say the same for every row of a segment, so texts are dictionaries and nothing is built row by row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Any

import pyarrow as pa

from control_plane.columns import LINEAGE, LOG_LINEAGE
from pipelines.contract.frames import sha256
from pipelines.contract.language.base import LOG
from pipelines.contract.segment import Segment

_LONG, _INT, _BYTE = Struct("<q"), Struct("<i"), Struct("<b")


@dataclass(frozen=True)
class WindowKey:
    """What the rows of a window table are revisions of: `by` are the columns of its groups, `definition` says which window."""

    by: tuple[str, ...] = ()
    definition: str = ""

    @classmethod
    def of(cls, by: Sequence[str], definition: bytes) -> WindowKey:
        return cls(tuple(by), sha256(definition))


def lineage_schema(table: str) -> pa.Schema:
    return pa.schema([*LINEAGE, *LOG_LINEAGE]) if table.endswith(LOG) else LINEAGE


def lineage_columns(segments: Sequence[Segment], counts: Sequence[int], now_us: int) -> list[pa.ChunkedArray]:
    """`LINEAGE` of the rows of `segments`, which have `counts` rows each."""
    columns = []
    for field in LINEAGE:
        if field.name == "_row":
            columns.append(pa.chunked_array([_counting(count) for count in counts]))
        elif field.name == "_received_at":
            columns.append(_repeated([now_us] * len(counts), counts, field.type))
        else:
            values = [getattr(s.header, _FIELDS.get(field.name, field.name[1:])) for s in segments]
            columns.append(_repeated(values, counts, field.type))
    return columns


def log_columns(segment: Segment, rows: pa.Table, key: WindowKey) -> list[pa.ChunkedArray]:
    """`LOG_LINEAGE` of the rows of a window: revisions count within one state of one definition; the group as JSON."""
    lineage = sha256(f"{segment.header.lineage} {key.definition}".encode())[7:39]
    values = rows.select([name for name in key.by if name in rows.column_names]).to_pylist()
    groups = [json.dumps(row, default=str, ensure_ascii=False) for row in values] or ["{}"] * rows.num_rows
    return [
        pa.chunked_array([pa.array([lineage] * rows.num_rows, pa.string())]),
        pa.chunked_array([pa.array(groups, pa.string())]),
    ]


def _repeated(values: Sequence[Any], counts: Sequence[int], kind: pa.DataType) -> pa.ChunkedArray:
    if not pa.types.is_string(kind):
        return pa.chunked_array([_numbers(kind, [_LONG.pack(v) * n]) for v, n in zip(values, counts, strict=True)], kind)
    codes: dict[str, int] = {}
    indices = [codes.setdefault(value, len(codes)) for value in values]
    code, code_kind = (_BYTE, pa.int8()) if len(codes) < 128 else (_INT, pa.int32())
    numbers = _numbers(code_kind, [code.pack(index) * n for index, n in zip(indices, counts, strict=True)])
    return pa.chunked_array([pa.DictionaryArray.from_arrays(numbers, pa.array(list(codes), kind))])


def _numbers(kind: pa.DataType, parts: Sequence[bytes]) -> pa.Array:
    data = b"".join(parts)
    return pa.Array.from_buffers(kind, len(data) // (kind.bit_width // 8), [None, pa.py_buffer(data)])


@lru_cache(maxsize=64)  # segments of one pipeline are of few sizes; 64 of 12,000 rows are 6 MB
def _counting(count: int) -> pa.Array:
    """0, 1, 2 ..."""
    return pa.arange(0, count)


_FIELDS = {"_version": "number"}
