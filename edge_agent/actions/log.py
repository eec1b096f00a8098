"""`log`: a line in the agent's log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from edge_agent.actions.outcome import Done, Outcome
from edge_agent.policy import Policy

_log = structlog.get_logger("incident")


async def perform(action: Mapping[str, Any], policy: Policy) -> Outcome:
    context = action.get("context", {})
    text = action.get("config", {}).get("message") or context.get("message") or action.get("trigger")
    _log.warning(text, incident=action.get("incident"), transition=action.get("transition"), severity=context.get("severity"))
    return Done()
