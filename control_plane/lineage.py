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

_LONG, _INT, _INT64 = Struct("<q"), Struct("<i"), pa.int64()


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


def lineage_columns(segments: Sequence[Segment], counts: Sequence[int], now_us: int) -> list[pa.Array]:
    """`LINEAGE` of the rows of `segments`, which have `counts` rows each."""
    special = {
        "_row": _numbers([_counting(count) for count in counts]),
        "_received_at": _numbers([_LONG.pack(now_us) * sum(counts)]),
    }
    columns = []
    for field in LINEAGE:
        if field.name in special:
            columns.append(special[field.name].view(field.type))
        else:
            values = [getattr(s.header, _FIELDS.get(field.name, field.name[1:])) for s in segments]
            columns.append(_repeated(values, counts, field.type))
    return columns


def log_columns(segment: Segment, rows: pa.Table, key: WindowKey) -> list[pa.Array]:
    """`LOG_LINEAGE` of the rows of a window: revisions count within one state of one definition; the group as JSON."""
    lineage = sha256(f"{segment.header.lineage} {key.definition}".encode())[7:39]
    values = rows.select([name for name in key.by if name in rows.column_names]).to_pylist()
    groups = [json.dumps(row, default=str, ensure_ascii=False) for row in values] or ["{}"] * rows.num_rows
    return [_repeated([lineage], [rows.num_rows], pa.string()), pa.array(groups, pa.string())]


def _repeated(values: Sequence[Any], counts: Sequence[int], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_string(kind):
        return _numbers([_LONG.pack(value) * count for value, count in zip(values, counts, strict=True)]).view(kind)
    codes: dict[str, int] = {}
    indices = [_INT.pack(codes.setdefault(v, len(codes))) * count for v, count in zip(values, counts, strict=True)]
    return pa.DictionaryArray.from_arrays(_numbers(indices, pa.int32()), pa.array(list(codes), kind))


def _numbers(parts: Sequence[bytes], kind: pa.DataType = _INT64) -> pa.Array:
    data = b"".join(parts)
    return pa.Array.from_buffers(kind, len(data) // (kind.bit_width // 8), [None, pa.py_buffer(data)])


@lru_cache(maxsize=256)  # segments of one pipeline are of few sizes; 256 of 12,000 rows are 25 MB
def _counting(count: int) -> bytes:
    """0, 1, 2 ..."""
    return bytes(pa.arange(0, count).buffers()[1])[: 8 * count]


_FIELDS = {"_version": "number"}
