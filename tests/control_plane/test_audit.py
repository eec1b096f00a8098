"""I4 and I2 by SQL over the lake: the audit holds at every receipt, whatever crashes, and sees each thing that is broken."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_rig import KEY, Cloud, Node, record, text
from deltalake import DeltaTable, write_deltalake
from fake_node import FakeNode, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_process import ServerProcess

from control_plane.audit import EQUATIONS, Audit, Scope, run_audit
from control_plane.lake_views import LEDGERS, NodeName, table_names
from control_plane.query import run_query
from edge_agent.outbox import Mark
from edge_agent.salvage import salvage
from pipelines.engine.state import State
from tests.docs.blocks import blocks


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


def quiet(node: Node) -> None:
    """Everything arrives, and one more commit tells that nothing else is pending."""
    node.drain()
    node.read([record(1_700_000_100, "a", 1.0, 99)])
    node.drain()


def equations(found: Audit) -> set[str]:
    return {difference["equation"] for difference in found.differences}


def rows_of(found: Audit, of: str, name: str) -> dict[str, int]:
    (one,) = [figures for figures in found.figures if (figures["of"], figures["name"]) == (of, name)]
    return dict(one["rows"])


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    work(node, random.Random(1))
    node.drain()
    nodes = [NodeName("n1", "pi1", {}, 5, True, ("press",)), NodeName("n9", "pi9", {}, 0, False, ("press",))]
    found = run_audit(cloud.lake, Scope(pipeline="press"), nodes)
    assert [(h["node"], h["in_contact"], h["as_of"] is None) for h in found.heard] == [("pi1", True, False), ("pi9", False, True)]
    assert {figures["node"] for figures in found.figures} == {"pi1"}


def test_an_empty_lake_holds(cloud: Cloud) -> None:
    found = cloud.audit()
    assert found.holds and not found.figures and not found.tables


# Stubs and refused segments


def test_i3_an_evicted_segment_is_a_gap_and_no_difference(cloud: Cloud, tmp_path: Path) -> None:
    node = Node(tmp_path / "small", cloud, text(), buffer_bytes=300_000)
    node.read([record(1_700_000_000 + i, "k" * 400 + str(i), 1.0 + i / 7, i + 1) for i in range(200)])
    node.commit()
    for round_ in range(60):
        noise = random.Random(round_)
        keys = ["".join(noise.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=400)) for _ in range(50)]
        node.read([record(1_700_000_000 + i, key, noise.random(), i + 1) for i, key in enumerate(keys)])
        node.commit()
    node.drain()
    node.close()
    found = cloud.audit()
    assert found.holds, found.differences
    figures = rows_of(found, "stream", "readings")
    assert figures["evicted"] > 0
    assert figures["written"] == figures["stored"] + figures["evicted"]
    assert figures["evicted"] == sum(gap["rows"] for gap in found.gaps if gap["stream"] == "readings")
    assert {gap["reason"] for gap in found.gaps} == {"evicted"}


@pytest.mark.parametrize("sent", [0, 1])
def test_i3_rows_whose_ledger_was_damaged_with_them_are_no_difference(cloud: Cloud, node: Node, sent: int) -> None:
    """All segments that told of the rows are gone, or the last ones; the pipeline begins anew, with a ledger of its own."""
    work(node, random.Random(1))
    for _ in range(sent):
        node.send(1)
    work(node, random.Random(2))
    node.store.close()
    with sqlite3.connect(node.directory / "agent.db") as db:
        db.execute("UPDATE outbox SET data = zeroblob(length(data))")
        db.execute("UPDATE pipelines SET crc = crc + 1")
    salvage(node.directory / "agent.db", KEY.public, "test", "")
    node.start()
    node.at = 0
    work(node, random.Random(1))
    quiet(node)
    found = cloud.audit()
    assert found.holds, found.differences
    assert rows_of(found, "stream", "readings")["damaged"] > 0


def test_a_stub_that_is_dropped_is_seen(cloud: Cloud, node: Node) -> None:
    """The bug "evict without stub": what follows goes on under a new run as if nothing were missing."""
    work(node, random.Random(1))
    node.save(node.directory.parent / "kept")
    with sqlite3.connect(node.directory / "agent.db") as db:
        db.execute("DELETE FROM outbox WHERE stream_id IN (SELECT id FROM streams WHERE stream = 'readings')")
        db.execute("DELETE FROM streams WHERE stream = 'readings'")
    node.crash()
    work(node, random.Random(2))
    quiet(node)
    found = cloud.audit()
    assert equations(found) == {"arrived"}
    assert any("readings" in difference["place"] for difference in found.differences)


def test_a_refused_segment_is_listed_and_no_difference(cloud: Cloud, node: Node) -> None:
    work(node, random.Random(1))
    cloud.versions.clear()
    node.drain()
    found = cloud.audit()
    assert found.holds, found.differences
    figures = rows_of(found, "stream", "readings")
    assert figures["refused"] == figures["written"] == sum(r["rows"] for r in found.refused if r["stream"] == "readings") > 0
    assert "registered here" in found.refused[0]["reason"]


# The page


PAGE = {block.info: block.text for block in blocks(Path(__file__).parents[2] / "docs" / "audit.md")}


def found_by_hand(cloud: Cloud, name: str) -> int:
    """Rows that the page's statement returns in `tidewire query`."""
    tables = [t for t in table_names(cloud.lake) if t != "segments"] if name == "table" else [""]
    return sum(len(run_query(cloud.lake, PAGE[f"sql {name}"].replace("TABLE", table)).rows) for table in tables)


