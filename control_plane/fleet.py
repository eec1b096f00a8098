"""The nodes: what each should run and what each says it does, as stored (I5, I6). `exchange` brings the two together."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import copies, registry, rollout_store, store
from control_plane.assign import Member, Plans, assign, newly_offered
from control_plane.copies import Told, Transition, history, notes, reports
from control_plane.keys import KeyRing
from pipelines.contract.document import NodeDocument
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Effective, differences, effective_params
from pipelines.contract.node_state import CONTROL, Manifest, Note, Reported, SignedManifest, params_digest

__all__ = ["Change", "Node", "Told", "Transition", "history", "notes", "reports"]
_TERM = "term"  # in `meta`: what `recover` raises
_FEW = 10


@dataclass(frozen=True)
class Node:
    """One enrolled node as stored. Times are microseconds since 1970; `last_seen` is a hint (I8)."""

    id: str
    name: str
    public: str
    labels: Mapping[str, str]
    facts: Mapping[str, Any]  # as of the join, then as reported
    joined_at: int
    last_seen: int
    manifest: Manifest | None
    signed: SignedManifest | None
    document_bytes: bytes
    document_digest: str
    document_changes: int
    seen_digest: str  # of the document that the node last said it holds
    seen_generation: int  # of the manifest that the node last said it holds
    seen_term: int  # of that manifest
    sent_generation: int  # of the newest manifest that we ever sent it
    settled_term: int  # both sides have agreed on the document in this term
    settled_seq: int  # the newest note of ours that the node has
    epoch: int  # of the document
    proposal: bytes | None  # the next epoch, as it was offered to the node
    proposal_digest: str
    proposal_of: str  # digest of the document that the node must still have to take it
    replaced_by: str  # id of the node that has its name now; "" for none
    local_labels: Mapping[str, str]  # those that people put on the node itself
    told: Told  # what its document says

    @property
    def document(self) -> NodeDocument:
        """Loaded anew each time, which is slow: what it says is in `told`."""
        return NodeDocument(self.document_bytes)

    @property
    def reported(self) -> Mapping[str, Reported]:
        """Pipeline -> what the node said last of it."""
        return self.told.reported

    @property
    def notes(self) -> Sequence[Note]:
        """Of both sides, as far as they may still matter: those in the document."""
        return self.told.notes

    @property
    def member(self) -> Member:
        return Member(self.id, self.name, self.labels, self.manifest, self.local_labels)

    @property
    def has_newest_manifest(self) -> bool:
        return self.manifest is None or (self.seen_term, self.seen_generation) >= self.manifest.order

    @property
    def is_ahead(self) -> bool:
        """Whether it holds a manifest that was issued later than all that are known here: we were restored from a backup."""
        return (self.seen_term, self.seen_generation) > (self.manifest.order if self.manifest else (self.seen_term, 0))


@dataclass(frozen=True)
class Change:
    """A manifest that a write altered."""

    node: Node
    before: Manifest | None
    after: Manifest


def all_nodes(db: Connection) -> list[Node]:
    return _all_nodes(db, copies.told(db))


def _all_nodes(db: Connection, told: Mapping[str, Told]) -> list[Node]:
    return [_node(row, told) for row in db.execute(sa.select(store.nodes).order_by(store.nodes.c.name))]


def find_node(db: Connection, name: str) -> Node:
    """By name or id. Raises `Refused` naming those there are."""
    table = store.nodes
    row = db.execute(sa.select(table).where(sa.or_(table.c.name == name, table.c.id == name))).first()
    if row is not None:
        return _node(row, copies.told(db, [row.id]))
    known = list(db.scalars(sa.select(table.c.name).order_by(table.c.name).limit(20)))
    hint = f"known nodes: {', '.join(known)}" if known else "let one in: tidewire join-token create"
    gone = store.removed_nodes
    removed = db.execute(sa.select(gone).where(sa.or_(gone.c.name == name, gone.c.id == name)).order_by(gone.c.at.desc())).first()
    if removed is not None:
        who = " ".join(part for part in (f"by {removed.by}" if removed.by else "", removed.reason) if part)
        raise Refused(f"{removed.name} ({removed.id}) was removed {who}".rstrip(), op="find node", hint="tidewire nodes --all")
    raise Refused(f"there is no node {name!r}", op="find node", hint=hint)


def public_key(db: Connection, node: str) -> str | None:
    return db.scalar(sa.select(store.nodes.c.public).where(store.nodes.c.id == node))


def state_of(db: Connection, node: str) -> tuple[str, int, int] | None:
    """(document digest, term, generation) that we hold for a node."""
    row = db.execute(_STATE, {"node": node}).first()
    if row is None:
        return None
    return row.document_digest, *(_manifest(row.manifest).order if row.manifest is not None else (0, 0))


def record_security(db: Connection, node: str, event: str) -> None:
    """Make a security event visible under the node's name."""
    name = db.scalar(sa.select(store.nodes.c.name).where(store.nodes.c.id == node))
    store.record_security(db, name or node, event)


