"""Restored and cloned cards, restored lakes: what matches is kept, the rest goes on under a new run (design, section 7)."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_control import FakeLake
from support import new_key, numbers_in_outbox, open_store

from edge_agent import forks
from edge_agent.forks import Break
from edge_agent.outbox import Mark, Sealed
from edge_agent.store import Commit, Store
from pipelines.contract.segment import decode

KEY = new_key()


async def put(store: Store, *numbers: int, pad: int = 0) -> None:
    sealed = [Sealed("numbers", "rows", "t", 1, json.dumps([n]).encode() + b" " * pad) for n in numbers]
    await store.checkpoint("p")
    await store.commit("p", "sha256:v", 1, Commit({"s": 1}, {}, sealed=sealed))


async def arrive(store: Store, lake: FakeLake, count: int, *, receipt: bool) -> None:
    for pending in (await store.pending_segments(1 << 40))[:count]:
        key = lake.put(decode(pending.data, KEY.public))
        if receipt:
            await store.confirm([Mark(*key, *lake.mark(key))])


async def meet(store: Store, lake: FakeLake) -> list[Break]:
    """What the uplink does on connecting: ask, settle what is in doubt, send the rest."""
    positions = await store.open_positions()
    breaks = await store.confirm([Mark(*key, *lake.mark(key)) for key in positions], asked=True)
    while asked := await store.doubtful():
        assert all(doubt.last - doubt.first < forks.ASKED_AT_ONCE for doubt in asked)
        found = [
            (d.run, d.stream, s.header.seq, s.link)
            for d in asked
            for s in lake.runs.get((d.run, d.stream), ())
            if d.first <= s.header.seq <= d.last
        ]
        breaks += await store.settle_fork(asked, found)
    while batch := await store.pending_segments(1):
        key = lake.put(decode(batch[0].data, KEY.public))
        await store.confirm([Mark(*key, *lake.mark(key))])
    return breaks


def life(data: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    with open_store(data, KEY) as store:
        asyncio.run(asyncio.wait_for(work(store), 60))  # type: ignore[arg-type]


def image(data: Path, copy: Path) -> Path:
    shutil.copytree(data, copy)
    return copy


@pytest.mark.parametrize("chunk", [500, 3])
def test_i2_a_restored_card_whose_pending_segments_arrived_since_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(forks, "ASKED_AT_ONCE", chunk)
    lake = FakeLake()

    async def before(store: Store) -> None:
        await put(store, *range(10))
        await arrive(store, lake, 4, receipt=True)

    async def after(store: Store) -> None:
        await arrive(store, lake, 99, receipt=True)
        await put(store, 10, 11, 12)
        await arrive(store, lake, 99, receipt=True)

    async def restored(store: Store) -> None:
        await put(store, 100, 101)  # before it ever reaches the lake
        [broken] = await meet(store, lake)
        assert broken.is_security
        await put(store, 102)
        assert not await meet(store, lake)
        assert sorted(lake.numbers()) == [*range(13), 100, 101, 102], "each once"
        backlog = await store.backlog()
        assert (backlog.stored_rows, backlog.rows) == (13, 0)
        assert len(lake.runs) == 3

    life(tmp_path / "card", before)
    copy = image(tmp_path / "card", tmp_path / "image")
    life(tmp_path / "card", after)
    life(copy, restored)


def test_i2_two_cards_of_one_image_both_keep_every_row(tmp_path: Path) -> None:
    lake = FakeLake()

    async def golden(store: Store) -> None:
        await put(store, 0, 1)

    async def one(store: Store) -> None:
        await put(store, 10, 11)
        assert not await meet(store, lake)

    async def other(store: Store) -> None:
        await put(store, 20, 21, 22)
        [broken] = await meet(store, lake)
        assert broken.is_security
        await put(store, 23)
        assert not await meet(store, lake)

    life(tmp_path / "a", golden)
    copy = image(tmp_path / "a", tmp_path / "b")
    life(tmp_path / "a", one)
    life(copy, other)
    assert sorted(lake.numbers()) == [0, 1, 10, 11, 20, 21, 22, 23]


def test_a_doubted_run_takes_no_more_and_survives_a_restart(tmp_path: Path) -> None:
    lake = FakeLake()

    async def before(store: Store) -> None:
        await put(store, 0, 1)
        [run] = {pending.run for pending in await store.pending_segments(1 << 40)}
        assert not await store.confirm([Mark(run, "numbers", 2, "sha256:other", 2, 2)])
        assert await store.doubtful()
        await put(store, 2)
        [left] = await store.pending_segments(1 << 40)
        assert left.run != run, "what is in doubt is not sent"

    async def after(store: Store) -> None:
        [doubt] = await store.doubtful()
        assert (doubt.first, doubt.last) == (1, 2)
        [broken] = await store.settle_fork([doubt], [])
        assert "another segment 2" in broken.reason
        assert not await store.settle_fork([doubt], []), "an answer that comes twice does nothing"
        assert sorted(await numbers_in_outbox(store)) == [0, 1, 2]
        await meet(store, lake)
        assert sorted(lake.numbers()) == [0, 1, 2]

    life(tmp_path, before)
    life(tmp_path, after)


def test_i4_damaged_and_evicted_segments_of_a_broken_run_stay_accounted(tmp_path: Path) -> None:
    lake = FakeLake()

    async def work(store: Store) -> None:
        await put(store, *range(6), pad=5_000)
        await store._write(lambda db: db.execute("UPDATE outbox SET data = zeroblob(bytes) WHERE seq = 5"))
        [(segment_id,)] = await store._read(lambda db: db.execute("SELECT id FROM outbox WHERE seq = 2").fetchall())
        from edge_agent import outbox

        await store._write(lambda db: outbox.void(db, {}, segment_id, "evicted"))
        [run] = {run for run, _ in await store.open_positions()}
        [broken] = await store.confirm([Mark(run, "numbers", 0, "sha256:other")])
        assert broken.is_security
        await meet(store, lake)
        assert lake.numbers() == [0, 2, 3, 5]
        backlog = await store.backlog()
        assert (backlog.stored_rows, backlog.evicted_rows, backlog.damaged_rows) == (4, 1, 1)

    life(tmp_path, work)


def test_i4_what_a_restored_lake_forgot_is_counted(tmp_path: Path) -> None:
    lake = FakeLake()

    async def work(store: Store) -> None:
        await put(store, *range(8))
        await arrive(store, lake, 5, receipt=True)
        [run] = lake.runs
        del lake.runs[run][2:]  # a backup of before
        [broken] = await meet(store, lake)
        assert not broken.is_security
        assert sorted(lake.numbers()) == [0, 1, 5, 6, 7]
        backlog = await store.backlog()
        assert (backlog.stored_rows, backlog.forgotten_rows, backlog.rows) == (5, 3, 0)

    life(tmp_path, work)
