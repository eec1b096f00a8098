"""A group of segments into the lake, exactly once (I2): rows first, then the segments' own rows, whose marks are the marks.

A crash between the two leaves a table ahead of `segments`; each table's own mark then keeps its rows from coming twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import structlog
from deltalake.exceptions import SchemaMismatchError

from control_plane.columns import LINEAGE, SEGMENTS_SCHEMA, Misfit, conform, lake_schema, merged_schema
from control_plane.config import write_private
from control_plane.lake import Lake
from control_plane.sequence import Mark, continue_from
from pipelines.contract.errors import Refused
from pipelines.contract.language.base import RESERVED_TABLES
from pipelines.contract.segment import INCIDENTS, QUARANTINE, Segment, StreamKey, decode
from pipelines.engine.ipc import decode_rows
from pipelines.engine.run import INCIDENT_SCHEMA, QUARANTINE_SCHEMA

log = structlog.get_logger()

STORED, REFUSED = "stored", "refused"
COLUMNS_MAX = 500
_SYSTEM_TABLES = {QUARANTINE: "quarantine", INCIDENTS: "incidents"}
_SYSTEM_SCHEMAS = {"quarantine": lake_schema(QUARANTINE_SCHEMA), "incidents": lake_schema(INCIDENT_SCHEMA)}


@dataclass(frozen=True)
class Upload:
    """One request: what a node sent and what it asked for."""

    node: str
    public: str
    blobs: Sequence[bytes]
    streams: Sequence[StreamKey] = ()


@dataclass
class Outcome:
    """Its answer: `marks` for every stream sent or asked for; `refused` are (stream, seq, reason)."""

    marks: dict[StreamKey, Mark] = field(default_factory=dict)
    refused: list[tuple[StreamKey, int, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    security: list[str] = field(default_factory=list)


class Settler:
    """Not for two threads at once. `tables_of` gives the lake tables of a registered version (pipeline, digest), else nothing."""

    def __init__(self, lake: Lake, refused_dir: Path, tables_of: Callable[[str, str], Collection[str]]) -> None:
        self._lake, self._refused_dir, self._tables_of = lake, refused_dir, tables_of
        refused_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def settle(self, uploads: Sequence[Upload], now_us: int) -> list[Outcome]:
        """Store what continues the lake, answer each upload. After an exception the lake may hold part; sending again heals."""
        self._lake.renew()
        try:
            return self._settle(uploads, now_us)
        except Exception:
            self._lake.reload()
            raise

    def _settle(self, uploads: Sequence[Upload], now_us: int) -> list[Outcome]:
        outcomes = [Outcome() for _ in uploads]
        arrived: dict[StreamKey, list[Segment]] = {}
        streams: list[set[StreamKey]] = [set(upload.streams) for upload in uploads]
        for upload, outcome, keys in zip(uploads, outcomes, streams, strict=True):
            for segment in _decoded(upload, outcome):
                arrived.setdefault(segment.header.key, []).append(segment)
                keys.add(segment.header.key)
        forks, failures = self._store(arrived, now_us)
        self._lake.make_durable()
        marks = self._lake.marks(set().union(*streams))
        for outcome, keys in zip(outcomes, streams, strict=True):
            outcome.marks = {key: marks[key] for key in sorted(keys)}
            outcome.refused = [
                (s, seq, why) for s in sorted(keys) for seq, why in self._lake.refusals(s).items() if _sent(arrived, s, seq)
            ]
            outcome.security += [forks[key] for key in sorted(keys & forks.keys())]
            outcome.errors += outcome.security + [failures[key] for key in sorted(keys & failures.keys())]
        return outcomes

    def _store(self, arrived: dict[StreamKey, list[Segment]], now_us: int) -> tuple[dict[StreamKey, str], dict[StreamKey, str]]:
        """What could not be stored: forks and failures by stream."""
        marks = self._lake.marks(arrived)
        found = {key: continue_from(marks[key], segments) for key, segments in arrived.items()}
        forks = {key: f"stream {key.app_id}: {c.fork}" for key, c in found.items() if c.fork}
        accepted = [segment for continuation in found.values() for segment in continuation.segments]
        verdicts: dict[str, str] = {}  # digest -> "" when stored, else why refused
        failures: dict[StreamKey, str] = {}
        for table, segments in _by_table(accepted).items():
            try:
                verdicts |= self._store_rows(table, segments, now_us)
            except _Unavailable as error:
                failures |= {segment.header.key: str(error) for segment in segments}
        self._store_segments(_settled_prefixes(accepted, verdicts), verdicts, now_us)
        return forks, failures

    def _store_rows(self, name: str, segments: list[Segment], now_us: int) -> dict[str, str]:
        """Verdicts on segments for one table, once their rows are committed. A refusal stands, whatever the table's mark."""
        verdicts = {s.digest: why for s in segments if (why := self._refused_before(s)) is not None}
        undecided = [s for s in segments if s.digest not in verdicts]
        if not name:
            return {s.digest: "" if s.header.rows == 0 else "rows without a table" for s in segments}
        try:
            table = self._lake.table(name)
        except Misfit as misfit:
            return {s.digest: str(misfit) for s in segments}
        fresh = [s for s in undecided if s.header.seq > table.mark(s.header.key)]
        strays = {s.digest: why for s in fresh if (why := self._stray(s))}
        batches, fits = _fit([s for s in fresh if s.digest not in strays], table.schema, now_us)
        refusals = strays | fits
        self._refuse(fresh, refusals)
        verdicts |= {s.digest: "" for s in undecided} | refusals
        if batches:
            verdicts |= self._append(name, [s for s in fresh if s.digest not in refusals], batches, now_us)
        return verdicts

    def _stray(self, segment: Segment) -> str:
        """Why the segment may not write into its table, "" when it may: a system table's own kind, or a version's own sink."""
        header = segment.header
        expected = _SYSTEM_TABLES.get(header.kind)
        if (expected is not None and header.table != expected) or (expected is None and header.table in RESERVED_TABLES):
            return f"rows of kind {header.kind} may not go into the table {header.table}"
        if expected is None and header.table not in self._tables_of(header.pipeline, header.version):
            return (
                f"{header.version[:19]} is no version of {header.pipeline} registered here that writes the table {header.table}"
            )
        return ""

    def _append(self, name: str, segments: list[Segment], batches: list[pa.Table], now_us: int) -> dict[str, str]:
        """Verdicts on segments that fit their table, of which the lake itself may refuse some."""
        marks = {s.header.key: s.header.seq for s in segments}
        try:
            self._lake.append(self._lake.table(name), pa.concat_tables(batches), marks)
        except Exception as error:  # noqa: BLE001 - deltalake raises bare Exceptions; each is mapped here
            self._lake.reload()
            if len(segments) > 1:  # one bad segment must not hold up the others
                return {d: why for s in segments for d, why in self._store_rows(name, [s], now_us).items()}
            if isinstance(error, (SchemaMismatchError, pa.ArrowInvalid, ValueError, TypeError)):
                refusals = {segments[0].digest: f"the lake refused it: {_first_line(error)}"}
                self._refuse(segments, refusals)
                return refusals
            log.error("lake: commit failed", table=name, cause=_first_line(error))
            raise _Unavailable(f"the lake cannot store now: {_first_line(error)}") from None
        return {}

    def _store_segments(self, settled: list[Segment], verdicts: dict[str, str], now_us: int) -> None:
        if not settled:
            return
        self._refuse(settled, verdicts)
        rows = _segments_table(settled, verdicts, now_us)
        self._lake.append_segments(rows, {s.header.key: Mark(s.header.seq, s.digest) for s in settled})

    def _refuse(self, segments: Iterable[Segment], reasons: Mapping[str, str]) -> None:
        """Keep raw what is refused, and why, before a commit moves the table's mark past it."""
        for segment in segments:
            if (reason := reasons.get(segment.digest)) and self._refused_before(segment) is None:
                write_private(self._refused_file(segment, "segment"), segment.data)
                write_private(self._refused_file(segment, "reason"), reason.encode(errors="replace"))

    def _refused_before(self, segment: Segment) -> str | None:
        try:
            return self._refused_file(segment, "reason").read_text()
        except FileNotFoundError:
            return None

    def _refused_file(self, segment: Segment, suffix: str) -> Path:
        return self._refused_dir / f"{segment.digest.removeprefix('sha256:')}.{suffix}"


