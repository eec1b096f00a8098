"""How long the buffer lasts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support import open_store

from edge_agent import rate, reserve
from edge_agent.outbox import Sealed
from edge_agent.rate import HEADER_BYTES, Rate
from edge_agent.store import Commit, Store

SECOND = 1_000_000


def steady(per_s: int, seconds: int) -> dict[str, Rate]:
    rates: dict[str, Rate] = {}
    for second in range(seconds):
        rates = rate.note(rates, [("p/s", per_s - HEADER_BYTES)], second * SECOND)
    return rates


@pytest.mark.parametrize("seconds", [120, 3600, 30_000])
def test_a_steady_stream_is_measured_from_the_start_on(seconds: int) -> None:
    assert steady(10_000, seconds)["p/s"].per_s(seconds * SECOND) == pytest.approx(10_000, rel=0.02)
    assert rate.lasts_s(steady(10_000, seconds).values(), 10**9, seconds * SECOND) == pytest.approx(100_000, rel=0.02)


def test_what_was_long_ago_counts_less() -> None:
    busy = steady(10_000, 7200)
    later = 7200 + int(rate.MEMORY_S)
    assert busy["p/s"].per_s(later * SECOND) == pytest.approx(10_000 / 2.718, rel=0.1)
    assert rate.note(busy, [], 10**7 * SECOND) == {}


def test_nothing_is_said_before_it_is_known_nor_of_silence() -> None:
    assert rate.lasts_s(steady(10_000, 30).values(), 10**9, 30 * SECOND) is None
    assert rate.lasts_s([], 10**9, 0) is None
    assert rate.lasts_s(steady(10_000, 100).values(), -5, 100 * SECOND) == 0, "a full buffer lasts no longer"


def test_a_clock_that_steps_back_harms_nothing() -> None:
    assert Rate(5.0, 100 * SECOND, 0).after(5, 50 * SECOND) == Rate(10.0, 100 * SECOND, 0)


def test_durations_read_as_people_say_them() -> None:
    assert [rate.text(s) for s in (40, 720, 26 * 3600, 9 * 86400)] == ["40 s", "12 min", "26 h", "9 days"]


def test_the_store_keeps_the_rate_over_a_restart(tmp_path: Path) -> None:
    async def commit(store: Store) -> dict[str, Rate]:
        await store.checkpoint("p")
        await store.commit("p", "sha256:v", 1, Commit({}, {}, sealed=[Sealed("s", "rows", "t", 1, b"x" * 1000)]))
        assert await store.buffer_lasts_s() is None
        return await store.rates()

    with open_store(tmp_path) as store:
        first = asyncio.run(commit(store))["p/s"]
    with open_store(tmp_path) as store:
        second = asyncio.run(commit(store))["p/s"]
    assert second.since_us == first.since_us
    assert second.weight == pytest.approx(2 * (1000 + HEADER_BYTES), rel=0.1)


def test_i9_a_disk_that_is_smaller_than_the_budget_bounds_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 4 << 20

    def left(path: Path) -> int:
        return max(room - sum(file.stat().st_size for file in path.parent.glob("agent.db*")), 0)

    monkeypatch.setattr(reserve, "room_bytes", left)

    async def fill(store: Store) -> int:
        await store.checkpoint("p")
        for _ in range(200):
            await store.commit("p", "sha256:v", 1, Commit({}, {}, sealed=[Sealed("s", "rows", "t", 1, b"x" * 50_000)]))
        return (await store.backlog()).bytes

    with open_store(tmp_path, buffer_bytes=1 << 30) as store:
        assert asyncio.run(fill(store)) < 1.2 * room
        limit, fits = store.budget
        assert (limit, fits < 1.2 * room) == (1 << 30, True)
