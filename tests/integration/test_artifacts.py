"""A new table reaches a node over a link that is cut in the middle of it: real processes, and the bytes counted on the wire."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.contract.frames import sha256
from prove.cluster import eventually, send
from prove.link import OPEN, Way
from tests.docs.blocks import blocks
from tests.integration.here import Here, cluster

PIPELINE = """
tidewire: 1
pipeline: ovens
sources:
  log:
    file: {path: "*.jsonl"}
schema:
  ts: {type: timestamp, event_time: true}
  n: {type: integer}
  sensor: {type: string}
lookups:
  assets: {artifact: asset_register, key: [sensor]}
steps:
  - lookup: {table: assets, take: [asset]}
sinks:
  readings: {lake: {table: oven_readings}}
"""
SMALL = "sensor,asset,note\ns1,old oven,x\n"
MIB = 1 << 20


PAGE = Path(__file__).parents[2] / "docs" / "artifacts.md"


def test_the_page_works_word_for_word(tmp_path: Path) -> None:
    asyncio.run(_page(tmp_path))


async def _page(home: Path) -> None:
    async with cluster(home) as made:
        directory = await made.add_node("node-1")
        outputs: dict[str, str] = {}
        for block in blocks(PAGE):
            if block.save_as:
                (home / block.save_as).write_text(block.text)
            for command in block.text.splitlines() if block.info == "sh" else ():
                program, *words = shlex.split(command)
                assert program == "tidewire"
                if "--dry-run" in words:
                    await eventually("the pipeline to run", lambda: _is_running(made))
                    _record(directory, "t2", 81)
                    await eventually("a row", lambda: _lines(made) == [["t2", "4", False]])
                    (home / "assets.csv").write_text("sensor,line,limit_c\nt1,4,80\nt2,5,75\n")
                if words[0] == "query":
                    await eventually("the new table in use", made.has_converged)
                    _record(directory, "t2", 82)
                    await eventually("a second row", lambda: _lines(made) == [["t2", "4", False], ["t2", "5", True]])
                outputs[command] = await made.tidewire(*words)
        rehearsed, *_ = (out for command, out in outputs.items() if "--dry-run" in command)
        assert "node-1" in rehearsed and "another table asset_register" in rehearsed
        assert "t2 moved to line 5" in outputs["tidewire artifact list asset_register"]
        assert outputs[command].count("sha256:") == 2, "both tables are lineage"


def _lines(made: Here) -> list[list[Any]]:
    return made.rows("select sensor, line, is_hot from oven_readings order by temp_c")


def _record(directory: Path, sensor: str, temp_c: float) -> None:
    with (directory / "ovens.jsonl").open("a") as file:
        file.write(json.dumps({"ts": datetime.now(UTC).isoformat(), "sensor": sensor, "temp_c": temp_c}) + "\n")


def large(rows: int = 40_000) -> str:
    """20 MiB that do not compress."""
    noise = random.Random(7)
    lines = "".join(f"s{i},new oven {i},{noise.randbytes(255).hex()}\n" for i in range(rows))
    return "sensor,asset,note\n" + lines


def test_a_table_is_fetched_over_a_cut_and_rows_say_which_one_they_were_made_with(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        directory = await made.add_node("node-1")
        table = home / "assets.csv"
        table.write_text(SMALL)
        (home / "ovens.yaml").write_text(PIPELINE)
        await made.tidewire("apply", "ovens.yaml")
        await made.tidewire("artifact", "put", "asset_register", "assets.csv")
        await made.tidewire("deploy", "ovens", "--select", "all")
        await eventually("the pipeline to run", lambda: _is_running(made))
        _write(directory, 1)
        await eventually("a row with the old asset", lambda: _assets(made) == {1: "old oven"})
        text = large()
        table.write_text(text)
        made.link.set(OPEN, Way(bytes_per_s=4 * MIB))
        before = made.link.passed["down"]
        await made.tidewire("artifact", "put", "asset_register", "assets.csv", "--reason", "the line was rebuilt")
        await eventually("half of it", lambda: _share(made, 0.4))
        made.link.cut()
        _write(directory, 2)  # while it is cut the old table is in use
        send(made.agents["node-1"].pid)
        await made.agents["node-1"].start()
        await eventually("the node to run on its own (I12)", lambda: _runs_with(made, SMALL))
        made.link.heal()
        await eventually("both sides to agree", made.has_converged)
        fetched = made.link.passed["down"] - before
        assert len(text) <= fetched < len(text) * 1.15, f"{fetched} bytes went over for a table of {len(text)}"
        assert await _runs_with(made, text)
        _write(directory, 3)
        await eventually("rows with both", lambda: _assets(made) == {1: "old oven", 2: "old oven", 3: "new oven 1"})
        digests = {json.loads(row[0])["assets"] for row in made.rows("select lookups from segments where stream = 'readings'")}
        assert digests == {sha256(SMALL.encode()), sha256(text.encode())}
        used = json.loads(await made.tidewire("artifact", "show", "asset_register", "--json"))
        assert used["nodes"] == [{"node": "node-1", "pipeline": "ovens", "wanted": True, "in_use": True}]


async def _is_running(made: Here) -> bool:
    return any(p["phase"] == "running" for p in (await made.status("node-1")).get("pipelines", []))


async def _share(made: Here, share: float) -> bool:
    fetches: list[dict[str, Any]] = (await made.status("node-1")).get("fetches", [])
    return any(fetch["size"] and fetch["bytes"] > share * fetch["size"] for fetch in fetches)


async def _runs_with(made: Here, text: str) -> bool:
    pipelines = (await made.status("node-1")).get("pipelines", [])
    return any(p["phase"] == "running" and p["tables"] == {"asset_register": sha256(text.encode())} for p in pipelines)


def _assets(made: Here) -> dict[int, str]:
    return dict(map(tuple, made.rows("select n, asset from oven_readings")))


def _write(directory: Path, n: int) -> None:
    with (directory / "ovens.jsonl").open("a") as file:
        file.write(json.dumps({"ts": datetime.now(UTC).isoformat(), "n": n, "sensor": "s1"}) + "\n")
