"""What people asked of nodes, and who has answered: `query --fleet`, `tap`, `logs` (design, section 8).

A request is in the manifest of every node that matches until that answered; answers come as segments, into the lake's table
`requests`. The lake alone knows them: this follows it, level-triggered (I7).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import store
from control_plane.assign import Ask
from control_plane.lake_views import dataset, table_names
from control_plane.selector import Selector, parse_selector
from control_plane.store import now_us
from control_plane.times import iso
from pipelines.contract.errors import Refused
from pipelines.contract.node_state import REQUESTS_MAX, Request
from pipelines.engine.answers import ENDS, REFUSED, ROW, TABLE

KEPT_US = 7 * 86_400 * 10**6  # of what is over
OPEN_MAX = 1_000  # in the whole fleet
NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as stored. Times are microseconds since 1970; `closed` is why no node is asked any more, "" while some are."""

    id: str
    selector: Selector
    request: Request
    at: int
    until: int
    closed: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one node's answer. `at` is when it was received."""

    request: str
    node: str
    how: str  # done | failed | refused
    rows: int = 0
    note: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """A node that is asked. `silent`: "" while it is in contact, else since when it is not known."""

    id: str
    name: str
    silent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    last_seen: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """How a request stands on one node."""

    id: str
    node: str  # its name
    state: str  # done | failed | refused | waiting (in contact) | missing (out of contact)
    rows: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request stands in the fleet: each node once, whatever came twice."""

    nodes: tuple[State, ...] = ()

    def of(self, *states: str) -> list[State]:
        return [state for state in self.nodes if state.state in states]

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is to come from nodes in contact."""
        return not self.of("waiting")

    @property
    def says(self) -> str:
        answered = f"{len(self.of('done'))} of {len(self.nodes)} nodes answered"
        words = {"failed": "failed", "refused": "refused", "waiting": "no answer yet", "missing": "missing"}
        parts = [f"{words[state]}: {named(states)}" for state in words if (states := self.of(state))]
        return "; ".join([answered, *parts])


def named(states: Sequence[State]) -> str:
    """Nodes, and since when those that are missing are silent."""
    names = [f"{s.node} ({s.note})" if s.state == "missing" else s.node for s in states[:NAMED_MAX]]
    return ", ".join(names) + (f" and {len(states) - NAMED_MAX} more" if len(states) > NAMED_MAX else "")


def fold(targets: Iterable[Target], answers: Iterable[Answer]) -> Standing:
    """Who answered and who is missing. Of two answers of one node the first counts, of a node that is not asked none."""
    first: dict[str, Answer] = {}
    for answer in sorted(answers, key=lambda a: (a.at, a.how, a.rows, a.note)):
        first.setdefault(answer.node, answer)
    states = [_state(target, first.get(target.id)) for target in targets]
    return Standing(tuple(sorted(states, key=lambda state: (state.node, state.id))))


def _state(target: Target, answer: Answer | None) -> State:
    if answer is not None:
        return State(target.id, target.name, answer.how, answer.rows, answer.note)
    return State(target.id, target.name, "missing" if target.silent else "waiting", note=target.silent)


# SQL


def create(db: Connection, request: Request, selector: Selector, until: int) -> tuple[Asked, list[Target]]:
    """The request, and the nodes that it is for. One on which too many are open refuses it at once; raises
    `Refused` when none is left, and nothing is asked."""
    found = targets(db, selector)
    if not found:
        raise Refused(f"no node matches {selector}", op=request.kind, hint="see: tidewire nodes")
    standing = asks(db)
    if len(standing) >= OPEN_MAX:
        raise Refused(f"{OPEN_MAX} requests are open", op=request.kind, hint="see: tidewire requests; cancel what nobody needs")
    full = {target.id for target in found if _open_on(standing, target) >= REQUESTS_MAX}
    if len(full) == len(found):
        where = "on it" if len(found) == 1 else "on each of them"
        hint = "see: tidewire requests; cancel what nobody needs any more"
        raise Refused(f"{REQUESTS_MAX} requests are open {where} already", op=request.kind, hint=hint)
    asked = Asked(f"{request.kind[0]}-{secrets.token_hex(3)}", selector, request, now_us(), until)
    db.execute(
        store.requests.insert().values(
            id=asked.id, selector=str(selector), request=json.dumps(asdict(request)), at=asked.at, until=until, closed=""
        )
    )
    note(db, [Answer(asked.id, node, REFUSED, 0, f"{REQUESTS_MAX} requests are open on it already", asked.at) for node in full])
    store.record(db, request.by, request.kind, asked.id, f"{selector}: {json.dumps(dict(request.body))[:500]}", request.reason)
    return asked, found


def _open_on(standing: Sequence[Ask], target: Target) -> int:
    return sum(target.id not in ask.answered and ask.selector.matches(target.name, target.labels) for ask in standing)


def targets(db: Connection, selector: Selector, also: Collection[str] = ()) -> list[Target]:
    """The nodes that match, and those with the ids `also`."""
    c = store.nodes.c
    rows = db.execute(sa.select(c.id, c.name, c.labels, c.local, c.last_seen, c.replaced_by).order_by(c.name))
    found = [
        (Target(row.id, row.name, "", {**json.loads(row.labels), **json.loads(row.local)}, row.last_seen), row.replaced_by)
        for row in rows
    ]
    return [one for one, by in found if one.id in also or (not by and selector.matches(one.name, one.labels))]


