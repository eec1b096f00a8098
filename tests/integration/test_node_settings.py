"""One file for many nodes: labels and secrets of the node, lookup files, every column type, bytes that stay, an alarm that waits
for somebody. Through a real node and a real control plane."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prove.cluster import eventually
from tests.integration.here import Here, cluster

SECRET = "tr0ub4dor&3"
PIPELINE = """
tidewire: 1
pipeline: doors
sources:
  log:
    file: {path: "${label:line}/*.jsonl"}
schema:
  ts: {type: timestamp, event_time: true, unit: s}
  badge: {type: string, sensitive: true}
  door: {type: string}
  force: {type: double}
  price: {type: decimal, precision: 10, scale: 3}
  frame: {type: binary, encoding: hex}
  axes: {type: list, of: double}
  box:
    type: struct
    fields: {w: integer, tags: {type: list, of: string}}
lookups:
  doors: {file: doors.csv, key: [door], columns: {floor: integer}}
steps:
  - lookup: {table: doors, take: [floor]}
  - redact:
      badge: {hash: {key: "${secret:badge_key}", length: 16}}
triggers:
  forced:
    over: latest
    each: [door]
    by: [door]
    when: max(force) > 5
    ack: required
    actions:
      on_raise:
        - exec: {program: HORN, args: ["${secret:badge_key}", "${label:line}"]}
sinks:
  entries: {lake: {table: entries}}
"""


def test_a_node_fills_in_what_the_file_leaves_open(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    horn = home / "horn"
    horn.write_text(f'#!/bin/sh\nprintf %s "$1" | sha256sum > {home}/heard; echo "$2" >> {home}/heard\n')
    horn.chmod(0o755)
    async with cluster(home) as made:
        directory = await made.add_node("node-1", policy=f"exec: [{horn}]", line="l1")
        (directory / "l1").mkdir()
        (directory / "doors.csv").write_text("door,floor\nnorth,1\nsouth,2\n")
        (home / "doors.yaml").write_text(PIPELINE.replace("HORN", str(horn)))
        await made.tidewire("apply", "doors.yaml")
        await made.tidewire("deploy", "doors", "--select", "line=l1")
        await eventually(
            "the centre to know what is missing", lambda: _why_says(made, "secret badge_key is not set on this node")
        )
        _set_secret(directory / "agent")
        await eventually("the pipeline to run", lambda: _why_says(made, "running"))
        _write(directory, force=1.0)
        await eventually("the row", lambda: len(made.rows("select * from entries")) == 1)
        await _check_types(made)
        await _check_alarm(made, directory)
        _write(directory, force="much")
        await eventually("the rejected record", lambda: len(made.rows("select * from quarantine")) == 1)
        await _check_what_stays(made, home)


async def _why_says(made: Here, text: str) -> bool:
    return text in await made.tidewire("why", "node-1", "doors")


def _set_secret(data_dir: Path) -> None:
    words = ["-m", "edge_agent", "secret", "set", "badge_key", "--data-dir", str(data_dir)]
    done = subprocess.run([sys.executable, *words], input=SECRET + "\n", capture_output=True, text=True, timeout=60, check=True)
    assert "the agent looks at it now" in done.stdout and SECRET not in done.stdout + done.stderr


def _write(directory: Path, force: object) -> None:
    row = {"ts": time.time(), "badge": "ann-4711", "door": "south", "force": force, "price": "12.345", "frame": "00ff"}
    row |= {"axes": [1.5, -2], "box": {"w": 3, "tags": ["a", "é"]}}
    with (directory / "l1" / "a.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")


async def _check_types(made: Here) -> None:
    columns = "badge, door, force, price, frame, axes, box, floor, box.tags[2] as tag"
    [row] = json.loads(await made.tidewire("query", f"select {columns} from entries", "--json"))
    assert len(row.pop("badge")) == 16
    assert row == {
        "door": "south",
        "force": 1.0,
        "price": "12.345",
        "frame": "00ff",
        "axes": [1.5, -2.0],
        "box": {"w": 3, "tags": ["a", "é"]},
        "floor": 2,
        "tag": "é",
    }
    shown = await made.tidewire("query", "select price, axes, box from entries")
    assert "12.345" in shown and "[1.5, -2.0]" in shown
    [[lookups]] = made.rows("select lookups from segments where table_name = 'entries'")
    assert list(json.loads(lookups)) == ["doors"]


async def _check_alarm(made: Here, directory: Path) -> None:
    """Back to normal, it waits for an acknowledgement, which comes from the centre."""
    _write(directory, force=9.0)
    await eventually("the alarm", lambda: _state(made) == "active, unacknowledged")
    await eventually("the horn", lambda: (made.home / "heard").exists() and "l1" in (made.home / "heard").read_text())
    assert (made.home / "heard").read_text().startswith(hashlib.sha256(SECRET.encode()).hexdigest())
    _write(directory, force=1.0)
    await eventually("the end of the cause", lambda: _state(made) == "cleared, unacknowledged")
    assert [i["state"] for i in (await made.status("node-1"))["incidents"]] == ["cleared"]
    [incident] = _incidents(made)
    assert incident["needs_somebody"]
    await made.tidewire("incidents", "ack", incident["id"], "--reason", "seen")
    await eventually("the node to close it", lambda: _is_closed(made))
    assert not _incidents(made)[0]["needs_somebody"]
    await made.tidewire("incidents", "ack", incident["id"])  # already


def _incidents(made: Here) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.client.get("/v1/incidents")["incidents"]
    return found


def _state(made: Here) -> str:
    return str(next((incident["state"] for incident in _incidents(made)), ""))


async def _is_closed(made: Here) -> bool:
    return not (await made.status("node-1"))["incidents"] and bool(_incidents(made)[0]["closed"])


async def _check_what_stays(made: Here, home: Path) -> None:
    [[raw, reasons]] = made.rows("select raw, reasons from quarantine")
    assert raw is None and "force" in str(reasons)
    [kept] = json.loads(await made.agent("node-1", "quarantine", "--json"))
    assert "ann-4711" in kept["raw"]
    status = json.dumps(await made.status("node-1"))
    assert "ann-4711" not in status
    allowed = {home / "node-1" / "agent" / "secrets.json"}
    files = [file for file in home.rglob("*") if file.is_file() and file not in allowed]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    for table in ("entries", "incidents", "quarantine", "segments"):
        rows = json.dumps(made.rows(f"select * from {table}"))
        assert rows != "[]" and SECRET not in rows and "ann-4711" not in rows
    uploaded = [file for file in files if home / "control" in file.parents]
    assert [file for file in uploaded if b"ann-4711" in file.read_bytes()] == []
