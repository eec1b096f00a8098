"""What the write commands do, each in one transaction; rehearsed (`dry_run`) by the same code with a rollback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import (
    artifacts,
    declare,
    deployments,
    effects,
    enrol,
    fleet,
    registry,
    requests,
    rollouts,
    store,
    tables,
    views,
)
from control_plane.assign import Rule
from control_plane.effects import Contact
from control_plane.keys import KeyRing
from control_plane.rollout import AT_ONCE, Pacing
from control_plane.selector import check_label, parse_selector
from control_plane.store import Store, now_us
from control_plane.times import iso
from pipelines.contract.errors import Refused
from pipelines.contract.node_state import Request

VERBS = ("pause", "resume", "retry", "unban")  # of `Commands.steer`


@dataclass(frozen=True)
class Writer:
    """Who writes, why, and whether for real."""

    by: str = ""
    reason: str = ""
    dry_run: bool = False


@dataclass
class Done:
    """What a write did or would do. `poke` are the ids of nodes that should ask for news."""

    result: dict[str, Any] = field(default_factory=dict)
    poke: list[str] = field(default_factory=list)


class Commands:
    """Called on the store thread only."""

    def __init__(self, store: Store, keys: KeyRing) -> None:
        self._store, self._keys = store, keys

    def apply(self, files: Sequence[tuple[str, str]], who: Writer, contact: Contact, *, allow_empty: bool = False) -> Done:
        """Register the pipelines in `files` (name, text) and bring the deployments in line with those in them: all of it, or
        nothing. Raises `SpecError` with every problem."""
        declared = declare.read_files(files)

        def write(db: Connection) -> dict[str, Any]:
            before = declare.present(db, declared)
            versions = declare.register(db, declared, self._keys.author, who.by, who.reason)
            deployed = declare.deploy(db, declared, who.by, who.reason, allow_empty=allow_empty)
            begun = [id_ for row in deployed for id_ in row["rollouts"]]
            diff = declare.difference(db, declared, before)
            return {"versions": versions, "deployments": deployed, "rollouts": begun, "diff": diff}

        return self._and_issue(write, who, contact)

    def deploy(
        self,
        reference: str,
        select: str,
        params: Mapping[str, str],
        who: Writer,
        contact: Contact,
        pacing: Pacing = AT_ONCE,
        *,
        allow_empty: bool = False,
    ) -> Done:
        selector, (name, number) = parse_selector(select), registry.parse_reference(reference)

        def write(db: Connection) -> dict[str, Any]:
            version, before = registry.find_version(db, name, number), registry.plans(db)
            tables.check_deployable(db, version)
            effects.check_matches(db, selector, allow_empty=allow_empty)
            values = registry.parse_params(version, params)
            rollout = rollouts.create(db, version, str(selector), pacing, who.by, who.reason)
            gate = pacing.gate
            registry.put_target(db, version, selector, values, who.by, who.reason, gate=gate, rollout=rollout.id)
            registry.check_rules(db, version)
            deployments.remember(db, name, "deploy", who.by, who.reason)
            rollouts.begin(db, [rollout], before, name)
            return {"pipeline": name, "version": version.number, "select": str(selector), "rollouts": [rollout.id]}

        return self._and_issue(write, who, contact)

    def put_artifact(self, name: str, data: bytes, warnings: Sequence[str], who: Writer, contact: Contact) -> Done:
        """Register a table that was checked: nodes that use it get it without a new version of their pipelines."""

        def write(db: Connection) -> dict[str, Any]:
            row, is_new = artifacts.put(db, name, data, self._keys.author, who.by, who.reason)
            return {**row.as_json(), "new": is_new, "warnings": list(warnings)}

        done = self._and_issue(write, who, contact)
        number, summary = done.result["number"], done.result["summary"]
        if not done.result["new"]:
            summary[:] = [f"unchanged: {name}@{number} has these bytes"]
        else:
            summary[:] = [f"{name}@{number}: {len(data):,} bytes", *summary]
        summary += [f"warning: {text}" for text in warnings]
        return done

    def remove(self, pipeline: str, select: str, who: Writer, contact: Contact) -> Done:
        selector = parse_selector(select)

        def write(db: Connection) -> dict[str, Any]:
            before = registry.plans(db)
            registry.remove_target(db, pipeline, selector, who.by, who.reason)
            deployments.remember(db, pipeline, "deploy --remove", who.by, who.reason)
            rollouts.begin(db, [], before, pipeline)
            return {"pipeline": pipeline, "select": str(selector)}

        return self._and_issue(write, who, contact)

    def steer(
        self, verb: str, pipeline: str, who: Writer, contact: Contact, *, node: str = "", number: int | None = None
    ) -> Done:
        """`rollout pause|resume|retry|unban`."""

        def write(db: Connection) -> dict[str, Any]:
            if verb == "pause":
                touched = [r.selector for r in rollouts.pause(db, pipeline, who.by, who.reason)]
            elif verb == "resume":
                touched = [r.selector for r in rollouts.resume(db, pipeline, who.by, who.reason, contact)]
            elif verb == "retry":
                touched = rollouts.retry(db, pipeline, node, who.by, who.reason)
            else:
                touched = rollouts.unban(db, pipeline, number, node, who.by, who.reason)
            return {"pipeline": pipeline, "verb": verb, "touched": touched}

        return self._and_issue(write, who, contact)

    def undo(self, pipeline: str, who: Writer, contact: Contact) -> Done:
        """Back to what the deployment was before its last change; what becomes of the nodes, in four groups."""
        with self._transaction(who) as db:
            gone = rollouts.undo(db, pipeline, who.by, who.reason)
            changes = rollouts.issue(db, self._keys, contact)
            nodes = fleet.all_nodes(db)
            undone = [{**rollouts.headline(r), "groups": rollouts.groups(db, r, nodes, contact)} for r in gone]
            summary = [line for r, row in zip(gone, undone, strict=True) for line in rollouts.describe_groups(r, row["groups"])]
        result = {"pipeline": pipeline, "undone": undone, "summary": summary, "dry_run": who.dry_run}
        return Done(result, [] if who.dry_run else [change.node.id for change in changes])

    def set_param(
        self,
        pipeline: str,
        words: Mapping[str, str],
        select: str,
        who: Writer,
        contact: Contact,
        *,
        force: bool,
        lock: bool,
        for_us: int = 0,
        allow_empty: bool = False,
    ) -> Done:
        """`for_us` of our own clock later the rules end; 0: they stay."""
        selector, until = parse_selector(select), contact.now + for_us if for_us else 0

        def write(db: Connection) -> dict[str, Any]:
            effects.check_matches(db, selector, allow_empty=allow_empty)
            values = registry.parse_params(_assigned_version(db, pipeline), words)
            for name, value in values.items():
                registry.set_rule(db, Rule(0, pipeline, name, value, selector, who.by, who.reason, force, lock), until)
            ends = iso(until) if until else ""
            return {"pipeline": pipeline, "values": values, "select": str(selector), "until": ends}

        return self._and_issue(write, who, contact)

    def unset_param(self, pipeline: str, names: Sequence[str], select: str, who: Writer, contact: Contact) -> Done:
        selector = parse_selector(select)

        def write(db: Connection) -> dict[str, Any]:
            for name in names:
                registry.unset_rule(db, pipeline, name, selector, who.by, who.reason)
            return {"pipeline": pipeline, "names": list(names), "select": str(selector)}

        return self._and_issue(write, who, contact)

    def label(self, node: str, labels: Mapping[str, str | None], who: Writer, contact: Contact) -> Done:
        """Put labels on a node; None removes one."""
        for key, value in labels.items():
            check_label(key, value if value is not None else "x")

        def write(db: Connection) -> dict[str, Any]:
            found = fleet.find_node(db, node)
            fleet.set_labels(db, found, labels, who.by, who.reason)
            return {"node": found.name}

        return self._and_issue(write, who, contact)

    def replace(self, node: str, url: str, ca: str, ttl_s: int, who: Writer, contact: Contact) -> Done:
        """A token for a new card: who joins with it takes over the node's name, labels and pipelines."""
        with self._transaction(who) as db:
            old = fleet.find_node(db, node)
            if old.replaced_by:
                by = fleet.find_node(db, old.replaced_by).name
                raise Refused(f"{old.name} was replaced already", op="nodes replace", hint=f"its place is that of {by}")
            words = {"labels": old.labels, "uses": 1, "ttl_s": ttl_s, "by": who.by, "replaces": old.id}
            token = enrol.create_token(db, self._keys, url=url, ca=ca, **words)  # type: ignore[arg-type]
            store.record(db, who.by, "nodes replace", old.name, f"{old.id}: token {token.id}", who.reason)
        names = ", ".join(old.manifest.assignments if old.manifest else ()) or "none yet"
        summary = [
            f"the card that joins with this token becomes {old.name}; pipelines: {names}",
            f"  the old one ({old.id}, {contact.words(old)}) is then {old.name}.old: it runs nothing and may send what it has",
            "  rows stay under the id of the card that sent them; on-site parameters stay with the old card",
        ]
        return Done(
            {"node": old.name, "token": "" if who.dry_run else token.encode(), "summary": summary, "dry_run": who.dry_run}
        )

    def recover(self, who: Writer, contact: Contact) -> Done:
        """Go on after this control plane was restored from a backup: what it issues from now on beats all that nodes hold."""
        with self._transaction(who) as db:
            ahead = [node.name for node in fleet.all_nodes(db) if node.is_ahead]
            term = fleet.raise_term(db)
            store.record(db, who.by, "recover", "fleet", f"term {term}", who.reason)
            changes = rollouts.issue(db, self._keys, contact)
            summary = effects.recovery(ahead, [(change.node, change.after) for change in changes], contact)
        return Done(
            {"term": term, "summary": summary, "dry_run": who.dry_run}, [] if who.dry_run else [c.node.id for c in changes]
        )

    def ask(self, request: Request, select: str, until_s: float, who: Writer, contact: Contact) -> Done:
        """Put a question into the manifests of the nodes that match. They answer when they can."""
        selector, at = parse_selector(select), now_us()
        request = replace(request, by=who.by, reason=who.reason, at=iso(at))
        with self._transaction(who) as db:
            asked, found = requests.create(db, request, selector, at + int(until_s * 1e6))
            if request.kind == "tap" and request.body["pipeline"] not in (runs := _runs(fleet.find_node(db, found[0].id))):
                hint = f"what runs: {', '.join(sorted(runs)) or 'nothing'}"
                raise Refused(f"{request.body['pipeline']} does not run on {found[0].name}", op="tap", hint=hint)
            changes = fleet.issue(db, self._keys, [target.id for target in found])
            standing = views.standing(db, asked, contact)
        silent = standing.of("missing")
        summary = [f"asks {len(found)} node{'s' * (len(found) != 1)}: {requests.named(standing.nodes)}"]
        if silent:
            summary.append(f"  {len(silent)} out of contact: asked until {iso(asked.until)}, they answer when they return")
        result = {**requests.shown(asked, standing), "summary": summary, "dry_run": who.dry_run}
        return Done(result, [] if who.dry_run else [change.node.id for change in changes])

    def cancel_request(self, name: str, who: Writer) -> Done:
        """Ask no node any more: one that works on it stops."""
        with self._transaction(who) as db:
            asked = requests.find(db, name)
            changed = requests.close(db, name, f"cancelled by {who.by}" if who.by else "cancelled")
            if changed:
                store.record(db, who.by, "requests cancel", name, "", who.reason)
            changes = fleet.issue(db, self._keys)
        result = {"id": asked.id, "changed": changed, "closed": asked.closed, "dry_run": who.dry_run}
        return Done(result, [] if who.dry_run else [change.node.id for change in changes])

    def settle_requests(self, found: Sequence[requests.Answer]) -> list[str]:
        """Take in answers that are in the lake, of nodes that are asked; the ids of nodes to poke."""
        with self._store.write() as db:
            asked = {node.id: node.manifest for node in fleet.all_nodes(db) if node.manifest} if found else {}
            ours = [answer for answer in found if answer.node in asked and answer.request in asked[answer.node].requests]
            touched, is_late = requests.settle(db, ours, now_us())
            changes = fleet.issue(db, self._keys, None if is_late else touched) if touched or is_late else []
        return [change.node.id for change in changes]

    def create_token(self, url: str, ca: str, labels: Mapping[str, str], uses: int, ttl_s: int, who: Writer) -> Done:
        for key, value in labels.items():
            check_label(key, value)
        with self._transaction(who) as db:
            token = enrol.create_token(db, self._keys, url=url, ca=ca, labels=labels, uses=uses, ttl_s=ttl_s, by=who.by)
        return Done({"id": token.id, "token": "" if who.dry_run else token.encode(), "uses": uses, "ttl_s": ttl_s, "url": url})

    def _transaction(self, who: Writer) -> AbstractContextManager[Connection]:
        return self._store.rehearse() if who.dry_run else self._store.write()

    def _and_issue(self, write: Callable[[Connection], dict[str, Any]], who: Writer, contact: Contact) -> Done:
        with self._transaction(who) as db:
            result = write(db)
            changes = rollouts.issue(db, self._keys, contact)
            preview = effects.preview(db, changes, contact)
            preview["summary"] += rollouts.preview(db, result.get("rollouts", ()), contact)
        return Done({**result, **preview, "dry_run": who.dry_run}, [] if who.dry_run else [c.node.id for c in changes])


def _assigned_version(db: Connection, pipeline: str) -> registry.Version:
    """The newest version that some target assigns, else the newest there is: parameters are checked against it."""
    targets = next((d.targets for d in registry.deployments(db) if d.pipeline == pipeline), ())
    return registry.find_version(db, pipeline, max((target.number for target in targets), default=None))


def _runs(node: fleet.Node) -> set[str]:
    """What it should run, and what it says that it does."""
    wanted = node.manifest.assignments if node.manifest else {}
    return {*wanted, *(name for name, now in node.reported.items() if now.phase != "stopped")}
