"""Removing a node: its login is revoked for ever, its name is free, what it sent stays (design, section 11)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import fleet, store
from control_plane.effects import Contact
from control_plane.store import now_us
from control_plane.times import iso
from pipelines.contract.errors import Refused
from pipelines.contract.keys import SIGNATURE_BYTES
from pipelines.contract.messages import Standing, StandingReply


@dataclass(frozen=True)
class RemovedNode:
    """As it was. Times are microseconds since 1970."""

    id: str
    name: str
    labels: dict[str, str]
    last_seen: int
    by: str
    reason: str
    at: int


def remove(db: Connection, name: str, by: str, reason: str, contact: Contact) -> dict[str, Any]:
    """Take a node out of the fleet, and say so. Its connection is cut by whoever applies `revoked_keys` next."""
    node = fleet.find_node(db, name)
    db.execute(
        store.removed_nodes.insert().values(
            id=node.id,
            name=node.name,
            public=node.public,
            labels=json.dumps(dict(node.labels)),
            last_seen=contact.last_seen(node),
            document=node.document_bytes,
            by=by,
            reason=reason,
            at=now_us(),
        )
    )
    fleet.delete(db, node.id)
    store.record(db, by, "nodes remove", node.name, node.id, reason)
    running = sorted(pipeline for pipeline, now in node.reported.items() if now.phase != "stopped")
    waits = contact.backlog(node)
    summary = [
        f"{node.name} ({node.id}, {contact.words(node)}) is let in no more; its name is free; its rows stay in the lake",
        f"  it goes on by itself with: {', '.join(running) or 'nothing'}; stop the agent there if it should not",
    ]
    if waits is None or waits["rows"]:
        rows = "what waits there" if waits is None else f"{waits['rows']:,} rows that wait there"
        summary += [f"  {rows} will not arrive: on the node, tidewire-agent buffer export DIR"]
    return {"node": node.name, "id": node.id, "summary": summary}


def removed_nodes(db: Connection) -> list[RemovedNode]:
    """Newest first."""
    return [_removed(row) for row in db.execute(sa.select(store.removed_nodes).order_by(store.removed_nodes.c.at.desc()))]


def revoked_keys(db: Connection) -> frozenset[str]:
    """Public keys that the broker lets in no more."""
    return frozenset(db.scalars(sa.select(store.removed_nodes.c.public)))


def standing(db: Connection, node: str, data: bytes) -> StandingReply:
    """What becomes of a node whose login is refused. Raises `Refused` unless it is the node that asks."""
    table = store.removed_nodes
    gone = db.execute(sa.select(table).where(table.c.id == node)).first()
    public = gone.public if gone is not None else fleet.public_key(db, node)
    if public is None:
        asked, _ = Standing.unpack(data[SIGNATURE_BYTES:])
        return StandingReply(asked.nonce, node, "unknown")
    asked, _ = Standing.unseal(public, data)
    if asked.node != node:
        raise Refused(f"signed for {asked.node}", op="standing", place=node)
    if gone is None:
        return StandingReply(asked.nonce, node, "member")
    store.record_security(db, node, f"the removed node {gone.name} tried to come back; it was told to join again")
    return StandingReply(asked.nonce, node, "removed", gone.by, gone.reason, iso(gone.at))


def as_json(found: RemovedNode) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "labels": found.labels,
        "last_seen": iso(found.last_seen),
        "by": found.by,
        "reason": found.reason,
        "at": iso(found.at),
    }


def _removed(row: Row[Any]) -> RemovedNode:
    return RemovedNode(row.id, row.name, json.loads(row.labels), row.last_seen, row.by, row.reason, row.at)
