"""Raw bytes of rejected records that stay on the node: with their commit or not at all, bounded, shown."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import open_store

from edge_agent.quarantine import pack, read
from edge_agent.store import Commit, Store


def rows(*numbers: int, raw: str = "raw") -> list[dict[str, Any]]:
    common = {"at": "2026-01-01T00:00:00+00:00", "source": "s", "file": "f", "step": "invalid", "reasons": ["v: bad"]}
    return [{**common, "offset": n, "raw": f"{raw}{n}"} for n in numbers]


def commit(store: Store, *chunks: list[dict[str, Any]], pipeline: str = "p", **more: Any) -> Any:
    return store.commit(pipeline, "sha256:v", 1, Commit({}, {}, quarantined=[pack(chunk) for chunk in chunks], **more))


def test_the_newest_come_first_and_by_pipeline(tmp_path: Path) -> None:
    async def go(store: Store) -> None:
        await store.checkpoint("p")
        await store.checkpoint("q")
        await commit(store, rows(1, 2), rows(3))
        await commit(store, rows(4, raw="\ud800\0é"), pipeline="q")

    with open_store(tmp_path) as store:
        asyncio.run(go(store))
        assert [(r["pipeline"], r["offset"]) for r in read(tmp_path, "", 3)] == [("q", 4), ("p", 3), ("p", 2)]
        assert [r["raw"] for r in read(tmp_path, "q", 10)] == ["\ud800\0é4"]
        assert [r["offset"] for r in read(tmp_path, "p", 10)] == [3, 2, 1]


def test_i1_they_are_written_with_their_commit_or_not_at_all(tmp_path: Path) -> None:
    async def go(store: Store) -> None:
        await store.checkpoint("p")
        bad_action = [{"id": object()}]
        try:
            await commit(store, rows(1), actions=bad_action)
        except Exception:  # noqa: BLE001 - whatever the store says
            return
        raise AssertionError("the commit should have failed")

    with open_store(tmp_path) as store:
        asyncio.run(go(store))
    assert read(tmp_path, "", 10) == []


def test_i9_the_oldest_go(tmp_path: Path) -> None:
    async def go(store: Store) -> None:
        await store.checkpoint("p")
        for n in range(50):
            await commit(store, rows(n, raw=str(n * 7919) * 300), rows(n + 1000))

    size = len(pack(rows(1, raw=str(7919) * 300)).data)
    with open_store(tmp_path, quarantine_bytes=20 * size) as store:
        asyncio.run(go(store))
        kept = [r["offset"] for r in read(tmp_path, "", 1000)]
    assert kept[0] == 1049 and 5 < len(kept) < 60
    assert sorted(kept, key=lambda n: (n % 1000, n), reverse=True) == kept, "a gap in the middle"


def test_the_command_shows_them_beside_a_running_agent(tmp_path: Path) -> None:
    async def go(store: Store) -> None:
        await store.checkpoint("p")
        await commit(store, rows(1, raw="[bold]x"))

    command = [sys.executable, "-m", "edge_agent", "quarantine", "--data-dir", str(tmp_path)]
    with open_store(tmp_path) as store:
        asyncio.run(go(store))
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        found = json.loads(subprocess.run([*command, "p", "--json"], capture_output=True, timeout=60, check=True).stdout)
    assert "v: bad" in shown and "[bold]x1" in shown
    assert [r["offset"] for r in found] == [1]
    none = subprocess.run([*command[:-1], str(tmp_path / "none")], capture_output=True, text=True, timeout=60)
    assert (none.returncode, len(none.stderr.splitlines())) == (1, 2)
