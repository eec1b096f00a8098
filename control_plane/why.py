"""Why a node runs what it runs: the cause first, the next command last, on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import fleet, registry
from control_plane.effects import Contact
from control_plane.fleet import Node
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Effective
from pipelines.contract.node_state import Assignment, Reported

# Every cause there is. Each has a test.
AS_WANTED = "as_wanted"
TROUBLED = "troubled"
NOT_SELECTED = "not_selected"
NOT_DEPLOYED = "not_deployed"
NODE_AHEAD = "node_ahead"
OUT_OF_CONTACT = "out_of_contact"
NOT_RECEIVED = "not_received"
NOT_APPLIED = "not_applied"
STARTING = "starting"
FAILED = "failed"
PARAM_MISSING = "param_missing"
PARAMS_PENDING = "params_pending"
STILL_RUNNING = "still_running"


def why(db: Connection, subject: str, pipeline: str | None, contact: Contact) -> dict[str, Any]:
    """`{"title", "cause", "lines": [[label, text]], "next"}` of a node, of a pipeline, or of a pipeline on a node."""
    nodes = fleet.all_nodes(db)
    node = next((n for n in nodes if subject in (n.name, n.id)), None)
    known = {version.pipeline for version in registry.newest_versions(db)}
    if node is None and subject in known:
        if pipeline is not None:
            return _why_on_node(db, fleet.find_node(db, pipeline), subject, contact)
        return _why_pipeline(db, nodes, subject, contact)
    if node is None:
        names = ", ".join([*(n.name for n in nodes[:10]), *sorted(known)[:10]]) or "none yet"
        raise Refused(f"there is no node and no pipeline {subject!r}", op="why", hint=f"known names: {names}")
    if pipeline is None:
        return _why_node(db, node, contact)
    registry.find_version(db, pipeline)
    return _why_on_node(db, node, pipeline, contact)


def cause_of(db: Connection, node: Node, pipeline: str, contact: Contact) -> tuple[str, str]:
    """A code of the list above, and the cause in words."""
    assignment = node.manifest.assignments.get(pipeline) if node.manifest else None
    now = node.reported.get(pipeline)
    code, text = _cause(db, node, pipeline, assignment, now)
    if code not in (AS_WANTED, NOT_SELECTED, NOT_DEPLOYED, FAILED) and not contact.is_in_contact(node):
        return OUT_OF_CONTACT, f"{node.name} is {contact.words(node)}; when it was last heard: {text}"
    return code, text


def _cause(db: Connection, node: Node, pipeline: str, wanted: Assignment | None, now: Reported | None) -> tuple[str, str]:
    if node.is_ahead:
        return (
            NODE_AHEAD,
            f"{node.name} holds generation {node.seen_generation}, this control plane issued {_generation(node)}",
        )
    if wanted is None:
        return _cause_unwanted(db, node, pipeline, now)
    missing = [name for name, e in fleet.effective_for(db, node, node.notes, pipeline).items() if e.value is None]
    if missing:
        return PARAM_MISSING, f"no value for the parameter {', '.join(missing)}"
    if now is not None and now.digest == wanted.digest and now.phase == "failed":
        return FAILED, f"version {now.number} failed: {now.reason or 'no reason given'}"
    if not node.has_newest_manifest:
        return NOT_RECEIVED, f"{node.name} has not yet fetched generation {_generation(node)} (it holds {node.seen_generation})"
    if now is None or now.digest != wanted.digest:
        return NOT_APPLIED, f"generation {_generation(node)} was received; version {wanted.number} is not reported yet"
    if now.phase != "running":
        return STARTING, f"version {now.number} is {now.phase}" + (f": {now.reason}" if now.reason else "")
    wrong = fleet.convergence(db, node).get(pipeline)
    if wrong:
        return PARAMS_PENDING, wrong
    if now.reason:
        return TROUBLED, f"version {now.number} runs as wanted, but: {now.reason}"
    return AS_WANTED, f"version {now.number} runs as wanted"


def _cause_unwanted(db: Connection, node: Node, pipeline: str, now: Reported | None) -> tuple[str, str]:
    if now is not None and now.phase != "stopped":
        return STILL_RUNNING, f"version {now.number} is {now.phase} though nothing wants it any more"
    targets = next((d.targets for d in registry.deployments(db) if d.pipeline == pipeline), ())
    if not targets:
        return NOT_DEPLOYED, f"{pipeline} is deployed nowhere"
    return NOT_SELECTED, f"no target of {pipeline} selects {node.name}: {' | '.join(str(t.selector) for t in targets)}"


def _why_on_node(db: Connection, node: Node, pipeline: str, contact: Contact) -> dict[str, Any]:
    code, text = cause_of(db, node, pipeline, contact)
    now = node.reported.get(pipeline)
    wanted = node.manifest.assignments.get(pipeline) if node.manifest else None
    lines = [
        ["because", text],
        ["running", _running(now)],
        ["wanted", _wanted(node, wanted)],
        ["contact", _contact(node, contact)],
    ]
    if wanted is not None:
        effective = fleet.effective_for(db, node, node.notes, pipeline)
        lines += [["param", _param(name, entry, now)] for name, entry in effective.items()]
    return {"title": f"{pipeline} on {node.name}", "cause": code, "lines": lines, "next": _next(code, node, pipeline)}


def _why_node(db: Connection, node: Node, contact: Contact) -> dict[str, Any]:
    names = sorted({*(node.manifest.assignments if node.manifest else ()), *node.reported})
    causes = {name: cause_of(db, node, name, contact) for name in names}
    wrong = [name for name in names if causes[name][0] not in (AS_WANTED, NOT_SELECTED, NOT_DEPLOYED)]
    first = causes[wrong[0]] if wrong else (AS_WANTED, "everything runs as wanted" if names else "nothing is deployed to it")
    labels = ",".join(f"{key}={value}" for key, value in sorted(node.labels.items())) or "none"
    lines = [
        ["because", f"{wrong[0]}: {first[1]}" if wrong else first[1]],
        ["contact", _contact(node, contact)],
        ["labels", labels],
    ]
    lines += [["replaced", f"another card has its name now ({node.replaced_by})"]] if node.replaced_by else []
    lines += [["history", history]] if (history := _history(node)) else []
    lines += [[name, f"{_running(node.reported.get(name))}; {causes[name][1]}"] for name in names]
    next_ = f"tidewire why {node.name} {wrong[0]}" if wrong else f"tidewire nodes show {node.name}"
    return {"title": node.name, "cause": first[0], "lines": lines, "next": next_}


def _why_pipeline(db: Connection, nodes: list[Node], pipeline: str, contact: Contact) -> dict[str, Any]:
    found = {node.name: cause_of(db, node, pipeline, contact) for node in nodes}
    counts = Counter(code for code, _ in found.values())
    odd = [name for name, (code, _) in found.items() if code not in (AS_WANTED, NOT_SELECTED, NOT_DEPLOYED)]
    counted = ", ".join(f"{count} {code.replace('_', ' ')}" for code, count in counts.most_common()) or "no nodes yet"
    targets = next((d.targets for d in registry.deployments(db) if d.pipeline == pipeline), ())
    lines = [
        ["because", counted],
        *(["target", f"{t.selector} -> version {t.number}, {_who(t.by, t.reason, t.at)}"] for t in targets),
    ]
    lines += [
        ["rule", f"{r.name}={r.value} on {r.selector}, {_who(r.by, r.reason)}"]
        for r in registry.rules(db)
        if r.pipeline == pipeline
    ]
    lines += [[name, found[name][1]] for name in odd[:20]]
    next_ = (
        f"tidewire why {odd[0]} {pipeline}"
        if odd
        else ("tidewire nodes" if targets else f"tidewire deploy {pipeline} --select all")
    )
    return {"title": pipeline, "cause": counts.most_common(1)[0][0] if counts else NOT_DEPLOYED, "lines": lines, "next": next_}


def _history(node: Node) -> str:
    told = node.told.broke
    try:
        return f"broke off {told['breaks']} times, the last time at {told['at']}: {told['reason']}" if told else ""
    except KeyError:
        return ""


def _running(now: Reported | None) -> str:
    if now is None:
        return "nothing reported"
    since = f" since {now.since}" if now.since else ""
    return f"version {now.number} ({now.digest[:15]}..), {now.phase}{since}" + (f": {now.reason}" if now.reason else "")


def _wanted(node: Node, wanted: Assignment | None) -> str:
    if wanted is None:
        return f"nothing, generation {_generation(node)}"
    asked = _who(wanted.by, wanted.reason, wanted.at)
    return f"version {wanted.number} ({wanted.digest[:15]}..) {asked}, generation {_generation(node)}"


def _who(by: str, reason: str, at: str = "") -> str:
    return " ".join(
        part for part in (f"since {at}" if at else "", f"by {by}" if by else "", f'"{reason}"' if reason else "") if part
    )


def _contact(node: Node, contact: Contact) -> str:
    received = f"generation {node.seen_generation} received"
    agent = node.facts.get("agent")
    return "; ".join(part for part in (contact.words(node), received, f"agent {agent}" if agent else "") if part)


def _param(name: str, entry: Effective, now: Reported | None) -> str:
    origin = " ".join(part for part in (entry.origin, _who(entry.by, entry.reason)) if part)
    losing = f"; beats {', '.join(f'{value} ({origin})' for origin, value in entry.losing)}" if entry.losing else ""
    effect = now.params.get(name) if now else None
    differs = f"; in effect on the node: {effect}" if now and effect != entry.value else ""
    return f"{name} = {entry.value} ({origin}{losing}){differs}"


def _generation(node: Node) -> int:
    return node.manifest.generation if node.manifest else 0


def _next(code: str, node: Node, pipeline: str) -> str:
    commands: Mapping[str, str] = {
        AS_WANTED: f"tidewire nodes show {node.name}",
        TROUBLED: f"on {node.name}: tidewire-agent status",
        NOT_SELECTED: f"tidewire deploy {pipeline} --select name={node.name}",
        NOT_DEPLOYED: f"tidewire deploy {pipeline} --select name={node.name}",
        NODE_AHEAD: "tidewire recover --dry-run    (this control plane was restored from a backup)",
        OUT_OF_CONTACT: f"on the node: tidewire-agent status    (nothing to do here: {node.name} carries on and will catch up)",
        PARAM_MISSING: f"tidewire set {pipeline} NAME=VALUE --select name={node.name}",
        FAILED: f"tidewire deploy {pipeline}@N --select name={node.name}    (an earlier version, or a repaired one)",
    }
    return commands.get(
        code, f"on the node: tidewire-agent status    (expected to pass: ask again, tidewire why {node.name} {pipeline})"
    )
