"""Incidents as they stand: the transitions that reached the lake and the acknowledgements of both sides, folded (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.contract.node_state import CONTROL, Note

_COLUMNS = ["incident", "pipeline", "trigger", "group", "transition", "severity", "message", "at", "by", "reason", "value"]
ROWS_MAX = 50_000  # older transitions stay in the lake, out of this view
SQL = f"""
    select {", ".join(f'"{name}"' for name in _COLUMNS)}, _node as node, _received_at as received_at from incidents
    order by _received_at desc limit {ROWS_MAX}
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to an incident. `known_on` are the sides that know it: node, control."""

    transition: str  # raised | acknowledged | cleared
    at: str
    by: str = ""
    reason: str = ""
    known_on: tuple[str, ...] = ()
    received_at: str = ""


@dataclass(slots=True)
class Incident:
    id: str
    node: str
    pipeline: str = ""
    trigger: str = ""
    group: str = ""
    severity: str = ""
    message: str = ""
    steps: list[Step] = field(default_factory=list)

    @property
    def is_active(self) -> bool:
        return not self._has("cleared")

    @property
    def is_acknowledged(self) -> bool:
        return self._has("acknowledged")

    @property
    def state(self) -> str:
        return f"{'active' if self.is_active else 'cleared'}, {'acknowledged' if self.is_acknowledged else 'unacknowledged'}"

    @property
    def needs_somebody(self) -> bool:
        return self.is_active or not self.is_acknowledged

    @property
    def raised_at(self) -> str:
        return next((step.at for step in self.steps if step.transition == "raised"), "")

    def _has(self, transition: str) -> bool:
        return any(step.transition == transition for step in self.steps)


_ORDER = {"raised": 0, "acknowledged": 1, "cleared": 2}


def fold(rows: Iterable[Mapping[str, Any]], notes: Mapping[str, Iterable[Note]], synced: Mapping[str, bool]) -> list[Incident]:
    """Newest first. `rows` as SQL gives them; `notes` of each node; `synced`: whether the node holds all that we hold."""
    found: dict[str, Incident] = {}
    for row in rows:
        incident = found.setdefault(row["incident"], Incident(row["incident"], row["node"]))
        if row["transition"] == "raised" or not incident.pipeline:
            incident.pipeline, incident.trigger, incident.group = row["pipeline"], row["trigger"], row["group"] or ""
            incident.severity, incident.message = row["severity"] or "", row["message"] or ""
        times = str(row["at"] or ""), str(row["received_at"] or "")
        step = Step(row["transition"], times[0], row["by"] or "", row["reason"] or "", ("node", "control"), times[1])
        incident.steps.append(step)
    for node, written in notes.items():
        for note in written:
            if note.kind == "acknowledge" and note.subject in found:
                _add_acknowledgement(found[note.subject], note, node_has_it=note.author != CONTROL or synced.get(node, False))
    for incident in found.values():
        incident.steps.sort(key=lambda step: (_ORDER.get(step.transition, 3), step.at))
    return sorted(found.values(), key=lambda incident: incident.raised_at, reverse=True)


def _add_acknowledgement(incident: Incident, note: Note, *, node_has_it: bool) -> None:
    """The note, unless the node's own transition already says the same."""
    same = any(s.transition == "acknowledged" and (s.by, s.reason) == (note.by, note.reason) for s in incident.steps)
    if not same:
        sides = ("node", "control") if node_has_it else ("control",)
        incident.steps.append(Step("acknowledged", note.at, note.by, note.reason, sides))
