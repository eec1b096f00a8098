"""What people do on the node itself: parameters and acknowledgements, as notes of the node, also with nobody in reach."""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.agent import Agent
from pipelines.contract.errors import Refused
from pipelines.contract.language.params import Param
from pipelines.contract.node_state import Scalar


async def set_params(agent: Agent, pipeline: str, words: Mapping[str, str], *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Override parameters on site. Lines that say what it touches. Raises `Refused`, changing nothing."""
    declared = _params(agent, pipeline)
    values = {name: _parse(pipeline, name, declared, word) for name, word in words.items()}
    lines = [_explain(agent, pipeline, name, value) for name, value in values.items()]
    if not dry_run:
        for name, value in values.items():
            await agent.record.add_note("param", pipeline, {"name": name, "value": value}, by=by, reason=reason)
    return lines


async def unset_params(agent: Agent, pipeline: str, names: list[str], *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Withdraw on-site overrides."""
    declared = _params(agent, pipeline)
    lines = []
    for name in names:
        _param(pipeline, name, declared)
        entry = agent.effective(pipeline)[name]
        on_site = entry.origin == "on-site" or any(origin == "on-site" for origin, _ in entry.losing)
        if not on_site:
            raise Refused(f"{name} has no on-site override", op="unset", place=pipeline, hint="see: tidewire-agent status")
        rest = [(origin, value) for origin, value in entry.losing if origin != "on-site"]
        origin, value = (entry.origin, entry.value) if entry.origin != "on-site" else rest[0]
        lines.append(f"{pipeline} {name}: the on-site override goes; {value} ({origin}) holds")
    if not dry_run:
        for name in names:
            await agent.record.add_note("unset", pipeline, {"name": name}, by=by, reason=reason)
    return lines


async def acknowledge(agent: Agent, word: str, *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Acknowledge the open incident whose id is or starts with `word`."""
    found = [incident for incident in await agent.store.incidents() if incident["incident"].startswith(word)]
    if len(found) != 1:
        what = "no open incident" if not found else f"{len(found)} open incidents"
        raise Refused(f"{what} with the id {word}", op="ack", hint="the open ones: tidewire-agent status")
    [incident] = found
    name = f"{incident['pipeline']}/{incident.get('trigger')} {incident['incident']}"
    if incident["acknowledged"]:
        return [f"{name} is acknowledged already"]
    if not dry_run:
        await agent.record.add_note("acknowledge", incident["incident"], {}, by=by, reason=reason)
    return [f"{name}: acknowledged; {incident.get('message', '')}".rstrip("; ")]


async def reset(agent: Agent, word: str, *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Let go of latched incidents: the one whose id is or starts with `word`, or all of the trigger `word`."""
    incidents = await agent.store.incidents()
    found = [i for i in incidents if i.get("trigger") == word] or [i for i in incidents if i["incident"].startswith(word)]
    latched = [i for i in found if "latched" in (i.get("flags") or ())]
    if not latched:
        what = "it is not latched, or its cause is still there" if found else f"no incident has the id or trigger {word}"
        raise Refused(what, op="reset", hint="the open ones: tidewire-agent status")
    if not dry_run:
        for incident in latched:
            await agent.record.add_note("reset", incident["incident"], {}, by=by, reason=reason)
    return [f"{i['pipeline']}/{i.get('trigger')} {i['incident']}: reset; {i.get('message', '')}".rstrip("; ") for i in latched]


def _params(agent: Agent, pipeline: str) -> Mapping[str, Param]:
    version = agent.version(pipeline)
    if version is None:
        known = ", ".join(sorted(agent.record.manifest.assignments)) or "none"
        raise Refused("no such pipeline runs here", op="set", place=pipeline, hint=f"pipelines on this node: {known}")
    return version.spec.params


def _param(pipeline: str, name: str, declared: Mapping[str, Param]) -> Param:
    if name not in declared:
        known = ", ".join(sorted(declared)) or "none"
        raise Refused(f"it has no parameter {name}", op="set", place=pipeline, hint=f"its parameters: {known}")
    return declared[name]


def _parse(pipeline: str, name: str, declared: Mapping[str, Param], word: str) -> Scalar:
    param = _param(pipeline, name, declared)
    try:
        return param.parse(word)
    except ValueError as error:
        raise Refused(str(error), op="set", place=f"{pipeline} {name}", hint="give a value that fits its declaration") from None


def _explain(agent: Agent, pipeline: str, name: str, value: Scalar) -> str:
    central = agent.record.manifest.assignments[pipeline].params.get(name)
    if central is not None and central.locked:
        raise Refused(
            f"{name} is locked at {central.value} by {central.by or central.origin}", op="set", place=pipeline,
            hint="ask whoever locked it" + (f" ({central.reason})" if central.reason else ""),
        )  # fmt: skip
    now = agent.effective(pipeline)[name]
    return f"{pipeline} {name}: {now.value} ({now.origin}) -> {value} (on-site)"
