"""One runner process under the agent's half of the protocol."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support import fake_version, numbers_in_outbox, open_store, services_for, until

from edge_agent import host as host_module
from edge_agent.host import Outcome, PipelineHost, Services
from edge_agent.store import Store


def run_to_end(tmp_path: Path, *do: dict[str, object]) -> tuple[Outcome, list[int]]:
    async def go(store: Store) -> tuple[Outcome, list[int]]:
        outcome = await PipelineHost(services_for(store, tmp_path), fake_version(*do), {}).run()
        return outcome, await numbers_in_outbox(store)

    with open_store(tmp_path) as store:
        return asyncio.run(go(store))


def test_i1_a_run_to_the_end_leaves_every_committed_row_in_the_outbox(tmp_path: Path) -> None:
    outcome, numbers = run_to_end(tmp_path, {"ready": 1}, {"commits": 50}, {"stop": 1})
    assert (outcome.kind, numbers) == ("stopped", list(range(50)))


def test_a_runner_that_says_why_it_failed_is_failed(tmp_path: Path) -> None:
    outcome, _ = run_to_end(tmp_path, {"fail": "no such column"})
    assert (outcome.kind, outcome.reason, outcome.hint) == ("failed", "no such column", "mend it")


def test_i11_a_runner_that_exits_or_talks_nonsense_ends_only_itself(tmp_path: Path) -> None:
    assert run_to_end(tmp_path, {"die": 3})[0] == Outcome("died", "the runner exited with status 3")
    assert run_to_end(tmp_path, {"garbage": 1})[0].kind == "failed"


def test_i11_a_runner_that_hangs_is_killed_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "LOOK_S", 0.05)
    outcome, numbers = run_to_end(tmp_path, {"ready": 1}, {"commits": 3}, {"hang": 1})
    assert (outcome.kind, numbers) == ("failed", [0, 1, 2])
    assert outcome.reason == "the runner gave no sign of life for 0.6 s and was killed"


def test_a_runner_that_speaks_now_and_then_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "LOOK_S", 0.05)
    speaking = [{"sleep": 0.3}, {"stats": {}}] * 4
    assert run_to_end(tmp_path, {"ready": 1}, *speaking, {"stop": 1})[0].kind == "stopped"


def test_a_restart_resumes_where_the_last_commit_stood(tmp_path: Path) -> None:
    version = fake_version({"ready": 1}, {"commits": 3}, {"die": 1})

    async def go(services: Services) -> list[int]:
        for _ in range(3):
            assert (await PipelineHost(services, version, {}).run()).kind == "died"
        checkpoint = await services.store.checkpoint("p")
        assert checkpoint.positions == {"numbers": 9}
        assert checkpoint.state == {"last": b"9"}
        assert checkpoint.digest == version.digest
        return await numbers_in_outbox(services.store)

    with open_store(tmp_path) as store:
        assert asyncio.run(go(services_for(store, tmp_path))) == list(range(9))


def test_params_stats_and_stop_reach_a_running_runner(tmp_path: Path) -> None:
    async def go(services: Services) -> None:
        host = PipelineHost(services, fake_version(), {"limit": 1})
        running = asyncio.create_task(host.run())
        await until(lambda: host.is_ready)
        await host.set_params({"limit": 2})
        await until(lambda: host.stats == {"params": {"limit": 2}})
        await host.stop()
        assert (await running).kind == "stopped"

    with open_store(tmp_path) as store:
        asyncio.run(go(services_for(store, tmp_path)))


def test_an_incident_is_open_from_raise_and_acknowledged_through_the_runner(tmp_path: Path) -> None:
    async def go(services: Services) -> None:
        host = PipelineHost(services, fake_version({"ready": 1}, {"raise": "i1"}), {})
        running = asyncio.create_task(host.run())
        [incident] = await until(services.store.incidents)
        assert (incident["incident"], incident["pipeline"], incident["acknowledged"]) == ("i1", "p", False)
        await host.tell("acknowledge", "i1", by="ann", reason="seen", at="now")
        await until(lambda: _acknowledged(services.store))
        await host.stop()
        await running

    async def _acknowledged(store: Store) -> bool:
        return all(incident["acknowledged"] for incident in await store.incidents())

    with open_store(tmp_path) as store:
        asyncio.run(go(services_for(store, tmp_path)))
