"""A disk that is really full: commits wait, what frees space gets through, and everything goes on by itself (I9, I15)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import database as module
from edge_agent.database import Database
from edge_agent.reserve import Reserve

WITHIN_S = 20
BLOB_BYTES = 64 * 1024


@pytest.fixture(params=[3, 24])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of so many MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no mount here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_i15_receipts_get_through_a_full_disk_and_commits_go_on_after_them(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.05)
    database = Database(small_disk / "agent.db")
    try:
        database.write(lambda db: db.execute("CREATE TABLE blobs (id INTEGER PRIMARY KEY, data BLOB)")).result(WITHIN_S)
        stored = 0
        while not database.trouble:
            stored += 1
            waiting = database.write(_insert(stored), lane="pipeline")
            _wait_for(lambda w=waiting: w.done() or bool(database.trouble))  # type: ignore[misc]  # bound per round
        assert stored > 5
        database.write(lambda db: db.execute("DELETE FROM blobs WHERE id < ?", (stored,)).rowcount).result(WITHIN_S)
        waiting.result(WITHIN_S)
        assert database.trouble == ""
        left = database.read(lambda db: db.execute("SELECT id FROM blobs").fetchall()).result(WITHIN_S)
        assert left == [(stored,)], "the commit that waited is there, once"
        for i in range(1, 6):
            database.write(_insert(stored + i), lane="pipeline").result(WITHIN_S)
    finally:
        database.close()


def _insert(i: int) -> module.Work[int]:
    return lambda db: db.execute("INSERT INTO blobs VALUES (?, ?)", (i, os.urandom(BLOB_BYTES))).rowcount


def _wait_for(holds: object) -> None:
    import time

    deadline = time.monotonic() + WITHIN_S
    while not holds():  # type: ignore[operator]  # a callable
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_i9_a_reserve_that_was_cut_short_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "agent.reserve"
    size = Reserve(path).log_bytes_max * 2
    os.truncate(path, 0)
    assert Reserve(path).is_held
    assert path.stat().st_blocks * 512 >= size
