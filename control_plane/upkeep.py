"""The lake's housekeeping, beside ingest and through handles of its own: few large files, short logs, tables of windows.

It conflicts with no append; where two processes do it at once, one gives up. Readers keep what they read: files go an hour after
nothing refers to them.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake import DeltaTable, PostCommitHookProperties, WriterProperties
from deltalake.exceptions import CommitFailedError

from control_plane import heal, window_tables
from control_plane.durable import Disk, sync_filesystem
from pipelines.contract.language.base import LOG
from pipelines.engine.answers import TABLE as ANSWERS

log = structlog.get_logger()

SMALL_FILES_MAX = 50  # more are made into few
REFRESH_S = 900.0  # of tables of windows
ANSWERS_KEPT_S, FORGET_S = 7 * 86_400, 3600.0  # answers to requests are of no use for long; how often old ones go
_SMALL_BYTES, _FILE_BYTES = 8 * 1024 * 1024, 64 * 1024 * 1024
_VACUUM_AFTER_H = 1  # far longer than any query runs
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


class Upkeep:
    """`step` now and then, in any one thread. `clock` counts seconds."""

    def __init__(self, lake: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._lake, self._clock = lake, clock
        self._look_at: dict[str, int] = {}  # table -> the version from which on it may have too many small files
        self._refreshed_at, self._forgot_at = -REFRESH_S, -FORGET_S

    def step(self) -> None:
        """Raises nothing: what fails now is done another time."""
        for table in heal.tables(self._lake):
            try:
                self._tidy(table)
            except CommitFailedError as error:
                log.info("lake: another process tidies", table=table.name, cause=str(error).partition("\n")[0])
            except Exception as error:  # noqa: BLE001 - a full disk among them
                log.error("lake: not tidied", table=table.name, reason=f"{type(error).__name__}: {error}".partition("\n")[0])
        if self._clock() - self._refreshed_at >= REFRESH_S:
            self._refreshed_at = self._clock()
            self.refresh()

        if self._clock() - self._forgot_at >= FORGET_S:
            self._forgot_at = self._clock()
            self.forget_answers(time.time() - ANSWERS_KEPT_S)

    def forget_answers(self, before_s: float) -> None:
        """Drop answers to requests received before then (seconds since 1970). Marks stay: none comes again (I2)."""
        path, before = self._lake / ANSWERS, dt.datetime.fromtimestamp(before_s, dt.UTC)
        old = pc.field("_received_at") < pa.scalar(before, pa.timestamp("us", tz="UTC"))
        try:
            if heal.latest_version(path) >= 0 and DeltaTable(path).to_pyarrow_dataset().count_rows(filter=old):
                DeltaTable(path).delete(f"_received_at < '{before.isoformat()}'", post_commithook_properties=_NO_HOOKS)
        except Exception as error:  # noqa: BLE001 - a full disk, another process; looked at again
            log.error("lake: old answers are kept", reason=f"{type(error).__name__}: {error}".partition("\n")[0])

    def refresh(self) -> None:
        """Tables of windows show the latest revisions."""
        for table in heal.tables(self._lake):
            if table.name.endswith(LOG):
                try:
                    window_tables.refresh(self._lake, table.name)
                except Exception as error:  # noqa: BLE001 - a full disk among them
                    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                    log.error("lake: not made anew", table=window_tables.shown(table.name), reason=reason)

    def _tidy(self, table: Path) -> None:
        version = heal.latest_version(table)
        if version < self._look_at.get(table.name, 0):
            return
        handle = DeltaTable(table)
        sizes = pa.table(handle.get_add_actions(flatten=True))["size_bytes"].to_pylist()
        small = sum(size < _SMALL_BYTES for size in sizes)
        if small > SMALL_FILES_MAX:
            properties = WriterProperties(compression="ZSTD", compression_level=1)
            handle.optimize.compact(
                target_size=_FILE_BYTES,
                max_concurrent_tasks=1,
                writer_properties=properties,
                post_commithook_properties=_NO_HOOKS,
            )
            handle = DeltaTable(table)
            handle.create_checkpoint()
            sync_filesystem(Disk(self._lake))  # before what it stands in for goes
            handle.cleanup_metadata()
            handle.vacuum(_VACUUM_AFTER_H, dry_run=False, enforce_retention_duration=False, full=True)
            version, small = heal.latest_version(table), 0
        self._look_at[table.name] = version + max(1, SMALL_FILES_MAX + 1 - small)  # a commit adds one file, seldom more
