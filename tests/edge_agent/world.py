"""A node, a broker and a control plane for tests of the managed agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
from fake_control import FakeControl
from support import NODE, new_key

from edge_agent.agent import Agent
from edge_agent.config import AgentConfig, Identity
from edge_agent.link import Login, NatsLink
from edge_agent.local_api import SOCKET
from edge_agent.policy import Policy
from edge_agent.store import Store
from edge_agent.supervisor import Supervisor
from pipelines.contract import subjects
from pipelines.contract.spec import load_spec
from pipelines.contract.version import PipelineVersion
from tests.nats_broker import Broker


class World:
    """A node's directory, a broker, a control plane; agents are started and stopped in it."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder, self.broker, self.key = folder, broker, new_key()
        self.control = FakeControl(NODE, self.key.public)
        self.identity = Identity(
            node=NODE,
            name="one",
            seed=self.key.seed,
            user_jwt="",
            control=self.control.key.public,
            author=self.control.author.public,
            url=broker.url,
        )

    @contextlib.asynccontextmanager
    async def agent(self, **settings: Any) -> AsyncIterator[Agent]:
        rhythm: dict[str, Any] = {"heartbeat_s": 0.3, "exchange_s": 0.5, "request_timeout_s": 1.0, "commit_s": 1.0}
        config = AgentConfig(data_dir=self.folder / "node", **rhythm, **settings)
        store = Store.open(config.data_dir, NODE, self.key, config.buffer_bytes)
        link = NatsLink(Login(self.broker.url, subjects.inbox(NODE)))
        supervisor = Supervisor(entry="fake_runner:main", preload=[])
        agent = Agent(config, self.identity, store, link, supervisor=supervisor, policy=Policy())
        running = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            agent.stop()
            await asyncio.wait_for(running, 20)
            store.close()


def with_control(test: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[World], None]:
    async def go(world: World) -> None:
        await world.control.serve(world.broker)
        try:
            await test(world)
        finally:
            await world.control.close()

    def run(world: World) -> None:
        asyncio.run(asyncio.wait_for(go(world), 60))

    run.__name__ = test.__name__
    return run


def version(*do: dict[str, Any], number: int = 1, pipeline: str = "press", more: str = "") -> PipelineVersion:
    """A version that a real agent can read and the fake runner can run: its script is in the description."""
    text = f"""
tidewire: 1
pipeline: {pipeline}
description: {json.dumps(json.dumps(do))}
params:
  limit: {{type: integer, default: 5, min: 0, max: 100}}
sources:
  s:
    simulate: {{}}
schema:
  ts: {{type: timestamp, event_time: true}}
sinks:
  numbers: {{lake: {{table: numbers}}}}
{more}
"""
    return PipelineVersion.of(load_spec(text), number)


READY = {"ready": 1}


def phase(world: World, pipeline: str = "press") -> str:
    """As the control plane sees it."""
    reported = world.control.document.reported().get(pipeline)
    return f"{reported.number} {reported.phase}" if reported else ""


async def ask(world: World, method: str, path: str, **body: Any) -> Any:
    transport = httpx.AsyncHTTPTransport(uds=str(world.folder / "node" / SOCKET))
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
        return (await client.request(method, path, json=body or None)).json()
