"""From a file to the receipt: agents and a control plane on one machine, rows of 140 bytes.

Times count from the moment the rows lie there, so they include that agents notice them. ROWS, NODES, NODES_ROWS (of all nodes
together): other sizes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks import data
from benchmarks.report import Figure
from benchmarks.system import backlog, cpu_s, deploy, read_rows, received, rows_in, system
from prove.cluster import Cluster, eventually

NODES, NODES_ROWS = int(os.environ.get("NODES", 20)), int(os.environ.get("NODES_ROWS", 27_000_000))
NAME = "endtoend"
PIPELINE = """
tidewire: 1
pipeline: endtoend
sources:
  log:
    file: {path: "rows/*.jsonl"}
    decode: json
schema:
  ts: {type: timestamp, event_time: true, unit: ms}
  machine: {type: string}
  state: {type: string}
  temp_c: {type: double}
  pressure_bar: {type: double}
  rpm: {type: integer}
  order: {type: integer}
sinks:
  rows: {lake: {table: endtoend}}
"""


def measure(directory: Path, rows: int) -> Iterator[Figure]:
    """`rows` of one node, and of one backlog; then all nodes together."""
    (directory / "one").mkdir(parents=True)
    (directory / "all").mkdir()
    yield from asyncio.run(_collected(_one(directory / "one", rows)))
    yield from asyncio.run(_collected(_all(directory / "all", NODES_ROWS)))


async def _collected(figures: AsyncIterator[Figure]) -> list[Figure]:
    return [figure async for figure in figures]


async def _one(home: Path, rows: int) -> AsyncIterator[Figure]:
    async with system(home, behind_a_link=True) as made:
        folder = await _ready(made, ["node"])
        yield Figure("one node: from file to receipt", rows / await _flow(made, folder, rows, 0), "rows/s")
        made.link.cut()
        _lay(folder, rows, 1)
        await eventually("the rows to be read", lambda: _has_read(made, 2 * rows), 900)
        await asyncio.sleep(2)  # the last commit
        waiting = await backlog(made)
        start = time.monotonic()
        made.link.heal()
        await received(made, NAME, 2 * rows)
        took = time.monotonic() - start
        yield Figure("one node: a backlog drains", waiting["rows"] / took, "rows/s")
        yield Figure("one node: a backlog drains, on the wire", waiting["bytes"] / took / 1e6, "MB/s")
        _check(made, 2 * rows)


async def _all(home: Path, rows: int) -> AsyncIterator[Figure]:
    each = rows // NODES
    async with system(home) as made:
        names = [f"node-{i}" for i in range(NODES)]
        await _ready(made, names)
        assert made.server is not None
        before = [cpu_s(made.agents.values()), cpu_s([made.server])]
        source = data.write(home / "rows.part", data.wide_lines(each))
        start = time.monotonic()
        for name in names:
            (home / name / "rows" / "0.jsonl").hardlink_to(source)
        await received(made, NAME, each * NODES)
        took = time.monotonic() - start
        spent = [cpu_s(made.agents.values()) - before[0], cpu_s([made.server]) - before[1]]
        _check(made, each * NODES)
        yield Figure(f"{NODES} nodes into one table: {each * NODES:,} rows, the last receipt after", took, "s", better="lower")
        yield Figure(f"{NODES} nodes into one table", each * NODES / took, "rows/s", 27e6 / 25)
        yield Figure(f"{NODES} nodes into one table: agents", each * NODES / spent[0], "rows/CPU-s")
        yield Figure(f"{NODES} nodes into one table: control plane", each * NODES / spent[1], "rows/CPU-s")


async def _ready(made: Cluster, names: list[str]) -> Path:
    """Nodes that wait for rows; the folder of the last one."""
    folder = made.home
    for name in names:
        folder = await made.add_node(name) / "rows"
        folder.mkdir()
    await deploy(made, NAME, PIPELINE)
    return folder


async def _flow(made: Cluster, folder: Path, rows: int, number: int) -> float:
    start = _lay(folder, rows, number)
    await received(made, NAME, rows)
    return time.monotonic() - start


def _lay(folder: Path, rows: int, number: int) -> float:
    """All rows at once; when."""
    part = data.write(folder / f"{number}.part", data.wide_lines(rows))
    start = time.monotonic()
    part.rename(folder / f"{number}.jsonl")
    return start


async def _has_read(made: Cluster, rows: int) -> bool:
    return await read_rows(made, NAME) >= rows


def _check(made: Cluster, rows: int) -> None:
    found = rows_in(made.lake, NAME)
    assert found == rows, f"the lake has {found} of {rows} rows"
