"""What a device's disk has to take: for each byte sealed, and when nothing happens. At the default rhythm, of a real agent.

First nothing happens for IDLE_S seconds. Then RATE rows a second come for FOR_S, with the link cut, so that all sealed bytes can
be weighed; then the link is healed. The directory must lie on a disk: what is written to memory does not count.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.endtoend import NAME, PIPELINE
from benchmarks.report import Figure
from benchmarks.system import backlog, cpu_s, deploy, read_rows, received, system, written_bytes
from prove.cluster import Cluster, eventually

RATE = int(os.environ.get("RATE", 1000))
SECONDS = float(os.environ.get("FOR_S", 60))
IDLE_S = float(os.environ.get("IDLE_S", 120))
DAY_S = 86_400
_BEATS = 20  # a second


def measure(directory: Path) -> Iterator[Figure]:
    directory.mkdir(parents=True)
    yield from asyncio.run(_measured(directory))


async def _measured(home: Path) -> list[Figure]:
    async with system(home, behind_a_link=True) as made:
        folder = await made.add_node("node") / "rows"
        folder.mkdir()
        await deploy(made, NAME, PIPELINE)
        figures = await _idle(made)
        made.link.cut()
        before = written_bytes(made.agents.values())
        rows = await _write(folder / "0.jsonl")
        await eventually("the rows to be read", lambda: _has_read(made, rows))
        await asyncio.sleep(3)  # the last commit
        sealed = (await backlog(made))["bytes"]
        offline = written_bytes(made.agents.values()) - before
        made.link.heal()
        await received(made, NAME, rows)
        await asyncio.sleep(3)
        online = written_bytes(made.agents.values()) - before
    assert sealed and offline, "nothing was sealed, or the directory lies in memory"
    about = f"{RATE} rows/s"
    return [
        Figure(f"device: sealed, at {about}", sealed / rows, "bytes/row"),
        Figure(f"device: written per sealed byte, at {about}, offline", offline / sealed, "x", 3, "lower"),
        Figure(f"device: written per sealed byte, at {about}, receipts included", online / sealed, "x", 3, "lower"),
        *figures,
    ]


async def _idle(made: Cluster) -> list[Figure]:
    await asyncio.sleep(5)  # what starting leaves behind
    before, cpu, start = written_bytes(made.agents.values()), cpu_s(made.agents.values()), time.monotonic()
    await asyncio.sleep(IDLE_S)
    took = time.monotonic() - start
    written, spent = written_bytes(made.agents.values()) - before, cpu_s(made.agents.values()) - cpu
    return [
        Figure("device: written when nothing happens", written / took * DAY_S / 1e6, "MB/day", 50, "lower"),
        Figure("device: CPU when nothing happens", 100 * spent / took, "%", 1, "lower"),
    ]


async def _write(path: Path) -> int:
    """Lines at RATE; how many. Values wander as measurements do."""
    chance, values, n, start = random.Random(1), [20.0] * 20, 0, time.monotonic()
    while (passed := time.monotonic() - start) < SECONDS:
        due = int(passed * RATE)
        with path.open("a") as file:
            for i in range(n, due):
                at = i % len(values)
                values[at] += chance.gauss(0, 0.1)
                file.write(_line(time.time_ns() // 1_000_000, at, values[at], 1480 + i % 9))
        n = due
        await asyncio.sleep(1 / _BEATS)
    return n


def _line(ts: int, machine: int, value: float, rpm: int) -> str:
    return (
        f'{{"ts": {ts}, "machine": "press-{machine:02d}", "state": "running", "temp_c": {value:.2f}, '
        f'"pressure_bar": {value / 7:.3f}, "rpm": {rpm}, "order": {4711 + machine}}}\n'
    )


async def _has_read(made: Cluster, rows: int) -> bool:
    return await read_rows(made, NAME) >= rows
