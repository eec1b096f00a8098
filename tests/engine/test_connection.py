"""DuckDB connections of one process: nothing of one is seen by another."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from pipelines.engine import connection
from pipelines.engine.connection import open_engine


def test_connections_share_a_database_and_see_nothing_of_each_other() -> None:
    one, other = open_engine(), open_engine()
    one.register("batch", pa.table({"a": [1]}))
    with pytest.raises(duckdb.CatalogException):
        other.execute("SELECT * FROM batch")
    other.register("batch", pa.table({"a": [2, 3]}))
    assert [db.execute("SELECT count(*) FROM batch").fetchone() for db in (one, other)] == [(1,), (2,)]
    one.close()
    assert other.execute("SELECT sum(a) FROM batch").fetchone() == (5,)


def test_every_connection_has_its_doors_shut() -> None:
    open_engine()
    for sql in ("SELECT * FROM read_csv('/etc/passwd')", "SET enable_external_access = true", "INSTALL httpfs"):
        with pytest.raises(duckdb.Error):
            open_engine().execute(sql).fetchall()


def test_a_database_that_broke_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_shared", None)  # not the one that other tests use
    open_engine()
    assert connection._shared is not None
    connection._shared.close()
    assert open_engine().execute("SELECT 1").fetchone() == (1,)
