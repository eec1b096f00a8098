"""Real agents and a real control plane to measure: what they have read, what the lake has, what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from control_plane.demo import processes
from control_plane.demo.processes import CONTROL, Program
from control_plane.demo.proxy import free_port
from prove.cluster import Cluster, eventually

POLL_S = 0.1
PATIENCE_S = 900.0


@asynccontextmanager
async def system(home: Path, *, behind_a_link: bool = False) -> AsyncIterator[Cluster]:
    """A control plane whose nodes reach it directly; `behind_a_link`: through a link that can be cut, which costs CPU too."""
    made = Cluster(home, rhythm="")
    try:
        await (made.open() if behind_a_link else _open_directly(made))
        yield made
    finally:
        await made.close()


async def _open_directly(made: Cluster) -> None:
    port = free_port()
    words = ("--api-port", str(free_port()), "--nats-port", str(port), "--public-url", f"nats://127.0.0.1:{port}")
    command = processes.module_command(CONTROL, "up", *words)
    made.server = Program("control plane", command, made.home, made.home / "control.log", made.env)
    await made.start_server()


async def deploy(made: Cluster, name: str, text: str) -> None:
    """On all nodes; returns when it runs on each."""
    (made.home / f"{name}.yaml").write_text(text)
    await made.tidewire("apply", f"{name}.yaml")
    await made.tidewire("deploy", name, "--select", "all")

    async def runs() -> bool:
        told = [await made.status(node) for node in made.agents]
        return all(any(p["pipeline"] == name and p["phase"] == "running" for p in each.get("pipelines", [])) for each in told)

    await eventually(f"{name} to run", runs, PATIENCE_S)


async def read_rows(made: Cluster, name: str) -> int:
    """How many rows the pipeline has read on all nodes, as far as they told."""
    told = [await made.status(node) for node in made.agents]
    return sum(p["counts"].get("read", 0) for each in told for p in each.get("pipelines", []) if p["pipeline"] == name)


async def backlog(made: Cluster) -> dict[str, int]:
    """What waits for the lake on all nodes."""
    told = [(await made.status(node)).get("backlog", {}) for node in made.agents]
    return {word: sum(each.get(word, 0) for each in told) for word in ("segments", "bytes", "rows")}


async def received(made: Cluster, name: str, rows: int) -> None:
    """Wait until all `rows` of the pipeline are in its table, which has its name, and nothing waits for a receipt."""
    await eventually(f"{rows} rows to be read", _is_true(lambda: read_rows(made, name), lambda n: n >= rows), PATIENCE_S)

    async def are_stored() -> bool:
        await asyncio.sleep(POLL_S)
        return rows_in(made.lake, name) >= rows

    await eventually(f"{rows} rows to be stored", are_stored, PATIENCE_S)
    await eventually("the last receipt", _is_true(lambda: backlog(made), lambda b: not b["segments"]), PATIENCE_S)


def _is_true(ask: Callable[[], Any], holds: Callable[[Any], bool]) -> Callable[[], Any]:
    async def asked() -> bool:
        await asyncio.sleep(POLL_S)
        return holds(await ask())

    return asked


def rows_in(lake: Path, table: str) -> int:
    """By the footers of the table's files; none while there is no table."""
    try:
        files = DeltaTable(str(lake / table)).file_uris()
    except TableNotFoundError:
        return 0
    return sum(pq.read_metadata(file).num_rows for file in files)


def cpu_s(programs: Iterable[Program]) -> float:
    """CPU seconds of processes and their descendants so far."""
    total = 0.0
    for process in tree(programs):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def written_bytes(programs: Iterable[Program]) -> int:
    """What they and their descendants made the disk take so far: /proc/PID/io, without the file system's own journal."""
    total = 0
    for process in tree(programs):
        with suppress(psutil.Error):
            total += process.io_counters().write_bytes
    return total


def tree(programs: Iterable[Program]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for program in programs:
        with suppress(psutil.Error):
            process = psutil.Process(program.pid)
            found += [process, *process.children(recursive=True)]
    return found
