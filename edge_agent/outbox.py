"""Sealed segments that the lake has not confirmed: functions over the store's connection, each within its caller's transaction.

Order and chain. Segments of a run are numbered from 1 and each names the digest of the one before. Nothing rewrites a sealed
segment: whatever breaks a history (a clone, a restored lake, another table) starts a new run instead; see forks.py.

Loss (I3, I9). A segment whose bytes are gone, evicted from a full buffer or damaged by the disk, leaves a stub in its place: the
same key, digest and rows, without the bytes. The run goes on. A stub is encoded and signed when it is sent, and the lake takes it
as it takes a segment. It keeps the ledgers of its last segment, so that the source of rows that are all lost is still accounted
for. Neighbouring stubs become one, so that a month of eviction does not fill the disk with them; not those that may have been
sent when they were whole, for the lake may be at any of those, and its digest must still be comparable with ours.

Ledgers (I4). What the lake says at last is true: a receipt tells how many rows of the run are stored, and what was lost here but
had arrived is not lost. Per stream: sealed = stored + refused + evicted + damaged + forgotten (by the lake) + pending.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from edge_agent import shares
from edge_agent.database import parsed
from edge_agent.sending import Run
from edge_agent.shares import Buffer, Usage
from pipelines.contract import segment
from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256, unpack
from pipelines.contract.keys import SIGNATURE_BYTES, Key
from pipelines.contract.segment import EVICTED, SegmentHeader

STUB_BYTES = 256  # what a stub takes in the file: its row, and its entries in two indexes
BATCH_SEGMENTS_MAX = 100  # the control plane refuses more than 128 in one message
EVICTED_AT_ONCE = 64  # in one transaction, beyond what makes up for the segments that came with it


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


@dataclass(frozen=True)
class Sealer:
    """The node's hand: its key, its words about a pipeline at this moment, and what it gave to the uplink in this life.

    `handed` is written by readers and read by the writer: stream id -> highest seq.
    """

    key: Key
    origin: Callable[[sqlite3.Connection, str], Origin]
    handed: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pending:
    """A segment or stub as it is sent. `digest` is what its successor names as `previous`. `header()` reads what was sealed."""

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
    up to there `stored` are in the table; None where whoever keeps the rows does not count: then what has bytes is stored."""

    run: str
    stream: str
    seq: int
    digest: str
    rows: int | None = None
    stored: int | None = None


# Sealing


def put(db: sqlite3.Connection, key: Key, origin: Origin, sealed: Sealed) -> None:
    """Append one segment to the stream's active run, which is minted when there is none or when the table changed."""
    stream_id, run, seq, previous, rows_before = _active_run(db, origin.pipeline, sealed)
    header = SegmentHeader(
        node=origin.node, run=run, stream=sealed.stream, seq=seq, previous=previous, kind=sealed.kind, table=sealed.table,
        rows=sealed.rows, payload_digest=sha256(sealed.payload), pipeline=origin.pipeline, version=origin.version,
        number=origin.number, params=sealed.params, sealed_at_us=origin.sealed_at_us, node_time_us=origin.node_time_us,
        clock=origin.clock, engine=sealed.engine, positions=sealed.positions, lookups=sealed.lookups,
        ledgers=_with_pending(db, origin.pipeline, sealed), lineage=origin.lineage, boot=origin.boot,
        utc_offset_us=origin.utc_offset_us, stamps=sealed.stamps, run_rows=rows_before + sealed.rows, first=seq,
    )  # fmt: skip
    append(db, key, stream_id, header, sealed.payload)


def append(db: sqlite3.Connection, key: Key, stream_id: int, header: SegmentHeader, payload: bytes) -> None:
    made = segment.encode(header, payload, key)
    if len(made.data) > segment.SEGMENT_BYTES_MAX + 4096:
        raise Refused(f"a segment of {len(made.data)} bytes", op="seal", place=f"{header.pipeline}/{header.stream}")
    insert(db, stream_id, header.seq, header.seq, made.digest, header.rows, data=made.data)


