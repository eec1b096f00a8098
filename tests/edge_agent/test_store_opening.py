"""Opening does not depend on the backlog: no statement on the way scans the outbox. Times: benchmarks/store.py."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from pathlib import Path

import pytest
from support import new_key, open_store

from edge_agent import database, outbox
from edge_agent import store as store_module
from edge_agent.outbox import Sealed
from edge_agent.store import Commit, Store

KEY = new_key()


async def fill(store: Store, count: int) -> None:
    await store.checkpoint("p")
    for n in range(count):
        sealed = [Sealed(f"s{n % 3}", "rows", "t", 1, json.dumps([n]).encode() + b" " * 9_000)]
        await store.commit("p", "sha256:v", 1, Commit({}, {}, sealed=sealed))


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that the store asks SQLite from now on."""
    seen: list[str] = []
    connect = database.connect

    def traced(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(database, "connect", traced)
    monkeypatch.setattr(store_module, "connect", traced)
    return seen


def test_i9_opening_sending_and_a_commit_do_not_depend_on_the_backlog(tmp_path: Path, statements: list[str]) -> None:
    with open_store(tmp_path, KEY) as store:
        asyncio.run(fill(store, 30))
    statements.clear()

    async def a_day(store: Store) -> None:
        await fill(store, 3)
        [first] = await store.pending_segments(1)
        await store.confirm([outbox.Mark(first.run, first.stream, first.seq, first.digest)])
        await store.backlog()
        await store.open_positions()
        await store.doubtful()

    with open_store(tmp_path, KEY, buffer_bytes=1 << 20) as store:
        asyncio.run(a_day(store))
    scans = _scans(tmp_path / "agent.db", statements)
    assert not scans, scans


def test_this_test_sees_a_scan(tmp_path: Path, statements: list[str]) -> None:
    with open_store(tmp_path, KEY) as store:
        asyncio.run(store._read(lambda db: db.execute("SELECT sum(rows) FROM outbox").fetchall()))
    assert _scans(tmp_path / "agent.db", statements)


def _scans(path: Path, statements: list[str]) -> list[tuple[str, str]]:
    """(statement, step of its plan) of each that walks the whole outbox."""
    found = []
    with sqlite3.connect(path) as db:
        for statement in dict.fromkeys(re.sub(r"\s+", " ", text) for text in statements):
            if not re.match(r"(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement):
                continue
            plan = db.execute("EXPLAIN QUERY PLAN " + statement).fetchall()
            found += [(statement, step) for *_, step in plan if re.match(r"SCAN (outbox|o|b)\b", step)]
    return found
