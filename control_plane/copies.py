"""What the nodes' documents say, as rows: so that only the exchange itself has to load a document.

Written in the transaction that saves the document. What an epoch collected from a document stays here: this is its history.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import store
from pipelines.contract import epochs
from pipelines.contract.folds import local_labels
from pipelines.contract.node_state import Note, Reported

_NOTE, _REPORTED, _PIPELINE = "note/", "reported/", "pipeline/"


@dataclass(frozen=True)
class Told:
    """What one document says now: `entries` are those under `reported/`, by what follows it."""

    entries: Mapping[str, str] = field(default_factory=dict)
    noted: Sequence[Row[Any]] = ()  # rows of `store.notes`

    @cached_property
    def notes(self) -> Sequence[Note]:
        """Of both sides. Made when they are asked for: of a fleet, few are."""
        return [_note(row) for row in self.noted]

    @cached_property
    def reported(self) -> Mapping[str, Reported]:
        """Pipeline -> what the node said last of it."""
        return {k.removeprefix(_PIPELINE): _report(v) for k, v in self.entries.items() if k.startswith(_PIPELINE)}

    @property
    def facts(self) -> Mapping[str, Any]:
        return _object(self.entries.get("facts", "{}"))

    @property
    def broke(self) -> Mapping[str, Any]:
        """How the node's history broke off the last time; empty for never."""
        return _object(self.entries.get("history", "{}"))


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of what a node said of a pipeline. `at` is the node's own clock, a label; `received_at` is ours."""

    node: str
    pipeline: str
    number: int
    digest: str
    phase: str
    gate: str
    code: str
    reason: str
    generation: int
    at: str
    received_at: int


def told(db: Connection, nodes: Collection[str] | None = None, *, with_notes: bool = True) -> dict[str, Told]:
    """Node -> what its document says, of these nodes or of all."""
    entries: dict[str, dict[str, str]] = {}
    table = store.reports
    for row in db.execute(_of(sa.select(table.c.node, table.c.name, table.c.body), table, nodes)):
        entries.setdefault(row.node, {})[row.name] = row.body
    held: dict[str, list[Row[Any]]] = {}
    for row in db.execute(_notes(nodes).where(store.notes.c.collected == 0)) if with_notes else ():
        held.setdefault(row.node, []).append(row)
    return {node: Told(entries.get(node, {}), held.get(node, ())) for node in entries.keys() | held.keys()}


def reports(db: Connection, nodes: Collection[str] | None = None) -> dict[str, dict[str, Reported]]:
    """Node id -> pipeline -> what the node said last of it."""
    table, found = store.reports, dict[str, dict[str, Reported]]()
    wanted = sa.select(table.c.node, table.c.name, table.c.body).where(table.c.name.startswith(_PIPELINE, autoescape=True))
    for row in db.execute(_of(wanted, table, nodes)):
        found.setdefault(row.node, {})[row.name.removeprefix(_PIPELINE)] = _report(row.body)
    return found


def notes(db: Connection, node: str, *, subject: str | None = None) -> list[Note]:
    """All that was ever noted on `node`, also what its document no longer holds."""
    wanted = _notes([node])
    return [_note(row) for row in db.execute(wanted if subject is None else wanted.where(store.notes.c.subject == subject))]


def incident_notes(db: Connection) -> dict[str, list[Note]]:
    """Node -> all that was ever noted about incidents and triggers on it, oldest first of each author."""
    found: dict[str, list[Note]] = {}
    for row in db.execute(_notes(None).where(store.notes.c.kind.in_(("acknowledge", "reset", "shelve", "unshelve", "comment")))):
        found.setdefault(row.node, []).append(_note(row))
    return found


def history(db: Connection, pipeline: str = "", node: str = "", limit: int = 100) -> list[Transition]:
    """How what nodes reported changed, newest first; of one pipeline, of one node (its id), or both."""
    table = store.history
    wanted = sa.select(*(table.c[name] for name in Transition.__slots__)).order_by(table.c.id.desc()).limit(limit)
    if pipeline:
        wanted = wanted.where(table.c.pipeline == pipeline)
    if node:
        wanted = wanted.where(table.c.node == node)
    return [Transition(*row) for row in db.execute(wanted)]


