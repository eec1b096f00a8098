"""Checksums of what SQLite has none for: a flipped bit in a position or in state must not pass for the truth (I1).

A pipeline's row carries the CRC-32 of its other columns, among them `state_sum`: the sum of the CRC-32 of its state's entries.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence

_COLUMNS = "name, lineage, digest, number, positions, ledger, params, state_sum"


def of_entry(pipeline: str, key: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(f"{pipeline}\0{key}\0".encode(errors="surrogatepass")))


def of_row(columns: Sequence[object]) -> int:
    """Of a pipeline's row without its last column."""
    return zlib.crc32(json.dumps(list(columns)).encode())


def put_state(db: sqlite3.Connection, pipeline: str, deleted: Iterable[str], put: Mapping[str, bytes]) -> None:
    """Change entries of the state; `seal` must follow in the same transaction."""
    touched = json.dumps([*deleted, *put])
    here = "pipeline = ? AND key IN (SELECT value FROM json_each(?))"
    (gone,) = db.execute(f"SELECT coalesce(sum(crc), 0) FROM state WHERE {here}", (pipeline, touched)).fetchone()
    db.executemany("DELETE FROM state WHERE pipeline = ? AND key = ?", [(pipeline, key) for key in deleted])
    rows = [(pipeline, key, value, of_entry(pipeline, key, value)) for key, value in put.items()]
    db.executemany(
        "INSERT INTO state VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value, crc = excluded.crc", rows
    )
    if change := sum(row[3] for row in rows) - gone:
        db.execute("UPDATE pipelines SET state_sum = state_sum + ? WHERE name = ?", (change, pipeline))


def seal(db: sqlite3.Connection, pipeline: str) -> None:
    """After any change of the pipeline's row or state, in the same transaction."""
    row = db.execute(f"SELECT {_COLUMNS} FROM pipelines WHERE name = ?", (pipeline,)).fetchone()
    db.execute("UPDATE pipelines SET crc = ? WHERE name = ?", (of_row(row), pipeline))


def is_intact(row: Sequence[object], state: Iterable[tuple[str, bytes]]) -> bool:
    """Whether a pipeline's row (all columns) and the whole of its state are those that were written."""
    name, state_sum = str(row[0]), row[-2]
    return of_row(row[:-1]) == row[-1] and sum(of_entry(name, key, value) for key, value in state) == state_sum
