"""Whom the control plane notifies of incidents, what was taken for each, and what is still to be sent. All of it in SQL.

A transition in the lake is taken once for a target, by its place in the lake; what is sent has an id that is the receiver's
idempotency key. What arrives late, or all at once, is gathered into one message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import silence_store, store
from control_plane.commands import Done, Writer
from control_plane.selector import Selector, parse_selector
from control_plane.silence_store import Place, Silence
from control_plane.times import iso, parse_iso
from pipelines.contract.duration import format_duration
from pipelines.contract.errors import Refused

SEVERITIES = ("critical", "warning", "info")
WORDS = ("raised", "acknowledged", "cleared")
_OF_WORD = {
    **dict.fromkeys(("raised", "raised_again", "unsuppressed", "unshelved"), "raised"),
    "acknowledged": "acknowledged",
    **dict.fromkeys(("cleared", "reset", "retired"), "cleared"),
}
SILENT_AFTER_S = 600.0
LATE_S = 3600.0  # what its node says happened so long before we learned of it is history: told together
AT_ONCE = 10  # more than this at once, or waiting for one target, are told together
SETTLE_S, GATHER_MAX_S = 20.0, 300.0  # what is told together waits until nothing came for so long; at most
VALID_S = 12 * 3600.0
ITEMS_MAX = 500  # in one message
_KEPT_S = 7 * 86_400.0
_OVERLAP_US = 600_000_000  # between two looks: rows are not committed in the order of their time
_CURSOR = "notify_cursor"
_GATHERING, PENDING = "gathering", "pending"


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    webhook: str
    selector: str
    severity: str
    words: str
    silent_after_us: int
    by: str
    reason: str
    at: int

    @property
    def place(self) -> str:
        """The webhook without what may be secret in it."""
        parts = urlsplit(self.webhook)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}/…"

    def wants(self, severity: str, word: str) -> bool:
        return severity in self.severity.split(",") and word in self.words.split(",")

    @property
    def parsed(self) -> Selector:
        return parse_selector(self.selector)


@dataclass(frozen=True, slots=True)
class Notification:
    """One message, as it is to be sent."""

    id: str
    target: str
    items: tuple[Mapping[str, Any], ...]
    gathers: str
    created_at: int
    tries: int


# -- targets


def targets(db: Connection) -> list[Target]:
    return [Target(*row) for row in db.execute(sa.select(store.notify_targets).order_by(store.notify_targets.c.name))]


def find(db: Connection, name: str) -> Target:
    known = targets(db)
    found = next((target for target in known if target.name == name), None)
    if found is None:
        names = ", ".join(target.name for target in known) or "none yet: tidewire notify add NAME --webhook URL"
        raise Refused(f"there is no target {name!r}", op="notify", hint=f"known: {names}")
    return found


def add(db: Connection, words: Mapping[str, Any], who: Writer) -> Done:
    """Raises `Refused` on a name that is taken and on words that mean nothing."""
    for what, known in (("severity", SEVERITIES), ("on", WORDS)):
        if wrong := [word for word in words[what] if word not in known]:
            raise Refused(f"{wrong[0]!r} is no {what}", op="notify add", hint=f"of {', '.join(known)}, with commas between")
    if any(target.name == words["name"] for target in targets(db)):
        raise Refused("there is one of this name", op="notify add", place=words["name"], hint="tidewire notify remove it first")
    selector = parse_selector(words["select"])
    target = Target(
        words["name"],
        words["webhook"],
        str(selector),
        ",".join(words["severity"]),
        ",".join(words["on"]),
        round(words["silent_after_s"] * 1e6),
        who.by,
        who.reason,
        store.now_us(),
    )
    db.execute(store.notify_targets.insert().values({name: getattr(target, name) for name in Target.__slots__}))
    store.record(db, who.by, "notify add", target.name, target.place, who.reason)
    nodes = [node.name for node in silence_store.places(db).values() if _is_for(target, node)]
    lines = [
        f"{target.name}: {target.place} for {target.severity} incidents of {selector}, now {len(nodes)} nodes",
        f"  when they are {target.words}; and nodes that are silent for {format_duration(target.silent_after_us)}",
        "  from now on: what happened before is not told",
    ]
    return Done({"name": target.name, "nodes": nodes, "summary": lines, "dry_run": who.dry_run})


def remove(db: Connection, name: str, who: Writer) -> Done:
    target = find(db, name)
    c = store.notifications.c
    waiting = store.notifications.delete().where(c.target == name, c.status.in_((_GATHERING, PENDING)))
    unsent = db.execute(waiting).rowcount
    db.execute(store.notify_targets.delete().where(store.notify_targets.c.name == name))
    store.record(db, who.by, "notify remove", name, target.place, who.reason)
    lines = [f"{name}: nobody is notified there any more", *([f"  {unsent} unsent are dropped"] if unsent else [])]
    return Done({"name": name, "unsent": unsent, "summary": lines, "dry_run": who.dry_run})


def listed(db: Connection) -> list[dict[str, Any]]:
    return [_listed(db, target) for target in targets(db)]


def _listed(db: Connection, target: Target) -> dict[str, Any]:
    c = store.notifications.c
    mine = sa.select(store.notifications).where(c.target == target.name)
    waiting = db.execute(mine.where(c.status.in_((_GATHERING, PENDING)))).all()
    last = db.execute(mine.where(c.tries > 0).order_by(c.next_at.desc()).limit(1)).first()
    return {
        "name": target.name,
        "webhook": target.place,
        "select": target.selector,
        "severity": target.severity.split(","),
        "on": target.words.split(","),
        "silent_after": format_duration(target.silent_after_us),
        "by": target.by,
        "reason": target.reason,
        "at": iso(target.at),
        "waiting": len(waiting),
        "last": f"{last.status}: {last.outcome}" if last is not None else "",
    }


# -- what is taken


def shortest_silence_us(found: Sequence[Target]) -> int:
    """After which a node's silence is an incident."""
    return min((target.silent_after_us for target in found), default=round(SILENT_AFTER_S * 1e6))


