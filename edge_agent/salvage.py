"""A new agent.db from what can be read of a damaged one. Nothing that does not verify comes over, nothing that does stays behind.

* A segment comes over when its bytes are those of its digest or carry the node's signature; what its header says of it counts,
  not the row around it. The others leave stubs: their numbers, rows and digest follow from what lies before and behind, so that
  no gap blocks and every row is counted.
* Positions, ledger and state of a pipeline come over together or not at all (checksums.py). Without them it begins anew, and that
  is told.
* A run whose own row is lost or contradicts its segments goes on as its headers tell, and takes no more.

The new file takes the damaged one's place in steps that a power cut may interrupt anywhere; the damaged one is set aside.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from edge_agent import answers, checksums, clock, outbox, schema
from edge_agent.clock import Anchor, ClockMark
from edge_agent.database import Damaged, parsed
from edge_agent.gate import Book
from edge_agent.outbox import STUB_BYTES
from edge_agent.pages import LOST, Pages, Tree
from edge_agent.rate import Rate
from edge_agent.reserve import RESERVE_BYTES
from edge_agent.shares import Buffer
from pipelines.contract import segment
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.frames import sha256, unpack
from pipelines.contract.keys import SIGNATURE_BYTES
from pipelines.contract.segment import DAMAGED, EVICTED, SegmentHeader

ASIDE_MAX = 2  # damaged files that are kept, the newest
META = "salvage"  # the report's key in the new file
_EVICTABLE = (segment.ROWS, segment.QUARANTINE)
_READS = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
_TYPES: dict[str, type] = {"INTEGER": int, "TEXT": str, "BLOB": bytes}
Record = dict[str, Any]
T = TypeVar("T")
_log = structlog.get_logger("store")


@dataclass(frozen=True, slots=True)
class Report:
    """What came over (`segments`, `rows`) and what did not. `restarted` names pipelines that begin anew."""

    at: str
    reason: str
    segments: int = 0
    rows: int = 0
    damaged_rows: int = 0
    evicted_rows: int = 0  # there was no room for them
    restarted: Sequence[str] = ()
    cut_runs: int = 0  # whose own row was lost: of what they ended with, nothing is known but what came over


def is_damage(error: BaseException) -> bool:
    """Whether the file does not hold what was written to it."""
    if isinstance(error, Damaged | json.JSONDecodeError | UnicodeDecodeError | zlib.error):
        return True
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code in _READS or "Could not decode" in str(error)


def suspect(path: Path, reason: str) -> None:
    """Have the next opening salvage the file."""
    with suppress(OSError):
        _suspicion(path).write_text(reason)


def opened(path: Path, public: str, work: Callable[[], T]) -> T:
    """What `work` makes of the file, which is salvaged first when it is under suspicion, or when `work` finds it damaged.

    `public` is the node's nkey.
    """
    finish(path)
    try:
        reason = _suspicion(path).read_text(errors="replace")
    except FileNotFoundError:
        try:
            return work()
        except (sqlite3.Error, Damaged, ValueError, TypeError) as error:
            reason = str(error)
            if not is_damage(error) and getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF != sqlite3.SQLITE_ERROR:
                hint = "check the disk's space and the file's owner"
                raise TidewireError(reason, op="open", place=str(path), hint=hint) from None
    _log.error("the store is damaged; what can be read of it goes to a new one", path=str(path), reason=reason)
    report = salvage(path, public, reason, clock.wall_text())
    told = {name: value for name, value in asdict(report).items() if value and name not in ("at", "reason")}
    _log.error("the store was salvaged", **told, aside=[str(aside) for aside in asides(path)])
    return work()


def asides(path: Path) -> list[Path]:
    """The damaged files that were set aside, oldest first."""
    return sorted(path.parent.glob(f"{path.stem}.damaged-*.db"))


def salvage(path: Path, public: str, reason: str, at: str) -> Report:
    """Put a new file in the place of the damaged one. `public` is the node's nkey, `at` the wall clock, a label.

    Raises `TidewireError` when there is no room even for what cannot be left behind.
    """
    scratch = path.with_suffix(".salvage")
    _remove(scratch)
    _forget_asides(path, keep=ASIDE_MAX - 1)
    path.with_suffix(".reserve").unlink(missing_ok=True)  # this is what it is for
    if _free_bytes(path) < path.stat().st_size:
        _forget_asides(path, keep=0)
    try:
        report = rebuild(path, scratch, public, reason, at, _free_bytes(path) - RESERVE_BYTES)
        _sync(scratch)
    except (sqlite3.Error, OSError) as error:
        _remove(scratch)
        raise TidewireError(
            f"what is readable of the damaged store cannot be written: {error}",
            op="salvage", place=str(path), hint="free some space on that disk and start the agent again",
        ) from None  # fmt: skip
    scratch.replace(path.with_suffix(".salvaged"))
    finish(path)
    if _free_bytes(path) < 2 * RESERVE_BYTES:
        _forget_asides(path, keep=0)
    return report


def finish(path: Path) -> None:
    """Let a complete new file take its place, also when that was interrupted."""
    made = path.with_suffix(".salvaged")
    if not made.exists():
        return
    aside = path.with_name(f"{path.stem}.damaged-{made.stat().st_mtime_ns // 1000}.db")
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    _suspicion(path).unlink(missing_ok=True)
    made.replace(path)
    _sync(path.parent)


def report_of(db: sqlite3.Connection) -> Report | None:
    """Of the salvage that made this file, if one did."""
    told = schema.get_meta(db, META)
    return Report(**json.loads(str(told))) if told else None


def rebuild(damaged: Path, fresh: Path, public: str, reason: str = "", at: str = "", room_bytes: int = 1 << 62) -> Report:
    """Write `fresh` from what is readable of `damaged`, which is only read. Segments beyond `room_bytes` are evicted."""
    with Pages(damaged) as pages, closing(_create(fresh)) as db:
        db.execute("BEGIN")
        work = _Salvage(pages, db, public, room_bytes)
        work.copy_tables()
        work.copy_pipelines()
        work.copy_outbox()
        work.copy_meta()
        report = work.report(reason, at)
        schema.put_meta(db, META, json.dumps(asdict(report)))
        db.execute("COMMIT")
    return report


@dataclass(frozen=True, slots=True)
class _Piece:
    """A segment or stub that came over; `previous` is None of a stub."""

    first: int
    previous: str | None
    digest: str
    rows: int
    run_rows: int

    @property
    def rows_before(self) -> int:
        return self.run_rows - self.rows


@dataclass(slots=True)
class _Known:
    """Of a run: the segments and stubs that came over, by last number; those of which only the row can be read; its own row."""

    stream_id: int
    row: Record | None
    here: dict[int, _Piece] = field(default_factory=dict)
    lost: dict[int, tuple[str, int]] = field(default_factory=dict)  # seq -> digest, run_rows
    evicted: set[int] = field(default_factory=set)


class _Salvage:
    def __init__(self, pages: Pages, db: sqlite3.Connection, public: str, room_bytes: int) -> None:
        self._pages, self._db, self._public, self._room = pages, db, public, room_bytes
        self._roots = {**_roots(db), **_roots_in(pages)}
        self._columns = {table: db.execute(f"PRAGMA table_info({table})").fetchall() for table in _roots(db)}
        self._runs: dict[int, _Known] = {}
        self._ids: dict[tuple[str, str], int] = {}  # (run, stream) -> stream id
        self._seen: set[str] = set()  # pipelines that left any trace
        self._intact: set[str] = set()
        self._node_time_us = 0
        self._kept = (0, 0)  # segments, rows
        self._lost_rows = {DAMAGED: 0, EVICTED: 0}
        self._cut_runs = 0

    def report(self, reason: str, at: str) -> Report:
        restarted = sorted(self._seen - self._intact)
        return Report(at, reason, *self._kept, self._lost_rows[DAMAGED], self._lost_rows[EVICTED], restarted, self._cut_runs)

    # What is copied row by row

    def copy_tables(self) -> None:
        special = {"meta", "pipelines", "state", "streams", "outbox"}
        for table in _roots(self._db).keys() - special:
            for row in self._rows(table):
                if _is_sound(table, row):
                    self._insert(table, row)

    def copy_meta(self) -> None:
        for row in self._rows("meta"):
            if row["key"] != "format" and _is_sound("meta", row):
                schema.put_meta(self._db, row["key"], row["value"])
        if schema.get_meta(self._db, "clock") is None and self._node_time_us:  # node time never goes back
            schema.put_meta(self._db, "clock", json.dumps(asdict(ClockMark("", 0, self._node_time_us))))
        outbox.begin_sending(self._db)  # whatever was said of it, what lies here may have been sent

    def copy_pipelines(self) -> None:
        state: dict[str, list[Record]] = {}
        for row in self._rows("state"):
            state.setdefault(row["pipeline"], []).append(row)
        for row in self._rows("pipelines"):
            self._seen.add(row["name"])
            entries = state.get(row["name"], [])
            if checksums.is_intact(list(row.values()), [(entry["key"], entry["value"]) for entry in entries]):
                self._intact.add(row["name"])
                self._insert("pipelines", row)
                for entry in entries:
                    self._insert("state", entry)

    # Segments

    def copy_outbox(self) -> None:
        for row in self._rows("streams"):
            if row["id"] not in self._runs and (row["run"], row["stream"]) not in self._ids:
                self._begin_run(_Known(row["id"], row), row)
        tree = self._tree("outbox")
        for row in self._rows("outbox", tree):
            self._copy_segment(row)
        if not tree.is_whole or any(_gaps(known) for known in self._runs.values()):
            for rowid, values in self._pages.loose_rows():
                if (loose := self._as_row("outbox", rowid, values)) is not None:
                    self._copy_loose(loose)
        for known in self._runs.values():
            self._finish_run(known)

    def _begin_run(self, known: _Known, row: Record) -> None:
        """The row as it takes segments: triggers count what is pending."""
        self._runs[known.stream_id], self._ids[row["run"], row["stream"]] = known, known.stream_id
        counters = dict.fromkeys(("pending_segments", "pending_rows", "pending_bytes", "lost_rows"), 0)
        is_restarted = row["pipeline"] not in self._intact
        self._seen.add(row["pipeline"])
        self._insert("streams", {**row, **counters, "active": 0 if is_restarted else row["active"]})

    def _copy_segment(self, row: Record) -> None:
        known = self._runs.get(row["stream_id"])
        if row["void"]:
            if known is not None:
                self._keep(known, row, None)
        elif (header := self._header(row)) is not None:
            self._copy(row, header, self._run_of(header))
        elif known is not None:
            known.lost[row["seq"]] = (row["digest"], row["run_rows"])

    def _copy_loose(self, row: Record) -> None:
        """A segment in a page that belongs to no tree may have been freed long ago: only what fills a gap comes over."""
        header = None if row["void"] else self._header(row, must_be_signed=True)
        known = self._runs.get(self._ids.get((header.run, header.stream), 0)) if header else None
        if header and known and known.row and any(first <= header.seq <= last for first, last in _gaps(known)):
            self._copy(row, header, known)

    def _copy(self, row: Record, header: SegmentHeader, known: _Known) -> None:
        self._node_time_us = max(self._node_time_us, header.node_time_us)
        numbers = {"stream_id": known.stream_id, "first": header.seq, "seq": header.seq, "rows": header.rows}
        whole = {**row, **numbers, "run_rows": header.run_rows, "bytes": len(row["data"])}
        if header.kind in _EVICTABLE and self._room < len(row["data"]):
            known.lost[header.seq] = (row["digest"], header.run_rows)
            known.evicted.add(header.seq)
        elif self._keep(known, whole, header.previous):
            self._room -= len(row["data"])
            self._kept = (self._kept[0] + 1, self._kept[1] + header.rows)

    def _keep(self, known: _Known, row: Record, previous: str | None) -> bool:
        if row["seq"] in known.here:
            return False
        known.here[row["seq"]] = _Piece(row["first"], previous, row["digest"], row["rows"], row["run_rows"])
        return self._insert("outbox", row) or self._insert("outbox", {**row, "id": None})

    def _header(self, row: Record, *, must_be_signed: bool = False) -> SegmentHeader | None:
        """Of a segment whose bytes are those that were sealed; the row's digest is then theirs."""
        data, digest = row["data"] or b"", row["digest"]
        row["digest"] = sha256(data)
        try:
            if row["digest"] == digest and not must_be_signed:
                return SegmentHeader(**unpack(data[SIGNATURE_BYTES:])[0])
            return segment.decode(data, self._public).header
        except (Refused, TypeError):
            row["digest"] = digest
            return None

    def _run_of(self, header: SegmentHeader) -> _Known:
        stream_id = self._ids.get((header.run, header.stream))
        if stream_id is not None:
            return self._runs[stream_id]
        known = _Known(max(self._runs, default=0) + 1, None)
        named = {"id": known.stream_id, "pipeline": header.pipeline, "stream": header.stream, "run": header.run, "active": 0}
        self._begin_run(known, {**named, "kind": header.kind, "lake_table": header.table})
        return known

    def _finish_run(self, known: _Known) -> None:
        """Stubs where segments are missing, and the run's own row as its segments have it."""
        if known.row is None or not _agrees(known):
            known.row = self._row_from_segments(known)
            self._cut_runs += 1
        for first, last in _gaps(known):
            self._fill(known, known.row, first, last)

    def _row_from_segments(self, known: _Known) -> Record:
        """Of a run that goes on with what is here, and takes no more."""
        ends = {seq: (piece.digest, piece.run_rows) for seq, piece in known.here.items()}
        ends |= {seq: end for seq, end in known.lost.items() if seq > max(known.here, default=0)}
        mark_seq, mark_digest, mark_rows = 0, "", 0
        if known.here:
            head = known.here[min(known.here)]
            mark_seq, mark_digest, mark_rows = head.first - 1, head.previous or "", head.rows_before
        last = max(ends, default=mark_seq)
        digest, run_rows = ends.get(last, (mark_digest, mark_rows))
        row = {
            "mark_seq": mark_seq,
            "mark_digest": mark_digest,
            "mark_rows": mark_rows,
            "mark_stored": mark_rows,
            "sent_seq": last,
        }
        row |= {"next_seq": last + 1, "last_digest": digest, "run_rows": run_rows, "active": 0, "successor": None}
        names = ", ".join(f"{name} = :{name}" for name in row)
        self._db.execute(f"UPDATE streams SET {names} WHERE id = :id", {**row, "id": known.stream_id})
        return row

    def _fill(self, known: _Known, run: Record, first: int, last: int) -> None:
        """Stubs for the segments `first` to `last`: one each where its digest is known, for the lake may stand at any of them."""
        before = known.here.get(first - 1)
        behind = next((piece for piece in known.here.values() if piece.first == last + 1), None)
        rows = before.run_rows if before else run["mark_rows"]
        digest, rows_after = (behind.previous, behind.rows_before) if behind else (run["last_digest"], run["run_rows"])
        ends = {seq: end for seq, end in known.lost.items() if first <= seq <= last and rows <= end[1] <= rows_after}
        ends[last] = (digest or ends.get(last, ("", 0))[0], rows_after)
        for seq in sorted(ends):
            link, run_rows = ends[seq]
            run_rows = max(run_rows, rows)
            void = EVICTED if known.evicted.issuperset(range(first, seq + 1)) else DAMAGED
            stub = {"stream_id": known.stream_id, "first": first, "seq": seq, "digest": link, "rows": run_rows - rows}
            self._insert("outbox", {**stub, "run_rows": run_rows, "bytes": STUB_BYTES, "void": void, "data": None})
            outbox.count(self._db, known.stream_id, {f"{void}_segments": seq - first + 1, f"{void}_rows": run_rows - rows})
            self._lost_rows[void] += run_rows - rows
            first, rows = seq + 1, run_rows

    # Rows

    def _tree(self, table: str) -> Tree:
        return self._pages.tree(self._roots[table])

    def _rows(self, table: str, tree: Tree | None = None) -> Iterator[Record]:
        """The rows that have the table's shape. Of the large column of a segment what can be read."""
        for rowid, values in tree or self._tree(table):
            if (row := self._as_row(table, rowid, values)) is not None:
                yield row

    def _as_row(self, table: str, rowid: int, values: list[Any]) -> Record | None:
        columns = self._columns[table]
        if len(values) != len(columns):
            return None
        row: Record = {}
        for (_, name, kind, not_null, _, key), value in zip(columns, values, strict=True):
            if kind == "INTEGER" and key and value is None:
                value = rowid
            if table == "outbox" and name == "data" and value is LOST:
                value = None
            is_fit = type(value) is _TYPES.get(kind, type(value)) and value is not LOST
            if not is_fit and (value is not None or not_null):
                return None
            row[name] = value
        return row

    def _insert(self, table: str, row: Mapping[str, Any]) -> bool:
        names = ", ".join(row)
        values = ", ".join("?" * len(row))
        done = self._db.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({values})", list(row.values()))
        return done.rowcount > 0


