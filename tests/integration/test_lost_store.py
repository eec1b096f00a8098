"""A node whose store is gone but whose identity is not takes up its place again: its notes come back, new ones work (I5, I6)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prove.cluster import eventually
from tests.integration.here import Here, cluster

PIPELINE = """
tidewire: 1
pipeline: ovens
params:
  limit_c: {type: double, default: 80}
  votes: {type: integer, default: 1}
sources:
  log:
    file: {path: "*.jsonl"}
schema:
  ts: {type: timestamp, event_time: true}
  temp_c: {type: double}
steps:
  - filter: temp_c < $limit_c * $votes
sinks:
  readings: {lake: {table: oven_readings}}
"""


def test_a_lost_store_is_no_lost_node(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        await made.add_node("node-1", site="lyon")
        (home / "ovens.yaml").write_text(PIPELINE)
        await made.tidewire("apply", "ovens.yaml")
        await made.tidewire("deploy", "ovens", "--select", "site=lyon", "--reason", "first")
        await eventually("the pipeline to run", made.has_converged)
        await made.agent("node-1", "set", "ovens", "limit_c=90", "--reason", "before the loss")
        await eventually("the centre to know", lambda: _reported(made, {"limit_c": 90.0, "votes": 1}))
        await made.agents["node-1"].stop()
        for file in (home / "node-1" / "agent").glob("agent.db*"):
            file.unlink()
        await made.agents["node-1"].start()
        await eventually("the on-site value to be back", lambda: _on_site(made, "limit_c", 90.0))
        await eventually("the node to converge", made.has_converged)
        await made.agent("node-1", "set", "ovens", "votes=3", "--reason", "after the loss")
        await eventually("the centre to know both", lambda: _reported(made, {"limit_c": 90.0, "votes": 3}))
        await eventually("the node to converge again", made.has_converged)
        why = await made.tidewire("why", "node-1", "ovens")
        assert "before the loss" in why
        assert "after the loss" in why
        assert not (await made.status("node-1")).get("trouble")


async def _on_site(made: Here, name: str, value: Any) -> bool:
    pipelines = (await made.status("node-1")).get("pipelines", [])
    return any(
        (p["params"].get(name, {}).get("value"), p["params"].get(name, {}).get("origin")) == (value, "on-site") for p in pipelines
    )


async def _reported(made: Here, params: dict[str, Any]) -> bool:
    return bool((await made.node("node-1")).get("reported", {}).get("ovens", {}).get("params") == params)
