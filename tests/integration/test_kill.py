"""SIGKILL of an agent, a runner, the control plane and the broker at random moments loses and doubles nothing (I1, I2, I3)."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from tests.integration.conftest import Cluster, children, cluster, eventually, kill

ROUNDS = 20  # five of each victim
ROWS_PER_S = 400

PIPELINE = """
tidewire: 1
pipeline: numbers
sources:
  log:
    file: {path: "*.jsonl"}
schema:
  n: {type: integer}
  value: {type: double}
windows:
  per_second:
    every: 1s
    select:
      readings: count(*)
sinks:
  rows: {lake: {table: numbers}}
  summary: {lake: {table: numbers_per_second}, from: per_second}
"""


class Writer:
    """Appends numbered lines to a node's file; `garbage` are the numbers of the lines that do not decode."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.n = directory, 0
        self.good: set[int] = set()
        self.garbage: set[int] = set()

    async def run(self) -> None:
        while True:
            with (self.directory / f"log-{self.n // 1000:04d}.jsonl").open("a") as file:
                for _ in range(ROWS_PER_S // 20):
                    self.n += 1
                    is_bad = self.n % 97 == 0
                    (self.garbage if is_bad else self.good).add(self.n)
                    file.write(f"broken {self.n}\n" if is_bad else json.dumps({"n": self.n, "value": self.n / 7}) + "\n")
            await asyncio.sleep(0.05)


@pytest.mark.slow
def test_i1_i2_i3_sigkill_of_any_process_loses_and_doubles_nothing(tmp_path: Path) -> None:
    asyncio.run(_kill_everything(tmp_path, random.Random(20261120)))


async def _kill_everything(home: Path, chance: random.Random) -> None:
    async with cluster(home) as made:
        directory = await made.add_node("node-1")
        (home / "numbers.yaml").write_text(PIPELINE)
        await made.tidewire("apply", "numbers.yaml")
        await made.tidewire("deploy", "numbers", "--select", "all")
        writer = Writer(directory)
        writing = asyncio.create_task(writer.run())
        await eventually("the first rows in the lake", lambda: made.counts("numbers"))
        for i in range(ROUNDS):
            await asyncio.sleep(chance.uniform(0.1, 2.0))
            await _kill_one(made, ("agent", "runner", "control", "broker")[i % 4])
        await asyncio.sleep(1)
        writing.cancel()
        await eventually("every row in the lake", lambda: made.counts("numbers").keys() >= writer.good, within_s=90)
        await eventually("both sides to agree", made.has_converged)
        _check(made, writer)


async def _kill_one(made: Cluster, victim: str) -> None:
    assert made.server is not None
    agent = made.agents["node-1"]
    if victim == "agent":
        await agent.kill()
        await agent.start()
    elif victim == "control":
        await made.server.kill()
        await made.start_server()
    else:
        parent, mark = (agent.pid, "forkserver") if victim == "runner" else (made.server.pid, "nats-server")
        found: list[int] = []

        def is_there() -> bool:
            found[:] = children(parent, mark)
            return bool(found)

        await eventually(f"a {victim} to kill", is_there)
        kill(found[-1])


def _check(made: Cluster, writer: Writer) -> None:
    counts = made.counts("numbers")
    assert counts.keys() == writer.good
    assert max(counts.values()) == 1, "a row stands twice in the lake"
    quarantined = made.counts("quarantine", "raw")
    assert quarantined.keys() == {f"broken {n}" for n in writer.garbage}
    assert max(quarantined.values()) == 1
    keys = made.rows("SELECT count(*), count(DISTINCT (_node, _run, _stream, _seq, _row)) FROM numbers")
    assert keys[0][0] == keys[0][1] == len(writer.good)
    ((newest,),) = made.rows("SELECT arg_max(ledgers, node_time_us) FROM segments")
    source = json.loads(newest)["source"]["log"]
    assert source["read"] == source["undecodable"] + source["made"]
    assert source["accepted"] + source["quarantined"] == source["made"]
    ((rows_in_windows,),) = made.rows("SELECT sum(_rows) FROM numbers_per_second")
    assert rows_in_windows <= len(writer.good), "a window counted a row twice"
    gaps = "SELECT seq, lag(seq, 1, 0) OVER (PARTITION BY run, stream ORDER BY seq) AS before FROM segments"
    assert made.rows(f"SELECT count(*) FROM ({gaps}) WHERE seq <> before + 1") == [[0]], "a run has a gap"