def cursor(db: Connection, found: Sequence[Target]) -> int:
    """Since when rows of the lake are to be looked at."""
    known = db.scalar(sa.select(store.meta.c.value).where(store.meta.c.key == _CURSOR))
    return (int(known) if known else min(target.at for target in found)) - _OVERLAP_US


def take(db: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Transitions in the lake, oldest first, as `incidents` has them: each once for each target that wants it."""
    nodes = silence_store.places(db, {row["_node"] for row in rows})
    for target in targets(db):
        new = [row for row in rows if _wants(db, target, nodes.get(row["_node"]), row)]
        over = {row["incident"] for row in new if _OF_WORD[row["transition"]] == "raised"}
        over &= {row["incident"] for row in rows if _OF_WORD.get(row["transition"]) in ("acknowledged", "cleared")}
        late = [_is_late(row) or row["incident"] in over for row in new]  # somebody looked at it, or it is past
        is_flood = late.count(False) > AT_ONCE
        for row, is_late in zip(new, late, strict=True):
            item = _item(row, nodes[row["_node"]])
            if is_late or is_flood:
                _gather(db, target, "incidents", item)
            else:
                _insert(db, target.name, "", [item], PENDING)
    if rows:
        newest = max(parse_iso(str(row["_received_at"])) for row in rows)
        db.execute(store.meta.delete().where(store.meta.c.key == _CURSOR))
        db.execute(store.meta.insert().values(key=_CURSOR, value=str(newest)))


def _wants(db: Connection, target: Target, node: Place | None, row: Mapping[str, Any]) -> bool:
    word, flags = _OF_WORD.get(row["transition"], ""), set((row.get("flags") or "").split(","))
    if node is None or not _is_for(target, node) or not target.wants(row["severity"] or "", word):
        return False
    if word == "raised" and flags & {"suppressed", "shelved"}:
        return False  # nobody is called on the node either
    if parse_iso(str(row["_received_at"])) < target.at:
        return False
    was_told = _is_noted(db, f"{target.name}/{row['incident']}/raised")
    if row["transition"] == "unsuppressed" and was_told:
        return False
    if word != "raised" and "raised" in target.words.split(",") and not was_told:
        return False  # who was not called need not hear the end
    place = "/".join(str(row[name]) for name in ("_node", "_run", "_stream", "_seq", "_row"))
    if not _note(db, f"{target.name}/{place}"):
        return False
    if word == "raised":
        _note(db, f"{target.name}/{row['incident']}/raised")
    return True


def _is_late(row: Mapping[str, Any]) -> bool:
    return parse_iso(str(row["_received_at"])) - parse_iso(str(row["at"])) > LATE_S * 1e6


def _item(row: Mapping[str, Any], node: Place) -> dict[str, Any]:
    names = ("incident", "pipeline", "trigger", "group", "transition", "severity", "state", "message", "by", "reason", "at")
    return {"node": node.name, **{name: row[name] for name in names}, "received_at": str(row["_received_at"])}


def take_silences(
    db: Connection,
    silent: Sequence[tuple[Silence, float]],
    ended: Sequence[tuple[Silence, str]],
) -> None:
    """`silent`: those open, with seconds of silence; `ended`: those that are over, with what is to be told."""
    nodes = silence_store.places(db, {one.node for one, _ in (*silent, *ended)})
    for target in targets(db):
        for one, silent_s in silent:
            node = nodes.get(one.node)
            is_due = node is not None and _is_for(target, node) and silent_s * 1e6 >= target.silent_after_us
            if node and is_due and target.wants(silence_store.SEVERITY, "raised") and one.raised_at >= target.at:
                _take_silence(db, target, one, node, "raised", f"not heard of since {iso(one.since)}")
        for one, told in ended:
            node = nodes.get(one.node)
            if node and target.wants(silence_store.SEVERITY, "cleared") and _is_noted(db, f"{target.name}/{one.id}/raised"):
                _take_silence(db, target, one, node, "cleared", told)


def _take_silence(db: Connection, target: Target, one: Silence, node: Place, word: str, told: str) -> None:
    if _note(db, f"{target.name}/{one.id}/{word}"):
        item = {"incident": one.id, "node": node.name, "trigger": silence_store.TRIGGER, "transition": word, "message": told}
        site = str(node.labels.get("site", ""))
        at = iso(one.since if word == "raised" else store.now_us())
        _gather(db, target, f"silence {word} {site}", {**item, "severity": silence_store.SEVERITY, "site": site, "at": at})


# -- what is sent


def release(db: Connection, now: int) -> None:
    """What was gathered and has settled is to be sent. Of too many sites at once it is one message."""
    c = store.notifications.c
    settled = sa.or_(c.touched_at <= now - round(SETTLE_S * 1e6), c.created_at <= now - round(GATHER_MAX_S * 1e6))
    found = db.execute(sa.select(store.notifications).where(c.status == _GATHERING, settled).order_by(c.created_at)).all()
    by_target: dict[tuple[str, str], list[Any]] = {}
    for row in found:
        by_target.setdefault((row.target, row.gathers.rpartition(" ")[0] or row.gathers), []).append(row)
    for (target, gathers), rows in by_target.items():
        if len(rows) <= AT_ONCE:
            db.execute(store.notifications.update().where(c.id.in_([row.id for row in rows])).values(status=PENDING))
            continue
        _merge(db, target, f"{gathers} many sites", rows)


def due(db: Connection, now: int) -> list[tuple[Target, Notification]]:
    """The next one of each target, oldest first; those that are too late are over. When many wait, they become one."""
    c, made = store.notifications.c, []
    too_late = store.notifications.update().where(c.status == PENDING, c.created_at < now - round(VALID_S * 1e6))
    db.execute(too_late.values(status="expired", outcome="nobody took it in time"))
    for target in targets(db):
        mine = sa.select(store.notifications).where(c.target == target.name, c.status == PENDING).order_by(c.created_at, c.id)
        rows = db.execute(mine).all()
        untried = [row for row in rows if not row.tries]  # another may have arrived: it keeps its id and what it says
        are_many = len(untried) > AT_ONCE or (len(untried) > 1 and any(row.gathers for row in untried))
        if rows and rows[0].tries and are_many:
            _merge(db, target.name, "incidents", untried)
            rows = db.execute(mine).all()
        if rows and rows[0].next_at <= now:
            row = rows[0]
            made.append(
                (target, Notification(row.id, row.target, tuple(json.loads(row.items)), row.gathers, row.created_at, row.tries))
            )
    return made


def settle(db: Connection, name: str, status: str, outcome: str, next_at: int) -> None:
    c = store.notifications.c
    one = store.notifications.update().where(c.id == name, c.status == PENDING)
    db.execute(one.values(status=status, outcome=outcome[:300], next_at=next_at, tries=c.tries + 1))
    over = store.notifications.delete().where(
        c.status.not_in((_GATHERING, PENDING)), c.touched_at < next_at - round(_KEPT_S * 1e6)
    )
    db.execute(over)
    db.execute(store.notified.delete().where(store.notified.c.at < next_at - round(30 * _KEPT_S * 1e6)))


def payload(one: Notification) -> dict[str, Any]:
    """What is posted: one transition, a digest of many, or nodes that fell silent or came back together."""
    head = {"id": one.id, "notify": one.target}
    if not one.gathers:
        return {**head, **one.items[0]}
    times = sorted(str(item["at"]) for item in one.items if item["at"])
    told = {"count": len(one.items), "since": times[0] if times else ""}
    if one.gathers.startswith("silence "):
        word = one.gathers.split(" ")[1]
        sites = sorted({str(item["site"]) for item in one.items})
        where = f" of site {', '.join(filter(None, sites))}" if any(sites) else ""
        names = ", ".join(str(item["node"]) for item in one.items[:AT_ONCE]) + (" and more" if len(one.items) > AT_ONCE else "")
        what = "silent" if word == "raised" else "back"
        message = f"{len(one.items)} node{'' if len(one.items) == 1 else 's'}{where} {what}: {names}"
        nodes = [{name: item[name] for name in ("node", "incident", "site", "message", "at")} for item in one.items[:ITEMS_MAX]]
        return {**head, **told, "silence": True, "transition": word, "sites": sites, "message": message, "nodes": nodes}
    incidents: dict[str, dict[str, Any]] = {}
    for item in one.items:
        known = incidents.pop(item["incident"], {"transitions": []})
        step = {name: item.get(name, "") for name in ("transition", "at", "by")}
        incidents[item["incident"]] = {**item, "transitions": [*known["transitions"], step]}
    return {**head, **told, "digest": True, "incidents": list(incidents.values())[-ITEMS_MAX:]}


def _merge(db: Connection, target: str, gathers: str, rows: Sequence[Any]) -> None:
    items = [item for row in rows for item in json.loads(row.items)]
    first = rows[0]
    db.execute(store.notifications.delete().where(store.notifications.c.id.in_([row.id for row in rows])))
    tried = {"tries": max(row.tries for row in rows), "outcome": first.outcome}
    _insert(db, target, gathers, items, PENDING, created_at=first.created_at, next_at=first.next_at, **tried)


def _gather(db: Connection, target: Target, gathers: str, item: Mapping[str, Any]) -> None:
    c = store.notifications.c
    mine = sa.select(store.notifications).where(c.target == target.name, c.gathers == gathers, c.status == _GATHERING)
    row = db.execute(mine).first()
    if row is None:
        _insert(db, target.name, gathers, [item], _GATHERING)
    else:
        items = json.dumps([*json.loads(row.items), item])
        db.execute(store.notifications.update().where(c.id == row.id).values(items=items, touched_at=store.now_us()))


def _insert(db: Connection, target: str, gathers: str, items: Sequence[Mapping[str, Any]], status: str, **more: Any) -> None:
    now, body = store.now_us(), json.dumps(list(items))
    name = hashlib.sha256(f"{target} {gathers} {now} {body}".encode()).hexdigest()[:32]
    values = {"id": name, "target": target, "gathers": gathers, "items": body, "created_at": now, "touched_at": now}
    values |= {"status": status, "tries": 0, "next_at": 0, "outcome": "", **more}
    db.execute(store.notifications.insert().values(values))


def _note(db: Connection, key: str) -> bool:
    """Whether it was not noted before."""
    if _is_noted(db, key):
        return False
    db.execute(store.notified.insert().values(key=key, at=store.now_us()))
    return True


def _is_noted(db: Connection, key: str) -> bool:
    return db.scalar(sa.select(store.notified.c.key).where(store.notified.c.key == key)) is not None


def _is_for(target: Target, node: Place) -> bool:
    return target.parsed.matches(node.name, node.labels)