def asks(db: Connection) -> list[Ask]:
    """Those that are open, the oldest first, for the manifests."""
    c = store.requests.c
    rows = db.execute(sa.select(store.requests).where(c.closed == "").order_by(c.at, c.id)).all()
    answered: dict[str, set[str]] = {row.id: set() for row in rows}
    a = store.request_answers.c
    for request, node in db.execute(sa.select(a.request, a.node).where(a.request.in_(answered))):
        answered[request].add(node)
    return [Ask(row.id, parse_selector(row.selector), _request(row.request), frozenset(answered[row.id])) for row in rows]


def find(db: Connection, name: str) -> Asked:
    row = db.execute(sa.select(store.requests).where(store.requests.c.id == name)).first()
    if row is None:
        raise Refused(f"there is no request {name!r}", op="requests", hint="list them with: tidewire requests")
    return _asked(row)


def listed(db: Connection, limit: int = 100) -> list[Asked]:
    """The newest first."""
    table = store.requests
    return [_asked(row) for row in db.execute(sa.select(table).order_by(table.c.at.desc(), table.c.id).limit(limit))]


def answers(db: Connection, request: str) -> list[Answer]:
    table = store.request_answers
    return [Answer(*row) for row in db.execute(sa.select(table).where(table.c.request == request))]


def note(db: Connection, found: Iterable[Answer]) -> list[Answer]:
    """Keep those that are new. The first of a node counts."""
    a, fresh = store.request_answers.c, []
    for answer in found:
        here = sa.and_(a.request == answer.request, a.node == answer.node)
        if db.execute(sa.select(a.node).where(here)).first() is None:
            db.execute(store.request_answers.insert().values(asdict(answer)))
            fresh.append(answer)
    return fresh


def close(db: Connection, request: str, why: str) -> bool:
    """Ask no node any more; whether any was asked."""
    c = store.requests.c
    return db.execute(store.requests.update().where(c.id == request, c.closed == "").values(closed=why)).rowcount > 0


def settle(db: Connection, found: Iterable[Answer], now: int) -> tuple[list[str], bool]:
    """Take in answers; close what all have answered and what is late (the centre's clock decides, by leaving it out), and forget
    what was over long ago. The ids of nodes whose manifests change, and whether any other node's may."""
    fresh = note(db, found)
    touched = [answer.node for answer in fresh]
    is_late = False
    for asked in [asked for asked in listed(db, OPEN_MAX) if not asked.closed]:
        if asked.until <= now:
            is_late |= close(db, asked.id, "its time was over")
    for name in {answer.request for answer in fresh}:
        asked = find(db, name)
        answered = {answer.node for answer in answers(db, name)}
        if not asked.closed and {target.id for target in targets(db, asked.selector)} <= answered:
            close(db, name, "every node answered")
    _forget(db, now - KEPT_US)
    return touched, is_late


def _forget(db: Connection, before: int) -> None:
    c = store.requests.c
    old = sa.select(c.id).where(c.closed != "", c.until < before)
    db.execute(store.request_answers.delete().where(store.request_answers.c.request.in_(old)))
    db.execute(store.requests.delete().where(c.closed != "", c.until < before))


def open_until(db: Connection) -> dict[str, int]:
    c = store.requests.c
    return {row.id: row.until for row in db.execute(sa.select(c.id, c.until).where(c.closed == ""))}


def _asked(row: Row[Any]) -> Asked:
    return Asked(row.id, parse_selector(row.selector), _request(row.request), row.at, row.until, row.closed)


def _request(text: str) -> Request:
    return Request(**json.loads(text))


# The lake


def ends(lake_dir: Path, requests: Iterable[str]) -> list[Answer]:
    """The ends of answers in the lake. Slow: not for the store thread."""
    wanted = pc.field("request").isin(list(requests)) & pc.field("kind").isin(list(ENDS))
    columns = ["request", "_node", "kind", "n", "note", "_received_at"]
    return [
        Answer(r["request"], r["_node"], r["kind"], r["n"], r["note"] or "", int(r["_received_at"].timestamp() * 1e6))
        for r in _read(lake_dir, wanted, columns)
    ]


def rows(lake_dir: Path, request: str, nodes: Mapping[str, str], after: int = 0, limit: int = 100_000) -> list[dict[str, Any]]:
    """`{node, n, row}` of a request, of a node in order and each number once, after number `after`; of `nodes` (id -> name):
    nobody else was asked."""
    wanted = (pc.field("request") == request) & (pc.field("kind") == ROW) & (pc.field("n") > after)
    wanted &= pc.field("_node").isin(list(nodes))
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in sorted(_read(lake_dir, wanted, ["_node", "n", "row", "_received_at"]), key=lambda r: r["_received_at"]):
        found.setdefault((row["_node"], row["n"]), row)
    ordered = [found[key] for key in sorted(found, key=lambda key: (nodes[key[0]], key))]
    return [{"node": nodes[row["_node"]], "n": row["n"], "row": _row(row["row"])} for row in ordered[:limit]]


def _read(lake_dir: Path, wanted: pc.Expression, columns: list[str]) -> list[dict[str, Any]]:
    if TABLE not in table_names(lake_dir):
        return []
    return list(dataset(lake_dir, TABLE).to_table(columns=columns, filter=wanted).to_pylist())


def _row(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {"_unreadable": text}


def shown(asked: Asked, standing: Standing) -> dict[str, Any]:
    """As JSON."""
    request = asked.request
    return {
        "id": asked.id, "kind": request.kind, "select": str(asked.selector), "body": dict(request.body), "by": request.by,
        "reason": request.reason, "at": iso(asked.at), "until": iso(asked.until), "closed": asked.closed,
        "nodes": [asdict(state) for state in standing.nodes], "answered": len(standing.of("done")),
        "settled": standing.is_settled or bool(asked.closed), "says": standing.says,
    }  # fmt: skip
