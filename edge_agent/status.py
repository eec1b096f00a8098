"""What runs here, since when, and why: the facts behind `tidewire-agent status`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from edge_agent import clock, salvage
from edge_agent.agent import Agent
from edge_agent.link import NatsLink
from pipelines.contract.errors import SpecError


async def status(agent: Agent) -> dict[str, Any]:
    """JSON-ready. Times are the node's wall clock, a label; `node_time_us` is what order and durations rest on."""
    store, manifest = agent.store, agent.record.manifest
    names = sorted({*manifest.assignments, *agent.keepers})
    return {
        "node": {"id": agent.identity.node, "name": agent.identity.name, "labels": dict(manifest.labels)},
        "link": _link(agent),
        "manifest": {"term": manifest.term, "generation": manifest.generation},
        "pipelines": [_pipeline(agent, name) for name in names],
        "backlog": asdict(await store.backlog()),
        "streams": await store.streams(),
        "incidents": await store.incidents(),
        "actions": await store.action_log(),
        "store": await _store(agent),
        "clock": {"quality": clock.quality(), "node_time_us": store.clock.now_us(), "wall": clock.wall_text()},
    }


async def _store(agent: Agent) -> dict[str, Any]:
    store, path = agent.store, agent.config.data_dir / "agent.db"
    limit_bytes, fits_bytes = store.budget
    told = await store.get(salvage.META)
    return {
        "path": str(agent.config.data_dir),
        "trouble": store.trouble,
        "limit_bytes": limit_bytes,
        "fits_bytes": fits_bytes,
        "lasts_s": await store.buffer_lasts_s(),
        "salvage": json.loads(str(told)) if told else None,
        "history": await store.history(),
        "asides": [{"path": str(aside), "bytes": aside.stat().st_size} for aside in salvage.asides(path)],
    }


def _link(agent: Agent) -> dict[str, Any]:
    link = agent.link
    told: dict[str, Any] = {"since": link.since, "reason": link.trouble} if isinstance(link, NatsLink) else {}
    up = {"up": link.is_up, "url": agent.identity.url, "last_exchange": agent.sync.last_exchange}
    removed = agent.standing.removed if agent.standing else None
    told |= {"removed": removed, "upload": agent.uplink.trouble, "pace": agent.uplink.stats}
    return {**up, **told, "exchange": agent.sync.trouble}


def _pipeline(agent: Agent, name: str) -> dict[str, Any]:
    assignment, keeper = agent.record.manifest.assignments.get(name), agent.keepers.get(name)
    host = keeper.host if keeper else None
    number = keeper.version.number if keeper else assignment.number if assignment else 0
    wanted = assignment.number if assignment else None
    why = {"by": assignment.by, "reason": assignment.reason, "at": assignment.at} if assignment else {}
    return {
        "pipeline": name,
        "number": number,
        "wanted": wanted,
        **asdict(agent.status_of(name)),
        "why": why,
        "params": _params(agent, name),
        "restarts": keeper.restarts if keeper else 0,
        "counts": host.stats if host else {},
        "notes": list(host.notes) if host else [],
    }


def _params(agent: Agent, name: str) -> dict[str, Any]:
    try:
        return {param: asdict(entry) for param, entry in agent.effective(name).items()}
    except (KeyError, SpecError):  # its version is not here, or not readable here
        return {}
