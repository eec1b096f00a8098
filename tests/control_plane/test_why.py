"""Every cause there is, made to happen: its code, its words, its next command; and that convergence says the same (I6)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server_process import PRESS
from typer.testing import CliRunner

from control_plane import cli, fleet, store
from control_plane.cause import FINE
from control_plane.commands import Commands, Writer
from control_plane.effects import Contact
from control_plane.exchange import exchange
from control_plane.keys import KeyRing
from control_plane.notes_commands import NoteCommands
from control_plane.rollout import Pacing, parse_steps
from control_plane.store import Store, now_us
from control_plane.why import NEXT, why
from pipelines.contract import causes
from pipelines.contract.document import NodeDocument
from pipelines.contract.folds import effective_params
from pipelines.contract.keys import Key
from pipelines.contract.messages import Exchange
from pipelines.contract.node_state import CONTROL, Ban, Manifest, Note, Reported, params_digest
from pipelines.contract.spec import load_spec

ANA = Writer("ana", "new limit")


class Member:
    """A node of the contract alone, in the store of a control plane."""

    def __init__(self, fleet_: Fleet, name: str, labels: str) -> None:
        self.fleet, self.id, self.key = fleet_, f"n{name}", Key.from_entropy(os.urandom(32))
        self.document, self.manifest = NodeDocument(), Manifest(f"n{name}", 0, 0)
        with fleet_.store.write() as db:
            row = {"id": self.id, "name": name, "public": self.key.public, "labels": labels, "facts": "{}", "token": ""}
            row |= {"joined_at": 1, "last_seen": now_us(), "document": self.document.save()}
            row |= {"document_digest": self.document.digest(), "seen_digest": "", "seen_generation": 0, "seen_term": 0}
            db.execute(store.nodes.insert().values({**row, "settled_term": 1, "replaced_by": ""}))

    def exchange(self, blob: bytes | None = None) -> None:
        """Until both sides hold the same."""
        for with_document in (False, True):
            blobs = [blob or self.document.save()] if with_document or blob else []
            request = Exchange(self.id, "x", *self.manifest.order, self.document.digest(), bool(blobs))
            reply, got = self.fleet.answer(self.id, request.seal(self.key, blobs))
            if signed := reply.manifest(got):
                self.manifest = signed.open(self.id, self.fleet.keys.control.public)
            if reply.has_document:
                self.document = self.document.merged(got[-1], author=CONTROL, owner=self.id)

    def report(self, **changes: Any) -> None:
        """Say that the wanted version runs with the wanted parameters, but for `changes`."""
        wanted = self.manifest.assignments.get("press")
        digest, number = (wanted.digest, wanted.number) if wanted else ("sha256:x", 1)
        values: dict[str, Any] = {}
        if wanted:
            effective = effective_params(SPEC.defaults(), wanted, self.document.notes(), node=self.id, pipeline="press")
            values = {name: entry.value for name, entry in effective.items()}
        now = Reported(digest, number, "running", values, params_digest(values), since="10:00")
        self.document.report("press", replace(now, generation=self.manifest.generation, **changes))
        self.exchange()
        self.exchange()

    def note(self, kind: str, reason: str = "", **body: Any) -> None:
        document = self.document
        seq, seen = document.next_seq(self.id), document.seen_by(self.id)
        generation = self.manifest.generation
        document.add_note(Note(self.id, seq, kind, "press", body, "m.durand", reason, generation, seen, "11:00"))
        self.exchange()


class Fleet:
    """A control plane's store, two nodes of line 4 and 5, and two versions of `press`."""

    def __init__(self, directory: Path) -> None:
        self.keys, self.store = KeyRing.open(directory / "keys"), Store(f"sqlite:///{directory / 'control.db'}")
        self.commands, self.notes = Commands(self.store, self.keys), NoteCommands(self.store)
        self.started, self.later_s = now_us(), 0
        self.commands.apply([("press.yaml", PRESS)], ANA, self.contact)
        self.commands.apply([("press.yaml", PRESS.replace("default: 85", "default: 80"))], ANA, self.contact)
        self.pi = Member(self, "pi", '{"line": "4"}')
        self.other = Member(self, "other", '{"line": "5"}')

    def answer(self, node: str, data: bytes) -> tuple[Any, list[bytes]]:
        with self.store.write() as db:
            return exchange(db, self.keys, node, data)

    @property
    def contact(self) -> Contact:
        return Contact({}, self.started + self.later_s * 1_000_000)

    def deploy(self, reference: str = "press@1", select: str = "all", *, received: bool = True) -> None:
        self.commands.deploy(reference, select, {}, ANA, self.contact)
        if received:
            self.pi.exchange()
            self.pi.exchange()

    def running(self) -> None:
        self.deploy()
        self.pi.report()

    def why(self, *words: str) -> dict[str, Any]:
        with self.store.write() as db:
            return why(db, words[0], words[1] if len(words) > 1 else None, self.contact)

    def converged(self) -> bool:
        with self.store.write() as db:
            node = fleet.find_node(db, "pi")
            return not fleet.convergence(db, node) and node.has_newest_manifest and not node.is_ahead


