"""The document converges whatever the link does (I5, I6), and hostile bytes never reach it."""

from __future__ import annotations

import hashlib
import json
import random
from contextlib import suppress

import pytest
from automerge.core import ROOT, Document, ScalarType
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.document import DOCUMENT_BYTES_MAX, NodeDocument
from pipelines.contract.errors import Refused
from pipelines.contract.node_state import CONTROL, Note, Reported

NODE = "n1"
texts = st.text(max_size=8)
writes = st.one_of(
    st.tuples(st.just("report"), st.sampled_from(["press", "oven"]), st.integers(1, 9)),
    st.tuples(st.just("node note"), texts, st.integers(0, 9)),
    st.tuples(st.just("control note"), texts, st.integers(0, 9)),
    st.tuples(st.just("up"), st.just(""), st.integers(0, 9)),  # the node's document, as of some time, reaches the control plane
    st.tuples(st.just("down"), st.just(""), st.integers(0, 9)),
)


@settings(max_examples=60)
@given(st.lists(writes, max_size=20))
def test_i6_any_order_loss_and_duplication_of_exchanges_converges(steps: list[tuple[str, str, int]]) -> None:
    node, control = NodeDocument(), NodeDocument()
    sent_up, sent_down = [node.save()], [control.save()]
    for kind, text, number in steps:
        if kind == "report":
            node.report(text, Reported("sha256:x", number, "running"))
        elif kind == "node note":
            node.add_note(Note(NODE, node.next_seq(NODE), "comment", text, after=number))
        elif kind == "control note":
            control.add_note(Note(CONTROL, control.next_seq(CONTROL), "comment", text, after=number))
        elif kind == "up":  # an old message again, or the newest; the rest was lost
            control = control.merged(sent_up[number % len(sent_up)], author=NODE)
        else:
            node = node.merged(sent_down[number % len(sent_down)], author=CONTROL)
        sent_up.append(node.save())
        sent_down.append(control.save())
    control = control.merged(node.save(), author=NODE)
    node = node.merged(control.save(), author=CONTROL)
    assert node.digest() == control.digest() and node.values() == control.values()
    assert node.merged(control.save(), author=CONTROL).digest() == node.digest(), "merging again changes nothing"


def test_what_was_written_is_read_back() -> None:
    document = NodeDocument()
    reported = Reported(
        "sha256:x",
        3,
        "failed",
        {"limit": 1.5, "on": True, "name": "ü", "none": None},
        "sha256:p",
        "why",
        since="10:00",
        generation=7,
    )
    note = Note(NODE, document.next_seq(NODE), "param", "press", {"name": "limit", "value": 2}, "ana", "hot", 7, at="10:01")
    assert document.report("press", reported) and document.add_note(note) and document.report_facts('{"arch":"arm64"}')
    again = NodeDocument(document.save())
    assert again.reported() == {"press": reported} and again.notes() == [note] and again.facts() == '{"arch":"arm64"}'
    assert again.next_seq(NODE) == 2 and again.digest() == document.digest()
    assert not again.report("press", reported), "the same again is no change"


def forged(**entries: str) -> bytes:
    document = Document.load(NodeDocument().save())
    with document.transaction() as transaction:
        for key, value in entries.items():
            transaction.put(ROOT, key, ScalarType.Str, value)
    return bytes(document.save())


def note_json(**fields: object) -> str:
    return json.dumps({"author": NODE, "seq": 1, "kind": "comment", "subject": "press", **fields})


