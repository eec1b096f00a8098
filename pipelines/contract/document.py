"""The Automerge document that carries what a node reported and what people noted. The only importer of automerge.

A flat map from `section/key` to JSON text, one per node, both sides starting from the same genesis bytes. Every key has one
writer, so merging is a union (I5). It grows until both sides agree on a new epoch (`epochs`), which starts from genesis again.
The binding is a release candidate of 2024 that can panic and poison a document, hence:
every value is checked before a transaction; foreign bytes go into a scratch copy that replaces ours only when it passed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from automerge.core import ROOT, Document, ScalarType

from pipelines.contract import epochs
from pipelines.contract.document_size import check_size
from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.node_state import CONTROL, Note, Reported

DOCUMENT_BYTES_MAX = 512 * 1024  # what the quotas let both sides write while apart fits: a frame of NATS takes twice that
VALUE_BYTES_MAX = 16 * 1024
KEY_BYTES_MAX = 256
_FORMAT_KEY, _FORMAT = "tidewire", "1"

_GENESIS = base64.b64decode(
    "hW9Kg3tPZvQAdQEQAAAAAAAAAAAAAAAAAAAAAAFvlfW8B4eTrAbqDwTv/YH24VFwBSSVozovTn2TQI5nbQYBAgMCEwIjAkACVgIIFQohAiMCNAFCAlYCVwGAAQJ/AH8BfwF/AH8Afwd/CHRpZGV3aXJlfwB/AQF/AX8WMX8AAA=="
)


class NodeDocument:
    """One replica. Not thread-safe; the value semantics are copy-on-merge: `merged` returns a new replica."""

    def __init__(self, data: bytes = _GENESIS) -> None:
        self._document, values = _load(data)
        self._values: dict[str, str] | None = values
        self._digest, self._saved = "", b""

    def save(self) -> bytes:
        self._saved = self._saved or bytes(self._document.save())
        return self._saved

    def copy(self) -> NodeDocument:
        """Another replica with the same changes: of bytes that are our own, and so not checked once more."""
        other = object.__new__(NodeDocument)
        other._document = _parse(self.save())
        other._values, other._digest, other._saved = self._values, self._digest, self._saved
        return other

    def values(self) -> Mapping[str, str]:
        """Every entry: key -> JSON text."""
        if self._values is None:
            self._values = _read(self._document)
        return self._values

    def digest(self) -> str:
        """Equal on two replicas exactly when both hold the same changes and show the same values."""
        if not self._digest:
            heads = sorted(bytes(head).hex() for head in self._document.get_heads())
            self._digest = sha256(canonical_json([heads, self.values()]))
        return self._digest

    @property
    def epoch(self) -> int:
        """How often both sides agreed to start it again; documents of two epochs are never merged."""
        return epochs.number_of(self.values())

    @property
    def made_of(self) -> str:
        """Digest of the document with which the epoch before this one ended."""
        return epochs.made_of(self.values())

    @property
    def changes(self) -> int:
        """How many were made in this epoch: what loading costs."""
        return len(self._document.get_changes([]))

    def reported(self) -> dict[str, Reported]:
        """Pipeline -> what it does."""
        prefix = "reported/pipeline/"
        return {k.removeprefix(prefix): Reported.from_json(v) for k, v in self.values().items() if k.startswith(prefix)}

    def facts(self) -> str:
        """The node's facts as JSON text."""
        return self.values().get("reported/facts", "{}")

    def history(self) -> str:
        """How the node's history broke off the last time, as JSON text; "" for never."""
        return self.values().get("reported/history", "")

    def notes(self) -> list[Note]:
        return epochs.notes_in(self.values())

    def write(self, entries: Mapping[str, str]) -> bool:
        """Put `entries` in one change; whether anything differed. Raises `Refused`, writing nothing, when one does not fit."""
        ours = self.values()
        changed = {key: value for key, value in entries.items() if ours.get(key) != value}
        for key, value in changed.items():
            _check_entry(key, value)
        if not changed:
            return False
        with self._document.transaction() as transaction:
            for key, value in changed.items():
                transaction.put(ROOT, key, ScalarType.Str, value)
        self._values, self._digest, self._saved = {**ours, **changed}, "", b""
        return True

    def report(self, pipeline: str, reported: Reported) -> bool:
        return self.write({f"reported/pipeline/{pipeline}": reported.to_json()})

    def report_facts(self, facts: str) -> bool:
        return self.write({"reported/facts": facts})

    def add_note(self, note: Note) -> bool:
        return self.write({note_key(note.author, note.seq): note.to_json()})

    def next_seq(self, author: str) -> int:
        """Never one that was given before, also not to a note that an epoch left behind."""
        return 1 + epochs.last_seq(self.values(), author)

    def seen_by(self, author: str) -> int:
        """The newest note of the other side, as `author` knows it now: what `Note.seen` says."""
        others = {word.split("/")[-2 if word.startswith("note/") else -1] for word in self.values() if _names_author(word)}
        return max((epochs.last_seq(self.values(), other) for other in others - {author}), default=0)

    def check_quota(self, note: Note) -> None:
        """Raises `Refused` when its author wrote as much as it may before both sides agree on a new epoch (I9)."""
        epochs.check_quota(self.values(), note)

    def next_epoch(self, node: str) -> NodeDocument:
        """The document with which the next epoch of this one begins: one change on genesis. Its values are the same whoever makes
        it; its bytes are not, so both sides take those of the control plane."""
        fresh = NodeDocument()
        fresh.write(epochs.collect(self.values(), self.digest(), node=node))
        return fresh

    def begins(self, proposed: NodeDocument, node: str) -> bool:
        """Whether `proposed` is the next epoch of exactly this document."""
        return proposed.values() == {**NodeDocument().values(), **epochs.collect(self.values(), self.digest(), node=node)}

    def checked(self, node: str) -> NodeDocument:
        """Itself, when every entry is one that a document of `node` may hold: foreign bytes that replace ours. Else `Refused`."""
        for key, text in self.values().items():
            _check_entry(key, text)
            if key.startswith("note/"):
                _check_note(key, text, (node, CONTROL))
            elif key.startswith("reported/pipeline/"):
                Reported.from_json(text)
            elif not key.startswith(("reported/", "meta/")) and key != _FORMAT_KEY:
                raise Refused(f"there is no section {key!r}", op="read document", place=node)
        return self

    def with_notes(self, notes: Iterable[Note]) -> NodeDocument:
        """A new replica that also has these notes of another epoch: under their own numbers where those are free and were not
        given before this epoch began, else under the next one."""
        other = self.copy()
        for note in sorted(notes, key=lambda n: (n.author, n.seq)):
            key, values = note_key(note.author, note.seq), other.values()
            if values.get(key) != note.to_json():
                is_free = key not in values and note.seq > epochs.high(values, note.author)
                other.add_note(note if is_free else replace(note, seq=other.next_seq(note.author)))
        return other

    def merged(self, foreign: bytes | NodeDocument, *, author: str, owner: str = "") -> NodeDocument:
        """A new replica that also holds what `foreign` does, or `Refused` with this one untouched.

        `author` is who sent it: a node may have changed `reported/` and its own notes, the control plane its own notes; nobody
        may alter or remove a note. `owner` is who merges, if the other side is believed about what it lost itself: a node that
        merges what the control plane sent, a control plane that an operator recovered. It gets back entries of its own, and a
        node then reports anew what is true. A note of its own that was given the number of a lost one takes the next number.
        """
        scratch = self.copy()
        other = foreign if isinstance(foreign, NodeDocument) else NodeDocument(foreign)
        ours, foreign_values = self.values(), other.values()
        _check_same_epoch(ours, foreign_values, author)
        try:
            scratch._document.merge(other._document)
        except BaseException as error:  # noqa: BLE001 - pyo3's PanicException is no Exception
            raise _refused("merge document", error) from None
        scratch._values, scratch._digest, scratch._saved = None, "", b""
        is_newer = sorted(map(bytes, scratch._document.get_heads())) == sorted(map(bytes, other._document.get_heads()))
        moved = scratch._give_way(ours, foreign_values, owner) if owner and not is_newer else {}
        for key in ours.keys() & foreign_values.keys() - moved.keys():
            if key.startswith("note/") and ours[key] != foreign_values[key]:  # also where ours would win, and hide theirs
                raise Refused(f"{author} altered the note {key}", op="merge document", place=key)
        theirs = scratch.values()
        for key in ours.keys() | theirs.keys():
            if ours.get(key) != theirs.get(key):
                _check_change(key, None if key in moved else ours.get(key), theirs.get(key), moved.get(key, author), owner)
        _check_numbers(ours, theirs, author)
        return scratch

    def _give_way(self, ours: Mapping[str, str], theirs: Mapping[str, str], side: str) -> dict[str, str]:
        """Renumber the notes of `side`, which merges, whose numbers the other replica knows for other notes: key -> author."""
        clashing = sorted(
            key for key in ours.keys() & theirs.keys() if key.startswith(f"note/{side}/") and ours[key] != theirs[key]
        )
        self.write({key: theirs[key] for key in clashing})
        moved = dict.fromkeys(clashing, side)
        for key in clashing:
            note = replace(Note.from_json(ours[key]), seq=self.next_seq(side))
            self.add_note(note)
            moved[note_key(side, note.seq)] = side
        return moved


