"""Central notes: pauses, pins and comments, written into the documents of nodes, which then decide (design, section 8).

A node that is out of contact gets them when it returns. What somebody did on it meanwhile holds then, unless ours is forced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import fleet, incident_views, registry
from control_plane.commands import Done, Writer
from control_plane.effects import Contact
from control_plane.fleet import Node
from control_plane.selector import parse_selector
from control_plane.store import Store, now_us
from control_plane.times import clock, iso
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Decision, Register, decide

KINDS = {"pause": ("pause", True), "resume": ("pause", False), "pin": ("pin", True), "unpin": ("pin", False)}
COMMENT_MAX = 2000
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class _Write:
    """One note that is to be written."""

    node: Node
    body: Mapping[str, Any]
    before: Decision | None
    words: str  # what becomes of the pipeline there


class NoteCommands:
    """Called on the store thread only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def decide(
        self, kind: str, reference: str, select: str, who: Writer, contact: Contact, *, for_s: int = 0, force: bool = False
    ) -> Done:
        """Write a pause, resume, pin or unpin of a pipeline for every selected node that has it. All of them, or none."""
        selector, (pipeline, number) = parse_selector(select), registry.parse_reference(reference)
        if number is not None and kind != "pin":
            raise Refused(f"{kind} is for a pipeline, whatever its version", op=kind, place=reference, hint=f"write {pipeline}")
        with self._transaction(who) as db:
            version = registry.find_version(db, pipeline, number) if number is not None else None
            registry.find_version(db, pipeline)
            matching = [n for n in fleet.all_nodes(db) if selector.matches(n.name, {**n.labels, **n.local_labels})]
            having = [n for n in matching if _has(n, pipeline)]
            if not having:
                what = f"no node matches {selector}" if not matching else f"no node of {selector} has {pipeline}"
                raise Refused(what, op=kind, hint=f"see where it runs: tidewire why {pipeline}")
            writes = [_write(kind, pipeline, node, version, for_s=for_s, force=force) for node in having]
            done = [write for write in writes if write is not None]
            for write in done:
                fleet.add_note(db, write.node, kind, pipeline, who.by, who.reason, iso(now_us()), write.body)
        rows = [_row(write, contact) for write in done]
        summary = _summary(kind, pipeline, rows, len(having) - len(done), force=force)
        result = {"pipeline": pipeline, "select": str(selector), "nodes": rows, "summary": summary, "dry_run": who.dry_run}
        return Done(result, [] if who.dry_run else [write.node.id for write in done])

    def comment(self, subject: str, text: str, transitions: Sequence[Mapping[str, Any]], who: Writer, contact: Contact) -> Done:
        """A comment on a node, on a pipeline of a node (`PIPELINE/NODE`), or on an incident (its id, or how that begins)."""
        if not 0 < len(text.strip()) <= COMMENT_MAX:
            raise Refused(f"a comment has 1 to {COMMENT_MAX} characters", op="comment", place=subject)
        with self._transaction(who) as db:
            node, about, words = _about(db, subject, transitions, contact)
            fleet.add_note(db, node, "comment", about, who.by, who.reason, iso(now_us()), {"text": text})
        result = {"node": node.name, "subject": about, "summary": [f"comment on {words}"], "dry_run": who.dry_run}
        return Done(result, [] if who.dry_run else [node.id])

    def _transaction(self, who: Writer) -> AbstractContextManager[Connection]:
        return self._store.rehearse() if who.dry_run else self._store.write()


def _has(node: Node, pipeline: str) -> bool:
    reported = node.reported.get(pipeline)
    wanted = node.manifest is not None and pipeline in node.manifest.assignments
    return wanted or (reported is not None and reported.phase != "stopped")


def _write(kind: str, pipeline: str, node: Node, version: registry.Version | None, *, for_s: int, force: bool) -> _Write | None:
    """None when that is how it is already."""
    register, is_set = KINDS[kind]
    before = decide(node.notes, node=node.id).get(Register(pipeline, register))
    if not is_set and not force and (before is None or not before.is_set):
        return None
    now = node.reported.get(pipeline)
    body: dict[str, Any] = {"for_s": for_s} if for_s else {}
    words = {"pause": "stops", "resume": "goes on", "unpin": "takes the wanted version"}.get(kind, "")
    if kind == "pin":
        if version is None and now is None:
            raise Refused(
                f"{node.name} has not said which version it runs", op="pin", place=pipeline, hint=f"name it: {pipeline}@N"
            )
        digest, number = (version.digest, version.number) if version else (now.digest, now.number)  # type: ignore[union-attr]
        body |= {"digest": digest, "number": number}
        words = f"stays at version {number}" if now and now.digest == digest else f"takes version {number} and stays there"
    return _Write(node, {**body, "force": True} if force else body, before, words)


def _about(db: Connection, subject: str, transitions: Sequence[Mapping[str, Any]], contact: Contact) -> tuple[Node, str, str]:
    pipeline, slash, name = subject.partition("/")
    if slash and pipeline in {version.pipeline for version in registry.newest_versions(db)}:
        node = fleet.find_node(db, name)
        return node, pipeline, f"{pipeline} on {node.name}"
    found = next((node for node in fleet.all_nodes(db) if subject in (node.name, node.id)), None)
    if found is not None:
        return found, "", found.name
    try:
        incident = incident_views.incident(db, transitions, subject, contact)
    except Refused as error:
        hint = "write a node's name, PIPELINE/NODE, or an incident's id"
        raise Refused(f"{subject!r} is no node, pipeline on a node, or incident", op="comment", hint=hint) from error
    return fleet.find_node(db, incident["node_id"]), incident["id"], f"incident {incident['id']} of {incident['node']}"


def _row(write: _Write, contact: Contact) -> dict[str, Any]:
    node, before = write.node, write.before
    beats = ""
    if before is not None and before.note.author == node.id:
        said = f" {before.note.reason!r}" if before.note.reason else ""
        beats = f"the on-site {before.note.kind} by {before.note.by or 'somebody'}{said}"
    seen = clock(contact.last_seen(node), contact.now)
    return {
        "name": node.name,
        "in_contact": contact.is_in_contact(node),
        "last_seen": seen,
        "becomes": write.words,
        "beats": beats,
    }


def _summary(kind: str, pipeline: str, rows: Sequence[Mapping[str, Any]], unchanged: int, *, force: bool) -> list[str]:
    lines = [f"{kind} {pipeline} on {len(rows)} node{'' if len(rows) == 1 else 's'}" + (":" if rows else "")]
    lines += [f"  {row['name']}: {row['becomes']}{_contact(row)}" for row in rows[:_NAMES_SHOWN]]
    lines += [f"  and {len(rows) - _NAMES_SHOWN} more"] if len(rows) > _NAMES_SHOWN else []
    lines += [f"  {row['name']}: this comes after {row['beats']}" for row in rows if row["beats"]]
    if any(not row["in_contact"] for row in rows) and not force:
        lines.append("  what somebody set on site since a node was last in contact holds there (--force beats it)")
    if unchanged:
        what = "pause" if kind == "resume" else "pin"
        lines.append(f"  {unchanged} with no {what} to take back")
    return lines


def _contact(row: Mapping[str, Any]) -> str:
    return "" if row["in_contact"] else f", once it is back (out of contact since {row['last_seen']})"
