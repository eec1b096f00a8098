"""A version that rejects everything, on a node that is cut off and killed: it goes back by itself (I12), and people on site have
their way. With a real node and a real control plane."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from prove.cluster import eventually
from tests.integration.here import Here, cluster

PIPELINE = """
tidewire: 1
pipeline: scales
description: VERSION
params:
  least: {type: double, default: 0, min: 0, max: 9}
sources:
  log:
    file: {path: "weights.jsonl"}
schema:
  n: {type: integer}
  kg: {type: double, LIMIT}
sinks:
  rows: {lake: {table: weights}}
"""


def test_a_bad_version_is_taken_back_while_cut_off_and_killed(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        directory = await made.add_node("node-1")
        _write(directory, 0)
        await _deploy(made, "one", "min: 0")
        await eventually("the first version to pass", lambda: _gate(made, "passed", 1))
        await _deploy(made, "two", "min: 1000")
        await eventually("the second to run", lambda: _runs(made, 2))
        made.link.cut()
        await made.agent("node-1", "set", "scales", "least=3", "--for", "1h", "--reason", "hot day")
        _write(directory, 200)
        await eventually("the ban, with nobody in reach", lambda: _is_banned(made))
        agent = made.agents["node-1"]
        await agent.kill()
        await agent.start()
        await eventually("the former version, after a SIGKILL too", lambda: _runs(made, 1))
        assert await _is_banned(made)
        _write(directory, 400)
        await made.agent("node-1", "label", "line=4")
        await made.agent("node-1", "pause", "scales", "--for", "3s", "--reason", "cleaning")
        await eventually("the pause", lambda: _phase(made, "paused"))
        await eventually("its end", lambda: _phase(made, "running"))
        made.link.heal()
        await eventually("the ban at the centre", lambda: _centre_knows(made))
        await eventually("the rows", lambda: len(made.counts("weights")) >= 400)
        stored = made.counts("weights")
        assert set(stored.values()) == {1}, "nothing twice"
        rejected = made.rows("select count(*) from quarantine")[0][0]
        assert len(stored) + rejected == 600, "every row is in the lake or rejected by the version that was taken back"


async def _deploy(made: Here, name: str, limit: str) -> None:
    (made.home / "scales.yaml").write_text(PIPELINE.replace("VERSION", name).replace("LIMIT", limit))
    await made.tidewire("apply", "scales.yaml")
    await made.tidewire("deploy", "scales", "--select", "all", "--soak", "2s", "--reason", name)


def _write(directory: Path, first: int) -> None:
    with (directory / "weights.jsonl").open("a") as out:
        out.writelines(json.dumps({"n": n, "kg": 10.5}) + "\n" for n in range(first, first + 200))


async def _scales(made: Here) -> dict[str, Any]:
    found: list[dict[str, Any]] = (await made.status("node-1")).get("pipelines", [])
    return next((p for p in found if p["pipeline"] == "scales"), {})


async def _gate(made: Here, state: str, number: int) -> bool:
    scales = await _scales(made)
    return bool(scales) and (scales["gate"]["state"], scales["number"]) == (state, number)


async def _runs(made: Here, number: int) -> bool:
    scales = await _scales(made)
    return bool(scales) and (scales["number"], scales["phase"]) == (number, "running")


async def _phase(made: Here, phase: str) -> bool:
    return (await _scales(made)).get("phase") == phase


async def _is_banned(made: Here) -> bool:
    return [ban["number"] for ban in (await _scales(made)).get("bans", [])] == [2]


async def _centre_knows(made: Here) -> bool:
    told = (await made.node("node-1")).get("reported", {}).get("scales", {})
    bans = [ban["number"] for ban in told.get("bans", [])]
    return bans == [2] and told.get("number") == 1 and told.get("params", {}).get("least") == 3.0
