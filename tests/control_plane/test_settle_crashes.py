"""A crash at every step between what arrives and its receipt; a disk that lies; commits torn by a power cut (I2, I3, I4)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from fake_node import Stream, rows
from test_settle import KEY, Rig, mark, stream

import control_plane.lake as lake
import control_plane.lake_table as lake_table
import control_plane.refusals as refusals
from control_plane.heal import ASIDE
from control_plane.lake import Lake
from control_plane.settle import Upload
from pipelines.contract.segment import Segment


class Crash(BaseException):
    """Nothing in the code catches it, as nothing catches SIGKILL."""


@contextmanager
def crash_at(monkeypatch: pytest.MonkeyPatch, point: int) -> Iterator[list[str]]:
    """Die at the `point`th step; gives the names of the steps passed."""
    passed: list[str] = []

    def step(name: str) -> None:
        passed.append(name)
        if len(passed) == point:
            raise Crash(name)

    def around(owner: Any, name: str) -> None:
        do: Callable[..., Any] = getattr(owner, name)

        def guarded(*args: Any, **options: Any) -> Any:
            step(f"before {name}")
            result = do(*args, **options)
            step(f"after {name}")
            return result

        patch.setattr(owner, name, guarded)

    with monkeypatch.context() as patch:
        around(lake_table, "write_file")
        around(lake_table.LakeTable, "append")
        around(lake_table.LakeTable, "_advance")
        around(lake_table.LakeTable, "_prepared")
        around(lake, "sync_filesystem")
        around(refusals, "write_private")
        around(Lake, "append_segments")
        around(Lake, "refusals")
        yield passed


def a_group() -> tuple[list[Segment], dict[str, Stream]]:
    """Two tables, one refused segment, a stub, a segment without rows."""
    one, two = stream("a", "t"), stream("b", "u")
    one.seal(rows(1.0, 2.0))
    one.seal(pa.table({"value": ["text"]}))
    one.seal(rows(3.0))
    two.seal(rows(1.0))
    two.stub(5, rows=40)
    two.seal(rows(4.0, 5.0))
    two.seal(None)
    return [*one.sealed, *two.sealed], {"a": one, "b": two}


def assert_settled(rig: Rig) -> None:
    outcome = rig.send(*a_group_sent)
    marks = {key.stream: (m.seq, m.rows, m.stored) for key, m in outcome.marks.items()}
    assert marks == {"a": (3, 4, 3), "b": (7, 43, 3)}
    assert [(key.stream, seq) for key, seq, _ in outcome.refused] == [("a", 2)] and not outcome.security
    assert sorted((r["_seq"], r["_row"], r["value"]) for r in rig.table("t")) == [(1, 0, 1.0), (1, 1, 2.0), (3, 0, 3.0)]
    assert sorted((r["_seq"], r["_row"], r["value"]) for r in rig.table("u")) == [(1, 0, 1.0), (6, 0, 4.0), (6, 1, 5.0)]
    verdicts = sorted((r["stream"], r["first"], r["seq"], r["rows"], r["verdict"]) for r in rig.table("segments"))
    assert verdicts == [
        ("a", 1, 1, 2, "stored"), ("a", 2, 2, 1, "refused"), ("a", 3, 3, 1, "stored"),
        ("b", 1, 1, 1, "stored"), ("b", 2, 5, 40, "void"), ("b", 6, 6, 2, "stored"), ("b", 7, 7, 0, "stored"),
    ]  # fmt: skip
    assert rig.settler._lake.differences() == []


a_group_sent: list[Segment] = []


@pytest.mark.parametrize("crashes", [1, 2])
def test_i2_i4_rows_once_and_ledgers_right_whatever_step_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: int
) -> None:
    a_group_sent[:] = a_group()[0]
    seen: set[str] = set()
    for point in itertools.count(1):
        rig = Rig(tmp_path / str(point))
        died = 0
        for _ in range(crashes):
            with crash_at(monkeypatch, point) as passed:
                try:
                    rig.send(*a_group_sent)
                except Crash as crash:
                    died += 1
                    seen.add(str(crash))
            rig.restart()
        assert_settled(rig)
        if died == 0:
            break
    assert len(passed) < point and len(seen) == 16, seen


def test_a_stub_whose_rows_were_committed_before_the_crash_is_stored(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stream()
    rig.send(source.seal(rows(1.0)))
    source.seal(rows(2.0, 3.0))
    with crash_at(monkeypatch, 1000), monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Lake, "append_segments", lambda *_: (_ for _ in ()).throw(Crash()))
        rig.send(source.sealed[1])
    rig.restart()
    stub = source.instead(2)
    outcome = rig.send(stub)
    (m,) = outcome.marks.values()
    assert (m.seq, m.digest, m.rows, m.stored) == (2, source.sealed[1].digest, 3, 3)
    assert rig.verdicts()[2][0] == "stored" and len(rig.table("t")) == 3


def test_i2_a_table_never_goes_past_a_stub_that_is_not_in_segments(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash the card may come back with the segment itself: its rows are in no table yet."""
    source = stream()
    segments = [source.seal(rows(n)) for n in range(3)]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Lake, "append_segments", lambda *_: (_ for _ in ()).throw(Crash()))
        rig.send(segments[0], source.instead(2), segments[2])
    rig.restart()
    assert mark(rig.send(*segments)) == 3
    assert sorted(r["value"] for r in rig.table("t")) == [0, 1, 2] and rig.settler._lake.differences() == []


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def entries(rig: Rig, table: str) -> list[Path]:
    return sorted((rig.directory / "lake" / table / "_delta_log").glob("*.json"))


