"""The lake: Delta tables on disk, the only place where marks live (I2). One writer, one thread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError

from control_plane.columns import Misfit
from control_plane.durable import sync_filesystem
from control_plane.sequence import Mark
from pipelines.contract.segment import StreamKey

log = structlog.get_logger()

SEGMENTS = "segments"
COMMITS_PER_HANDLE = 25  # a handle gets slower with each commit it made: from 10 ms to 40 ms after 100
COMMITS_PER_COMPACTION = 200
_FILE_BYTES = 16 * 1024 * 1024  # what compaction leaves alone
_VACUUM_AFTER_H = 1  # far longer than any query runs
MARKS_CACHED_MAX = 100_000  # about 20 MB
_REFUSAL = ["node", "run", "stream", "seq", "reason"]
_TABLE = re.compile(r"[a-z][a-z0-9_]{0,62}")


class LakeTable:
    """One Delta table, held open: marks are read from and commits go through the same handle."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = _open(path)
        self._commits = 0
        self._marks: dict[StreamKey, int] = {}  # as read through the handle: asking it costs milliseconds

    @property
    def schema(self) -> pa.Schema | None:
        """Of the whole table with lineage; None before its first commit."""
        return _pyarrow(self._handle.schema()) if self._handle else None

    def mark(self, key: StreamKey) -> int:
        """The last seq of the stream in this table, 0 for none."""
        if key not in self._marks:
            if len(self._marks) >= MARKS_CACHED_MAX:
                self._marks.clear()
            self._marks[key] = (self._handle.transaction_version(key.app_id) or 0) if self._handle else 0
        return self._marks[key]

    def append(self, rows: pa.Table, marks: Mapping[StreamKey, int]) -> None:
        """Commit `rows` and `marks` together. Marks must rise: Delta itself would take them falling (I2)."""
        falling = [key.app_id for key, seq in marks.items() if seq <= self.mark(key)]
        if falling:
            raise AssertionError(f"marks that do not rise: {falling}")
        transactions = [Transaction(key.app_id, seq) for key, seq in marks.items()]
        properties = CommitProperties(app_transactions=transactions)
        if self._handle is None:
            self._handle = DeltaTable.create(self._path, schema=rows.schema, name=self._path.name)
        mode: Literal["merge"] | None = "merge" if rows.schema.names != self._names else None
        write_deltalake(self._handle, rows, mode="append", schema_mode=mode, commit_properties=properties)
        self._marks |= marks
        self._commits += 1

    def renew(self) -> bool:
        """Keep commits and queries cheap, now and then: few files, a fresh handle. Whether files were written. Marks survive."""
        if self._handle is None or self._commits == 0 or self._commits % COMMITS_PER_HANDLE:
            return False
        compacts = self._commits >= COMMITS_PER_COMPACTION
        if compacts:
            self._handle.optimize.compact(target_size=_FILE_BYTES)
            self._handle.create_checkpoint()
            self._handle.vacuum(_VACUUM_AFTER_H, dry_run=False, enforce_retention_duration=False)
            self._commits = 0
        else:
            self._commits += 1
        self._handle = _open(self._path)
        return compacts

    def reload(self) -> None:
        """Forget what a failed commit may have left in the handle."""
        self._handle = _open(self._path)
        self._marks.clear()

    def dataset(self) -> pa.dataset.Dataset | None:
        return self._handle.to_pyarrow_dataset() if self._handle else None

    @property
    def _names(self) -> list[str]:
        schema = self.schema
        return list(schema.names) if schema is not None else []


