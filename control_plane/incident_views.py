"""Incidents as the read commands show them: those of the nodes, from the lake and the notes, and those of silent nodes (SQL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import copies, fleet, incidents, silence_store
from control_plane.effects import Contact
from control_plane.fleet import Node
from control_plane.incidents import Incident
from control_plane.lake_views import table_names
from control_plane.query import run_query
from control_plane.selector import Selector
from control_plane.times import clock, parse_iso
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Register, decide
from pipelines.engine.sql import as_json

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """Which incidents: those that meet all of it."""

    node: str = ""  # name or id
    pipeline: str = ""
    trigger: str = ""
    severity: str = ""
    state: str = ""  # a word of `Incident.words`
    since_us: int = 0  # something became known of it since then
    selector: Selector | None = None
    open_only: bool = False

    def takes(self, row: Mapping[str, Any]) -> bool:
        same = [(self.pipeline, row["pipeline"]), (self.trigger, row["trigger"]), (self.severity, row["severity"])]
        if any(wanted and wanted != value for wanted, value in same) or (
            self.node and self.node not in (row["node"], row["node_id"])
        ):
            return False
        if (self.state and self.state not in row["words"]) or (self.open_only and not row["needs_somebody"]):
            return False
        return row["known_us"] >= self.since_us and (self.selector is None or self.selector.matches(row["node"], row["labels"]))


def incident_rows(lake_dir: Path) -> list[dict[str, Any]]:
    """The newest transitions in the lake. Slow: not for the store thread."""
    if "incidents" not in table_names(lake_dir):
        return []
    result = run_query(lake_dir, incidents.SQL, limit=incidents.ROWS_MAX)
    return [dict(zip(result.columns, map(as_json, row), strict=True)) for row in result.rows]


def all_incidents(db: Connection, rows: Rows, contact: Contact, wanted: Wanted = Wanted()) -> list[dict[str, Any]]:
    """Folded from the transitions in the lake and from the notes of both sides, newest first."""
    known = {found.id: found for found in fleet.all_nodes(db)}
    notes = copies.incident_notes(db)
    synced = {found.id: found.seen_digest == found.document_digest for found in known.values()}
    shown = [_shown(incident, known.get(incident.node), contact) for incident in incidents.fold(rows, notes, synced)]
    for row in silence_store.rows(db):
        labels = known[row["node_id"]].labels if row["node_id"] in known else {}
        shown.append({**row, "labels": labels, "message": row["message"] + _meanwhile(row, shown)})
    shown = [row for row in shown if wanted.takes(row)]
    for row in shown:
        row["words"] = sorted(row["words"])
        del row["labels"]
    return sorted(shown, key=lambda row: str(row["raised_at"]), reverse=True)


def incident(db: Connection, rows: Rows, name: str, contact: Contact) -> dict[str, Any]:
    """The one whose id is or begins with `name`. Raises `Refused` when none or several do."""
    return find(all_incidents(db, rows, contact), name)


def find(everything: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    found = [i for i in everything if i["id"] == name] or [i for i in everything if str(i["id"]).startswith(name)]
    if len(found) == 1:
        return found[0]
    what = f"there is no incident {name!r}" if not found else f"{name!r} is the beginning of {len(found)} incidents"
    raise Refused(what, op="find incident", hint="list them with: tidewire incidents --all")


def _shown(found: Incident, node: Node | None, contact: Contact) -> dict[str, Any]:
    acked, cleared_at = found.acknowledgement, found.cleared_at
    steps = [{**asdict(step), "time": step.time} for step in found.steps]
    more = [word for word, holds in (("out of service", node and _is_paused(node, found)),) if holds]
    waits = [] if node is None else _waiting(found, node)
    return {
        **asdict(found),
        "steps": steps,
        "origin": "node",
        "node": node.name if node else found.node,
        "node_id": found.node,
        "labels": {**node.labels, **node.local_labels} if node else {},
        "state": ", ".join([found.state, *more]),
        "words": found.words | set(more),
        "raised_at": found.raised_at,
        "acked_by": acked.by if acked else "",
        "acked_at": acked.at if acked else "",
        "cleared_at": cleared_at,
        "lasted_s": _lasted_s(found.raised_at, cleared_at),
        "repeats": max(len(found.raises) - 1, 0),
        "raises": found.raises,
        "needs_somebody": found.needs_somebody,
        "acknowledged": found.is_acknowledged,
        "closed": found.is_closed,
        "flags": found.flags,
        "known": "both sides" if found.is_known_to_both else "the node does not know all of it yet",
        "waits": waits,
        "known_us": max((parse_iso(step.received_at or step.at) for step in found.steps), default=0),
        "as_of": "" if node is None or found.is_closed else _as_of(found, node, contact),
    }


def _meanwhile(silence: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> str:
    """What a node that was silent brought with it."""
    if not silence["closed"]:
        return ""
    mine = [i for i in shown if i["node_id"] == silence["node_id"] and i["origin"] == "node"]
    raised = sum(silence["since"] <= at <= silence["cleared_at"] for i in mine for at in i["raises"])
    return f"; {raised} incident{'' if raised == 1 else 's'} raised there meanwhile"


def _is_paused(node: Node, found: Incident) -> bool:
    reported = node.reported.get(found.pipeline)
    return reported is not None and reported.phase == "paused" and not found.is_closed


def _waiting(found: Incident, node: Node) -> list[str]:
    """What was decided and the node has not done yet, as far as it told."""
    decided = decide(node.notes, node=node.id)
    shelves = [decided.get(Register(subject, "shelve")) for subject in (found.id, f"{found.pipeline}/{found.trigger}")]
    wanted = any(decision is not None and decision.is_set for decision in shelves)
    is_shelved = "shelved" in found.flags.split(",")
    return [] if found.is_closed or wanted == is_shelved else ["shelve" if wanted else "unshelve"]


def _as_of(found: Incident, node: Node, contact: Contact) -> str:
    """What a reader must know when nobody has heard of the node for a while (I8); "" when it is in contact."""
    if contact.is_in_contact(node):
        return ""
    seen = clock(contact.last_seen(node), contact.now)
    words = f"state as of {seen}; out of contact since {seen}"
    return words if found.is_acknowledged else f"{words}; may already be acknowledged on site"


def _lasted_s(raised_at: str, cleared_at: str) -> float | None:
    if not raised_at or not cleared_at:
        return None
    return max((parse_iso(cleared_at) - parse_iso(raised_at)) / 1e6, 0.0)
