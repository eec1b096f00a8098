"""One pipeline over one file, from reading to the durable commit, as an agent does it; `python -m benchmarks.durable FILE DATA`.

Agent, fork server and runner are real; what is committed is confirmed at once, as receipts would, so the store does not grow.
Prints JSON: rows, CPU seconds of all processes from their start, wall seconds, peak memory of the runner.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from edge_agent.actions import Actions
from edge_agent.config import AgentConfig
from edge_agent.host import NodeInfo, PipelineHost, Services
from edge_agent.outbox import Mark
from edge_agent.policy import Policy
from edge_agent.secret_store import SecretStore
from edge_agent.store import Store
from edge_agent.supervisor import Supervisor
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact
from pipelines.contract.keys import Key
from pipelines.contract.spec import load_spec
from pipelines.contract.version import PipelineVersion

NODE = "bench"
DRAIN_BYTES = 16 * 1024 * 1024
SAMPLE_S = 0.2


async def run(text: str, data_dir: Path) -> dict[str, float]:
    started = time.perf_counter()
    version = PipelineVersion.of(load_spec(text))
    config = AgentConfig.load(data_dir)
    key = Key.from_entropy(bytes(32))
    config.data_dir.mkdir(parents=True, exist_ok=True)
    store = Store.open(config.data_dir, NODE, key, config.buffer_bytes)
    actions, policy = Actions(store, Policy.load(config.data_dir)), Policy.load(config.data_dir)
    supervisor = Supervisor(config.runner_memory_bytes)
    services = Services(store, supervisor, actions, policy, NodeInfo(NODE, NODE), config.data_dir, SecretStore(config.data_dir))
    await store.put_artifact(Artifact.sign(PIPELINE_VERSION, version.canonical, key), 0)
    host = PipelineHost(services, version, version.spec.defaults(), mode="until_eof")
    peak = [0]
    tasks = [asyncio.create_task(_confirm(store)), asyncio.create_task(_watch(host, peak))]
    outcome = await host.run()
    assert outcome.kind == "stopped", outcome
    for task in tasks:
        task.cancel()
    checkpoint = await store.checkpoint(version.pipeline)
    await actions.close()
    store.close()
    rows = sum(counts["read"] for counts in (checkpoint.ledger or {})["sources"].values())
    own = psutil.Process()
    cpu = sum(_cpu_s(process) for process in [own, *own.children(recursive=True)])
    wall = time.perf_counter() - started
    return {"rows": rows, "cpu_s": cpu, "wall_s": wall, "runner_peak_bytes": peak[0]}


def _cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


async def _confirm(store: Store) -> None:
    more = asyncio.Event()
    store.on_commit(more.set)
    while True:
        await more.wait()
        more.clear()
        while batch := await store.pending_segments(DRAIN_BYTES):
            await store.confirm([Mark(p.run, p.stream, p.seq, p.digest) for p in batch])


async def _watch(host: PipelineHost, peak: list[int]) -> None:
    while True:
        if host.pid:
            with suppress(psutil.Error):
                peak[0] = max(peak[0], psutil.Process(host.pid).memory_info().rss)
        await asyncio.sleep(SAMPLE_S)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Path(sys.argv[1]).read_text(), Path(sys.argv[2])))))
