"""What the buffer holds, for people: short reads of agent.db, whether the agent runs or not, or of a damaged file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge_agent import outbox, rate, salvage, schema, shares
from edge_agent.clock import ClockMark
from edge_agent.rate import Rate
from pipelines.contract import segment
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.frames import sha256, unpack
from pipelines.contract.keys import SIGNATURE_BYTES
from pipelines.contract.segment import SegmentHeader

_COLUMNS = "s.id, s.pipeline, s.stream, s.kind, s.lake_table, s.run"


@dataclass(frozen=True, slots=True)
class RunOf:
    """One run of a stream, as its row in the store names it."""

    id: int
    pipeline: str
    stream: str
    kind: str
    table: str
    run: str

    @property
    def name(self) -> str:
        return f"{self.pipeline}/{self.stream}"


@dataclass(frozen=True, slots=True)
class Held:
    """A segment that the buffer holds with its bytes."""

    seq: int
    digest: str
    data: bytes

    @property
    def header(self) -> SegmentHeader:
        return SegmentHeader(**unpack(self.data[SIGNATURE_BYTES:])[0])

    @property
    def payload(self) -> bytes:
        return unpack(self.data[SIGNATURE_BYTES:])[1][0]


@contextmanager
def reading(path: Path, public: str) -> Iterator[sqlite3.Connection]:
    """A connection that only reads. What SQLite refuses is salvaged into a temporary place first, and left as it is."""
    if not path.exists():
        raise Refused("there is no store", op="buffer", place=str(path), hint="give the agent's directory with --data-dir")
    with TemporaryDirectory(prefix="tidewire-") as scratch:
        fresh = Path(scratch) / "agent.db"
        if not _is_readable(path):
            salvage.rebuild(path, fresh, public)
        with closing(_connect(fresh if fresh.exists() else path)) as db:
            try:
                yield db
            except (sqlite3.Error, ValueError) as error:
                hint = "stop the agent and start it again: it salvages what can be read"
                raise TidewireError(str(error), op="buffer", place=str(path), hint=hint) from None


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5, isolation_level=None)


def _is_readable(path: Path) -> bool:
    """Whether SQLite opens it and finds the tables."""
    try:
        with closing(_connect(path)) as db:
            return schema.get_meta(db, "format") is not None and db.execute("SELECT count(*) FROM streams").fetchone() is not None
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY):
            hint = "run it as the user of the agent"
            raise TidewireError(str(error), op="buffer", place=str(path), hint=hint) from None
        return False


def runs(db: sqlite3.Connection, name: str = "") -> list[RunOf]:
    """In the order in which they were begun; with a `name` those of a pipeline, of a stream, or of `pipeline/stream`."""
    found = [RunOf(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM streams s ORDER BY s.pipeline, s.stream, s.id")]
    picked = [run for run in found if name in ("", run.pipeline, run.stream, run.name)]
    if name and not picked:
        known = ", ".join(sorted({run.name for run in found})) or "none: the buffer is empty"
        raise Refused(f'nothing of "{name}" is in the buffer', op="buffer", hint=f"its streams: {known}")
    return picked


def contents(db: sqlite3.Connection, budget_bytes: int, name: str = "") -> dict[str, Any]:
    """JSON-ready: the node's buffer and its streams, each with its runs. Times are the node's wall clock, labels."""
    picked, limits = runs(db, name), outbox.buffers(db)
    lost = {(pipeline, stream): rows for pipeline, stream, *rows in db.execute(
        "SELECT pipeline, stream, evicted_rows, damaged_rows FROM stream_ledgers")}  # fmt: skip
    used = outbox.used_bytes(db)
    streams = []
    for key in dict.fromkeys((run.pipeline, run.stream, run.kind, run.table) for run in picked):
        pipeline, stream, kind, table = key
        told = [_run(db, run) for run in picked if (run.pipeline, run.stream, run.kind, run.table) == key]
        total = {count: sum(run[count] for run in told) for count in ("segments", "rows", "bytes", "stub_rows")}
        buffer = limits.get(pipeline, shares.Buffer())
        evicted, damaged = lost.get((pipeline, stream), (0, 0))
        streams.append({
            "pipeline": pipeline, "stream": stream, "kind": kind, "table": table, **total,
            "share": round(total["bytes"] / budget_bytes, 4), "limit_bytes": buffer.max_bytes or budget_bytes,
            "when_full": buffer.when_full, "priority": buffer.priority(stream), "evicted_rows": evicted, "damaged_rows": damaged,
            "runs": told,
        })  # fmt: skip
    return {"limit_bytes": budget_bytes, "bytes": used, "share": round(used / budget_bytes, 4),
            "lasts_s": lasts_s(db, budget_bytes), "streams": streams}  # fmt: skip


def _run(db: sqlite3.Connection, run: RunOf) -> dict[str, Any]:
    mark, next_seq, rows, lost, size, active, successor, doubt = db.execute(
        "SELECT mark_seq, next_seq, pending_rows, lost_rows, pending_bytes, active, successor, doubt FROM streams WHERE id = ?",
        (run.id,),
    ).fetchone()
    (whole,) = db.execute("SELECT count(*) FROM outbox WHERE stream_id = ? AND void = ''", (run.id,)).fetchone()
    ends = [_end(db, run.id, order) for order in ("", "DESC")]
    state = "moves to a new run" if successor else "in doubt" if doubt else "open" if active else "closed"
    return {
        "run": run.run, "state": state, "mark": mark, "last": next_seq - 1, "segments": whole, "rows": rows - lost,
        "bytes": size, "stub_rows": lost, "oldest_us": ends[0], "newest_us": ends[1],
    }  # fmt: skip


def _end(db: sqlite3.Connection, run: int, order: str) -> int | None:
    """When the first or the last of the segments with bytes was sealed."""
    found = db.execute(
        f"SELECT seq, digest, data FROM outbox WHERE stream_id = ? AND void = '' ORDER BY seq {order} LIMIT 1", (run,)
    ).fetchone()
    try:
        return Held(*found).header.sealed_at_us if found else None
    except (Refused, TypeError):
        return None


def lasts_s(db: sqlite3.Connection, budget_bytes: int) -> float | None:
    """How long what is free lasts at the measured rate; None when that is not known."""
    rates, now_us = measured(db)
    return rate.lasts_s(rates.values(), budget_bytes - outbox.used_bytes(db), now_us)


def measured(db: sqlite3.Connection) -> tuple[dict[str, Rate], int]:
    """How fast each stream fills the buffer, as of the store's last commit; node time then."""
    mark = schema.get_meta(db, "clock")
    now_us = ClockMark(**json.loads(str(mark))).node_time_us if mark else 0
    return {stream: Rate(*fields) for stream, fields in json.loads(str(schema.get_meta(db, "rates") or "{}")).items()}, now_us