def _gaps(known: _Known) -> list[tuple[int, int]]:
    """(first, last) of what is missing between a run's mark and its end."""
    ranges = [(piece.first, seq) for seq, piece in known.here.items()]
    if known.row is not None:
        end = known.row["next_seq"]
        ranges.append((end, end))
        if not known.row.get("successor"):  # else what was first has moved there
            ranges.append((known.row["mark_seq"], known.row["mark_seq"]))
    gaps: list[tuple[int, int]] = []
    ranges.sort()
    reached = ranges[0][1] if ranges else 0
    for first, last in ranges:
        if first > reached + 1:
            gaps.append((reached + 1, first - 1))
        reached = max(reached, last)
    return gaps


def _agrees(known: _Known) -> bool:
    """Whether a run's row and its segments tell one story."""
    row, here = known.row, known.here
    assert row is not None
    if not (0 <= row["mark_seq"] < row["next_seq"] and 0 <= row["mark_rows"] <= row["run_rows"]):
        return False
    if not here:
        return True
    head, tail = here[min(here)], here[max(here)]
    is_next, is_last = head.first == row["mark_seq"] + 1, max(here) == row["next_seq"] - 1
    if head.first <= row["mark_seq"] or max(here) >= row["next_seq"]:
        return False
    if is_next and (head.previous not in (None, row["mark_digest"]) or head.rows_before != row["mark_rows"]):
        return False
    if is_last and (tail.digest, tail.run_rows) != (row["last_digest"], row["run_rows"]):
        return False
    return bool(row["mark_rows"] <= head.rows_before and tail.run_rows <= row["run_rows"])


