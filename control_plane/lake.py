"""The lake: Delta tables on disk, the only place where marks live (I2). Not for two threads at once; for several processes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake import DeltaTable

from control_plane import heal
from control_plane.columns import Misfit
from control_plane.durable import Disk, sync_filesystem
from control_plane.lake_table import MARKS_CACHED_MAX, LakeTable
from control_plane.sequence import Mark
from control_plane.window_tables import made_from
from pipelines.contract.language.base import LOG
from pipelines.contract.segment import StreamKey
from pipelines.engine.answers import TABLE as ANSWERS

log = structlog.get_logger()

SEGMENTS = "segments"
DIGESTS_MAX = 5_000  # of one answer; the node asks on
_REFUSAL = ["node", "run", "stream", "seq", "reason"]
_KEY = ["node", "run", "stream", "seq"]
_REFUSED = ["table_name", "pipeline", "number", "rows", "reason", "digest", "received_at"]
_MARK = [*_KEY, "digest", "stands_for", "run_rows", "run_stored"]
_TABLE = re.compile(r"[a-z][a-z0-9_]{0,67}")  # 63 of a sink's, and __log


class Lake:
    """Every table under one directory."""

    def __init__(self, directory: Path, *, is_alone: bool = True) -> None:
        """What was left torn is healed, unless another process may have the lake open."""
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._disk = Disk(directory)
        self._tables: dict[str, LakeTable] = {}
        self._marks: dict[str, Mark] = {}  # StreamKey.app_id -> mark in the table `segments`
        self._refused: dict[StreamKey, dict[int, str]] = {}
        self._refused_version = -1
        for path in heal.tables(directory) if is_alone else ():
            heal.heal(path)
        self._synced = {path.name: heal.latest_version(path) for path in heal.tables(directory)}
        self._is_durable = False  # an earlier process may have died between a commit and its sync
        for difference in self.differences():
            if difference["holds"] > difference["stored"]:
                continue  # after a crash between the commits of a table and of `segments`, until the segments come again
            log.error("lake: a table does not hold what it took", **difference)

    def table(self, name: str) -> LakeTable:
        """The table `name`, which need not exist yet. Raises `Misfit` for a name that no table may have."""
        if not _TABLE.fullmatch(name):
            raise Misfit(f"{name!r} is no table name")
        if name not in self._tables:
            learned = self._segments_moved if name == SEGMENTS else lambda _: None
            self._tables[name] = LakeTable(self._directory / name, learned)
        return self._tables[name]

    def check_twin(self, name: str) -> None:
        """Raises `Misfit` for a table of rows that a window's table would hide, or the reverse."""
        if name.endswith(LOG):
            twin = name.removesuffix(LOG)
            if self.table(name).version < 0 and (self._directory / twin).exists() and made_from(self._directory / twin) is None:
                raise Misfit(f"the table {twin} holds rows: give the window's sink another table")
        elif (self._directory / (name + LOG)).exists():
            raise Misfit(f"the table {name} shows a window: give the sink another table")

    def names(self) -> list[str]:
        return [path.name for path in heal.tables(self._directory)]

    def marks(self, keys: Iterable[StreamKey]) -> dict[StreamKey, Mark]:
        """The mark of each stream, from the table `segments`; cached until it moves, the lake being the only truth."""
        wanted = set(keys)
        if len(self._marks) >= MARKS_CACHED_MAX:
            self._marks.clear()
        segments = self.table(SEGMENTS)
        unknown = {key: segments.mark(key) for key in wanted if key.app_id not in self._marks}
        self._marks |= {key.app_id: Mark() for key, seq in unknown.items() if seq == 0}
        self._marks |= self._read_marks({key: seq for key, seq in unknown.items() if seq > 0})
        return {key: self._marks[key.app_id] for key in wanted}

    def refusals(self, key: StreamKey) -> Mapping[int, str]:
        """Of a stream: seq -> why its segment is not in its table."""
        if self._refused_version < 0:
            self._read_refused()
        return self._refused.get(key, {})

    def refused_rows(self) -> list[dict[str, Any]]:
        """Of `segments`, oldest first, with `retaken`: whether its rows are in the table after all."""
        dataset = self.table(SEGMENTS).dataset()
        if dataset is None:
            return []
        rows = dataset.to_table(columns=[*_KEY, *_REFUSED], filter=pc.field("verdict") == "refused").sort_by("received_at")
        keys = [StreamKey(r["node"], retaken_run(r["run"], r["seq"]), r["stream"]) for r in rows.select(_KEY).to_pylist()]
        taken = [self.table(SEGMENTS).mark(key) > 0 for key in keys]
        return list(rows.append_column("retaken", pa.array(taken, pa.bool_())).to_pylist())

    def links(self, key: StreamKey, first: int, last: int) -> list[tuple[int, str]]:
        """(seq, link) of the stream's segments from `first` to `last` in the lake, the first `DIGESTS_MAX` of them."""
        dataset = self.table(SEGMENTS).dataset()
        if dataset is None:
            return []
        is_stream = (pc.field("run") == key.run) & (pc.field("node") == key.node) & (pc.field("stream") == key.stream)
        wanted = is_stream & (pc.field("seq") >= first) & (pc.field("seq") <= last)
        rows = dataset.to_table(columns=["seq", "digest", "stands_for"], filter=wanted).sort_by("seq")
        return [(row["seq"], row["stands_for"] or row["digest"]) for row in rows.slice(0, DIGESTS_MAX).to_pylist()]

    def count_rows(self, name: str, key: StreamKey, first: int, last: int) -> int:
        """How many rows of the stream's segments `first` to `last` are in the table: a scan, if any can be."""
        try:
            table = self.table(name)
        except Misfit:
            return 0
        dataset = table.dataset() if table.mark(key) >= first else None
        if dataset is None:
            return 0
        is_stream = (pc.field("_run") == key.run) & (pc.field("_node") == key.node) & (pc.field("_stream") == key.stream)
        return int(dataset.count_rows(filter=is_stream & (pc.field("_seq") >= first) & (pc.field("_seq") <= last)))

    def append(self, table: LakeTable, rows: pa.Table, marks: Mapping[StreamKey, int]) -> None:
        self._is_durable = False
        table.append(rows, marks)

    def fence(self, name: str, keys: Collection[StreamKey], schema: pa.Schema | None) -> None:
        self._is_durable = False
        self.table(name).fence(keys, schema)

    def append_segments(self, rows: pa.Table, marks: Mapping[StreamKey, Mark]) -> None:
        self.append(self.table(SEGMENTS), rows, {key: mark.seq for key, mark in marks.items()})
        self._marks |= {key.app_id: mark for key, mark in marks.items()}
        self._note_refused(rows.filter(pc.equal(rows["verdict"], pa.scalar("refused"))))

    def make_durable(self) -> None:
        """Before anybody is told of a mark, and before `segments` says that rows are stored: Delta itself never syncs. Raises
        `OSError`, and does so until all since the last good sync is written once more: what a failed one did not write, a later
        one does not say."""
        suspect = heal.remembered(self._directory)
        if self._is_durable and suspect is None:
            return
        try:
            if suspect is not None:
                for path in heal.tables(self._directory):
                    heal.rewrite_since(path, suspect.get(path.name, -1))
            sync_filesystem(self._disk)
        except OSError:
            if suspect is None:
                heal.remember(self._directory, self._synced)
            self._is_durable = False
            raise
        heal.forget(self._directory)
        self._synced |= {name: table.version for name, table in self._tables.items()}
        self._is_durable = True

    def catch_up(self) -> None:
        """Between groups: take in what other processes committed, keep commits cheap. The latter may fail without harm."""
        for table in self._tables.values():
            table.catch_up()
        try:
            for table in self._tables.values():
                table.renew()
        except Exception as error:  # noqa: BLE001 - a full disk among them
            log.error("lake: not renewed", reason=f"{type(error).__name__}: {error}".partition("\n")[0])
            self.reload()

    def reload(self) -> None:
        self._marks.clear()
        self._is_durable = False
        for table in self._tables.values():
            table.reload()

    def differences(self) -> list[dict[str, Any]]:
        """Tables whose rows are not as many as `segments` says: they were restored, removed, or changed by others."""
        dataset = self.table(SEGMENTS).dataset()
        if dataset is None:
            said = {}
        else:
            stored = dataset.to_table(columns=["table_name", "rows"], filter=_IN_TABLE)
            sums = stored.group_by("table_name").aggregate([("rows", "sum")]).to_pylist()
            said = {row["table_name"]: row["rows_sum"] for row in sums}
        said.pop(ANSWERS, None)  # upkeep drops old ones
        held = {name: _row_count(self._directory / name) for name in self.names() if name in said}
        wrong = {name: count for name, count in said.items() if held.get(name, 0) != count}
        return [{"table": name, "stored": count, "holds": held.get(name, 0)} for name, count in wrong.items()]

    def _segments_moved(self, moved: Collection[str] | None) -> None:
        self._refused_version = -1
        if moved is None:
            self._marks.clear()
        for name in moved or ():
            self._marks.pop(name, None)

    def _read_refused(self) -> None:
        dataset = self.table(SEGMENTS).dataset()
        if dataset is not None:
            self._note_refused(dataset.to_table(columns=_REFUSAL, filter=pc.field("verdict") == "refused"))
        self._refused_version = self.table(SEGMENTS).version

    def _note_refused(self, rows: pa.Table) -> None:
        for row in rows.select(_REFUSAL).to_pylist():
            self._refused.setdefault(StreamKey(row["node"], row["run"], row["stream"]), {})[row["seq"]] = row["reason"]

    def _read_marks(self, at: Mapping[StreamKey, int]) -> dict[str, Mark]:
        dataset = self.table(SEGMENTS).dataset() if at else None
        if dataset is None:
            return {}
        wanted = pc.field("run").isin(list({key.run for key in at})) & pc.field("seq").isin(list(set(at.values())))
        rows = dataset.to_table(columns=_MARK, filter=wanted).to_pylist()
        found: dict[tuple[str, int], Mark] = {}
        for row in rows:
            mark = Mark(row["seq"], row["stands_for"] or row["digest"], row["run_rows"], row["run_stored"])
            found[StreamKey(row["node"], row["run"], row["stream"]).app_id, row["seq"]] = mark
        missing = [key.app_id for key, seq in at.items() if (key.app_id, seq) not in found]
        if missing:  # rows of `segments` were removed by hand: going on would number two segments alike
            log.error("lake: marks without their segment", streams=missing)
        return {key.app_id: found.get((key.app_id, seq), Mark(seq)) for key, seq in at.items()}


def retaken_run(run: str, seq: int) -> str:
    """The run that a refused segment has when it is taken after all."""
    return f"{run}.{seq}"


_IN_TABLE = (pc.field("verdict") == "stored") & (pc.field("void") == "") & (pc.field("rows") > 0)


def _row_count(table: Path) -> int:
    """From the log alone."""
    actions = pa.table(DeltaTable(table).get_add_actions(flatten=True))
    return sum(actions["num_records"].to_pylist()) if "num_records" in actions.column_names else 0
