"""A new epoch keeps what may still matter and nothing else; numbers go on; what is not agreed is not merged (I5, I6, I9)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from automerge.core import ROOT, Document, ScalarType
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract import epochs
from pipelines.contract.document import DOCUMENT_BYTES_MAX, NodeDocument, note_key
from pipelines.contract.errors import Refused
from pipelines.contract.folds import decide, effective_params, local_labels
from pipelines.contract.node_state import CONTROL, Assignment, Ban, Note, Reported, Setting

NODE = "n1"


def site(seq: int, kind: str, *, seen: int = 0, subject: str = "press", **body: Any) -> Note:
    return Note(NODE, seq, kind, subject, body, seen=seen)


def central(seq: int, kind: str, *, seen: int = 0, subject: str = "press", **body: Any) -> Note:
    return Note(CONTROL, seq, kind, subject, body, seen=seen)


def document_of(*notes: Note) -> NodeDocument:
    document = NodeDocument()
    document.write({note_key(note.author, note.seq): note.to_json() for note in notes})
    return document


def kept(*notes: Note) -> list[str]:
    return [note.name for note in document_of(*notes).next_epoch(NODE).notes()]


@pytest.mark.parametrize(
    ("notes", "stay"),
    [
        ([site(1, "pause")], ["n1/1"]),
        ([site(1, "pause"), site(2, "pause")], ["n1/2"]),  # superseded
        ([site(1, "pause"), site(2, "resume")], []),  # neutral
        ([site(1, "pause"), central(1, "resume", seen=1)], []),  # also of two sides
        ([site(1, "pause"), central(1, "resume")], ["n1/1", "control/1"]),  # the loser stays visible
        ([site(1, "pause", for_s=5), site(2, "ended", note="n1/1")], []),
        ([site(1, "pause", for_s=5), site(2, "ended", note="n1/1"), central(1, "pause")], []),  # as decided before
        ([central(1, "pause", seen=2), site(1, "pause"), site(2, "ended", note="n1/1")], ["control/1"]),
        ([site(1, "label", subject="", name="local.a", value="1"), site(2, "unlabel", subject="", name="local.a")], []),
        ([site(1, "param", name="x", value=1), site(2, "param", name="y", value=2)], ["n1/1", "n1/2"]),
        ([site(1, "param", name="x", value=1), site(2, "unset", name="x")], []),
        ([site(1, "param", name="x", value=1, for_s=5), site(2, "ended", note="n1/1")], []),
        ([site(1, "acknowledge", subject="i1"), site(2, "reset", subject="i1")], ["n1/1", "n1/2"]),
        ([central(1, "acknowledge", subject="i1"), site(1, "ended", subject="i1"), central(2, "comment", subject="i1")], []),
        ([central(1, "shelve", subject="i1"), site(1, "ended", subject="i1")], []),
        ([site(1, "ended", note="n1/9")], []),  # of what is not here
    ],
)
def test_what_is_over_is_left_behind(notes: list[Note], stay: list[str]) -> None:
    assert sorted(kept(*notes)) == sorted(stay)


def test_comments_stay_by_number_and_subject() -> None:
    notes = [site(n, "comment", subject="press" if n % 2 else "oven") for n in range(1, 101)]
    stay = kept(*notes)
    assert len(stay) == 2 * epochs.COMMENTS_KEPT and "n1/100" in stay and "n1/99" in stay and "n1/1" not in stay


def test_reports_of_what_stopped_go_unless_they_ban_something() -> None:
    document = NodeDocument()
    document.report("press", Reported("sha256:a", 1, "running"))
    document.report("oven", Reported("sha256:b", 2, "stopped"))
    document.report("kiln", Reported("sha256:c", 3, "stopped", bans=(Ban("sha256:c", 3, "p"),)))
    document.report_facts('{"arch":"arm64"}')
    after = document.next_epoch(NODE)
    assert set(after.reported()) == {"press", "kiln"} and after.facts() == '{"arch":"arm64"}'


STEPS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from(["pause", "resume", "pin", "unpin", "param", "unset", "label", "unlabel", "shelve", "unshelve"])
        | st.sampled_from(["comment", "acknowledge", "ended", "closed"]),
        st.sampled_from(["press", "oven"]),
        st.integers(0, 8),
        st.booleans(),
    ),
    max_size=14,
)


def written(steps: list[tuple[bool, str, str, int, bool]]) -> list[Note]:
    notes, counts = list[Note](), {True: 0, False: 0}
    for is_site, kind, subject, seen, force in steps:
        is_site = is_site or kind in ("label", "unlabel", "ended", "closed")
        counts[is_site] += 1
        body: dict[str, Any] = {"force": True} if force else {}
        body |= {"name": f"local.{subject}", "value": str(seen)} if "label" in kind else {}
        body |= {"name": "x", "value": seen} if kind in ("param", "unset") else {}
        body |= {"note": notes[seen % len(notes)].name} if kind == "ended" and notes else {}
        about = f"i{subject}" if kind in ("acknowledge", "closed") else "" if "label" in kind else subject
        make = site if is_site else central
        kind = "ended" if kind == "closed" else kind
        if kind == "ended" and "note" not in body and about == subject:
            about = f"i{subject}"
        notes.append(make(counts[is_site], kind, seen=min(seen, counts[not is_site]), subject=about, **body))
    return notes


def meaning(notes: list[Note]) -> object:
    """All that somebody may read from the notes."""
    decided = {register: d.note.name for register, d in decide(notes, node=NODE).items() if d.is_set and register.kind != "param"}
    settings = (None, Setting(5, "rule:1"), Setting(5, "rule:1", force=True, generation=3), Setting(5, "rule:1", locked=True))
    params = [
        effective_params({"x": 0}, Assignment("d", 1, {"x": s} if s else {}), notes, node=NODE, pipeline=pipeline)
        for s in settings
        for pipeline in ("press", "oven")
    ]
    return decided, params, local_labels(notes, node=NODE)


@given(STEPS)
def test_i6_a_new_epoch_means_the_same(steps: list[tuple[bool, str, str, int, bool]]) -> None:
    notes = written(steps)
    before = document_of(*notes)
    after = before.next_epoch(NODE)
    assert meaning(after.notes()) == meaning(before.notes())
    assert {n.subject for n in notes if n.kind == "acknowledge"} - {
        n.subject for n in notes if n.kind == "ended" and "note" not in n.body
    } == {n.subject for n in after.notes() if n.kind == "acknowledge"}
    again = after.next_epoch(NODE)
    assert [n.name for n in again.notes()] == [n.name for n in after.notes()], "nothing more is over"


@given(STEPS, st.sampled_from(["pause", "resume", "pin", "unpin"]), st.booleans(), st.booleans())
def test_i5_what_is_noted_later_means_the_same_with_and_without_the_past(
    steps: list[tuple[bool, str, str, int, bool]], kind: str, is_site: bool, force: bool
) -> None:
    before = document_of(*written(steps))
    after = before.next_epoch(NODE)
    author = NODE if is_site else CONTROL
    for document in (before, after):
        note = Note(author, document.next_seq(author), kind, "press", {"force": True} if force else {})
        document.add_note(replace(note, seen=document.seen_by(author)))
    assert meaning(after.notes()) == meaning(before.notes())


def test_numbers_are_never_given_again() -> None:
    after = document_of(site(1, "pause"), site(2, "resume"), central(1, "comment", subject="x"), central(2, "pause")).next_epoch(
        NODE
    )
    assert (after.next_seq(NODE), after.seen_by(CONTROL), after.next_seq(CONTROL), after.seen_by(NODE)) == (3, 2, 3, 2)
    later = after.next_epoch(NODE).next_epoch(NODE)
    assert (later.epoch, later.next_seq(NODE), later.seen_by(CONTROL)) == (3, 3, 2)
    forged = NodeDocument(after.save())
    forged.write({note_key(NODE, 2): site(2, "pause").to_json()})
    with pytest.raises(Refused, match="again"):
        after.merged(forged.save(), author=NODE)


def test_both_sides_come_to_the_same_next_epoch_and_no_other_is_taken() -> None:
    ours = document_of(site(1, "pause"), site(2, "resume"))
    theirs = NodeDocument(ours.save())
    proposed = NodeDocument(theirs.next_epoch(NODE).save())
    assert ours.begins(proposed, NODE) and proposed.epoch == 1 and proposed.made_of == ours.digest()
    ours.report("press", Reported("sha256:a", 1, "running"))
    assert not ours.begins(proposed, NODE), "something was written since"
    for key, text in (("note/n1/00000003", site(3, "pause").to_json()), ("reported/facts", "{}"), ("meta/high/n1", "9")):
        other = NodeDocument(proposed.save())
        other.write({key: text})
        assert not theirs.begins(other, NODE)


def test_documents_of_two_epochs_are_not_merged() -> None:
    before = document_of(site(1, "pause"))
    after = before.next_epoch(NODE)
    other = document_of(site(1, "resume")).next_epoch(NODE)
    for ours, theirs in ((before, after), (after, before), (after, other)):
        with pytest.raises(Refused, match="epoch"):
            ours.merged(theirs.save(), author=NODE)


@pytest.mark.parametrize(
    "entries",
    [
        {"meta/epoch": "1"},
        {"meta/epoch": "[" * 10_000},
        {"meta/epoch": '{"number":0,"of":"x"}'},
        {"meta/epoch": '{"number":true,"of":"x"}'},
        {"meta/epoch": '{"number":1,"of":"x","more":1}'},
        {"meta/epoch": '{"number": 1, "of": "x"}'},
        {"meta/high/n1": "x"},
        {"meta/high/n1": "01"},
        {"meta/else": "1"},
    ],
)
def test_hostile_entries_about_the_document_itself_are_refused(entries: dict[str, str]) -> None:
    document = Document.load(NodeDocument().save())
    with document.transaction() as transaction:
        for key, value in entries.items():
            transaction.put(ROOT, key, ScalarType.Str, value)
    with pytest.raises(Refused):
        NodeDocument(bytes(document.save()))


@pytest.mark.parametrize("seq", [5, 9])
def test_notes_of_another_epoch_take_the_next_number_where_theirs_was_given(seq: int) -> None:
    after = document_of(*(site(n, "pause" if n < 5 else "resume") for n in range(1, 6))).next_epoch(NODE)
    late = Note(NODE, seq, "comment", "late")
    once = after.with_notes([late])
    assert [n.seq for n in once.notes() if n.subject == "late"] == [6 if seq <= 5 else seq]
    assert after.next_seq(NODE) == 6, "the document itself is not changed"


def test_i9_a_side_writes_so_much_before_both_agree() -> None:
    document = document_of(*(site(n, "comment", subject=f"{n}") for n in range(1, epochs.NOTES_MAX + 1)))
    with pytest.raises(Refused, match="all that it may hold"):
        document.check_quota(site(501, "pause"))
    document.check_quota(site(501, "acknowledge", subject="i1"))
    document.check_quota(central(1, "pause"))
    full = document_of(*(site(n, "comment", subject=f"{n}") for n in range(1, epochs.NOTES_MAX + epochs.NOTES_RESERVED + 1)))
    with pytest.raises(Refused):
        full.check_quota(site(701, "acknowledge", subject="i1"))
    full.next_epoch(NODE).check_quota(site(701, "pause"))
    long = document_of(*(Note(NODE, n, "comment", "p", reason="x" * 15_000) for n in range(1, 7)))
    with pytest.raises(Refused):
        long.check_quota(Note(NODE, 7, "comment", "p", reason="x" * 15_000))


def test_i9_what_both_sides_may_write_while_apart_fits() -> None:
    def full(author: str) -> NodeDocument:
        document, seq = NodeDocument(), 0
        for kind in ("comment", "reset"):
            while True:
                seq += 1
                words = "".join(chr(33 + (seq * i * 31 + i * i * 17 + (i * seq) % 7) % 90) for i in range(150))
                note = Note(author, seq, kind, f"i{seq}", reason=words)
                try:
                    document.check_quota(note)
                except Refused:
                    break
                document.add_note(note)
        return document

    node, control = full(NODE), full(CONTROL)
    merged = control.merged(node.save(), author=NODE)
    assert len(merged.save()) < DOCUMENT_BYTES_MAX - 200 * 1024, "with room for reports"


@pytest.mark.parametrize(
    "note",
    [
        central(1, "label", subject="", name="local.a", value="1"),
        central(1, "unlabel", subject="", name="local.a"),
        central(1, "ended", note="n1/1"),
        central(1, "ended", subject="i1"),
        site(1, "label", subject="", name="site", value="hq"),
        site(1, "label", subject=""),
    ],
)
def test_i5_notes_that_their_author_may_not_write_are_refused(note: Note) -> None:
    before = NodeDocument()
    digest = before.digest()
    with pytest.raises(Refused):
        before.merged(document_of(note).save(), author=note.author)
    with pytest.raises(Refused):
        before.merged(document_of(note).save(), author=CONTROL, owner=NODE)
    with pytest.raises(Refused):
        document_of(note).checked(NODE)
    assert before.digest() == digest
