"""What documents say is in SQL as well: the same values, their history, and what depends on them (I5, I7)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import PRESS
from sqlalchemy.engine import Connection

from control_plane import fleet, registry, store
from control_plane.exchange import exchange
from control_plane.keys import KeyRing
from control_plane.selector import parse_selector
from control_plane.store import Store
from pipelines.contract.document import NodeDocument
from pipelines.contract.frames import sha256
from pipelines.contract.keys import Key
from pipelines.contract.messages import Exchange, ExchangeReply
from pipelines.contract.node_state import CONTROL, Gate, Manifest, Note, Reported
from pipelines.contract.spec import load_spec

NODE = "n1"
Change = Callable[[NodeDocument], object]


class Side:
    """A control plane's store and one node in it, whose document is changed here."""

    def __init__(self, directory: Path) -> None:
        self.keys, self.store = KeyRing.open(directory / "keys"), Store(f"sqlite:///{directory / 'control.db'}")
        self.key = Key.from_entropy(os.urandom(32))
        self.document = NodeDocument()
        self.manifest = Manifest(NODE, 0, 0)
        with self.store.write() as db:
            row = {"id": NODE, "name": "pi", "public": self.key.public, "labels": "{}", "facts": '{"arch":"old"}', "token": ""}
            row |= {"joined_at": 1, "last_seen": 1, "document": self.document.save(), "document_digest": self.document.digest()}
            row |= {"seen_digest": "", "seen_generation": 0, "seen_term": 0, "settled_term": 1, "replaced_by": ""}
            db.execute(store.nodes.insert().values(row))

    def exchange(self, *, with_document: bool = True) -> ExchangeReply:
        """One round, in one transaction as in the server."""
        request = Exchange(NODE, "x", *self.manifest.order, self.document.digest(), with_document)
        data = request.seal(self.key, [self.document.save()] if with_document else [])
        with self.store.write() as db:
            reply, blobs = exchange(db, self.keys, NODE, data)
        if signed := reply.manifest(blobs):
            self.manifest = signed.open(NODE, self.keys.control.public)
        if reply.has_document:
            self.document = self.document.merged(blobs[-1], author=CONTROL, owner=NODE)
        return reply

    def ask(self, question: Callable[[Connection], object]) -> object:
        with self.store.write() as db:
            return question(db)


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


def test_i6_the_copies_say_what_the_document_says(side: Side) -> None:
    side.document.report("press", Reported("sha256:a", 1, "running"))
    side.document.report_facts('{"arch":"arm64"}')
    side.document.add_note(Note(NODE, 1, "param", "press", {"name": "x", "value": 1.5}, "ana", "hot", 3, 0, "10:00"))
    side.exchange()
    with side.store.write() as db:
        node = fleet.find_node(db, "pi")
        fleet.add_note(db, node, "acknowledge", "i1", "bob", "seen", "11:00", {"force": True})
    with side.store.write() as db:
        node = fleet.find_node(db, "pi")
        assert node.reported == node.document.reported() == fleet.reports(db)[NODE]
        assert list(node.notes) == sorted(node.document.notes(), key=lambda n: (n.author, n.seq)) == fleet.notes(db, NODE)
        assert [note.name for note in fleet.notes(db, NODE, subject="i1")] == ["control/1"]
        assert node.facts["arch"] == "arm64"


def test_every_change_of_a_report_stays_in_the_history(side: Side) -> None:
    for number, phase in ((1, "running"), (2, "pending"), (2, "running")):
        side.document.report("press", Reported(f"sha256:{number}", number, phase, reason="why", since=f"10:0{number}"))
        side.exchange()
        side.exchange()  # the same again is no change
    side.document.report("oven", Reported("sha256:9", 9, "running"))
    side.exchange()
    with side.store.write() as db:
        told = fleet.history(db, pipeline="press", node=NODE)
        assert [(t.number, t.phase) for t in told] == [(2, "running"), (2, "pending"), (1, "running")]
        assert (told[0].at, told[0].reason, told[0].node) == ("10:02", "why", NODE) and told[0].received_at > 0
        assert [t.pipeline for t in fleet.history(db, limit=2)] == ["oven", "press"]
        assert fleet.history(db, node="n2") == []


def test_i7_a_label_put_on_site_selects_at_the_next_exchange(side: Side) -> None:
    def deploy(db: Connection) -> None:
        version, _ = registry.register(db, load_spec(PRESS), side.keys.author, "ann", "")
        registry.put_target(db, version, parse_selector("local.line=4"), {}, "ann", "", gate=Gate(), rollout=0)
        fleet.issue(db, side.keys)

    side.ask(deploy)
    side.exchange()
    assert side.manifest.assignments == {}
    side.document.add_note(Note(NODE, 1, "label", "", {"name": "local.line", "value": "4"}))
    assert side.exchange().has_manifest and set(side.manifest.assignments) == {"press"}
    assert side.manifest.assignments["press"].digest == sha256(load_spec(PRESS).canonical_bytes())
    side.document.add_note(Note(NODE, 2, "unlabel", "", {"name": "local.line"}))
    side.exchange()
    assert side.manifest.assignments == {}