class _Unavailable(Exception):
    pass


def _decoded(upload: Upload, outcome: Outcome) -> Iterable[Segment]:
    for data in upload.blobs:
        try:
            segment = decode(data, upload.public)
            _segments_table([segment], {segment.digest: ""}, 0)
        except (Refused, pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            outcome.errors.append(_first_line(error))
            outcome.security.append(f"segment refused: {_first_line(error)}")
            continue
        if segment.header.node != upload.node:
            outcome.security.append(f"segment refused: it says it is of node {segment.header.node}")
            continue
        yield segment


def _by_table(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    grouped: dict[str, list[Segment]] = {}
    for segment in segments:
        grouped.setdefault(segment.header.table if segment.header.rows else "", []).append(segment)
    return grouped


def _fit(segments: list[Segment], schema: pa.Schema | None, now_us: int) -> tuple[list[pa.Table], dict[str, str]]:
    """Rows with lineage, all in one schema that also is the table's, and digest -> reason for those that do not fit."""
    user = pa.schema([f for f in schema if f.name not in LINEAGE.names]) if schema is not None else None
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
    if user is None:
        return [], refusals
    names = (
        [*schema.names, *(n for n in user.names if n not in schema.names)]
        if schema is not None
        else [*LINEAGE.names, *user.names]
    )
    return [_with_lineage(s, conform(rows, user), now_us).select(names) for s, rows in fitting], refusals


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


def _with_lineage(segment: Segment, rows: pa.Table, now_us: int) -> pa.Table:
    header, count = segment.header, rows.num_rows
    same = (
        header.node,
        header.run,
        header.stream,
        header.seq,
        None,
        header.pipeline,
        header.number,
        header.params,
        now_us,
        header.clock,
    )
    columns = [
        pa.array(range(count), pa.int64()) if column.name == "_row" else pa.repeat(pa.scalar(value, column.type), count)
        for column, value in zip(LINEAGE, same, strict=True)
    ]
    return pa.table([*columns, *rows.columns], schema=pa.schema([*LINEAGE, *rows.schema]))


def _settled_prefixes(accepted: list[Segment], verdicts: dict[str, str]) -> list[Segment]:
    """Per stream, the segments before the first without a verdict: marks know no gaps."""
    stopped: set[StreamKey] = set()
    settled = []
    for segment in accepted:
        if segment.digest not in verdicts:
            stopped.add(segment.header.key)
        if segment.header.key not in stopped:
            settled.append(segment)
    return settled


def _segments_table(segments: Iterable[Segment], verdicts: Mapping[str, str], now_us: int) -> pa.Table:
    """Raises what pyarrow and json raise for a header that is no row, such as an integer of 80 bits."""
    return pa.Table.from_pylist([_segment_row(s, verdicts[s.digest], now_us) for s in segments], schema=SEGMENTS_SCHEMA)


def _segment_row(segment: Segment, reason: str, now_us: int) -> dict[str, object]:
    row = asdict(segment.header)
    row["table_name"] = row.pop("table")
    row |= {name: json.dumps(row[name], ensure_ascii=False) for name in ("positions", "ledgers", "lookups")}
    verdict = REFUSED if reason else STORED
    return {**row, "digest": segment.digest, "verdict": verdict, "reason": reason, "received_at": now_us}


def _sent(arrived: dict[StreamKey, list[Segment]], key: StreamKey, seq: int) -> bool:
    return any(segment.header.seq == seq for segment in arrived.get(key, ()))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