SPEC = load_spec(PRESS)
CASES: dict[str, Callable[[Fleet], None]] = {}


def case(code: str) -> Callable[[Callable[[Fleet], None]], Callable[[Fleet], None]]:
    def register(make: Callable[[Fleet], None]) -> Callable[[Fleet], None]:
        CASES[code] = make
        return make

    return register


case(causes.AS_WANTED)(Fleet.running)
case(causes.NOT_DEPLOYED)(lambda f: None)
case(causes.NOT_SELECTED)(lambda f: f.deploy(select="line=5"))
case(causes.NOT_RECEIVED)(lambda f: f.deploy(received=False))
case(causes.NOT_APPLIED)(lambda f: f.deploy())


@case(causes.OTHER_TARGET)
def _(f: Fleet) -> None:
    f.deploy("press@2", "all")
    f.deploy("press@1", "line=4")
    f.pi.report()


@case(causes.OUT_OF_CONTACT)
def _(f: Fleet) -> None:
    f.running()
    f.deploy("press@2", received=False)
    f.later_s = 3600


@case(causes.NODE_AHEAD)
def _(f: Fleet) -> None:
    f.running()
    f.pi.manifest = replace(f.pi.manifest, generation=99)
    f.pi.exchange()


@case(causes.DOCUMENT_REFUSED)
def _(f: Fleet) -> None:
    f.running()
    forged = NodeDocument()
    forged.add_note(Note(CONTROL, 1, "pause", "press"))
    f.pi.exchange(forged.save())


@case(causes.REPLACED)
def _(f: Fleet) -> None:
    f.running()
    with f.store.write() as db:
        db.execute(store.nodes.update().where(store.nodes.c.id == f.pi.id).values(replaced_by=f.other.id))


@case(causes.SOAKING)
def _(f: Fleet) -> None:
    f.deploy()
    f.pi.report(gate="soaking")


@case(causes.GATE_HELD)
def _(f: Fleet) -> None:
    f.deploy()
    f.pi.report(gate="held", reason="the source sim fails")


@case(causes.BANNED)
def _(f: Fleet) -> None:
    """It went back to the version before, by itself."""
    f.running()
    now = f.pi.document.reported()["press"]
    f.deploy("press@2")
    wanted = f.pi.manifest.assignments["press"]
    values = {"limit_c": 80.0, "mode": "normal"}
    ban = Ban(wanted.digest, 2, params_digest(values), "31 % rejected", at="16:05")
    f.pi.report(digest=now.digest, number=1, params=now.params, params_digest=now.params_digest, gate="passed", bans=(ban,))


