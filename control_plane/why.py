"""`tidewire why`: the cause first, the next command last, on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import fleet, parameters, registry, removal
from control_plane.assign import Rule
from control_plane.cause import UNWANTED, Cause, Causes
from control_plane.effects import Contact
from control_plane.fleet import Node
from control_plane.times import clock
from pipelines.contract import causes
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Decision, Effective, decide
from pipelines.contract.node_state import CONTROL, Assignment, Note, Reported

ODD_SHOWN = 20
Line = list[str]  # label, text

_AT_NODE = "on {node}: tidewire-agent status"
NEXT: Mapping[str, str] = {
    causes.AS_WANTED: "tidewire nodes show {node}",
    causes.SOAKING: "tidewire why {node} {pipeline}    (expected to pass: ask again)",
    causes.NOT_DEPLOYED: "tidewire deploy {pipeline} --select name={node}",
    causes.NOT_SELECTED: "tidewire deploy {pipeline} --select name={node}",
    causes.OTHER_TARGET: "tidewire deploy {pipeline} --select '{select}' --remove    (the earlier target)",
    causes.WAITING: "tidewire rollout status {pipeline}    (nothing to do: its turn comes)",
    causes.ROLLOUT_PAUSED: "tidewire rollout resume {pipeline}",
    causes.ROLLOUT_HELD: "tidewire rollout status {pipeline}    (then rollout resume, or rollout undo)",
    causes.ROLLOUT_UNDONE: "tidewire rollout status {pipeline}",
    causes.OUT_OF_CONTACT: f"{_AT_NODE}    (nothing to do here: {{node}} carries on and will catch up)",
    causes.NODE_AHEAD: "tidewire recover --dry-run    (this control plane was restored from a backup)",
    causes.DOCUMENT_REFUSED: "tidewire changes --security    (and on {node}: tidewire-agent status)",
    causes.NOT_RECEIVED: "tidewire why {node} {pipeline}    (expected to pass: ask again)",
    causes.NOT_APPLIED: "tidewire why {node} {pipeline}    (expected to pass: ask again)",
    causes.FETCHING: "tidewire why {node} {pipeline}    (expected to pass: ask again)",
    causes.REPLACED: "tidewire nodes remove {node}    (once nothing waits on it)",
    causes.LANGUAGE: "on {node}: upgrade the agent",
    causes.SIGNATURE: "tidewire changes --security",
    causes.POLICY: "on {node}: edit policy.yaml in the agent's directory, then restart the agent",
    causes.SECRET_MISSING: "on {node}: tidewire-agent secret set NAME",
    causes.LABEL_MISSING: "tidewire nodes label {node} NAME=VALUE",
    causes.PARAM_MISSING: "tidewire set {pipeline} NAME=VALUE --select name={node}",
    causes.PARAM_INVALID: "tidewire set {pipeline} NAME=VALUE --select name={node}",
    causes.ARTIFACT_MISSING: "tidewire artifact list",
    causes.DISK: f"{_AT_NODE}    (free room there, or deploy less)",
    causes.STORE_FULL: f"{_AT_NODE}    (free room there; alarms go on)",
    causes.STARTING: "tidewire why {node} {pipeline}    (expected to pass: ask again)",
    causes.FAILED: "tidewire deploy {pipeline}@N --select name={node}    (an earlier version, or a repaired one)",
    causes.BANNED: "tidewire rollout retry {pipeline} --node {node}    (or repair it: tidewire apply, tidewire deploy)",
    causes.GATE_HELD: f"{_AT_NODE}    (it is judged once its sources and sinks work)",
    causes.PINNED: "tidewire unpin {pipeline} --select name={node}",
    causes.PAUSED: "tidewire resume {pipeline} --select name={node}",
    causes.TROUBLED: _AT_NODE,
    causes.PARAMS_PENDING: "tidewire why {node} {pipeline}    (expected to pass: ask again)",
    causes.STILL_RUNNING: "tidewire why {node} {pipeline}    (expected to pass: ask again)",
}


def why(db: Connection, subject: str, pipeline: str | None, contact: Contact) -> dict[str, Any]:
    """`{"title", "code", "text", "lines": [[label, text]], "next"}` of a node, of a pipeline, or of a pipeline on a node."""
    nodes = fleet.all_nodes(db)
    node = next((n for n in nodes if subject in (n.name, n.id)), None)
    known = {version.pipeline for version in registry.newest_versions(db)}
    found = Causes(db, contact)
    if node is None and subject in known:
        if pipeline is not None:
            return _on_node(db, fleet.find_node(db, pipeline), subject, contact, found)
        return _of_pipeline(db, nodes, subject, found)
    if node is None:
        if any(subject in (gone.name, gone.id) for gone in removal.removed_nodes(db)):
            fleet.find_node(db, subject)
        names = ", ".join([*(n.name for n in nodes[:10]), *sorted(known)[:10]]) or "none yet"
        raise Refused(f"there is no node and no pipeline {subject!r}", op="why", hint=f"known names: {names}")
    if pipeline is None:
        return _of_node(db, node, contact, found)
    registry.find_version(db, pipeline)
    return _on_node(db, node, pipeline, contact, found)


def _answer(title: str, cause: Cause, text: str, lines: Iterable[Line], command: str) -> dict[str, Any]:
    return {"title": title, "code": cause.code, "text": text, "lines": [["because", text], *lines], "next": command}


def _on_node(db: Connection, node: Node, pipeline: str, contact: Contact, found: Causes) -> dict[str, Any]:
    cause, now = found.of(node, pipeline), node.reported.get(pipeline)
    wanted = node.manifest.assignments.get(pipeline) if node.manifest else None
    lines = [["running", _running(now)], ["wanted", _wanted(node, wanted)], ["contact", _contact(node, contact)]]
    lines += [["also", text] for text in _also(node, pipeline, wanted, now)]
    if wanted is not None:
        ladder = parameters.effective(db, node, pipeline, registry.plans(db))
        lines += [["param", _param(name, entry, now)] for name, entry in ladder.items()]
    select = next((t.selector for t in found.targets(pipeline) if t.selector.matches(node.name, _labels(node))), "")
    command = NEXT[cause.code].format(node=node.name, pipeline=pipeline, select=select)
    return _answer(f"{pipeline} on {node.name}", cause, cause.text, lines, command)


def _of_node(db: Connection, node: Node, contact: Contact, found: Causes) -> dict[str, Any]:
    names = sorted({*(node.manifest.assignments if node.manifest else ()), *node.reported})
    every = {name: found.of(node, name) for name in names}
    odd = [name for name in names if not every[name].is_fine]
    idle = Cause(causes.AS_WANTED, "everything runs as wanted" if names else "nothing is deployed to it")
    if node.replaced_by or node.is_ahead:
        odd, every = odd or [""], {"": found.of(node, ""), **every}
    cause = every[odd[0]] if odd else idle
    text = f"{odd[0]}: {cause.text}" if odd and odd[0] else cause.text
    labels = ",".join(f"{key}={value}" for key, value in sorted(_labels(node).items())) or "none"
    lines = [["contact", _contact(node, contact)], ["labels", labels]]
    lines += [["history", history]] if (history := _history(node)) else []
    lines += [["also", f"{_note(note)}: {note.body.get('text', '')}"] for note in node.notes if _is_comment(note, "")]
    lines += [[name, f"{_running(node.reported.get(name))}; {every[name].text}"] for name in names]
    command = f"tidewire why {node.name} {odd[0]}" if odd and odd[0] else NEXT[cause.code].format(node=node.name, pipeline="")
    return _answer(node.name, cause, text, lines, command)


def _of_pipeline(db: Connection, nodes: list[Node], pipeline: str, found: Causes) -> dict[str, Any]:
    """Its causes counted, then the nodes that are odd."""
    every = {node.name: found.of(node, pipeline) for node in nodes}
    counts = Counter(cause.code for cause in every.values() if cause.code not in UNWANTED)
    ordered = sorted(counts.items(), key=lambda item: (item[0] != causes.AS_WANTED, -item[1], item[0]))
    counted = [f"{count} {code.replace('_', ' ')}" for code, count in ordered]
    counted += [f"{rest} not for it"] if (rest := len(every) - counts.total()) else []
    odd = [name for name, cause in every.items() if not cause.is_fine]
    targets = found.targets(pipeline)
    lines = [["target", f"{t.selector} -> version {t.number}, {_who(t.by, t.reason, t.at)}"] for t in targets]
    lines += [["rule", _rule(rule)] for rule in registry.rules(db) if rule.pipeline == pipeline]
    lines += [[name, f"{every[name].code.replace('_', ' ')}: {every[name].text}"] for name in odd[:ODD_SHOWN]]
    lines += [["", f"and {len(odd) - ODD_SHOWN} more"]] if len(odd) > ODD_SHOWN else []
    cause = every[odd[0]] if odd else Cause(causes.AS_WANTED if counts else causes.NOT_DEPLOYED, "")
    command = f"tidewire why {odd[0]} {pipeline}" if odd else "tidewire nodes"
    command = command if targets or odd else f"tidewire deploy {pipeline} --select all"
    answer = _answer(pipeline, cause, ", ".join(counted) or "no nodes yet", lines, command)
    return {**answer, "counts": dict(counts)}


def _also(node: Node, pipeline: str, wanted: Assignment | None, now: Reported | None) -> Iterable[str]:
    """Whatever else bears on it: what people decided on either side, and what lost against that."""
    for register, decision in decide(node.notes, node=node.id).items():
        if register.subject.partition("/")[0] == pipeline and register.kind in ("pin", "pause", "shelve", "param"):
            yield from _decided(register.name, decision)
    for ban in now.bans if now else ():
        lifted = "; lifted" if wanted and wanted.digest == ban.digest and ban.lift < wanted.lift else ""
        yield f"version {ban.number} is banned here since {ban.at or '?'}: {ban.reason or 'no reason given'}{lifted}"
    for note in node.notes:
        if _is_comment(note, pipeline):
            yield f"{_note(note)}: {note.body.get('text', '')}"


def _decided(name: str, decision: Decision) -> Iterable[str]:
    note, beaten = decision.note, decision.beaten
    what = {"param": f"{name}={note.body.get('value')}", "pin": f"pin of version {note.body.get('number')}"}.get(
        note.kind, note.kind
    )
    if decision.is_set:
        yield f"{what} {_note(note)}"
    if beaten is not None and beaten.kind in ("param", "pin", "pause", "shelve"):
        by = f"; {note.kind} {_note(note)} holds" if not decision.is_set else ""
        yield f"{beaten.kind} {_note(beaten)} lost{by}"


def _note(note: Note) -> str:
    where = "centrally" if note.author == CONTROL else "on site"
    said = " ".join(part for part in (f"{where} by {note.by or note.author}", f'"{note.reason}"' if note.reason else "") if part)
    ends = f", ends after {_duration(note.body['for_s'])} of the node's time" if note.body.get("for_s") else ""
    return said + (f" at {note.at}" if note.at else "") + ends + (", forced" if note.body.get("force") else "")


def _is_comment(note: Note, subject: str) -> bool:
    return note.kind == "comment" and note.subject == subject


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
    gate = f", gate {now.gate}" if now.gate else ""
    return f"version {now.number} ({now.digest[:15]}..), {now.phase}{since}{gate}" + (f": {now.reason}" if now.reason else "")


def _wanted(node: Node, wanted: Assignment | None) -> str:
    generation = node.manifest.generation if node.manifest else 0
    if wanted is None:
        return f"nothing, generation {generation}"
    asked = _who(wanted.by, wanted.reason, wanted.at)
    return f"version {wanted.number} ({wanted.digest[:15]}..) {asked}, generation {generation}"


def _who(by: str, reason: str, at: str = "") -> str:
    return " ".join(
        part for part in (f"since {at}" if at else "", f"by {by}" if by else "", f'"{reason}"' if reason else "") if part
    )


def _contact(node: Node, contact: Contact) -> str:
    seen, facts = contact.last_seen(node), node.facts
    heard = f"heard {_duration((contact.now - seen) // 1_000_000)} ago" if contact.is_in_contact(node) else contact.words(node)
    parts = [f"{heard} ({clock(seen, contact.now)})", f"generation {node.seen_generation} received"]
    parts += [f"clock {facts['clock']}"] if facts.get("clock") else []
    languages = facts.get("languages")
    speaks = f" speaks language {'-'.join(map(str, languages))}" if isinstance(languages, list) else ""
    parts += [f"agent {facts['agent']}{speaks}"] if facts.get("agent") else []
    return "; ".join(parts)


def _duration(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _param(name: str, entry: Effective, now: Reported | None) -> str:
    origin = " ".join(part for part in (entry.origin, _who(entry.by, entry.reason)) if part)
    losing = f"; beats {', '.join(f'{value} ({origin})' for origin, value in entry.losing)}" if entry.losing else ""
    effect = now.params.get(name) if now else None
    differs = f"; in effect on the node: {effect}" if now and effect != entry.value else ""
    return f"{name} = {entry.value} ({origin}{losing}){differs}"


def _rule(rule: Rule) -> str:
    return f"{rule.name}={rule.value} on {rule.selector}, {_who(rule.by, rule.reason)}".rstrip(", ")


def _labels(node: Node) -> Mapping[str, str]:
    return {**node.labels, **node.local_labels}
