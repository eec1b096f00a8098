"""What the on-site verbs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_agent.agent import Agent
from pipelines.contract.duration import format_duration
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Decision, Register, decide
from pipelines.contract.node_state import Assignment


def check_pipeline(agent: Agent, pipeline: str, op: str) -> Assignment:
    """Raises `Refused` for one that is not assigned to this node."""
    assignments = agent.record.manifest.assignments
    if pipeline not in assignments:
        known = ", ".join(sorted(assignments)) or "none"
        raise Refused("no such pipeline runs here", op=op, place=pipeline, hint=f"pipelines on this node: {known}")
    return assignments[pipeline]


def decision(agent: Agent, register: Register) -> Decision | None:
    return decide(agent.record.document.notes(), node=agent.identity.node).get(register)


def lasting(body: Mapping[str, Any], for_s: float | None) -> dict[str, Any]:
    return {**body, **({} if for_s is None else {"for_s": for_s})}


def for_(for_s: float | None) -> str:
    """How long, for a line of what it touches."""
    return "" if for_s is None else f" for {format_duration(round(for_s) * 1_000_000 or 1_000_000)}"