@pytest.mark.parametrize("table", ["t", "segments"])
@pytest.mark.parametrize("damage", ["empty", "cut", "cut at a line", "zeros", "gap"])
def test_i3_a_torn_commit_is_moved_aside_and_its_rows_come_again(rig: Rig, table: str, damage: str) -> None:
    source = stream()
    for n in range(5):
        rig.send(source.seal(rows(n)))
    last = entries(rig, table)[-2 if damage == "gap" else -1]
    whole = last.read_bytes()
    if damage == "gap":
        last.unlink()
    else:
        lines = whole.splitlines(keepends=True)
        torn = {"empty": b"", "cut": whole[:-9], "cut at a line": b"".join(lines[:-1]), "zeros": bytes(len(whole))}
        last.write_bytes(torn[damage])
    if table == "t":  # a power cut that tore a table's commit came before `segments` spoke of it
        for entry in entries(rig, "segments")[-2 if damage == "gap" else -1 :]:
            entry.unlink()
    rig.restart()
    assert list((rig.directory / "lake" / table / ASIDE).iterdir())
    before = mark(rig.settler.settle([Upload("n1", KEY.public, [], [source.sealed[0].header.key])], 0)[0])
    assert before in (3, 4)
    assert mark(rig.send(*source.sealed[before:], source.seal(rows(9.0)))) == 6
    assert sorted(r["value"] for r in rig.table("t")) == [0, 1, 2, 3, 4, 9] and max(rig.ids().values()) == 1
    assert len(rig.table("segments")) == 6 and rig.settler._lake.differences() == []


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_i3_a_commit_without_its_data_file_is_moved_aside(rig: Rig, damage: str) -> None:
    source = stream()
    for n in range(3):
        rig.send(source.seal(rows(n)))
    entries(rig, "segments")[-1].unlink()
    newest = max((rig.directory / "lake" / "t").glob("part-*"), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-20]) if damage == "cut" else newest.unlink()
    rig.restart()
    assert mark(rig.send(*source.sealed)) == 3
    assert sorted(r["value"] for r in rig.table("t")) == [0, 1, 2]


@pytest.mark.parametrize("damage", ["checkpoint", "pointer"])
def test_a_torn_checkpoint_is_moved_aside(rig: Rig, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr(lake_table, "COMMITS_PER_HANDLE", 2)
    source = stream()
    for n in range(4):
        rig.send(source.seal(rows(n)))
    log_dir = rig.directory / "lake" / "t" / "_delta_log"
    (checkpoint, *_) = sorted(log_dir.glob("*.checkpoint.parquet"), reverse=True)
    torn = checkpoint if damage == "checkpoint" else log_dir / "_last_checkpoint"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    rig.restart()
    assert mark(rig.send(*source.sealed, source.seal(rows(9.0)))) == 5
    assert sorted(r["value"] for r in rig.table("t")) == [0, 1, 2, 3, 9]


def test_i3_after_a_failed_sync_no_later_one_is_believed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of a failed sync are clean in memory, and not on the disk: they are written again before a mark is told."""
    import os

    source = stream()
    rig.send(source.seal(rows(1.0)))
    old = {path: path.stat().st_ino for path in (rig.directory / "lake" / "t").rglob("*.parquet")}

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(lake, "sync_filesystem", fails)
        with pytest.raises(OSError, match="Input/output"):
            rig.send(source.seal(rows(2.0)))
    lost = {path: path.stat().st_ino for path in (rig.directory / "lake" / "t").rglob("part-*") if path not in old}
    assert len(lost) == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            rig.send(*source.sealed)
        rig.restart()
        with pytest.raises(OSError, match="Input/output"):
            rig.settler.settle([Upload("n1", KEY.public, [], [source.sealed[0].header.key])], 0)
    assert mark(rig.send(*source.sealed)) == 2
    assert all(path.stat().st_ino != inode for path, inode in lost.items()), "written once more"
    assert all(path.stat().st_ino == inode for path, inode in old.items()), "and only what is in doubt"
    assert sorted(r["value"] for r in rig.table("t")) == [1.0, 2.0]
    assert DeltaTable(rig.directory / "lake" / "t").to_pyarrow_table().num_rows == 2
