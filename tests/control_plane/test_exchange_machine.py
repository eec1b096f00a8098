"""Any order of notes, reports, exchanges, losses, crashes and epochs ends with one document on both sides (I5, I6, I7).

The real `exchange` over SQL, the real `NodeRecord` and `StateSync`. `Whole` has faults of the link and crashes; `Restored` also
cards and control planes that come back from a save.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from exchange_rig import NODE, rig
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from control_plane import exchange as exchanges
from control_plane import fleet
from control_plane.keys import KeyRing
from pipelines.contract.document import NodeDocument
from pipelines.contract.folds import decide, effective_params, local_labels
from pipelines.contract.node_state import CONTROL, Assignment, Note

KINDS = st.sampled_from(["pause", "resume", "pin", "unpin", "comment", "acknowledge", "shelve", "unshelve"])
SITE_KINDS = KINDS | st.sampled_from(["param", "unset", "label", "unlabel"])
SUBJECTS = st.sampled_from(["press", "oven"])
FAULTS = st.sampled_from(["", "", "request", "reply", "twice"])
QUIET_ROUNDS = 12


def body_of(kind: str, subject: str, number: int) -> dict[str, Any]:
    if kind in ("label", "unlabel"):
        return {"name": f"local.{subject}", "value": str(number)}
    return {"name": "x", "value": number} if kind in ("param", "unset") else {}


def about(kind: str, subject: str) -> str:
    return "" if kind in ("label", "unlabel") else f"i{subject}" if kind == "acknowledge" else subject


def meaning(notes: list[Note]) -> object:
    """All that somebody may read from the notes."""
    decided = {r: d.note.name for r, d in decide(notes, node=NODE).items() if d.is_set and r.kind != "param"}
    params = [effective_params({"x": 0}, Assignment("d", 1), notes, node=NODE, pipeline=name) for name in ("press", "oven")]
    return decided, params, local_labels(notes, node=NODE)


class Whole(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        made = rig(Path(self._directory.name))
        self.cloud, self.site = made.cloud, made.site
        self.names = (f"note {n}" for n in itertools.count(1))
        self.written: dict[str, Note] = {}  # by what nobody changes: its reason

    def teardown(self) -> None:
        try:
            self.heal()
            self.check()
        finally:
            self.cloud.store.close()
            self._directory.cleanup()

    @rule(kind=SITE_KINDS, subject=SUBJECTS, force=st.booleans())
    def note_on_site(self, kind: str, subject: str, force: bool) -> None:
        reason = next(self.names)
        body = body_of(kind, subject, len(self.written))
        self.wrote(self.site.note(kind, about(kind, subject), reason, **body))

    @rule(kind=KINDS, subject=SUBJECTS, force=st.booleans())
    def note_at_the_centre(self, kind: str, subject: str, force: bool) -> None:
        more = {"force": True} if force else {}
        self.wrote(self.cloud.note(kind, about(kind, subject), next(self.names), **more))

    @rule(subject=SUBJECTS)
    def close_an_incident(self, subject: str) -> None:
        self.wrote(self.site.note("ended", f"i{subject}", next(self.names)))

    @rule(choice=st.integers(0, 99))
    def end_a_note(self, choice: int) -> None:
        """Its time is over."""
        setters = [n for n in self.site.document.notes() if n.kind in ("param", "pin", "pause", "shelve")]
        if setters:
            note = setters[choice % len(setters)]
            self.wrote(self.site.note("ended", note.subject, next(self.names), note=note.name))

    @rule(pipeline=SUBJECTS, number=st.integers(1, 9), phase=st.sampled_from(["running", "failed", "stopped"]))
    def report(self, pipeline: str, number: int, phase: str) -> None:
        self.site.report(pipeline, number=number, phase=phase)

    @rule(fault=FAULTS)
    def exchange(self, fault: str) -> None:
        self.site.exchange(fault)

    @precondition(lambda self: self.cloud.heard)
    @rule(data=st.data())
    def hear_an_old_request(self, data: st.DataObject) -> None:
        """Something that was sent long ago arrives, or arrives again; nobody waits for the answer."""
        heard = self.cloud.heard
        self.cloud.answer(*heard[data.draw(st.integers(max(0, len(heard) - 6), len(heard) - 1))])

    @rule()
    def crash_the_node(self) -> None:
        self.site.start()

    def wrote(self, note: Note) -> None:
        assert note.reason not in self.written
        self.written[note.reason] = note

    def heal(self) -> None:
        self.site.settle(QUIET_ROUNDS)
        self.site.settle(QUIET_ROUNDS)

    def check(self) -> None:
        ours, theirs = self.cloud.node(), self.site.document
        known = self.cloud.ask(lambda db: fleet.notes(db, NODE))
        assert ours.document.values() == theirs.values() and ours.document_digest == theirs.digest(), "I6: one document"
        assert list(ours.notes) == theirs.notes(), "and SQL says the same"
        assert dict(ours.reported) == theirs.reported()
        assert theirs.epoch == ours.epoch
        lost = self.written.keys() - {note.reason for note in known}
        assert not lost, f"notes are lost: {lost}"
        assert len(known) == len({n.name for n in known}) == len({n.reason for n in known}), "I5: one number, one note"
        self.check_what_is_left(known, theirs)

    def check_what_is_left(self, known: list[Note], document: NodeDocument) -> None:
        """What the epochs left behind says nothing any more."""
        assert {(n.author, n.seq) for n in known} == {(n.author, n.seq) for n in self.written.values()}, "no number was changed"
        assert meaning(document.notes()) == meaning(known)
        assert self.cloud.security() == []


class Restored(Whole):
    """A card or a control plane comes back from a save. What only the lost one knew is gone with it; nothing else is."""

    def __init__(self) -> None:
        super().__init__()
        self.card, self.backup = self.site.disk.document, self.cloud.backup()
        self.was_restored = False

    @rule()
    def save_the_card(self) -> None:
        self.card = self.site.disk.document

    @rule()
    def save_the_centre(self) -> None:
        self.backup = self.cloud.backup()

    @rule()
    def restore_the_card(self) -> None:
        self.site.disk.document = self.card
        self.site.start()
        self.forget()

    @precondition(lambda self: not self.was_restored)
    @rule()
    def restore_the_centre(self) -> None:
        self.cloud.restore(self.backup)
        self.cloud.heard.clear()  # the broker keeps nothing for a server that is away
        self.was_restored = True
        self.forget()

    @precondition(lambda self: self.was_restored)
    @rule()
    def recover(self) -> None:
        self.cloud.ask(fleet.raise_term)
        self.was_restored = False

    def forget(self) -> None:
        known = {note.reason for note in self.cloud.ask(lambda db: fleet.notes(db, NODE)) + self.site.document.notes()}
        self.written = {reason: note for reason, note in self.written.items() if reason in known}

    def heal(self) -> None:
        if self.was_restored:
            self.recover()
        super().heal()

    def check_what_is_left(self, known: list[Note], document: NodeDocument) -> None:
        numbers = [(note.author, note.seq) for note in document.notes()]
        assert len(numbers) == len(set(numbers))
        assert {note.author for note in document.notes()} <= {NODE, CONTROL}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are proposed after a few changes; keys are made once."""
    monkeypatch.setattr(exchanges, "CHANGES_MAX", 5)
    with tempfile.TemporaryDirectory() as directory:
        keys = KeyRing.open(Path(directory))
    monkeypatch.setattr(KeyRing, "open", lambda _: keys)


PROFILE = settings(max_examples=40, stateful_step_count=25)


def test_i6_whole_sides_converge_through_any_faults() -> None:
    run_state_machine_as_test(Whole, settings=PROFILE)


def test_i6_restored_sides_converge_and_lose_only_what_nobody_else_knew() -> None:
    run_state_machine_as_test(Restored, settings=PROFILE)
