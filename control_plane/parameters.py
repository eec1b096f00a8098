"""The parameters of a pipeline: the rules there are, and on every node the value in effect with all that it beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import fleet, registry
from control_plane.assign import DEPLOYMENT, Deployment, Plans, base_for, matching_rules
from control_plane.fleet import Node
from pipelines.contract.folds import Effective
from pipelines.contract.node_state import Scalar


def params(db: Connection, pipeline: str) -> dict[str, Any]:
    """`{"rules": [...], "nodes": [...]}`; of the nodes those that should run it."""
    newest, plans, nodes = registry.find_version(db, pipeline), registry.plans(db), fleet.all_nodes(db)
    mine = [node for node in nodes if node.manifest and pipeline in node.manifest.assignments]
    rules = [rule for rule in plans.rules if rule.pipeline == pipeline]
    return {
        "pipeline": pipeline,
        "params": {name: param.model_dump(mode="json", exclude_defaults=True) for name, param in newest.spec.params.items()},
        "rules": [
            {
                "id": rule.id,
                "name": rule.name,
                "value": rule.value,
                "select": str(rule.selector),
                "by": rule.by,
                "reason": rule.reason,
                "force": rule.force,
                "locked": rule.locked,
                "until": rule.until,
                "nodes": sum(1 for node in mine if rule.selector.matches(node.name, node.member.selectable)),
            }
            for rule in rules
        ],
        "nodes": [_on_node(db, node, pipeline, plans) for node in mine],
    }


def effective(db: Connection, node: Node, pipeline: str, plans: Plans) -> Mapping[str, Effective]:
    """As `fleet.effective_for`, with the rules that lost to other rules among the losing entries."""
    found = fleet.effective_for(db, node, node.notes, pipeline)
    beaten = _beaten(node, pipeline, plans)
    return {name: _with(entry, beaten.get(name, [])) for name, entry in found.items()}


def _beaten(node: Node, pipeline: str, plans: Plans) -> dict[str, list[tuple[str, Scalar]]]:
    """Central entries that another central one beat, by parameter, the strongest first."""
    deployment = next((d for d in plans.deployments if d.pipeline == pipeline), Deployment(pipeline))
    base = base_for(deployment, node.member, plans)
    ladder: dict[str, list[tuple[str, Scalar]]] = {}
    for name, setting in (base.params if base else {}).items():
        ladder.setdefault(name, []).append((DEPLOYMENT, setting.value))
    for rule in matching_rules(pipeline, node.member, plans):
        ladder.setdefault(rule.name, []).append((f"rule:{rule.id}", rule.value))
    return {name: entries[-2::-1] for name, entries in ladder.items()}


def _with(entry: Effective, beaten: list[tuple[str, Scalar]]) -> Effective:
    stronger = tuple(lost for lost in entry.losing if lost[0] != "default")
    return replace(entry, losing=(*stronger, *beaten, *entry.losing[len(stronger) :]))


def _on_node(db: Connection, node: Node, pipeline: str, plans: Plans) -> dict[str, Any]:
    assert node.manifest is not None
    now = node.reported.get(pipeline)
    return {
        "name": node.name,
        "version": node.manifest.assignments[pipeline].number,
        "params": [
            {
                "name": name,
                "value": entry.value,
                "origin": entry.origin,
                "by": entry.by,
                "reason": entry.reason,
                "beats": [{"origin": origin, "value": value} for origin, value in entry.losing],
                "on_node": now.params.get(name) if now else None,
            }
            for name, entry in effective(db, node, pipeline, plans).items()
        ],
    }
