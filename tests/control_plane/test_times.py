"""I10: wrong clocks change labels at most, and `tidewire query` shows what time it was, as well as anybody knew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from audit_rig import Cloud, Node, S, record, text

from control_plane.query import run_query
from edge_agent import clock
from edge_agent.clock import Anchor, NodeClock

T0 = 1_800_000_000 * S  # what time it is when the tests begin
DAY = 86_400 * S


@dataclass
class World:
    """The time there is, and the machine's clocks."""

    true_us: int = T0
    wall_offset_us: int = 0  # of the machine's wall clock
    booted_us: int = T0 - 100 * S
    boot: str = "boot-one-0000"
    quality: str = "unsynced"

    def reboot(self, off_us: int, boot: str) -> None:
        self.true_us += off_us
        self.booted_us, self.boot = self.true_us - S, boot


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(clock, "wall_us", lambda: made.true_us + made.wall_offset_us)
    monkeypatch.setattr(clock, "boottime_us", lambda: made.true_us - made.booted_us)
    monkeypatch.setattr(clock, "boot_id", lambda: made.boot)
    monkeypatch.setattr(clock, "quality", lambda: made.quality)
    return made


@pytest.fixture
def node(tmp_path: Path, world: World) -> Iterator[Node]:
    made = Node(tmp_path / "node", Cloud(tmp_path / "cloud"), text(timed=False))
    yield made
    made.close()


def see(node: Node, world: World, n: int) -> None:
    """A record now, committed; it says when it truly was in `v`'s place, `n`."""
    node.store.clock_quality = world.quality
    node.arrival_us, node.wall_us = node.store.clock.now_us(), world.true_us + world.wall_offset_us
    node.read([record(0, "a", 1.0, n)], 0)
    node.commit()


def tell(node: Node, world: World) -> None:
    """An exchange with the control plane."""
    now_us = node.store.clock.now_us()
    node._wait(node.store.anchor(Anchor.told(node.store.clock.time_line, now_us - S, now_us + S, world.true_us)))


def times(node: Node) -> dict[int, tuple[datetime, str]]:
    node.drain()
    result = run_query(node.cloud.lake, "select n, _event_time, _clock from readings order by n")
    return {n: (at, quality) for n, at, quality in result.rows}


def at(us: int) -> datetime:
    return datetime.fromtimestamp(us / S, UTC)


@pytest.mark.parametrize("wall", [0, -T0, 10 * 365 * DAY], ids=["right", "1970", "2036"])
def test_i10_31_days_without_sync_then_a_sync(node: Node, world: World, wall: int, tmp_path: Path) -> None:
    world.wall_offset_us = wall
    node = Node(tmp_path / "began-with-a-wrong-clock", node.cloud, text(timed=False))
    told = []
    for day in range(31):
        world.true_us += DAY
        told.append(world.true_us)
        see(node, world, day + 1)
    world.wall_offset_us, world.quality = 0, "synced"
    world.true_us += DAY
    see(node, world, 32)
    found = times(node)
    assert len(found) == 32, "rows are the same whatever the clock says"
    for day, us in enumerate(told):
        when, quality = found[day + 1]
        assert abs(when - at(us)) < timedelta(milliseconds=1)
        assert quality == "anchored"
    assert found[32][1] == "synced"
    assert node.cloud.audit().holds
    node.close()


def test_i10_the_control_planes_word_is_an_anchor_and_outlasts_a_restart(node: Node, world: World, tmp_path: Path) -> None:
    world.wall_offset_us = -T0
    node = Node(tmp_path / "began-in-1970", node.cloud, text(timed=False))
    world.true_us += DAY
    before = world.true_us
    see(node, world, 1)
    tell(node, world)
    node.crash()
    world.true_us += DAY
    see(node, world, 2)
    found = times(node)
    assert abs(found[1][0] - at(before)) < timedelta(seconds=2) > abs(found[2][0] - at(world.true_us))
    assert {quality for _, quality in found.values()} == {"anchored"}
    node.close()


def test_i10_a_boot_that_never_knew_the_time_is_bounded_by_its_neighbours(node: Node, world: World) -> None:
    world.quality = "synced"
    see(node, world, 1)
    world.quality, world.wall_offset_us = "unsynced", -T0
    world.reboot(3 * DAY, "boot-two-0000")
    node.crash()
    see(node, world, 2)
    middle = world.true_us
    world.reboot(2 * DAY, "boot-three-00")
    world.quality, world.wall_offset_us = "synced", 0
    node.crash()
    see(node, world, 3)
    found = times(node)
    assert found[2][1] == "unsynced" and found[1][0] < found[2][0] < found[3][0]
    assert abs(found[3][0] - at(world.true_us)) < timedelta(milliseconds=1)
    sql = (
        "select make_timestamptz(node_time_us + earliest_offset_us) as least,"
        " make_timestamptz(node_time_us + latest_offset_us) as most from segment_times where boot like 'boot-two%'"
    )
    ((least, most), *_) = run_query(node.cloud.lake, sql).rows
    assert least <= at(middle) <= most


def test_i10_quarantine_is_stamped_by_the_wall_clock_and_repaired(node: Node, world: World) -> None:
    world.wall_offset_us = -T0
    see(node, world, 1)
    node.read(["garbage"], 0)
    node.commit()
    true_us = world.true_us
    world.quality, world.wall_offset_us = "synced", 0
    world.true_us += DAY
    see(node, world, 2)
    node.drain()
    ((when, quality),) = run_query(node.cloud.lake, "select _event_time, _clock from quarantine").rows
    assert abs(when - at(true_us)) < timedelta(seconds=1) and quality == "anchored"


def test_anchors_the_better_one_counts_and_an_old_one_fades() -> None:
    near = Anchor.told("line", 0, 2 * S, 100 * S)
    assert (near.utc_offset_us, near.uncertainty_us) == (99 * S, S)
    slow = Anchor.told("line", 10 * S, 30 * S, 120 * S)
    assert not slow.is_better_than(near)
    assert Anchor.told("line", 2 * DAY, 2 * DAY + 20 * S, 0).is_better_than(near), "two days of drift are 17 s"
    assert slow.is_better_than(Anchor("other", 0, 0, 0)) and slow.is_better_than(None)
    assert not slow.is_worth_writing_after(near) and slow.is_worth_writing_after(None)


def test_another_store_in_the_same_boot_is_another_time_line() -> None:
    assert NodeClock("boot", 5).time_line != NodeClock("boot", 6).time_line
    assert NodeClock("boot", 5).time_line == NodeClock("boot", 5).time_line