def record(db: Connection, node: str, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """Copy what differs between the entries of two replicas of a document, and keep how reports changed. The columns of the
    node that change with it: its `local` labels, if they may have."""
    changed = {key: text for key, text in after.items() if before.get(key) != text}
    if gone := before.keys() - after.keys():
        _collect(db, node, gone, epochs.number_of(after))
    now = store.now_us()
    _put_reports(db, node, {k.removeprefix(_REPORTED): v for k, v in changed.items() if k.startswith(_REPORTED)}, now)
    new = [Note.from_json(text) for key, text in changed.items() if key.startswith(_NOTE)]
    _put_notes(db, node, new, now)
    if any(note.kind in ("label", "unlabel", "ended") for note in new):
        return {"local": json.dumps(local_labels(epochs.notes_in(after), node=node), sort_keys=True)}
    return {}


def _collect(db: Connection, node: str, gone: Collection[str], epoch: int) -> None:
    """Entries that a new epoch left behind."""
    told = [{"of": node, "which": key.removeprefix(_REPORTED)} for key in gone if key.startswith(_REPORTED)]
    noted = [key.split("/") for key in gone if key.startswith(_NOTE)]
    if told:
        db.execute(_DROP_REPORT, told)
    if noted:
        db.execute(_COLLECT, [{"of": node, "by_whom": a, "number": int(n), "collected": epoch} for _, a, n in noted])


def _put_reports(db: Connection, node: str, bodies: Mapping[str, str], now: int) -> None:
    if not bodies:
        return
    db.execute(_DROP_REPORT, [{"of": node, "which": name} for name in bodies])
    db.execute(_ADD_REPORT, [{"node": node, "name": k, "body": v, "received_at": now} for k, v in bodies.items()])
    moved = [_transition(node, k.removeprefix(_PIPELINE), v, now) for k, v in bodies.items() if k.startswith(_PIPELINE)]
    if moved:
        db.execute(_ADD_TRANSITION, moved)


def _transition(node: str, pipeline: str, text: str, now: int) -> dict[str, Any]:
    said = _report(text)
    row = {name: getattr(said, name) for name in ("number", "digest", "phase", "gate", "code", "reason", "generation")}
    return {**row, "node": node, "pipeline": pipeline, "at": said.since, "received_at": now}


def _put_notes(db: Connection, node: str, new: Sequence[Note], now: int) -> None:
    if not new:
        return
    # A restored side may have given the number of a lost note to another one.
    db.execute(_DROP_NOTE, [{"of": node, "by_whom": note.author, "number": note.seq} for note in new])
    words = ("author", "seq", "kind", "subject", "by", "reason", "after", "seen", "at")
    more = {"node": node, "received_at": now, "collected": 0}
    rows = [{**{word: getattr(note, word) for word in words}, "body": json.dumps(dict(note.body)), **more} for note in new]
    db.execute(_ADD_NOTE, rows)


def _notes(nodes: Iterable[str] | None) -> sa.Select[Any]:
    c = store.notes.c
    return _of(sa.select(store.notes).order_by(c.node, c.author, c.seq), store.notes, nodes)


def _of(wanted: sa.Select[Any], table: sa.Table, nodes: Iterable[str] | None) -> sa.Select[Any]:
    return wanted if nodes is None else wanted.where(table.c.node.in_(list(nodes)))


def _note(row: Row[Any]) -> Note:
    body = json.loads(row.body) if row.body != "{}" else {}
    return Note(row.author, row.seq, row.kind, row.subject, body, row.by, row.reason, row.after, row.seen, row.at)


@lru_cache(maxsize=50_000)
def _report(text: str) -> Reported:
    return Reported.from_json(text)


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# Built once: making a statement costs more than running it.
_OF: sa.BindParameter[str] = sa.bindparam("of")
_C = store.notes.c
_DROP_REPORT = store.reports.delete().where(store.reports.c.node == _OF, store.reports.c.name == sa.bindparam("which"))
_ADD_REPORT, _ADD_TRANSITION, _ADD_NOTE = store.reports.insert(), store.history.insert(), store.notes.insert()
_ONE_NOTE = sa.and_(_C.node == _OF, _C.author == sa.bindparam("by_whom"), _C.seq == sa.bindparam("number"))
_DROP_NOTE, _COLLECT = store.notes.delete().where(_ONE_NOTE), store.notes.update().where(_ONE_NOTE)
