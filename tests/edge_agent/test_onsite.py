"""What people do on the node, with the link down and up; and what the centre's notes do there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import until
from world import READY, World, ask, phase, version, with_control

from edge_agent.agent import Agent
from pipelines.contract.node_state import Setting

pytestmark = pytest.mark.usefixtures("impatient")


async def do(world: World, verb: str, reason: str = "", *, dry_run: bool = False, **body: Any) -> list[str]:
    return (await ask(world, "POST", f"/{verb}", by="eve", reason=reason, dry_run=dry_run, **body))["done"]  # type: ignore[no-any-return]


async def refused(world: World, verb: str, reason: str = "", **body: Any) -> str:
    return str((await ask(world, "POST", f"/{verb}", by="eve", reason=reason, dry_run=False, **body))["error"])


def code(world: World, pipeline: str = "press") -> str:
    return world.control.document.reported()[pipeline].code


async def held(world: World) -> list[str]:
    return [f"{n['kind']} {n['subject']} {n['by']}" for n in (await ask(world, "GET", "/status"))["notes"]]


@with_control
async def test_a_paused_pipeline_finishes_drains_and_stays_paused_through_a_reboot(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"commits": 3}))
        await until(lambda: phase(world) == "1 running")
        assert await do(world, "pause", dry_run=True, pipeline="press")
        assert not await held(world), "a dry run changes nothing"
        await do(world, "pause", "maintenance", pipeline="press")
        await until(lambda: phase(world) == "1 paused" and not agent.keepers)
        reported = world.control.document.reported()["press"]
        assert (reported.code, reported.reason) == ("paused", "paused on site by eve: maintenance")
        await until(lambda: world.control.numbers() == [0, 1, 2])
    world.broker.kill()
    async with world.agent() as agent:
        await until(lambda: _is_paused(agent))
        assert not agent.keepers
        assert "not paused" not in (await do(world, "resume", pipeline="press"))[0]
        await until(lambda: agent.keepers and agent.keepers["press"].is_ready)
        assert "it is not paused" in await refused(world, "resume", pipeline="press")
        world.broker.start()
        await until(lambda: phase(world) == "1 running" and code(world) == "")


@with_control
async def test_i10_a_pause_ends_after_its_time_in_node_time_and_says_so_once(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY))
        await until(lambda: phase(world) == "1 running")
        await do(world, "pause", pipeline="press", for_s=3600)
        await until(lambda: phase(world) == "1 paused")
        [note] = [n for n in (await ask(world, "GET", "/status"))["notes"] if n["kind"] == "pause"]
        assert 3590 < note["left_s"] <= 3600
    async with world.agent() as agent:
        await until(lambda: _is_paused(agent))
        [ends_us] = agent.timers.ends.values()
        assert 3580 < (ends_us - agent.store.clock.now_us()) / 1e6 <= 3600, "a restart does not begin it anew"
        agent.timers.ends = dict.fromkeys(agent.timers.ends, 1)  # its time has come
        agent.wake()
        await until(lambda: phase(world) == "1 running")
        ended = [n for n in world.control.document.notes() if n.kind == "ended"]
        assert [n.body["note"] for n in ended] == [f"{n.author}/{n.seq}" for n in world.control.document.notes()[:1]]
        await until(lambda: not agent.timers.ends)
        assert not await agent.store.timers()


@with_control
async def test_a_central_pause_for_some_time_begins_when_the_node_has_it(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY))
        await until(lambda: phase(world) == "1 running")
        await world.control.note("pause", "press", for_s=1.0)
        await until(lambda: agent.timers.ends)
        await until(lambda: code(world) == "paused")
        await until(lambda: phase(world) == "1 running")
        await world.control.note("pause", "press")
        await until(lambda: phase(world) == "1 paused")
        assert world.control.document.reported()["press"].reason == "paused centrally by bob: seen"
        await do(world, "resume", "we need it", pipeline="press")
        await until(lambda: phase(world) == "1 running")


@with_control
async def test_a_pin_keeps_the_version_that_runs_and_one_that_is_here_can_be_pinned(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY))
        await until(lambda: phase(world) == "1 running")
        await do(world, "pin", "works well", pipeline="press", number=None)
        await world.control.assign(version(READY, {"commits": 1}, number=2))
        await until(lambda: agent.record.manifest.generation == 2)
        await until(lambda: code(world) == "pinned")
        reported = world.control.document.reported()["press"]
        assert (reported.number, reported.phase) == (1, "running")
        assert reported.reason == "version 1 is pinned on site by eve: works well"
        assert "version 9 is not on this node" in await refused(world, "pin", pipeline="press", number=9)
        assert "no such pipeline" in await refused(world, "pin", pipeline="oven", number=1)
        await do(world, "unpin", pipeline="press")
        await until(lambda: phase(world) == "2 running" and code(world) == "")
        assert "not pinned" in await refused(world, "unpin", pipeline="press")
        assert (await do(world, "pin", pipeline="press", number=1))[0].endswith("the centre offers version 2, which waits")
        await until(lambda: phase(world) == "1 running")
        await world.control.assign()
        await until(lambda: phase(world) == "1 stopped", "what the manifest leaves out no pin keeps alive")


@with_control
async def test_i5_the_later_word_wins_by_what_its_author_had_seen(world: World) -> None:
    """Apart, both sides pin; the site is nearer; who has seen the other's note may overrule it."""
    control = world.control
    async with world.agent() as agent:
        for number in (1, 2):
            await control.assign(version(READY, {"stats": {"n": number}}, number=number))
            await until(lambda number=number: phase(world) == f"{number} running")
        digests = {number: digest for digest, number in await agent.store.versions()}
        world.broker.kill()
        await do(world, "pin", "on site", pipeline="press", number=2)
        await control.note("pin", "press", digest=digests[1], number=1)
        world.broker.start()
        await until(lambda: len(agent.record.document.notes()) == len(control.document.notes()) == 2)
        await until(lambda: phase(world) == "2 running")
        [note] = (await ask(world, "GET", "/status"))["notes"]
        assert (note["by"], note["beats"]["by"]) == ("eve", "bob"), "the loser stays visible"
        await control.note("pin", "press", digest=digests[1], number=1)
        await until(lambda: phase(world) == "1 running")
        await do(world, "unpin", pipeline="press")
        await until(lambda: phase(world) == "2 running")


