"""Open incidents and actions, as the store keeps them: functions over its connection, each within its caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.database import parsed

FINISHED_KEPT = 1000  # actions
_RAISES = ("raised", "raised_again")
_CLOSES = ("cleared", "reset", "retired")  # of transitions that do not say which state they lead to


def apply_transition(db: sqlite3.Connection, pipeline: str, transition: Mapping[str, Any]) -> None:
    """An incident is open until a transition closes it. Words that this agent does not know change what they say of its state."""
    incident, what = transition["incident"], transition["transition"]
    state = transition.get("state") or ("closed" if what in _CLOSES else "active")
    if state == "closed":
        db.execute("DELETE FROM incidents WHERE incident = ?", (incident,))
        return
    row = db.execute("SELECT body, acknowledged FROM incidents WHERE incident = ?", (incident,)).fetchone()
    body, acknowledged = (parsed(dict[str, Any], row[0]), bool(row[1])) if row else ({}, False)
    is_raise = what in _RAISES or not body
    body |= dict(transition) if is_raise else {name: transition.get(name) for name in ("transition", "flags", "by", "reason")}
    if what == "acknowledged":
        body["notes"] = {note: "done" if note.startswith("acknowledge ") else how for note, how in body.get("notes", {}).items()}
    acknowledged = transition.get("acknowledged", what == "acknowledged" or (acknowledged and not is_raise))
    values = (incident, pipeline, int(acknowledged), json.dumps({**body, "state": state}, default=str))
    db.execute("INSERT OR REPLACE INTO incidents VALUES (?, ?, ?, ?)", values)


def open_incidents(db: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = db.execute("SELECT body, acknowledged, pipeline FROM incidents").fetchall()
    return [{**parsed(dict[str, Any], body), "acknowledged": bool(acked), "pipeline": pipeline} for body, acked, pipeline in rows]


def mark_note(db: sqlite3.Connection, incident: str, note: str, how: str) -> None:
    row = db.execute("SELECT body FROM incidents WHERE incident = ?", (incident,)).fetchone()
    if row is not None:
        body = parsed(dict[str, Any], row[0])
        body["notes"] = {**body.get("notes", {}), note: how}
        db.execute("UPDATE incidents SET body = ? WHERE incident = ?", (json.dumps(body), incident))


def put_actions(db: sqlite3.Connection, pipeline: str, actions: Sequence[Mapping[str, Any]]) -> None:
    """What was settled already, before the commit that carries it, stays so."""
    for action in actions:
        db.execute(
            "INSERT OR IGNORE INTO actions (id, pipeline, body, status) VALUES (?, ?, ?, 'pending')",
            (action["id"], pipeline, json.dumps(action)),
        )


def pending(db: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = db.execute("SELECT body, pipeline, tries FROM actions WHERE status = 'pending' ORDER BY rowid").fetchall()
    return [{**parsed(dict[str, Any], body), "pipeline": pipeline, "tries": tries} for body, pipeline, tries in rows]


def _settle(db: sqlite3.Connection, values: tuple[Any, ...]) -> None:
    db.execute(
        "INSERT INTO actions (id, pipeline, body, status, tries, outcome, finished_us) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET status = excluded.status, tries = excluded.tries, outcome = excluded.outcome,"
        " finished_us = excluded.finished_us",
        values,
    )
    db.execute(
        "DELETE FROM actions WHERE status <> 'pending' AND finished_us < coalesce((SELECT finished_us FROM actions"
        " WHERE status <> 'pending' ORDER BY finished_us DESC LIMIT 1 OFFSET ?), 0)",
        (FINISHED_KEPT,),
    )


def settle(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    for row in rows:
        _settle(db, row)


def log(db: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT id, pipeline, status, tries, outcome, body FROM actions ORDER BY rowid DESC LIMIT ?", (limit,)
    ).fetchall()
    names = ("id", "pipeline", "status", "tries", "outcome")
    return [{**dict(zip(names, row[:5], strict=True)), "kind": parsed(dict[str, Any], row[5]).get("kind")} for row in rows]
