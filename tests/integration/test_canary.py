"""A rollout in steps over real nodes: a bad version stops at its canary, a good one gets to all of them (I8, I12)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from prove.cluster import eventually
from tests.integration.here import Here, cluster
from tests.integration.test_rollback import PIPELINE

NODES = ("node-1", "node-2", "node-3")
ROWS = 100


def test_a_bad_version_stops_at_its_canary_and_a_good_one_reaches_all(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        for name in NODES:
            await made.add_node(name)
        await _apply(made, "one", "min: 0")
        await made.tidewire("deploy", "scales", "--select", "all", "--soak", "1s")
        _write(made, 0)
        await eventually("the first version to pass everywhere", lambda: _all_passed(made, 1))

        await _apply(made, "two", "min: 1000")
        await made.tidewire("deploy", "scales", "--select", "all", "--canary", "1,100%", "--soak", "2s", "--reason", "heavier")
        await eventually("a canary to take it", lambda: _numbers(made, 2))
        (canary,) = await _numbers(made, 2)
        _write(made, 1)
        await eventually("the canary to fail it", lambda: _held(made))
        await eventually("the canary to be back", lambda: _all_passed(made, 1))
        undone = await made.tidewire("rollout", "undo", "scales", "--reason", "wrong limit")
        others = [name for name in NODES if name != canary]
        assert f"1 failed version 2 by themselves:\n  {canary}: " in undone, undone
        assert f"2 never had version 2:\n  {', '.join(others)}" in undone, undone
        for name in others:
            told = await made.tidewire("history", "scales", "--node", name, "--json")
            assert 2 not in [one["version"] for one in json.loads(told)["runs"]], "who is no canary never ran it"

        await _apply(made, "three", "min: 0.5")
        await made.tidewire("deploy", "scales", "--select", "all", "--canary", "1,100%", "--soak", "1s")
        await eventually("a canary to take it", lambda: _numbers(made, 3))
        parts = 2

        async def passes_where_rows_come() -> bool:
            nonlocal parts
            _write(made, parts)
            parts += 1
            await asyncio.sleep(0.5)
            return await _all_passed(made, 3)

        await eventually("the third version to pass everywhere", passes_where_rows_come)
        await eventually("the rollout to be done", lambda: _state(made, "done"))

        async def all_is_there() -> bool:
            stored, distinct = made.rows("select count(*), count(distinct (_node, n)) from weights")[0]
            (rejected,) = made.rows("select count(*) from quarantine")[0]
            assert stored == distinct and rejected <= ROWS, "nothing twice; only the canary judged rows by the bad version"
            return rejected > 0 and bool(stored + rejected == parts * len(NODES) * ROWS)

        await eventually("the rows", all_is_there)


async def _apply(made: Here, name: str, limit: str) -> None:
    (made.home / "scales.yaml").write_text(PIPELINE.replace("VERSION", name).replace("LIMIT", limit))
    await made.tidewire("apply", "scales.yaml")


def _write(made: Here, part: int) -> None:
    for name in NODES:
        with (made.home / name / "weights.jsonl").open("a") as out:
            out.writelines(json.dumps({"n": n, "kg": 10.5}) + "\n" for n in range(part * ROWS, (part + 1) * ROWS))


async def _numbers(made: Here, number: int) -> list[str]:
    """Nodes that run this version, as they say themselves."""
    found = []
    for name in NODES:
        pipelines = (await made.status(name)).get("pipelines", [])
        found += [name for one in pipelines if (one["pipeline"], one["number"]) == ("scales", number)]
    return found


async def _all_passed(made: Here, number: int) -> bool:
    for name in NODES:
        found = next((p for p in (await made.status(name)).get("pipelines", []) if p["pipeline"] == "scales"), None)
        if found is None or (found["number"], found["phase"], found["gate"]["state"]) != (number, "running", "passed"):
            return False
    return True


async def _held(made: Here) -> bool:
    return await _state(made, "held")


async def _state(made: Here, state: str) -> bool:
    rollouts = made.client.get("/v1/rollouts", pipeline="scales")["rollouts"]
    return bool(rollouts[0]["state"] == state)
