"""The managed agent against a control plane that comes, goes, forgets and lies."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from support import NODE, new_key, until
from world import READY, World, ask, phase, version, with_control

from edge_agent.agent import Agent
from edge_agent.flapping import BURST
from edge_agent.keeper import Status
from edge_agent.local_api import SOCKET
from edge_agent.secret_store import SecretStore
from pipelines.contract.node_state import Manifest, Setting, SignedManifest

pytestmark = pytest.mark.usefixtures("impatient")


@with_control
async def test_a_deployed_version_runs_and_its_rows_reach_the_lake_once(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"commits": 60}))
        await until(lambda: phase(world) == "1 running")
        await until(lambda: world.control.numbers() == list(range(60)))
        await until(lambda: _drained(agent))
        await until(lambda: world.control.heartbeats and world.control.heartbeats[-1].generation == 1)


@with_control
async def test_replace_drains_the_old_version_then_runs_the_new_and_removal_stops_it(world: World) -> None:
    async with world.agent():
        await world.control.assign(version(READY, {"commits": 2}))
        await until(lambda: world.control.numbers() == [0, 1])
        await world.control.assign(version(READY, {"commits": 2}, {"stats": {}}, number=2))
        await until(lambda: phase(world) == "2 running")
        await until(lambda: world.control.numbers() == [0, 1, 2, 3, 4])  # 2 is the drain's
        versions = [s.header.number for run in world.control.lake.values() for s in run]
        assert versions == [1, 1, 1, 2, 2]
        await world.control.assign()
        await until(lambda: phase(world) == "2 stopped")


@with_control
async def test_i12_an_agent_boots_and_runs_with_nobody_in_reach(world: World) -> None:
    async with world.agent():
        await world.control.assign(version(READY, {"commits": 2}))
        await until(lambda: len(world.control.numbers()) == 2)
    world.broker.kill()
    async with world.agent() as agent:
        await until(lambda: agent.keepers and agent.keepers["press"].is_ready)
        await until(lambda: _has_pending(agent, 2))
        world.broker.start()
        await until(lambda: world.control.numbers() == [0, 1, 2, 3])


@with_control
async def test_i2_silence_and_busy_double_nothing_and_lose_nothing(world: World) -> None:
    control = world.control
    control.busy, control.mute = 2, 1
    async with world.agent() as agent:
        await control.assign(version(READY, {"commits": 30}))
        await until(lambda: control.numbers() == list(range(30)))
        await until(lambda: _drained(agent))
        assert (control.busy, control.mute) == (0, 0)
        assert "ask" in control.requests, "after silence it asks, it does not resend blindly"
        assert sum(int(request[5:]) for request in control.requests if request != "ask") <= 30 + 2 * 30, "busy costs a resend"


@with_control
async def test_i2_a_broker_killed_again_and_again_changes_nothing(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"commits": 400}))
        for _ in range(3):
            await until(lambda: agent.link.is_up)
            world.broker.kill()
            world.broker.start()
        await until(lambda: len(world.control.numbers()) >= 400, timeout_s=40)
        assert world.control.numbers() == list(range(400))


@with_control
async def test_i13_an_unsigned_foreign_or_older_manifest_is_not_obeyed(world: World) -> None:
    control = world.control
    async with world.agent() as agent:
        await control.assign(version(READY))
        await until(lambda: phase(world) == "1 running")
        for manifest, key in [
            (Manifest(NODE, 1, 9), new_key()),
            (Manifest("n2", 1, 9), control.key),
            (Manifest(NODE, 1, 0), control.key),
        ]:
            control.manifest, control._order = SignedManifest.sign(manifest, key), (1, 9)
            before = agent.sync.trouble
            await control.poke()
            if manifest.generation:
                await until(lambda before=before: agent.sync.trouble not in ("", before))
        await asyncio.sleep(0.3)
        assert list(agent.keepers) == ["press"]
        assert agent.record.manifest.order == (1, 1)


@with_control
async def test_i13_a_version_without_the_authors_signature_is_not_run(world: World) -> None:
    wanted = version(READY)
    world.control.author = new_key()  # not the one that the identity names
    async with world.agent() as agent:
        await world.control.assign(wanted)
        await until(lambda: "signature" in agent.status_of("press").reason)
        assert not agent.keepers
        await until(lambda: phase(world) == "1 pending")


@with_control
async def test_parameters_fold_centre_and_site_and_reach_the_runner(world: World) -> None:
    one = version(READY)
    async with world.agent() as agent:
        await world.control.assign(one, limit=Setting(7, "deployment", generation=1))
        await until(lambda: phase(world) == "1 running")
        who = {"by": "eve", "reason": "hot day", "dry_run": False}
        refused = await ask(world, "POST", "/set", pipeline="press", values={"limit": "101"}, **who)
        assert "above the maximum" in refused["error"]
        done = await ask(world, "POST", "/set", pipeline="press", values={"limit": "9"}, **who)
        assert done["done"] == ["press limit: 7 (deployment) -> 9 (on-site)"]
        await until(lambda: _reported_params(world) == {"limit": 9})
        [press] = (await ask(world, "GET", "/status"))["pipelines"]
        assert press["params"]["limit"] | {"losing": press["params"]["limit"]["losing"]} == {
            "value": 9, "origin": "on-site", "by": "eve", "reason": "hot day", "losing": [["deployment", 7], ["default", 5]],
        }  # fmt: skip
        assert press["counts"]["params"] == {"limit": 9}, "the runner got it"
        await world.control.assign(one, limit=Setting(3, "rule:1", generation=2, force=True))
        await until(lambda: _reported_params(world) == {"limit": 3})
        await world.control.assign(one, limit=Setting(3, "rule:1", generation=2))
        await until(lambda: _reported_params(world) == {"limit": 9})
        await ask(world, "POST", "/unset", pipeline="press", names=["limit"], **who)
        await until(lambda: _reported_params(world) == {"limit": 3})
        assert agent.keepers["press"].restarts == 0


@with_control
async def test_an_incident_is_acknowledged_from_the_centre_and_on_site(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"raise": "i1"}, {"raise": "i2"}))
        await until(lambda: _open_incidents(agent, 2))
        await world.control.acknowledge("i1")
        await until(lambda: _acknowledged(agent, {"i1"}))
        who = {"by": "eve", "reason": "", "dry_run": False}
        assert "no open incident" in (await ask(world, "POST", "/ack", incident="i9", **who))["error"]
        await ask(world, "POST", "/ack", incident="i2", **who)
        await until(lambda: _acknowledged(agent, {"i1", "i2"}))
        notes = {note.subject: note.by for note in agent.record.document.notes()}
        assert notes == {"i1": "bob", "i2": "eve"}


ACTION = """
triggers:
  hot:
    over: 10s
    when: count(*) > $limit
    actions:
      on_raise:
        - webhook: {url: "http://${label:pager}/", headers: {key: "${secret:pager}"}}
