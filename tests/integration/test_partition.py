"""Both sides change things while the link is cut; afterwards they agree, and the losing entry stays visible (I5, I6, I7)."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prove.cluster import eventually
from tests.integration.here import Here, cluster

PIPELINE = """
tidewire: 1
pipeline: ovens
params:
  limit_c: {type: double, default: 80, min: 0, max: 300}
  votes: {type: integer, default: 1, min: 1, max: 4}
sources:
  log:
    file: {path: "*.jsonl"}
schema:
  ts: {type: timestamp, event_time: true}
  oven: {type: string}
  temp_c: {type: double}
triggers:
  hot:
    over: 5m
    by: [oven]
    when: count(*) filter (where temp_c > $limit_c) >= $votes
    clear_when: max(temp_c) < 0
    message: "{oven} over {limit_c}"
    actions:
      on_raise:
        - exec: {program: /usr/bin/touch, args: ["PLACE/raised"]}
      on_ack:
        - exec: {program: /usr/bin/touch, args: ["PLACE/acknowledged"]}
sinks:
  readings: {lake: {table: oven_readings}}
"""


def test_both_sides_change_things_while_apart(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        directory = home / "node-1"
        await made.add_node("node-1", site="lyon", policy="exec: [/usr/bin/touch]\n")
        (home / "ovens.yaml").write_text(PIPELINE.replace("PLACE", str(directory)))
        await made.tidewire("apply", "ovens.yaml")
        await made.tidewire("deploy", "ovens", "--select", "site=lyon", "--reason", "first")
        _write(directory, "a", 95)
        await eventually("the first incident at the centre", lambda: len(_incidents(made)) == 1)
        await eventually("the local program to have run", (directory / "raised").exists)
        made.link.cut()
        await _change_both_sides(made, directory)
        made.link.heal()
        await eventually("both sides to agree", lambda: _agree(made))
        await _check(made, directory)


async def _change_both_sides(made: Here, directory: Path) -> None:
    first = _incidents(made)[0]["id"]
    await made.tidewire("incidents", "ack", first, "--reason", "seen from the centre")
    assert not (directory / "acknowledged").exists()
    await made.tidewire("set", "ovens", "limit_c=85", "votes=2", "--select", "site=lyon", "--reason", "central")
    await made.agent("node-1", "set", "ovens", "limit_c=90", "--reason", "on site")
    await eventually("the on-site value in effect", lambda: _limit_is(made, 90.0))
    _write(directory, "b", 95)
    await eventually("the second incident on the node", lambda: _node_knows(made, 2))
    second = next(i for i in (await made.status("node-1"))["incidents"] if json.loads(i["group"])["oven"] == "b")
    await made.agent("node-1", "ack", second["incident"], "--reason", "seen on site")


async def _agree(made: Here) -> bool:
    incidents = await asyncio.to_thread(_incidents, made)
    return await made.has_converged() and len(incidents) == 2 and all("acknowledged" in i["state"] for i in incidents)


async def _check(made: Here, directory: Path) -> None:
    reported = (await made.node("node-1"))["reported"]["ovens"]["params"]
    assert reported == {"limit_c": 90.0, "votes": 2}, "on-site beats a rule that did not force it; the rest is the rule's"
    why = await made.tidewire("why", "node-1", "ovens")
    assert "on site" in why
    assert "85" in why, "the entry that lost stays visible"
    await eventually("the acknowledged action on the node", lambda: (directory / "acknowledged").exists())
    await made.tidewire("set", "ovens", "limit_c=70", "--select", "site=lyon", "--force", "--reason", "everywhere, now")
    await eventually("a forced value to win", lambda: _limit_is(made, 70.0))
    await eventually("both sides to agree again", made.has_converged)


async def _limit_is(made: Here, value: float) -> bool:
    pipelines = (await made.status("node-1")).get("pipelines", [])
    return any(p["params"].get("limit_c", {}).get("value") == value for p in pipelines)


async def _node_knows(made: Here, count: int) -> bool:
    return len((await made.status("node-1")).get("incidents", [])) == count


def _incidents(made: Here) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = made.client.get("/v1/incidents")["incidents"]
    return listed


def _write(directory: Path, oven: str, temp_c: float) -> None:
    with (directory / "ovens.jsonl").open("a") as file:
        for _ in range(5):
            file.write(json.dumps({"ts": datetime.now(UTC).isoformat(), "oven": oven, "temp_c": temp_c}) + "\n")
            time.sleep(0.001)
