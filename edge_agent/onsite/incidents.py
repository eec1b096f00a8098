"""`ack`, `reset`, `shelve`, `unshelve`, `comment`: what people say about alarms, and about what runs."""

from __future__ import annotations

from typing import Any

from edge_agent.agent import Agent
from edge_agent.onsite.common import for_, lasting
from pipelines.contract.errors import Refused
from pipelines.contract.folds import decide
from pipelines.contract.node_state import Note

COMMENT_MAX = 2_000  # characters


async def acknowledge(agent: Agent, word: str, *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Acknowledge the open incident whose id is or starts with `word`."""
    incident = await _open_incident(agent, word, "ack")
    name = _name(incident)
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
    return [f"{_name(i)}: reset; {i.get('message', '')}".rstrip("; ") for i in latched]


async def shelve(agent: Agent, word: str, for_s: float | None, *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Silence one open incident, or a trigger as `PIPELINE/TRIGGER`, for some time and for a reason."""
    if for_s is None or not reason:
        raise Refused("a shelf needs a duration and a reason", op="shelve", place=word, hint="add --for 8h --reason WHY")
    subject, what = await _shelf(agent, word, "shelve")
    now = shelves(agent).get(subject)
    if not dry_run:
        await agent.record.add_note("shelve", subject, lasting({}, for_s), by=by, reason=reason)
    return [f"{what}: shelved{for_(for_s)}: nobody is called" + (f"; it was shelved by {now.by or now.author}" if now else "")]


async def unshelve(agent: Agent, word: str, *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Take a shelf away."""
    standing = shelves(agent)
    found = [subject for subject in standing if subject == word] or [subject for subject in standing if subject.startswith(word)]
    if len(found) != 1:
        known = ", ".join(sorted(standing)) or "none"
        what = "nothing that is shelved has" if not found else f"{len(found)} shelves have"
        raise Refused(f"{what} the name {word}", op="unshelve", hint=f"shelved: {known}")
    [subject] = found
    if not dry_run:
        await agent.record.add_note("unshelve", subject, {}, by=by, reason=reason)
    return [f"{subject}: no longer shelved (it was by {standing[subject].by}: {standing[subject].reason})"]


def shelves(agent: Agent) -> dict[str, Note]:
    """What is shelved now: incident or `pipeline/trigger` -> the note that did it."""
    decided = decide(agent.record.document.notes(), node=agent.identity.node)
    return {register.subject: d.note for register, d in decided.items() if register.kind == "shelve" and d.is_set}


async def comment(agent: Agent, word: str, text: str, *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Write something down about the node (`node`), a pipeline or an open incident."""
    if not text.strip() or len(text) > COMMENT_MAX:
        raise Refused(f"a comment has 1 to {COMMENT_MAX} characters", op="comment", place=word, hint="write it in fewer words")
    subject, what = ("", "this node") if word == "node" else (word, f"pipeline {word}")
    if word != "node" and word not in agent.record.manifest.assignments:
        incident = await _open_incident(agent, word, "comment")
        subject, what = incident["incident"], _name(incident)
    if not dry_run:
        await agent.record.add_note("comment", subject, {"text": text}, by=by, reason=reason)
    return [f"{what}: {text}"]


async def _shelf(agent: Agent, word: str, op: str) -> tuple[str, str]:
    """What `word` names: the subject of a note, and how to call it."""
    pipeline, slash, trigger = word.partition("/")
    version = agent.version(pipeline)
    if slash and version is not None:
        if trigger not in version.spec.triggers:
            known = ", ".join(version.spec.triggers) or "none"
            raise Refused(f"it has no trigger {trigger}", op=op, place=pipeline, hint=f"its triggers: {known}")
        return word, f"every incident of {word}"
    incident = await _open_incident(agent, word, op)
    return incident["incident"], _name(incident)


async def _open_incident(agent: Agent, word: str, op: str) -> dict[str, Any]:
    found = [incident for incident in await agent.store.incidents() if incident["incident"].startswith(word)]
    if len(found) != 1:
        what = "no open incident" if not found else f"{len(found)} open incidents"
        raise Refused(f"{what} with the id {word}", op=op, hint="the open ones: tidewire-agent status")
    return found[0]


def _name(incident: dict[str, Any]) -> str:
    return f"{incident['pipeline']}/{incident.get('trigger')} {incident['incident']}"
