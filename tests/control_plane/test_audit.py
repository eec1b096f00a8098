"""I4 and I2 by SQL over the lake: the audit holds at every receipt, whatever crashes, and sees each thing that is broken."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_rig import Cloud, Node, record, text
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.audit import Audit
from control_plane.lake_views import NodeName
from edge_agent.outbox import Mark
from pipelines.engine.state import State

NODES = Path("nodes")


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path / "cloud")


@pytest.fixture
def node(tmp_path: Path, cloud: Cloud) -> Iterator[Node]:
    made = Node(tmp_path / "node", cloud, text())
    yield made
    made.close()


def some_records(chance: random.Random, count: int) -> list[str]:
    """Of every fate: good, filtered, filtered by NULL, twice, invalid, not JSON, late, hot."""
    found = []
    for i in range(count):
        late = chance.choice([0, 0, 0, -30])
        v = chance.choice([1.0, 13, 55.0, 85.0, 95.0, "x"])
        found.append(record(1_700_000_000 + i + late, chance.choice("ab"), v, chance.choice([None, 0, 1, 2, 3, 4])))
        if chance.random() < 0.1:
            found.append("garbage")
    return found


def work(node: Node, chance: random.Random, count: int = 60) -> None:
    for _ in range(3):
        node.read(some_records(chance, count // 3))
        node.commit()


def equations(found: Audit) -> set[str]:
    return {difference["equation"] for difference in found.differences}


def rows_of(found: Audit, of: str, name: str) -> dict[str, int]:
    (one,) = [figures for figures in found.figures if (figures["of"], figures["name"]) == (of, name)]
    return dict(one["rows"])


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), timed=st.booleans())
def test_i4_the_audit_holds_at_every_receipt(tmp_path_factory: pytest.TempPathFactory, seed: int, timed: bool) -> None:
    """Random records and batches; lost replies, small requests, crashes of node and lake between any two of them."""
    chance = random.Random(seed)
    directory = tmp_path_factory.mktemp("audit")
    cloud = Cloud(directory / "cloud")
    node = Node(directory / "node", cloud, text(timed=timed))
    records = some_records(chance, 150)
    for _ in range(12):
        node.read(records[node.at : node.at + chance.choice([0, 1, 20])])
        if chance.random() < 0.6:
            node.commit()
        if chance.random() < 0.2:
            node.crash()
        if chance.random() < 0.2:
            cloud.restart()
        if node.send(chance.choice([1, 3_000, 1 << 30]), hears=chance.random() < 0.7):
            found = cloud.audit()
            assert found.holds, found.differences
    node.drain()
    found = cloud.audit()
    assert found.holds, found.differences
    for name, figures in ((f["name"], f["rows"]) for f in found.figures if f["of"] == "stream"):
        assert figures["pending"] == 0, "everything arrived"
        assert figures["written"] == figures.get("stored", 0) + figures.get("unfit", 0), name
    node.close()


def test_i4_figures_down_to_the_step_and_reason(cloud: Cloud, node: Node) -> None:
    good = [record(1_700_000_000 + i, "a", 60.0 if i < 5 else 1.0, i) for i in range(1, 11)]
    bad = [record(1_700_000_000, "a", 13, 1), record(1_700_000_000, "a", 1.0, None), good[0], record(0, "a", 99, 1), "garbage"]
    node.read([*good, *bad])
    node.drain()
    found = cloud.audit()
    assert found.holds
    source = rows_of(found, "source", "s")
    assert source == {
        "read": 15, "undecodable": 1, "made": 14, "quarantined": 1, "dropped_invalid": 0, "deduplicated": 1, "filtered": 1,
        "filtered_null": 1, "accepted": 10,
    }  # fmt: skip
    steps = next(figures["steps"] for figures in found.figures if figures["of"] == "source")
    assert steps == {"filtered by steps[0]": 1, "filtered_null by steps[1]": 1, "deduplicated by steps[2]": 1}
    assert rows_of(found, "stream", "high") == {"offered": 10, "not_selected": 6, "written": 4, "stored": 4, "pending": 0}
    assert rows_of(found, "stream", "_quarantine")["stored"] == 2, "quarantine obeys the same ledgers"
    assert sum(reason["rows"] for reason in found.reasons) == 2
    window = rows_of(found, "window", "w")
    assert window["contributed"] == 10 == window["emitted"] + window["open"]
    assert found.tables["readings"] == 10


def test_incidents_obey_the_same_ledgers(cloud: Cloud, node: Node) -> None:
    node.read([record(1_700_000_000 + i, "a", 85.0 if i % 2 else 1.0, i + 1) for i in range(4)])
    node.drain()
    found = cloud.audit()
    figures = rows_of(found, "stream", "_incidents")
    assert found.holds
    assert figures["written"] == figures["stored"] == found.tables["incidents"] > 0


def test_what_has_not_arrived_is_pending_and_no_difference(cloud: Cloud, node: Node) -> None:
    work(node, random.Random(1))
    node.commit(final=True)
    while node.send(1) and "_ledger" not in stored(cloud, "segments")["stream"].to_pylist():
        pass
    found = cloud.audit()
    assert found.holds
    figures = rows_of(found, "stream", "readings")
    assert figures["pending"] == figures["written"] > 0, "the ledger came before the rows"


# Broken on purpose


def test_a_count_that_is_dropped_is_seen(cloud: Cloud, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with_counts = State.with_counts

    def forgetful(self: State, kind: str, name: str, counts: Any) -> State:
        return with_counts(self, kind, name, {word: n for word, n in counts.items() if not word.startswith("filtered")})

    monkeypatch.setattr(State, "with_counts", forgetful)
    work(node, random.Random(1))
    node.drain()
    assert equations(cloud.audit()) == {"source"}


def test_a_stream_whose_rows_are_not_offered_is_seen(cloud: Cloud, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with_counts = State.with_counts

    def forgetful(self: State, kind: str, name: str, counts: Any) -> State:
        return with_counts(self, kind, name, {word: n for word, n in counts.items() if word != "not_selected"})

    monkeypatch.setattr(State, "with_counts", forgetful)
    work(node, random.Random(1))
    node.drain()
    assert equations(cloud.audit()) == {"stream"}


def test_a_window_that_loses_rows_is_seen(cloud: Cloud, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with_counts = State.with_counts

    def forgetful(self: State, kind: str, name: str, counts: Any) -> State:
        return with_counts(self, kind, name, {word: n for word, n in counts.items() if word != "emitted"})

    monkeypatch.setattr(State, "with_counts", forgetful)
    work(node, random.Random(1))
    node.drain()
    assert equations(cloud.audit()) == {"window"}


def stored(cloud: Cloud, name: str) -> Any:
    return DeltaTable(cloud.lake / name).to_pyarrow_dataset().to_table()


def test_i2_a_row_that_is_twice_in_its_table_is_seen(cloud: Cloud, node: Node) -> None:
    work(node, random.Random(1))
    node.drain()
    write_deltalake(cloud.lake / "readings", stored(cloud, "readings").slice(3, 1), mode="append")
    found = cloud.audit()
    assert equations(found) == {"table"}
    (difference,) = found.differences
    assert difference["found"] == difference["told"] + 1


def test_i2_a_row_in_place_of_another_is_seen(cloud: Cloud, node: Node) -> None:
    work(node, random.Random(1))
    node.drain()
    table = stored(cloud, "readings")
    write_deltalake(cloud.lake / "readings", table.take([0, *range(2, table.num_rows), 0]), mode="overwrite")
    assert equations(cloud.audit()) == {"table"}


def test_a_row_that_is_gone_from_its_table_is_seen(cloud: Cloud, node: Node) -> None:
    work(node, random.Random(1))
    node.drain()
    write_deltalake(cloud.lake / "high", stored(cloud, "high").slice(1), mode="overwrite")
    assert equations(cloud.audit()) == {"table"}


def test_i3_a_segment_that_is_freed_without_a_receipt_is_seen(cloud: Cloud, node: Node) -> None:
    """The bug "free on send": the node forgets what the lake never got."""
    work(node, random.Random(1))
    batch = node._wait(node.store.pending_segments(1 << 30))
    last = {(pending.run, pending.stream): pending for pending in batch}
    marks = [Mark(run, stream, p.seq, p.digest, p.header().run_rows, p.header().run_rows) for (run, stream), p in last.items()]
    node._wait(node.store.confirm(marks))
    node._wait(node.store.close_streams("press"))
    work(node, random.Random(2))
    node.drain()
    assert equations(cloud.audit()) == {"arrived"}


def test_a_restored_card_brings_rows_twice_and_is_seen(cloud: Cloud, node: Node, tmp_path: Path) -> None:
    work(node, random.Random(1))
    saved = node.save(tmp_path / "saved")
    work(node, random.Random(2))
    node.drain()
    assert cloud.audit().holds
    node.restore_card(saved)
    node._wait(node.store.close_streams("press"))
    work(node, random.Random(2))
    node.drain()
    found = cloud.audit()
    assert "twice" in equations(found)
    assert all(difference["found"] > 0 for difference in found.differences)


def test_another_store_on_the_node_is_a_restart_not_a_difference(cloud: Cloud, node: Node, tmp_path: Path) -> None:
    work(node, random.Random(1))
    node.send(1)
    other = Node(tmp_path / "other", cloud, text())
    work(other, random.Random(2))
    other.drain()
    other.close()
    found = cloud.audit()
    assert found.holds
    (restart,) = found.restarts
    assert restart["rows"] >= 0 and restart["former"] != restart["lineage"]


# Scope


def test_from_and_to_are_times_of_receipt(cloud: Cloud, node: Node) -> None:
    work(node, random.Random(1))
    node.drain()
    until = cloud.now_us + 1
    first = rows_of(cloud.audit(), "source", "s")
    work(node, random.Random(2))
    node.drain()
    whole = rows_of(cloud.audit(), "source", "s")
    assert rows_of(cloud.audit(to_us=until), "source", "s") == first
    since = rows_of(cloud.audit(from_us=until), "source", "s")
    assert since["read"] == whole["read"] - first["read"] > 0
    assert rows_of(cloud.audit(from_us=until), "stream", "readings")["stored"] > 0
    assert cloud.audit(to_us=until).holds and cloud.audit(from_us=until).holds


def test_one_pipeline_or_node_alone(cloud: Cloud, node: Node, tmp_path: Path) -> None:
    other = Node(tmp_path / "other", cloud, text(), "n2")
    for one in (node, other):
        work(one, random.Random(1))
        one.drain()
    other.close()
    write_deltalake(cloud.lake / "readings", stored(cloud, "readings").slice(0, 1), mode="append")
    broken = stored(cloud, "readings")["_node"][0].as_py()
    fine = "n2" if broken == "n1" else "n1"
    assert cloud.audit(node=fine).holds and not cloud.audit(node=broken).holds
    assert not cloud.audit(pipeline="press").holds
    assert cloud.audit(pipeline="it's none").holds


def test_unknown_is_not_zero(cloud: Cloud, node: Node) -> None:
    from control_plane.audit import Scope, run_audit

    work(node, random.Random(1))
    node.drain()
    nodes = [NodeName("n1", "pi1", {}, 5, True, ("press",)), NodeName("n9", "pi9", {}, 0, False, ("press",))]
    found = run_audit(cloud.lake, Scope(pipeline="press"), nodes)
    assert [(h["node"], h["in_contact"], h["as_of"] is None) for h in found.heard] == [("pi1", True, False), ("pi9", False, True)]
    assert {figures["node"] for figures in found.figures} == {"pi1"}


def test_an_empty_lake_holds(cloud: Cloud) -> None:
    found = cloud.audit()
    assert found.holds and not found.figures and not found.tables