def test_the_page_shows_what_the_audit_runs() -> None:
    assert {f"sql {name}": sql.strip() for name, sql in EQUATIONS.items()}.items() <= {
        k: v.strip() for k, v in PAGE.items()
    }.items()
    assert PAGE["sql view"].strip() == LEDGERS.strip()


def test_the_pages_sql_runs_as_it_stands_and_sees_what_is_broken(cloud: Cloud, node: Node) -> None:
    work(node, random.Random(1))
    quiet(node)
    assert [name for name in EQUATIONS if found_by_hand(cloud, name)] == []
    assert run_query(cloud.lake, PAGE["sql"]).columns
    write_deltalake(cloud.lake / "readings", stored(cloud, "readings").slice(3, 1), mode="append")
    segments = stored(cloud, "segments")
    keep = [i for i, row in enumerate(segments.to_pylist()) if row["stream"] != "high"]
    write_deltalake(cloud.lake / "segments", segments.take(keep), mode="overwrite")
    assert {name for name in EQUATIONS if found_by_hand(cloud, name)} == {"table", "arrived"}


# The command


def test_the_commands_exit_status_says_whether_it_holds(server: ServerProcess) -> None:
    asyncio.run(upload_some(server))
    done = server.cli("audit")
    assert done.returncode == 1, "the fake node's ledgers say that it read one record and made none"
    assert "DIFFERENCE press on pi: source sim: 0 where 1 should be" in done.stdout
    assert server.cli("audit", "--node", "nobody").returncode == 1
    assert server.cli("audit", "--from", "yesterday").returncode == 2
    assert server.cli("audit", "--to", "2020-01-01").returncode == 0
    assert json.loads(server.cli("audit", "press", "--node", "pi", "--json").stdout)["holds"] is False
    (row,) = server.json(
        "query", "select n.name, n.in_contact, count(*) rows from press_rows join nodes n on n.id = _node group by all"
    )
    assert row == {"name": "pi", "in_contact": True, "rows": 2}
    server.stop()
    assert server.cli("audit").returncode == 3


async def upload_some(server: ServerProcess) -> None:
    server.apply()
    node = await FakeNode.join(server.token(), "pi")
    counts = {"offered": 2, "written": 2, "not_selected": 0}
    ledgers = {"commit": 1, "source": {"sim": {"read": 1}}, "stream": counts, "sealed": 2, "pending": {"rows": 2}}
    await node.upload(node.stream().seal(rows(1.0, 2.0), ledgers=ledgers))
    await node.exchange()
    await node.close()
