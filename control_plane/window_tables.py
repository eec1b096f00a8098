"""Tables of windows: `name__log` takes every revision, `name` shows the latest of each window and group.

In `tidewire query` `name` is a view, always up to date. For other readers of the lake it is a Delta table besides, made anew from
the log by `refresh`.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError

from control_plane.lineage import LOG

_MADE_FROM = "tidewire/log"  # its mark in `name`: the version of the log that it shows
_MEMORY = "1GB"


def shown(log: str) -> str:
    """The table that shows the latest rows of `log`."""
    return log.removesuffix(LOG)


def latest_sql(log: str) -> str:
    """SELECT of the highest revision of each window, by node, state and definition, start and group."""
    key = "_node, _pipeline, _stream, _lineage, _window_start, _group"
    order = "_revision desc, _received_at desc, _seq desc, _row desc"
    return f'select * from "{log}" qualify row_number() over (partition by {key} order by {order}) = 1'


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
        rows = db.sql(latest_sql(log)).to_arrow_reader(65_536)
        write_deltalake(target, rows, mode="overwrite", schema_mode="overwrite", commit_properties=marks)
    return True