@pytest.mark.parametrize(
    "entries",
    [
        {"note/control/00000001": note_json(author="control")},
        {"note/n2/00000001": note_json(author="n2")},
        {"note/n1/00000002": note_json()},  # not the place of note 1
        {"note/n1/00000001": note_json(kind="shelve")},
        {"note/n1/00000001": note_json(seq="1")},
        {"note/n1/00000001": note_json(body=[1])},
        {"note/n1/00000001": note_json(by=5)},
        {"note/n1/00000001": note_json(more=5)},
        {"note/n1/00000001": "[" * 16_000},
        {"note/n1/00000001": "not json"},
        {"reported/pipeline/press": "[" * 16_000},
        {"reported/pipeline/press": "{}"},
        {"reported/pipeline/press": '{"digest": 1, "number": 1, "phase": "running"}'},
        {"reported/pipeline/press": '{"digest": "x", "number": 1, "phase": "sleeping"}'},
        {"reported/pipeline/press": '{"digest": "x", "number": 1, "phase": "running", "params": [1]}'},
        {"reported/facts": "x" * 20_000},
        {"tidewire": "2"},
        {"else": "1"},
        {"reported/" + "k" * 300: "1"},
    ],
)
def test_i5_entries_that_the_node_may_not_write_are_refused(entries: dict[str, str]) -> None:
    document = NodeDocument()
    before = document.digest()
    with pytest.raises(Refused):
        document.merged(forged(**entries), author=NODE)
    assert document.digest() == before and document.add_note(Note(NODE, 1, "comment", "x")), "ours works on"


def test_i5_the_control_plane_may_not_write_what_is_the_nodes() -> None:
    for entries in ({"reported/facts": "{}"}, {"note/n1/00000001": note_json()}):
        with pytest.raises(Refused):
            NodeDocument().merged(forged(**entries), author=CONTROL)


def test_i5_notes_are_neither_altered_nor_removed() -> None:
    document = NodeDocument()
    document.add_note(Note(NODE, 1, "comment", "press", reason="first"))
    for change in ("alter", "remove"):
        other = Document.load(document.save())
        with other.transaction() as transaction:
            if change == "alter":
                transaction.put(ROOT, "note/n1/00000001", ScalarType.Str, note_json(reason="second"))
            else:
                transaction.delete(ROOT, "note/n1/00000001")
        with pytest.raises(Refused):
            document.merged(bytes(other.save()), author=NODE)


def test_i9_a_document_that_would_take_too_much_memory_is_refused_before_it_does() -> None:
    document = Document.load(NodeDocument().save())
    with document.transaction() as transaction:
        for number in range(40):
            transaction.put(ROOT, f"reported/{number}", ScalarType.Str, "x" * 1024 * 1024)
    data = bytes(document.save())
    assert len(data) < DOCUMENT_BYTES_MAX
    with pytest.raises(Refused, match="takes more than"):
        NodeDocument(data)
    with pytest.raises(Refused):
        NodeDocument(NodeDocument().save() * 2)


@pytest.mark.parametrize(("kind", "value"), [(ScalarType.Int, 1), (ScalarType.Bytes, b"x"), (ScalarType.Boolean, True)])
def test_an_entry_that_is_no_text_is_refused(kind: ScalarType, value: object) -> None:
    document = Document.load(NodeDocument().save())
    with document.transaction() as transaction:
        transaction.put(ROOT, "reported/facts", kind, value)
    with pytest.raises(Refused):
        NodeDocument().merged(bytes(document.save()), author=NODE)


@pytest.mark.parametrize("data", [b"", b"x", b"\x85oJ\x83", bytes(Document().save()), b"\0" * (DOCUMENT_BYTES_MAX + 1)])
def test_what_is_no_document_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        NodeDocument().merged(data, author=NODE)


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_mutated_bytes_with_a_good_checksum_are_refused_or_harmless(seed: int, flips: int) -> None:
    """The binding can panic on these, or be poisoned by merging them: never the replica that we keep."""
    dice, document = random.Random(seed), NodeDocument()
    document.report("press", Reported("sha256:x", 1, "running"))
    data = bytearray(document.save())
    for _ in range(flips):
        data[dice.randrange(9, len(data))] = dice.randrange(256)
    data[4:8] = hashlib.sha256(bytes(data[8:])).digest()[:4]
    ours = NodeDocument()
    before = ours.digest()
    with suppress(Refused):
        merged = ours.merged(bytes(data), author=NODE)
        assert merged.report_facts("{}") and NodeDocument(merged.save()).digest() == merged.digest()
    assert ours.digest() == before and ours.report_facts("{}")


def test_values_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    document = NodeDocument()
    with pytest.raises(Refused):
        document.write({"reported/a": "1", "reported/b": "x" * 20_000})
    assert "reported/a" not in document.values()


