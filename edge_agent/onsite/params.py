"""`set`, `unset`: parameters of a pipeline on this node."""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.agent import Agent
from edge_agent.onsite.common import check_pipeline, for_, lasting
from pipelines.contract.errors import Refused
from pipelines.contract.language.params import Param
from pipelines.contract.node_state import Scalar


async def set_params(
    agent: Agent, pipeline: str, words: Mapping[str, str], for_s: float | None, *, by: str, reason: str, dry_run: bool
) -> list[str]:
    """Override parameters on site, for some time or until `unset`."""
    if not words:
        raise Refused("no parameter is named", op="set", place=pipeline, hint="for example: tidewire-agent set PIPELINE limit=5")
    declared = _params(agent, pipeline)
    values = {name: _parse(pipeline, name, declared, word) for name, word in words.items()}
    lines = [_explain(agent, pipeline, name, value) + for_(for_s) for name, value in values.items()]
    if not dry_run:
        for name, value in values.items():
            await agent.record.add_note("param", pipeline, lasting({"name": name, "value": value}, for_s), by=by, reason=reason)
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


def _params(agent: Agent, pipeline: str) -> Mapping[str, Param]:
    check_pipeline(agent, pipeline, "set")
    version = agent.version(pipeline)
    if version is None:
        hint = "try again once the control plane is in reach: tidewire-agent status"
        raise Refused("its version is not on the node yet", op="set", place=pipeline, hint=hint)
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
