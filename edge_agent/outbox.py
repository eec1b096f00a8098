"""Sealed segments that the lake has not confirmed: functions over the store's connection, each within its caller's transaction.

Order and chain. Segments of a run are numbered from 1 and each names the digest of the one before. Nothing rewrites a sealed
segment: whatever breaks a history (a clone, a restored lake, another table) starts a new run instead.

Eviction (I3, I9). When the budget is used up, the oldest run that takes no more segments loses the *bytes* of all it has pending;
keys, digests and row counts stay. They are still pending: the lake may have received them before the link went. The next answer
to a question for marks tells: what is at or below the mark was stored, the rest is void and counted in the stream's ledger,
which every later segment of the stream carries as `ledgers.stream.evicted` (I4: written = stored + evicted + pending). Runs
are closed at a share of the budget, so one eviction frees a bounded part and no chain ever has a hole.

Damage. A segment whose stored bytes are no longer those of its digest is never sent. Once everything before it is confirmed, it
is counted as `ledgers.stream.damaged`, like one that was evicted, and what follows it goes on under a new run.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edge_agent.sending import PRIORITY, Run
from pipelines.contract import segment
from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256, unpack
from pipelines.contract.keys import SIGNATURE_BYTES, Key
from pipelines.contract.segment import SegmentHeader

RUN_SHARE = 16  # a run is closed when it holds this fraction of the budget
_EVICTABLE = (segment.ROWS, segment.QUARANTINE)  # incidents and ledgers are never evicted
_PRIORITY = "CASE kind WHEN 'incidents' THEN 0 WHEN 'ledger' THEN 1 WHEN 'quarantine' THEN 2 ELSE 3 END"
BATCH_SEGMENTS_MAX = 100  # the control plane refuses more than 128 in one message
_RESEAL_SEGMENTS = 32  # sealed anew per transaction: 16 MiB at most


@dataclass(frozen=True, slots=True)
class Sealed:
    """Rows that a runner sealed: an Arrow IPC stream of `rows` rows, or no bytes for a header-only segment."""

    stream: str
    kind: str
    table: str
    rows: int
    payload: bytes = b""
    positions: Mapping[str, Any] = field(default_factory=dict)
    ledgers: Mapping[str, Any] = field(default_factory=dict)
    params: str = ""  # digest of the parameters in effect
    engine: str = ""  # the build that made the rows
    lookups: Mapping[str, str] = field(default_factory=dict)  # digests of the lookup files in effect
    stamps: str = segment.OWN  # see SegmentHeader


@dataclass(frozen=True, slots=True)
class Origin:
    """What a header says beyond the rows: who sealed, with which version, when (labels and node time)."""

    node: str
    pipeline: str
    version: str
    number: int
    sealed_at_us: int
    node_time_us: int
    clock: str
    lineage: str
    boot: str
    utc_offset_us: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A segment in the outbox, its bytes as they are sent. `header()` reads what was sealed."""

    run: str
    stream: str
    seq: int
    digest: str
    data: bytes

    def header(self) -> SegmentHeader:
        return SegmentHeader(**unpack(self.data[SIGNATURE_BYTES:])[0])

    def payload(self) -> bytes:
        return unpack(self.data[SIGNATURE_BYTES:])[1][0]


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a run of a stream is in the lake: `digest` is that of segment `seq`; 0 and "" when nothing is. Of the run's `rows`
    up to there `stored` are in the table."""

    run: str
    stream: str
    seq: int
    digest: str
    rows: int = 0
    stored: int = 0


@dataclass(frozen=True, slots=True)
class Break:
    """A history that the lake and this node do not share: what is pending goes on under a new run."""

    run: str
    stream: str
    reason: str
    is_security: bool  # a clone or a restored card, rather than a restored lake


def put(db: sqlite3.Connection, key: Key, origin: Origin, sealed: Sealed, budget_bytes: int) -> None:
    """Append one segment to the stream's active run, which is minted when there is none or when the table changed."""
    run = _active_run(db, origin.pipeline, sealed, budget_bytes // RUN_SHARE)
    stream_id, run_id, seq, previous = run
    header = SegmentHeader(
        node=origin.node, run=run_id, stream=sealed.stream, seq=seq, previous=previous, kind=sealed.kind, table=sealed.table,
        rows=sealed.rows, payload_digest=sha256(sealed.payload), pipeline=origin.pipeline, version=origin.version,
        number=origin.number, params=sealed.params, sealed_at_us=origin.sealed_at_us, node_time_us=origin.node_time_us,
        clock=origin.clock, engine=sealed.engine, positions=sealed.positions, lookups=sealed.lookups,
        ledgers=_with_lost(db, origin.pipeline, sealed.stream, _with_pending(db, origin.pipeline, sealed)),
        lineage=origin.lineage, boot=origin.boot, utc_offset_us=origin.utc_offset_us, stamps=sealed.stamps,
        run_rows=_run_rows(db, stream_id) + sealed.rows, first=seq,
    )  # fmt: skip
    _append(db, key, stream_id, header, sealed.payload)


def _append(db: sqlite3.Connection, key: Key, stream_id: int, header: SegmentHeader, payload: bytes) -> None:
    made = segment.encode(header, payload, key)
    if len(made.data) > segment.SEGMENT_BYTES_MAX + 4096:
        raise Refused(f"a segment of {len(made.data)} bytes", op="seal", place=f"{header.pipeline}/{header.stream}")
    db.execute(
        "INSERT INTO outbox (stream_id, seq, digest, rows, bytes, data) VALUES (?, ?, ?, ?, ?, ?)",
        (stream_id, header.seq, made.digest, header.rows, len(made.data), made.data),
    )
    db.execute(
        "UPDATE streams SET next_seq = ?, last_digest = ?, run_rows = ? WHERE id = ?",
        (header.seq + 1, made.digest, header.run_rows, stream_id),
    )


def _run_rows(db: sqlite3.Connection, stream_id: int) -> int:
    return int(db.execute("SELECT run_rows FROM streams WHERE id = ?", (stream_id,)).fetchone()[0])


def _with_pending(db: sqlite3.Connection, pipeline: str, sealed: Sealed) -> dict[str, Any]:
    """The ledgers with what the lake has not confirmed, these rows included: of all streams in a ledger, else of its own (I4)."""
    found = db.execute("SELECT stream, sum(pending_rows) FROM streams WHERE pipeline = ? GROUP BY stream", (pipeline,))
    rows: dict[str, int] = dict(found.fetchall())
    own = {sealed.stream: rows.get(sealed.stream, 0) + sealed.rows}
    return {**sealed.ledgers, "pending": rows if sealed.kind == segment.LEDGER else own}


def _active_run(db: sqlite3.Connection, pipeline: str, sealed: Sealed, run_bytes: int) -> tuple[int, str, int, str]:
    row = db.execute(
        "SELECT id, run, next_seq, last_digest, lake_table, kind, pending_bytes FROM streams"
        " WHERE pipeline = ? AND stream = ? AND active",
        (pipeline, sealed.stream),
    ).fetchone()
    if row and row[4:6] == (sealed.table, sealed.kind) and (row[6] < run_bytes or sealed.kind not in _EVICTABLE):
        return int(row[0]), str(row[1]), int(row[2]), str(row[3])
    if row:
        close_runs(db, "id = ?", row[0])
    run = secrets.token_hex(8)
    stream_id = _new_run(db, run, pipeline, sealed.stream, sealed.kind, sealed.table, active=True)
    return stream_id, run, 1, segment.NO_SEGMENT


def _new_run(db: sqlite3.Connection, run: str, pipeline: str, stream: str, kind: str, table: str, *, active: bool) -> int:
    cursor = db.execute(
        "INSERT INTO streams (run, pipeline, stream, kind, lake_table, active) VALUES (?, ?, ?, ?, ?, ?)",
        (run, pipeline, stream, kind, table, int(active)),
    )
    return int(cursor.lastrowid or 0)


def close_runs(db: sqlite3.Connection, where: str = "1", *values: object) -> None:
    """Let the runs take no more segments: the next one of each stream starts a new run."""
    db.execute(f"UPDATE streams SET active = 0 WHERE active AND {where}", values)
    db.execute("DELETE FROM streams WHERE NOT active AND pending_segments = 0 AND successor IS NULL AND id NOT IN"
               " (SELECT successor FROM streams WHERE successor IS NOT NULL)")  # fmt: skip


def _with_lost(db: sqlite3.Connection, pipeline: str, stream: str, ledgers: Mapping[str, Any]) -> dict[str, Any]:
    row = db.execute(
        "SELECT evicted_rows, damaged_rows FROM stream_ledgers WHERE pipeline = ? AND stream = ?", (pipeline, stream)
    ).fetchone()
    if row is None:
        return dict(ledgers)
    lost = {name: count for name, count in zip(("evicted", "damaged"), row, strict=True) if count}
    return {**ledgers, "stream": {**ledgers.get("stream", {}), **lost}}


def evict(db: sqlite3.Connection, budget_bytes: int) -> int:
    """Take the bytes from the oldest runs until the outbox is within its budget. Segments that lost theirs."""
    evicted = 0
    while (used_bytes(db) > budget_bytes) and (stream_id := _evictable(db)) is not None:
        db.execute("UPDATE streams SET active = 0, evicted = 1 WHERE id = ?", (stream_id,))
        evicted += db.execute("UPDATE outbox SET data = NULL, bytes = 0 WHERE stream_id = ?", (stream_id,)).rowcount
    return evicted


def used_bytes(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(sum(pending_bytes), 0) FROM streams").fetchone()[0])


def _evictable(db: sqlite3.Connection) -> int | None:
    row = db.execute(
        "SELECT id FROM streams WHERE pending_bytes > 0 AND successor IS NULL"
        f" AND kind IN {_EVICTABLE} AND id NOT IN (SELECT successor FROM streams WHERE successor IS NOT NULL)"
        " ORDER BY active, id LIMIT 1"
    ).fetchone()
    return int(row[0]) if row else None


def next_batch(
    db: sqlite3.Connection, sent: Mapping[tuple[str, str], int], limit_bytes: int, streams_max: int = BATCH_SEGMENTS_MAX
) -> list[Pending]:
    """What to send next: in order of kind, then age of the run, what lies after the position in `sent`. At least one segment.

    A stream ends before a damaged segment: see `void_damaged`.
    """
    batch: list[Pending] = []
    size = 0
    for stream_id, run, stream, mark_seq, next_seq in _sendable(db):
        after = max(mark_seq, sent.get((run, stream), 0))
        if after + 1 >= next_seq:
            continue
        if len({(pending.run, pending.stream) for pending in batch}) >= streams_max:
            return batch
        rows = db.execute(
            "SELECT seq, digest, bytes, data FROM outbox WHERE stream_id = ? AND seq > ? ORDER BY seq", (stream_id, after)
        )
        for seq, digest, length, data in rows:
            if batch and (size + length > limit_bytes or len(batch) >= BATCH_SEGMENTS_MAX):
                rows.close()
                return batch
            if sha256(data) != digest:
                rows.close()
                break
            batch.append(Pending(run, stream, seq, digest, data))
            size += length
    return batch


def _sendable(db: sqlite3.Connection) -> list[tuple[int, str, str, int, int]]:
    return db.execute(
        "SELECT id, run, stream, mark_seq, next_seq FROM streams"
        f" WHERE pending_segments > 0 AND NOT evicted AND successor IS NULL ORDER BY {_PRIORITY}, id"
    ).fetchall()


def runs(db: sqlite3.Connection) -> list[Run]:
    """The runs with segments to send, oldest first."""
    return [
        Run(*row[:4], PRIORITY, *row[4:])
        for row in db.execute(
            "SELECT pipeline, stream, run, kind, active, mark_seq, next_seq, pending_bytes FROM streams"
            " WHERE pending_segments > 0 AND NOT evicted AND successor IS NULL ORDER BY id"
        )
    ]


def take(db: sqlite3.Connection, order: Sequence[tuple[str, str, int]], limit_bytes: int) -> list[Pending]:
    """Segments of one request: from the runs in this `order` (run, stream, after which seq), each as far as it goes.

    At least one while there is any; a run ends before a damaged segment.
    """
    batch: list[Pending] = []
    for run, stream, after in order:
        rows = db.execute(
            "SELECT o.seq, o.digest, o.bytes, o.data FROM outbox o JOIN streams s ON s.id = o.stream_id"
            " WHERE s.run = ? AND s.stream = ? AND o.seq > ? ORDER BY o.seq",
            (run, stream, after),
        )
        for seq, digest, length, data in rows:
            if batch and (length > limit_bytes or len(batch) >= BATCH_SEGMENTS_MAX):
                rows.close()
                return batch
            if data is None or sha256(data) != digest:
                rows.close()
                break
            batch.append(Pending(run, stream, seq, digest, data))
            limit_bytes -= length
    return batch


def void_damaged(db: sqlite3.Connection) -> list[Break]:
    """Count and drop each damaged segment that comes right after its run's mark; what follows it then goes on under a new run.

    Only while nothing is in flight: a segment under way would arrive twice, under either run.
    """
    breaks: list[Break] = []
    for stream_id, run, stream, mark_seq, _ in _sendable(db):
        row = db.execute(
            "SELECT id, seq, digest, data FROM outbox WHERE stream_id = ? ORDER BY seq LIMIT 1", (stream_id,)
        ).fetchone()
        if row is None or sha256(row[3]) == row[2]:
            continue
        _count_lost(db, "damaged", "o.id = ?", row[0])
        reason = f"the stored segment {row[1]} is damaged; its rows are lost and counted"
        breaks.append(_break(db, stream_id, Mark(run, stream, mark_seq, ""), reason, False))
    return breaks


def open_positions(db: sqlite3.Connection, *, pending_only: bool = False) -> list[tuple[str, str]]:
    """`(run, stream)` of every run whose mark matters: those with segments pending and those that take more."""
    where = "pending_segments > 0 AND successor IS NULL" if pending_only else "successor IS NULL"
    return db.execute(f"SELECT run, stream FROM streams WHERE {where} ORDER BY id").fetchall()


def confirm(db: sqlite3.Connection, mark: Mark, *, asked: bool) -> Break | None:
    """Apply a receipt (I3): free what it covers, provided that the digest at the mark is ours.

    `asked`: the mark answers a question put while nothing was in flight, so it is where the lake stands now; otherwise a
    mark below ours is only late.
    """
    row = db.execute(
        "SELECT id, mark_seq, mark_digest, next_seq, evicted FROM streams WHERE run = ? AND stream = ? AND successor IS NULL",
        (mark.run, mark.stream),
    ).fetchone()
    if row is None:
        return None
    stream_id, mark_seq, mark_digest, next_seq, evicted = row
    if mark.seq < mark_seq:
        return _break(db, stream_id, mark, f"the lake is at {mark.seq} but had confirmed {mark_seq}", False) if asked else None
    if mark.seq >= next_seq:
        return _break(db, stream_id, mark, f"the lake is at {mark.seq} but this node sealed {next_seq - 1}", True)
    if mark.seq == mark_seq:
        ours = mark_digest
    else:
        ours = db.execute("SELECT digest FROM outbox WHERE stream_id = ? AND seq = ?", (stream_id, mark.seq)).fetchone()[0]
    if ours != mark.digest:
        return _break(db, stream_id, mark, f"the lake holds another segment {mark.seq}", True)
    db.execute("DELETE FROM outbox WHERE stream_id = ? AND seq <= ?", (stream_id, mark.seq))
    db.execute("UPDATE streams SET mark_seq = ?, mark_digest = ? WHERE id = ?", (mark.seq, mark.digest, stream_id))
    if asked and evicted:
        _void(db, stream_id)
    close_runs(db, "0")
    return None


def _void(db: sqlite3.Connection, stream_id: int) -> None:
    """Count what lost its bytes and never arrived, then forget it."""
    _count_lost(db, "evicted", "o.stream_id = ? AND o.data IS NULL", stream_id)


def _count_lost(db: sqlite3.Connection, how: str, where: str, value: int) -> None:
    """Move segments from the outbox to their stream's ledger, as `evicted` or `damaged`."""
    db.execute(
        f"INSERT INTO stream_ledgers (pipeline, stream, {how}_segments, {how}_rows)"
        " SELECT s.pipeline, s.stream, count(*), sum(o.rows) FROM outbox o JOIN streams s ON s.id = o.stream_id"
        f" WHERE {where} GROUP BY 1, 2 ON CONFLICT (pipeline, stream) DO UPDATE SET"
        f" {how}_segments = {how}_segments + excluded.{how}_segments, {how}_rows = {how}_rows + excluded.{how}_rows",
        (value,),
    )
    db.execute(f"DELETE FROM outbox AS o WHERE {where}", (value,))


def _break(db: sqlite3.Connection, stream_id: int, mark: Mark, reason: str, is_security: bool) -> Break:
    """Close the run and name the one that takes over what is pending; `reseal` then moves it."""
    _void(db, stream_id)
    pipeline, stream, kind, table, pending = db.execute(
        "SELECT pipeline, stream, kind, lake_table, pending_segments FROM streams WHERE id = ?", (stream_id,)
    ).fetchone()
    if pending:
        successor = _new_run(db, secrets.token_hex(8), pipeline, stream, kind, table, active=False)
        db.execute("UPDATE streams SET successor = ? WHERE id = ?", (successor, stream_id))
    close_runs(db, "id = ?", stream_id)
    return Break(mark.run, mark.stream, reason, is_security)


def reseal(db: sqlite3.Connection, key: Key) -> bool:
    """Move some segments of a broken run to its successor, the chain made anew. Whether there may be more."""
    row = db.execute("SELECT id, successor FROM streams WHERE successor IS NOT NULL ORDER BY id LIMIT 1").fetchone()
    if row is None:
        return False
    old, new = row
    run, seq, previous = db.execute("SELECT run, next_seq, last_digest FROM streams WHERE id = ?", (new,)).fetchone()
    moved = db.execute(
        "SELECT id, digest, data FROM outbox WHERE stream_id = ? ORDER BY seq LIMIT ?", (old, _RESEAL_SEGMENTS)
    ).fetchall()
    for row_id, digest, data in moved:
        if sha256(data) != digest:
            _count_lost(db, "damaged", "o.id = ?", row_id)
            continue
        fields, (payload,) = unpack(data[SIGNATURE_BYTES:])
        sealed = SegmentHeader(**fields)
        header = replace(sealed, run=run, seq=seq, first=seq, previous=previous, run_rows=_run_rows(db, new) + sealed.rows)
        db.execute("DELETE FROM outbox WHERE id = ?", (row_id,))
        _append(db, key, new, header, payload)
        seq, previous = seq + 1, db.execute("SELECT last_digest FROM streams WHERE id = ?", (new,)).fetchone()[0]
    if len(moved) < _RESEAL_SEGMENTS:
        db.execute("UPDATE streams SET successor = NULL WHERE id = ?", (old,))
        close_runs(db, "0")
    return True
