"""A lake or one of its tables from a backup, changed or removed by hand: nothing twice, nobody stuck, and it is said (I2, I4)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable
from fake_node import Stream, rows
from test_settle import Rig, mark, stream

from pipelines.contract.segment import Segment


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def source() -> Stream:
    return stream()


def fill(rig: Rig, source: Stream, count: int) -> list[Segment]:
    made = [source.seal(rows(len(source.sealed))) for _ in range(count)]
    for segment in made:
        rig.send(segment)
    return made


def backup(rig: Rig, *tables: str) -> None:
    for table in tables:
        shutil.copytree(rig.directory / "lake" / table, rig.directory / "backup" / table)


def restore(rig: Rig, *tables: str) -> None:
    for table in tables:
        shutil.rmtree(rig.directory / "lake" / table)
        shutil.copytree(rig.directory / "backup" / table, rig.directory / "lake" / table)
    rig.restart()


def values(rig: Rig) -> list[float]:
    assert max(rig.ids().values()) == 1
    return sorted(r["value"] for r in rig.table("t"))


def differences(rig: Rig) -> list[tuple[object, ...]]:
    return [tuple(found.values()) for found in rig.settler._lake.differences()]


def test_a_lake_of_yesterday_takes_again_what_nodes_hold_and_a_stub_for_the_rest(rig: Rig, source: Stream) -> None:
    fill(rig, source, 2)
    backup(rig, "t", "segments")
    fill(rig, source, 4)
    restore(rig, "t", "segments")
    gap = rig.send(source.sealed[4], source.sealed[5])
    assert mark(gap) == 2 and not gap.errors, "answered with the mark of yesterday"
    outcome = rig.send(source.instead(3, 4), source.sealed[4], source.sealed[5])
    (m,) = outcome.marks.values()
    assert (m.seq, m.rows, m.stored) == (6, 6, 4) and not outcome.errors
    assert values(rig) == [0, 1, 4, 5] and differences(rig) == []
    assert [r["verdict"] for r in rig.table("segments") if r["first"] == 3] == ["void"]


def test_segments_of_yesterday_take_nothing_twice(rig: Rig, source: Stream) -> None:
    fill(rig, source, 2)
    backup(rig, "segments")
    fill(rig, source, 4)
    restore(rig, "segments")
    assert differences(rig) == [("t", 2, 6)], "said at once"
    assert mark(rig.send(*source.sealed)) == 6
    assert values(rig) == [0, 1, 2, 3, 4, 5] and differences(rig) == []


def test_segments_of_yesterday_count_rows_that_nodes_freed_as_stored(rig: Rig, source: Stream) -> None:
    fill(rig, source, 2)
    backup(rig, "segments")
    fill(rig, source, 3)
    restore(rig, "segments")
    outcome = rig.send(source.instead(3, 4, 5), source.seal(rows(5.0)))
    (m,) = outcome.marks.values()
    assert (m.seq, m.rows, m.stored) == (6, 6, 6)
    assert rig.verdicts()[5][0] == "stored" and "in the table before" in rig.verdicts()[5][1]
    assert values(rig) == [0, 1, 2, 3, 4, 5]


def test_a_table_of_yesterday_goes_on_and_its_hole_is_said(rig: Rig, source: Stream) -> None:
    fill(rig, source, 2)
    backup(rig, "t")
    fill(rig, source, 3)
    restore(rig, "t")
    assert differences(rig) == [("t", 5, 2)]
    assert mark(rig.send(*source.sealed, source.seal(rows(5.0)))) == 6
    assert values(rig) == [0, 1, 5] and differences(rig) == [("t", 6, 3)]


def test_a_delta_restore_keeps_the_marks_and_nothing_comes_twice(rig: Rig, source: Stream) -> None:
    fill(rig, source, 4)
    table = DeltaTable(rig.directory / "lake" / "t")
    table.restore(table.version() - 2)
    for _ in range(2):  # also for a process that has it open
        assert mark(rig.send(*source.sealed)) == 4
        rig.restart()
    assert values(rig) == [0, 1] and differences(rig) == [("t", 4, 2)]
    fill(rig, source, 1)
    assert values(rig) == [0, 1, 4]


def test_a_delta_restore_of_segments_asks_for_a_new_run(rig: Rig, source: Stream) -> None:
    """Its marks stay and their digests are gone: what follows cannot be told from a fork."""
    fill(rig, source, 4)
    table = DeltaTable(rig.directory / "lake" / "segments")
    table.restore(table.version() - 2)
    rig.restart()
    outcome = rig.send(source.seal(rows(4.0)))
    assert mark(outcome) == 4 and outcome.security and "follow" in outcome.errors[0]
    new_run = stream()
    assert mark(rig.send(new_run.seal(rows(4.0)))) == 1
    assert values(rig) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("restarts", [True, False])
def test_a_removed_table_begins_anew(rig: Rig, source: Stream, restarts: bool) -> None:
    fill(rig, source, 3)
    shutil.rmtree(rig.directory / "lake" / "t")
    if restarts:
        rig.restart()
        assert differences(rig) == [("t", 3, 0)]
    assert mark(rig.send(*source.sealed, source.seal(rows(3.0)))) == 4
    assert values(rig) == [3.0]


def test_a_renamed_table_keeps_its_rows_and_the_next_go_on(rig: Rig, source: Stream) -> None:
    fill(rig, source, 3)
    (rig.directory / "lake" / "t").rename(rig.directory / "lake" / "t_2025")
    rig.restart()
    fill(rig, source, 1)
    assert values(rig) == [3.0] and len(rig.table("t_2025")) == 3 and differences(rig) == [("t", 4, 1)]


def test_a_version_that_names_another_table_goes_on_there(rig: Rig, source: Stream) -> None:
    fill(rig, source, 3)
    source.table = "u"
    renamed = source.seal(rows(3.0))
    assert mark(rig.send(renamed)) == 4
    assert values(rig) == [0, 1, 2] and [r["value"] for r in rig.table("u")] == [3.0] and differences(rig) == []


def test_a_lake_that_is_gone_is_an_empty_lake(rig: Rig, source: Stream) -> None:
    fill(rig, source, 3)
    shutil.rmtree(rig.directory / "lake")
    rig.restart()
    outcome = rig.send(source.sealed[2])
    assert mark(outcome) == 0 and not outcome.errors
    assert mark(rig.send(source.instead(1, 2), source.sealed[2])) == 3 and values(rig) == [2.0]
