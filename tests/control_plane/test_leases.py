"""Partitions of nodes among ingest processes: one each, moved when one dies, with nobody's clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from control_plane.leases import BEAT_EVERY_S, TTL_S, Leases, chosen
from control_plane.store import Store
from pipelines.contract.subjects import PARTITIONS

ALL = frozenset(range(PARTITIONS))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'control.db'}")
    yield opened
    opened.close()


class Process:
    def __init__(self, store: Store, name: str, clock_s: float) -> None:
        self._store, self._clock_s = store, clock_s
        with store.write() as db:
            self.leases = Leases(db, name)

    def step(self, now_s: float) -> frozenset[int]:
        with self._store.write() as db:
            return self.leases.step(db, self._clock_s + now_s)


def test_partitions_are_shared_and_each_has_one_process(store: Store) -> None:
    one, two = Process(store, "one", 0), Process(store, "two", 1e9)  # clocks agree on nothing
    assert one.step(0) == ALL
    for now in (5, 10):
        one.step(now)
        two.step(now)
    assert one.leases.held | two.leases.held == ALL and not one.leases.held & two.leases.held
    assert len(one.leases.held) > 3 and len(two.leases.held) > 3


def test_a_dead_process_loses_its_partitions_and_a_slow_one_keeps_them(store: Store) -> None:
    one, two = Process(store, "one", 0), Process(store, "two", -50)
    for now in range(0, 20, int(BEAT_EVERY_S)):
        one.step(now)
        two.step(now)
    one.step(20)  # sees its last beat
    assert one.step(20 + TTL_S - 1) != ALL, "younger than the limit"
    assert one.step(20 + TTL_S) == ALL
    two.step(100)
    one.step(100)
    two.step(101)
    assert not one.leases.held & two.leases.held and two.leases.held


def test_who_leaves_gives_up_at_once(store: Store) -> None:
    one, two = Process(store, "one", 0), Process(store, "two", 0)
    for now in (0, 5, 10):
        one.step(now)
        two.step(now)
    with store.write() as db:
        two.leases.leave(db)
    assert one.step(11) == ALL


def test_a_lease_taken_by_somebody_quicker_is_left(store: Store) -> None:
    one = Process(store, "one", 0)
    with store.write() as db:
        db.execute(sa.text("INSERT INTO ingest_processes VALUES ('two', 1)"))
        db.execute(sa.text("INSERT INTO ingest_leases VALUES (0, 'two')"))
    assert 0 not in one.step(0)
    one.step(TTL_S - 1)
    assert one.step(TTL_S) == ALL


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=6))
def test_one_process_more_or_less_moves_only_its_share(names: set[str]) -> None:
    gone = min(names)
    for partition in range(PARTITIONS):
        if chosen(partition, names) != gone:
            assert chosen(partition, names - {gone}) == chosen(partition, names)
