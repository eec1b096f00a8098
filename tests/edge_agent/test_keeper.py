"""What a pipeline's keeper does when its version changes or its runner cannot be fed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support import fake_version, open_store, services_for, until

from edge_agent import wire
from edge_agent.host import Services
from edge_agent.keeper import Keeper, Params
from edge_agent.store import Commit
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact
from pipelines.contract.node_state import params_digest
from pipelines.contract.version import PipelineVersion

READY = {"ready": 1}


def with_services(tmp_path: Path, test: Callable[[Services], Awaitable[None]]) -> None:
    async def go(services: Services) -> None:
        async with asyncio.timeout(30):
            await test(services)

    with open_store(tmp_path) as store:
        asyncio.run(go(services_for(store, tmp_path)))


async def change(services: Services, old: PipelineVersion, new: PipelineVersion, before: Params, after: Params) -> Keeper:
    """Run `old` until it committed twice, then replace it; when `new` is ready, end."""
    await services.store.put_artifact(Artifact(PIPELINE_VERSION, old.canonical, b""), old.number)
    keeper = Keeper(services, old, before, lambda: None)
    running = asyncio.create_task(keeper.run())

    async def has_committed() -> bool:
        return (await services.store.checkpoint("p")).positions == {"numbers": 2}

    await until(has_committed)
    await keeper.replace(new, after, services)
    await until(lambda: keeper.version is new and keeper.status.phase == "running")
    status = keeper.status
    await keeper.suspend()
    await running
    keeper.status = status
    return keeper


def test_a_version_is_drained_with_the_parameters_it_had(tmp_path: Path) -> None:
    async def test(services: Services) -> None:
        before: Params = {"limit_c": 99.0}
        old, new = fake_version(READY, {"commits": 2}), fake_version(READY, number=2)
        keeper = await change(services, old, new, before, {"limit": 5})
        headers = [pending.header() for pending in await services.store.pending_segments(1 << 30)]
        assert [header.params for header in headers] == [params_digest(before)] * 3, "two commits, and the drain's"
        assert keeper.status.reason == ""

    with_services(tmp_path, test)


def test_a_drain_that_fails_for_good_is_told(tmp_path: Path) -> None:
    async def test(services: Services) -> None:
        old, new = fake_version(READY, {"commits": 2}, drain="it does not compile"), fake_version(READY, number=2)
        keeper = await change(services, old, new, {}, {})
        assert keeper.status.reason == "1 parts of the state of version 1 may be lost: it does not compile"
        assert (await services.store.checkpoint("p")).digest == new.digest

    with_services(tmp_path, test)


def test_i11_a_state_that_no_frame_takes_fails_its_pipeline_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 10 << 20)

    async def test(services: Services) -> None:
        await services.store.checkpoint("p")
        for n in range(2):
            await services.store.commit("p", "", 1, Commit({}, {}, state_set={f"k{n}": os.urandom(14 << 20)}))
        keeper = Keeper(services, fake_version(READY), {}, lambda: None)
        running = asyncio.create_task(keeper.run())
        await until(lambda: keeper.status.phase == "failed")
        assert "MiB" in keeper.status.reason
        assert not running.done()
        await keeper.suspend()
        await running

    with_services(tmp_path, test)
