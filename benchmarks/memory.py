"""What thirty runners on one machine cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.pipelines import ROWS, SPAN, pipeline
from benchmarks.report import Figure
from edge_agent.actions import Actions
from edge_agent.config import AgentConfig
from edge_agent.host import NodeInfo, PipelineHost, Services
from edge_agent.policy import Policy
from edge_agent.secret_store import SecretStore
from edge_agent.store import Store
from edge_agent.supervisor import Supervisor
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact
from pipelines.contract.keys import Key
from pipelines.contract.spec import load_spec
from pipelines.contract.version import PipelineVersion

RUNNERS = 30
SETTLE_S = 3.0
MB = 1e6


def measure(directory: Path) -> Iterator[Figure]:
    private, shared = asyncio.run(_start_all(directory))
    yield Figure(f"{RUNNERS} runners: private memory of one, at most", max(private) / MB, "MB", 30, "lower")
    yield Figure(f"{RUNNERS} runners: proportional memory of one, at most", max(shared) / MB, "MB")


async def _start_all(directory: Path) -> tuple[list[int], list[int]]:
    config = AgentConfig.load(directory / "thirty")
    config.data_dir.mkdir(parents=True, exist_ok=True)
    key = Key.from_entropy(bytes(32))
    store = Store.open(config.data_dir, "bench", key, config.buffer_bytes)
    policy = Policy.load(config.data_dir)
    actions = Actions(store, policy)
    node, secrets = NodeInfo("bench", "bench"), SecretStore(config.data_dir)
    services = Services(store, Supervisor(config.runner_memory_bytes), actions, policy, node, config.data_dir, secrets)
    hosts, ready = [], asyncio.Semaphore(0)
    for i in range(RUNNERS):
        source = directory / f"{i}.jsonl"
        source.write_bytes(b"")
        text = pipeline(SPAN, ROWS, path=str(source)).replace("pipeline: bench", f"pipeline: bench-{i}")
        version = PipelineVersion.of(load_spec(text))
        await store.put_artifact(Artifact.sign(PIPELINE_VERSION, version.canonical, key), 0)
        hosts.append(PipelineHost(services, version, {}, mode="follow", on_ready=ready.release))
    tasks = [asyncio.create_task(host.run()) for host in hosts]
    for _ in hosts:
        await ready.acquire()
    for i in range(RUNNERS):
        (directory / f"{i}.jsonl").write_text('{"ts": 1767225600000, "sensor": "a", "t": 1, "ok": true}\n')
    await asyncio.sleep(SETTLE_S)
    memory = [psutil.Process(host.pid).memory_full_info() for host in hosts]
    for host in hosts:
        await host.stop()
    await asyncio.gather(*tasks)
    await actions.close()
    store.close()
    return [m.uss for m in memory], [m.pss for m in memory]
