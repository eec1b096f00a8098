"""Several ingest processes on one lake: real ones, and two handles in one process for each order that matters (I2)."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import pytest
from deltalake import DeltaTable
from fake_node import rows
from test_settle import KEY, Rig, mark, stream, tables_of

from control_plane import lake_table, upkeep
from control_plane.audit import Scope, run_audit
from control_plane.lake import Lake
from control_plane.lake_table import Conflict, LakeTable
from control_plane.process import leave
from control_plane.settle import Settler, Upload
from control_plane.upkeep import Upkeep
from pipelines.contract.segment import StreamKey

PROCESSES, STREAMS, SEGMENTS = 3, 4, 12


def serve(directory: Path, seed: int, blobs: list[list[bytes]]) -> None:
    """One ingest process: random parts of all streams, until every mark is at the end."""
    chance = random.Random(seed)
    settler = Settler(Lake(directory / "lake"), directory / "refused", tables_of)
    keeper = Upkeep(directory / "lake")
    for _ in range(1000):
        uploads = []
        for stream_blobs in chance.sample(blobs, chance.randint(1, STREAMS)):
            start = chance.randrange(len(stream_blobs))
            uploads.append(Upload("n1", KEY.public, stream_blobs[start : start + chance.randint(1, 6)]))
        settler.settle(uploads, 1)
        if chance.random() < 0.1:
            keeper.step()
        outcomes = settler.settle([Upload("n1", KEY.public, [one[-1] for one in blobs])], 1)
        if [m.seq for m in outcomes[0].marks.values()] == [SEGMENTS] * STREAMS:
            leave()  # at Python's own end a thread of a library that wants the interpreter now and then aborts the process
    raise AssertionError("the streams do not end")


def test_i2_processes_that_take_the_same_segments_store_each_once(tmp_path: Path) -> None:
    streams = [stream(f"s{n}", "t" if n % 2 else "u") for n in range(STREAMS)]
    for source in streams:
        for n in range(SEGMENTS):
            source.seal(rows(*range(n + 1)))
    blobs = [[segment.data for segment in source.sealed] for source in streams]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=serve, args=(tmp_path, seed, blobs)) for seed in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
        assert process.exitcode == 0
    rig = Rig(tmp_path)
    for table in ("t", "u"):
        found = rig.ids(table)
        assert max(found.values()) == 1 and sum(found.values()) == STREAMS // 2 * SEGMENTS * (SEGMENTS + 1) // 2
    assert len(rig.table("segments")) == STREAMS * SEGMENTS
    assert rig.settler._lake.differences() == []
    for source in streams:
        (m,) = rig.send(source.sealed[-1]).marks.values()
        assert (m.seq, m.stored, m.rows) == (SEGMENTS, m.rows, SEGMENTS * (SEGMENTS + 1) // 2)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Rig, Rig]:
    one, other = Rig(tmp_path), Rig(tmp_path)
    other.settler._pause = lambda _: None
    return one, other


def test_i2_a_mark_read_before_another_process_moved_it_is_not_believed(two: tuple[Rig, Rig]) -> None:
    """A handle that goes past another's commit while it makes its own must not keep what it read before."""
    one, other = two
    moving, own = stream("moving"), stream("own")
    segments = [moving.seal(rows(n)) for n in range(4)]
    one.send(segments[0], own.seal(rows(1.0)))
    assert mark(other.send(segments[0])) == 1, "both have read the mark"
    assert other.settler._lake.table("t").mark(segments[0].header.key) == 1
    one.send(*segments[1:])
    other.settler._lake.table("t").append(*_batch(other, own.seal(rows(2.0))))  # goes past the commit of `one`
    assert mark(other.send(*segments)) == 4
    assert mark(one.send(*segments)) == 4
    assert max(one.ids().values()) == 1 and sum(one.ids().values()) == 6 and len(one.table("segments")) == 5


