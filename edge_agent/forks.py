"""What a receipt says of a run's history: it is ours, it is another's, or the lake lost part of it (design, section 7).

The lake knows more than this node sealed, or another digest: the card was restored or cloned. The run takes no more segments and
stands in doubt until the lake has told which of the pending ones it holds. Those are free. Each segment names the digest of the
one before, so what matches is a beginning; the rest goes on under a new run, and nothing is in the lake twice.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from edge_agent import clock, outbox, schema
from edge_agent.outbox import Mark, Sealer
from pipelines.contract.frames import sha256, unpack
from pipelines.contract.keys import SIGNATURE_BYTES
from pipelines.contract.segment import DAMAGED, SegmentHeader

ASKED_AT_ONCE = 500  # digests in one answer: 50 kB
HISTORY = "history"  # in the store's meta: how often a history broke off, and the last time why
_RESEAL_SEGMENTS = 32  # sealed anew per transaction: 16 MiB at most


@dataclass(frozen=True, slots=True)
class Break:
    """A history that the lake and this node do not share: what is pending goes on under a new run."""

    run: str
    stream: str
    reason: str
    is_security: bool  # a clone or a restored card, rather than a restored lake


@dataclass(frozen=True, slots=True)
class Doubt:
    """Which of the segments `first` to `last` does the lake have, and with which digests?"""

    run: str
    stream: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Fork:
    """The mark that showed that histories differ, and how."""

    seq: int
    rows: int | None
    stored: int | None
    reason: str


def remember(db: sqlite3.Connection, broken: Break) -> None:
    """For `status`, and for the control plane, which may not have seen it."""
    told = json.loads(str(schema.get_meta(db, HISTORY) or "{}"))
    now = {**asdict(broken), "breaks": told.get("breaks", 0) + 1, "at": clock.wall_text()}
    schema.put_meta(db, HISTORY, json.dumps(now))


def confirm(db: sqlite3.Connection, mark: Mark, *, asked: bool) -> Break | None:
    """Apply a receipt (I3): free what it covers, provided that the digest at the mark is ours; doubt the run if it is not.

    `asked`: the mark answers a question put while nothing was in flight, so it is where the lake stands now; otherwise a
    mark below ours is only late.
    """
    row = db.execute(
        "SELECT id, mark_seq, mark_digest, next_seq FROM streams"
        " WHERE run = ? AND stream = ? AND successor IS NULL AND doubt = ''",
        (mark.run, mark.stream),
    ).fetchone()
    if row is None:
        return None
    stream_id, mark_seq, mark_digest, next_seq = row
    if mark.seq < mark_seq:
        return _forgotten(db, stream_id, mark, mark_seq) if asked else None
    if mark.seq >= next_seq:
        return _doubt(db, stream_id, mark, f"the lake is at {mark.seq} but this node sealed {next_seq - 1}")
    if mark.seq == mark_seq:
        return None if mark.digest == mark_digest else _doubt(db, stream_id, mark, f"the lake holds another segment {mark.seq}")
    ours = db.execute("SELECT digest FROM outbox WHERE stream_id = ? AND seq = ?", (stream_id, mark.seq)).fetchone()
    if ours is not None and ours[0] != mark.digest:
        return _doubt(db, stream_id, mark, f"the lake holds another segment {mark.seq}")
    outbox.free(db, stream_id, mark)
    outbox.close_runs(db, "0")
    return None


def _forgotten(db: sqlite3.Connection, stream_id: int, mark: Mark, mark_seq: int) -> Break:
    """The lake was restored from a backup: what it had confirmed above the mark is lost there, and no longer here."""
    (stored,) = db.execute("SELECT mark_stored FROM streams WHERE id = ?", (stream_id,)).fetchone()
    now_stored = 0 if mark.seq == 0 else mark.stored
    if now_stored is not None:
        outbox.count(db, stream_id, {"stored_rows": now_stored - stored, "forgotten_rows": stored - now_stored})
    return _break(db, stream_id, f"the lake is at {mark.seq} but had confirmed {mark_seq}", False)


def _doubt(db: sqlite3.Connection, stream_id: int, mark: Mark, reason: str) -> Break | None:
    fork = Fork(mark.seq, mark.rows, mark.stored, reason)
    db.execute("UPDATE streams SET doubt = ? WHERE id = ?", (json.dumps(asdict(fork)), stream_id))
    outbox.close_runs(db, "id = ?", stream_id)
    if db.execute("SELECT 1 FROM streams WHERE id = ?", (stream_id,)).fetchone() is None:  # nothing is pending
        remember(db, broken := Break(mark.run, mark.stream, reason, True))
        return broken
    return None if _range(db, stream_id) else _break(db, stream_id, reason, True)


def doubtful(db: sqlite3.Connection) -> list[Doubt]:
    """What to ask the lake. Long ranges by parts: ask again once these are settled."""
    return [
        Doubt(run, stream, *found)
        for stream_id, run, stream in db.execute("SELECT id, run, stream FROM streams WHERE doubt <> '' ORDER BY id").fetchall()
        if (found := _range(db, stream_id))
    ]


def _range(db: sqlite3.Connection, stream_id: int) -> tuple[int, int] | None:
    """(first, last) of the next pending segments that the lake may have; None when it has none."""
    doubt, mark_seq = db.execute("SELECT doubt, mark_seq FROM streams WHERE id = ?", (stream_id,)).fetchone()
    (last,) = db.execute(
        "SELECT max(seq) FROM (SELECT seq FROM outbox WHERE stream_id = ? AND seq <= ? ORDER BY seq LIMIT ?)",
        (stream_id, Fork(**json.loads(doubt)).seq, ASKED_AT_ONCE),
    ).fetchone()
    return (mark_seq + 1, int(last)) if last is not None else None


def settle(db: sqlite3.Connection, doubt: Doubt, links: Mapping[int, str]) -> Break | None:
    """Free what the lake has (`links`: its digest of each segment of the range), and break the run where histories part."""
    row = db.execute(
        "SELECT id, mark_seq, doubt FROM streams WHERE run = ? AND stream = ? AND doubt <> ''", (doubt.run, doubt.stream)
    ).fetchone()
    if row is None or row[1] + 1 != doubt.first:
        return None
    stream_id, fork = row[0], Fork(**json.loads(row[2]))
    matched = _matched(db, stream_id, doubt, links)
    if matched is not None:
        outbox.free(db, stream_id, _as_mark(db, stream_id, doubt, fork, *matched))
        if matched[0] == doubt.last and _range(db, stream_id):
            return None
    return _break(db, stream_id, fork.reason, True)


def _matched(db: sqlite3.Connection, stream_id: int, doubt: Doubt, links: Mapping[int, str]) -> tuple[int, str, int] | None:
    """(seq, digest, rows of the run) of the last segment that both have."""
    ours = db.execute(
        "SELECT seq, digest, run_rows FROM outbox WHERE stream_id = ? AND seq <= ? ORDER BY seq DESC", (stream_id, doubt.last)
    )
    return next((row for row in ours.fetchall() if links.get(row[0]) == row[1]), None)


def _as_mark(db: sqlite3.Connection, stream_id: int, doubt: Doubt, fork: Fork, seq: int, digest: str, rows: int) -> Mark:
    """When the lake stored all that it has of the run, it stored these; otherwise it does not say which are void."""
    mark_rows, mark_stored = db.execute("SELECT mark_rows, mark_stored FROM streams WHERE id = ?", (stream_id,)).fetchone()
    has_all = fork.rows is not None and fork.stored is not None and fork.rows - fork.stored == mark_rows - mark_stored
    return Mark(doubt.run, doubt.stream, seq, digest, *((rows, mark_stored + rows - mark_rows) if has_all else (None, None)))


def _break(db: sqlite3.Connection, stream_id: int, reason: str, is_security: bool) -> Break:
    """Close the run and name the one that takes over what is pending; `reseal` then moves it."""
    run, pipeline, stream, kind, table, pending = db.execute(
        "SELECT run, pipeline, stream, kind, lake_table, pending_segments FROM streams WHERE id = ?", (stream_id,)
    ).fetchone()
    if pending:
        successor = outbox.new_run(db, secrets.token_hex(8), pipeline, stream, kind, table, active=False)
        db.execute("UPDATE streams SET successor = ? WHERE id = ?", (successor, stream_id))
    db.execute("UPDATE streams SET doubt = '' WHERE id = ?", (stream_id,))
    outbox.close_runs(db, "id = ?", stream_id)
    remember(db, broken := Break(run, stream, reason, is_security))
    return broken


def reseal(db: sqlite3.Connection, sealer: Sealer) -> bool:
    """Move some segments of a broken run to its successor, the chain made anew. Whether there may be more."""
    row = db.execute("SELECT id, successor FROM streams WHERE successor IS NOT NULL ORDER BY id LIMIT 1").fetchone()
    if row is None:
        return False
    old, new = row
    moved = db.execute(
        "SELECT id, first, seq, digest, rows, void, data FROM outbox WHERE stream_id = ? ORDER BY seq LIMIT ?",
        (old, _RESEAL_SEGMENTS),
    ).fetchall()
    for segment_id, first, last, digest, rows, how, data in moved:
        db.execute("DELETE FROM outbox WHERE id = ?", (segment_id,))
        run, seq, previous, run_rows = db.execute(
            "SELECT run, next_seq, last_digest, run_rows FROM streams WHERE id = ?", (new,)
        ).fetchone()
        if how:
            outbox.insert(db, new, seq, seq + last - first, digest, rows, data=data, void=how)
        elif sha256(data) != digest:
            outbox.insert(db, new, seq, seq, digest, rows, void=DAMAGED)
            outbox.count(db, new, {"damaged_segments": 1, "damaged_rows": rows})
        else:
            fields, (payload,) = unpack(data[SIGNATURE_BYTES:])
            header = replace(SegmentHeader(**fields), run=run, seq=seq, first=seq, previous=previous, run_rows=run_rows + rows)
            outbox.append(db, sealer.key, new, header, payload)
    if len(moved) < _RESEAL_SEGMENTS:
        db.execute("UPDATE streams SET successor = NULL WHERE id = ?", (old,))
        outbox.close_runs(db, "0")
    return True
