"""Rows of the buffer as files for a person. It needs pyarrow, which is not for the agent's process."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from edge_agent import buffer
from edge_agent.buffer import Held, RunOf
from pipelines.contract.errors import Refused, TidewireError
from pipelines.engine.ipc import decode_rows

SUFFIXES = {".arrow": "arrow", ".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))


@dataclass(frozen=True, slots=True)
class Written:
    """A file of one stream. `skipped` segments had bytes that cannot be read."""

    path: Path
    stream: str
    rows: int
    segments: int
    skipped: int


class _Writer(Protocol):
    def write(self, rows: pa.Table) -> None: ...
    def close(self) -> None: ...


def export(db: sqlite3.Connection, runs: Sequence[RunOf], to: Path, how: str) -> list[Written]:
    """One file per stream, and another where its columns change; all rows go to `to` itself when that names a file."""
    is_file = to.suffix in SUFFIXES
    streams = dict.fromkeys(run.name for run in runs)
    if is_file and len(streams) > 1:
        hint = f"pick one with --stream, or give a directory: {', '.join(streams)}"
        raise Refused(f"{len(streams)} streams do not fit one file", op="export", place=str(to), hint=hint)
    folder = to.parent if is_file else to
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name in streams:
            base = to if is_file else folder / f"{name.replace('/', '.')}.{how}"
            written += _Stream(base, name, how).export(db, [run for run in runs if run.name == name])
    except OSError as error:
        raise TidewireError(error.strerror or str(error), op="export", place=str(to), hint="give another place") from None
    return written


class _Stream:
    def __init__(self, base: Path, name: str, how: str) -> None:
        self._base, self._name, self._how = base, name, how
        self._writer: _Writer | None = None
        self._schema: pa.Schema | None = None
        self._counts = [0, 0, 0]  # rows, segments, skipped
        self._written: list[Written] = []

    def export(self, db: sqlite3.Connection, runs: Sequence[RunOf]) -> list[Written]:
        for run in runs:
            for held in buffer.held(db, run):
                rows = _rows(run, held)
                self._counts[2] += rows is None
                if rows is not None and rows.num_rows:
                    self._put(rows)
        if self._writer is not None or self._counts[2]:
            self._end()
        return self._written

    def _put(self, rows: pa.Table) -> None:
        if self._writer is None or rows.schema != self._schema:
            if self._writer is not None:
                self._end()
            number = len(self._written) + 1
            self._path = self._base if number == 1 else self._base.with_stem(f"{self._base.stem}-{number}")
            if self._path.exists():
                raise Refused("it exists", op="export", place=str(self._path), hint="give another place, or remove it")
            self._schema = rows.schema
            self._writer = _WRITERS[self._how](self._path, rows.schema)
        self._writer.write(rows)
        self._counts[0] += rows.num_rows
        self._counts[1] += 1

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        rows, segments, skipped = self._counts
        self._written.append(Written(self._path if self._writer else self._base, self._name, rows, segments, skipped))
        self._writer, self._counts = None, [0, 0, 0]


def segment_facts(held: Held, limit: int) -> dict[str, Any]:
    """JSON-ready but for the rows' values: header, and the first rows as far as they can be read."""
    rows = _decoded(held)
    first = rows.slice(0, limit).to_pylist() if rows is not None else []
    return {"header": asdict(held.header), "digest": held.digest, "bytes": len(held.data), "first_rows": first}


def _decoded(held: Held) -> pa.Table | None:
    """The rows of a segment; None when its bytes cannot be read."""
    try:
        return decode_rows(held.payload) if held.header.rows else pa.table({})
    except (Refused, TypeError):
        return None


def _rows(run: RunOf, held: Held) -> pa.Table | None:
    """With run and number of the segment, by which the lake knows each row; None when its bytes cannot be read."""
    rows = _decoded(held)
    if rows is None or not rows.num_rows:
        return rows
    rows = rows.append_column("_run", pa.repeat(run.run, rows.num_rows))
    return rows.append_column("_seq", pa.repeat(held.seq, rows.num_rows))


class _Json:
    """One object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def write(self, rows: pa.Table) -> None:
        for row in rows.to_pylist():
            self._file.write(json.dumps(row, default=_plain, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Csv:
    """Lists, structs and bytes as JSON text: CSV has none."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = pa.schema([(f.name, pa.string() if _is_nested(f.type) else f.type) for f in schema])
        self._writer = pacsv.CSVWriter(path, self._schema)

    def write(self, rows: pa.Table) -> None:
        columns = [
            pa.array(
                [None if v is None else json.dumps(v, default=_plain, ensure_ascii=False) for v in column.to_pylist()],
                pa.string(),
            )
            if _is_nested(column.type)
            else column
            for column in rows.columns
        ]
        self._writer.write(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


_WRITERS: dict[str, Callable[[Path, pa.Schema], _Writer]] = {
    "arrow": lambda path, schema: pa.ipc.new_file(str(path), schema),
    "parquet": lambda path, schema: pq.ParquetWriter(path, schema, compression="zstd"),
    "csv": _Csv,
    "json": lambda path, _: _Json(path),
}