"""


@with_control
async def test_a_pipeline_waits_for_its_labels_and_secrets_and_says_so_at_the_centre(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, more=ACTION))
        await until(lambda: "label pager is not set on this node" in _reason(world))
        world.control.labels = {"pager": "localhost"}
        await world.control.assign(version(READY, more=ACTION))
        await until(lambda: "(on the node: tidewire-agent secret set pager)" in _reason(world))
        SecretStore(agent.config.data_dir).put("pager", "s3cret")
        await ask(world, "POST", "/look", now=True)
        await until(lambda: phase(world) == "1 running")
        SecretStore(agent.config.data_dir).remove("pager")
        await ask(world, "POST", "/look", now=True)
        await until(lambda: phase(world) == "1 failed")
        status = json.dumps(await ask(world, "GET", "/status"))
        assert "s3cret" not in status and "secret set pager" in status


def _reason(world: World) -> str:
    reported = world.control.document.reported().get("press")
    return reported.reason if reported else ""


@with_control
async def test_what_was_acknowledged_once_does_not_acknowledge_the_next_raise(world: World) -> None:
    again = {"state": "active", "acknowledged": False}
    async with world.agent() as agent:
        do = version(READY, {"raise": "i1"}, {"await": "acknowledge"}, {"say": ["i1", "raised_again", again]})
        await world.control.assign(do)
        await until(lambda: _open_incidents(agent, 1))
        await world.control.acknowledge("i1")
        await until(lambda: _said(agent, "raised_again"))
        agent.keepers["press"].host.kill()  # type: ignore[union-attr]  # it runs
        await until(lambda: agent.keepers["press"].restarts == 1 and agent.keepers["press"].is_ready)
        await until(lambda: _said(agent, "raised"))  # the script from the start
        await asyncio.sleep(0.3)
        assert not (await agent.store.incidents())[0]["acknowledged"]


@with_control
async def test_a_latched_incident_is_reset_on_site_and_only_then(world: World) -> None:
    latched = {"state": "active", "flags": "latched"}
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"raise": "i1"}, {"await": "acknowledge"}, {"say": ["i1", "latched", latched]}))
        await until(lambda: _open_incidents(agent, 1))
        who = {"by": "eve", "reason": "", "dry_run": False}
        assert "not latched" in (await ask(world, "POST", "/reset", incident="i1", **who))["error"]
        assert "no incident" in (await ask(world, "POST", "/reset", incident="i9", **who))["error"]
        await world.control.acknowledge("i1")
        await until(lambda: _said(agent, "latched"))
        assert (await ask(world, "POST", "/reset", incident="t", **who))["done"] == ["press/t i1: reset; hot"]
        await until(lambda: _open_incidents(agent, 0))


@with_control
async def test_i7_a_runner_holds_what_is_shelved_whatever_was_missed(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY, {"tell_shelves": 1}, {"raise": "i1"}))
        await until(lambda: _open_incidents(agent, 1))
        shelved = {"hot": [True, "bob", "seen"], "i1": [True, "eve", "known"]}
        await world.control.note("shelve", "press/hot", for_s=3600)
        await world.control.note("shelve", "other/hot", for_s=3600)
        note = await agent.record.add_note("shelve", "i1", {"for_s": 60}, by="eve", reason="known")
        await until(lambda: _shelves(agent) == shelved)
        agent.keepers["press"].host.kill()  # type: ignore[union-attr]  # it runs
        await until(lambda: agent.keepers["press"].restarts == 1 and agent.keepers["press"].is_ready)
        await until(lambda: _shelves(agent) == shelved)
    async with world.agent() as agent:
        await until(lambda: agent.keepers and _shelves(agent) == shelved)
        host = agent.keepers["press"].host
        assert host and "told_later" not in host.stats, "it must know before its first row"
        await agent.record.add_note("ended", "i1", {"note": note.name}, by="", reason="")
        await world.control.note("unshelve", "press/hot")
        await until(lambda: _shelves(agent) == {"hot": [False, "bob", "seen"], "i1": [False, "", "its time was over"]})


def _shelves(agent: Agent) -> Any:
    host = agent.keepers["press"].host
    return host.stats.get("shelves") if host else None


async def _said(agent: Agent, transition: str) -> bool:
    return [i["transition"] for i in await agent.store.incidents()] == [transition]


@with_control
async def test_i11_a_crashing_pipeline_is_reported_and_its_sibling_goes_on(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version({"die": 3}), version(READY, {"commits": 5}, pipeline="calm"))
        await until(lambda: phase(world) == "1 failed")
        assert "status 3" in world.control.document.reported()["press"].reason
        await until(lambda: phase(world, "calm") == "1 running")
        await until(lambda: len(world.control.numbers()) == 5)
        assert agent.keepers["calm"].restarts == 0
        await until(lambda: world.control.document.reported()["press"].gate == "failed")
        told = set[str]()
        agent.record.on_change(lambda: told.add(agent.record.document.values()["reported/pipeline/press"]))
        deaths = agent.keepers["press"].restarts
        await until(lambda: agent.keepers["press"].restarts >= deaths + 2)
        assert len(told) <= 1, "crash after crash must not grow the document (I9)"


@with_control
async def test_a_missing_parameter_or_a_failed_start_is_state_and_not_a_crash(world: World) -> None:
    async with world.agent():
        await world.control.assign(version(READY), limit=Setting(1000, "rule:1"))
        await until(lambda: phase(world) == "1 failed")
        assert "above the maximum" in world.control.document.reported()["press"].reason
        await world.control.assign(version({"fail": "no such column"}))
        await until(lambda: "no such column" in world.control.document.reported()["press"].reason)


@with_control
async def test_i6_i7_with_every_hint_lost_the_node_still_converges(world: World) -> None:
    async with world.agent() as agent:
        await until(lambda: agent.sync.last_exchange)
        await world.control.assign(version(READY), poke=False)
        await until(lambda: phase(world) == "1 running")
        await until(lambda: agent.record.document.digest() == world.control.document.digest())


@with_control
async def test_the_local_api_is_for_the_owner_only(world: World) -> None:
    async with world.agent():
        path = world.folder / "node" / SOCKET
        await until(path.exists)
        assert oct(os.stat(path).st_mode & 0o777) == "0o600"
    assert not path.exists()


@with_control
async def test_a_running_pipeline_learns_that_the_nodes_labels_changed(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY))
        await until(lambda: phase(world) == "1 running")
        pid = agent.keepers["press"].pid
        world.control.labels = {"site": "oslo"}
        await world.control.assign(version(READY))
        await until(lambda: agent.keepers["press"].pid not in (0, pid) and agent.keepers["press"].is_ready)
        assert agent.keepers["press"].labels == {"site": "oslo"}


@with_control
async def test_i9_a_flapping_pipeline_does_not_fill_the_document(world: World) -> None:
    async with world.agent() as agent:
        await world.control.assign(version(READY))
        await until(lambda: phase(world) == "1 running")
        writes = 0
        for n in range(60):
            before = agent.record.document.digest()
            agent.keepers["press"].status = Status("pending" if n % 2 else "running", since=str(n))
            await agent._settle()
            writes += agent.record.document.digest() != before
        assert 0 < writes <= BURST
        await world.control.assign(version(READY, {"commits": 1}, number=2))
        await until(lambda: phase(world) == "2 running", "the version that mends it is reported at once")


async def _drained(agent: Agent) -> bool:
    return (await agent.store.backlog()).segments == 0


async def _has_pending(agent: Agent, rows: int) -> bool:
    return (await agent.store.backlog()).rows == rows


def _reported_params(world: World) -> object:
    return world.control.document.reported()["press"].params


async def _open_incidents(agent: Agent, count: int) -> bool:
    return len(await agent.store.incidents()) == count


async def _acknowledged(agent: Agent, names: set[str]) -> bool:
    return {i["incident"] for i in await agent.store.incidents() if i["acknowledged"]} == names