@case(causes.PINNED)
def _(f: Fleet) -> None:
    f.running()
    f.notes.decide("pin", "press@1", "name=pi", ANA, f.contact)
    now = f.pi.document.reported()["press"]
    f.deploy("press@2")
    f.pi.report(digest=now.digest, number=1, code=causes.PINNED, reason="version 1 is pinned centrally by ana")


@case(causes.PAUSED)
def _(f: Fleet) -> None:
    f.running()
    f.pi.note("pause", "hands in the press")
    f.pi.report(phase="paused", code=causes.PAUSED, reason="paused on site by m.durand: hands in the press")


@case(causes.TROUBLED)
def _(f: Fleet) -> None:
    f.deploy()
    f.pi.report(code=causes.TROUBLED, reason="no file matches")


@case(causes.PARAMS_PENDING)
def _(f: Fleet) -> None:
    f.running()
    f.commands.set_param("press", {"limit_c": "70"}, "all", ANA, f.contact, force=False, lock=False)
    f.pi.exchange()
    f.pi.exchange()


@case(causes.STILL_RUNNING)
def _(f: Fleet) -> None:
    f.running()
    f.commands.remove("press", "all", ANA, f.contact)
    f.pi.exchange()
    f.pi.exchange()


@case(causes.PARAM_MISSING)
def _(f: Fleet) -> None:
    """Known here before the node says it."""
    f.commands.apply([("press.yaml", PRESS.replace("default: 85, ", ""))], ANA, f.contact)
    f.deploy("press@3")


@case(causes.WAITING)
def waiting(f: Fleet) -> None:
    """`other` is the canary."""
    f.running()
    f.other.exchange()
    f.other.exchange()
    f.other.report()
    for number in (2, 1, 2, 1, 2):
        f.commands.deploy(f"press@{number}", "all", {}, ANA, f.contact, Pacing(parse_steps([1])))
        f.pi.exchange()
        f.pi.exchange()
        f.pi.report()
        if f.pi.manifest.assignments["press"].number == 1 and number == 2:
            return
    raise AssertionError("it was always first")


@case(causes.ROLLOUT_PAUSED)
def _(f: Fleet) -> None:
    waiting(f)
    f.commands.steer("pause", "press", Writer("c.roy", "holidays"), f.contact)


@case(causes.ROLLOUT_HELD)
def _(f: Fleet) -> None:
    waiting(f)
    f.other.exchange()
    f.other.exchange()
    f.other.report(gate="failed", phase="failed", reason="31 % rejected")
    f.commands.set_param("press", {"mode": "night"}, "all", ANA, f.contact, force=False, lock=False)
    f.pi.exchange()
    f.pi.exchange()
    f.pi.report()


@case(causes.ROLLOUT_UNDONE)
def _(f: Fleet) -> None:
    waiting(f)
    f.commands.undo("press", Writer("c.roy", "wrong unit"), f.contact)
    f.pi.exchange()
    f.pi.exchange()
    f.pi.report()


def told(code: str, phase: str = "failed") -> None:
    """What only the node can find out; that it does is in the tests of the agent."""

    def make(f: Fleet) -> None:
        f.deploy()
        f.pi.report(phase=phase, code=code, reason=f"the node's words of {code}")

    CASES[code] = make


for code in (causes.LANGUAGE, causes.SIGNATURE, causes.POLICY, causes.SECRET_MISSING, causes.LABEL_MISSING, causes.DISK):
    told(code)
told(causes.PARAM_INVALID)
told(causes.ARTIFACT_MISSING, "pending")
told(causes.FETCHING, "pending")
told(causes.STARTING, "pending")
told(causes.STORE_FULL, "running")
told(causes.FAILED)