class Lake:
    """Every table under one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tables: dict[str, LakeTable] = {}
        self._marks: dict[StreamKey, Mark] = {}
        self._refused: dict[StreamKey, dict[int, str]] = {}
        self._is_durable = False  # an earlier process may have died between a commit and its sync
        self._read_refused()

    def table(self, name: str) -> LakeTable:
        """The table `name`, which need not exist yet. Raises `Misfit` for a name that no table may have."""
        if not _TABLE.fullmatch(name):
            raise Misfit(f"{name!r} is no table name")
        if name not in self._tables:
            self._tables[name] = LakeTable(self._directory / name)
        return self._tables[name]

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self._directory.glob("*/_delta_log"))

    def marks(self, keys: Iterable[StreamKey]) -> dict[StreamKey, Mark]:
        """The mark of each stream, from the table `segments`; digests are cached, the lake being the only truth."""
        wanted = set(keys)
        if len(self._marks) >= MARKS_CACHED_MAX:
            self._marks.clear()
        segments = self.table(SEGMENTS)
        unknown = {key: segments.mark(key) for key in wanted if key not in self._marks}
        self._marks |= {key: Mark() for key, seq in unknown.items() if seq == 0}
        self._marks |= self._read_digests({key: seq for key, seq in unknown.items() if seq > 0})
        return {key: self._marks[key] for key in wanted}

    def refusals(self, key: StreamKey) -> Mapping[int, str]:
        """Of a stream: seq -> why its segment is not in its table."""
        return self._refused.get(key, {})

    def append_segments(self, rows: pa.Table, marks: Mapping[StreamKey, Mark]) -> None:
        self.append(self.table(SEGMENTS), rows, {key: mark.seq for key, mark in marks.items()})
        self._marks |= marks
        self._note_refused(rows.filter(pc.equal(rows["verdict"], pa.scalar("refused"))))

    def make_durable(self) -> None:
        """Before anybody is told of a mark: Delta itself never syncs. Raises `OSError`, and does so until it succeeds."""
        if not self._is_durable:
            sync_filesystem(self._directory)
            self._is_durable = True

    def renew(self) -> None:
        """Between groups. It may fail without harm, but what it wrote is to be on the disk soon: it stands in for what was."""
        try:
            wrote = [table.renew() for table in self._tables.values()]
            if any(wrote):
                self._is_durable = False
                self.make_durable()
        except Exception:
            log.exception("lake: not renewed")
            self._is_durable = False
            self.reload()

    def append(self, table: LakeTable, rows: pa.Table, marks: Mapping[StreamKey, int]) -> None:
        self._is_durable = False
        table.append(rows, marks)

    def reload(self) -> None:
        self._marks.clear()
        for table in self._tables.values():
            table.reload()

    def _read_refused(self) -> None:
        dataset = self.table(SEGMENTS).dataset()
        if dataset is not None:
            self._note_refused(dataset.to_table(columns=_REFUSAL, filter=pc.field("verdict") == "refused"))

    def _note_refused(self, rows: pa.Table) -> None:
        for row in rows.select(_REFUSAL).to_pylist():
            self._refused.setdefault(StreamKey(row["node"], row["run"], row["stream"]), {})[row["seq"]] = row["reason"]

    def _read_digests(self, at: Mapping[StreamKey, int]) -> dict[StreamKey, Mark]:
        dataset = self.table(SEGMENTS).dataset() if at else None
        if dataset is None:
            return {}
        wanted = pc.field("run").isin(list({key.run for key in at})) & pc.field("seq").isin(list(set(at.values())))
        rows = dataset.to_table(columns=["node", "run", "stream", "seq", "digest"], filter=wanted).to_pylist()
        found: dict[StreamKey, dict[int, str]] = {}
        for row in rows:
            found.setdefault(StreamKey(row["node"], row["run"], row["stream"]), {})[row["seq"]] = row["digest"]
        missing = [key.app_id for key, seq in at.items() if seq not in found.get(key, {})]
        if missing:
            raise AssertionError(f"marks without their segment: {missing}")
        return {key: Mark(seq, found[key][seq]) for key, seq in at.items()}


def _pyarrow(schema: Any) -> pa.Schema:
    return pa.schema(schema.to_arrow())


def _open(path: Path) -> DeltaTable | None:
    try:
        return DeltaTable(path)
    except TableNotFoundError:
        return None
