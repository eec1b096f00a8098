"""The scripted walks of docs/rollouts.md and docs/parameters.md, against a real server with nodes that do what the pages tell."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_node import FakeNode
from server_process import PRESS, ServerProcess, until

from pipelines.contract.folds import effective_params, is_banned
from pipelines.contract.node_state import Assignment, Ban, Note, Reported, params_digest
from pipelines.contract.spec import load_spec
from tests.docs.walk import console_blocks, run_block

DOCS = Path(__file__).parents[2] / "docs"
OVERHEAT = PRESS.replace("pipeline: press", "pipeline: press-overheat").replace(
    "  mode:", "  min_sensors: {type: integer, default: 4, min: 1}\n  mode:"
)


class Plant:
    """Nodes around a server."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.nodes: dict[str, FakeNode] = {}
        self.passed: dict[str, Assignment] = {}

    async def join(self, *names: str, labels: dict[str, str]) -> None:
        words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        token = self.server.token("--uses", str(len(names)), *words)
        for name in names:
            self.nodes[name] = await FakeNode.join(token, name)

    async def hear(self, *names: str, verdict: str = "passed") -> None:
        """These exchange and run what they should; the gate ends as `verdict` says."""
        for name in names:
            node = self.nodes[name]
            await node.exchange()
            for pipeline, wanted in node.manifest.assignments.items():
                node.document.report(pipeline, await self._reported(node, pipeline, wanted, verdict))
            await node.exchange()
            await node.beat()

    async def _reported(self, node: FakeNode, pipeline: str, wanted: Assignment, verdict: str) -> Reported:
        spec = load_spec((await node.fetch(wanted.digest)).decode())
        known = node.document.reported().get(pipeline)
        bans = known.bans if known else ()

        def values(assignment: Assignment) -> dict[str, object]:
            notes = node.document.notes()
            found = effective_params(spec.defaults(), assignment, notes, node=node.id, pipeline=pipeline)
            return {name: entry.value for name, entry in found.items()}

        digest = params_digest(values(wanted))  # type: ignore[arg-type]
        if verdict == "failed" and wanted.digest != self.passed[node.id].digest:
            reason = "31% of the rows rejected, its predecessor 0%: temp_c is text"
            bans = (Ban(wanted.digest, wanted.number, digest, reason, wanted.lift, "16:05"),)
        if not is_banned(bans, wanted.digest, digest, wanted.lift):
            if verdict != "soaking":
                self.passed[node.id] = wanted
            runs, gate = wanted, "soaking" if verdict == "soaking" else "passed"
        else:
            runs, gate = self.passed[node.id], "passed"
        now = values(runs)
        return Reported(runs.digest, runs.number, "running", now, params_digest(now), gate=gate, bans=bans)  # type: ignore[arg-type]

    async def an_hour_later(self) -> None:
        """Nobody is heard for an hour; the server is started anew, so that it remembers nobody."""
        await asyncio.to_thread(self.server.stop)
        await until(lambda: not any(node.client.is_connected for node in self.nodes.values()))
        with sqlite3.connect(self.server.data_dir / "control.db") as db:
            db.execute("update nodes set last_seen = last_seen - 3600000000")
        await asyncio.to_thread(self.server.start)
        await until(lambda: all(node.client.is_connected for node in self.nodes.values()), 60)

    def admitted(self) -> list[str]:
        (row, *_) = self.server.client.get("/v1/rollouts", pipeline="press")["rollouts"]
        return [node["name"] for node in row["nodes"] if node["admitted"]]

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.close()


Acts = dict[str, Callable[[], Awaitable[None]]]


async def walk(plant: Plant, page: str, acts: Acts) -> None:
    """Each block of the page, after the act of its heading."""
    seen: set[str] = set()
    for block in console_blocks(DOCS / page):
        if block.heading not in seen:
            seen.add(block.heading)
            await acts[block.heading]()
        await asyncio.to_thread(run_block, DOCS / page, block, plant.server.cli)
    assert seen == acts.keys(), "an act that no heading tells of"
    await plant.close()


def test_a_bad_version_to_fifty_nodes_of_which_twenty_are_offline(server: ServerProcess) -> None:
    plant = Plant(server)
    names = [f"pi{i:02}" for i in range(1, 51)]
    here, away = names[:30], names[30:]
    canaries: list[str] = []

    async def start() -> None:
        for number in range(1, 5):
            server.apply(PRESS.replace("Press temperatures", f"Press temperatures, {number}"))
        await plant.join(*names, labels={"site": "lyon"})
        assert server.cli("deploy", "press@3", "-s", "all", "--reason", "spring").returncode == 0
        await plant.hear(*names)
        await plant.an_hour_later()
        await plant.hear(*here)

    async def canaries_take_it() -> None:
        canaries[:] = plant.admitted()
        assert len(canaries) == 4 and set(canaries) <= set(here)
        await plant.hear(*here, verdict="soaking")

    async def one_fails() -> None:
        await plant.hear(canaries[0], verdict="failed")
        await until(lambda: server.client.get("/v1/rollouts", pipeline="press")["rollouts"][0]["state"] == "held")

    async def one_goes_silent() -> None:
        await plant.an_hour_later()
        await plant.hear(*(set(here) - {canaries[1]}))

    async def back() -> None:
        await plant.hear(*(set(here) - {canaries[1]}))

    async def the_others_return() -> None:
        await plant.hear(canaries[1], *away)
        assert {a.number for n in names for a in plant.nodes[n].manifest.assignments.values()} == {3}

    acts: Acts = {
        "Fifty nodes, thirty in contact": start,
        "Four canaries": canaries_take_it,
        "One of them rejects its rows": one_fails,
        "Back": one_goes_silent,
        "After a minute": back,
        "When the others return": the_others_return,
    }
    asyncio.run(walk(plant, "rollouts.md", acts))


def test_four_sensors_to_five_on_line_4_only(server: ServerProcess) -> None:
    plant = Plant(server)

    async def start() -> None:
        server.apply(OVERHEAT)
        await plant.join("l4-1", "l4-2", "l4-3", labels={"line": "4"})
        await plant.join("l5-1", labels={"line": "5"})
        assert server.cli("deploy", "press-overheat", "-s", "all", "--reason", "go live").returncode == 0
        await plant.hear(*plant.nodes)
        node = plant.nodes["l4-3"]
        note = Note(node.id, 1, "param", "press-overheat", {"name": "min_sensors", "value": 6}, "m.durand", "sensor 2 lies")
        node.document.add_note(note)
        await plant.hear("l4-3")
        await plant.an_hour_later()
        await plant.hear("l4-1", "l4-3", "l5-1")

    async def heard() -> None:
        await plant.hear("l4-1", "l4-3", "l5-1")

    async def returns() -> None:
        await plant.hear("l4-2")
        await plant.join("l4-4", labels={"line": "4"})
        await plant.hear("l4-4")

    async def nothing() -> None:
        await plant.hear("l4-1", "l4-2", "l4-3", "l4-4", "l5-1")

    acts: Acts = {
        "Look first": start,
        "Four sensors to five on line 4 only": heard,
        "Who was away, and who joins later": returns,
        "Take it back": nothing,
    }
    asyncio.run(walk(plant, "parameters.md", acts))


@pytest.mark.parametrize("page", ["rollouts.md", "parameters.md"])
def test_a_page_that_says_something_else_is_noticed(page: str) -> None:
    from subprocess import CompletedProcess

    block = console_blocks(DOCS / page)[0]
    with pytest.raises(AssertionError, match="says"):
        run_block(DOCS / page, block, lambda *words: CompletedProcess(words, 0, "something else\n", ""))
