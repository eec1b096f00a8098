"""Answers to requests in agent.db: functions over the store's connection, each within its caller's transaction.

What is sealed of an answer and that it is sealed are one commit (I1), so that each request is answered once. The ledger of the
stream is the node's own: it belongs to no pipeline.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge_agent import quarantine, schema
from edge_agent.database import parsed
from edge_agent.outbox import Sealed
from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256, unpack
from pipelines.contract.keys import SIGNATURE_BYTES
from pipelines.contract.segment import REQUESTS, ROWS, WALL

OWNER = "_node"  # in place of a pipeline's name
STREAM, TABLE = "_requests", "requests"
LEDGER = "answers"  # in `meta`


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is: `begun_us` in node time; `rows` of its answer are sealed; `is_over`: the end, too."""

    id: str
    begun_us: int
    rows: int = 0
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """Of all answers together (I4). `lineage` is minted with the store."""

    lineage: str
    commits: int = 0
    rows: int = 0


def take_up(db: sqlite3.Connection, request: str, now_us: int) -> Progress:
    """Where a former life of the agent left it, or its beginning."""
    db.execute("INSERT OR IGNORE INTO requests (id, begun_us) VALUES (?, ?)", (request, now_us))
    (row,) = db.execute("SELECT id, begun_us, rows, is_over FROM requests WHERE id = ?", (request,)).fetchall()
    return Progress(row[0], row[1], row[2], bool(row[3]))


def known(db: sqlite3.Connection) -> dict[str, bool]:
    """Requests that were taken up, and whether their answers are over."""
    return {name: bool(is_over) for name, is_over in db.execute("SELECT id, is_over FROM requests")}


def is_over(db: sqlite3.Connection, request: str) -> bool:
    return known(db).get(request, False)


def forget(db: sqlite3.Connection, keep: Collection[str]) -> None:
    """Those that the manifest no longer names."""
    db.execute("DELETE FROM requests WHERE id NOT IN (SELECT value FROM json_each(?))", (json.dumps(sorted(keep)),))


def note(db: sqlite3.Connection, request: str, rows: int, *, is_over: bool) -> None:
    db.execute("UPDATE requests SET rows = ?, is_over = ? WHERE id = ?", (rows, int(is_over), request))


def ledger(db: sqlite3.Connection) -> Ledger:
    stored = schema.get_meta(db, LEDGER)
    return parsed(lambda raw: Ledger(**raw), stored) if stored else Ledger(secrets.token_hex(8))


def to_seal(db: sqlite3.Connection, before: Ledger, payloads: Sequence[tuple[int, bytes]]) -> list[Sealed]:
    """Segments of (rows, Arrow IPC stream), counted."""
    commits, written = before.commits + 1, before.rows + sum(rows for rows, _ in payloads)
    schema.put_meta(db, LEDGER, json.dumps(asdict(Ledger(before.lineage, commits, written))))
    made, through = [], before.rows
    for rows, payload in payloads:
        through += rows
        counts = {"commit": commits, "source": {}, "stream": {"offered": written, "written": written}, "sealed": through}
        made.append(Sealed(STREAM, REQUESTS, TABLE, rows, payload, ledgers=counts, stamps=WALL))
    return made


# What a query sees


def buffered(db: sqlite3.Connection, tables: Iterable[str]) -> list[tuple[int, str, int, int]]:
    """(id, table, rows, bytes) of the segments that wait for the lake, the newest first."""
    return db.execute(
        "SELECT o.id, s.lake_table, o.rows, o.bytes FROM outbox o JOIN streams s ON s.id = o.stream_id"
        " WHERE s.kind = ? AND o.void = '' AND s.lake_table IN (SELECT value FROM json_each(?)) ORDER BY o.id DESC",
        (ROWS, json.dumps(sorted(tables))),
    ).fetchall()


def payload(db: sqlite3.Connection, segment_id: int) -> bytes | None:
    """The rows of one segment; None once the lake has them, or when the disk damaged them."""
    row = db.execute("SELECT data, digest FROM outbox WHERE id = ? AND void = ''", (segment_id,)).fetchone()
    if row is None or sha256(row[0]) != row[1]:
        return None
    try:
        blobs = unpack(row[0][SIGNATURE_BYTES:])[1]
    except Refused:
        return None
    return blobs[0] if blobs else None


def tables(db: sqlite3.Connection) -> set[str]:
    """Lake tables that streams of rows here go into."""
    return {row[0] for row in db.execute("SELECT DISTINCT lake_table FROM streams WHERE kind = ?", (ROWS,))}


def kept_chunk(db: sqlite3.Connection, before: int) -> tuple[int, str, int, list[dict[str, Any]]] | None:
    """(id, pipeline, bytes, rows) of the newest rejected records kept here before chunk `before`, without their raw bytes: those
    may not leave the node."""
    row = db.execute(
        "SELECT id, pipeline, bytes, data FROM quarantine WHERE id < ? ORDER BY id DESC LIMIT 1", (before,)
    ).fetchone()
    if row is None:
        return None
    rows = [{name: value for name, value in kept.items() if name != "raw"} for kept in quarantine.unpack(row[3])]
    return row[0], row[1], row[2], rows
