"""Rollouts on the store: begun by a deploy, advanced whenever something is heard, undone by a person.

What decides is `rollout.advance`; here its arguments are read and its answers written, in one transaction with the manifests that
follow, so that a restart or a second replica neither loses nor repeats a step (I7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import deployments, fleet, registry, rollout_store, store
from control_plane.assign import Deployment, Plans, Target, base_for, base_of, offer
from control_plane.effects import Contact
from control_plane.fleet import Change, Node
from control_plane.keys import KeyRing
from control_plane.rollout import (
    DONE,
    FAILED,
    HELD,
    NOTHING,
    PASSED,
    PAUSED,
    RUNNING,
    STUCK,
    SUPERSEDED,
    UNDONE,
    Pacing,
    Rollout,
    Taker,
    advance,
    judge,
    word,
)
from control_plane.rollout_store import Admission
from control_plane.store import now_us
from control_plane.times import clock, iso
from pipelines.contract.duration import format_duration
from pipelines.contract.errors import Refused
from pipelines.contract.folds import effective_params
from pipelines.contract.node_state import Manifest, params_digest

SITE = "site"  # the label over which canaries are spread


def issue(db: Connection, keys: KeyRing, contact: Contact) -> list[Change]:
    """Let the rollouts go on as far as they may now, and issue the manifests that follow."""
    _advance_all(db, contact)
    return fleet.issue(db, keys)


def tick(db: Connection, keys: KeyRing, contact: Contact, *, has_news: bool = True) -> list[str]:
    """What time and news bring: rules that end, rollouts that go on. Ids of nodes that should ask. Without news
    only what waits for time is looked at."""
    ended = registry.end_rules(db, contact.now)
    if _advance_all(db, contact, has_news=has_news) or ended:
        return [change.node.id for change in fleet.issue(db, keys)]
    return []


def create(db: Connection, version: registry.Version, selector: str, pacing: Pacing, by: str, reason: str) -> Rollout:
    """A rollout of `version` to the nodes that match. `begin` follows once the target is written."""
    return rollout_store.create(
        db,
        Rollout(
            0,
            version.pipeline,
            selector,
            version.number,
            version.digest,
            pacing.steps,
            pacing.soak_us,
            pacing.failures,
            by=by,
            reason=reason,
            at=now_us(),
        ),
    )


def begin(db: Connection, rollouts: Iterable[Rollout], before: Plans, pipeline: str) -> None:
    """Keep what the nodes had, `before` being the plans without the new targets; end the rollouts that these replace."""
    had = next((d for d in before.deployments if d.pipeline == pipeline), Deployment(pipeline))
    now = next((d for d in registry.deployments(db) if d.pipeline == pipeline), Deployment(pipeline))
    nodes = _nodes(db)
    for rollout in rollouts:
        if rollout.is_paced:
            mine = [node for node in nodes if _is_for(rollout, now, node)]
            rollout_store.put_all(db, rollout.id, [Admission(n.id, before=base_for(had, n.member, before)) for n in mine])
    rollout_store.supersede(db, {t.rollout for t in had.targets} - {t.rollout for t in now.targets})


def pause(db: Connection, pipeline: str, by: str, reason: str) -> list[Rollout]:
    open_ = [r for r in _current(db, pipeline) if r.is_paced and r.state in (RUNNING, DONE)]
    changed = [(rollout, replace(rollout, state=PAUSED, why=_who(by, reason))) for rollout in open_]
    return _changed(db, pipeline, changed, "pause", by, reason, "it has no canaries under way that could be paused")


def resume(db: Connection, pipeline: str, by: str, reason: str, contact: Contact) -> list[Rollout]:
    """Go on with what is paused; with what is held or waits for silent or stuck nodes, in spite of those."""
    changed, nodes, plans = [], _nodes(db), registry.plans(db)
    for rollout in _current(db, pipeline):
        excused = False
        if rollout.state != PAUSED:
            known = rollout_store.admissions(db, rollout.id)
            open_ = [t for t in _takers(db, rollout, known, nodes, plans, contact) if _needs_excuse(t)]
            rows = [(known.get(t.node, Admission(t.node)), t) for t in open_]
            done = [replace(row, excused=True, failed=t.detail if t.verdict == FAILED else row.failed) for row, t in rows]
            rollout_store.put_all(db, rollout.id, done)
            excused = bool(done)
        if rollout.state in (PAUSED, HELD):
            changed.append((rollout, replace(rollout, state=_resumed(db, rollout), why="")))
        elif excused:
            changed.append((rollout, rollout))
    return _changed(db, pipeline, changed, "resume", by, reason, "nothing of it waits for this")


def retry(db: Connection, pipeline: str, node: str, by: str, reason: str) -> list[str]:
    """Have nodes that failed it try again, all or one; names. What was held goes on."""
    names = []
    for rollout in _current(db, pipeline):
        found = _lift(db, rollout, node)
        names += found
        if found and rollout.state == HELD:
            rollout_store.save(db, rollout, replace(rollout, state=_resumed(db, rollout), why=""))
    if not names:
        raise Refused(f"no node has failed {pipeline}" if not node else f"{node} has not failed {pipeline}", op="rollout retry")
    store.record(db, by, "rollout retry", pipeline, ", ".join(names), reason)
    return names


def unban(db: Connection, pipeline: str, number: int | None, node: str, by: str, reason: str) -> list[str]:
    """Lift the bans of a version, on all nodes or one: a rollout may offer it again. Names."""
    version = registry.find_version(db, pipeline, number) if number else None
    current = _current(db, pipeline, must=version is None)
    digest = version.digest if version else current[0].digest
    names = []
    for found in _nodes(db, node):
        if _raise_lift(db, pipeline, found, digest):
            names.append(found.name)
            for rollout in current:
                _forgive(db, rollout, found.id)
    if not names:
        raise Refused(f"no node has banned {pipeline}@{number or current[0].number}", op="rollout unban")
    store.record(db, by, "rollout unban", pipeline, ", ".join(names), reason)
    return names


def undo(db: Connection, pipeline: str, by: str, reason: str) -> list[Rollout]:
    """Bring the deployment back to what it was before its last change; the rollouts that this ends."""
    registry.find_version(db, pipeline)
    before = rollout_store.load(db, rollout_store.current_ids(db, pipeline))
    deployments.go_back(db, pipeline, by, reason)
    after = rollout_store.load(db, rollout_store.current_ids(db, pipeline))
    gone = [rollout for id_, rollout in before.items() if id_ not in after]
    rollout_store.supersede(db, [rollout.id for rollout in gone], UNDONE, _who(by, reason))
    for id_, rollout in after.items():
        if rollout.state == SUPERSEDED:
            is_done = rollout_store.state_before(db, id_) == DONE
            why = "" if is_done else "what came after it was undone"
            rollout_store.save(db, rollout, replace(rollout, state=DONE if is_done else PAUSED, why=why))
            _take_over(db, rollout, gone, is_done)
    store.record(db, by, "rollout undo", pipeline, ", ".join(f"{r.selector}: version {r.number}" for r in gone), reason)
    return gone


def status(db: Connection, pipeline: str | None, contact: Contact) -> list[dict[str, Any]]:
    """The rollouts that brought the targets there, and those undone since; each with the state of every node in a word."""
    if pipeline is not None:
        registry.find_version(db, pipeline)
    names = [pipeline] if pipeline else sorted({version.pipeline for version in registry.newest_versions(db)})
    nodes, plans = _nodes(db), registry.plans(db)
    shown = []
    for name in names:
        undone = [r for r in rollout_store.latest(db, name) if r.state == UNDONE]
        current = rollout_store.load(db, rollout_store.current_ids(db, name)).values()
        found = sorted([*undone, *current], key=lambda r: -r.id)
        shown += [_shown(db, rollout, nodes, plans, contact) for rollout in found]
    return shown


def preview(db: Connection, ids: Sequence[int], contact: Contact) -> list[str]:
    """How those of the rollouts that go in steps will go on."""
    lines, nodes, plans = [], _nodes(db), registry.plans(db)
    for rollout in rollout_store.load(db, ids).values():
        if not rollout.is_paced:
            continue
        takers = _takers(db, rollout, rollout_store.admissions(db, rollout.id), nodes, plans, contact)
        here, soak = sum(1 for t in takers if t.in_contact), format_duration(rollout.soak_us)
        steps = ", ".join(str(step) for step in rollout.steps)
        away = f"; {len(takers) - here} out of contact take it as they return" if here < len(takers) else ""
        lines.append(f"{rollout.selector}: in steps of {steps} of {here} in contact, each for {soak}{away}")
        lines += [f"  {rollout.why}"] if rollout.state == HELD else []
    return lines


def groups(db: Connection, rollout: Rollout, nodes: Sequence[Node], contact: Contact) -> dict[str, list[dict[str, str]]]:
    """What became of the nodes after an undo: `back`, `may_run`, `never`, `failed`; each with names, since when, and a word."""
    offered, lifts = rollout_store.admissions(db, rollout.id), rollout_store.lifts(db)
    found: dict[str, list[dict[str, str]]] = {"back": [], "may_run": [], "never": [], "failed": []}
    for node in nodes:
        row = offered.get(node.id)
        if row is None:
            continue
        silent = "" if contact.is_in_contact(node) else clock(contact.last_seen(node), contact.now)
        now = node.reported.get(rollout.pipeline)
        lift = lifts.get((rollout.pipeline, node.id, rollout.digest), 0)
        ban = next((b for b in now.bans if b.digest == rollout.digest and b.lift >= lift), None) if now else None
        if ban is not None or row.failed:
            found["failed"].append(_entry(node, silent, (ban.reason if ban else "") or row.failed, ban.at if ban else ""))
        elif not row.generation or node.sent_generation < row.generation:
            found["never"].append(_entry(node, silent))
        elif _is_back(db, node, rollout):
            found["back"].append(_entry(node, silent))
        elif silent:
            found["may_run"].append(_entry(node, silent))
        else:
            found["back"].append(_entry(node, silent, "as soon as they have asked"))
    return found


def describe_groups(rollout: Rollout, found: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """The four groups, in lines."""
    name = f"version {rollout.number}"
    titles = {
        "back": "back on what they had",
        "may_run": f"may still run {name}, silent",
        "never": f"never had {name}",
        "failed": f"failed {name} by themselves",
    }
    lines = []
    for group, title in titles.items():
        lines.append(f"{len(found[group])} {title}" + (":" if found[group] else ""))
        for key in dict.fromkeys((e["since"], e["detail"]) for e in found[group]):
            names = [e["name"] for e in found[group] if (e["since"], e["detail"]) == key]
            words = "; ".join(part for part in (f"silent since {key[0]}" if key[0] else "", key[1]) if part)
            lines.append(f"  {_names(names)}" + (f": {words}" if words else ""))
    return lines


# -- how the machine is fed


def _advance_all(db: Connection, contact: Contact, *, has_news: bool = True) -> bool:
    """Whether nodes were admitted."""
    ids = rollout_store.current_ids(db)
    open_ = [r for r in rollout_store.load(db, ids).values() if r.is_open and r.is_paced and (has_news or r.state == RUNNING)]
    if not open_:
        return False
    nodes, plans, changed = _nodes(db), registry.plans(db), False
    for rollout in open_:
        known = rollout_store.admissions(db, rollout.id)
        known |= _note_newcomers(db, rollout, known, nodes, plans)
        takers = _takers(db, rollout, known, nodes, plans, contact)
        known |= _note_failures(db, rollout, known, takers)
        step = advance(rollout, takers, contact.now)
        if step.rollout != rollout:
            rollout_store.save(db, rollout, step.rollout)
        if step.admit:
            rollout_store.put_all(db, rollout.id, [replace(known[node], admitted=contact.now) for node in step.admit])
            changed = True
        if step.rollout.state != rollout.state:
            store.record(db, "", f"rollout {step.rollout.state}", rollout.pipeline, step.rollout.why or rollout.selector)
    return changed


def _takers(
    db: Connection, rollout: Rollout, known: Mapping[str, Admission], nodes: Sequence[Node], plans: Plans, contact: Contact
) -> list[Taker]:
    deployment = next((d for d in plans.deployments if d.pipeline == rollout.pipeline), Deployment(rollout.pipeline))
    version = registry.find_version(db, rollout.pipeline, rollout.number)
    defaults, takers = version.spec.defaults(), []
    for node in nodes:
        if not _is_for(rollout, deployment, node):
            continue
        target = deployment.target_for(node.name, node.member.selectable)
        assert target is not None
        row = known.get(node.id, Admission(node.id))
        verdict, detail = _verdict(node, rollout, target, plans, defaults)
        if row.failed and verdict != PASSED:
            verdict, detail = FAILED, row.failed
        is_admitted = bool(row.admitted) or not rollout.is_paced
        is_excused = row.excused and (verdict != FAILED or bool(row.failed))  # a failure since then counts
        in_contact, site = contact.is_in_contact(node), node.labels.get(SITE, "")
        takers.append(Taker(node.id, node.name, in_contact, verdict, detail, is_admitted, is_excused, site))
    return takers


def _verdict(node: Node, rollout: Rollout, target: Target, plans: Plans, defaults: Mapping[str, Any]) -> tuple[str, str]:
    now = node.reported.get(rollout.pipeline)
    if now is None:
        return NOTHING, ""
    present = node.manifest or Manifest(node.id, 0, 0)
    wanted = offer(rollout.pipeline, base_of(target), node.member, plans, present)
    effective = effective_params(defaults, wanted, node.notes, node=node.id, pipeline=rollout.pipeline)
    digest = params_digest({name: entry.value for name, entry in effective.items()})
    return judge(now, rollout.digest, digest, wanted.lift)


def _note_newcomers(
    db: Connection, rollout: Rollout, known: Mapping[str, Admission], nodes: Sequence[Node], plans: Plans
) -> dict[str, Admission]:
    """Nodes that joined or were labelled since it began: what they have is kept until they are admitted."""
    deployment = next(d for d in plans.deployments if d.pipeline == rollout.pipeline)
    new = [node for node in nodes if node.id not in known and _is_for(rollout, deployment, node)]
    rows = [Admission(node.id, before=base_for(deployment, node.member, plans)) for node in new]
    rollout_store.put_all(db, rollout.id, rows)
    return {row.node: row for row in rows}


def _note_failures(
    db: Connection, rollout: Rollout, known: Mapping[str, Admission], takers: Sequence[Taker]
) -> dict[str, Admission]:
    """A failure counts until somebody has it tried again, whatever the node reports since."""
    fresh = [t for t in takers if t.verdict == FAILED and not known[t.node].failed]
    rows = [replace(known[t.node], failed=t.detail, excused=False) for t in fresh]
    rollout_store.put_all(db, rollout.id, rows)
    return {row.node: row for row in rows}


def _is_for(rollout: Rollout, deployment: Deployment, node: Node) -> bool:
    target = deployment.target_for(node.name, node.member.selectable)
    return target is not None and target.rollout == rollout.id


# -- parts of the commands


def _current(db: Connection, pipeline: str, *, must: bool = True) -> list[Rollout]:
    registry.find_version(db, pipeline)
    found = list(rollout_store.load(db, rollout_store.current_ids(db, pipeline)).values())
    if not found and must:
        raise Refused(f"{pipeline} is deployed nowhere", op="rollout", hint=f"tidewire deploy {pipeline} --select S")
    return found


def _changed(
    db: Connection, pipeline: str, changed: Sequence[tuple[Rollout, Rollout]], verb: str, by: str, reason: str, nothing: str
) -> list[Rollout]:
    if not changed:
        states = ", ".join(f"{r.selector}: {r.state}" for r in _current(db, pipeline))
        raise Refused(f"{nothing} ({states})", op=f"rollout {verb}", place=pipeline)
    for before, after in changed:
        rollout_store.save(db, before, after)
    store.record(db, by, f"rollout {verb}", pipeline, ", ".join(r.selector for r, _ in changed), reason)
    return [after for _, after in changed]


def _resumed(db: Connection, rollout: Rollout) -> str:
    return DONE if rollout_store.state_before(db, rollout.id) == DONE else RUNNING


def _needs_excuse(taker: Taker) -> bool:
    """Whether somebody who goes on does so in spite of this node."""
    if taker.verdict == FAILED:
        return not taker.excused
    return taker.is_at_risk and (not taker.in_contact or taker.verdict == STUCK)


def _lift(db: Connection, rollout: Rollout, node: str) -> list[str]:
    names, known = [], rollout_store.admissions(db, rollout.id)
    for found in _nodes(db, node):
        failed = found.id in known and bool(known[found.id].failed)
        if _raise_lift(db, rollout.pipeline, found, rollout.digest, must=failed) or failed:
            names.append(found.name)
            _forgive(db, rollout, found.id)
    return names


def _raise_lift(db: Connection, pipeline: str, node: Node, digest: str, *, must: bool = False) -> bool:
    """Whether there was a ban to lift."""
    now, lifted = node.reported.get(pipeline), rollout_store.lifts(db).get((pipeline, node.id, digest), 0)
    bans = [ban.lift for ban in now.bans if ban.digest == digest and ban.lift >= lifted] if now else []
    if bans or must:
        rollout_store.lift(db, pipeline, node.id, digest, 1 + max([*bans, lifted]))
    return bool(bans)


def _forgive(db: Connection, rollout: Rollout, node: str) -> None:
    row = rollout_store.admissions(db, rollout.id).get(node)
    if row is not None and (row.failed or row.excused):
        rollout_store.put_all(db, rollout.id, [replace(row, failed="", excused=False)])


def _take_over(db: Connection, rollout: Rollout, gone: Sequence[Rollout], is_done: bool) -> None:
    """Who came since the older rollout and was admitted to what is undone must not keep that."""
    known = rollout_store.admissions(db, rollout.id)
    for undone in gone:
        if undone.selector != rollout.selector:
            continue
        for row in rollout_store.admissions(db, undone.id).values():
            if row.admitted and row.node not in known:
                admitted = now_us() if is_done else 0
                rollout_store.put(db, rollout.id, Admission(row.node, admitted, before=row.before))


def _nodes(db: Connection, name: str = "") -> list[Node]:
    found = [fleet.find_node(db, name)] if name else fleet.all_nodes(db)
    return [node for node in found if not node.replaced_by]


# -- words


def headline(rollout: Rollout) -> dict[str, Any]:
    names = {"pipeline": rollout.pipeline, "select": rollout.selector, "version": rollout.number}
    return {"id": rollout.id, **names, "by": rollout.by, "reason": rollout.reason, "at": iso(rollout.at)}


def _shown(db: Connection, rollout: Rollout, nodes: Sequence[Node], plans: Plans, contact: Contact) -> dict[str, Any]:
    known = rollout_store.admissions(db, rollout.id)
    takers = _takers(db, rollout, known, nodes, plans, contact)
    now = advance(rollout, takers, contact.now)
    seen = {node.id: clock(contact.last_seen(node), contact.now) for node in nodes}
    undone = groups(db, rollout, nodes, contact) if rollout.state == UNDONE else None
    return {
        **headline(rollout),
        "state": now.rollout.state if not rollout.is_paced else rollout.state,
        "step": f"{rollout.step + 1} of {len(rollout.steps)}" if rollout.is_paced else "",
        "steps": [str(step) for step in rollout.steps],
        "why": now.rollout.why or rollout.why,
        "waits": now.waits,
        "nodes": [
            {"name": t.name, "state": word(rollout, t, seen[t.node]), "detail": t.detail, "admitted": t.admitted} for t in takers
        ],
        "groups": undone,
        "lines": describe_groups(rollout, undone) if undone else [],
    }


def _is_back(db: Connection, node: Node, rollout: Rollout) -> bool:
    """Whether the node said that it runs what it should now."""
    now, wanted = node.reported.get(rollout.pipeline), node.manifest.assignments.get(rollout.pipeline) if node.manifest else None
    if not node.has_newest_manifest:
        return False
    if wanted is None:
        return now is None or now.phase == "stopped"
    is_same = now is not None and now.digest == wanted.digest
    return is_same and (wanted.digest != rollout.digest or rollout.pipeline not in fleet.convergence(db, node))


def _entry(node: Node, silent: str, detail: str = "", at: str = "") -> dict[str, str]:
    return {"name": node.name, "since": silent, "detail": detail, "at": at}


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _who(by: str, reason: str) -> str:
    return " ".join(part for part in (f"by {by}" if by else "", f'"{reason}"' if reason else "") if part)
