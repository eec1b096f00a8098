"""What a reader made of the lines of a batch, and how parts of it that were read in different ways are put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.records.convert import Unfit

V = TypeVar("V")


@dataclass(frozen=True)
class Part:
    """Records of some lines. `line`: the number of each record's line, None: record i is line `lines[i]`. `lines` None: all."""

    columns: Sequence[pa.Array]
    line: pa.Array | None
    lines: pa.Array | None
    line_count: int
    unfit: Mapping[int, Mapping[int, Unfit]] = field(default_factory=dict)
    undecodable: Mapping[int, str] = field(default_factory=dict)
    unknown: Mapping[int, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TableRead:
    """Records in order. By record: `unfit` field index -> why, `undecodable`, `unknown` fields. `line`: as in Records."""

    columns: Sequence[pa.Array]
    count: int
    line: pa.Array | None
    unfit: Mapping[int, Mapping[int, Unfit]] = field(default_factory=dict)
    undecodable: Mapping[int, str] = field(default_factory=dict)
    unknown: Mapping[int, Sequence[str]] = field(default_factory=dict)


def merge(parts: Sequence[Part], types: Sequence[pa.DataType], line_count: int, *, many: bool) -> TableRead:
    """All records in the order of their lines. `many`: a line may give other than one record."""
    if len(parts) == 1 and parts[0].lines is None:
        (part,) = parts
        line = part.line if many else None
        return TableRead(
            part.columns,
            len(part.line) if many and part.line is not None else part.line_count,
            line,
            part.unfit,
            part.undecodable,
            part.unknown,
        )
    line = pa.concat_arrays([_line(part) for part in parts]) if parts else pa.array([], pa.int32())
    if many:
        order = pc.array_sort_indices(line).cast(pa.int32())  # stable: the records of a line stay in order
        place = pc.inverse_permutation(order)
    else:
        place, order = line, pc.inverse_permutation(line)
    columns = [pa.concat_arrays([part.columns[i] for part in parts]).take(order) for i in range(len(types))]
    unfit: dict[int, Mapping[int, Unfit]] = {}
    undecodable: dict[int, str] = {}
    unknown: dict[int, Sequence[str]] = {}
    start = 0
    for part in parts:
        unfit |= _moved(part.unfit, start, place)
        undecodable |= _moved(part.undecodable, start, place)
        unknown |= _moved(part.unknown, start, place)
        start += len(_line(part))
    return TableRead(columns, len(line), line.take(order) if many else None, unfit, undecodable, unknown)


def _line(part: Part) -> pa.Array:
    if part.line is not None:
        return part.line
    return part.lines if part.lines is not None else pa.array(range(part.line_count), pa.int32())


def _moved(found: Mapping[int, V], start: int, place: pa.Array) -> dict[int, V]:
    return {place[start + row].as_py(): value for row, value in found.items()}