@with_control
async def test_local_labels_reach_pipelines_and_the_centre(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"tell_labels": 1}))
        await until(lambda: phase(world) == "1 running")
        assert await do(world, "label", labels={"line": "4"}) == ["label local.line: not set -> 4; pipelines start anew"]
        await until(lambda: _stats(agent).get("labels") == {"local.line": "4"})
        await until(lambda: [n.kind for n in world.control.document.notes()] == ["label"])
        assert "is not a label" in await refused(world, "label", labels={"line": "a b"})
        assert "there is no label local.spare" in await refused(world, "label", labels={"spare": None})
        await do(world, "label", labels={"line": None})
        await until(lambda: _stats(agent).get("labels") == {})


@with_control
async def test_a_parameter_for_some_time_falls_back_and_a_locked_one_is_refused(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY), limit=Setting(7, "deployment", generation=1))
        await until(lambda: phase(world) == "1 running")
        assert (await do(world, "set", pipeline="press", values={"limit": "9"}, for_s=1.5))[0].endswith("9 (on-site) for 2s")
        await until(lambda: world.control.document.reported()["press"].params == {"limit": 9})
        await until(lambda: world.control.document.reported()["press"].params == {"limit": 7})
        await world.control.assign(version(READY), limit=Setting(7, "rule:1", generation=2, by="ann", locked=True))
        await until(lambda: agent.record.manifest.generation == 2)
        assert "locked at 7 by ann" in await refused(world, "set", pipeline="press", values={"limit": "9"})
        assert "no parameter speed" in await refused(world, "set", pipeline="press", values={"speed": "9"})
        assert "not a request" in await refused(world, "pause", pipeline="press", for_s="8h")


@with_control
async def test_shelves_need_a_reason_and_a_time_and_end_by_themselves(world: World) -> None:
    trigger = "triggers:\n  hot: {over: 10s, when: count(*) > 5}\n"
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"raise": "i1"}, more=trigger))
        await until(lambda: _open(agent, 1))
        assert "a duration and a reason" in await refused(world, "shelve", subject="press/hot", for_s=60)
        assert "it has no trigger cold" in await refused(world, "shelve", "welding", subject="press/cold", for_s=60)
        await do(world, "shelve", "welding", subject="press/hot", for_s=3600)
        await do(world, "shelve", "known", subject="i1", for_s=3600)
        await until(lambda: _stats(agent).get("shelves") == {"hot": [True, "eve", "welding"], "i1": [True, "eve", "known"]})
        assert await held(world) == ["shelve i1 eve", "shelve press/hot eve"]
        await do(world, "unshelve", subject="press/hot")
        agent.timers.ends = dict.fromkeys(agent.timers.ends, 1)
        agent.wake()
        await until(lambda: _stats(agent).get("shelves") == {"hot": [False, "eve", ""], "i1": [False, "", "its time was over"]})
        assert "nothing that is shelved" in await refused(world, "unshelve", subject="i1")


@with_control
async def test_comments_are_for_everybody(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"raise": "i1"}))
        await until(lambda: _open(agent, 1))
        for subject in ("node", "press", "i1"):
            await do(world, "comment", subject=subject, text="the fan is new")
        await until(lambda: [n.subject for n in world.control.document.notes()] == ["", "press", "i1"])
        assert "no open incident" in await refused(world, "comment", subject="i9", text="?")


async def _is_paused(agent: Agent) -> bool:
    return agent.status_of("press").phase == "paused"


def _stats(agent: Agent) -> dict[str, Any]:
    keeper = agent.keepers.get("press")
    return keeper.host.stats if keeper and keeper.host else {}


async def _open(agent: Agent, count: int) -> bool:
    await asyncio.sleep(0)
    return len(await agent.store.incidents()) == count
