"""Rejected records whose raw bytes stay on the node (`quarantine: {raw: local}`): chunks in agent.db, the oldest go first (I9).

Written in the transaction of the commit that counts them (I1). A chunk is zlib of a JSON list of rows.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.config import MIB
from pipelines.contract.errors import Refused, TidewireError

BYTES_MAX = 64 * MIB
CHUNK_ROWS_MAX, CHUNK_BYTES_MAX = 1_000, MIB  # before compression: what is forgotten at once


@dataclass(frozen=True, slots=True)
class Chunk:
    rows: int
    data: bytes


def pack(rows: Sequence[Mapping[str, Any]]) -> Chunk:
    return Chunk(len(rows), zlib.compress(json.dumps(rows, ensure_ascii=False).encode(errors="surrogatepass"), 1))


def unpack(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(zlib.decompress(data).decode(errors="surrogatepass"))
    return rows


def put(db: sqlite3.Connection, pipeline: str, chunks: Sequence[Chunk], budget_bytes: int) -> None:
    db.executemany(
        "INSERT INTO quarantine (pipeline, rows, bytes, data) VALUES (?, ?, ?, ?)",
        [(pipeline, chunk.rows, len(chunk.data), chunk.data) for chunk in chunks],
    )
    (used,) = db.execute("SELECT sum(bytes) FROM quarantine").fetchone()
    for row_id, size in db.execute("SELECT id, bytes FROM quarantine ORDER BY id").fetchall() if used > budget_bytes else ():
        db.execute("DELETE FROM quarantine WHERE id = ?", (row_id,))
        used -= size
        if used <= budget_bytes:
            return


def read(data_dir: Path, pipeline: str, limit: int) -> list[dict[str, Any]]:
    """The newest rows, newest first, of one pipeline or of all (""). Works beside a running agent."""
    path = data_dir / "agent.db"
    if not path.exists():
        raise Refused("no agent has run here", op="quarantine", place=str(data_dir), hint="give its directory with --data-dir")
    found: list[dict[str, Any]] = []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            for pipeline_name, data in db.execute(
                "SELECT pipeline, data FROM quarantine WHERE ? IN ('', pipeline) ORDER BY id DESC", (pipeline,)
            ):
                found += [{"pipeline": pipeline_name, **row} for row in reversed(unpack(data))]
                if len(found) >= limit:
                    break
    except (sqlite3.Error, zlib.error, ValueError) as error:
        if "no such table" in str(error):
            return []
        raise TidewireError(str(error), op="quarantine", place=str(path), hint="is it this agent's, and readable?") from None
    return found[:limit]
