"""Incidents as they stand: the transitions that reached the lake and the notes of both sides, folded (pure).

A transition says which state it leads to; a word that this build does not know is shown and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.contract.node_state import CONTROL, Note

ROWS_MAX = 50_000  # older transitions stay in the lake, out of this view
SQL = f"""
    select *, _node as node, _received_at as received_at from incidents
    order by _received_at desc, _seq desc, _row desc limit {ROWS_MAX}
"""
_RAISES = ("raised", "raised_again")
_OVER = ("cleared", "reset", "retired")  # of transitions that say no state
_NOTED = {"acknowledge": "acknowledged", "reset": "reset", "shelve": "shelved", "unshelve": "unshelved", "comment": "comment"}
_UNSURE = "2020"  # a time before it is one of a clock that was never set (I10)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to an incident. `known_on` are the sides that know it: node, control."""

    transition: str  # as the node's engine names it
    at: str
    by: str = ""
    reason: str = ""
    known_on: tuple[str, ...] = ()
    received_at: str = ""
    state: str = ""  # active | cleared | closed; "" when the transition does not say
    flags: str = ""
    text: str = ""  # of a comment
    for_s: float = 0.0  # of a shelf

    @property
    def time(self) -> str:
        """When it happened, as far as its node's clock can be believed; else when we learned of it."""
        return self.at if not self.received_at or _UNSURE <= self.at <= self.received_at else self.received_at


@dataclass(slots=True)
class Incident:
    """`steps` in the order in which they came."""

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
        for step in reversed(self.steps):
            if step.received_at and (step.state or step.transition in (*_RAISES, *_OVER)):  # a note alone changes no state
                return step.state == "active" if step.state else step.transition in _RAISES
        return True

    @property
    def is_closed(self) -> bool:
        """Whether nothing is left to do about it, as its node says."""
        return next((step.state for step in reversed(self.steps) if step.state), "") == "closed"

    @property
    def is_acknowledged(self) -> bool:
        since_raise = [step.transition for step in self.steps]
        last = max((i for i, what in enumerate(since_raise) if what in _RAISES), default=0)
        return "acknowledged" in since_raise[last:]

    @property
    def acknowledgement(self) -> Step | None:
        """The one that holds."""
        if not self.is_acknowledged:
            return None
        return next(step for step in reversed(self.steps) if step.transition == "acknowledged")

    @property
    def cleared_at(self) -> str:
        """When it was over; "" while it is active."""
        if self.is_active:
            return ""
        return next((step.time for step in reversed(self.steps) if step.transition in _OVER), "")

    @property
    def raises(self) -> list[str]:
        """When it was raised: once, and as often as it came again before anybody acknowledged it."""
        return [step.time for step in self.steps if step.transition in _RAISES]

    @property
    def is_known_to_both(self) -> bool:
        return all(len(step.known_on) > 1 for step in self.steps)

    @property
    def words(self) -> frozenset[str]:
        """All that `--state` may ask for."""
        open_ = "closed" if self.is_closed else "open"
        return frozenset([*self.state.split(", "), open_])

    @property
    def flags(self) -> str:
        """latched, suppressed, shelved, unreliable, chattering: those that hold."""
        return next((step.flags for step in reversed(self.steps) if step.state), "")

    @property
    def state(self) -> str:
        words = "active" if self.is_active else "cleared", "acknowledged" if self.is_acknowledged else "unacknowledged"
        return ", ".join([*words, *filter(None, self.flags.split(","))])

    @property
    def needs_somebody(self) -> bool:
        return not self.is_closed and (self.is_active or not self.is_acknowledged)

    @property
    def raised_at(self) -> str:
        return next((step.at for step in self.steps if step.transition == "raised"), "")


def fold(rows: Iterable[Mapping[str, Any]], notes: Mapping[str, Iterable[Note]], synced: Mapping[str, bool]) -> list[Incident]:
    """Newest first. `rows` as SQL gives them; `notes` of each node; `synced`: whether the node holds all that we hold."""
    found: dict[str, Incident] = {}
    for row in reversed(list(rows)):
        incident = found.setdefault(row["incident"], Incident(row["incident"], row["node"]))
        if row["transition"] in _RAISES or not incident.pipeline:
            incident.pipeline, incident.trigger, incident.group = row["pipeline"], row["trigger"], row["group"] or ""
            incident.severity, incident.message = row["severity"] or "", row["message"] or ""
        incident.steps.append(_step(row))
    of_trigger: dict[tuple[str, str], list[Incident]] = {}
    for incident in found.values():
        of_trigger.setdefault((incident.node, f"{incident.pipeline}/{incident.trigger}"), []).append(incident)
    for node, written in notes.items():
        for note in written:
            about = [found[note.subject]] if note.subject in found else of_trigger.get((node, note.subject), [])
            for incident in about if note.kind in _NOTED else ():
                if not incident.is_closed or note.subject == incident.id:
                    _add_note(incident, note, node_has_it=note.author != CONTROL or synced.get(node, False))
    return sorted(found.values(), key=lambda incident: incident.raised_at, reverse=True)


def _step(row: Mapping[str, Any]) -> Step:
    at, received_at = str(row["at"] or ""), str(row["received_at"] or "")
    flags = row.get("flags") or ""
    words = flags if isinstance(flags, str) else ",".join(flags)
    sides = ("node", "control")
    return Step(row["transition"], at, row["by"] or "", row["reason"] or "", sides, received_at, row.get("state") or "", words)


def _add_note(incident: Incident, note: Note, *, node_has_it: bool) -> None:
    """The note after what was known when it was written, unless the node's own transition already says the same."""
    what, by = _NOTED[note.kind], note.by or note.author
    if what != "comment" and any(s.transition == what and (s.by, s.reason) == (by, note.reason) for s in incident.steps):
        return
    if note.subject != incident.id and note.at < incident.raised_at:
        return  # of its trigger, before there was this incident
    sides = ("node", "control") if node_has_it else ("control",)
    text, for_s = str(note.body.get("text", "")), note.body.get("for_s", 0)
    step = Step(what, note.at, by, note.reason, sides, text=text, for_s=float(for_s) if isinstance(for_s, (int, float)) else 0.0)
    waits = ("raised_again",) if note.kind in ("acknowledge", "reset") else ()
    later = (
        i
        for i, s in enumerate(incident.steps)
        if s.received_at > note.at and (s.transition in waits or (not waits and s.time > note.at))
    )
    incident.steps.insert(next(later, len(incident.steps)), step)
