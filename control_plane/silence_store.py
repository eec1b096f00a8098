"""Incidents of silent nodes, in SQL: raised and resolved by the control plane, acknowledged by people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import store
from control_plane.times import iso

TRIGGER = "node silent"
SEVERITY = "warning"


@dataclass(frozen=True, slots=True)
class Silence:
    """One incident of one node. Times are microseconds since 1970, 0 for not yet."""

    id: str
    node: str
    since: int  # when it was last heard of
    raised_at: int
    resolved_at: int
    acked_at: int
    acked_by: str
    ack_reason: str
    told: str  # what happened, once it is over


@dataclass(frozen=True, slots=True)
class Place:
    """What a notification says of a node, and selectors ask: light enough to be read every few seconds."""

    id: str
    name: str
    labels: Mapping[str, str]
    last_seen: int


def places(db: Connection, nodes: Collection[str] | None = None) -> dict[str, Place]:
    """By id, of these nodes or of all."""
    c = store.nodes.c
    wanted = sa.select(c.id, c.name, c.labels, c.local, c.last_seen)
    wanted = wanted if nodes is None else wanted.where(c.id.in_(list(nodes)))
    return {
        row.id: Place(row.id, row.name, {**json.loads(row.labels), **json.loads(row.local)}, row.last_seen)
        for row in db.execute(wanted)
    }


def watched(db: Connection) -> dict[str, int]:
    """The nodes whose silence matters, and when they were last heard of, as stored: those that ever ran something and were not
    replaced."""
    c, said = store.nodes.c, store.reports.c
    ran = sa.select(said.node).where(said.name.startswith("pipeline/"))
    return {row.id: row.last_seen for row in db.execute(sa.select(c.id, c.last_seen).where(c.replaced_by == "", c.id.in_(ran)))}


def open_ones(db: Connection) -> dict[str, Silence]:
    c = store.silences.c
    return {row.node: Silence(*row) for row in db.execute(sa.select(store.silences).where(c.resolved_at == 0))}


def begin(db: Connection, node: str, since: int, now: int) -> Silence:
    name = "s" + hashlib.sha256(f"{node} {since} {now}".encode()).hexdigest()[:15]
    silence = Silence(name, node, since, now, 0, 0, "", "", "")
    db.execute(store.silences.insert().values({field: getattr(silence, field) for field in Silence.__slots__}))
    return silence


def end(db: Connection, silence: Silence, told: str, now: int) -> None:
    db.execute(store.silences.update().where(store.silences.c.id == silence.id).values(resolved_at=now, told=told))


def acknowledge(db: Connection, name: str, by: str, reason: str, now: int) -> None:
    c = store.silences.c
    unacknowledged = store.silences.update().where(c.id == name, c.acked_at == 0)
    db.execute(unacknowledged.values(acked_at=now, acked_by=by, ack_reason=reason))


def rows(db: Connection) -> list[dict[str, Any]]:
    """As `incident_views` shows incidents, newest first."""
    names = {place.id: place.name for place in places(db).values()}
    newest = sa.select(store.silences).order_by(store.silences.c.raised_at.desc()).limit(1000)
    return [_row(Silence(*row), names) for row in db.execute(newest)]


def _row(one: Silence, names: Mapping[str, str]) -> dict[str, Any]:
    is_over, is_acked, name = bool(one.resolved_at), bool(one.acked_at), names.get(one.node, one.node)
    steps = [_step("raised", one.raised_at)]
    steps += [_step("acknowledged", one.acked_at, one.acked_by, one.ack_reason)] if is_acked else []
    steps += [_step("cleared", one.resolved_at, reason=one.told)] if is_over else []
    state = f"{'cleared' if is_over else 'active'}, {'acknowledged' if is_acked else 'unacknowledged'}"
    return {
        "id": one.id,
        "origin": "control",
        "node": name,
        "node_id": one.node,
        "pipeline": "",
        "trigger": TRIGGER,
        "group": "",
        "severity": SEVERITY,
        "message": f"{name} has not been heard of since {iso(one.since)}: unknown, assumed running" if not is_over else one.told,
        "steps": sorted(steps, key=lambda step: str(step["time"])),
        "state": state,
        "words": frozenset([*state.split(", "), "closed" if is_over else "open"]),
        "raised_at": iso(one.raised_at),
        "since": iso(one.since),
        "acked_by": one.acked_by,
        "acked_at": iso(one.acked_at) if is_acked else "",
        "cleared_at": iso(one.resolved_at) if is_over else "",
        "lasted_s": (one.resolved_at - one.since) / 1e6 if is_over else None,
        "repeats": 0,
        "raises": [iso(one.raised_at)],
        "needs_somebody": not is_over,
        "acknowledged": is_acked,
        "closed": is_over,
        "flags": "",
        "known": "control plane",
        "waits": [],
        "known_us": max(one.raised_at, one.acked_at, one.resolved_at),
        "as_of": "",
    }


def _step(what: str, at: int, by: str = "", reason: str = "") -> dict[str, Any]:
    told = {"transition": what, "at": iso(at), "time": iso(at), "by": by, "reason": reason, "known_on": ["control"]}
    return {**told, "received_at": iso(at), "state": "", "flags": "", "text": "", "for_s": 0.0}
