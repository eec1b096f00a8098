"""What a new epoch of a document keeps, and how much may be written in one: pure, the same on both sides (I6, I9).

A document only grows. A new epoch starts it again from what may still matter, once both sides hold the same; no contact, no
compaction. Numbers of notes go on where they were: `meta/high/<author>` is the last one that was given before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from pipelines.contract.errors import Refused
from pipelines.contract.folds import Decision, Register, closed_incidents, decide, ended, register_of
from pipelines.contract.frames import canonical_json
from pipelines.contract.node_state import CONTROL, Note, Reported

EPOCH, HIGH = "meta/epoch", "meta/high/"
COMMENTS_KEPT = 20  # per author and subject: the newest
NOTES_MAX = 500  # of one author in one epoch
NOTES_RESERVED = 200  # above it, for what must not wait: acknowledgements, resets and what ended
NOTE_BYTES_MAX = 96 * 1024  # of the notes of one author in a document
NOTE_BYTES_RESERVED = 32 * 1024
_RESERVED = frozenset({"acknowledge", "reset", "ended"})
_ABOUT_INCIDENTS = frozenset({"acknowledge", "reset", "shelve", "unshelve", "comment"})
_INCIDENT = re.compile(r"i[0-9a-f]{15}")


def number_of(values: Mapping[str, str]) -> int:
    """The epoch of a document; 0 before the first agreement."""
    return int(json.loads(values[EPOCH])["number"]) if EPOCH in values else 0


def made_of(values: Mapping[str, str]) -> str:
    """Digest of the document that both sides held when they began this epoch."""
    return str(json.loads(values[EPOCH])["of"]) if EPOCH in values else ""


def high(values: Mapping[str, str], author: str) -> int:
    """The last number that `author` had given to a note when this epoch began."""
    return int(values.get(HIGH + author, "0"))


def last_seq(values: Mapping[str, str], author: str) -> int:
    prefix = f"note/{author}/"
    given = [int(key.removeprefix(prefix)) for key in values if key.startswith(prefix)]
    return max([high(values, author), *given])


def notes_in(values: Mapping[str, str]) -> list[Note]:
    return sorted((Note.from_json(v) for k, v in values.items() if k.startswith("note/")), key=lambda n: (n.author, n.seq))


def check_meta(values: Mapping[str, str]) -> None:
    """Raises `Refused` on foreign entries under `meta/` that `collect` does not write."""
    for key, text in values.items():
        if not key.startswith("meta/"):
            continue
        try:
            is_ours = text == str(int(text)) if key.startswith(HIGH) else key == EPOCH and text == _epoch(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            is_ours = False
        if not is_ours:
            raise Refused("not an entry about the document itself", op="read document", place=key)


def _epoch(*, number: int, of: str) -> str:
    if type(number) is not int or type(of) is not str or number < 1:
        raise ValueError("not an epoch")
    return canonical_json({"number": number, "of": of}).decode()


def collect(values: Mapping[str, str], digest: str, *, node: str) -> dict[str, str]:
    """The entries with which the epoch after that of `values` begins. `digest` is that of the document that holds `values`.

    What is left out is over on both sides: of each register what was superseded, and all of it once it is neutral; what was
    noted about an incident that the node closed; what ended, with the note that says so; reports of pipelines that stopped and
    banned nothing; old comments.
    """
    notes = notes_in(values)
    kept = {note.name for note in _standing(notes, node)}
    entries = {key: text for key, text in values.items() if _is_kept(key, text, kept)}
    authors = {CONTROL, node, *(note.author for note in notes), *(k.removeprefix(HIGH) for k in values if k.startswith(HIGH))}
    entries |= {HIGH + author: str(last_seq(values, author)) for author in authors}
    return {**entries, EPOCH: _epoch(number=number_of(values) + 1, of=digest)}


def _is_kept(key: str, text: str, kept: Collection[str]) -> bool:
    if key.startswith("note/"):
        return Note.from_json(text).name in kept
    if key.startswith("reported/pipeline/"):
        reported = Reported.from_json(text)
        return reported.phase != "stopped" or bool(reported.bans)
    return not key.startswith("meta/")


def _standing(notes: Sequence[Note], node: str) -> list[Note]:
    closed = closed_incidents(notes, node=node)
    alive = [n for n in notes if not (n.subject in closed and (n.kind in _ABOUT_INCIDENTS or n.kind == "ended"))]
    over, kept = ended(alive, node=node), list[Note]()
    for register, decision in decide(alive, node=node).items():
        kept += _holding(register, decision, alive, over, node)
    kept += [note for note in alive if note.kind in ("acknowledge", "reset")]
    kept += _newest_comments(alive)
    names = {note.name for note in kept}
    return kept + [note for note in alive if note.kind == "ended" and note.body.get("note") in names]


def _holding(register: Register, decision: Decision, notes: Iterable[Note], over: Collection[str], node: str) -> list[Note]:
    """The notes of one register that say something: those of both sides while one of them counts."""
    of_both = [decision.note] if decision.beaten is None else [decision.note, decision.beaten]
    if register.kind != "param":
        loser = [n for n in of_both[1:] if n.name not in over]
        return [decision.note, *loser] if decision.is_set else []
    own = [n for n in notes if n.author == node and register_of(n) == register]  # an override may stand though it is beaten
    newest = max(own, key=lambda n: n.seq, default=None)
    stands = newest is not None and newest.kind == "param" and newest.name not in over
    return of_both if stands or decision.is_set else []


def _newest_comments(notes: Iterable[Note]) -> list[Note]:
    of: dict[tuple[str, str], list[Note]] = {}
    for note in notes:
        if note.kind == "comment":
            of.setdefault((note.author, note.subject), []).append(note)
    return [note for some in of.values() for note in sorted(some, key=lambda n: n.seq)[-COMMENTS_KEPT:]]


def to_close(notes: Iterable[Note], open_incidents: Collection[str], *, node: str) -> list[str]:
    """Incidents about which there are notes, which are not open, and of which the node has not said so."""
    notes = list(notes)
    acted_on = {note.subject for note in notes if note.kind in ("acknowledge", "reset")}
    noted = {n.subject for n in notes if n.kind in _ABOUT_INCIDENTS and (n.subject in acted_on or _INCIDENT.fullmatch(n.subject))}
    return sorted(noted - set(open_incidents) - closed_incidents(notes, node=node))


def check_quota(values: Mapping[str, str], note: Note) -> None:
    """Whether its author may still add `note` to a document with these entries. Raises `Refused`: a new epoch makes room."""
    prefix, more = f"note/{note.author}/", note.kind in _RESERVED
    written = last_seq(values, note.author) - high(values, note.author)
    size = sum(len(text) for key, text in values.items() if key.startswith(prefix)) + len(note.to_json())
    if written >= NOTES_MAX + NOTES_RESERVED * more or size > NOTE_BYTES_MAX + NOTE_BYTES_RESERVED * more:
        raise Refused(
            f"{written} notes of {size} bytes since both sides last agreed on the document are all that it may hold",
            op=note.kind, place=note.subject,
            hint="node and control plane have to be in contact first; or take back what is no longer needed",
        )  # fmt: skip
