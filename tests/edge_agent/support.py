"""What the agent's tests share."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.actions import Actions
from edge_agent.host import NodeInfo, Services
from edge_agent.policy import Policy
from edge_agent.secret_store import SecretStore
from edge_agent.store import Store
from edge_agent.supervisor import Supervisor
from pipelines.contract.frames import canonical_json
from pipelines.contract.keys import Key
from pipelines.contract.version import PipelineVersion

NODE = "n1"


def new_key() -> Key:
    return Key.from_entropy(os.urandom(32))


def fake_version(*do: dict[str, Any], pipeline: str = "p", number: int = 1, **more: Any) -> PipelineVersion:
    """A version that only the fake runner can run."""
    return PipelineVersion(canonical_json({"pipeline": pipeline, "do": list(do), **more}), number)


@contextmanager
def open_store(data_dir: Path, key: Key | None = None, **options: Any) -> Iterator[Store]:
    store = Store.open(data_dir, NODE, key or new_key(), **options)
    try:
        yield store
    finally:
        store.close()


def services_for(store: Store, data_dir: Path, policy: Policy | None = None) -> Services:
    policy = policy or Policy()
    supervisor = Supervisor(entry="fake_runner:main", preload=[])
    return Services(
        store, supervisor, Actions(store, policy), policy, NodeInfo(NODE, "node-one"), data_dir, SecretStore(data_dir)
    )


async def until(condition: Callable[[], Any], what: str = "", timeout_s: float = 20) -> Any:
    """What `condition` returns (it may be a coroutine function) as soon as that is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        got = condition()
        if isinstance(got, Awaitable):
            got = await got
        if got:
            return got
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        await asyncio.sleep(0.02)


async def numbers_in_outbox(store: Store) -> list[int]:
    """Every number that is pending; checks the chain of each run on the way (I1)."""
    numbers: list[int] = []
    last: dict[tuple[str, str], tuple[int, str]] = {}
    while batch := await store.pending_segments(1 << 40, {position: seq for position, (seq, _) in last.items()}):
        for pending in batch:
            header = pending.header()
            seq, digest = last.get((pending.run, pending.stream), (0, ""))
            assert (header.first, header.previous) == (seq + 1, digest), "the chain is broken"
            last[pending.run, pending.stream] = (header.seq, pending.digest)
            numbers += json.loads(pending.payload()) if pending.payload() else []
    return numbers
