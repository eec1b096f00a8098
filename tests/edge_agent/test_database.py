"""The store's writer outlives whatever a request, a disk or a cancelled caller does to it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import database as module
from edge_agent.database import Database, Work

WITHIN_S = 10


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(module, "_RETRY_S", 0.02)
    database = Database(tmp_path / "x.db")
    database.write(lambda db: db.execute("CREATE TABLE t (x)")).result(WITHIN_S)
    yield database
    database.close()


def insert(x: int) -> Work[Any]:
    return lambda db: db.execute("INSERT INTO t VALUES (?)", (x,)).rowcount


def failing_once(x: int, code: int) -> Work[Any]:
    left = [True]

    def work(db: sqlite3.Connection) -> Any:
        if left:
            left.clear()
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorcode = code
            raise error
        return insert(x)(db)

    return work


def rows(database: Database) -> list[int]:
    return [x for (x,) in database.read(lambda db: db.execute("SELECT x FROM t ORDER BY rowid").fetchall()).result(WITHIN_S)]


def test_i15_a_store_that_cannot_be_opened_again_is_tried_until_it_can(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = module.connect, [1, 2, 3]

    def flaky(path: Path) -> sqlite3.Connection:
        if failures:
            failures.pop()
            raise sqlite3.OperationalError("unable to open database file")
        return real(path)

    monkeypatch.setattr(module, "connect", flaky)
    first = database.write(failing_once(1, sqlite3.SQLITE_IOERR))
    assert first.result(WITHIN_S) == 1
    assert database.write(insert(2)).result(WITHIN_S) == 1
    assert (failures, rows(database), database.trouble) == ([], [1, 2], "")


class BadRollback:
    """A connection whose ROLLBACK fails, as one on a dying disk may."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, *values: Any) -> Any:
        if sql == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_a_rollback_that_fails_costs_the_connection_and_nothing_else(database: Database) -> None:
    database._connection = BadRollback(database._connection)  # type: ignore[assignment] # no disk fails on request
    assert database.write(failing_once(1, sqlite3.SQLITE_FULL)).result(WITHIN_S) == 1
    assert database.write(insert(2)).result(WITHIN_S) == 1
    assert rows(database) == [1, 2]


@pytest.mark.parametrize("at", ["_commit", "_retry"])
def test_any_failure_of_the_writer_reaches_those_who_wait_and_it_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(database, at, broken)
        with pytest.raises(RuntimeError, match="a bug"):
            database.write(failing_once(1, sqlite3.SQLITE_FULL)).result(WITHIN_S)
    assert database.write(insert(2)).result(WITHIN_S) == 1


def test_an_error_of_what_every_commit_adds_is_told_and_undone(tmp_path: Path) -> None:
    def add(db: sqlite3.Connection) -> None:
        raise ValueError("no clock")

    database = Database(tmp_path / "x.db", add)
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match="no clock"):
                database.write(lambda db: db.execute("CREATE TABLE t (x)")).result(WITHIN_S)
    finally:
        database.close()


def test_a_cancelled_request_is_either_done_or_never_begun(database: Database) -> None:
    going, goes_on = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> Any:
        going.set()
        goes_on.wait(WITHIN_S)
        return insert(1)(db)

    under_way = database.write(slow)
    assert going.wait(WITHIN_S)
    queued = database.write(insert(2))
    assert under_way.cancel() is False, "it may be on disk already"
    assert queued.cancel() is True
    goes_on.set()
    assert under_way.result(WITHIN_S) == 1
    assert database.write(insert(3)).result(WITHIN_S) == 1
    assert rows(database) == [1, 3]