def issue(db: Connection, keys: KeyRing, only: Collection[str] | None = None) -> list[Change]:
    """Bring every manifest, or those of the nodes `only`, in line with deployments and rules; the ones that changed. One
    transaction with the write (I5).

    A node that is ahead gets none: its numbers would be given twice. It waits for `recover`.
    """
    plans, now = registry.plans(db), term(db)
    changes, offers, signatures = [], list[tuple[int, str, int]](), list[dict[str, Any]]()
    for node in _chosen(db, only):
        if node.is_ahead and node.seen_term >= now:
            continue
        present = node.manifest or Manifest(node.id, node.seen_term or now, 0)
        member = Member(node.id, node.name, node.labels, present, node.local_labels)
        wanted = assign(member, Plans() if node.replaced_by else plans, term=now)
        if wanted == present:
            continue
        signed = SignedManifest.sign(wanted, keys.control)
        signatures.append({"node": node.id, "manifest": signed.body, "signature": signed.signature})
        changes.append(Change(node, node.manifest, wanted))
        offers += [(rollout, node.id, wanted.generation) for rollout in newly_offered(member, plans, wanted)]
    if signatures:
        db.execute(_UPDATE, signatures)
    rollout_store.note_offers(db, offers)
    return changes


def _chosen(db: Connection, only: Collection[str] | None) -> list[Node]:
    """Those of `only`, ids or names; all for None. One look for many, without what is noted there: each costs milliseconds."""
    if only is not None and len(only) <= _FEW:
        return [find_node(db, name) for name in only]
    chosen = None if only is None else frozenset(only)
    everybody = _all_nodes(db, copies.told(db, with_notes=False))
    return [node for node in everybody if chosen is None or node.id in chosen or node.name in chosen]


def term(db: Connection) -> int:
    """Of the manifests that are issued. A restored control plane goes on with a higher one (`recover`)."""
    return int(db.scalar(_TERM_OF) or 1)


def raise_term(db: Connection) -> int:
    """The new one. Manifests of it beat all that were issued before, and each node may give back notes of ours that were lost."""
    raised = 1 + max(term(db), db.scalar(sa.select(sa.func.max(store.nodes.c.seen_term))) or 0)
    db.execute(store.meta.delete().where(store.meta.c.key == _TERM))
    db.execute(store.meta.insert().values(key=_TERM, value=str(raised)))
    return raised


def saw(db: Connection, node: str, digest: str, order: tuple[int, int]) -> None:
    """Note what a node says it holds: its document and (term, generation)."""
    seen_term, generation = order
    seen = {"seen_digest": digest, "seen_generation": generation, "seen_term": seen_term}
    db.execute(_SAW, {"node": node, **{f"new_{name}": value for name, value in seen.items()}, **seen})


def seen_order(db: Connection, node: str) -> tuple[int, int]:
    """(term, generation) of the newest manifest that the node said it holds."""
    row = db.execute(_SEEN_ORDER, {"node": node}).first()
    return (row.seen_term, row.seen_generation) if row is not None else (0, 0)


def set_labels(db: Connection, node: Node, labels: Mapping[str, str | None], by: str, reason: str) -> None:
    """Put labels; None removes one."""
    merged = {key: value for key, value in {**node.labels, **labels}.items() if value is not None}
    update(db, node.id, labels=json.dumps(merged))
    words = ",".join(f"{key}={value}" if value is not None else f"-{key}" for key, value in labels.items())
    store.record(db, by, "nodes label", node.name, words, reason)


def add_note(
    db: Connection,
    node: Node,
    kind: str,
    subject: str,
    by: str,
    reason: str,
    at: str,
    body: Mapping[str, Any] = MappingProxyType({}),
) -> Note:
    """Write a note of the control plane into the node's document. Raises `Refused` when it holds as many as it may."""
    node = stored(db, node.id) or node
    document = node.document
    after = node.manifest.generation if node.manifest else 0
    seen = document.seen_by(CONTROL)
    note = Note(CONTROL, document.next_seq(CONTROL), kind, subject, dict(body), by, reason, after, seen, at)
    note.check_author()
    document.check_quota(note)
    before = document.values()
    document.add_note(note)
    update(db, node.id, **save_document(db, node.id, document, before))
    store.record(db, by, kind, subject, node.name, reason)
    return note


def delete(db: Connection, node: str) -> None:
    """Have no such node any more. Its history stays, as rows of a document that nobody holds."""
    db.execute(store.nodes.delete().where(store.nodes.c.id == node))
    db.execute(store.reports.delete().where(store.reports.c.node == node))
    note_taken(db, node)
    db.execute(store.notes.update().where(store.notes.c.node == node).values(collected=1))


