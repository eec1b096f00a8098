"""Segments into real Delta tables: exactly once, whatever is sent again, cut or crashes (I2, I3)."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from fake_node import STAMP, Stream, incident_rows, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.durable import Disk, sync_filesystem
from control_plane.lake import Lake
from control_plane.settle import Outcome, Settler, Upload
from control_plane.upkeep import Upkeep
from pipelines.contract.keys import Key
from pipelines.contract.segment import INCIDENTS, LEDGER, QUARANTINE, REQUESTS, Segment, StreamKey
from pipelines.engine.answers import answer
from pipelines.engine.run import INCIDENT_SCHEMA, QUARANTINE_SCHEMA

KEY = Key.from_entropy(bytes(range(32)))


def tables_of(pipeline: str, digest: str) -> set[str]:
    return {"t", "u"} if (pipeline, digest) == ("press", "sha256:v") else set()


class Rig:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.restart()

    def restart(self) -> None:
        self.settler = Settler(Lake(self.directory / "lake"), self.directory / "refused", tables_of)

    def send(self, *segments: Segment) -> Outcome:
        upload = Upload("n1", KEY.public, [s.data for s in segments])
        return self.settler.settle([upload], 1_000)[0]

    def table(self, name: str) -> list[dict[str, Any]]:
        return DeltaTable(self.directory / "lake" / name).to_pyarrow_dataset().to_table().to_pylist()

    def ids(self, name: str = "t") -> Counter[tuple[str, int, int]]:
        return Counter((r["_run"], r["_seq"], r["_row"]) for r in self.table(name))

    def verdicts(self) -> dict[int, tuple[str, str]]:
        return {r["seq"]: (r["verdict"], r["reason"]) for r in self.table("segments")}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def stream(name: str = "rows", table: str = "t", **options: Any) -> Stream:
    return Stream("n1", KEY, name, table, **options)


def mark(outcome: Outcome) -> int:
    (found,) = outcome.marks.values()
    return found.seq


def test_rows_carry_their_lineage(rig: Rig) -> None:
    source = stream()
    assert mark(rig.send(source.seal(rows(1.0, 2.0)))) == 1
    row = rig.table("t")[1]
    expected = {"_node": "n1", "_run": source.run, "_stream": "rows", "_seq": 1, "_row": 1, "_pipeline": "press", "_version": 1}
    assert expected.items() <= row.items()
    assert row["value"] == 2.0 and row["_params"] == "sha256:p" and row["_clock"] == "synced" and row["_received_at"].year == 1970
    (segment,) = rig.table("segments")
    assert segment["verdict"] == "stored" and segment["digest"] == source.sealed[0].digest and segment["table_name"] == "t"


def test_i2_the_same_segments_again_change_nothing(rig: Rig) -> None:
    source = stream()
    segments = [source.seal(rows(*range(n + 1))) for n in range(3)]
    for _ in range(2):
        assert mark(rig.send(*segments, *reversed(segments))) == 3
    rig.restart()
    assert mark(rig.send(*segments)) == 3
    assert sum(rig.ids().values()) == 6 and max(rig.ids().values()) == 1


def test_a_gap_is_answered_with_the_mark_and_stores_nothing(rig: Rig) -> None:
    source = stream()
    one, _, three = (source.seal(rows(1.0)) for _ in range(3))
    outcome = rig.send(three, one)
    assert mark(outcome) == 1 and not outcome.errors and len(rig.table("t")) == 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_i2_any_order_loss_duplication_and_restart(tmp_path: Path, data: st.DataObject) -> None:
    rig = Rig(tmp_path / os.urandom(4).hex())
    streams = [stream("a"), stream("b"), stream("a", table="u")]
    segments = [s.seal(rows(*range(n + 1))) for s in streams for n in range(3)]
    for _ in range(data.draw(st.integers(1, 5))):
        rig.send(*data.draw(st.lists(st.sampled_from(segments), max_size=8)))
        if data.draw(st.booleans()):
            rig.restart()
    outcome = rig.send(*segments)
    assert [m.seq for m in outcome.marks.values()] == [3, 3, 3] and not outcome.errors
    found = rig.ids("t") + rig.ids("u")
    assert sum(found.values()) == 18 and max(found.values()) == 1
    assert len(rig.table("segments")) == 9


def test_i2_a_crash_between_rows_and_marks_doubles_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stream()
    segments = [source.seal(rows(1.0, 2.0)) for _ in range(2)]

    def crash(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append_segments", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            rig.send(*segments)
    assert sum(rig.ids().values()) == 4, "the rows were committed before the crash"
    rig.restart()
    assert mark(rig.send(*segments, source.seal(rows(3.0)))) == 3
    assert sum(rig.ids().values()) == 5 and max(rig.ids().values()) == 1


def test_i3_a_card_put_back_during_such_a_crash_loses_nothing_silently(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is ahead with one segment 2, the node seals another: as many rows, but not these (simulator seed 52)."""
    source = stream()
    first, former = source.seal(rows(1.0)), source.seal(rows(2.0))
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "append_segments", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rig.send(first, former)
    rig.restart()
    source.sealed.pop()
    outcome = rig.send(first, source.seal(rows(3.0)))
    assert mark(outcome) == 2
    ((_, seq, why),) = outcome.refused
    assert seq == 2 and "other rows" in why
    assert rig.verdicts()[1][0] == "stored"


