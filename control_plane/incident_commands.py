"""What people decide centrally about incidents: notes in the documents of their nodes, also of nodes that are away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy.engine import Connection

from control_plane import fleet, incident_views, registry, silence_store
from control_plane.commands import Done, Writer
from control_plane.effects import Contact
from control_plane.fleet import Node
from control_plane.incident_views import Rows, Wanted
from control_plane.registry import Version
from control_plane.selector import parse_selector
from control_plane.store import Store, now_us, record
from control_plane.times import clock, iso
from pipelines.contract.duration import format_duration
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Register, decide

AT_ONCE_MAX = 1_000
SHELF_S_MAX = 30 * 86_400  # nothing is forgotten on a shelf: what lasts longer is out of service, or a wrong alarm
_SHOWN = 10


class IncidentCommands:
    """Called on the store thread only. `rows` are the transitions in the lake."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def by_hand(self, kind: str, names: Sequence[str], wanted: Wanted | None, rows: Rows, who: Writer, contact: Contact) -> Done:
        """`acknowledge` or `reset` these incidents, or (`wanted`) all that need somebody and meet it. All of them, or none."""
        with self._transaction(who) as db:
            everything = incident_views.all_incidents(db, rows, contact)
            found = [incident_views.find(everything, name) for name in names]
            if wanted is not None:
                found += [i for i in incident_views.all_incidents(db, rows, contact, wanted) if i["needs_somebody"]]
            takes = [i for i in {i["id"]: i for i in found}.values() if _takes(kind, i)]
            if len(takes) > AT_ONCE_MAX:
                raise Refused(f"{len(takes)} at once are too many", op=kind, hint="narrow it: --select, --node, --pipeline")
            for incident in takes:
                self._write(db, kind, incident, who)
        done = [{name: i[name] for name in ("id", "node", "message", "state")} for i in takes]
        summary = _summary(kind, takes, len(found) - len(takes), contact)
        poke = sorted({i["node_id"] for i in takes if i["origin"] == "node"})
        return Done(
            {"incidents": done, "changed": bool(takes), "summary": summary, "dry_run": who.dry_run}, [] if who.dry_run else poke
        )

    def shelve(
        self, kind: str, subject: str, select: str, for_s: float, rows: Rows, who: Writer, contact: Contact, *, force: bool
    ) -> Done:
        """`shelve` or `unshelve` an incident, or PIPELINE/TRIGGER on every selected node that has the pipeline."""
        if kind == "shelve" and not 0 < for_s <= SHELF_S_MAX:
            what = "it is not said for how long" if for_s <= 0 else "that is longer than 30 days"
            raise Refused(what, op=kind, place=subject, hint="a shelf ends by itself: --for 8h, in the node's own time")
        if kind == "shelve" and not who.reason:
            raise Refused("it is not said why", op=kind, place=subject, hint="whoever finds it shelved must know: --reason TEXT")
        with self._transaction(who) as db:
            nodes, about = self._about(db, kind, subject, select, rows, contact)
            nodes = [node for node in nodes if kind == "shelve" or force or _is_shelved(node, about)]
            body: dict[str, Any] = {"for_s": for_s} if kind == "shelve" else {}
            body |= {"force": True} if force else {}
            for node in nodes:
                fleet.add_note(db, node, kind, about, who.by, who.reason, iso(now_us()), body)
        words = f" for {format_duration(round(for_s * 1e6))} of node time" if kind == "shelve" else ""
        lines = [f"{kind} {about}{words} on {len(nodes)} node{'' if len(nodes) == 1 else 's'}" + (":" if nodes else "")]
        lines += [f"  {node.name}{_when(node, contact)}" for node in nodes[:_SHOWN]]
        lines += [f"  and {len(nodes) - _SHOWN} more"] if len(nodes) > _SHOWN else []
        result = {"subject": about, "nodes": [node.name for node in nodes], "summary": lines, "dry_run": who.dry_run}
        return Done(result, [] if who.dry_run else [node.id for node in nodes])

    def transact(self, do: Callable[[Connection], Done], who: Writer) -> Done:
        with self._transaction(who) as db:
            return do(db)

    def _about(
        self, db: Connection, kind: str, subject: str, select: str, rows: Rows, contact: Contact
    ) -> tuple[list[Node], str]:
        pipeline, slash, trigger = subject.partition("/")
        if not slash:
            incident = incident_views.incident(db, rows, subject, contact)
            if incident["origin"] != "node" or (incident["closed"] and kind == "shelve"):
                what = "it is over" if incident["closed"] else "the silence of a node is not shelved"
                raise Refused(
                    what, op=kind, place=incident["id"], hint="to shelve those to come: PIPELINE/TRIGGER --select NODES"
                )
            return [fleet.find_node(db, incident["node_id"])], incident["id"]
        if not select:
            raise Refused("it is not said on which nodes", op=kind, place=subject, hint="--select site=lyon, name=pi17 or all")
        _check_trigger(registry.find_version(db, pipeline), trigger, kind)
        selector = parse_selector(select)
        matching = [n for n in fleet.all_nodes(db) if selector.matches(n.name, {**n.labels, **n.local_labels})]
        having = [n for n in matching if (n.manifest and pipeline in n.manifest.assignments) or pipeline in n.reported]
        if not having:
            what = f"no node of {selector} has {pipeline}" if matching else f"no node matches {selector}"
            raise Refused(what, op=kind, hint=f"see where it runs: tidewire why {pipeline}")
        return having, subject

    def _write(self, db: Connection, kind: str, incident: Mapping[str, Any], who: Writer) -> None:
        if incident["origin"] == "control":
            silence_store.acknowledge(db, incident["id"], who.by, who.reason, now_us())
            record(db, who.by, kind, incident["id"], incident["node"], who.reason)
        else:
            node = fleet.find_node(db, incident["node_id"])
            fleet.add_note(db, node, kind, incident["id"], who.by, who.reason, iso(now_us()))

    def _transaction(self, who: Writer) -> AbstractContextManager[Connection]:
        return self._store.rehearse() if who.dry_run else self._store.write()