def test_a_node_that_lost_its_store_gets_back_what_was_its_own_and_goes_on() -> None:
    lost, control = NodeDocument(), NodeDocument()
    lost.report("press", Reported("sha256:a", 1, "running"))
    lost.add_note(Note(NODE, 1, "param", "press", {"name": "x", "value": 1}))
    control = control.merged(lost.save(), author=NODE)
    control.add_note(Note(CONTROL, 1, "acknowledge", "inc"))
    node = NodeDocument().merged(control.save(), author=CONTROL, owner=NODE)
    assert node.digest() == control.digest() and node.next_seq(NODE) == 2
    node.report("press", Reported("sha256:b", 2, "failed"))
    node.add_note(Note(NODE, 2, "param", "press", {"name": "x", "value": 2}))
    control = control.merged(node.save(), author=NODE)
    assert control.digest() == node.digest() and control.reported()["press"].number == 2


def test_a_node_with_an_older_copy_of_its_store_gets_back_what_it_lacks() -> None:
    document = NodeDocument()
    document.report("press", Reported("sha256:a", 1, "running"))
    older = NodeDocument(document.save())
    document.report("press", Reported("sha256:b", 2, "running"))
    document.add_note(Note(NODE, 1, "comment", "press"))
    assert older.merged(document.save(), author=CONTROL, owner=NODE).digest() == document.digest()


@pytest.mark.parametrize("turn", range(8))  # which of two writers of one key wins is chance
def test_i6_a_restored_node_that_gave_a_lost_notes_number_again_keeps_both_notes(turn: int) -> None:
    before = NodeDocument()
    before.add_note(Note(NODE, 1, "comment", "press", reason="first"))
    restored, control = NodeDocument(before.save()), NodeDocument(before.save())
    control.add_note(Note(NODE, 2, "comment", "press", reason="lost with the card"))
    restored.add_note(Note(NODE, 2, "comment", "press", reason=f"on the old card {turn}"))
    restored.add_note(Note(NODE, 3, "comment", "press", reason="and another"))
    restored = restored.merged(control.save(), author=CONTROL, owner=NODE)
    control = control.merged(restored.save(), author=NODE)
    assert control.digest() == restored.merged(control.save(), author=CONTROL, owner=NODE).digest()
    reasons = [note.reason for note in control.notes()]
    assert reasons == ["first", "lost with the card", "and another", f"on the old card {turn}"]
    assert control.next_seq(NODE) == 5


@pytest.mark.parametrize("turn", range(8))
def test_i6_a_recovered_control_plane_gets_its_lost_notes_back_and_keeps_its_new_ones(turn: int) -> None:
    node, restored = NodeDocument(), NodeDocument()
    node.add_note(Note(CONTROL, 1, "acknowledge", "inc1", by="lost"))
    restored.add_note(Note(CONTROL, 1, "acknowledge", "inc2", by=f"new {turn}"))
    with pytest.raises(Refused):
        restored.merged(node.save(), author=NODE)  # unless an operator recovered it
    with pytest.raises(Refused):
        node.merged(restored.save(), author=CONTROL, owner=NODE)  # and the node sends what it has
    recovered = restored.merged(node.save(), author=NODE, owner=CONTROL)
    assert [(note.seq, note.by) for note in recovered.notes()] == [(1, "lost"), (2, f"new {turn}")]
    assert node.merged(recovered.save(), author=CONTROL, owner=NODE).digest() == recovered.digest()


def test_i5_the_control_plane_may_not_alter_a_nodes_notes_nor_write_another_nodes() -> None:
    document = NodeDocument()
    document.add_note(Note(NODE, 1, "comment", "press", reason="first"))
    altered = Document.load(document.save())
    with altered.transaction() as transaction:
        transaction.put(ROOT, "note/n1/00000001", ScalarType.Str, note_json(reason="second"))
    for foreign in (
        bytes(altered.save()),
        forged(**{"note/n2/00000001": note_json(author="n2")}),
        forged(**{"reported/pipeline/p": "{}"}),
    ):
        with pytest.raises(Refused):
            document.merged(foreign, author=CONTROL, owner=NODE)
