"""The Automerge document that carries what a node reported and what people noted. The only importer of automerge.

A flat map from `section/key` to JSON text, one per node, both sides starting from the same genesis bytes. Every key has one
writer, so merging is a union (I5). The binding is a release candidate of 2024 that can panic and poison a document, hence:
every value is checked before a transaction; foreign bytes go into a scratch copy that replaces ours only when it passed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from automerge.core import ROOT, Document, ScalarType

from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.node_state import CONTROL, Note, Reported

DOCUMENT_BYTES_MAX = 256 * 1024
VALUE_BYTES_MAX = 16 * 1024
KEY_BYTES_MAX = 256
_FORMAT_KEY, _FORMAT = "tidewire", "1"

_GENESIS = base64.b64decode(
    "hW9Kg3tPZvQAdQEQAAAAAAAAAAAAAAAAAAAAAAFvlfW8B4eTrAbqDwTv/YH24VFwBSSVozovTn2TQI5nbQYBAgMCEwIjAkACVgIIFQohAiMCNAFCAlYCVwGAAQJ/AH8BfwF/AH8Afwd/CHRpZGV3aXJlfwB/AQF/AX8WMX8AAA=="
)


class NodeDocument:
    """One replica. Not thread-safe; the value semantics are copy-on-merge: `merged` returns a new replica."""

    def __init__(self, data: bytes = _GENESIS) -> None:
        self._document = _load(data)

    def save(self) -> bytes:
        return bytes(self._document.save())

    def values(self) -> dict[str, str]:
        """Every entry: key -> JSON text."""
        return _read(self._document)

    def digest(self) -> str:
        """Equal on two replicas exactly when both hold the same changes and show the same values."""
        heads = sorted(bytes(head).hex() for head in self._document.get_heads())
        return sha256(canonical_json([heads, self.values()]))

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
        return sorted(
            (Note.from_json(v) for k, v in self.values().items() if k.startswith("note/")), key=lambda n: (n.author, n.seq)
        )

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
        return True

    def report(self, pipeline: str, reported: Reported) -> bool:
        return self.write({f"reported/pipeline/{pipeline}": reported.to_json()})

    def report_facts(self, facts: str) -> bool:
        return self.write({"reported/facts": facts})

    def add_note(self, note: Note) -> bool:
        return self.write({note_key(note.author, note.seq): note.to_json()})

    def next_seq(self, author: str) -> int:
        return 1 + max((note.seq for note in self.notes() if note.author == author), default=0)

    def seen_by(self, author: str) -> int:
        """The newest note of the other side, as `author` knows it now: what `Note.seen` says."""
        return max((note.seq for note in self.notes() if note.author != author), default=0)

    def merged(self, foreign: bytes, *, author: str, owner: str = "") -> NodeDocument:
        """A new replica that also holds what `foreign` does, or `Refused` with this one untouched.

        `author` is who sent it: a node may have changed `reported/` and its own notes, the control plane its own notes; nobody
        may alter or remove a note. `owner` is who merges, if the other side is believed about what it lost itself: a node that
        merges what the control plane sent, a control plane that an operator recovered. It gets back entries of its own, and a
        node then reports anew what is true. A note of its own that was given the number of a lost one takes the next number.
        """
        if len(foreign) > DOCUMENT_BYTES_MAX:
            raise Refused(f"{len(foreign)} bytes are more than a document may have", op="merge document", place=author)
        scratch = NodeDocument(self.save())
        other = _load(foreign)
        try:
            scratch._document.merge(other)
        except BaseException as error:  # noqa: BLE001 - pyo3's PanicException is no Exception
            raise _refused("merge document", error) from None
        ours, foreign_values = self.values(), _read(other)
        is_newer = sorted(map(bytes, scratch._document.get_heads())) == sorted(map(bytes, other.get_heads()))
        moved = scratch._give_way(ours, foreign_values, owner) if owner and not is_newer else {}
        for key in ours.keys() & foreign_values.keys() - moved.keys():
            if key.startswith("note/") and ours[key] != foreign_values[key]:  # also where ours would win, and hide theirs
                raise Refused(f"{author} altered the note {key}", op="merge document", place=key)
        theirs = scratch.values()
        for key in ours.keys() | theirs.keys():
            if ours.get(key) != theirs.get(key):
                _check_change(key, None if key in moved else ours.get(key), theirs.get(key), moved.get(key, author), owner)
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
    note = Note.from_json(new)
    if note_key(note.author, note.seq) != key:
        raise Refused(f"the note at {key} says it is {note.author}/{note.seq}", op="merge document", place=key)


def _check_entry(key: str, value: object) -> None:
    if not isinstance(value, str) or len(value.encode()) > VALUE_BYTES_MAX or not key or len(key.encode()) > KEY_BYTES_MAX:
        raise Refused(f"an entry holds text of at most {VALUE_BYTES_MAX} bytes", op="write document", place=key)


def _load(data: bytes) -> Document:
    if not data:
        raise Refused("an empty document", op="load document")
    try:
        document = Document.load(data)
        values = _read(document)
    except BaseException as error:  # noqa: BLE001 - pyo3's PanicException is no Exception
        raise _refused("load document", error) from None
    if values.get(_FORMAT_KEY) != _FORMAT:
        raise Refused(f"document format {values.get(_FORMAT_KEY)!r} is not known here", op="load document")
    return document


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