def insert(
    db: sqlite3.Connection,
    stream_id: int,
    first: int,
    seq: int,
    digest: str,
    rows: int,
    *,
    data: bytes | None = None,
    void: str = "",
) -> None:
    """The next segment of a run, or with `void` a stub, of which `data` are the `kept_ledgers`."""
    db.execute(
        "UPDATE streams SET next_seq = ?, last_digest = ?, run_rows = run_rows + ? WHERE id = ?",
        (seq + 1, digest, rows, stream_id),
    )
    size = len(data or b"") + (STUB_BYTES if void else 0)
    db.execute(
        "INSERT INTO outbox (stream_id, first, seq, digest, rows, run_rows, bytes, void, data)"
        " SELECT ?, ?, ?, ?, ?, run_rows, ?, ?, ? FROM streams WHERE id = ?",
        (stream_id, first, seq, digest, rows, size, void, data, stream_id),
    )


def _with_pending(db: sqlite3.Connection, pipeline: str, sealed: Sealed) -> dict[str, Any]:
    """The ledgers with the rows that the lake has not confirmed, these included: of all streams in a ledger, else of its own."""
    found = db.execute("SELECT stream, sum(pending_rows) FROM streams WHERE pipeline = ? GROUP BY stream", (pipeline,))
    rows: dict[str, int] = dict(found.fetchall())
    own = {sealed.stream: rows.get(sealed.stream, 0) + sealed.rows}
    return {**sealed.ledgers, "pending": rows if sealed.kind == segment.LEDGER else own}


def _active_run(db: sqlite3.Connection, pipeline: str, sealed: Sealed) -> tuple[int, str, int, str, int]:
    """(stream id, run, seq and previous digest of the next segment, rows before it)."""
    row = db.execute(
        "SELECT id, run, next_seq, last_digest, run_rows, lake_table, kind FROM streams"
        " WHERE pipeline = ? AND stream = ? AND active",
        (pipeline, sealed.stream),
    ).fetchone()
    if row and row[5:] == (sealed.table, sealed.kind):
        return int(row[0]), str(row[1]), int(row[2]), str(row[3]), int(row[4])
    if row:
        close_runs(db, "id = ?", row[0])
    run = secrets.token_hex(8)
    stream_id = new_run(db, run, pipeline, sealed.stream, sealed.kind, sealed.table, active=True)
    return stream_id, run, 1, segment.NO_SEGMENT, 0


def new_run(db: sqlite3.Connection, run: str, pipeline: str, stream: str, kind: str, table: str, *, active: bool) -> int:
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


# Loss


def begin_life(db: sqlite3.Connection) -> None:
    """After opening: what lies here may have been sent, if anything was in the former life."""
    if db.execute("SELECT 1 FROM meta WHERE key = 'sending' AND value").fetchone():
        db.execute("UPDATE streams SET sent_seq = next_seq - 1")
        db.execute("UPDATE meta SET value = 0 WHERE key = 'sending'")


def begin_sending(db: sqlite3.Connection) -> None:
    """Before the first segment of this life is given to the uplink."""
    db.execute("INSERT INTO meta VALUES ('sending', 1) ON CONFLICT (key) DO UPDATE SET value = 1")


def set_buffer(db: sqlite3.Connection, pipeline: str, buffer: Buffer) -> None:
    body = json.dumps([buffer.max_bytes, buffer.when_full, dict(buffer.priorities)])
    db.execute("INSERT INTO buffers VALUES (?, ?) ON CONFLICT (pipeline) DO UPDATE SET body = excluded.body", (pipeline, body))


def buffers(db: sqlite3.Connection) -> dict[str, Buffer]:
    rows = db.execute("SELECT pipeline, body FROM buffers")
    return {name: parsed(lambda raw: Buffer(*raw), body) for name, body in rows}


def usages(db: sqlite3.Connection) -> list[Usage]:
    rows = db.execute("SELECT pipeline, stream, kind, sum(pending_bytes) FROM streams GROUP BY pipeline, stream, kind")
    return [Usage(*row) for row in rows]


