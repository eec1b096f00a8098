"""The node judges what it runs and goes back by itself, with nobody in reach, through power cuts (I12)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from support import until
from world import READY, World, ask, phase, version, with_control

from edge_agent import gatekeeper
from edge_agent.agent import Agent
from edge_agent.gate import Book
from pipelines.contract.node_state import Gate, Reported, Setting
from pipelines.contract.version import PipelineVersion

pytestmark = pytest.mark.usefixtures("impatient")
SHORT = Gate(soak_s=0.5, crashes=1, memory_bytes=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatekeeper, "LOOK_S", 0.05)


def life(rows: int, rejected: int = 0, pace: Mapping[str, tuple[int, int]] | None = None, **reasons: int) -> dict[str, Any]:
    """What a runner says that it did."""
    told = {why.replace("_", " "): n for why, n in reasons.items()}
    return {"stats": {"life": {"rows": rows, "rejected": rejected, "pace": pace or {}, "reasons": told}}}


WELL = life(10_000, 20, {"0": (1_000, 100_000)})


def seen(world: World) -> Reported:
    return world.control.document.reported().get("press") or Reported("", 0, "")


def is_now(world: World, words: str) -> bool:
    """As the centre sees it: number, phase, code, gate."""
    now = world.control.document.reported().get("press")
    return now is not None and f"{now.number} {now.phase} {now.code} {now.gate}" == words


async def good_one(world: World, agent: Agent, *more: dict[str, Any]) -> PipelineVersion:
    """Version 1 runs and passes its gate."""
    world.control.gate = SHORT
    one = version(READY, WELL, *more)
    await world.control.assign(one)
    await until(lambda: is_now(world, "1 running  passed"))
    await until(lambda: agent.gatekeeper.book("press").good)
    return one


@with_control
async def test_a_version_that_crashes_is_rolled_back_offline_banned_and_not_started_again(world: World) -> None:
    async with world.agent() as agent:
        await good_one(world, agent, {"commits": 2})
        two = version({"ready": 1}, {"commits": 1}, {"die": 3}, number=2)
        await world.control.assign(two)
        await until(lambda: agent.keepers["press"].wanted_digest == two.digest)
        world.broker.kill()
        await until(lambda: agent.status_of("press").code == "banned" and agent.status_of("press").phase == "running")
        await until(lambda: agent.keepers["press"].version.number == 1 and agent.keepers["press"].is_ready)
        positions = (await agent.store.checkpoint("press")).positions["numbers"]
    async with world.agent() as agent:
        await until(lambda: agent.keepers and agent.keepers["press"].is_ready)
        assert (agent.keepers["press"].version.number, agent.keepers["press"].restarts) == (1, 0)
        assert (await agent.store.checkpoint("press")).positions["numbers"] >= positions, "it never moves back"
        world.broker.start()
        await until(lambda: is_now(world, "1 running banned passed"))
        reason = "version 2 failed its gate here: it ended by itself 2 times (limit 1): the runner exited with status 3"
        assert seen(world).reason == reason
        [ban] = seen(world).bans
        assert (ban.digest, ban.number, ban.params_digest, ban.lift) == (two.digest, 2, seen(world).params_digest, 0)
        await until(lambda: sorted(set(world.control.numbers())) == world.control.numbers())
        await world.control.assign(two)  # the centre offers it again: it is not taken
        await until(lambda: agent.record.manifest.generation == 3)
        await asyncio.sleep(0.3)
        assert agent.keepers["press"].version.number == 1
        world.control.lift = 1
        await world.control.assign(two)
        await until(lambda: is_now(world, "1 running banned passed") and seen(world).bans[0].lift == 1, "tried once more")


@with_control
async def test_a_ban_is_of_a_pair_other_parameters_are_tried(world: World) -> None:
    async with world.agent() as agent:
        await good_one(world, agent)
        two = version(READY, life(1000, 310, temp_is_text=310), number=2)
        await world.control.assign(two)
        await until(lambda: is_now(world, "1 running banned passed"))
        why = '31 % of 1,000 rows rejected (limit 5 % above version 1\'s 0.2 %): "temp is text" x 310'
        assert seen(world).reason == f"version 2 failed its gate here: {why}"
        await world.control.assign(two, limit=Setting(9, "rule:1", generation=3))
        await until(lambda: len(seen(world).bans) == 2, "judged with the other parameters, and failed again")
        status = await ask(world, "GET", "/status")
        assert [ban["number"] for ban in status["pipelines"][0]["bans"]] == [2, 2]


@with_control
async def test_memory_and_slowness_roll_back(world: World) -> None:
    async with world.agent() as agent:
        await good_one(world, agent)
        await world.control.assign(version(READY, life(1_000, 0, {"0": (1_000, 2_000_000)}), number=2))
        await until(lambda: is_now(world, "1 running banned passed"))
        assert "a row takes 20 times as long as with version 1" in seen(world).reason
        world.control.gate = Gate(soak_s=0.5, memory_bytes=1 << 20)
        await world.control.assign(version(READY, WELL, {"stats": {}}, number=3))
        await until(lambda: "version 3 failed its gate here: its runner holds" in seen(world).reason)
        assert [ban.number for ban in seen(world).bans] == [2, 3]


@with_control
async def test_a_failing_source_holds_the_gate_and_fails_nothing(world: World) -> None:
    async with world.agent() as agent:
        await good_one(world, agent)
        await world.control.assign(version(READY, {"trouble": "it is gone"}, life(1_000, 900), number=2))
        await until(lambda: is_now(world, "2 running gate_held held") and seen(world).reason == "source s: it is gone")
        await asyncio.sleep(0.8)
        trial = agent.gatekeeper.book("press").trial
        assert trial is not None and trial.soaked_us == 0, "that time does not count"
        await world.control.assign(version(READY, number=3))
        await until(lambda: is_now(world, "3 running gate_held held") and seen(world).reason == "no rows have come yet")
        status = (await ask(world, "GET", "/status"))["pipelines"][0]["gate"]
        assert (status["state"], status["why"]) == ("held", "no rows have come yet")


@with_control
async def test_soaking_survives_restarts_and_counts_what_ran(world: World) -> None:
    world.control.gate = Gate(soak_s=3600)
    async with world.agent() as agent:
        await world.control.assign(version(READY, WELL))
        await until(lambda: is_now(world, "1 running  soaking"))
        await until(lambda: (agent.gatekeeper.book("press").trial or Book()).soaked_us > 300_000)  # type: ignore[union-attr]
        await agent.gatekeeper._save("press", 0)
        soaked_us = agent.gatekeeper.book("press").trial.soaked_us  # type: ignore[union-attr]
    await asyncio.sleep(1)
    async with world.agent() as agent:
        await until(lambda: agent.keepers and agent.keepers["press"].is_ready)
        trial = agent.gatekeeper.book("press").trial
        assert trial is not None and soaked_us <= trial.soaked_us < soaked_us + 1_000_000


@with_control
async def test_a_first_version_that_crashes_is_tried_again_and_no_ban_is_pronounced(world: World) -> None:
    world.control.gate = SHORT
    async with world.agent() as agent:
        await world.control.assign(version({"die": 3}))
        await until(lambda: is_now(world, "1 failed failed failed"))
        restarts = agent.keepers["press"].restarts
        await until(lambda: agent.keepers["press"].restarts > restarts + 1)
        assert seen(world).bans == ()


@with_control
async def test_a_last_good_version_that_fails_too_is_failed_with_its_outbox(world: World) -> None:
    async with world.agent() as agent:
        await good_one(world, agent, {"commits": 2})
        world.broker.kill()
        await agent.store.commit("press", agent.keepers["press"].version.digest, 1, _rows())
        agent.keepers["press"].version.__dict__["canonical"] = version({"die": 4}).canonical  # the machine is not what it was
        agent.keepers["press"].host.kill()  # type: ignore[union-attr]  # it runs
        await until(lambda: agent.status_of("press").phase == "failed")
        assert agent.gatekeeper.book("press").bans == ()
        assert agent.gatekeeper.book("press").good is not None


@with_control
async def test_after_a_reboot_while_cut_the_last_good_version_runs_until_the_new_one_can_be_had(world: World) -> None:
    async with world.agent() as agent:
        await good_one(world, agent)
        two = version(READY, {"stats": {}}, WELL, number=2)
        kept = {}
        await world.control.assign(two, poke=False)
        kept[two.digest] = world.control.artifacts.pop(two.digest)
        await world.control.poke()
        await until(lambda: agent.record.manifest.generation == 2)
        await until(lambda: is_now(world, "1 running fetching passed"))
    world.broker.kill()
    async with world.agent() as agent:
        await until(lambda: agent.keepers and agent.keepers["press"].is_ready)
        assert agent.keepers["press"].version.number == 1
        world.control.artifacts |= kept
        world.broker.start()
        await until(lambda: is_now(world, "2 running  passed"))


@with_control
async def test_what_a_new_version_lacks_keeps_the_old_one_running(world: World) -> None:
    more = """