@pytest.fixture
def made(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_every_cause_has_a_case_and_a_next_command() -> None:
    assert set(CASES) == causes.CODES
    assert set(NEXT) == causes.CODES
    page = (Path(__file__).parents[2] / "docs" / "why.md").read_text()
    named = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([a-z_]+)`", "".join(named))) == causes.CODES


@pytest.mark.parametrize("code", sorted(CASES))
def test_i6_every_cause_happens_says_what_to_do_and_agrees_with_convergence(made: Fleet, code: str) -> None:
    CASES[code](made)
    found = made.why("pi", "press")
    assert found["code"] == code, found
    labels = [label for label, _ in found["lines"]]
    assert labels[:4] == ["because", "running", "wanted", "contact"] and found["lines"][0][1] == found["text"] != ""
    assert found["next"] and "{" not in found["next"]
    assert len(found["lines"]) < 20, "one screen"
    obeys = code in FINE or code in (causes.REPLACED, causes.DOCUMENT_REFUSED)  # as far as it was heard
    assert made.converged() == obeys, "`nodes show` says the same"
    assert made.why("press", "pi") == found


@pytest.mark.parametrize("code", sorted(CASES))
def test_i8_what_a_node_said_before_it_fell_silent_stays_the_cause(made: Fleet, code: str) -> None:
    CASES[code](made)
    made.later_s = 3600
    passing = {causes.NOT_RECEIVED, causes.NOT_APPLIED, causes.STARTING, causes.FETCHING}
    passing |= {causes.PARAMS_PENDING, causes.STILL_RUNNING}
    assert made.why("pi", "press")["code"] == (causes.OUT_OF_CONTACT if code in passing else code)


def test_the_screen_names_what_people_decided_and_what_lost(made: Fleet) -> None:
    made.running()
    made.commands.set_param("press", {"limit_c": "70"}, "all", ANA, made.contact, force=False, lock=False)
    made.commands.set_param("press", {"limit_c": "75"}, "line=4", ANA, made.contact, force=False, lock=False)
    made.pi.exchange()
    made.pi.exchange()
    made.pi.note("param", "sensor 7", name="limit_c", value=60.0, for_s=8 * 3600)
    made.pi.note("pause", "hands in the press")
    made.notes.decide("resume", "press", "all", Writer("ana", "done"), made.contact)
    made.notes.comment("press/pi", "look at the belt", [], ANA, made.contact)
    made.pi.exchange()
    made.pi.exchange()
    made.pi.report()
    said = [text for label, text in made.why("pi", "press")["lines"] if label in ("also", "param")]
    for words in (
        'limit_c=60.0 on site by m.durand "sensor 7" at 11:00, ends after 8 h of the node\'s time',
        'pause on site by m.durand "hands in the press" at 11:00 lost; resume centrally by ana "done"',
        "look at the belt",
        'limit_c = 60.0 (on-site by m.durand "sensor 7"; beats 75.0 (rule:2), 70.0 (rule:1), 85.0 (default))',
    ):
        assert any(words in text for text in said), (words, said)


def test_of_a_pipeline_the_causes_are_counted_and_the_odd_nodes_named(made: Fleet) -> None:
    made.running()
    assert made.why("press")["text"] == "1 as wanted, 1 not received"
    made.pi.note("pause", "cleaning")
    made.pi.report(phase="paused", code=causes.PAUSED, reason="paused on site by m.durand: cleaning")
    found = made.why("press")
    assert found["counts"] == {"paused": 1, "not_received": 1} and found["lines"][0] == ["because", found["text"]]
    assert ["pi", "paused: paused on site by m.durand: cleaning"] in found["lines"]


def test_next_commands_are_commands() -> None:
    commands = {word for text in NEXT.values() for word in _named(text)}
    for words in sorted(commands):
        done = CliRunner().invoke(cli.app, [*words.split(), "--help"])
        assert done.exit_code == 0, words


def _named(text: str) -> Iterator[str]:
    for part in text.split("tidewire ")[1:]:
        words = part.replace("(", " ").replace(")", " ").replace(",", " ").split()
        yield " ".join(words[:2]) if words[0] in ("nodes", "rollout", "artifact") else words[0]
