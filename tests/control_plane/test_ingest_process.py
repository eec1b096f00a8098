"""Several ingest processes: leases that agree without talking, and real processes that share nodes and lake."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nats
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from fake_node import FakeNode, rows
from server_process import ServerProcess, run_cli, until, wait_until
from sqlalchemy.engine import Connection

from control_plane.leases import TTL_S, Leases, chosen
from control_plane.store import Store
from pipelines.contract.segment import Segment
from pipelines.contract.subjects import PARTITIONS

ALL = frozenset(range(PARTITIONS))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Connection]:
    with Store(f"sqlite:///{tmp_path}/control.db").write() as connection:
        yield connection


def test_one_process_serves_everybody_and_two_share(db: Connection) -> None:
    first = Leases(db, "a")
    assert first.step(db, 0) == ALL
    second = Leases(db, "b")
    assert second.step(db, 0) == frozenset(), "nobody gives up what he does not know to be another's"
    first.step(db, 1)
    second.step(db, 1)
    assert first.held and second.held and first.held | second.held == ALL and not first.held & second.held


def test_the_partitions_of_the_dead_are_taken_and_those_who_leave_give_up_at_once(db: Connection) -> None:
    first, second = Leases(db, "a"), Leases(db, "b")
    for at in range(3):
        first.step(db, at)
        second.step(db, at)
    for at in range(3, int(TTL_S) + 4):
        second.step(db, at)
    assert second.held == ALL, "a was silent for TTL_S"
    first.step(db, TTL_S + 5)
    assert not first.held & second.step(db, TTL_S + 5), "it came back"
    second.leave(db)
    first.step(db, TTL_S + 6)
    assert first.step(db, TTL_S + 7) == ALL


def test_a_name_that_is_used_again_has_its_partitions_at_once(db: Connection) -> None:
    assert Leases(db, "main").step(db, 0) == ALL
    assert Leases(db, "main").step(db, 500) == ALL


@pytest.mark.parametrize("seed", range(8))
def test_a_partition_has_one_holder_at_most_whoever_comes_and_goes(db: Connection, seed: int) -> None:
    chance = random.Random(seed)
    living: dict[str, Leases] = {}
    for at in range(200):
        if chance.random() < 0.05:
            name = f"p{at}"
            living[name] = Leases(db, name)
        if living and chance.random() < 0.04:
            gone = living.pop(chance.choice(list(living)))
            if chance.random() < 0.5:
                gone.leave(db)
        for leases in chance.sample(list(living.values()), len(living)):
            if chance.random() < 0.9:
                leases.step(db, at)
        held = [p for leases in living.values() for p in leases.held]
        assert len(held) == len(set(held))
    last = living.setdefault("last", Leases(db, "last"))
    for at in range(200, 200 + 2 * int(TTL_S)):
        for leases in living.values():
            leases.step(db, at)
    assert set().union(*(leases.held for leases in living.values())) == ALL and last in living.values()


def test_one_process_more_moves_only_its_share() -> None:
    before, after = ["a", "b", "c"], ["a", "b", "c", "d"]
    assert all(chosen(p, after) in (chosen(p, before), "d") for p in range(500))
    assert 80 < sum(chosen(p, after) == "d" for p in range(500)) < 170


@contextmanager
def ingest_process(server: ServerProcess) -> Iterator[subprocess.Popen[str]]:
    log = (server.data_dir.parent / "ingest.log").open("a+")
    command = [sys.executable, "-m", "control_plane", "ingest", "--data-dir", str(server.data_dir)]
    process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def is_stored(node: FakeNode, segment: Segment) -> bool:
    try:
        receipts = await node.upload(segment, timeout=5)
    except nats.errors.Error:
        return False  # nobody serves this node now
    return bool(receipts.marks) and receipts.marks[0][2] >= segment.header.seq


def stored(server: ServerProcess) -> list[float]:
    table = DeltaTable(server.data_dir / "lake" / "press_rows").to_pyarrow_dataset()
    assert isinstance(table, ds.Dataset)
    return sorted(table.to_table(columns=["value"])["value"].to_pylist())


def test_i2_i3_two_processes_share_the_nodes_and_either_may_die(server: ServerProcess) -> None:
    digest = server.apply()
    log = server.data_dir.parent / "ingest.log"

    async def story() -> None:
        nodes = [await FakeNode.join(server.token(), f"pi{n}") for n in range(8)]
        streams = [node.stream("rows", "press_rows", version=digest) for node in nodes]
        sent: list[float] = []

        async def everybody_sends() -> None:
            value = float(len(sent))
            for n, (node, stream) in enumerate(zip(nodes, streams, strict=True)):
                segment = stream.seal(rows(value + n))

                await until(partial(is_stored, node, segment), 60)
                sent.append(value + n)

        await everybody_sends()
        with ingest_process(server) as process:
            wait_until(lambda: "is up" in log.read_text(), 30, log.read_text)
            wait_until(lambda: log.read_text().count("ingest: serves") >= 1, 30, log.read_text)
            await everybody_sends()
            process.kill()
            process.wait()
            await everybody_sends()
        with ingest_process(server) as process:
            wait_until(lambda: log.read_text().count("is up") >= 2, 30, log.read_text)
            server.kill()
            server.start()
            for node in nodes:
                await node.connect()
            await everybody_sends()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == 0, log.read_text()
        await everybody_sends()
        assert stored(server) == sorted(sent)

    asyncio.run(story())


def test_without_a_control_plane_it_says_what_to_do(tmp_path: Path) -> None:
    done = run_cli("--data-dir", str(tmp_path), "ingest")
    assert done.returncode == 3 and "tidewire up" in done.stderr and "Traceback" not in done.stderr