def held(db: sqlite3.Connection, run: RunOf, after: int = 0) -> Iterator[Held]:
    """The run's segments that have bytes, in order, one short read each: what is freed meanwhile is not among them."""
    while row := db.execute(
        "SELECT seq, digest, data FROM outbox WHERE stream_id = ? AND seq > ? AND void = '' ORDER BY seq LIMIT 1", (run.id, after)
    ).fetchone():
        yield Held(*row)
        after = row[0]


# Verify


@dataclass(frozen=True, slots=True)
class Verdict:
    segments: int
    rows: int
    stub_rows: int
    problems: Sequence[str]


def verify(db: sqlite3.Connection, public: str) -> Verdict:
    """Every segment's digest, signature and place in its chain; counters against what they count; the file's structure."""
    found = Verdict(0, 0, 0, [])
    try:
        found = _with_problems(found, *(f"the file: {line}" for (line,) in db.execute("PRAGMA quick_check(20)") if line != "ok"))
        for run in runs(db):
            found = _with_run(db, run, public, found)
    except sqlite3.DatabaseError as error:
        found = _with_problems(found, f"the file: {error}")
    return found


def _with_problems(found: Verdict, *problems: str) -> Verdict:
    return replace(found, problems=[*found.problems, *problems])


def _with_run(db: sqlite3.Connection, run: RunOf, public: str, found: Verdict) -> Verdict:
    now = _as_of_now(db, run)
    if now is None:
        return found
    row, entries = now
    place = f"{run.name} run {run.run}"
    problems = [f"{place}: {problem}" for problem in (*_counted(entries, row), *_chained(entries, row))]
    link = "" if row["successor"] else row["mark_digest"]
    for entry in entries:
        if not entry["void"]:
            problems += [f"{place} segment {entry['seq']}: {problem}" for problem in _sealed(db, run, entry, link, public)]
        link = entry["digest"]
    whole = [entry for entry in entries if not entry["void"]]
    rows = sum(entry["rows"] for entry in whole)
    stub_rows = sum(entry["rows"] for entry in entries) - rows
    told = Verdict(found.segments + len(whole), found.rows + rows, found.stub_rows + stub_rows, found.problems)
    return _with_problems(told, *problems)


