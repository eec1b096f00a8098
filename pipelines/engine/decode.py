"""Parsing: lines to the Arrow table that the stateless statement reads.

The table `_in` has `_row` (index in the batch), `_line` (text), `_bad` (why it does not decode, or null), for CSV one text column
`_c<i>` per field of the schema, and the `_meta_*` columns that the pipeline uses.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Framed records: `text` without line ends, `offsets` their byte positions in the input, `bad` index -> why not decodable."""

    text: pa.StringArray
    offsets: pa.Int64Array
    bad: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Batch:
    """What a source hands over at once. No lines: a timer. Times in microseconds: `arrival_us` in node time, which never steps;
    `received_at_us` of the wall clock, a label. `header` names the columns of CSV lines."""

    source: str
    arrival_us: int
    received_at_us: int
    lines: Lines | None = None
    file: str = ""
    header: tuple[str, ...] = ()


def input_table(batch: Batch, delimiter: str | None, csv_fields: Sequence[tuple[str, str]], meta: Sequence[str]) -> pa.Table:
    """The table `_in` of a batch. `csv_fields` are (column name in `_in`, CSV column); `delimiter` None: the lines are JSON."""
    lines = batch.lines
    assert lines is not None, "a timer has no table"
    columns: dict[str, pa.Array] = {"_row": pa.array(range(len(lines)), pa.int32()), "_line": lines.text}
    bad = dict(lines.bad)
    if delimiter is not None:
        columns |= _split_csv(lines.text, delimiter, batch.header, csv_fields, bad)
    columns["_bad"] = pa.array([bad.get(i) for i in range(len(lines))], pa.string()) if bad else pa.nulls(len(lines), pa.string())
    for name in meta:
        columns[f"_meta_{name}"] = _meta_column(name, batch)
    return pa.table(columns)


def _meta_column(name: str, batch: Batch) -> pa.Array:
    assert batch.lines is not None
    if name == "offset":
        return batch.lines.offsets
    stamp = pa.scalar(batch.received_at_us, pa.timestamp("us"))
    values = {"source": pa.scalar(batch.source), "file": pa.scalar(batch.file), "received_at": stamp}
    return pa.repeat(values[name], len(batch.lines))


META = {"source": "VARCHAR", "file": "VARCHAR", "offset": "BIGINT", "received_at": "TIMESTAMP"}


def _split_csv(
    lines: pa.StringArray, delimiter: str, header: Sequence[str], fields: Sequence[tuple[str, str]], bad: dict[int, str]
) -> dict[str, pa.Array]:
    wanted = {name: header.index(column) if column in header else None for name, column in fields}
    if pc.any(pc.match_substring(lines, '"')).as_py():
        rows = _parse_quoted(lines, delimiter, len(header), bad)
        return {
            name: pa.nulls(len(lines), pa.string()) if i is None else pa.array([row[i] for row in rows], pa.string())
            for name, i in wanted.items()
        }
    counts = pc.count_substring(lines, delimiter)
    fits = pc.equal(counts, len(header) - 1)
    if not pc.all(fits).as_py():
        for i in pc.indices_nonzero(pc.invert(fits)).to_pylist():
            bad.setdefault(i, f"{counts[i].as_py() + 1} fields, the header has {len(header)}")
        lines = pc.if_else(fits, lines, delimiter * (len(header) - 1))
    parts = pc.split_pattern(lines, delimiter)
    return {name: pa.nulls(len(lines), pa.string()) if i is None else pc.list_element(parts, i) for name, i in wanted.items()}


def _parse_quoted(lines: pa.StringArray, delimiter: str, width: int, bad: dict[int, str]) -> list[list[str]]:
    """Lines with quotes, one by one: an unbalanced quote spoils its own line only (RFC 4180 without line breaks in values)."""
    rows = []
    for i, line in enumerate(lines.to_pylist()):
        row, why = _split_line(line, delimiter)
        if why or len(row) != width:
            bad.setdefault(i, why or f"{len(row)} fields, the header has {width}")
            row = [""] * width
        rows.append(row)
    return rows


def _split_line(line: str, delimiter: str) -> tuple[list[str], str]:
    """The fields, or why there are none."""
    if '"' not in line:
        return line.split(delimiter), ""
    try:
        (row,) = csv.reader([line], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError) as error:
        return [], f"not CSV: {error}"
    return row, ""


def parse_header(line: bytes, delimiter: str) -> tuple[str, ...]:
    """The column names of a CSV file's first line; a byte order mark is dropped."""
    text = line.removeprefix(_BYTE_ORDER_MARK).decode(errors="replace").rstrip("\r\n")
    try:
        (row,) = csv.reader([text], delimiter=delimiter)
    except (csv.Error, ValueError):
        return (text,)
    return tuple(name.strip() for name in row)
