"""Incidents as the centre sees them: folded from transitions in the lake and notes of both sides."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.incidents import Incident, fold
from pipelines.contract.node_state import CONTROL, Note


def row(n: int, transition: str, **more: Any) -> dict[str, Any]:
    common = {"incident": "i1", "node": "n1", "pipeline": "p", "trigger": "t", "group": "{}", "severity": "critical"}
    times = {"at": f"2026-01-01T00:00:{n:02}Z", "received_at": f"2026-01-01T01:00:{n:02}Z"}
    return {**common, **times, "transition": transition, "message": transition, "by": "", "reason": "", **more}


def folded(*rows: dict[str, Any], notes: tuple[Note, ...] = ()) -> Incident:
    """`rows` in the order in which they came; SQL gives the newest first."""
    [incident] = fold(list(reversed(rows)), {"n1": notes}, {"n1": False})
    return incident


RAISED, ACKED = row(1, "raised", state="active"), row(3, "acknowledged", state="active", by="ann")
CLEARED = row(5, "cleared", state="cleared")


@pytest.mark.parametrize(
    ("rows", "state", "needs_somebody"),
    [
        ([RAISED], "active, unacknowledged", True),
        ([RAISED, row(2, "reminded", state="active")], "active, unacknowledged", True),
        ([RAISED, row(2, "a word of a newer engine")], "active, unacknowledged", True),
        ([RAISED, ACKED], "active, acknowledged", True),
        ([RAISED, CLEARED], "cleared, unacknowledged", True),
        ([RAISED, ACKED, row(5, "cleared", state="closed")], "cleared, acknowledged", False),
        ([RAISED, row(5, "cleared", state="closed")], "cleared, unacknowledged", False),
        ([RAISED, ACKED, row(6, "raised_again", state="active")], "active, unacknowledged", True),
        ([RAISED, row(4, "latched", state="active", flags="latched")], "active, unacknowledged, latched", True),
        ([RAISED, row(4, "reset", state="closed", flags="")], "cleared, unacknowledged", False),
        ([RAISED, row(4, "retired", state="closed")], "cleared, unacknowledged", False),
        ([row(1, "raised"), row(5, "cleared")], "cleared, unacknowledged", True),  # of an engine that says no state
        ([row(1, "raised"), row(3, "acknowledged"), row(5, "cleared")], "cleared, acknowledged", False),
    ],
)
def test_the_state_follows_what_the_node_says(rows: list[dict[str, Any]], state: str, needs_somebody: bool) -> None:
    incident = folded(*rows)
    assert (incident.state, incident.needs_somebody, incident.raised_at) == (state, needs_somebody, "2026-01-01T00:00:01Z")


def note(seq: int, kind: str, at: str, author: str = CONTROL) -> Note:
    return Note(author, seq, kind, "i1", {}, "bob", "seen", at=at)


def test_a_note_counts_before_the_node_knows_it_and_once() -> None:
    noted = folded(RAISED, CLEARED, notes=(note(1, "acknowledge", "2026-01-01T02:00:00Z"),))
    assert noted.state == "cleared, acknowledged" and noted.steps[-1].known_on == ("control",)
    both = folded(RAISED, row(3, "acknowledged", by="bob", reason="seen", state="active"), notes=(note(1, "acknowledge", "x"),))
    assert [step.transition for step in both.steps] == ["raised", "acknowledged"]


def test_a_note_does_not_acknowledge_what_was_raised_again_after_it() -> None:
    again = row(30, "raised_again", state="active")
    early = folded(RAISED, CLEARED, again, notes=(note(1, "acknowledge", "2026-01-01T01:00:10Z"),))
    assert early.state == "active, unacknowledged"
    late = folded(RAISED, CLEARED, again, notes=(note(1, "acknowledge", "2026-01-01T01:00:40Z"),))
    assert late.state == "active, acknowledged"


def test_a_reset_that_the_node_has_not_made_changes_no_state() -> None:
    latched = row(4, "latched", state="active", flags="latched,chattering")
    incident = folded(RAISED, latched, notes=(note(1, "reset", "2026-01-01T02:00:00Z"),))
    assert incident.state == "active, unacknowledged, latched, chattering" and not incident.is_closed
    assert [step.transition for step in incident.steps] == ["raised", "latched", "reset"]
