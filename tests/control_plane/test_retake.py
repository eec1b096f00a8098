"""Refused segments, tried again once the cause is gone; which segments the lake has (I2, I4)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from fake_node import rows
from test_settle import KEY, Rig, mark, stream

from control_plane.lake import Lake
from control_plane.settle import Upload


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_i2_a_refused_segment_is_stored_once_its_cause_is_gone(rig: Rig) -> None:
    source = stream()
    rig.settler._tables_of = lambda *_: set()
    outcome = rig.send(source.seal(rows(1.0)), source.seal(rows(2.0, 3.0)))
    (m,) = outcome.marks.values()
    assert (m.seq, m.rows, m.stored) == (2, 3, 0) and len(outcome.refused) == 2
    assert set(rig.settler.retake(None, 2).values()) == {outcome.refused[0][2]}, "not yet"
    rig.restart()
    digest = source.sealed[1].digest
    for _ in range(3):
        assert rig.settler.retake([digest], 2) == {digest: ""}
        rig.restart()
    assert [(r["_run"], r["_stream"], r["_seq"], r["_row"], r["value"]) for r in rig.table("t")] == [
        (f"{source.run}.2", "rows", 1, 0, 2.0),
        (f"{source.run}.2", "rows", 1, 1, 3.0),
    ]
    (taken,) = [r for r in rig.table("segments") if r["run"] != source.run]
    assert (taken["verdict"], taken["reason"], taken["ledgers"]) == ("stored", f"retaken: {digest}", "{}")
    assert [r["verdict"] for r in rig.table("segments") if r["run"] == source.run] == ["refused"] * 2
    assert [(r["seq"], r["retaken"]) for r in rig.settler.refused()] == [(1, False), (2, True)]
    assert rig.settler._lake.differences() == []
    (after,) = rig.send(source.seal(rows(4.0))).marks.values()
    assert (after.seq, after.stored) == (3, 1), "the stream itself goes on as before"


def test_i2_a_crash_while_retaking_stores_nothing_twice(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stream()
    rig.settler._tables_of = lambda *_: set()
    rig.send(source.seal(rows(1.0)))
    rig.restart()

    def crash(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append_segments", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            rig.settler.retake(None, 2)
    rig.restart()
    assert rig.settler.retake(None, 2) == {source.sealed[0].digest: ""}
    assert len(rig.table("t")) == 1 and len(rig.table("segments")) == 2


def test_what_still_does_not_fit_stays_refused(rig: Rig) -> None:
    source = stream()
    rig.send(source.seal(rows(1.0)), source.seal(pa.table({"value": ["text"]})))
    (why,) = rig.settler.retake(None, 2).values()
    assert "string in the segment" in why
    assert len(list((rig.directory / "refused").iterdir())) == 2, "kept once"
    for kept in (rig.directory / "refused").glob("*.segment"):
        kept.write_bytes(kept.read_bytes()[:-1])
    (why,) = rig.settler.retake(None, 2).values()
    assert "is damaged" in why


def test_the_links_of_a_range_are_answered(rig: Rig) -> None:
    source = stream()
    rig.send(source.seal(rows(1.0)), source.stub(4, rows=7), source.seal(rows(2.0)), source.seal(None))
    key = source.sealed[0].header.key
    (outcome,) = rig.settler.settle([Upload("n1", KEY.public, [], [key], [(key, 2, 5), (key, 7, 9)])], 0)
    assert outcome.links == [(key, 4, source.sealed[1].link), (key, 5, source.sealed[2].link)]
    assert mark(outcome) == 6