@pytest.mark.parametrize("by_lake", [False, True])
def test_i2_a_refused_segment_stays_refused_after_a_crash(rig: Rig, monkeypatch: pytest.MonkeyPatch, by_lake: bool) -> None:
    from control_plane.lake_table import LakeTable

    append = LakeTable.append

    def choosy(self: LakeTable, table: pa.Table, marks: Any) -> None:
        if 13.0 in table.column("value").to_pylist():
            raise ValueError("not this one")
        append(self, table, marks)

    def crash(*_: object) -> None:
        raise RuntimeError("power cut")

    source = stream()
    bad = rows(13.0) if by_lake else pa.table({"value": ["text"]})
    segments = [source.seal(rows(1.0)), source.seal(bad), source.seal(rows(3.0))]
    with monkeypatch.context() as patch:
        patch.setattr(LakeTable, "append", choosy)
        patch.setattr(Lake, "append_segments", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            rig.send(*segments)
    assert sorted(r["value"] for r in rig.table("t")) == [1.0, 3.0], "the table is ahead of segments"
    rig.restart()
    outcome = rig.send(*segments)
    assert mark(outcome) == 3 and [seq for _, seq, _ in outcome.refused] == [2]
    assert [rig.verdicts()[seq][0] for seq in (1, 2, 3)] == ["stored", "refused", "stored"]
    assert ("not this one" if by_lake else "string in the segment") in outcome.refused[0][2]


def test_i2_marks_survive_compaction_and_new_handles(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    import control_plane.lake_table as lake_table
    import control_plane.upkeep as upkeep

    monkeypatch.setattr(lake_table, "COMMITS_PER_HANDLE", 2)
    monkeypatch.setattr(upkeep, "SMALL_FILES_MAX", 2)
    source, opened = stream(), []
    open_table = lake_table._open
    monkeypatch.setattr(lake_table, "_open", lambda path: opened.append(path.name) or open_table(path))
    keeper = Upkeep(rig.directory / "lake")
    for _ in range(8):
        assert mark(rig.send(source.seal(rows(1.0)))) == len(source.sealed)
        keeper.step()
    assert opened.count("t") > 3, "the handle is renewed"
    assert len(DeltaTable(rig.directory / "lake" / "t").file_uris()) < 5, "small files are made into large ones"
    rig.send(*source.sealed)
    rig.restart()
    assert mark(rig.send(*source.sealed)) == 8
    assert sum(rig.ids().values()) == 8 and max(rig.ids().values()) == 1 and len(rig.table("segments")) == 8


def test_upkeep_opens_a_table_when_it_may_have_too_many_small_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    import control_plane.upkeep as upkeep

    monkeypatch.setattr(upkeep, "SMALL_FILES_MAX", 3)
    opened: list[str] = []
    monkeypatch.setattr(upkeep, "DeltaTable", lambda path: opened.append(path.name) or DeltaTable(path))
    source, files = stream(), []
    keeper = Upkeep(rig.directory / "lake")
    for _ in range(6):
        rig.send(source.seal(rows(1.0)))
        keeper.step()
        files.append(len(DeltaTable(rig.directory / "lake" / "t").file_uris()))
    assert files == [1, 2, 3, 1, 2, 3], "the fourth small file is one too many"
    assert opened.count("t") == 3, "at first, when there are four, and after they were made one"


def test_a_renewal_that_fails_is_no_harm(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from control_plane.lake_table import LakeTable

    def broken(_: object) -> None:
        raise OSError("No space left on device")

    source = stream()
    rig.send(source.seal(rows(1.0)))
    monkeypatch.setattr(LakeTable, "renew", broken)
    assert mark(rig.send(source.seal(rows(2.0)))) == 2 and sum(rig.ids().values()) == 2


def test_i3_what_a_mark_tells_of_is_on_the_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    import control_plane.lake as lake
    from control_plane.lake_table import LakeTable

    done: list[str] = []
    append, sync = LakeTable.append, lake.sync_filesystem

    def noting_append(self: LakeTable, *args: Any) -> None:
        append(self, *args)
        done.append(self._path.name)

    def noting_sync(disk: Disk) -> None:
        sync(disk)
        done.append("sync")

    monkeypatch.setattr(LakeTable, "append", noting_append)
    monkeypatch.setattr(lake, "sync_filesystem", noting_sync)
    source = stream()
    assert mark(rig.send(source.seal(rows(1.0)), source.seal(rows(2.0)))) == 2
    assert done == ["t", "sync", "segments", "sync"], "`segments` never says more than the disk holds"
    rig.send(*source.sealed)
    assert len(done) == 4, "nothing new, nothing to wait for"


def test_a_sync_that_fails_says_so(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    sync_filesystem(disk)
    disk.descriptor = 1 << 20
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_filesystem(disk)


def test_a_table_that_cannot_be_written_holds_up_only_its_own_streams(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from control_plane.lake_table import LakeTable

    append = LakeTable.append

    def full(self: LakeTable, *args: Any) -> None:
        if self._path.name == "t":
            raise OSError("No space left on device")
        append(self, *args)

    bad, good = stream("a", "t"), stream("b", "u")
    with monkeypatch.context() as patch:
        patch.setattr(LakeTable, "append", full)
        outcome = rig.send(bad.seal(rows(1.0)), good.seal(rows(1.0)))
    by_name = {key.stream: m.seq for key, m in outcome.marks.items()}
    assert by_name == {"a": 0, "b": 1} and "No space left" in outcome.errors[0]
    assert mark(rig.send(*bad.sealed)) == 1 and len(rig.table("t")) == 1


def test_a_fork_is_a_security_event_and_stores_nothing(rig: Rig) -> None:
    source = stream()
    rig.send(source.seal(rows(1.0)), source.seal(rows(2.0)))
    clone = stream(run=source.run)
    clone.seal(rows(1.0))
    at_mark = rig.send(clone.sealed[0], clone.seal(rows(9.0)))
    assert "fork" not in str(at_mark.marks) and at_mark.security and at_mark.errors and mark(at_mark) == 2
    after = rig.send(clone.seal(rows(9.0)))
    assert "does not follow" in after.errors[0] and mark(after) == 2
    assert sorted(r["value"] for r in rig.table("t")) == [1.0, 2.0]


def test_segments_of_another_key_or_node_are_refused(rig: Rig) -> None:
    stranger = Stream("n1", Key.from_entropy(bytes(32)), "rows", "t")
    other = Stream("n2", KEY, "rows", "t")
    outcome = rig.send(stranger.seal(rows(1.0)), other.seal(rows(1.0)))
    assert len(outcome.security) == 2 and not outcome.marks and rig.settler._lake.names() == []


@pytest.mark.parametrize("header", [{"engine": "\ud800"}, {"sealed_at_us": 1 << 80}, {"positions": {"sim": "\ud800"}}])
def test_a_header_that_is_no_row_holds_up_nobody(rig: Rig, header: dict[str, Any]) -> None:
    good, bad = stream("good"), stream("bad")
    sealed = bad.seal(rows(1.0))
    body = json.dumps({"format": 1, **asdict(sealed.header), **header, "_blobs": [len(sealed.payload)]}).encode()
    frame = b"TWF1" + len(body).to_bytes(4, "big") + body + sealed.payload
    uploads = [Upload("n1", KEY.public, [KEY.sign(frame) + frame]), Upload("n1", KEY.public, [good.seal(rows(1.0)).data])]
    refused, stored = rig.settler.settle(uploads, 1_000)
    assert refused.errors and refused.security and not refused.marks
    assert mark(stored) == 1


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (pa.table({"value": pa.array([2], pa.int64())}), "column value is double in the table, int64 in the segment"),
        (pa.table({"value": pa.array([2], pa.int32())}), "column value is double in the table, int32 in the segment: give it"),
        (pa.table({"Value": pa.array([2.5])}), "column Value is spelled value in the table"),
        (pa.table({"value": [1.0], "_node": ["x"]}), "column _node is added by the control plane"),
        (
            pa.table({"value": [1.0], "d": pa.array([1], pa.duration("us"))}),
            "column d has type duration[us], which the lake has not",
        ),
        (pa.table({"value": [1.0], "t": pa.array([1], pa.timestamp("ns", "UTC"))}), "column t has type timestamp[ns, tz=UTC]"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_kept_raw(rig: Rig, table: pa.Table, why: str) -> None:
    source = stream()
    rig.send(source.seal(rows(1.5)))
    bad = source.seal(table)
    outcome = rig.send(bad, source.seal(rows(2.5)))
    assert mark(outcome) == 3, "a refused segment does not hold up the stream"
    (refused,) = outcome.refused
    assert refused[:2] == (bad.header.key, 2) and why in refused[2]
    assert rig.verdicts()[2][0] == "refused" and sorted(r["value"] for r in rig.table("t")) == [1.5, 2.5]
    (kept,) = (rig.directory / "refused").glob("*.segment")
    assert kept.read_bytes() == bad.data and kept.stat().st_mode & 0o777 == 0o600
    rig.restart()
    assert rig.send(bad).refused == outcome.refused, "a node that lost the reply learns it again"


def test_a_wider_batch_adds_nullable_columns_and_a_narrower_one_gets_null(rig: Rig) -> None:
    source = stream()
    wide = rows(2.0).append_column("note", pa.array(["x"]))
    outcome = rig.send(source.seal(rows(1.0)), source.seal(wide), source.seal(rows(3.0)))
    assert not outcome.refused
    rig.restart()
    rig.send(source.seal(pa.table({"note": ["y"]})))
    assert sorted((r["_seq"], r["value"], r["note"]) for r in rig.table("t")) == [
        (1, 1.0, None), (2, 2.0, "x"), (3, 3.0, None), (4, None, "y"),
    ]  # fmt: skip


def test_declared_widenings_keep_every_value(rig: Rig) -> None:
    source = stream()
    wide = pa.table({"n": pa.array([2**40]), "x": pa.array([0.1])})
    narrow = pa.table({"n": pa.array([7], pa.int16()), "x": pa.array([0.5], pa.float32())})
    assert not rig.send(source.seal(wide), source.seal(narrow)).refused
    assert [(r["n"], r["x"]) for r in rig.table("t")] == [(2**40, 0.1), (7, 0.5)]
    other = stream(table="u")
    outcome = rig.send(other.seal(narrow), other.seal(wide), other.seal(narrow))
    assert [seq for _, seq, _ in outcome.refused] == [2] and "another table" in outcome.refused[0][2]
    assert len(rig.table("u")) == 2, "a column of the lake never becomes wider"


def test_required_columns_stay_required(rig: Rig) -> None:
    required = pa.schema([pa.field("value", pa.float64(), nullable=False)])
    source = stream()
    adds = pa.table([[1.0], [1]], schema=pa.schema([*required, pa.field("k", pa.int64(), nullable=False)]))
    outcome = rig.send(
        source.seal(pa.table([[1.0]], schema=required)),
        source.seal(pa.table({"value": pa.array([None], pa.float64())})),
        source.seal(pa.table({"other": [1]})),
        source.seal(adds),
    )
    assert mark(outcome) == 4 and [seq for _, seq, _ in outcome.refused] == [2, 3, 4]
    assert [r["value"] for r in rig.table("t")] == [1.0]


@pytest.mark.parametrize("table", ["segments", "incidents", "../x", "A", "", "a" * 64])
def test_rows_go_only_into_tables_that_are_theirs(rig: Rig, table: str) -> None:
    outcome = rig.send(stream(table=table).seal(rows(1.0)))
    assert mark(outcome) == 1 and len(outcome.refused) == 1
    assert rig.settler._lake.names() == ["segments"]


def test_system_tables_take_only_their_kind(rig: Rig) -> None:
    good = stream("incidents", "incidents", kind=INCIDENTS).seal(incident_rows("i1", "raised"))
    bad = stream("other", "t", kind=INCIDENTS).seal(incident_rows("i2", "raised"))
    outcome = rig.send(good, bad)
    assert [why for _, _, why in outcome.refused] == ["rows of kind incidents may not go into the table t"]
    assert [r["incident"] for r in rig.table("incidents")] == ["i1"]


@pytest.mark.parametrize(("kind", "table"), [(INCIDENTS, "incidents"), (QUARANTINE, "quarantine")])
def test_no_node_shapes_a_system_table(rig: Rig, kind: str, table: str) -> None:
    source = stream("s", table, kind=kind)
    poison = pa.table({"at" if kind == INCIDENTS else "offset": ["text"]})
    more = pa.table({"pipeline": ["press"], "mine": [1]})
    outcome = rig.send(source.seal(poison), source.seal(more), source.seal(pa.table({"pipeline": ["press"]})))
    assert mark(outcome) == 3
    assert ["in the segment" in outcome.refused[0][2], outcome.refused[1][2]] == [
        True,
        f"column mine is none of the table {table}",
    ]
    schema = INCIDENT_SCHEMA if kind == INCIDENTS else QUARANTINE_SCHEMA
    assert set(schema.names) <= set(rig.table(table)[0]) and len(rig.table(table)) == 1


@pytest.mark.parametrize("wrong", [{"version": "sha256:other"}, {"pipeline": "saw"}, {"table": "elsewhere"}])
def test_only_a_registered_versions_own_sink_writes_a_table(rig: Rig, wrong: dict[str, str]) -> None:
    source = stream(table=wrong.get("table", "t"))
    outcome = rig.send(source.seal(rows(1.0), **{k: v for k, v in wrong.items() if k != "table"}))
    assert mark(outcome) == 1 and "registered here" in outcome.refused[0][2] and rig.settler._lake.names() == ["segments"]


def test_a_table_has_a_limit_of_columns(rig: Rig) -> None:
    source = stream()
    wide = pa.table({f"c{n}": [1.0] for n in range(501)})
    outcome = rig.send(source.seal(wide), source.seal(wide.select(range(499))), source.seal(rows(1.0)))
    assert [seq for _, seq, _ in outcome.refused] == [1, 3] and "500 are the most" in outcome.refused[0][2]


def test_a_header_only_segment_moves_the_mark_and_keeps_its_ledgers(rig: Rig) -> None:
    outcome = rig.send(stream("ledger", "", kind=LEDGER).seal(None, ledgers={"source": {"sim": {"read": 7}}}))
    assert mark(outcome) == 1 and rig.table("segments")[0]["ledgers"] == '{"source": {"sim": {"read": 7}}}'


def test_a_payload_that_is_no_arrow_or_lies_about_its_rows_is_refused(rig: Rig) -> None:
    source = stream()
    outcome = rig.send(source.seal(rows(1.0), rows=5, run_rows=5), source.seal(rows(2.0)))
    assert [why for _, _, why in outcome.refused] == ["the header says 5 rows, the payload has 1"]
    assert mark(outcome) == 2


def test_marks_of_unknown_streams_are_zero(rig: Rig) -> None:
    key = StreamKey("n1", "r", "s")
    (outcome,) = rig.settler.settle([Upload("n1", KEY.public, [], [key])], 0)
    assert (outcome.marks[key].seq, outcome.marks[key].digest) == (0, "")


def test_times_are_microseconds_in_utc(rig: Rig) -> None:
    rig.send(stream().seal(pa.table({"ts": pa.array([1], pa.timestamp("ms", "UTC"))})))
    schema = pa.schema(DeltaTable(rig.directory / "lake" / "t").schema().to_arrow())
    assert schema.field("ts").type == STAMP and schema.field("_received_at").type == STAMP


def test_old_answers_go_and_never_come_again(rig: Rig) -> None:
    """The rest of the lake keeps what it has; a table from which upkeep drops rows is not one that lost some."""
    answers = stream("_requests", "requests", kind=REQUESTS)
    segments = [answers.seal(answer("q-1", 1, ['{"i": 1}'], 0, "done")), answers.seal(answer("q-2", 1, [], 0, "done"))]
    rig.send(*segments[:1], stream().seal(rows(1.0)))
    upkeep = Upkeep(rig.directory / "lake")
    upkeep.forget_answers(0.0005)
    assert len(rig.table("requests")) == 2, "received after that"
    upkeep.forget_answers(0.002)
    assert (rig.table("requests"), len(rig.table("t"))) == ([], 1)
    assert mark(rig.send(*segments)) == 2
    rig.restart()
    assert mark(rig.send(*segments)) == 2
    assert [row["request"] for row in rig.table("requests")] == ["q-2"]
    assert Lake(rig.directory / "lake").differences() == []


def test_only_answers_go_into_their_table(rig: Rig) -> None:
    assert "may not go" in rig.send(stream(table="requests").seal(rows(1.0))).refused[0][2]
    assert "may not go" in rig.send(stream("_requests", "t", kind=REQUESTS).seal(answer("q", 1, [], 0, "done"))).refused[0][2]
    assert "none of the table" in rig.send(stream("_requests", "requests", kind=REQUESTS).seal(rows(1.0))).refused[0][2]