def _as_of_now(db: sqlite3.Connection, run: RunOf) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The run's row and what it holds, but for the bytes, as of one moment; None when it drained meanwhile."""
    db.execute("BEGIN")
    try:
        row = _dicts(db.execute("SELECT * FROM streams WHERE id = ?", (run.id,)))
        query = "SELECT first, seq, digest, rows, run_rows, bytes, void FROM outbox WHERE stream_id = ? ORDER BY seq"
        return (row[0], _dicts(db.execute(query, (run.id,)))) if row else None
    finally:
        db.execute("COMMIT")


def _dicts(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _counted(entries: Sequence[dict[str, Any]], row: dict[str, Any]) -> Iterator[str]:
    true = {
        "pending_segments": len(entries),
        "pending_rows": sum(entry["rows"] for entry in entries),
        "pending_bytes": sum(entry["bytes"] for entry in entries),
        "lost_rows": sum(entry["rows"] for entry in entries if entry["void"]),
    }
    for name, count in true.items():
        if row[name] != count:
            yield f"its counter {name} says {row[name]}, it holds {count}"


def _chained(entries: Sequence[dict[str, Any]], row: dict[str, Any]) -> Iterator[str]:
    """Gaps and overlaps from the mark to the end of the run, in segments and in rows."""
    seq, rows = row["mark_seq"], row["mark_rows"]
    if row["successor"] and entries:  # what came first has moved there
        seq, rows = entries[0]["first"] - 1, entries[0]["run_rows"] - entries[0]["rows"]
    for entry in entries:
        if (entry["first"], entry["run_rows"]) != (seq + 1, rows + entry["rows"]):
            yield f"segment {entry['seq']} begins at {entry['first']}, what is before it ends at {seq}"
        seq, rows = entry["seq"], entry["run_rows"]
    if (seq, rows) != (row["next_seq"] - 1, row["run_rows"]) and not row["successor"]:
        yield f"it ends at segment {seq} with {rows} rows, its row says {row['next_seq'] - 1} with {row['run_rows']}"


def _sealed(db: sqlite3.Connection, run: RunOf, entry: dict[str, Any], previous: str, public: str) -> Iterator[str]:
    """What is wrong with one segment."""
    query = "SELECT data FROM outbox WHERE stream_id = ? AND seq = ? AND void = ''"
    found = db.execute(query, (run.id, entry["seq"])).fetchone()
    if found is None:  # it was freed meanwhile
        return
    if sha256(found[0] or b"") != entry["digest"]:
        yield "its bytes are not those that were sealed"
        return
    try:
        header = segment.decode(found[0], public).header
    except Refused as error:
        yield error.cause
        return
    if (header.run, header.stream, header.seq, header.rows) != (run.run, run.stream, entry["seq"], entry["rows"]):
        yield f"its header says segment {header.seq} of run {header.run} of {header.stream}, {header.rows} rows"
    if previous and header.previous != previous:
        yield "it does not follow from the one before"
