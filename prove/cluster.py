"""A real control plane with its broker, and real agents, as processes on free loopback ports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from control_plane.client import Client
from control_plane.demo import processes
from control_plane.demo.processes import AGENT, CONTROL, Program
from control_plane.demo.proxy import free_port
from pipelines.contract.errors import TidewireError
from prove.link import FaultyLink

_LOOK_FIRST_S, _LOOK_MAX_S = 0.03, 0.3  # a look costs CPU on both sides: what takes long is looked at seldom


class Cluster:
    """One control plane and its nodes, below `home`. They reach it through `link`, which can be cut.

    `rhythm` is agent.yaml, `options` are of `tidewire up`.
    """

    def __init__(self, home: Path, rhythm: str = "commit_s: 1\n", options: Sequence[str] = ()) -> None:
        self.home, self.link, self._rhythm, self._options = home, FaultyLink(), rhythm, options
        self.env = processes.environment(TIDEWIRE_HOME=str(home / "control"), TIDEWIRE_USER="tester")
        self.server: Program | None = None
        self.agents: dict[str, Program] = {}

    @property
    def lake(self) -> Path:
        return self.home / "control" / "lake"

    @property
    def client(self) -> Client:
        return Client(self.home / "control")

    async def open(self) -> None:
        dialled = await self.link.open()
        self.link.target_port = free_port()
        ports = ("--api-port", str(free_port()), "--nats-port", str(self.link.target_port))
        dials = ("--public-url", f"nats://127.0.0.1:{dialled}")
        args = processes.module_command(CONTROL, "up", *ports, *dials, *self._options)
        self.server = Program("control plane", args, self.home, self.home / "control.log", self.env)
        await self.start_server()

    async def start_server(self) -> None:
        assert self.server is not None
        await self.server.start()
        await eventually("the control plane to answer", self.is_up)

    async def is_up(self) -> bool:
        try:
            await asyncio.to_thread(self.client.get, "/v1/health")
        except TidewireError:
            return False
        return True

    async def add_node(self, name: str, *, policy: str = "", **labels: str) -> Path:
        """Join and start a node; its working directory, where its pipelines' relative paths lead. `policy` is its policy.yaml."""
        directory = self.home / name
        directory.mkdir(exist_ok=True)
        words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        token = (await self.tidewire("join-token", "create", *words)).strip().splitlines()[-1]
        await self.agent(name, "join", token, "--name", name)
        (directory / "agent" / "agent.yaml").write_text(self._rhythm)
        if policy:
            (directory / "agent" / "policy.yaml").write_text(policy)
        args = processes.module_command(AGENT, "run", "--data-dir", str(directory / "agent"))
        self.agents[name] = Program(name, args, directory, directory / "agent.log", self.env)
        await self.agents[name].start()
        return directory

    def node_id(self, name: str) -> str:
        return str(json.loads((self.home / name / "agent" / "identity.json").read_text())["node"])

    async def tidewire(self, *words: str) -> str:
        return await processes.call(CONTROL, *words, cwd=self.home, env=self.env)

    async def agent(self, name: str, *words: str) -> str:
        data_dir = self.home / name / "agent"
        return await processes.call(AGENT, *words, "--data-dir", str(data_dir), cwd=self.home / name, env=self.env)

    async def status(self, name: str) -> dict[str, Any]:
        """What the agent says of itself; {} while it does not answer."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.home / name / "agent" / "agent.sock"))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://agent", timeout=5) as client:
                return dict((await client.get("/status")).json())
        except (httpx.HTTPError, ValueError):
            return {}

    async def node(self, name: str) -> dict[str, Any]:
        """What the control plane says of a node; {} while it does not answer."""
        try:
            return dict(await asyncio.to_thread(self.client.get, f"/v1/nodes/{name}"))
        except TidewireError:
            return {}

    async def has_converged(self) -> bool:
        """Every node does what it should, and nothing waits on any (I6)."""
        for name in self.agents:
            status, seen = await self.status(name), await self.node(name)
            if not seen.get("converged") or status.get("backlog", {}).get("segments", 1):
                return False
        return True

    def counts(self, table: str, column: str = "n") -> Counter[Any]:
        """How often each value of a column stands in a lake table, read as any other program would."""
        try:
            files = DeltaTable(str(self.lake / table)).file_uris()
        except TableNotFoundError:
            return Counter()
        return Counter(v for file in files for v in pq.read_table(file, columns=[column], use_threads=False)[column].to_pylist())

    def rows(self, sql: str) -> list[list[Any]]:
        try:
            answer: list[list[Any]] = self.client.post("/v1/query", {"sql": sql, "limit": 10_000})["rows"]
        except TidewireError:
            return []
        return answer

    async def close(self) -> None:
        for program in [*self.agents.values(), *([self.server] if self.server else [])]:
            await program.stop()
        await self.link.close()


@asynccontextmanager
async def cluster(home: Path) -> AsyncIterator[Cluster]:
    made = Cluster(home)
    try:
        await made.open()
        yield made
    finally:
        await made.close()


async def eventually(what: str, holds: Callable[[], Any], within_s: float = 60.0) -> None:
    """Wait for a condition; who waits says for what. Raises `AssertionError` when it does not come."""
    deadline, pause_s = time.monotonic() + within_s, _LOOK_FIRST_S
    while True:
        held = holds()
        if await held if asyncio.iscoroutine(held) else held:
            return
        assert time.monotonic() < deadline, f"waited {within_s:.0f} s for {what}"
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, _LOOK_MAX_S)


def send(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def descendants(pid: int) -> list[psutil.Process]:
    """Nearest first."""
    try:
        return psutil.Process(pid).children(recursive=True) if pid else []
    except psutil.Error:
        return []


def children(pid: int, mark: str) -> list[int]:
    """Descendants of a process whose command line has `mark` in it, nearest first."""
    found = []
    for child in descendants(pid):
        with suppress(psutil.Error):
            found += [child.pid] if mark in " ".join(child.cmdline()) else []
    return found