def _is_sound(table: str, row: Record) -> bool:
    """What the agent relies on without a look of its own."""
    text = row["value"] if table == "meta" and isinstance(row["value"], str) else row.get("body")
    read = _READERS.get(f"meta.{row['key']}" if table == "meta" else table, dict)
    try:
        if text is not None:
            parsed(read, text)
        if table == "quarantine":
            zlib.decompress(row["data"])
    except (Damaged, zlib.error):
        return False
    return table != "artifacts" or row["data"] is None or sha256(row["data"]) == row["digest"]


_READERS: dict[str, Callable[[Any], object]] = {
    "meta.hardware": list,
    "meta.clock": lambda raw: ClockMark(**raw),
    "meta.anchor": lambda raw: Anchor(**raw),
    "meta.rates": lambda raw: [Rate(*fields) for fields in raw.values()],
    f"meta.{answers.LEDGER}": lambda raw: answers.Ledger(**raw),
    "gates": Book.of,
    "buffers": lambda raw: Buffer(*raw),
}  # the others are objects


def _create(path: Path) -> sqlite3.Connection:
    """An empty store that is written once, without a log."""
    db = sqlite3.connect(path, isolation_level=None)
    path.chmod(0o600)
    for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=OFF", "synchronous=OFF"):
        db.execute(f"PRAGMA {pragma}")
    schema.prepare(db)
    return db


def _roots(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'").fetchall())


def _roots_in(pages: Pages) -> dict[str, int]:
    """As far as the file's own list of tables can be read; the file that this agent makes has them at the same places."""
    rows = (values for _, values in pages.tree(1) if len(values) == 5)
    return {row[1]: row[3] for row in rows if row[0] == "table" and isinstance(row[1], str) and isinstance(row[3], int)}


def _suspicion(path: Path) -> Path:
    return path.with_suffix(".suspect")


def _forget_asides(path: Path, keep: int) -> None:
    found = asides(path)
    for aside in found[: max(len(found) - keep, 0)]:
        _remove(aside)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
