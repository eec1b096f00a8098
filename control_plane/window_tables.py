"""Tables of windows: `name__log` takes every revision, `name` shows the latest of each window and group.

In `tidewire query` `name` is a view, always up to date. For other readers of the lake it is a Delta table besides, made anew from
the log by `refresh`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import duckdb
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError

from pipelines.contract.language.base import LOG

_MADE_FROM = "tidewire/log"  # its mark in `name`: the version of the log that it shows
_KEY = ("_node", "_pipeline", "_stream", "_lineage", "_window_start", "_group")
_ORDER = ("_revision", "_received_at", "_seq", "_row")
_MEMORY = "1GB"


def shown(log: str) -> str:
    """The table that shows the latest rows of `log`."""
    return log.removesuffix(LOG)


def latest_sql(log: str, columns: Collection[str]) -> str:
    """SELECT of the highest revision of each window, by node, state and definition, start and group. `columns` are the log's: a
    sink's `select` may have left some out."""
    key = ", ".join(name for name in _KEY if name in columns)
    order = ", ".join(f"{name} DESC" for name in _ORDER if name in columns)
    return f'SELECT * FROM "{log}" QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1'


def made_from(table: Path) -> int | None:
    """The version of the log that `table` shows; None for a table that is not made from one."""
    try:
        return DeltaTable(table).transaction_version(_MADE_FROM)
    except TableNotFoundError:
        return None


def refresh(lake: Path, log: str) -> bool:
    """Make the table of `log` anew unless it shows the newest version; whether it was made."""
    source, target = DeltaTable(lake / log), lake / shown(log)
    if made_from(target) == source.version():
        return False
    with duckdb.connect(":memory:", config={"memory_limit": _MEMORY, "threads": 1}) as db:
        db.execute("SET TimeZone = 'UTC'")
        db.register(log, source.to_pyarrow_dataset())
        marks = CommitProperties(app_transactions=[Transaction(_MADE_FROM, source.version())])
        rows = db.sql(latest_sql(log, source.schema().to_arrow().names)).to_arrow_reader(65_536)
        write_deltalake(target, rows, mode="overwrite", schema_mode="overwrite", commit_properties=marks)
    return True