def _takes(kind: str, incident: Mapping[str, Any]) -> bool:
    if kind == "acknowledge":
        return not (incident["acknowledged"] or incident["closed"])
    return "latched" in incident["flags"].split(",") and not incident["closed"]


def _is_shelved(node: Node, subject: str) -> bool:
    decision = decide(node.notes, node=node.id).get(Register(subject, "shelve"))
    return decision is not None and decision.is_set


def _check_trigger(version: Version, trigger: str, kind: str) -> None:
    """`t`, or `t.degraded`, `t.source_down`: those are alarms of their own."""
    spec = version.spec
    name, _, more = trigger.partition(".")
    if name not in spec.triggers or more not in ("", "degraded", "source_down"):
        known = ", ".join(sorted(spec.triggers)) or "none"
        raise Refused(f"it has no trigger {trigger!r}", op=kind, place=spec.pipeline, hint=f"its triggers: {known}")


def _summary(kind: str, takes: Sequence[Mapping[str, Any]], unchanged: int, contact: Contact) -> list[str]:
    nodes = {i["node"] for i in takes}
    of = f"{len(takes)} incident{'' if len(takes) == 1 else 's'} on {len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    lines = [f"{kind} {of}" + (":" if takes else "")]
    for one in takes[:_SHOWN]:
        later = f" ({one['as_of']})" if one["as_of"] else ""
        lines.append(f"  {one['id']} {one['node']} {one['pipeline']} {one['trigger']}: {one['message']}{later}")
    lines += [f"  and {len(takes) - _SHOWN} more"] if len(takes) > _SHOWN else []
    what = "acknowledged already, or over" if kind == "acknowledge" else "held by no latch"
    return [*lines, f"  {unchanged} {'is' if unchanged == 1 else 'are'} {what}"] if unchanged else lines


def _when(node: Node, contact: Contact) -> str:
    if contact.is_in_contact(node):
        return ""
    return f": once it is back (out of contact since {clock(contact.last_seen(node), contact.now)})"