def note_key(author: str, seq: int) -> str:
    return f"note/{author}/{seq:08d}"


def _check_change(key: str, old: str | None, new: str | None, author: str, owner: str) -> None:
    if new is None:
        raise Refused(f"{author} removed {key}", op="merge document", place=key)
    _check_entry(key, new)
    if key.startswith("reported/") and (author != CONTROL or owner):
        if key.startswith("reported/pipeline/"):
            Reported.from_json(new)
        return
    if not key.startswith((f"note/{author}/", f"note/{owner or author}/")):
        raise Refused(f"{author} may not write {key}", op="merge document", place=key)
    if old is not None:
        raise Refused(f"{author} altered the note {key}", op="merge document", place=key)
    _check_note(key, new, (author, owner or author))


def _check_note(key: str, text: str, authors: tuple[str, str]) -> None:
    note = Note.from_json(text)
    if note_key(note.author, note.seq) != key or note.author not in authors:
        raise Refused(f"the note at {key} says it is {note.author}/{note.seq}", op="merge document", place=key)
    note.check_author()


def _check_same_epoch(ours: Mapping[str, str], theirs: Mapping[str, str], author: str) -> None:
    epoch, other = epochs.number_of(ours), epochs.number_of(theirs)
    if epoch != other:
        raise Refused(f"{author} holds a document of epoch {other}, agreed is {epoch}", op="merge document", place=author)
    if any(ours.get(key) != theirs.get(key) for key in ours.keys() | theirs.keys() if key.startswith("meta/")):
        raise Refused(f"{author} holds another document of epoch {epoch}", op="merge document", place=author)