def test_i2_the_slower_of_two_processes_reads_again(two: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two
    source = stream()
    segments = [source.seal(rows(n)) for n in range(3)]
    prepared = LakeTable._prepared

    def overtaken(self: LakeTable, schema: object) -> object:
        handle = prepared(self, schema)
        monkeypatch.setattr(LakeTable, "_prepared", prepared)
        one.send(*segments)
        return handle

    other.send(stream().seal(rows(7.0)))
    monkeypatch.setattr(LakeTable, "_prepared", overtaken)
    assert mark(other.send(*segments)) == 3
    assert sum(one.ids().values()) == 4 and max(one.ids().values()) == 1 and len(one.table("segments")) == 4


@pytest.mark.parametrize("is_new", [True, False])
def test_i4_rows_that_another_process_called_void_cannot_come_late(
    two: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """It hung before its commit; meanwhile the node evicted what it held, and its stub was settled elsewhere."""
    one, other = two
    source = stream()
    if not is_new:
        one.send(stream().seal(rows(7.0)))
    segments = [source.seal(rows(n)) for n in range(2)]
    stub = source.instead(1, 2)
    append = LakeTable.append

    def late(self: LakeTable, *args: object) -> None:
        monkeypatch.setattr(LakeTable, "append", append)
        assert mark(one.send(stub)) == 2
        append(self, *args)

    monkeypatch.setattr(LakeTable, "append", late)
    assert mark(other.send(*segments)) == 2
    assert sum(one.ids().values()) == (0 if is_new else 1)
    assert [row["verdict"] for row in one.table("segments") if row["seq"] == 2] == ["void"]
    assert one.settler._lake.differences() == []
    told = run_audit(one.directory / "lake", Scope()).differences
    assert [difference["place"] for difference in told if difference["equation"] == "table"] == [], "also of a table without rows"
    assert mark(one.send(source.seal(rows(3.0)))) == 3, "the next rows flow, and bring the columns"
    assert sum(one.ids().values()) == (1 if is_new else 2)


def test_a_column_that_another_process_added_is_a_conflict_and_no_loss(
    two: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    source, wide = stream(), stream()
    one.send(source.seal(rows(1.0)))
    other.send(*source.sealed)
    one.send(wide.seal(rows(2.0).append_column("note", [["x"]])))
    assert mark(other.send(source.seal(rows(3.0)))) == 2
    assert sorted((r["value"], r["note"]) for r in one.table("t")) == [(1.0, None), (2.0, "x"), (3.0, None)]


def test_i2_a_handle_that_adds_a_column_does_not_go_past_what_others_stored(
    two: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    source, wide = stream(), stream()
    other.send(stream().seal(rows(7.0)))
    segments = [source.seal(rows(1.0)), wide.seal(rows(2.0).append_column("note", [["x"]]))]
    fields = lake_table._delta_fields

    def overtaken(more: list[object]) -> object:
        monkeypatch.setattr(lake_table, "_delta_fields", fields)
        one.send(segments[0])
        return fields(more)

    monkeypatch.setattr(lake_table, "_delta_fields", overtaken)
    assert {m.seq for m in other.send(*segments).marks.values()} == {1}
    assert max(one.ids().values()) == 1 and sum(one.ids().values()) == 3 and len(one.table("segments")) == 3


def test_i2_a_stale_handle_cannot_commit(two: tuple[Rig, Rig]) -> None:
    one, other = two
    source = stream()
    one.send(source.seal(rows(1.0)))
    table = Lake(other.directory / "lake").table("t")
    two_segments = [source.seal(rows(2.0)), source.seal(rows(3.0))]
    batch = _batch(other, two_segments[1])
    one.send(*two_segments)
    with pytest.raises(Conflict):
        table.append(*batch)
    assert sum(one.ids().values()) == 3
    table.reload()
    with pytest.raises(AssertionError, match="do not rise"):
        table.append(*_batch(other, two_segments[0]))


def _batch(rig: Rig, segment: object) -> tuple[object, dict[StreamKey, int]]:
    from control_plane.settle import _rows

    header = segment.header
    known = rig.settler._lake.table("t").schema
    return rig.settler._with_lineage("t", [(segment, _rows(segment))], known, 1), {header.key: header.seq}


def test_a_reader_keeps_what_it_reads_while_files_are_made_into_one(rig_and_reader: tuple[Rig, Upkeep]) -> None:
    rig, keeper = rig_and_reader
    before = DeltaTable(rig.directory / "lake" / "t").to_pyarrow_dataset()
    keeper.step()
    now = DeltaTable(rig.directory / "lake" / "t")
    assert len(now.file_uris()) == 1
    assert before.to_table().num_rows == now.to_pyarrow_table().num_rows == 4
    assert mark(rig.send(stream().seal(rows(9.0)))) == 1, "a handle from before goes on"
    assert sum(rig.ids().values()) == 5


@pytest.fixture
def rig_and_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Upkeep]:
    monkeypatch.setattr(upkeep, "SMALL_FILES_MAX", 2)
    rig = Rig(tmp_path)
    source = stream()
    for n in range(4):
        rig.send(source.seal(rows(n)))
    return rig, Upkeep(rig.directory / "lake")
