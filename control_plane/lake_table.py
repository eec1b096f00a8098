"""One Delta table: rows and marks in one commit, through the handle from which the marks were read (I2).

We write the data files ourselves and give Delta only their names: nothing is cast there. Several processes may commit; what
another one committed is taken in before our handle goes past it, or a mark read before could be believed after.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, PostCommitHookProperties, Schema, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from control_plane.columns import plain_schema
from pipelines.contract.segment import StreamKey

COMMITS_PER_HANDLE = 25  # a handle gets slower with each commit since the last checkpoint: from 10 ms to 40 ms after 100
MARKS_CACHED_MAX = 100_000  # about 20 MB
MARKS = "tidewireMarks"  # in a commit's first line: how many marks it has
_OPTIONS = {"delta.logRetentionDuration": "interval 2 hours"}  # a version is of no use once its files are vacuumed
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)  # upkeep does, and syncs between


class Conflict(Exception):
    """Another process committed first: nothing of ours was. Read again, and try again."""


class LakeTable:
    """Held open. `learned` is called with the names (`StreamKey.app_id`) of marks that others moved, None for any of them."""

    def __init__(self, path: Path, learned: Callable[[Collection[str] | None], None] = lambda _: None) -> None:
        self._path, self._learned = path, learned
        self._handle = _open(path)
        self._commits = 0
        self._marks: dict[str, int] = {}  # as read through the handle: asking it costs milliseconds

    @property
    def schema(self) -> pa.Schema | None:
        """Of the whole table with lineage; None before its first commit."""
        return pa.schema(self._handle.schema().to_arrow()) if self._handle else None

    @property
    def version(self) -> int:
        """-1 for a table that does not exist."""
        return self._handle.version() if self._handle else -1

    def mark(self, key: StreamKey) -> int:
        """The last seq of the stream in this table, 0 for none."""
        if key.app_id not in self._marks:
            if len(self._marks) >= MARKS_CACHED_MAX:
                self._marks.clear()
            self._marks[key.app_id] = (self._handle.transaction_version(key.app_id) or 0) if self._handle else 0
        return self._marks[key.app_id]

    def catch_up(self) -> None:
        """Take in what other processes committed."""
        if self._handle is None:
            self._handle = _open(self._path)
            if self._handle is not None:
                self._forget(None)
        elif entry(self._path, self.version + 1).exists():
            self._advance(self.version)
        elif not entry(self._path, self.version).exists():
            self.reload()  # removed, restored, or long ago

    def append(self, rows: pa.Table, marks: Mapping[StreamKey, int]) -> None:
        """Commit `rows` and `marks` together. Marks must rise: Delta itself would take them falling (I2). Raises `Conflict`."""
        falling = [key.app_id for key, seq in marks.items() if seq <= self.mark(key)]
        if falling:
            raise AssertionError(f"marks that do not rise: {falling}")
        handle = self._prepared(plain_schema(rows.schema))
        path = self._path / f"part-{uuid.uuid4()}.parquet"
        write_file(path, rows)
        self._commit(
            handle, [AddAction(path.name, path.stat().st_size, {}, 0, True, json.dumps({"numRecords": rows.num_rows}))], marks
        )

    def fence(self, keys: Collection[StreamKey], schema: pa.Schema | None) -> None:
        """Commit the marks of `keys` as they are: what another process prepared of these streams before is a conflict from now
        on, however late it commits. A table that does not exist yet is made with `schema`, if there is one. Raises `Conflict`."""
        if self._handle is not None or schema is not None:
            self._commit(self._handle or self._prepared(plain_schema(schema)), [], {key: self.mark(key) for key in keys})

    def _commit(self, handle: DeltaTable, added: Sequence[AddAction], marks: Mapping[StreamKey, int]) -> None:
        transactions = [Transaction(key.app_id, seq) for key, seq in marks.items()]
        before = self.version
        with _conflicts(self._path / added[0].path if added else None):
            handle.create_write_transaction(
                list(added),
                "append",
                handle.schema(),
                commit_properties=CommitProperties({MARKS: len(marks)}, app_transactions=transactions),
                post_commithook_properties=_NO_HOOKS,
            )
        self._advance(before)
        self._marks |= {key.app_id: seq for key, seq in marks.items()}
        self._commits += 1

    def renew(self) -> None:
        """Keep commits cheap, now and then: a checkpoint and a fresh handle. Marks survive."""
        if self._handle is not None and self._commits >= COMMITS_PER_HANDLE:
            before, self._commits = self.version, 0
            self._handle.create_checkpoint()
            self._handle = _open(self._path)
            self._note(before)

    def reload(self) -> None:
        """Forget what a failed commit may have left in the handle."""
        self._handle = _open(self._path)
        self._forget(None)

    def dataset(self) -> pa.dataset.Dataset | None:
        return self._handle.to_pyarrow_dataset() if self._handle else None

    def _prepared(self, schema: pa.Schema) -> DeltaTable:
        """The handle of a table that has all columns of `schema`. Raises `Conflict`."""
        if self._handle is None:
            with _conflicts():
                self._handle = DeltaTable.create(self._path, schema=schema, name=self._path.name, configuration=_OPTIONS)
        known = pa.schema(self._handle.schema().to_arrow()).names
        if more := [field for field in schema if field.name not in known]:
            before = self.version
            with _conflicts():
                self._handle.alter.add_columns(_delta_fields(more), post_commithook_properties=_NO_HOOKS)
            self._advance(before)
            if self.version > before + 1:
                raise Conflict("others committed before the columns were there")  # what was read before is not to be believed
        return self._handle

    def _advance(self, version: int) -> None:
        """Have the handle, which was at `version`, show what is committed now."""
        if self._handle is not None:
            self._handle.update_incremental()
            self._note(version)

    def _note(self, version: int) -> None:
        """Forget the marks that were moved after `version`."""
        if self.version < version:
            self._forget(None)
        for number in range(version + 1, self.version + 1):
            try:
                self._forget([action["txn"]["appId"] for action in actions(entry(self._path, number)) if "txn" in action])
            except FileNotFoundError:
                self._forget(None)

    def _forget(self, moved: list[str] | None) -> None:
        if moved is None:
            self._marks.clear()
        else:
            for name in moved:
                self._marks.pop(name, None)
        self._learned(moved)


def entry(table: Path, version: int) -> Path:
    """The file of one commit."""
    return table / "_delta_log" / f"{version:020}.json"


def actions(entry: Path) -> Iterator[dict[str, Any]]:
    """What one commit says. Raises `ValueError` for what is no commit."""
    for line in entry.read_bytes().splitlines():
        action = json.loads(line)
        if not isinstance(action, dict):
            raise ValueError("no action")
        yield action


def write_file(path: Path, rows: pa.Table) -> None:
    """A new data file. Encodings are chosen for the CPU: lineage is dictionaries, integers and times differ little from row to
    row, fractions compress badly whatever is done; compaction comes later."""
    kinds = {field.name: field.type for field in rows.schema}
    steady = [n for n, kind in kinds.items() if pa.types.is_int64(kind) or pa.types.is_timestamp(kind)]
    texts = [n for n, kind in kinds.items() if pa.types.is_dictionary(kind) or pa.types.is_string(kind)]
    floats = [n for n, kind in kinds.items() if pa.types.is_floating(kind)]
    with path.open("xb") as file:
        pq.write_table(
            rows,
            file,
            compression={n: "snappy" if n in floats else "zstd" for n in kinds},
            compression_level={n: 1 for n in kinds if n not in floats},
            use_dictionary=texts,
            column_encoding=dict.fromkeys(steady, "DELTA_BINARY_PACKED"),
            write_statistics=[n for n in ("_event_time", "_received_at", "run", "seq") if n in kinds],
            store_schema=False,
        )


def _delta_fields(fields: list[pa.Field[Any]]) -> list[Field]:
    return list(Schema.from_arrow(pa.schema(fields)).fields)


class _conflicts:  # noqa: N801
    """Errors of deltalake that say that another process was first, as `Conflict`; the data file of the attempt goes."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, DeltaError) and any(text in str(error) for text in _CONFLICTS):
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            raise Conflict(str(error).partition("\n")[0]) from None


_CONFLICTS = ("Concurrent transaction failed", "Metadata changed since last commit", "already exists", "Protocol changed")


def _open(path: Path) -> DeltaTable | None:
    try:
        return DeltaTable(path)
    except TableNotFoundError:
        return None
