"""What is lost leaves a stub, and the run goes on: eviction, shares, the reserve, damage, and who waits (I3, I4, I9, I15)."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_control import FakeLake
from support import new_key, numbers_in_outbox, open_store

from edge_agent import outbox, shares
from edge_agent.outbox import Mark, Sealed
from edge_agent.shares import BLOCK, DROP_NEWEST, Buffer, Usage, losers, must_wait, reserve_bytes
from edge_agent.store import Commit, Store
from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256
from pipelines.contract.keys import Key
from pipelines.contract.segment import decode

MIB = 1 << 20
KEY = new_key()


def rows(n: int, *, stream: str = "numbers", kind: str = "rows", pad: int = 60_000) -> Sealed:
    return Sealed(stream, kind, "" if kind == "ledger" else "t", int(kind != "ledger"), json.dumps([n]).encode() + b" " * pad)


async def put(store: Store, *sealed: Sealed, pipeline: str = "p") -> None:
    await store.checkpoint(pipeline)
    await store.commit(pipeline, "sha256:v", 1, Commit({"s": 1}, {}, sealed=sealed))


def in_store(tmp_path: Path, work: Callable[[Store], Awaitable[None]], budget: int = MIB, key: Key = KEY) -> None:
    with open_store(tmp_path, key, buffer_bytes=budget) as store:
        asyncio.run(asyncio.wait_for(work(store), 60))  # type: ignore[arg-type]


async def send(store: Store, lake: FakeLake, segments_max: int = 1 << 30) -> None:
    """As the uplink does without a window: in order, each answered."""
    sent: dict[tuple[str, str], int] = {}
    while segments_max and (batch := await store.pending_segments(1, sent)):
        for pending in batch:
            key = lake.put(decode(pending.data, KEY.public))
            sent[key] = pending.seq
            await store.confirm([Mark(*key, *lake.mark(key))])
        segments_max -= 1


async def identity(store: Store, written: int) -> None:
    """I4 on the node."""
    b = await store.backlog()
    assert b.stored_rows + b.refused_rows + b.evicted_rows + b.damaged_rows + b.forgotten_rows + b.rows == written


def held(store: Store, query: str = "SELECT first, seq, void FROM outbox ORDER BY stream_id, seq") -> list[tuple[object, ...]]:
    with sqlite3.connect(store._db.path) as db:
        return db.execute(query).fetchall()


def test_i9_a_full_buffer_is_bounded_to_the_byte_and_loses_the_oldest(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for n in range(60):
            await put(store, rows(n))
            assert (await store.backlog()).bytes <= MIB - reserve_bytes(MIB)
        left = await numbers_in_outbox(store)
        assert left == list(range(60 - len(left), 60))
        assert len(left) == (MIB - reserve_bytes(MIB)) // 61_000, "no more was given up than had to be"
        backlog = await store.backlog()
        assert (backlog.rows, backlog.evicted_rows, backlog.evicted_segments) == (len(left), 60 - len(left), 60 - len(left))
        await identity(store, 60)

    in_store(tmp_path, work)


def test_i3_a_stub_goes_up_like_a_segment_and_no_gap_blocks(tmp_path: Path) -> None:
    lake = FakeLake()

    async def work(store: Store) -> None:
        for n in range(60):
            await put(store, rows(n))
        assert [len({row[0] for row in held(store, "SELECT run FROM streams")})] == [1], "the run goes on"
        left = await numbers_in_outbox(store)
        await send(store, lake)
        [run] = lake.runs.values()
        assert (run[0].header.is_stub, run[0].header.void, run[0].header.rows) == (True, "evicted", 60 - len(left))
        assert lake.numbers() == left
        assert lake.mark((run[0].header.run, "numbers")) == (60, run[-1].link, 60, len(left))
        backlog = await store.backlog()
        assert (backlog.segments, backlog.stored_rows, backlog.evicted_rows) == (0, len(left), 60 - len(left))
        await put(store, rows(60))
        await send(store, lake)
        assert lake.numbers() == [*left, 60]

    in_store(tmp_path, work)


def test_i9_a_month_of_eviction_is_one_stub(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for n in range(200):
            await put(store, rows(n))
        stubs = [row for row in held(store) if row[2]]
        assert stubs == [(1, 200 - len(await numbers_in_outbox(store)), "evicted")]

    in_store(tmp_path, work)


def test_i4_a_stub_says_what_its_last_segment_said_of_the_ledgers(tmp_path: Path) -> None:
    """All of a source's last commits may be lost, and the source be idle from then on. What was sealed in a former lineage stays
    counted as its."""

    def told(n: int) -> dict[str, object]:
        return {"commit": n, "source": {"s": {"read": n}}, "stream": {"written": n}, "sealed": n}

    async def work(store: Store) -> None:
        lineage = (await store.checkpoint("p")).lineage
        for n in range(1, 41):
            await put(store, replace(rows(n), ledgers=told(n)))
        await store._write(lambda db: db.execute("UPDATE pipelines SET lineage = 'begun anew'"))
        last = max(int(str(row[1])) for row in held(store) if row[2])
        [stub, *whole] = [decode(pending.data, KEY.public).header for pending in await store.pending_segments(1 << 40)]
        assert (stub.seq, stub.void, stub.rows, stub.lineage) == (last, "evicted", last, lineage)
        assert stub.ledgers["source"] == {"s": {"read": last}}
        assert stub.ledgers["sealed"] == last
        assert whole[0].ledgers["sealed"] == last + 1
        assert (await store.backlog()).bytes == sum(int(str(row[0])) for row in held(store, "SELECT bytes FROM outbox"))
        await store._write(lambda db: db.execute("UPDATE outbox SET data = '{\"ledgers\": [' WHERE void <> ''"))
        damaged = decode((await store.pending_segments(1))[0].data, KEY.public).header
        assert (damaged.rows, damaged.lineage, damaged.ledgers) == (last, "begun anew", {}), (
            "a stub goes up whatever happened to it"
        )

    in_store(tmp_path, work)


def test_i4_what_arrived_before_it_was_evicted_is_not_lost(tmp_path: Path) -> None:
    """Five arrived, their receipts did not; then they were evicted. Digests up to there stay comparable."""
    lake = FakeLake()

    async def work(store: Store) -> None:
        for n in range(8):
            await put(store, rows(n))
        for pending in (await store.pending_segments(1 << 40))[:5]:
            lake.put(decode(pending.data, KEY.public))
        for n in range(8, 60):
            await put(store, rows(n))
        assert [row[:2] for row in held(store) if row[2]][:8] == [(n, n) for n in range(1, 9)], "those may be at the mark"
        [key] = lake.runs
        await store.confirm([Mark(*key, *lake.mark(key))], asked=True)
        await send(store, lake)
        backlog = await store.backlog()
        left = len(lake.numbers()) - 5
        assert (backlog.stored_rows, backlog.evicted_rows) == (5 + left, 55 - left)
        assert backlog.evicted_segments == 55 - left
        await identity(store, 60)

    in_store(tmp_path, work)


def test_i3_after_a_restart_everything_may_have_been_sent_if_anything_was(tmp_path: Path) -> None:
    async def first(store: Store) -> None:
        for n in range(10):
            await put(store, rows(n))
        await store.pending_segments(1)

    async def second(store: Store) -> None:
        for n in range(10, 60):
            await put(store, rows(n))
        assert [row[:2] for row in held(store) if row[2]][:10] == [(n, n) for n in range(1, 11)]

    async def third(store: Store) -> None:
        for n in range(60, 90):
            await put(store, rows(n))
        stubs = [row for row in held(store) if row[2]]
        assert len(stubs) == 11, "nothing was sent in the second life: what was evicted since is one stub"

    for life in (first, second, third):
        in_store(tmp_path, life)


def test_i4_a_mark_within_a_stub_leaves_the_rest_of_it(tmp_path: Path) -> None:
    """A reader handed segments out while the writer merged them: the lake is somewhere within."""
    lake = FakeLake()

    async def work(store: Store) -> None:
        for n in range(8):
            await put(store, rows(n))
        for pending in (await store.pending_segments(1 << 40))[:5]:
            lake.put(decode(pending.data, KEY.public))
        store._sealer.handed.clear()
        for n in range(8, 60):
            await put(store, rows(n))
        [key] = lake.runs
        await store.confirm([Mark(*key, *lake.mark(key))], asked=True)
        assert held(store)[0][0] == 6
        await send(store, lake)
        backlog = await store.backlog()
        assert backlog.stored_rows == len(lake.numbers()) == 60 - backlog.evicted_rows
        await identity(store, 60)

    in_store(tmp_path, work)


def test_i4_what_the_lake_refused_is_counted_apart(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await put(store, rows(0), rows(1), rows(2))
        batch = await store.pending_segments(1 << 40)
        await store.confirm([Mark(batch[2].run, "numbers", 3, batch[2].digest, 3, 2)])
        backlog = await store.backlog()
        assert (backlog.stored_rows, backlog.refused_rows, backlog.rows) == (2, 1, 0)

    in_store(tmp_path, work)


def test_i4_damage_is_a_stub_at_once_and_the_rest_goes_on_in_the_same_run(tmp_path: Path) -> None:
    lake = FakeLake()

    async def work(store: Store) -> None:
        await put(store, *[rows(n, pad=5_000) for n in range(8)])
        await store._write(lambda db: db.execute("UPDATE outbox SET data = zeroblob(bytes) WHERE seq IN (1, 4, 5)"))
        await send(store, lake)
        [run] = lake.runs.values()
        assert [(s.header.first, s.header.seq, s.header.void) for s in run if s.header.is_stub] == [
            (1, 1, "damaged"), (4, 4, "damaged"), (5, 5, "damaged"),
        ]  # fmt: skip
        assert lake.numbers() == [1, 2, 5, 6, 7]
        backlog = await store.backlog()
        assert (backlog.damaged_segments, backlog.damaged_rows, backlog.stored_rows) == (3, 3, 5)
        await identity(store, 8)

    in_store(tmp_path, work)


def test_i9_streams_lose_by_share_and_nobody_while_there_is_room(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await store.set_buffer("p", Buffer(priorities={"numbers": 1, "other": 7}))
        limit = MIB - reserve_bytes(MIB)
        for n in range(limit // 61_000):
            await put(store, rows(n, stream="other"))
        assert (await store.backlog()).evicted_rows == 0, "work-conserving: one stream may use it all"
        for n in range(60):
            await put(store, rows(n), rows(n, stream="other"))
        used = {row["stream"]: row["bytes"] for row in await store.streams()}
        assert 2 <= used["numbers"] / used["other"] <= 4, "weights 9 and 3"

    in_store(tmp_path, work)


def test_i9_a_pipeline_is_held_to_its_own_limit(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await store.set_buffer("p", Buffer(max_bytes=MIB))
        for n in range(40):
            await put(store, rows(n))
            await put(store, rows(n), pipeline="q")
        used = {row["pipeline"]: row["bytes"] for row in await store.streams()}
        assert MIB - 70_000 < used["p"] <= MIB
        assert used["q"] > 2 * MIB

    in_store(tmp_path, work, budget=64 * MIB)


def test_i9_drop_newest_keeps_the_oldest(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await store.set_buffer("p", Buffer(when_full=DROP_NEWEST))
        for n in range(60):
            await put(store, rows(n))
        left = await numbers_in_outbox(store)
        assert left == list(range(len(left)))
        assert held(store)[-1] == (len(left) + 1, 60, "evicted")

    in_store(tmp_path, work)


def test_i9_incidents_are_never_evicted_and_of_ledgers_the_newest_stays(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for n in range(30):
            await put(store, rows(n), rows(n, stream="incidents", kind="incidents", pad=20_000))
            await put(store, rows(n, stream="ledger", kind="ledger", pad=20_000))
        used = {row["stream"]: (row["rows"], row["bytes"]) for row in await store.streams()}
        assert used["incidents"][0] == 30
        assert 20_000 < used["ledger"][1] < 30_000, "one ledger, which says all that the others said, and their stub"
        backlog = await store.backlog()
        assert backlog.bytes <= MIB
        assert backlog.evicted_rows == 30 - used["numbers"][0], "a ledger has no rows to lose"
        ledgers = held(store, "SELECT o.void FROM outbox o JOIN streams s ON s.id = o.stream_id WHERE s.kind = 'ledger'")
        assert ledgers == [("evicted",), ("",)]

    in_store(tmp_path, work)


def test_i9_a_limit_that_shrank_is_reached_in_bounded_steps(tmp_path: Path) -> None:
    async def fill(store: Store) -> None:
        for n in range(300):
            await put(store, rows(n, pad=20_000))

    in_store(tmp_path, fill, budget=64 * MIB)
    sizes: list[int] = []

    async def shrunk(store: Store) -> None:
        for n in range(300, 340):
            await put(store, rows(n, pad=20_000))
            sizes.append((await store.backlog()).bytes)
        left = await numbers_in_outbox(store)
        assert left == list(range(340 - len(left), 340))

    in_store(tmp_path, shrunk, budget=2 * MIB)
    assert sizes[-1] <= 2 * MIB - reserve_bytes(2 * MIB)
    whole = 20_800 * outbox.EVICTED_AT_ONCE
    assert all(before - after <= 8 * whole for before, after in itertools.pairwise(sizes))


def test_i15_a_pipeline_that_blocks_waits_in_order_and_holds_nobody_up(tmp_path: Path) -> None:
    lake = FakeLake()

    async def work(store: Store) -> None:
        await store.set_buffer("p", Buffer(max_bytes=MIB, when_full=BLOCK))
        done: list[int] = []

        async def one(n: int) -> None:
            await put(store, rows(n))
            done.append(n)

        commits = [asyncio.create_task(one(n)) for n in range(40)]
        while not store.waits("p"):
            await asyncio.sleep(0.01)
        for n in range(100, 120):
            await put(store, rows(n), pipeline="q")
        assert done == list(range(MIB // 61_000))
        while not all(commit.done() for commit in commits):
            await send(store, lake, 1)
        assert done == list(range(40))
        await send(store, lake)
        assert [n for n in lake.numbers() if n < 100] == list(range(40)), "nothing of it was ever lost"
        await identity(store, 60)

    in_store(tmp_path, work, budget=64 * MIB)


def test_a_pipeline_that_ends_while_it_waits_gets_its_commits_refused(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await store.checkpoint("p")
        await store.set_buffer("p", Buffer(max_bytes=MIB, when_full=BLOCK))

        def begin(*sealed: Sealed) -> asyncio.Task[None]:
            return asyncio.create_task(store.commit("p", "sha256:v", 1, Commit({"s": 1}, {}, sealed=sealed)))

        commits = [begin(rows(n)) for n in range(20)]
        while not store.waits("p"):
            await asyncio.sleep(0.01)
        store.stop_waiting("p")
        ends = await asyncio.gather(*commits, return_exceptions=True)
        refused = [n for n, end in enumerate(ends) if isinstance(end, Refused)]
        assert refused == list(range(20 - len(refused), 20)) != []
        assert not store.waits("p")
        assert await numbers_in_outbox(store) == list(range(20 - len(refused)))

        await send(store, FakeLake())
        late = await asyncio.gather(begin(rows(20)), begin(), return_exceptions=True)
        assert all(isinstance(end, Refused) for end in late), "with room or without rows, nothing overtakes what was refused"
        await store.set_buffer("p", Buffer(max_bytes=MIB, when_full=BLOCK))
        await begin(rows(21))

    in_store(tmp_path, work, budget=64 * MIB)


@pytest.mark.parametrize(
    ("others", "waits"),
    [({"q": 900}, False), ({"q": 300}, True), ({}, True)],
    ids=["another is farther above its share", "it is the farthest above its share", "it is alone"],
)
def test_who_waits_when_the_nodes_budget_is_used_up(others: dict[str, int], waits: bool) -> None:
    buffers = {"p": Buffer(when_full=BLOCK)}
    own = 1500 - sum(others.values())
    usages = [Usage("p", "s", "rows", own), *(Usage(name, "s", "rows", size) for name, size in others.items())]
    assert must_wait("p", 100, usages, buffers, 2000) is waits
    assert not losers(usages, buffers, 2000)
    assert must_wait("p", 100, usages, buffers, 1 << 40) is False


def test_who_waits_never_loses() -> None:
    usages = [Usage("p", "s", "rows", 5000), Usage("q", "s", "rows", 10)]
    assert losers(usages, {"p": Buffer(when_full=BLOCK)}, 2000) == [usages[1]]


@pytest.mark.parametrize(
    ("budget", "reserve"), [(2 << 30, (2 << 30) // 20), (100 * MIB, 16 * MIB), (20 * MIB, 5 * MIB), (MIB, MIB // 4)]
)
def test_the_reserve(budget: int, reserve: int) -> None:
    assert reserve_bytes(budget) == reserve


def test_what_a_version_says_of_its_buffer() -> None:
    canonical = b'{"pipeline":"p","buffer":{"max_size":"2MiB","when_full":"block"},"sinks":{"a":{"priority":2},"b":{}}}'
    assert shares.declared(canonical) == Buffer(2 * MIB, BLOCK, {"a": 2})
    assert shares.declared(b'{"pipeline":"p"}') == Buffer()
    assert (Buffer(priorities={"a": 1}).weight("a"), Buffer().weight("a"), Buffer(priorities={"a": 9}).weight("a")) == (9, 5, 1)


def test_a_stub_costs_what_it_is_counted_for(tmp_path: Path) -> None:
    """STUB_BYTES against the file itself."""
    count = 20_000
    with open_store(tmp_path, KEY) as store:
        size_before = held(store, "SELECT sum(pgsize) FROM dbstat")[0][0] if _has_dbstat(store) else None
        if size_before is None:
            pytest.skip("this SQLite has no dbstat")

        def fill(db: sqlite3.Connection) -> None:
            stream = outbox.new_run(db, "0" * 16, "p", "s", "rows", "t", active=False)
            for n in range(1, count + 1):
                outbox.insert(db, stream, n, n, sha256(b"%d" % n), 1, void="evicted")

        asyncio.run(store._write(fill))
        grown = held(store, "SELECT sum(pgsize) FROM dbstat")[0][0] - size_before
        assert outbox.STUB_BYTES / 2 < grown / count <= outbox.STUB_BYTES


def _has_dbstat(store: Store) -> bool:
    try:
        return bool(held(store, "SELECT count(*) FROM dbstat"))
    except sqlite3.Error:
        return False
