"""SQL over the lake: one SELECT, in a DuckDB of its own that can reach nothing but the tables and views registered in it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from control_plane.lake_views import NodeName, register, table_names
from pipelines.contract.errors import Refused
from pipelines.engine.sql import check_one_select, refused, words

ROWS_MAX = 10_000
TIMEOUT_S = 60.0
_BATCH_ROWS = 1024
_MEMORY = "1GB"
_LOCKS = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET temp_directory = ''",
    f"SET memory_limit = '{_MEMORY}'",
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True)
class Result:
    """`truncated`: there were more rows than the limit."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    truncated: bool = False


def run_query(
    lake_dir: Path, sql: str, *, limit: int = ROWS_MAX, timeout_s: float = TIMEOUT_S, nodes: Sequence[NodeName] = ()
) -> Result:
    """The first `limit` rows. Raises `Refused` for anything but one SELECT that works and ends in time."""
    with duckdb.connect(":memory:") as db:
        names = table_names(lake_dir)
        register(db, lake_dir, [name for name in names if name in words(sql)], nodes)
        for lock in _LOCKS:
            db.execute(lock)
        check_one_select(db, sql)
        alarm = threading.Timer(timeout_s, db.interrupt)
        alarm.start()
        try:
            return _first_rows(db.sql(sql).to_arrow_reader(_BATCH_ROWS), limit)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if "INTERRUPT" in str(error).upper():
                hint = "ask for less: fewer rows, a narrower WHERE"
                raise Refused(f"stopped after {timeout_s:g} s", op="query", hint=hint) from None
            raise refused(error, names) from None
        finally:
            alarm.cancel()


def check_query(sql: str) -> None:
    """Raises `Refused` for anything but one SELECT, before it goes to nodes."""
    with duckdb.connect(":memory:") as db:
        check_one_select(db, sql)


def _first_rows(reader: pa.RecordBatchReader, limit: int) -> Result:
    rows: list[tuple[Any, ...]] = []
    for batch in reader:
        rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
        if len(rows) > limit:
            break
    return Result(reader.schema.names, rows[:limit], len(rows) > limit)
