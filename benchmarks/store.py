"""Opening a store with a long backlog: `python -m benchmarks.store [GB]`. Time to open and to the first segments, peak memory."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edge_agent import outbox
from edge_agent.store import Store
from pipelines.contract.frames import sha256
from pipelines.contract.keys import Key

SEGMENT_BYTES = 256 * 1024
BUDGET_BYTES = 1 << 40
KEY = Key.from_entropy(bytes(32))


def measure(segments: int, directory: Path) -> dict[str, Any]:
    """Seconds, and bytes of memory at most, of a process that opens a store of so many segments and takes the first of them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(_fill, (directory, segments))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {"bytes": segments * SEGMENT_BYTES, **pool.apply(_open, (directory,))}


def _fill(directory: Path, segments: int) -> None:
    Store.open(directory, "n1", KEY, BUDGET_BYTES).close()
    with sqlite3.connect(directory / "agent.db", isolation_level=None) as db:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        stream = outbox.new_run(db, "0" * 16, "p", "rows", "rows", "t", active=True)
        data = os.urandom(SEGMENT_BYTES)
        for seq in range(1, segments + 1):
            outbox.insert(db, stream, seq, seq, sha256(data), 1000, data=data)
        db.execute("INSERT INTO meta VALUES ('sending', 1)")
        db.execute("PRAGMA journal_mode=WAL")
    db.close()
    os.sync()  # what follows must not wait for it


def _open(directory: Path) -> dict[str, Any]:
    before = _peak_bytes()
    started = time.perf_counter()
    store = Store.open(directory, "n1", KEY, BUDGET_BYTES)
    opened = time.perf_counter()
    assert asyncio.run(store.pending_segments(1))
    taken = time.perf_counter()
    backlog = asyncio.run(store.backlog())
    store.close()
    return {
        "open_s": round(opened - started, 3),
        "first_s": round(taken - opened, 3),
        "memory_bytes": _peak_bytes() - before,
        "rows": backlog.rows,
    }


def _peak_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    for size in (0.01, gigabytes):
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(measure(int(size * 2**30 / SEGMENT_BYTES), Path(place))))
