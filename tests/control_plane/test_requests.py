"""Requests at the centre: who is asked, who has answered, who is missing; each node once, whatever comes twice, late or never."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from control_plane import fleet, requests, store
from control_plane.assign import Ask, Member, Plans, assign
from control_plane.commands import Commands, Writer
from control_plane.effects import Contact
from control_plane.keys import KeyRing
from control_plane.requests import Answer, Target, fold
from control_plane.selector import parse_selector
from control_plane.store import Store, now_us
from pipelines.contract.document import NodeDocument
from pipelines.contract.errors import Refused
from pipelines.contract.node_state import REQUESTS_MAX, Manifest, Request
from pipelines.engine.answers import answer

ASK = Request("query", {"sql": "select 1"})
WHO = Writer("ann", "because")


# Who answered, pure


def test_the_answer_says_which_nodes_are_missing_and_since_when() -> None:
    targets = [Target("a", "pi01"), Target("b", "pi02"), Target("c", "pi07", "unknown since 02:51")]
    standing = fold(targets, [Answer("q", "a", "done", 3), Answer("q", "b", "failed", 0, "no table")])
    assert standing.says == "1 of 3 nodes answered; failed: pi02; missing: pi07 (unknown since 02:51)"
    assert standing.is_settled
    assert not fold(targets, []).is_settled
    assert fold(targets, []).says.startswith("0 of 3 nodes answered; no answer yet: pi01, pi02")


def test_of_many_missing_nodes_some_are_named() -> None:
    standing = fold([Target(str(i), f"pi{i:02}", "unknown since 02:51") for i in range(30)], [])
    assert standing.says.endswith("and 20 more")
    assert standing.says.count("unknown") == 10


ANSWERS = st.builds(
    Answer,
    st.just("q"),
    st.sampled_from("abcdx"),
    st.sampled_from(["done", "failed", "refused"]),
    st.integers(0, 9),
    st.sampled_from(["", "note"]),
    st.integers(1, 5),
)


@given(st.lists(ANSWERS, max_size=12), st.randoms())
def test_order_and_repetition_of_answers_change_nothing(found: list[Answer], chance: object) -> None:
    targets = [Target(node, f"pi-{node}", "unknown since 1" if node == "d" else "") for node in "abcd"]
    standing = fold(targets, found)
    again = [*found, *found]
    chance.shuffle(again)  # type: ignore[attr-defined]
    assert fold(reversed(targets), again) == standing
    assert [state.id for state in standing.nodes] == ["a", "b", "c", "d"], "each node once; nobody who was not asked"
    answered = {answer.node for answer in found}
    assert {state.id for state in standing.of("done", "failed", "refused")} == answered - {"x"}
    for state in standing.of("done", "failed", "refused"):
        assert min(answer.at for answer in found if answer.node == state.id) in [
            answer.at for answer in found if (answer.node, answer.how, answer.rows) == (state.id, state.state, state.rows)
        ]


# What goes into manifests, pure


def test_a_request_is_in_the_manifest_until_the_node_answered() -> None:
    node = Member("n1", "pi1", {"site": "lyon"})
    ask = Ask("q-1", parse_selector("site=lyon"), ASK)
    manifest = assign(node, Plans(asks=(ask,)), term=1)
    assert manifest.requests == {"q-1": ASK}
    holding = replace(node, manifest=manifest)
    assert assign(holding, Plans(asks=(ask,)), term=1) is manifest
    after = assign(holding, Plans(asks=(replace(ask, answered=frozenset({"n1"})),)), term=1)
    assert (after.requests, after.generation) == ({}, manifest.generation + 1)
    assert assign(replace(node, labels={}), Plans(asks=(ask,)), term=1).requests == {}
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_never_more_than_sixteen_are_open_on_a_node() -> None:
    asks = tuple(Ask(f"q-{i:02}", parse_selector("all"), ASK) for i in range(20))
    requests_ = assign(Member("n1", "pi1", {}), Plans(asks=asks), term=1).requests
    assert list(requests_) == [f"q-{i:02}" for i in range(REQUESTS_MAX)]


# With SQL


class Centre:
    def __init__(self, folder: Path) -> None:
        self.store = Store(f"sqlite:///{folder / 'store.db'}")
        self.keys = KeyRing.open(folder / "keys")
        self.commands = Commands(self.store, self.keys)

    def add(self, *names: str) -> None:
        document = NodeDocument()
        for name in names:
            values = {
                **dict.fromkeys(("labels", "facts"), "{}"), **dict.fromkeys(("seen_digest", "replaced_by", "token"), ""),
                **dict.fromkeys(("joined_at", "last_seen", "seen_generation", "seen_term"), 0),
                "id": f"id-{name}", "name": name, "public": name, "settled_term": 1,
                "document": document.save(), "document_digest": document.digest(),
            }  # fmt: skip
            with self.store.write() as db:
                db.execute(store.nodes.insert().values(values))

    def contact(self, *silent: str) -> Contact:
        now = now_us()
        with self.store.write() as db:
            return Contact({node.id: 0 if node.name in silent else now for node in fleet.all_nodes(db)}, now)

    def ask(self, select: str = "all", until_s: float = 60, kind: str = "query", who: Writer = WHO, *silent: str) -> str:
        request = replace(ASK, kind=kind, body={"pipeline": "p", "sql": "select 1"})
        return str(self.commands.ask(request, select, until_s, who, self.contact(*silent)).result["id"])

    def asked(self, name: str) -> list[str]:
        """Names of nodes that are asked."""
        with self.store.write() as db:
            return [n.name for n in fleet.all_nodes(db) if n.manifest and name in n.manifest.requests]

    def answer(self, name: str, *nodes: str, how: str = "done") -> list[str]:
        return self.commands.settle_requests([Answer(name, f"id-{node}", how, 1, "", now_us()) for node in nodes])

    def closed(self, name: str) -> str:
        with self.store.write() as db:
            return requests.find(db, name).closed


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Centre]:
    made = Centre(tmp_path)
    made.add("pi1", "pi2")
    yield made
    made.store.close()


def test_nodes_are_asked_until_they_answered_and_then_nobody_is(centre: Centre) -> None:
    name = centre.ask()
    assert centre.asked(name) == ["pi1", "pi2"]
    assert centre.answer(name, "pi1") == ["id-pi1"]
    assert centre.answer(name, "pi1") == []
    assert (centre.asked(name), centre.closed(name)) == (["pi2"], "")
    centre.answer(name, "pi2", how="failed")
    assert (centre.asked(name), centre.closed(name)) == ([], "every node answered")


def test_a_node_that_joins_while_it_is_open_is_asked_too(centre: Centre) -> None:
    name = centre.ask()
    centre.answer(name, "pi1")
    centre.add("pi3")
    with centre.store.write() as db:
        fleet.issue(db, centre.keys)
    assert centre.asked(name) == ["pi2", "pi3"]


def test_an_answer_of_a_node_that_is_not_asked_counts_for_nothing(centre: Centre) -> None:
    name = centre.ask("name=pi1")
    assert centre.answer(name, "pi2") == []
    assert (centre.asked(name), centre.closed(name)) == (["pi1"], "")
    with centre.store.write() as db:
        assert requests.answers(db, name) == []


def test_lateness_is_the_centres_to_decide_by_leaving_it_out(centre: Centre) -> None:
    name = centre.ask(until_s=-1)
    assert centre.asked(name) == ["pi1", "pi2"]
    assert sorted(centre.commands.settle_requests([])) == ["id-pi1", "id-pi2"]
    assert (centre.asked(name), centre.closed(name)) == ([], "its time was over")


def test_cancelled_by_absence(centre: Centre) -> None:
    name = centre.ask()
    assert not centre.commands.cancel_request(name, replace(WHO, dry_run=True)).poke
    assert centre.asked(name) == ["pi1", "pi2"]
    assert sorted(centre.commands.cancel_request(name, WHO).poke) == ["id-pi1", "id-pi2"]
    assert (centre.asked(name), centre.closed(name)) == ([], "cancelled by ann")
    assert not centre.commands.cancel_request(name, WHO).result["changed"]


def test_a_dry_run_asks_nobody(centre: Centre) -> None:
    done = centre.commands.ask(ASK, "all", 60, replace(WHO, dry_run=True), centre.contact("pi2"))
    assert done.result["summary"][0] == "asks 2 nodes: pi1, pi2 (unknown since never)"
    assert not done.poke
    with centre.store.write() as db:
        assert requests.listed(db) == []


def test_the_seventeenth_is_refused_where_sixteen_are_open(centre: Centre) -> None:
    for _ in range(REQUESTS_MAX):
        centre.ask("name=pi1")
    with pytest.raises(Refused, match="16 requests are open on it already"):
        centre.ask("name=pi1")
    name = centre.ask()
    assert centre.asked(name) == ["pi2"], "the others are asked all the same"
    with centre.store.write() as db:
        (said,) = requests.answers(db, name)
    assert (said.node, said.how, said.note) == ("id-pi1", "refused", "16 requests are open on it already")


def test_what_cannot_be_asked_says_why(centre: Centre) -> None:
    with pytest.raises(Refused, match="no node matches"):
        centre.ask("site=nowhere")
    with pytest.raises(Refused, match="p does not run on pi1"):
        centre.ask("name=pi1", kind="tap")
    with centre.store.write() as db:
        assert requests.listed(db) == []


def test_what_was_over_long_ago_is_forgotten(centre: Centre) -> None:
    name = centre.ask()
    centre.answer(name, "pi1", "pi2")
    with centre.store.write() as db:
        requests.settle(db, [], now_us() + requests.KEPT_US + 120 * 10**6)
        assert (requests.listed(db), requests.answers(db, name)) == ([], [])


# The lake


def put(lake: Path, node: str, rows: Sequence[int], end: str = "done", first: int = 1, at: int = 1) -> None:
    table = answer("q", first, [json.dumps({"i": i}) for i in rows], at, end)
    size = table.num_rows
    table = table.append_column("_node", pa.array([node] * size))
    table = table.append_column("_received_at", pa.array([at] * size, pa.timestamp("us", tz="UTC")))
    write_deltalake(lake / "requests", table, mode="append")


def test_rows_of_two_tries_are_shown_once(tmp_path: Path) -> None:
    """A restored card, or a control plane from yesterday, has a node answer twice."""
    assert requests.rows(tmp_path, "q", {"a": "pi1"}) == []
    put(tmp_path, "a", [1, 2], at=1)
    put(tmp_path, "a", [1, 2], at=2)
    put(tmp_path, "b", [7])
    put(tmp_path, "stranger", [66])
    assert [row["node"] for row in requests.rows(tmp_path, "q", {"a": "z", "b": "y"})] == ["y", "z", "z"], "by name"
    nodes = {"a": "pi1", "b": "pi2"}
    found = [(row["node"], row["row"]["i"]) for row in requests.rows(tmp_path, "q", nodes)]
    assert found == [("pi1", 1), ("pi1", 2), ("pi2", 7)]
    assert requests.rows(tmp_path, "q", nodes, after=1) == [{"node": "pi1", "n": 2, "row": {"i": 2}}]
    ends = requests.ends(tmp_path, ["q"])
    assert [(end.node, end.rows) for end in sorted(ends, key=lambda e: (e.node, e.at))] == [
        ("a", 2), ("a", 2), ("b", 1), ("stranger", 1)
    ]  # fmt: skip
