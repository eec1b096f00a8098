"""Which version ran where, from when to when, who asked for it, how its gate ended: the history of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import deployments, fleet, registry, rollout_store, store
from control_plane.fleet import Transition
from control_plane.times import iso

_ROWS_MAX = 10_000
_RUNS = ("running", "paused")


def ran(db: Connection, pipeline: str, node: str | None = None) -> dict[str, Any]:
    """`{"versions", "deployments", "runs", "failures"}`; times are ours, when it was told; `since` is the node's own clock."""
    registry.find_version(db, pipeline)
    names = {found.id: found.name for found in fleet.all_nodes(db)}
    only = fleet.find_node(db, node).id if node else ""
    told = fleet.history(db, pipeline, only, _ROWS_MAX)
    states = deployments.states(db, pipeline)
    by_node: dict[str, list[Transition]] = {}
    for transition in reversed(told):
        by_node.setdefault(transition.node, []).append(transition)
    runs = [run for id_, rows in by_node.items() for run in _runs(names.get(id_, id_), rows, states)]
    return {
        "pipeline": pipeline,
        "versions": _versions(db, pipeline),
        "deployments": [_deployment(state) for state in states],
        "runs": sorted(runs, key=lambda run: (run["from"], run["node"])),
        "failures": _failures(db, pipeline, names, only),
    }


def _runs(name: str, told: Sequence[Transition], states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Unbroken stretches in which the node said that it ran one version."""
    runs, open_ = list[dict[str, Any]](), None
    for now in told:
        if open_ is not None and (now.digest != open_["digest"] or now.phase not in _RUNS):
            open_["to"] = iso(now.received_at)
            open_["ended"] = "" if now.phase in _RUNS else now.phase
            open_ = None
        if now.phase in _RUNS:
            if open_ is None:
                open_ = {"node": name, "version": now.number, "digest": now.digest, "from": iso(now.received_at), "to": ""}
                open_ |= {"since": now.at, "gate": "", "ended": "", **_asked(states, now)}
                runs.append(open_)
            open_["gate"] = now.gate or open_["gate"]
    return runs


def _asked(states: Sequence[Mapping[str, Any]], now: Transition) -> dict[str, str]:
    """Who last asked for this version before it was told to run."""
    for state in states:
        target = next((t for t in state["targets"] if t["digest"] == now.digest), None)
        if target is not None and state["at"] <= now.received_at:
            return {"by": target["by"], "reason": target["reason"], "select": target["selector"]}
    return {"by": "", "reason": "", "select": ""}


def _versions(db: Connection, pipeline: str) -> list[dict[str, Any]]:
    c = store.versions.c
    rows = db.execute(sa.select(c.number, c.digest, c.by, c.reason, c.at).where(c.pipeline == pipeline).order_by(c.number))
    return [{**row._asdict(), "at": iso(row.at)} for row in rows]


def _deployment(state: Mapping[str, Any]) -> dict[str, Any]:
    targets = [{"select": t["selector"], "version": t["number"]} for t in state["targets"]]
    words = {name: state[name] for name in ("action", "by", "reason")}
    return {**words, "at": iso(state["at"]), "targets": targets}


def _failures(db: Connection, pipeline: str, names: Mapping[str, str], only: str) -> list[dict[str, Any]]:
    """Where a version failed its gate: as the nodes say now, and as rollouts remember."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    r, n = store.rollouts.c, store.rollout_nodes.c
    asked = sa.select(n.node, r.number, n.failed).where(n.rollout == r.id, r.pipeline == pipeline, n.failed != "")
    for row in db.execute(asked):
        found[row.node, row.number] = {"reason": row.failed, "at": "", "banned": False}
    lifts = rollout_store.lifts(db)
    for node in fleet.all_nodes(db):
        now = node.reported.get(pipeline)
        for ban in now.bans if now else ():
            stands = ban.lift >= lifts.get((pipeline, node.id, ban.digest), 0)
            found[node.id, ban.number] = {"reason": ban.reason, "at": ban.at, "banned": stands}
    chosen = {key: value for key, value in found.items() if not only or key[0] == only}
    return [{"node": names.get(node, node), "version": number, **value} for (node, number), value in sorted(chosen.items())]
