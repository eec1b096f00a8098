"""`query --fleet`, `tap` and `logs` with real processes: who is away answers on return, once, whatever restarts in between."""

from __future__ import annotations

import asyncio
import json
import shlex
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from control_plane.demo.processes import CONTROL
from prove.cluster import eventually
from tests.docs.blocks import blocks
from tests.integration.here import Here, cluster

PAGE = Path(__file__).parents[2] / "docs" / "fleet-queries.md"

PIPELINE = """
tidewire: 1
pipeline: ovens
sources:
  log:
    file: {path: "*.jsonl"}
schema:
  ts: {type: timestamp, event_time: true}
  oven: {type: string}
  temp_c: {type: double}
sinks:
  readings: {lake: {table: oven_readings}}
"""


def test_nodes_answer_for_themselves(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        for name in ("pi-1", "pi-2"):
            await made.add_node(name)
        (home / "ovens.yaml").write_text(PIPELINE)
        await made.tidewire("apply", "ovens.yaml")
        await made.tidewire("deploy", "ovens", "--select", "all")
        await eventually("both nodes to run it", made.has_converged)
        await _everybody(made)
        await _tap(made)
        await _logs(made)
        await _all_are_cut_off(made)
        await _one_is_away(made)
        await _bad_words(made)
        await _page(made)
        assert (await _call(made, "audit"))[0] == 0, "answers are accounted for, too (I4)"


async def _everybody(made: Here) -> None:
    status, out, err = await _call(made, "query", "select pipeline, phase from pipelines", "--fleet", "--wait", "60s")
    assert status == 0, err
    assert out.split() == ["node", "pipeline", "phase", "pi-1", "ovens", "running", "pi-2", "ovens", "running"]
    assert "asks 2 nodes: pi-1, pi-2" in err
    assert "2 of 2 nodes answered" in err
    status, out, err = await _call(
        made, "query", "select count(*) as rows from oven_readings", "--fleet", "--json", "-s", "name=pi-1"
    )
    assert [row["row"] for row in json.loads(out)["rows"]] == [{"rows": 0}], "what the lake has is no longer here"


async def _tap(made: Here) -> None:
    tapping = asyncio.create_task(_call(made, "tap", "pi-1", "ovens", "--for", "60s", "--rows", "2", "--where", "temp_c > 50"))
    asked: set[str] = set()
    for temp_c in (10, *range(60, 160)):
        _write(made.home / "pi-1", temp_c)
        asked |= {request["by"] for request in (await made.status("pi-1")).get("requests", [])}
        await asyncio.wait({tapping}, timeout=1)
        if tapping.done():
            break
    status, out, err = await tapping
    assert status == 0, err
    assert len(out.splitlines()) == 2
    assert all("readings" in line and "oven=a" in line for line in out.splitlines())
    assert "temp_c=10" not in out
    assert asked == {"tester"}, "on site one sees who asks"


async def _logs(made: Here) -> None:
    status, out, err = await _call(made, "logs", "pi-1", "--lines", "500")
    assert status == 0, err
    assert "new manifest" in out
    assert len((await _call(made, "logs", "pi-1", "--lines", "2", "--json"))[1].splitlines()) > 2


async def _all_are_cut_off(made: Here) -> None:
    """Nobody answers; everybody does once the link is back."""
    made.link.cut()
    status, out, err = await _call(made, "query", "select 5 as five", "--fleet", "--wait", "2s")
    assert (status, out) == (3, "")
    assert "0 of 2 nodes answered; no answer yet: pi-1, pi-2" in err
    made.link.heal()
    await eventually("both to answer", lambda: _has_answered(made, err.rpartition("requests show ")[2].strip(), 2))


async def _one_is_away(made: Here) -> None:
    """It answers when it returns; the control plane was killed meanwhile."""
    assert made.server is not None
    await made.agents["pi-2"].stop()
    await made.server.stop()
    with closing(sqlite3.connect(next((made.home / "control").glob("*.db")))) as db, db:
        db.execute("UPDATE nodes SET last_seen = last_seen - 3600000000 WHERE name = 'pi-2'")
    await made.start_server()
    await eventually("pi-1 to be back", lambda: _is_in_contact(made, "pi-1"))
    status, out, err = await _call(made, "query", "select 7 as seven", "--fleet", "--wait", "60s")
    assert (status, out.split()) == (0, ["node", "seven", "pi-1", "7"]), err
    assert "1 of 2 nodes answered; missing: pi-2 (unknown since" in err
    name = err.rpartition("requests show ")[2].strip()
    await made.server.kill()
    await made.start_server()
    await made.agents["pi-2"].start()
    await eventually("pi-2 to answer", lambda: _has_answered(made, name, 2))
    assert "every node answered" in (await made.tidewire("requests", "show", name))
    lake = made.rows(f"select kind, count(*) from requests where request = '{name}' group by all order by all")
    assert lake == [["done", 2], ["row", 2]], "nobody twice"
    assert not (await made.node("pi-2"))["manifest"]["requests"]


async def _bad_words(made: Here) -> None:
    for words in (
        ("query", "drop table nodes", "--fleet"),
        ("query", "select 1", "--fleet", "--select", "site=nowhere"),
        ("tap", "pi-1", "unknown"),
        ("tap", "pi-1", "ovens", "--where", "temp_c >"),
        ("logs", "node-9"),
    ):
        status, _, err = await _call(made, *words)
        assert status == 1, words
        assert "fix:" in err or "syntax" in err
        assert "Traceback" not in err
    status, _, err = await _call(made, "query", "select * from elsewhere", "--fleet", "--wait", "60s")
    assert status == 1
    assert "no table elsewhere" in err
    await eventually("all requests to be closed", lambda: _none_is_open(made))


async def _none_is_open(made: Here) -> bool:
    return all(request["closed"] for request in json.loads(await made.tidewire("requests", "--json"))["requests"])


async def _page(made: Here) -> None:
    """docs/fleet-queries.md, word for word."""
    commands = [line for block in blocks(PAGE) if block.info == "sh" for line in block.text.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        program, *words = shlex.split(command)
        calling = asyncio.create_task(_call(made, *words))
        while not calling.done():
            _write(made.home / "pi-1", 70)
            await asyncio.wait({calling}, timeout=1)
        status, _, err = calling.result()
        assert (program, status) == ("tidewire", 0), (command, err)


async def _call(made: Here, *words: str) -> tuple[int, str, str]:
    ended = await made.end(CONTROL, *words, cwd=made.home)
    return ended.status, ended.out, ended.err


async def _is_in_contact(made: Here, name: str) -> bool:
    return bool((await made.node(name)).get("in_contact"))


async def _has_answered(made: Here, name: str, count: int) -> bool:
    shown = await asyncio.to_thread(made.client.get, f"/v1/requests/{name}")
    return bool(shown["answered"] == count and shown["closed"])


def _write(directory: Path, temp_c: float) -> None:
    with (directory / "ovens.jsonl").open("a") as file:
        file.write(json.dumps({"ts": datetime.now(UTC).isoformat(), "oven": "a", "temp_c": temp_c}) + "\n")
