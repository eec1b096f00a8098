"""A group of segments into the lake, exactly once (I2): rows first, then the segments' own rows, whose marks are the marks.

A crash between the two leaves a table ahead of `segments`; each table's own mark then keeps its rows from coming twice. The
tables are synced in between, so that no power cut leaves `segments` ahead of a table.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from control_plane.columns import COLUMNS_MAX, OWN_COLUMNS, SEGMENTS_SCHEMA, Misfit, conform, lake_schema, merged_schema
from control_plane.lake import Lake, retaken_run
from control_plane.lake_table import Conflict, LakeTable
from control_plane.lineage import WindowKey, lineage_columns, lineage_schema, log_columns
from control_plane.refusals import Refusals
from control_plane.sequence import Mark, continue_from
from pipelines.contract.errors import Refused
from pipelines.contract.frames import pack, shallow_dict
from pipelines.contract.language.base import LOG, RESERVED_TABLES
from pipelines.contract.segment import INCIDENTS, QUARANTINE, REQUESTS, Segment, StreamKey, decode
from pipelines.engine.answers import ANSWER_SCHEMA
from pipelines.engine.ipc import decode_rows
from pipelines.engine.run import INCIDENT_SCHEMA, QUARANTINE_SCHEMA

log = structlog.get_logger()
T = TypeVar("T")

STORED, VOID, REFUSED = "stored", "void", "refused"
RANGES_MAX = 100  # of one request
_ATTEMPTS = 10  # against other processes; on average 0.7 s
_TAKEN = (
    "the table has other rows under this number: the card was put back after a commit here was interrupted; it can be retaken"
)
_SYSTEM_TABLES = {QUARANTINE: "quarantine", INCIDENTS: "incidents", REQUESTS: "requests"}
_SYSTEM_SCHEMAS = {
    "quarantine": lake_schema(QUARANTINE_SCHEMA),
    "incidents": lake_schema(INCIDENT_SCHEMA),
    "requests": lake_schema(ANSWER_SCHEMA),
}

Tables = Collection[str] | Mapping[str, WindowKey | None]


class Verdict(NamedTuple):
    """stored | void | refused, why, and how many of the rows are in the table."""

    word: str
    reason: str = ""
    rows: int = 0


@dataclass(frozen=True)
class Upload:
    """One request: what a node sent and what it asked for. `ranges` are (stream, first, last) whose digests it asks for."""

    node: str
    public: str
    blobs: Sequence[bytes]
    streams: Sequence[StreamKey] = ()
    ranges: Sequence[tuple[StreamKey, int, int]] = ()


@dataclass(frozen=True)
class Opened:
    """An upload whose signatures and digests are checked. It needs no lake, so threads may do it beside a commit."""

    upload: Upload
    segments: tuple[Segment, ...]
    errors: tuple[str, ...] = ()
    security: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Its answer: `marks` of every stream sent or asked for; `refused` are (stream, seq, reason), `links` (stream, seq, link)."""

    marks: dict[StreamKey, Mark] = field(default_factory=dict)
    refused: list[tuple[StreamKey, int, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    security: list[str] = field(default_factory=list)
    links: list[tuple[StreamKey, int, str]] = field(default_factory=list)


def open_upload(upload: Upload) -> Opened:
    segments, errors, security = list[Segment](), list[str](), list[str]()
    for data in upload.blobs:
        try:
            segment = decode(data, upload.public)
        except Refused as error:
            errors.append(_first_line(error))
            security.append(f"segment refused: {_first_line(error)}")
            continue
        if segment.header.node == upload.node:
            segments.append(segment)
        else:
            security.append(f"segment refused: it says it is of node {segment.header.node}")
    return Opened(upload, tuple(segments), tuple(errors), tuple(security))


class Settler:
    """Not for two threads at once. `tables_of` gives the lake tables of a registered version (pipeline, digest), else nothing;
    as a map it also says what the rows of window tables are revisions of. `pause` waits for other processes, in seconds."""

    def __init__(
        self,
        lake: Lake,
        refused_dir: Path,
        tables_of: Callable[[str, str], Tables],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lake, self._refusals, self._tables_of, self._pause = lake, Refusals(refused_dir), tables_of, pause

    def settle(self, uploads: Sequence[Upload | Opened], now_us: int) -> list[Outcome]:
        """Store what continues the lake, answer each upload. After an exception the lake may hold part; sending again heals."""
        opened = [open_upload(upload) if isinstance(upload, Upload) else upload for upload in uploads]
        return self._repeated(lambda: self._settle(opened, now_us))

    def retake(self, digests: Collection[str] | None, now_us: int) -> dict[str, str]:
        """Try refused segments (all: None) again; digest -> "" once it is stored, else why not. What is stored is in a run of its
        own, named by the refused one: each (node, run, stream, seq) keeps its one verdict, and a repeat stores nothing."""
        chosen = [row["digest"] for row in self._lake.refused_rows() if digests is None or row["digest"] in digests]
        return self._repeated(lambda: {digest: self._retake(digest, now_us) for digest in chosen})

    def refused(self) -> list[dict[str, Any]]:
        """Segments that are refused, as the lake has them, oldest first."""
        self._lake.catch_up()
        return self._lake.refused_rows()

    def _repeated(self, do: Callable[[], T]) -> T:
        """What `do` returns, once no other process commits in between."""
        for attempt in range(_ATTEMPTS):
            try:
                self._lake.catch_up()
                return do()
            except Conflict as conflict:
                log.info("lake: another process was first", cause=str(conflict))
                self._lake.reload()
                self._pause(random.uniform(0, 0.01 * 2 ** min(attempt, 5)))  # noqa: S311 - spreads load, guards nothing
            except Exception:
                self._lake.reload()
                raise
        raise _Unavailable("other processes keep committing to the same streams")

    def _settle(self, opened: Sequence[Opened], now_us: int) -> list[Outcome]:
        arrived: dict[StreamKey, list[Segment]] = {}
        streams: list[set[StreamKey]] = []
        for one in opened:
            for segment in one.segments:
                arrived.setdefault(segment.header.key, []).append(segment)
            streams.append({*one.upload.streams, *(segment.header.key for segment in one.segments)})
        forks, failures, goes_on = self._store(arrived, now_us)
        while goes_on:
            forks, failures, goes_on = self._store(arrived, now_us)
        self._lake.make_durable()
        marks = self._lake.marks(set().union(*streams))
        outcomes = []
        for one, keys in zip(opened, streams, strict=True):
            sent = {(segment.header.key, segment.header.seq) for segment in one.segments}
            outcome = Outcome({key: marks[key] for key in sorted(keys)}, security=list(one.security), errors=list(one.errors))
            outcome.refused = [
                (s, seq, why) for s in sorted(keys) for seq, why in self._lake.refusals(s).items() if (s, seq) in sent
            ]
            outcome.security += [forks[key] for key in sorted(keys & forks.keys())]
            outcome.errors += outcome.security + [failures[key] for key in sorted(keys & failures.keys())]
            outcome.links = [(s, *link) for s, first, last in one.upload.ranges for link in self._lake.links(s, first, last)]
            outcomes.append(outcome)
        return outcomes

    def _store(
        self, arrived: dict[StreamKey, list[Segment]], now_us: int
    ) -> tuple[dict[StreamKey, str], dict[StreamKey, str], bool]:
        """What could not be stored: forks and failures by stream; and whether what follows a stub can be stored now."""
        marks = self._lake.marks(arrived)
        found = {key: continue_from(marks[key], segments) for key, segments in arrived.items()}
        forks = {key: f"stream {key.app_id}: {c.fork}" for key, c in found.items() if c.fork}
        accepted = [segment for continuation in found.values() for segment in continuation.segments]
        verdicts: dict[str, Verdict] = {}
        failures: dict[StreamKey, str] = {}
        for table, stubs in _by_table(s for s in accepted if s.header.is_stub).items():
            try:
                self._fence(table, stubs)
            except _Unavailable as error:
                failures |= {stub.header.key: str(error) for stub in stubs}
            else:
                verdicts |= {stub.digest: self._stub_verdict(stub) for stub in stubs}
        for table, segments in _by_table(s for s in accepted if not s.header.is_stub).items():
            try:
                reasons = self._store_rows(table, segments, now_us)
            except _Unavailable as error:
                failures |= {segment.header.key: str(error) for segment in segments}
            else:
                verdicts |= {s.digest: _verdict(s, reasons[s.digest]) for s in segments}
        settled = _settled_prefixes(accepted, verdicts)
        if settled:
            self._refusals.keep(settled, {d: v.reason for d, v in verdicts.items() if v.word == REFUSED})
            self._store_segments(settled, marks, verdicts, now_us)
        return forks, failures, any(segment.header.is_stub for segment in settled)

    def _fence(self, name: str, stubs: list[Segment]) -> None:
        """Before rows are called void: a process that hangs may hold their segments whole, and commit them when it goes on."""
        try:
            self._lake.table(name)
        except Misfit:
            return
        is_ours = not all(self._stray(stub) for stub in stubs)
        schema = pa.schema([*lineage_schema(name), *_SYSTEM_SCHEMAS.get(name, ())])
        try:
            self._lake.fence(name, {stub.header.key for stub in stubs}, schema if is_ours else None)
        except Conflict:
            raise
        except Exception as error:  # noqa: BLE001 - as in _append
            self._lake.reload()
            log.error("lake: commit failed", table=name, cause=_first_line(error))
            raise _Unavailable(f"the lake cannot store now: {_first_line(error)}") from None

    def _stub_verdict(self, stub: Segment) -> Verdict:
        """Rows may be in the table all the same: committed before a crash, or before `segments` was restored."""
        header = stub.header
        held = self._lake.count_rows(header.table, header.key, header.first, header.seq) if header.rows else 0
        if not held:
            return Verdict(VOID, header.void)
        reason = f"{header.void} on the node; {held} of {header.rows} rows were in the table before"
        return Verdict(STORED if held == header.rows else VOID, reason, held)

    def _store_rows(self, name: str, segments: list[Segment], now_us: int, *, keeps: bool = True) -> dict[str, str]:
        """Reasons of refusals ("": stored) of segments for one table, once their rows are committed. A refusal stands, whatever
        the table's mark. `keeps`: what is refused is kept raw."""
        known = {s.digest: why for s in segments if (why := self._refusals.reason(s.digest)) is not None}
        undecided = [s for s in segments if s.digest not in known]
        if not name:
            return {s.digest: "" if s.header.rows == 0 else "rows without a table" for s in segments}
        try:
            table = self._lake.table(name)
            self._lake.check_twin(name)
        except Misfit as misfit:
            return known | {s.digest: str(misfit) for s in undecided}
        fresh = [s for s in undecided if s.header.seq > table.mark(s.header.key)]
        strays = {s.digest: why for s in fresh if (why := self._stray(s))}
        strays |= dict.fromkeys(_others_there(table, [s for s in undecided if s not in fresh]), _TAKEN)
        fitting, misfits = _fit([s for s in fresh if s.digest not in strays], table.schema)
        reasons = strays | misfits
        if keeps:
            self._refusals.keep(undecided, reasons)
        verdicts = known | {s.digest: "" for s in undecided} | reasons
        if fitting:
            verdicts |= self._append(table, name, fitting, now_us, keeps=keeps)
        return verdicts

    def _stray(self, segment: Segment) -> str:
        """Why the segment may not write into its table, "" when it may: a system table's own kind, or a version's own sink."""
        header = segment.header
        expected = _SYSTEM_TABLES.get(header.kind)
        if (expected is not None and header.table != expected) or (expected is None and header.table in RESERVED_TABLES):
            return f"rows of kind {header.kind} may not go into the table {header.table}"
        if expected is not None:
            return ""
        if header.table not in self._tables_of(header.pipeline, header.version):
            return (
                f"{header.version[:19]} is no version of {header.pipeline} registered here that writes the table {header.table}"
            )
        return ""

    def _append(
        self, table: LakeTable, name: str, fitting: list[tuple[Segment, pa.Table]], now_us: int, *, keeps: bool
    ) -> dict[str, str]:
        """Why segments that fit their table are not in it; the lake itself may refuse some."""
        segments = [segment for segment, _ in fitting]
        marks = {s.header.key: s.header.seq for s in segments}
        try:
            self._lake.append(table, self._with_lineage(name, fitting, table.schema, now_us), marks)
        except Conflict:
            raise
        except Exception as error:  # noqa: BLE001 - deltalake raises bare Exceptions; each is mapped here
            self._lake.reload()
            if len(segments) > 1:  # one bad segment must not hold up the others
                return {d: why for s in segments for d, why in self._store_rows(name, [s], now_us, keeps=keeps).items()}
            if isinstance(error, (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, TypeError)):
                reasons = {segments[0].digest: f"the lake refused it: {_first_line(error)}"}
                if keeps:
                    self._refusals.keep(segments, reasons)
                return reasons
            log.error("lake: commit failed", table=name, cause=_first_line(error))
            raise _Unavailable(f"the lake cannot store now: {_first_line(error)}") from None
        return {}

    def _with_lineage(self, name: str, fitting: list[tuple[Segment, pa.Table]], known: pa.Schema | None, now_us: int) -> pa.Table:
        """One table in the order of columns of the one in the lake."""
        user = pa.concat_tables([rows for _, rows in fitting])
        segments, counts = [segment for segment, _ in fitting], [rows.num_rows for _, rows in fitting]
        columns = dict(zip([f.name for f in lineage_schema("")], lineage_columns(segments, counts, now_us), strict=True))
        if name.endswith(LOG):
            parts = [log_columns(segment, rows, self._window_key(segment)) for segment, rows in fitting]
            more = lineage_schema(name).names[len(columns) :]
            columns |= {n: pa.chunked_array([chunk for part in parts for chunk in part[i].chunks]) for i, n in enumerate(more)}
        fields = [field.with_type(columns[field.name].type) for field in lineage_schema(name)]
        table = pa.table([*columns.values(), *user.columns], schema=pa.schema([*fields, *user.schema]))
        order = known.names if known is not None else []
        return table.select([*order, *(n for n in table.column_names if n not in order)])

    def _window_key(self, segment: Segment) -> WindowKey:
        tables = self._tables_of(segment.header.pipeline, segment.header.version)
        return (tables.get(segment.header.table) if isinstance(tables, Mapping) else None) or WindowKey()

    def _store_segments(
        self, settled: list[Segment], marks: Mapping[StreamKey, Mark], verdicts: Mapping[str, Verdict], now_us: int
    ) -> None:
        """`marks` are those before."""
        if any(s.header.rows and not s.header.is_stub for s in settled):
            self._lake.make_durable()
        reached = dict(marks)
        rows = []
        for segment in settled:
            verdict = verdicts[segment.digest]
            mark = reached[segment.header.key].after(segment, verdict.rows)
            reached[segment.header.key] = mark
            rows.append(_segment_row(segment, mark, verdict, now_us))
        table = pa.Table.from_pylist(rows, schema=SEGMENTS_SCHEMA)
        self._lake.append_segments(table, {s.header.key: reached[s.header.key] for s in settled})

    def _retake(self, digest: str, now_us: int) -> str:
        try:
            segment = _retaken(self._refusals.segment(digest))
        except Refused as error:
            return str(error)
        key = segment.header.key
        marks = self._lake.marks([key])
        if marks[key].seq:
            return ""
        try:
            (reason,) = self._store_rows(segment.header.table, [segment], now_us, keeps=False).values()
        except _Unavailable as error:
            return str(error)
        if not reason:
            self._store_segments(
                [segment], marks, {segment.digest: Verdict(STORED, f"retaken: {digest}", segment.header.rows)}, now_us
            )
            self._lake.make_durable()
        return reason


class _Unavailable(Exception):
    pass


def _retaken(refused: Segment) -> Segment:
    """The same rows in a run of their own. Its ledgers stay with the refused one, which counted them."""
    old = refused.header
    run = retaken_run(old.run, old.seq)
    header = replace(old, run=run, seq=1, first=1, previous="", run_rows=old.rows, ledgers={})
    return Segment(header, refused.payload, pack(shallow_dict(header), [refused.payload]))


def _by_table(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    grouped: dict[str, list[Segment]] = {}
    for segment in segments:
        grouped.setdefault(segment.header.table if segment.header.rows else "", []).append(segment)
    return grouped


def _fit(segments: list[Segment], schema: pa.Schema | None) -> tuple[list[tuple[Segment, pa.Table]], dict[str, str]]:
    """Rows, all in one schema that also is the table's, and digest -> reason for those that do not fit."""
    user = pa.schema([f for f in schema if f.name not in OWN_COLUMNS]) if schema is not None else None
    fitting: list[tuple[Segment, pa.Table]] = []
    refusals: dict[str, str] = {}
    for segment in segments:
        try:
            rows = _rows(segment)
            merged = merged_schema(_SYSTEM_SCHEMAS.get(segment.header.table, user), rows.schema)
            _check_columns(segment.header.table, merged)
            conform(rows, merged)
        except (Misfit, Refused, pa.ArrowException) as error:
            refusals[segment.digest] = _first_line(error)
            continue
        user = merged
        fitting.append((segment, rows))
    return [(s, conform(rows, user)) for s, rows in fitting] if user is not None else [], refusals


def _others_there(table: LakeTable, segments: list[Segment]) -> list[str]:
    """Digests of those whose number the table took, before a crash kept `segments` from saying so, with rows that are not theirs:
    the node's card was put back meanwhile, and it sealed something else. One scan."""
    dataset = table.dataset() if segments else None
    if dataset is None:
        return []
    runs, numbers = {s.header.run for s in segments}, {s.header.seq for s in segments}
    wanted = pc.field("_run").isin(list(runs)) & pc.field("_seq").isin(list(numbers))
    held: dict[tuple[StreamKey, int], list[dict[str, Any]]] = {}
    for row in dataset.to_table(filter=wanted).sort_by("_row").to_pylist():
        held.setdefault((StreamKey(row["_node"], row["_run"], row["_stream"]), row["_seq"]), []).append(row)
    fitting = {s.digest: rows.to_pylist() for s, rows in _fit(segments, table.schema)[0]}
    return [s.digest for s in segments if not _are_same(fitting.get(s.digest), held.get((s.header.key, s.header.seq), []))]


def _are_same(sealed: list[dict[str, Any]] | None, held: list[dict[str, Any]]) -> bool:
    """By their text, in which NaN is itself."""
    if sealed is None or len(sealed) != len(held):
        return False
    return repr(sealed) == repr([{name: there.get(name) for name in ours} for ours, there in zip(sealed, held, strict=True)])


def _check_columns(table: str, schema: pa.Schema) -> None:
    """Raises `Misfit` for a table that must not grow this way."""
    fixed = _SYSTEM_SCHEMAS.get(table)
    more = [name for name in schema.names if fixed is not None and name not in fixed.names]
    if more:
        raise Misfit(f"column {more[0]} is none of the table {table}")
    if len(schema) > COLUMNS_MAX:
        raise Misfit(f"the table would have {len(schema)} columns, {COLUMNS_MAX} are the most")


def _rows(segment: Segment) -> pa.Table:
    header = segment.header
    rows = decode_rows(segment.payload)
    if rows.num_rows != header.rows:
        raise Misfit(f"the header says {header.rows} rows, the payload has {rows.num_rows}")
    schema = lake_schema(rows.schema)
    return rows.select(schema.names).cast(schema)


def _settled_prefixes(accepted: list[Segment], verdicts: Mapping[str, Verdict]) -> list[Segment]:
    """Per stream, the segments before the first without a verdict: marks know no gaps."""
    stopped: set[StreamKey] = set()
    settled = []
    for segment in accepted:
        if segment.digest not in verdicts:
            stopped.add(segment.header.key)
        if segment.header.key not in stopped:
            settled.append(segment)
    return settled


def _verdict(segment: Segment, reason: str) -> Verdict:
    return Verdict(REFUSED, reason) if reason else Verdict(STORED, rows=segment.header.rows)


def _segment_row(segment: Segment, mark: Mark, verdict: Verdict, now_us: int) -> dict[str, object]:
    row = shallow_dict(segment.header)
    row["table_name"] = row.pop("table")
    row |= {name: json.dumps(row[name], ensure_ascii=False) for name in ("positions", "ledgers", "lookups")}
    row |= {"digest": segment.digest, "verdict": verdict.word, "reason": verdict.reason}
    return row | {"received_at": now_us, "run_stored": mark.stored}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
