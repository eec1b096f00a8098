"""What the read commands show, as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import fleet, registry, removal, requests, store
from control_plane.assign import Rule
from control_plane.effects import Contact
from control_plane.fleet import Node
from control_plane.lake_views import NodeName
from control_plane.requests import Answer, Asked, Standing
from control_plane.times import clock, iso


def pipelines(db: Connection) -> list[dict[str, Any]]:
    deployed = {deployment.pipeline: deployment for deployment in registry.deployments(db)}
    running: Counter[tuple[str, str]] = Counter()
    for node in fleet.all_nodes(db):
        for name, now in node.reported.items():
            running[name, now.phase] += 1
    rows = []
    for version in registry.newest_versions(db):
        targets = deployed[version.pipeline].targets if version.pipeline in deployed else ()
        phases = {phase: count for (name, phase), count in running.items() if name == version.pipeline}
        rows.append(
            {
                "pipeline": version.pipeline,
                "newest": version.number,
                "digest": version.digest,
                "description": version.spec.description,
                "by": version.by,
                "reason": version.reason,
                "at": iso(version.at),
                "targets": [{"select": str(t.selector), "version": t.number, "params": dict(t.params)} for t in targets],
                "nodes": phases,
                "rules": [_rule(rule) for rule in registry.rules(db) if rule.pipeline == version.pipeline],
            }
        )
    return rows


def nodes(db: Connection, contact: Contact) -> list[dict[str, Any]]:
    return [_node_row(db, node, contact) for node in fleet.all_nodes(db)]


def removed_nodes(db: Connection) -> list[dict[str, Any]]:
    return [removal.as_json(found) for found in removal.removed_nodes(db)]


def node_names(db: Connection, contact: Contact) -> list[NodeName]:
    """What a query and an audit know of the nodes, also of those that were removed."""
    gone = [NodeName(found.id, f"{found.name} (removed)", found.labels, found.last_seen) for found in removal.removed_nodes(db)]
    return gone + [
        NodeName(
            found.id,
            found.name,
            dict(found.labels),
            contact.last_seen(found),
            contact.is_in_contact(found),
            tuple(found.manifest.assignments) if found.manifest else (),
        )
        for found in fleet.all_nodes(db)
    ]


def node_id(db: Connection, name: str) -> str:
    """Of the node with this name or id; of a removed one by its id. Raises `Refused`."""
    if name in {found.id for found in removal.removed_nodes(db)}:
        return name
    return fleet.find_node(db, name).id


def node_name(db: Connection, name: str) -> str:
    """Of the node with this name or id. Raises `Refused`."""
    return fleet.find_node(db, name).name


def node(db: Connection, name: str, contact: Contact) -> dict[str, Any]:
    found = fleet.find_node(db, name)
    audit = sa.select(store.audit).where(store.audit.c.subject == found.name).order_by(store.audit.c.id.desc()).limit(10)
    return {
        **_node_row(db, found, contact),
        "joined_at": iso(found.joined_at),
        "facts": dict(found.facts),
        "manifest": asdict(found.manifest) if found.manifest else None,
        "reported": {name: asdict(now) for name, now in found.reported.items()},
        "notes": [asdict(note) for note in found.notes],
        "audit": [{**row._asdict(), "at": iso(row.at)} for row in db.execute(audit)],
    }


def standing(db: Connection, asked: Asked, contact: Contact, found: Sequence[Answer] = ()) -> Standing:
    """Who has answered a request, as noted and as `found` in the lake; of the others, who is out of contact since when."""
    told = requests.answers(db, asked.id)
    targets = requests.targets(db, asked.selector, {answer.node for answer in told})
    since = [f"unknown since {clock(contact.last_seen(target), contact.now)}" for target in targets]
    heard = [replace(t, silent="" if contact.is_in_contact(t) else s) for t, s in zip(targets, since, strict=True)]
    return requests.fold(heard, [*told, *found])


def request(db: Connection, name: str, found: Sequence[Answer], contact: Contact) -> dict[str, Any]:
    asked = requests.find(db, name)
    return requests.shown(asked, standing(db, asked, contact, found))


def all_requests(db: Connection, contact: Contact) -> list[dict[str, Any]]:
    return [requests.shown(asked, standing(db, asked, contact)) for asked in requests.listed(db)]


def audit(db: Connection, limit: int, only_security: bool = False) -> list[dict[str, Any]]:
    """Newest first."""
    wanted = [store.audit.c.action == store.SECURITY] if only_security else []
    rows = db.execute(sa.select(store.audit).where(*wanted).order_by(store.audit.c.id.desc()).limit(limit))
    return [{**row._asdict(), "at": iso(row.at)} for row in rows]


def _node_row(db: Connection, found: Node, contact: Contact) -> dict[str, Any]:
    wrong, reported = fleet.convergence(db, found), found.reported
    assignments = found.manifest.assignments if found.manifest else {}
    running = [
        {
            "pipeline": name,
            "wanted": assignments[name].number if name in assignments else None,
            "running": reported[name].number if name in reported and reported[name].phase != "stopped" else None,
            "phase": reported[name].phase if name in reported else "",
            "why": wrong.get(name, reported[name].reason if name in reported else ""),
        }
        for name in sorted(assignments.keys() | reported.keys())
        if name in assignments or reported[name].phase != "stopped"
    ]
    return {
        "id": found.id,
        "name": found.name,
        "labels": dict(found.labels),
        "in_contact": contact.is_in_contact(found),
        "contact": contact.words(found),
        "last_seen": iso(contact.last_seen(found)),
        "generation": found.manifest.generation if found.manifest else 0,
        "received_generation": found.seen_generation,
        "backlog": contact.backlog(found),
        "converged": not wrong and found.has_newest_manifest and not found.is_ahead,
        "replaced_by": found.replaced_by,
        "why": _why(found, wrong),
        "pipelines": running,
    }


def _why(node: Node, wrong: Mapping[str, str]) -> str:
    if node.is_ahead:
        return f"it holds generation {node.seen_generation}, newer than any issued here: tidewire recover"
    words = "; ".join(f"{name}: {text}" for name, text in wrong.items())
    return words or ("" if node.has_newest_manifest else "the newest manifest is not received yet")


def _rule(rule: Rule) -> dict[str, Any]:
    return {**asdict(rule), "selector": str(rule.selector)}