triggers:
  hot:
    over: 10s
    when: count(*) > $limit
    actions:
      on_raise:
        - webhook: {url: "http://${label:pager}/", headers: {key: "${secret:pager}"}}
"""
    newer = PipelineVersion(json.dumps({**json.loads(version(READY).canonical), "tidewire": 9}).encode(), 3)
    async with world.agent() as agent:
        await good_one(world, agent)
        await world.control.assign(version(READY, WELL, number=2, more=more))
        await until(lambda: is_now(world, "1 running label_missing passed"))
        world.control.labels = {"pager": "here"}
        await world.control.assign(version(READY, WELL, number=2, more=more))
        await until(lambda: is_now(world, "1 running secret_missing passed"))
        assert "tidewire-agent secret set pager" in seen(world).reason
        await world.control.assign(newer)
        await until(lambda: is_now(world, "1 running language passed"))
        assert "upgrade" in seen(world).reason
        await world.control.assign(version(READY, {"stats": {}}, number=4), limit=Setting(1000, "rule:1", generation=4))
        await until(lambda: is_now(world, "1 running param_invalid passed"))
        await world.control.assign(version({"fail_by": ["policy.yaml does not list it", "policy"]}, number=5))
        await until(lambda: is_now(world, "1 running policy passed"))
        assert seen(world).bans == (), "what its owner forbids is not the version's fault"
        assert agent.gatekeeper.book("press").good is not None


@with_control
async def test_the_last_good_version_is_never_dropped(world: World) -> None:
    async with world.agent() as agent:
        one = await good_one(world, agent)
        for number in (2, 3, 4):
            await world.control.assign(version(READY, {"commits": number}, number=number))
            await until(lambda number=number: phase(world) == f"{number} running")
        await agent.store.forget_artifacts([one.digest])
        assert await agent.store.artifact(one.digest) is not None
        assert {number for _, number in await agent.store.versions()} >= {1}


@with_control
async def test_a_first_version_that_lacks_something_says_what(world: World) -> None:
    text = "no such column"
    async with world.agent():
        await world.control.assign(version({"fail": text}))
        await until(lambda: seen(world).code == "failed" and text in seen(world).reason)
        bare = json.loads(version(READY).canonical)
        del bare["params"]["limit"]["default"]
        await world.control.assign(PipelineVersion(json.dumps(bare).encode(), 2))
        await until(lambda: seen(world).code == "param_missing")
        await world.control.assign(version({"ready": 1}, {"trouble": "it is gone"}, number=3))
        await until(lambda: is_now(world, "3 running troubled held"))


def _rows() -> Any:
    from edge_agent.outbox import Sealed
    from edge_agent.store import Commit

    return Commit({"numbers": 3}, {}, sealed=[Sealed("numbers", "rows", "numbers", 1, b"[2]")])