def note_refused(db: Connection, node: Node, reason: str) -> None:
    """What a node sent of its document was not taken; until it is, this is why."""
    note_taken(db, node.id)
    db.execute(store.refused_documents.insert().values(node=node.id, reason=reason, at=store.now_us()))
    store.record_security(db, node.name, f"document refused: {reason}")


def note_taken(db: Connection, node: str) -> None:
    db.execute(_TAKEN, {"of": node})


def refused_documents(db: Connection) -> dict[str, str]:
    """Node id -> why its document is not taken."""
    return {row.node: row.reason for row in db.execute(sa.select(store.refused_documents))}


def flush_last_seen(db: Connection, seen: Mapping[str, int]) -> None:
    for node, at in seen.items():
        db.execute(store.nodes.update().where(store.nodes.c.id == node, store.nodes.c.last_seen < at).values(last_seen=at))


def convergence(db: Connection, node: Node) -> dict[str, str]:
    """Per pipeline, how what the node reported differs from its manifest; empty when it has converged (I6)."""
    if node.manifest is None:
        return {}
    reported = node.reported
    wrong = differences(node.manifest, reported)
    for pipeline in node.manifest.assignments.keys() - wrong.keys():
        effective = effective_for(db, node, node.notes, pipeline)
        if reported[pipeline].params_digest != params_digest({name: entry.value for name, entry in effective.items()}):
            wrong[pipeline] = "running, but not yet with the wanted parameters"
    return wrong


def effective_for(db: Connection, node: Node, notes: Iterable[Note], pipeline: str) -> dict[str, Effective]:
    """The parameters that `pipeline` should have on `node`, each with the entries it beat."""
    assert node.manifest is not None
    assignment = node.manifest.assignments[pipeline]
    return effective_params(registry.defaults(db, assignment.digest), assignment, notes, node=node.id, pipeline=pipeline)


def stored(db: Connection, node_id: str) -> Node | None:
    """Without what its document says. Nobody else changes it before this transaction ends."""
    row = db.execute(_STORED, {"node": node_id}).first()
    return _node(row, {}) if row is not None else None


def save_document(db: Connection, node: str, document: NodeDocument, before: Mapping[str, str]) -> dict[str, Any]:
    """Write the copies of what is in it and was not in `before`. What `update` has to write besides."""
    copied = copies.record(db, node, before, document.values())
    now = {"document": document.save(), "document_digest": document.digest(), "document_changes": document.changes}
    return {**now, "epoch": document.epoch, **copied}


def update(db: Connection, node: str, **values: Any) -> None:
    db.execute(_UPDATE, {"node": node, **values})


def changed(node: Node, values: Mapping[str, Any]) -> Node:
    """The node once `update` wrote these values."""
    plain = {name: value for name, value in values.items() if name in _AS_STORED}
    more: dict[str, Any] = {"document_bytes": values["document"]} if "document" in values else {}
    more |= {"local_labels": json.loads(values["local"])} if "local" in values else {}
    return replace(node, **plain, **more)


def _node(row: Row[Any], told: Mapping[str, Told]) -> Node:
    signed = SignedManifest(row.manifest, row.signature) if row.manifest is not None else None
    says = told.get(row.id, Told())
    return Node(
        **{name: getattr(row, name) for name in _AS_STORED},
        labels=json.loads(row.labels),
        facts={**json.loads(row.facts), **says.facts},
        manifest=_manifest(signed.body) if signed else None,
        signed=signed,
        document_bytes=row.document,
        local_labels=json.loads(row.local),
        told=says,
    )


@lru_cache(maxsize=5000)
def _manifest(body: bytes) -> Manifest:
    return Manifest.from_bytes(body)


_STORED = sa.select(store.nodes).where(store.nodes.c.id == sa.bindparam("node")).with_for_update()
_SEEN_ORDER = sa.select(store.nodes.c.seen_term, store.nodes.c.seen_generation).where(store.nodes.c.id == sa.bindparam("node"))
_TAKEN = store.refused_documents.delete().where(store.refused_documents.c.node == sa.bindparam("of"))
_STATE = sa.select(store.nodes.c.document_digest, store.nodes.c.manifest).where(store.nodes.c.id == sa.bindparam("node"))
_SAW = store.nodes.update().where(
    store.nodes.c.id == sa.bindparam("node"),
    sa.or_(*(store.nodes.c[name] != sa.bindparam(f"new_{name}") for name in ("seen_digest", "seen_generation", "seen_term"))),
)
_TERM_OF = sa.select(store.meta.c.value).where(store.meta.c.key == _TERM)
_UPDATE = store.nodes.update().where(store.nodes.c.id == sa.bindparam("node"))  # its columns are those of the parameters
_AS_STORED = {field.name for field in fields(Node)} & set(store.nodes.c.keys()) - {"labels", "facts", "manifest"}
