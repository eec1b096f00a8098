"""`pin`, `unpin`, `pause`, `resume`: what runs on this node, whatever the centre offers."""

from __future__ import annotations

import json

from edge_agent.agent import Agent
from edge_agent.onsite.common import check_pipeline, decision, for_, lasting
from edge_agent.target import pinned_version, told
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Register
from pipelines.contract.version import PipelineVersion


async def pin(
    agent: Agent, pipeline: str, number: int | None, for_s: float | None, *, by: str, reason: str, dry_run: bool
) -> list[str]:
    """Keep a pipeline at the version that runs, or at `number`, whose bytes must be here."""
    assignment = check_pipeline(agent, pipeline, "pin")
    version = await _version(agent, pipeline, number)
    line = f"{pipeline}: version {version.number} is pinned{for_(for_s)}"
    if version.digest != assignment.digest:
        line += f"; the centre offers version {assignment.number}, which waits"
    if not dry_run:
        body = lasting({"digest": version.digest, "number": version.number}, for_s)
        await agent.record.add_note("pin", pipeline, body, by=by, reason=reason)
    return [line]


async def unpin(agent: Agent, pipeline: str, *, by: str, reason: str, dry_run: bool) -> list[str]:
    assignment = check_pipeline(agent, pipeline, "unpin")
    now = decision(agent, Register(pipeline, "pin"))
    if (version := pinned_version(now)) is None or now is None:
        raise Refused("it is not pinned", op="unpin", place=pipeline, hint="see: tidewire-agent status")
    if not dry_run:
        await agent.record.add_note("unpin", pipeline, {}, by=by, reason=reason)
    return [f"{pipeline}: the pin to version {version[1]} goes ({told(now.note)}); version {assignment.number} is wanted"]


async def pause(agent: Agent, pipeline: str, for_s: float | None, *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Let a pipeline finish its last commit and stop; its sources keep what they can."""
    check_pipeline(agent, pipeline, "pause")
    incidents = [i for i in await agent.store.incidents() if i["pipeline"] == pipeline]
    line = f"{pipeline}: pauses{for_(for_s) or ' until it is resumed'}; no rows are read, no alarm is raised"
    if incidents:
        line += f"; {len(incidents)} open incidents stay open, out of service"
    if not dry_run:
        await agent.record.add_note("pause", pipeline, lasting({}, for_s), by=by, reason=reason)
    return [line]


async def resume(agent: Agent, pipeline: str, *, by: str, reason: str, dry_run: bool) -> list[str]:
    check_pipeline(agent, pipeline, "resume")
    now = decision(agent, Register(pipeline, "pause"))
    if now is None or not now.is_set:
        raise Refused("it is not paused", op="resume", place=pipeline, hint="see: tidewire-agent status")
    if not dry_run:
        await agent.record.add_note("resume", pipeline, {}, by=by, reason=reason)
    return [f"{pipeline}: goes on where it stopped (it was paused {told(now.note)})"]


async def _version(agent: Agent, pipeline: str, number: int | None) -> PipelineVersion:
    """The version to pin. Raises `Refused` when it is not on the node."""
    if number is None:
        keeper = agent.keepers.get(pipeline)
        version = keeper.version if keeper else agent.version(pipeline)
        if version is None:
            raise Refused("nothing of it is on the node", op="pin", place=pipeline, hint="wait until it runs, or name a version")
        return version
    here = await _versions(agent, pipeline)
    if number not in here:
        known = ", ".join(str(n) for n in sorted(here)) or "none"
        raise Refused(f"version {number} is not on this node", op="pin", place=pipeline, hint=f"those that are here: {known}")
    return here[number]


async def _versions(agent: Agent, pipeline: str) -> dict[int, PipelineVersion]:
    """Those whose bytes are here and verify (I13), by number."""
    found: dict[int, PipelineVersion] = {}
    for digest, number in await agent.store.versions():
        stored = await agent.store.artifact(digest)
        if stored is not None and json.loads(stored[0].data).get("pipeline") == pipeline:
            stored[0].verify(digest, agent.identity.author)
            found[number] = PipelineVersion(stored[0].data, number)
    return found
