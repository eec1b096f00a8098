"""What a write touches, in words, before it does: the nodes, whether they are in contact, and what on-site entries resist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from control_plane import fleet
from control_plane.assign import changed_pipelines, is_about_requests
from control_plane.config import IN_CONTACT_S
from control_plane.fleet import Change, Node
from control_plane.selector import Selector
from control_plane.times import clock
from pipelines.contract.errors import Refused
from pipelines.contract.messages import Heartbeat
from pipelines.contract.node_state import Manifest

_NAMES_SHOWN = 10


class Heard(Protocol):
    """Whoever is heard of: `last_seen` as stored."""

    @property
    def id(self) -> str: ...
    @property
    def last_seen(self) -> int: ...


@dataclass(frozen=True)
class Contact:
    """When each node was last heard of, microseconds since 1970. Silence is not failure (I8)."""

    seen: Mapping[str, int]
    now: int
    heartbeats: Mapping[str, Heartbeat] = field(default_factory=dict)  # the newest of each node since this server started
    within_s: float = IN_CONTACT_S

    def backlog(self, node: Node) -> dict[str, int] | None:
        """What waited on the node at its last heartbeat, and how many seconds its buffer then lasted (-1: not known)."""
        if (told := self.heartbeats.get(node.id)) is None:
            return None
        size = {"rows": told.backlog_rows, "bytes": told.backlog_bytes}
        return {**size, "lost_rows": told.lost_rows, "lasts_s": told.buffer_lasts_s}

    def last_seen(self, node: Heard) -> int:
        return max(self.seen.get(node.id, 0), node.last_seen)

    def is_in_contact(self, node: Heard) -> bool:
        return self.now - self.last_seen(node) < self.within_s * 1_000_000

    def words(self, node: Node) -> str:
        if self.is_in_contact(node):
            return "in contact"
        return f"unknown since {clock(self.last_seen(node), self.now)}, assumed running"


def preview(db: Connection, changes: Sequence[Change], contact: Contact) -> dict[str, Any]:
    """`{"nodes": [{name, in_contact, last_seen, changes, keeps, missing}], "summary": [lines]}`, within the transaction."""
    fresh = {node.id: node for node in fleet.all_nodes(db)}
    changes = [change for change in changes if not is_about_requests(change.before, change.after)]
    rows = [_row(db, change, fresh[change.node.id], contact) for change in changes]
    ahead = [node.name for node in fresh.values() if node.is_ahead]
    held = [f"{', '.join(ahead[:_NAMES_SHOWN])}: newer than this control plane, nothing is issued before `tidewire recover`"]
    return {"nodes": rows, "summary": _summary(rows) + (held if ahead else [])}


def recovery(ahead: Sequence[str], issued: Sequence[tuple[Node, Manifest]], contact: Contact) -> list[str]:
    """What becomes of nodes once the term is raised, compared with what they reported last: those that another version is for."""
    named = [
        f"{len(ahead)} ahead of this control plane: {', '.join(ahead[:_NAMES_SHOWN])}" if ahead else "no node known to be ahead"
    ]
    named += [f"  and {len(ahead) - _NAMES_SHOWN} more"] if len(ahead) > _NAMES_SHOWN else []
    for node, manifest in issued:
        running = {name: now.number for name, now in node.reported.items() if now.phase != "stopped"}
        wanted = {name: assignment.number for name, assignment in manifest.assignments.items()}
        words = [
            f"{name} {_version(running.get(name))} -> {_version(wanted.get(name))}"
            for name in sorted(running.keys() | wanted.keys())
            if running.get(name) != wanted.get(name)
        ]
        named += [f"  {node.name} ({contact.words(node)}): {', '.join(words)}"] if words else []
    return [*named, "what was deployed or set since the backup is not known here: apply and deploy it first"]


def _version(number: int | None) -> str:
    return "not running" if number is None else f"version {number}"


def _row(db: Connection, change: Change, node: Node, contact: Contact) -> dict[str, Any]:
    words = changed_pipelines(change.before, change.after)
    keeps, missing = list[str](), list[str]()
    notes = node.notes
    for pipeline in words.keys() & change.after.assignments.keys():
        for name, entry in fleet.effective_for(db, node, notes, pipeline).items():
            if entry.origin == "on-site":
                keeps.append(f"{name}={entry.value} by {entry.by or 'somebody on site'}")
            elif entry.value is None:
                missing.append(f"{pipeline} {name}")
    seen = clock(contact.last_seen(node), contact.now)
    row = {"name": node.name, "in_contact": contact.is_in_contact(node), "last_seen": seen, "generation": change.after.generation}
    return {**row, "changes": words, "keeps": sorted(keeps), "missing": sorted(missing)}


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["no node changes now: none that matches, or none for which it makes a difference; it holds for those that come"]
    lines = [f"{_count(rows, 'node')}: {', '.join(_names(rows))}"]
    for change, names in _grouped(rows).items():
        lines.append(f"  {change}: {', '.join(names)}" if len(names) < len(rows) else f"  {change}")
    for row in rows:
        if row["keeps"]:
            lines.append(f"  {row['name']} keeps its on-site override {', '.join(row['keeps'])} (a --force set beats it)")
        if row["missing"]:
            lines.append(f"  {row['name']} cannot run it yet: no value for {', '.join(row['missing'])} (tidewire set)")
    return lines


def _grouped(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for row in rows:
        for pipeline, words in row["changes"].items():
            grouped.setdefault(f"{pipeline} {words}", []).append(row["name"])
    return grouped


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [
        r["name"] if r["in_contact"] else f"{r['name']} (out of contact since {r['last_seen']})" for r in rows[:_NAMES_SHOWN]
    ]
    more = len(rows) - len(shown)
    return [*shown, *([f"and {more} more"] if more else [])]


def _count(rows: Sequence[object], noun: str) -> str:
    return f"{len(rows)} {noun}{'' if len(rows) == 1 else 's'}"


def check_matches(db: Connection, selector: Selector, *, allow_empty: bool) -> None:
    """A selector that requires something which no node has is a slip of the pen, unless somebody says otherwise."""
    if allow_empty or selector.is_everything or matches_any(db, selector):
        return
    nodes = [node for node in fleet.all_nodes(db) if not node.replaced_by]
    values: dict[str, set[str]] = {}
    for node in nodes:
        for key, value in {"name": node.name, **node.member.selectable}.items():
            values.setdefault(key, set()).add(value)
    keys = [key for key in dict.fromkeys([r.key for r in selector.requirements] + sorted(values)) if key in values]
    known = "; ".join(f"{key}={','.join(sorted(values[key])[:8])}" for key in keys[:6]) or "no node has joined yet"
    raise Refused(f"no node matches {selector}", op="select", hint=f"there are: {known}; for nodes to come: --allow-empty")


def matches_any(db: Connection, selector: Selector) -> bool:
    nodes = (node for node in fleet.all_nodes(db) if not node.replaced_by)
    return selector.is_everything or any(selector.matches(node.name, node.member.selectable) for node in nodes)
