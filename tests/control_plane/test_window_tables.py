"""Tables of windows: `name__log` has every revision, `name` the latest of each window and group."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from fake_node import STAMP, rows
from test_settle import Rig, mark, stream

from control_plane.lineage import WindowKey
from control_plane.query import run_query
from control_plane.upkeep import REFRESH_S, Upkeep
from pipelines.contract.spec import load_spec

KEYS = {"w__log": WindowKey(("machine",), "d1"), "t": None}
CHANGED = {"w__log": WindowKey(("machine",), "d2")}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.settler._tables_of = lambda _, digest: CHANGED if digest == "sha256:v2" else KEYS
    return rig


def windows(*found: tuple[int, str | None, int, float]) -> pa.Table:
    """(start in seconds, machine, revision, average)."""
    starts, machines, revisions, averages = zip(*found, strict=True)
    return pa.table(
        {
            "_event_time": pa.array([s * 1_000_000 for s in starts], STAMP),
            "_window_start": pa.array([s * 1_000_000 for s in starts], STAMP),
            "machine": pa.array(machines, pa.string()),
            "average": pa.array(averages, pa.float64()),
            "_revision": pa.array(revisions, pa.int64()),
        }
    )


def latest(rig: Rig, what: str = "epoch(_window_start)::int, machine, average") -> list[tuple[Any, ...]]:
    found = run_query(rig.directory / "lake", f"select {what} from w order by all")
    return [tuple(row) for row in found.rows]


def test_the_table_shows_the_latest_revision_and_the_log_all(rig: Rig) -> None:
    source = stream(table="w__log")
    first = source.seal(windows((0, "a", 0, 1.0), (0, "b", 0, 2.0), (0, None, 0, 3.0), (10, "a", 0, 4.0)))
    assert mark(rig.send(first, source.seal(windows((0, "a", 2, 1.5), (0, "a", 1, 1.25), (0, None, 1, 3.5))))) == 2
    assert latest(rig) == [(0, "a", 1.5), (0, "b", 2.0), (0, None, 3.5), (10, "a", 4.0)]
    assert len(rig.table("w__log")) == 7
    assert run_query(rig.directory / "lake", "select count(*) from w__log").rows == [(7,)]


def test_revisions_replace_within_a_state_and_add_up_across(rig: Rig) -> None:
    """A new run of the same state goes on; a store that began anew, or another definition, has windows of its own."""
    old, goes_on, anew, other = (stream(table="w__log") for _ in range(4))
    rig.send(old.seal(windows((0, "a", 0, 1.0))))
    rig.send(goes_on.seal(windows((0, "a", 1, 2.0))))
    assert latest(rig, "average") == [(2.0,)]
    rig.send(anew.seal(windows((0, "a", 0, 3.0)), lineage="l2"))
    rig.send(other.seal(windows((0, "a", 0, 4.0)), version="sha256:v2"))
    assert latest(rig, "average") == [(2.0,), (3.0,), (4.0,)]


def test_maintenance_makes_the_table_for_other_readers(rig: Rig) -> None:
    now = [0.0]
    keeper, source = Upkeep(rig.directory / "lake", lambda: now[0]), stream(table="w__log")

    def read() -> list[float]:
        return sorted(DeltaTable(rig.directory / "lake" / "w").to_pyarrow_table()["average"].to_pylist())

    rig.send(source.seal(windows((0, "a", 0, 1.0), (0, "b", 0, 5.0))))
    keeper.step()
    assert read() == [1.0, 5.0]
    rig.send(source.seal(windows((0, "a", 1, 2.0)).append_column("note", [["x"]])))
    keeper.step()
    assert read() == [1.0, 5.0], "not at once"
    now[0] = REFRESH_S
    keeper.step()
    assert read() == [2.0, 5.0]
    version = DeltaTable(rig.directory / "lake" / "w").version()
    now[0] = 2 * REFRESH_S
    keeper.step()
    assert DeltaTable(rig.directory / "lake" / "w").version() == version, "nothing new"
    assert latest(rig, "average") == [(2.0,), (5.0,)]


def test_rows_and_windows_share_no_name(rig: Rig) -> None:
    rig.settler._tables_of = lambda *_: {"w__log": None, "w": None, "t": None, "t__log": None}
    rig.send(stream(table="w__log").seal(windows((0, "a", 0, 1.0))), stream(table="t").seal(rows(1.0)))
    Upkeep(rig.directory / "lake").refresh()
    outcome = rig.send(stream(table="w").seal(rows(1.0)), stream(table="t__log").seal(windows((0, "a", 0, 1.0))))
    assert sorted(why for _, _, why in outcome.refused) == [
        "the table t holds rows: give the window's sink another table",
        "the table w shows a window: give the sink another table",
    ]
    assert rig.table("t")[0]["value"] == 1.0 and latest(rig, "average") == [(1.0,)]


def test_the_group_is_exact_for_every_type(rig: Rig) -> None:
    rig.settler._tables_of = lambda *_: {"w__log": WindowKey(("at", "n"), "d")}
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    found = windows((0, "a", 0, 1.0), (0, "a", 0, 2.0)).append_column("n", pa.array([1, None]))
    rig.send(stream(table="w__log").seal(found.append_column("at", pa.array([noon, noon], STAMP))))
    assert len(latest(rig)) == 2


def test_a_windows_sink_writes_the_log() -> None:
    spec = load_spec(
        "tidewire: 1\npipeline: p\nsources:\n  s:\n    file: {path: /x}\n    decode: json\nschema:\n  m: {type: string}\n"
        "windows:\n  w:\n    every: 1m\n    by: [m]\n    select:\n      n: count(*)\n"
        "sinks:\n  a: {lake: {table: t}}\n  b: {lake: {table: w}, from: w}\n"
    )
    assert spec.lake_tables() == {"a": "t", "b": "w__log"}


def test_the_very_first_rows_can_be_read_before_segments_tells_of_them(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "incidents", pa.table({"incident": ["i1"]}))
    assert run_query(tmp_path, "select incident from incidents").rows == [("i1",)]
