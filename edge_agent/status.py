"""What runs here, since when, and why: the facts behind `tidewire-agent status`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edge_agent import clock, salvage
from edge_agent.agent import Agent
from edge_agent.gate import Verdict
from edge_agent.link import NatsLink
from pipelines.contract.errors import SpecError
from pipelines.contract.folds import decide
from pipelines.contract.node_state import CONTROL, Note


async def status(agent: Agent) -> dict[str, Any]:
    """JSON-ready. Times are the node's wall clock, a label; `node_time_us` is what order and durations rest on."""
    store, manifest = agent.store, agent.record.manifest
    names = sorted({*manifest.assignments, *agent.keepers})
    return {
        "node": {"id": agent.identity.node, "name": agent.identity.name, "labels": agent.labels},
        "link": _link(agent),
        "manifest": {"term": manifest.term, "generation": manifest.generation},
        "pipelines": [_pipeline(agent, name) for name in names],
        "fetches": agent.supplies.under_way,
        "backlog": asdict(await store.backlog()),
        "streams": await store.streams(),
        "incidents": await _incidents(agent),
        "notes": _notes(agent),
        "actions": await store.action_log(),
        "requests": [{"id": name, **asdict(request)} for name, request in manifest.requests.items()],
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
        "salvage": told or None,
        "history": await store.history(),
        "asides": [{"path": str(aside), "bytes": aside.stat().st_size} for aside in salvage.asides(path)],
    }


def _link(agent: Agent) -> dict[str, Any]:
    link = agent.link
    told: dict[str, Any] = {"since": link.since, "reason": link.trouble} if isinstance(link, NatsLink) else {}
    up = {"up": link.is_up, "url": agent.identity.url, "last_exchange": agent.sync.last_exchange}
    removed = agent.standing.removed if agent.standing else None
    is_unknown = agent.standing is not None and agent.standing.is_unknown
    told |= {"removed": removed, "unknown": is_unknown, "upload": agent.uplink.trouble, "pace": agent.uplink.stats}
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
        "tables": dict(keeper.tables_in_use) if keeper else {},
        "gate": _gate(agent, name),
        "bans": [asdict(ban) for ban in agent.gatekeeper.book(name).bans],
        "restarts": keeper.restarts if keeper else 0,
        "counts": host.stats if host else {},
        "notes": list(host.notes) if host else [],
    }


def _gate(agent: Agent, name: str) -> dict[str, Any]:
    """How the version that runs stands, and what the node would go back to."""
    keeper, book = agent.keepers.get(name), agent.gatekeeper.book(name)
    verdict = agent.gatekeeper.verdict(name, keeper.version.digest) if keeper else Verdict("")
    assignment = agent.record.manifest.assignments.get(name)
    soaked_s = book.trial.soaked_us / 1e6 if book.trial else 0.0
    soak_s = assignment.gate.soak_s if assignment else 0.0
    good = {"number": book.good.number, "digest": book.good.digest} if book.good else None
    return {"state": verdict.state, "why": verdict.why, "soaked_s": round(soaked_s, 1), "soak_s": soak_s, "last_good": good}


async def _incidents(agent: Agent) -> list[dict[str, Any]]:
    """The open ones; out of service are those of a pipeline that is paused: nobody evaluates them."""
    targets = {name: agent.target(name) for name in agent.record.manifest.assignments}
    paused = {name for name, target in targets.items() if target is not None and target.is_paused}
    return [{**i, "out_of_service": i["pipeline"] in paused} for i in await agent.store.incidents()]


def _notes(agent: Agent) -> list[dict[str, Any]]:
    """What people set and did not take back: pins, pauses, labels, shelves, on-site parameters; with what each has beaten."""
    decided = decide(agent.record.document.notes(), node=agent.identity.node)
    held = sorted(((r, d) for r, d in decided.items() if d.is_set), key=lambda one: (one[0].kind, one[0].subject, one[0].name))
    return [{"kind": r.kind, **_told(agent, d.note), "beats": d.beaten and _told(agent, d.beaten)} for r, d in held]


def _told(agent: Agent, note: Note) -> dict[str, Any]:
    where = "centre" if note.author == CONTROL else "on-site"
    words = {"subject": note.subject, "note": note.kind, "where": where, "by": note.by or note.author, "reason": note.reason}
    return {**words, "body": dict(note.body), "at": note.at, "left_s": agent.timers.left_s(note)}


def _params(agent: Agent, name: str) -> dict[str, Any]:
    try:
        return {param: asdict(entry) for param, entry in agent.effective(name).items()}
    except (KeyError, SpecError):  # its version is not here, or not readable here
        return {}
