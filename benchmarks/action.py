"""From a sensor's message to the local action: MESSAGES_PER_S lines into a file, now and then one that raises an incident, and a
webhook to a listener on this machine. Measured from before the line is written to the request's arrival; also while the backlog
of another pipeline drains. FOR_S: how long each."""

from __future__ import annotations

import asyncio
import json
import os
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import data
from benchmarks.endtoend import NAME, PIPELINE
from benchmarks.report import Figure
from benchmarks.system import backlog, deploy, read_rows, system
from prove.cluster import Cluster, eventually

MESSAGES_PER_S = 1000
ALARM_EVERY = 40  # messages
BACKLOG_ROWS = int(os.environ.get("ROWS", 2_000_000))
SECONDS = float(os.environ.get("FOR_S", 20))
_BEATS = 100  # a second
TRIGGER = """
tidewire: 1
pipeline: horn
sources:
  log:
    file: {path: "messages/*.jsonl"}
    decode: json
schema:
  sensor: {type: string}
  value: {type: double}
triggers:
  hot:
    over: latest
    each: [sensor]
    by: [sensor]
    when: max(value) > 100
    max_open: 10000
    actions:
      on_raise:
        - webhook: {url: "http://127.0.0.1:PORT/horn"}
sinks:
  rows: {lake: {table: messages}}
"""


def measure(directory: Path) -> Iterator[Figure]:
    directory.mkdir(parents=True)
    yield from asyncio.run(_measured(directory))


class _Horn:
    """A web server that notes when it was called for which sensor."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                now, body = time.monotonic(), json.loads(await reader.readexactly(length))
                self.heard.setdefault(body["group"]["sensor"], now)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def close(self) -> None:
        self._server.close()


async def _measured(home: Path) -> list[Figure]:
    horn = _Horn()
    port = await horn.open()
    try:
        async with system(home, behind_a_link=True) as made:
            node = await made.add_node("node")
            (node / "messages").mkdir()
            (node / "rows").mkdir()
            await deploy(made, "horn", TRIGGER.replace("PORT", str(port)))
            await deploy(made, NAME, PIPELINE)
            await _messages(node / "messages" / "warm.jsonl", "warm", 2.0)
            figures = await _phase(horn, node, "quiet", "")
            await _make_backlog(made, node)
            made.link.heal()
            figures += await _phase(horn, node, "drain", ", while a backlog drains")
            left = await backlog(made)
            figures.append(Figure("action: backlog left when the measuring ended", left["rows"], "rows"))
            return figures
    finally:
        horn.close()


async def _make_backlog(made: Cluster, node: Path) -> None:
    made.link.cut()
    data.write(node / "rows" / "part", data.wide_lines(BACKLOG_ROWS)).rename(node / "rows" / "0.jsonl")
    await eventually("the backlog to be read", lambda: _has_read(made), 900)
    await asyncio.sleep(2)


async def _has_read(made: Cluster) -> bool:
    return await read_rows(made, NAME) >= BACKLOG_ROWS


async def _phase(horn: _Horn, node: Path, name: str, words: str) -> list[Figure]:
    sent = await _messages(node / "messages" / f"{name}.jsonl", name, SECONDS)
    await eventually("the last action", lambda: sent.keys() <= horn.heard.keys(), 60)
    took = sorted(horn.heard[sensor] - at for sensor, at in sent.items())
    about = f"message to action at {MESSAGES_PER_S}/s{words}"
    return [
        Figure(f"{about}: {word}", took[min(int(part * len(took)), len(took) - 1)] * 1000, "ms", better="lower")
        for word, part in (("median", 0.5), ("99 of 100", 0.99), ("longest", 1.0))
    ]


async def _messages(path: Path, name: str, seconds: float) -> dict[str, float]:
    """Lines at their rate; by sensor when the line that raises its incident was written."""
    sent: dict[str, float] = {}
    n, start = 0, time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        due = int(passed * MESSAGES_PER_S)
        lines = []
        for i in range(n, due):
            sensor, value = (f"{name}-{i}", 150) if i % ALARM_EVERY == 0 else (f"s{i % 50}", 20 + i % 7)
            lines.append(f'{{"sensor": "{sensor}", "value": {value}}}\n')
            if value > 100:
                sent[sensor] = time.monotonic()
        with path.open("a") as file:
            file.writelines(lines)
        n = due
        await asyncio.sleep(1 / _BEATS)
    return sent
