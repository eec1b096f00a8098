"""agent.db: atomic commits, receipts, forks, eviction, full disks."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import NODE, new_key, numbers_in_outbox, open_store, until

from edge_agent.clock import ClockMark, NodeClock
from edge_agent.outbox import Mark, Pending, Sealed
from edge_agent.store import Commit, Store
from pipelines.contract import segment
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.keys import Key


def rows(first: int, count: int = 1, *, table: str = "t", kind: str = "rows", pad: int = 0) -> Sealed:
    payload = json.dumps(list(range(first, first + count))).encode() + b" " * pad
    return Sealed("numbers" if kind == "rows" else kind, kind, table, count, payload)


async def put(store: Store, *sealed: Sealed, pipeline: str = "p", **commit: Any) -> None:
    await store.checkpoint(pipeline)
    await store.commit(pipeline, "sha256:v", 1, Commit({"s": 1}, {}, sealed=sealed, **commit))


async def everything(store: Store) -> list[Pending]:
    return await store.pending_segments(1 << 40)


def in_store(tmp_path: Path, work: Callable[[Store], Awaitable[None]], key: Key | None = None, **options: Any) -> None:
    with open_store(tmp_path, key, **options) as store:
        asyncio.run(asyncio.wait_for(work(store), 60))  # type: ignore[arg-type]


def test_i1_a_commit_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await put(store, rows(0))
        with pytest.raises(Refused):
            await store.commit(
                "p",
                "sha256:v",
                1,
                Commit({"s": 99}, {}, {"k": b"v"}, sealed=[rows(1), rows(2, pad=segment.SEGMENT_BYTES_MAX + 5000)]),
            )
        checkpoint = await store.checkpoint("p")
        assert (checkpoint.positions, checkpoint.state) == ({"s": 1}, {})
        assert await numbers_in_outbox(store) == [0]

    in_store(tmp_path, work)


def test_segments_verify_against_the_nodes_key_and_form_a_chain(tmp_path: Path) -> None:
    key = new_key()

    async def work(store: Store) -> None:
        await put(store, rows(0), rows(1))
        await put(store, rows(2))
        headers = [segment.decode(pending.data, key.public).header for pending in await everything(store)]
        assert [header.seq for header in headers] == [1, 2, 3]
        assert {(header.node, header.pipeline, header.table) for header in headers} == {(NODE, "p", "t")}
        assert await numbers_in_outbox(store) == [0, 1, 2]

    in_store(tmp_path, work, key)


def test_i3_only_the_right_digest_frees(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await put(store, rows(0), rows(1), rows(2))
        first, second, _ = await everything(store)
        assert not await store.confirm([Mark(second.run, "numbers", 2, second.digest)])
        assert await numbers_after(store) == [2]
        assert not await store.confirm([Mark(first.run, "numbers", 1, first.digest)])  # late: no harm
        assert await numbers_after(store) == [2]
        assert not await store.confirm([Mark("unknown", "numbers", 7, "x")])

    async def numbers_after(store: Store) -> list[int]:
        return [n for pending in await everything(store) for n in json.loads(pending.payload())]

    in_store(tmp_path, work)


def test_a_lake_that_forgot_what_it_confirmed_gets_the_rest_under_a_new_run(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await put(store, rows(0), rows(1))
        first, _ = await everything(store)
        await store.confirm([Mark(first.run, "numbers", 1, first.digest)])
        assert not await store.confirm([Mark(first.run, "numbers", 0, "")])  # not asked for: only late
        [broken] = await store.confirm([Mark(first.run, "numbers", 0, "")], asked=True)
        assert not broken.is_security
        [left] = await everything(store)
        assert (left.run != first.run, left.seq, left.header().previous) == (True, 1, "")

    in_store(tmp_path, work)


def test_a_change_of_table_starts_a_new_run(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await put(store, rows(0), rows(1, table="other"))
        assert [(p.seq, p.header().table) for p in await everything(store)] == [(1, "t"), (1, "other")]
        assert len({p.run for p in await everything(store)}) == 2

    in_store(tmp_path, work)


def test_incidents_go_before_rows(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await put(store, rows(0), rows(1, kind="quarantine"), rows(2, kind="incidents"))
        assert [p.header().kind for p in await everything(store)] == ["incidents", "quarantine", "rows"]

    in_store(tmp_path, work)


def test_i15_a_full_disk_makes_commits_wait_and_receipts_still_free(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        for n in range(8):
            await put(store, rows(n, pad=100_000))
        pages = store._db._connection.execute("PRAGMA page_count").fetchone()[0]  # the only way to have a small disk
        store._db._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        waiting = [asyncio.create_task(put(store, rows(n, pad=100_000))) for n in (8, 9)]
        await until(lambda: store.trouble)
        assert "full" in store.trouble
        assert not any(task.done() for task in waiting)
        pending = await everything(store)
        await store.confirm([Mark(pending[5].run, "numbers", 6, pending[5].digest)])
        await asyncio.gather(*waiting)
        assert not store.trouble
        assert [json.loads(p.payload()) for p in await everything(store)] == [[6], [7], [8], [9]]

    in_store(tmp_path, work)


def test_a_second_agent_is_told_in_one_line(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(TidewireError, match="another agent is running"), open_store(tmp_path):
        pass


def test_a_store_of_a_newer_agent_is_left_alone(tmp_path: Path) -> None:
    with open_store(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "agent.db") as db:
        db.execute("UPDATE meta SET value = 99 WHERE key = 'format'")
    db.close()
    with pytest.raises(TidewireError, match="format is 99"), open_store(tmp_path):
        pass


def test_a_store_that_is_no_database_is_set_aside_and_the_agent_starts(tmp_path: Path) -> None:
    (tmp_path / "agent.db").write_bytes(b"garbage" * 1000)

    async def work(store: Store) -> None:
        await put(store, rows(0))

    in_store(tmp_path, work)
    assert [path.read_bytes()[:7] for path in tmp_path.glob("agent.damaged-*")] == [b"garbage"]


def test_the_store_survives_close_and_open(tmp_path: Path) -> None:
    key = new_key()

    async def write(store: Store) -> None:
        await put(store, rows(0), state_set={"w": b"1", "x": b"2"})
        await put(store, rows(1), state_delete=["w"])

    async def read(store: Store) -> None:
        checkpoint = await store.checkpoint("p")
        assert (checkpoint.state, checkpoint.digest) == ({"x": b"2"}, "sha256:v")
        await put(store, rows(2))
        assert await numbers_in_outbox(store) == [0, 1, 2]
        assert len({pending.run for pending in await everything(store)}) == 1

    in_store(tmp_path, write, key)
    in_store(tmp_path, read, key)


def test_other_hardware_starts_new_runs(tmp_path: Path) -> None:
    async def write(store: Store) -> None:
        await put(store, rows(0))
        await store.put("hardware", "another machine")

    async def read(store: Store) -> None:
        await put(store, rows(1))
        assert len({pending.run for pending in await everything(store)}) == 2

    in_store(tmp_path, write)
    in_store(tmp_path, read)


def test_i10_node_time_never_goes_back(tmp_path: Path) -> None:
    assert NodeClock.resume(None, boot="a", boottime_us=5, wall_us=1_000_000).offset_us == 999_995, "it begins at the wall clock"
    mark = ClockMark("a", 100, 5_000)
    assert NodeClock.resume(mark, boot="a", boottime_us=4_950).offset_us == 100
    assert NodeClock.resume(mark, boot="a", boottime_us=1_000).offset_us == 4_000, "a snapshot of the machine was restored"
    assert NodeClock.resume(mark, boot="b", boottime_us=10).offset_us == 5_000


def said(what: str, **more: Any) -> dict[str, Any]:
    return {"incident": "i1", "trigger": "t", "transition": what, "severity": "critical", "message": what, **more}


async def after(store: Store, *transitions: dict[str, Any]) -> list[tuple[str, str, bool, str]]:
    """(transition, state, acknowledged, message) of the incidents that are open."""
    for transition in transitions:
        await store.commit("p", "sha256:v", 1, Commit({}, {}, transitions=[transition]))
    return [(i["transition"], i["state"], i["acknowledged"], i["message"]) for i in await store.incidents()]


def test_an_incident_is_open_until_a_transition_closes_it(tmp_path: Path) -> None:
    async def go(store: Store) -> None:
        await store.checkpoint("p")
        assert await after(store, said("raised", state="active")) == [("raised", "active", False, "raised")]
        for word in ("reminded", "escalated", "suppressed", "a word of a newer engine"):
            assert await after(store, said(word, state="active")) == [(word, "active", False, "raised")]
        assert await after(store, said("cleared", state="cleared")) == [("cleared", "cleared", False, "raised")]
        again = said("raised_again", state="active", acknowledged=False)
        assert await after(store, said("acknowledged", state="active", acknowledged=True), again) == [
            ("raised_again", "active", False, "raised_again")
        ]
        latched = said("latched", state="active", acknowledged=False, flags="latched,chattering")
        assert await after(store, latched) == [("latched", "active", False, "raised_again")]
        assert (await store.incidents())[0]["flags"] == "latched,chattering"
        assert await after(store, said("reset", state="closed")) == []
        await store.mark_note("i1", "reset ann/4", "done")  # of one that is closed: nothing to remember

    with open_store(tmp_path) as store:
        asyncio.run(go(store))


@pytest.mark.parametrize("word", ["cleared", "reset", "retired"])
def test_a_transition_without_a_state_closes_by_its_word(tmp_path: Path, word: str) -> None:
    async def go(store: Store) -> None:
        await store.checkpoint("p")
        assert await after(store, said("acknowledged")) == [("acknowledged", "active", True, "acknowledged")]
        assert await after(store, said(word)) == []

    with open_store(tmp_path) as store:
        asyncio.run(go(store))