def used_bytes(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(sum(pending_bytes), 0) FROM streams").fetchone()[0])


def evict(db: sqlite3.Connection, handed: Mapping[int, int], budget_bytes: int, allowed_bytes: int = 0) -> int:
    """Turn segments into stubs until every limit holds; how many. At most EVICTED_AT_ONCE, or as many as bring the outbox below
    `allowed_bytes`, so that a limit that shrank is reached in bounded transactions."""
    evicted, by_pipeline = 0, buffers(db)
    while evicted < EVICTED_AT_ONCE or used_bytes(db) > allowed_bytes:
        loser = next(
            filter(None, (_loses(db, usage, by_pipeline) for usage in shares.losers(usages(db), by_pipeline, budget_bytes))), 0
        )
        if not loser:
            break
        void(db, handed, loser, EVICTED)
        evicted += 1
    return evicted


def _loses(db: sqlite3.Connection, usage: Usage, by_pipeline: Mapping[str, Buffer]) -> int:
    """The id of the segment that the stream gives up, 0 when it has none."""
    newest_first = by_pipeline.get(usage.pipeline, Buffer()).when_full == shares.DROP_NEWEST and usage.kind != segment.LEDGER
    order = "DESC" if newest_first else ""
    found = db.execute(
        "SELECT o.id FROM streams s CROSS JOIN outbox o ON o.stream_id = s.id AND o.void = ''"
        f" WHERE s.pipeline = ? AND s.stream = ? AND s.kind = ? ORDER BY s.id {order}, o.seq {order} LIMIT 2",
        (usage.pipeline, usage.stream, usage.kind),
    ).fetchall()
    spared = 1 if usage.kind == segment.LEDGER else 0
    return int(found[0][0]) if len(found) > spared else 0


def void(db: sqlite3.Connection, handed: Mapping[int, int], segment_id: int, how: str) -> None:
    """Leave a stub in place of a segment, and count its rows as lost until the lake says that it has them."""
    row = db.execute("SELECT stream_id, seq, rows, digest, data FROM outbox WHERE id = ? AND void = ''", (segment_id,)).fetchone()
    if row is None:
        return
    stream_id, seq, rows, digest, data = row
    kept = kept_ledgers(data, digest)
    values = (how, kept, STUB_BYTES + len(kept or b""), segment_id)
    db.execute("UPDATE outbox SET void = ?, data = ?, bytes = ? WHERE id = ?", values)
    count(db, stream_id, {f"{how}_segments": int(rows > 0), f"{how}_rows": rows})
    (sent_seq,) = db.execute("SELECT sent_seq FROM streams WHERE id = ?", (stream_id,)).fetchone()
    sent_seq = max(sent_seq, handed.get(stream_id, 0))
    _merge(db, stream_id, seq, sent_seq)
    follower = db.execute("SELECT min(seq) FROM outbox WHERE stream_id = ? AND seq > ?", (stream_id, seq)).fetchone()[0]
    if follower is not None:
        _merge(db, stream_id, follower, sent_seq)


def kept_ledgers(data: bytes | None, digest: str) -> bytes | None:
    """What a stub keeps of a segment: whose counts they are and how they stood. None when its bytes are not those of `digest`."""
    if data is None or sha256(data) != digest:
        return None
    fields = unpack(data[SIGNATURE_BYTES:])[0]
    return canonical_json({"ledgers": fields["ledgers"], "lineage": fields["lineage"]})


def _told(kept: bytes | None) -> dict[str, Any]:
    """`kept_ledgers` as fields of a header; nothing where the disk changed them."""
    try:
        fields = json.loads(kept or b"{}")
    except ValueError:
        return {}
    is_whole = isinstance(fields, dict) and isinstance(fields.get("ledgers"), dict) and isinstance(fields.get("lineage"), str)
    return {name: fields[name] for name in ("ledgers", "lineage")} if is_whole else {}


def _merge(db: sqlite3.Connection, stream_id: int, seq: int, sent_seq: int) -> None:
    """Make the stub at `seq` stand for the one before it too, if both were lost alike and neither may have been sent."""
    before = db.execute(
        "SELECT b.id, b.first, b.rows FROM outbox o JOIN outbox b ON b.stream_id = o.stream_id AND b.seq = o.first - 1"
        " WHERE o.stream_id = ? AND o.seq = ? AND o.void <> '' AND b.void = o.void AND b.first > ?",
        (stream_id, seq, sent_seq),
    ).fetchone()
    if before is not None:
        db.execute("DELETE FROM outbox WHERE id = ?", before[:1])
        db.execute("UPDATE outbox SET first = ?, rows = rows + ? WHERE stream_id = ? AND seq = ?", (*before[1:], stream_id, seq))


# Sending


def runs(db: sqlite3.Connection) -> list[Run]:
    """The runs with segments to send, oldest first."""
    by_pipeline = buffers(db)
    rows = db.execute(
        "SELECT pipeline, stream, run, kind, active, mark_seq, next_seq, pending_bytes FROM streams"
        " WHERE pending_segments > 0 AND successor IS NULL AND doubt = '' ORDER BY id"
    )
    return [
        Run(pipeline, stream, run, kind, by_pipeline.get(pipeline, Buffer()).priority(stream), *positions)
        for pipeline, stream, run, kind, *positions in rows
    ]


def take(
    db: sqlite3.Connection,
    sealer: Sealer,
    order: Sequence[tuple[str, str, int]],
    limit_bytes: int,
    streams_max: int = BATCH_SEGMENTS_MAX,
) -> tuple[list[Pending], list[int]]:
    """Segments of one request: from the runs in this `order` (run, stream, after which seq), each as far as it goes; at least one
    while there is any. And the ids of damaged ones, before which their runs end: `void` them, then take again."""
    batch: list[Pending] = []
    damaged: list[int] = []
    for run, stream, after in order:
        if len({(pending.run, pending.stream) for pending in batch}) >= streams_max:
            break
        with closing(_after(db, sealer, run, stream, after)) as found:
            for segment_id, stream_id, pending in found:
                if pending is None:
                    damaged.append(segment_id)
                    break
                if batch and (len(pending.data) > limit_bytes or len(batch) >= BATCH_SEGMENTS_MAX):
                    return batch, damaged
                batch.append(pending)
                limit_bytes -= len(pending.data)
                sealer.handed[stream_id] = max(sealer.handed.get(stream_id, 0), pending.seq)
    return batch, damaged


def _after(
    db: sqlite3.Connection, sealer: Sealer, run: str, stream: str, after: int
) -> Generator[tuple[int, int, Pending | None]]:
    """(segment id, stream id, what to send) of what follows segment `after`; None to send for one that is damaged."""
    rows = db.execute(
        "SELECT o.id, o.stream_id, o.first, o.seq, o.digest, o.rows, o.run_rows, o.void, o.data FROM outbox o"
        " JOIN streams s ON s.id = o.stream_id WHERE s.run = ? AND s.stream = ? AND o.seq > ? ORDER BY o.seq",
        (run, stream, after),
    )
    with closing(rows):
        for segment_id, stream_id, first, seq, digest, count, run_rows, how, data in rows:
            if how:
                data = _stub(db, sealer, stream_id, first, seq, digest, count, run_rows, how, data)
            elif sha256(data) != digest:
                yield segment_id, stream_id, None
                return
            yield segment_id, stream_id, Pending(run, stream, seq, digest, data)


def _stub(
    db: sqlite3.Connection,
    sealer: Sealer,
    stream_id: int,
    first: int,
    seq: int,
    digest: str,
    rows: int,
    run_rows: int,
    how: str,
    kept: bytes | None,
) -> bytes:
    """As it is sent: after what the lake has confirmed, or after what is to be sent before it."""
    pipeline, stream, run, kind, table, mark_seq, previous = db.execute(
        "SELECT pipeline, stream, run, kind, lake_table, mark_seq, mark_digest FROM streams WHERE id = ?", (stream_id,)
    ).fetchone()
    if first != mark_seq + 1:
        before = db.execute("SELECT digest FROM outbox WHERE stream_id = ? AND seq = ?", (stream_id, first - 1)).fetchone()
        previous = before[0] if before else previous
    origin = sealer.origin(db, pipeline)
    counts = {"lineage": origin.lineage, **_told(kept)}
    header = SegmentHeader(
        node=origin.node, run=run, stream=stream, seq=seq, previous=previous, kind=kind, table=table, rows=rows,
        payload_digest=sha256(b""), pipeline=pipeline, version=origin.version, number=origin.number, params="",
        sealed_at_us=origin.sealed_at_us, node_time_us=origin.node_time_us, clock=origin.clock, engine="",
        boot=origin.boot, utc_offset_us=origin.utc_offset_us, run_rows=run_rows, first=first,
        void=how, stands_for=digest, **counts,
    )  # fmt: skip
    return segment.encode(header, b"", sealer.key).data


def in_order(db: sqlite3.Connection, sent: Mapping[tuple[str, str], int]) -> list[tuple[str, str, int]]:
    """The order of whoever has no better one: by kind, then age of the run."""
    kinds = (segment.INCIDENTS, segment.LEDGER, segment.REQUESTS, segment.QUARANTINE, segment.ROWS)
    waiting = [run for run in runs(db) if run.after(sent) + 1 < run.next_seq]
    return [(run.run, run.stream, run.after(sent)) for run in sorted(waiting, key=lambda run: kinds.index(run.kind))]


def open_positions(db: sqlite3.Connection, *, pending_only: bool = False) -> list[tuple[str, str]]:
    """`(run, stream)` of every run whose mark matters: those with segments pending and those that take more."""
    where = "pending_segments > 0" if pending_only else "1"
    return db.execute(
        f"SELECT run, stream FROM streams WHERE {where} AND successor IS NULL AND doubt = '' ORDER BY id"
    ).fetchall()


# Receipts


def free(db: sqlite3.Connection, stream_id: int, mark: Mark) -> None:
    """Everything up to the mark has its verdict in the lake (I3): forget it here, and count as the lake does (I4)."""
    mark_rows, mark_stored = db.execute("SELECT mark_rows, mark_stored FROM streams WHERE id = ?", (stream_id,)).fetchone()
    settled = _settled_rows(db, stream_id, mark)
    stubs = db.execute(
        "SELECT first, seq, rows, run_rows, void FROM outbox WHERE stream_id = ? AND first <= ? AND void <> '' ORDER BY seq DESC",
        (stream_id, mark.seq),
    ).fetchall()
    lost = [(how, min(rows, max(settled - run_rows + rows, 0)), rows) for _, _, rows, run_rows, how in stubs]
    is_told = mark.rows is not None and mark.stored is not None
    void_rows = settled - mark_rows - ((mark.stored or 0) - mark_stored) if is_told else sum(part for _, part, _ in lost)
    void_rows = min(max(void_rows, 0), settled - mark_rows)
    changes = {"stored_rows": settled - mark_rows - void_rows}
    left = void_rows
    for how, part, rows in lost:  # what arrived before its bytes were lost came first, so the last ones are void
        taken = min(part, left)
        left -= taken
        changes[f"{how}_rows"] = changes.get(f"{how}_rows", 0) - (part - taken)
        if rows and not taken and part == rows:
            changes[f"{how}_segments"] = changes.get(f"{how}_segments", 0) - 1
    changes["refused_rows"] = left
    count(db, stream_id, changes)
    db.execute("DELETE FROM outbox WHERE stream_id = ? AND seq <= ?", (stream_id, mark.seq))
    db.execute(
        "UPDATE outbox SET first = ?, rows = run_rows - ? WHERE stream_id = ? AND first <= ?",
        (mark.seq + 1, settled, stream_id, mark.seq),
    )
    db.execute(
        "UPDATE streams SET mark_seq = ?, mark_digest = ?, mark_rows = ?, mark_stored = ? WHERE id = ?",
        (mark.seq, mark.digest, settled, mark.stored if is_told else mark_stored + settled - mark_rows - void_rows, stream_id),
    )


def _settled_rows(db: sqlite3.Connection, stream_id: int, mark: Mark) -> int:
    """The rows of the run through the mark: as sealed here; within a stub only the lake knows."""
    seq, rows, run_rows = db.execute(
        "SELECT seq, rows, run_rows FROM outbox WHERE stream_id = ? AND seq >= ? ORDER BY seq LIMIT 1",
        (stream_id, mark.seq),
    ).fetchone()
    if seq == mark.seq:
        return int(run_rows)
    return int(min(max(mark.rows or 0, run_rows - rows), run_rows))


def count(db: sqlite3.Connection, stream_id: int, changes: Mapping[str, int]) -> None:
    """Add to the ledger of the stream."""
    counts = {name: n for name, n in changes.items() if n}
    if not counts:
        return
    sums = ", ".join(f"{name} = {name} + ?" for name in counts)
    db.execute(
        f"INSERT INTO stream_ledgers (pipeline, stream, {', '.join(counts)})"
        f" SELECT pipeline, stream, {', '.join('?' * len(counts))} FROM streams WHERE id = ?"
        f" ON CONFLICT (pipeline, stream) DO UPDATE SET {sums}",
        (*counts.values(), stream_id, *counts.values()),
    )
