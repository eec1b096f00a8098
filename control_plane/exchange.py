"""The exchange with a node: what it holds and what we hold become the same (I5, I6), and then, when it is worth it, start again
as the next epoch of the document. Every step may be lost, doubled or late: what is stored here says how to go on (I7).

An epoch begins by agreement. While both hold the same, we store a proposal, made of exactly that, and send it; the node takes it
unless it wrote something since, and its next exchange says so. If that is lost, the one after it does. What we wrote meanwhile
is written again. A document of another epoch is never merged: an older one is that of a card that was restored, a newer one that
we did not propose means that we were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import copies, fleet, store
from control_plane.fleet import Node
from control_plane.keys import KeyRing
from control_plane.store import now_us
from pipelines.contract import epochs
from pipelines.contract.document import NodeDocument
from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256
from pipelines.contract.messages import Exchange, ExchangeReply
from pipelines.contract.node_state import CONTROL, Note

Changes = dict[str, Any]  # columns of `store.nodes`

CHANGES_MAX = 200  # from so many on a new epoch is proposed
BYTES_MAX = 16 * 1024  # likewise, if it is smaller
_SMALLER = 0.75
_NO_PROPOSAL: Changes = {"proposal": None, "proposal_digest": "", "proposal_of": ""}
_OURS = sa.select(sa.func.max(store.notes.c.seq)).where(
    store.notes.c.node == sa.bindparam("node"), store.notes.c.author == CONTROL
)


def exchange(db: Connection, keys: KeyRing, node_id: str, data: bytes) -> tuple[ExchangeReply, list[bytes]]:
    """Answer a node's `Exchange`: the reply and what rides with it. Raises `Refused` when it is not the node's own; a document
    that is refused is answered with the reason."""
    node = fleet.stored(db, node_id)
    if node is None:
        raise Refused("this node is not enrolled here", op="exchange", place=node_id)
    request, blobs = Exchange.unseal(node.public, data)
    if request.node != node_id:
        raise Refused(f"signed for {request.node}", op="exchange", place=node_id)
    blob = blobs[0] if request.has_document and blobs else None
    term = fleet.term(db)
    try:
        changes = _take(db, node, request, blob, is_recovering=node.settled_term < term)
    except Refused as error:
        fleet.note_refused(db, node, str(error))
        return ExchangeReply(request.nonce, node.document_digest, now_us(), error=str(error), node=node_id), []
    after = fleet.changed(node, changes)
    if after.local_labels != node.local_labels:
        fleet.update(db, node_id, **changes)
        fleet.issue(db, keys, [node_id])
        after, changes = fleet.stored(db, node_id) or after, {}
    _watch(db, after, request)
    changes |= _seen(db, after, request, term)
    if blob is not None or after.document_digest == request.document:
        fleet.note_taken(db, node_id)
    after = fleet.changed(after, changes)
    reply, out = _reply(after, request, has_sent=blob is not None)
    if reply.has_manifest and after.manifest and after.sent_generation != after.manifest.generation:
        changes["sent_generation"] = after.manifest.generation
    if changes:
        fleet.update(db, node_id, **changes)
    return reply, out


def _reply(node: Node, request: Exchange, *, has_sent: bool) -> tuple[ExchangeReply, list[bytes]]:
    is_same = node.document_digest == request.document
    manifest = node.signed if node.manifest and node.manifest.order > (request.term, request.generation) else None
    # One of an older epoch gets ours once we have taken what only it had.
    document = not is_same and (request.epoch == node.epoch or (request.epoch < node.epoch and has_sent))
    proposal = node.proposal if is_same and node.proposal_of == node.document_digest else None
    reply = ExchangeReply(
        request.nonce,
        node.document_digest,
        now_us(),
        has_manifest=manifest is not None,
        has_document=document,
        node=node.id,
        has_proposal=proposal is not None,
    )
    blobs = [manifest.body, manifest.signature] if manifest else []
    return reply, blobs + ([node.document_bytes] if document else []) + ([proposal] if proposal is not None else [])


def _take(db: Connection, node: Node, request: Exchange, blob: bytes | None, *, is_recovering: bool) -> Changes:
    """Bring our replica up to what the node says and sends. Raises `Refused` with nothing changed. `is_recovering`: an operator
    said that we lost what the node may still have (`recover`), and we have not got it back yet."""
    if node.proposal is not None and request.epoch == node.epoch + 1:
        if request.document == node.proposal_digest:
            return _begin(db, node, NodeDocument(node.proposal))
        if blob is not None:
            side = CONTROL if is_recovering else ""
            return _begin(db, node, NodeDocument(node.proposal).merged(blob, author=node.id, owner=side))
        return {}  # it wrote since: its document comes next
    if blob is None:
        if request.epoch > node.epoch and not is_recovering:
            store.record_security(db, node.name, _newer(request.epoch, node.epoch))
        return {}
    theirs = NodeDocument(blob)
    if theirs.epoch < node.epoch:
        return _take_back(db, node, theirs.checked(node.id))
    if is_recovering and (theirs.epoch > node.epoch or theirs.made_of != node.document.made_of):
        return _yield(db, node, theirs.checked(node.id))
    if theirs.epoch > node.epoch:
        raise Refused(_newer(theirs.epoch, node.epoch), op="exchange", place=node.id, hint="tidewire recover")
    document = node.document
    return _saved(db, node, document, document.merged(theirs, author=node.id, owner=CONTROL if is_recovering else ""))


def _newer(theirs: int, ours: int) -> str:
    return f"holds a document of epoch {theirs}, which was not agreed here, where it is {ours}: restored from a backup?"


def _begin(db: Connection, node: Node, theirs: NodeDocument) -> Changes:
    """The node is in the epoch that we proposed: so are we, with what was noted here since."""
    document = node.document
    since = [note for note in document.notes() if note.seq > epochs.high(theirs.values(), note.author)]
    return _saved(db, node, document, theirs.with_notes(since))


def _yield(db: Connection, node: Node, theirs: NodeDocument) -> Changes:
    """We were restored, and an operator knows: the node's document is the one. What it cannot have seen of ours is kept; of notes
    whose numbers were given before the epoch began nobody can tell whether it had them: they are told, and not done again."""
    document, before = node.document, epochs.high(theirs.values(), CONTROL)
    ours = [note for note in document.notes() if note.author == CONTROL and note.seq > node.settled_seq]
    kept = [note for note in ours if note.seq > before]
    doubtful = [note for note in ours if note.seq <= before and note not in theirs.notes()]
    words = f"took over the document of epoch {theirs.epoch}; kept of ours: {_names(kept)}; in doubt, to be noted again: "
    store.record(db, "", "recover", node.name, words + _names(doubtful))
    return _saved(db, node, document, theirs.with_notes(kept))


def _take_back(db: Connection, node: Node, theirs: NodeDocument) -> Changes:
    """The node's card was restored to before this epoch, or lost: what was noted on it since then is kept. A message that comes
    very late looks the same, and has nothing new."""
    known = {replace(note, seq=1).to_json() for note in copies.notes(db, node.id)}
    own = [note for note in theirs.notes() if note.author == node.id]
    unknown = [note for note in own if replace(note, seq=1).to_json() not in known]
    if not unknown:
        return {}
    event = f"holds a document of epoch {theirs.epoch}, agreed is {node.epoch}: was its card restored?"
    store.record_security(db, node.name, event)
    document = node.document
    store.record(db, "", "restored", node.name, f"kept what was noted on the restored card: {_names(unknown)}")
    return _saved(db, node, document, document.with_notes(unknown))


def _names(notes: Iterable[Note]) -> str:
    return ", ".join(f"{note.kind} {note.subject}".rstrip() for note in notes) or "none"


def _saved(db: Connection, node: Node, before: NodeDocument, after: NodeDocument) -> Changes:
    if after.digest() == before.digest():
        return {}
    if after.history() != before.history():
        _record_history(db, node, after.history())
    changes = fleet.save_document(db, node.id, after, before.values())
    return changes | (dict(_NO_PROPOSAL) if after.epoch != before.epoch else {})


def _record_history(db: Connection, node: Node, history: str) -> None:
    """A node says that one of its histories broke off: it was restored, cloned or moved; or we were restored."""
    try:
        told = json.loads(history)
        words, is_security = f"went on under new runs: {str(told['reason'])[:300]}", bool(told["is_security"])
    except (ValueError, TypeError, KeyError):
        return
    if is_security:
        store.record_security(db, node.name, words)
    else:
        store.record(db, "", "restored", node.name, words)


def _watch(db: Connection, node: Node, request: Exchange) -> None:
    """Tell of what no node of ours should hold."""
    issued = node.manifest.order if node.manifest else (0, 0)
    if request.generation > 0 and (request.term, request.generation) > issued:
        event = f"holds manifest {request.generation}, newer than our {issued[1]}: restored from a backup?"
        store.record_security(db, node.name, event)
    is_same = node.signed is not None and request.manifest in ("", sha256(node.signed.body))
    if node.signed and (request.term, request.generation) == issued and not is_same:
        event = "holds another manifest of the same generation: was the control plane restored, or its key used elsewhere?"
        store.record_security(db, node.name, event)


def _seen(db: Connection, node: Node, request: Exchange, term: int) -> Changes:
    """What the node holds now; and, when it is what we hold, the proposal of the next epoch, if that is worth it."""
    seen = {"seen_digest": request.document, "seen_generation": request.generation, "seen_term": request.term}
    changes: Changes = {name: value for name, value in seen.items() if getattr(node, name) != value}
    if node.document_digest != request.document:
        return changes
    if node.settled_term < term:
        changes["settled_term"] = term
    if "seen_digest" in changes:
        changes["settled_seq"] = db.scalar(_OURS, {"node": node.id}) or 0
    if node.proposal_of != node.document_digest and _is_large(node):
        changes |= _proposal(node)
    return changes


def _is_large(node: Node) -> bool:
    return node.document_changes >= CHANGES_MAX or len(node.document_bytes) >= BYTES_MAX


def _proposal(node: Node) -> Changes:
    """The next epoch, or, when it would be no smaller, that there is none for this document."""
    proposed = node.document.next_epoch(node.id)
    data, of = proposed.save(), node.document_digest
    if node.document_changes < CHANGES_MAX and len(data) > _SMALLER * len(node.document_bytes):
        return {**_NO_PROPOSAL, "proposal_of": of}
    return {"proposal": data, "proposal_digest": proposed.digest(), "proposal_of": of}