def _check_numbers(ours: Mapping[str, str], theirs: Mapping[str, str], author: str) -> None:
    """Numbers that an epoch left behind are not given again, and nobody writes far beyond the quota."""
    for key in theirs.keys() - ours.keys():
        if key.startswith("note/") and int(key.rpartition("/")[2]) <= epochs.high(ours, key.split("/")[1]):
            raise Refused(f"{author} gave the number of {key} again", op="merge document", place=key)
    for side in {key.split("/")[1] for key in theirs if key.startswith("note/")}:
        if epochs.last_seq(theirs, side) - epochs.high(theirs, side) > 2 * (epochs.NOTES_MAX + epochs.NOTES_RESERVED):
            raise Refused(f"{side} wrote more notes than an epoch may have", op="merge document", place=author)


def _names_author(key: str) -> bool:
    return key.startswith(("note/", epochs.HIGH))


def _check_entry(key: str, value: object) -> None:
    if not isinstance(value, str) or len(value.encode()) > VALUE_BYTES_MAX or not key or len(key.encode()) > KEY_BYTES_MAX:
        raise Refused(f"an entry holds text of at most {VALUE_BYTES_MAX} bytes", op="write document", place=key)


def _load(data: bytes) -> tuple[Document, dict[str, str]]:
    if not 0 < len(data) <= DOCUMENT_BYTES_MAX:
        raise Refused(f"a document of {len(data)} bytes; it may have 1 to {DOCUMENT_BYTES_MAX}", op="load document")
    check_size(data)
    document = _parse(data)
    try:
        values = _read(document)
    except BaseException as error:  # noqa: BLE001 - pyo3's PanicException is no Exception
        raise _refused("load document", error) from None
    if values.get(_FORMAT_KEY) != _FORMAT:
        raise Refused(f"document format {values.get(_FORMAT_KEY)!r} is not known here", op="load document")
    epochs.check_meta(values)
    return document, values


def _parse(data: bytes) -> Document:
    try:
        return Document.load(data)
    except BaseException as error:  # noqa: BLE001 - pyo3's PanicException is no Exception
        raise _refused("load document", error) from None


def _read(document: Document) -> dict[str, str]:
    values: dict[str, str] = {}
    for key in document.keys(ROOT):
        got: Any = document.get(ROOT, key)
        if got is None or not isinstance(got[0], tuple) or got[0][0] != ScalarType.Str:
            raise Refused("an entry is not text", op="read document", place=str(key))
        values[key] = got[0][1]
    return values


def _refused(op: str, error: BaseException) -> Refused:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
    return error if isinstance(error, Refused) else Refused(f"not a document this build can read ({error})", op=op)
