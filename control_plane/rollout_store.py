"""Rollouts as rows: each with the nodes it admitted, what those had before, and how it went there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import store
from control_plane.assign import Pace
from control_plane.rollout import PAUSED, SUPERSEDED, Rollout, parse_steps
from control_plane.store import now_us
from pipelines.contract.frames import canonical_json
from pipelines.contract.node_state import Assignment, read_assignment

_table, _nodes = store.rollouts, store.rollout_nodes


@dataclass(frozen=True, slots=True)
class Admission:
    """What a rollout knows of one node. `generation` is that of the manifest that first offered it."""

    node: str
    admitted: int = 0
    generation: int = 0
    failed: str = ""
    excused: bool = False
    before: Assignment | None = None


def create(db: Connection, rollout: Rollout) -> Rollout:
    """`rollout` with its id."""
    values = _values(rollout) | {"at": rollout.at, "was": ""}
    made = db.execute(_table.insert().values(**values)).inserted_primary_key
    assert made is not None
    return _loaded(db, int(made[0]))


def load(db: Connection, ids: Iterable[int]) -> dict[int, Rollout]:
    """For writing: nobody else changes them before this transaction ends."""
    rows = db.execute(sa.select(_table).where(_table.c.id.in_(list(ids))).order_by(_table.c.id).with_for_update())
    return {row.id: _rollout(row) for row in rows}


def latest(db: Connection, pipeline: str) -> list[Rollout]:
    """The newest of each target that the pipeline ever had, the newest first."""
    found: dict[str, Rollout] = {}
    for row in db.execute(sa.select(_table).where(_table.c.pipeline == pipeline).order_by(_table.c.id.desc())):
        found.setdefault(row.selector, _rollout(row))
    return list(found.values())


def current_ids(db: Connection, pipeline: str | None = None) -> list[int]:
    """Of the rollouts that brought the present targets there."""
    c = store.targets.c
    asked = sa.select(c.rollout).where(c.rollout > 0).order_by(c.pipeline, c.position)
    return [int(id_) for id_ in db.scalars(asked.where(c.pipeline == pipeline) if pipeline else asked)]


def save(db: Connection, before: Rollout, after: Rollout) -> None:
    if before.state != after.state:
        db.execute(_table.update().where(_table.c.id == after.id).values(was=before.state))
    db.execute(_table.update().where(_table.c.id == after.id).values(**_values(after)))


def state_before(db: Connection, id_: int) -> str:
    return str(db.scalar(sa.select(_table.c.was).where(_table.c.id == id_)) or PAUSED)


def supersede(db: Connection, ids: Iterable[int], state: str = SUPERSEDED, why: str = "") -> None:
    """End rollouts that no target has any more."""
    ended = sa.and_(_table.c.id.in_(list(ids)), _table.c.state.not_in((SUPERSEDED, state)))
    db.execute(_table.update().where(ended).values(was=_table.c.state, state=state, why=why))


def admissions(db: Connection, rollout: int) -> dict[str, Admission]:
    return {row.node: _admission(row) for row in db.execute(sa.select(_nodes).where(_nodes.c.rollout == rollout))}


def put(db: Connection, rollout: int, admission: Admission) -> None:
    put_all(db, rollout, [admission])


def put_all(db: Connection, rollout: int, entries: Iterable[Admission]) -> None:
    rows = [
        {
            "rollout": rollout,
            "node": entry.node,
            "admitted": entry.admitted,
            "generation": entry.generation,
            "failed": entry.failed,
            "excused": entry.excused,
            "before": canonical_json(asdict(entry.before)).decode() if entry.before else "",
        }
        for entry in entries
    ]
    if rows:
        here = _nodes.c.rollout == rollout
        for start in range(0, len(rows), 500):
            names = [row["node"] for row in rows[start : start + 500]]
            db.execute(_nodes.delete().where(here, _nodes.c.node.in_(names)))
        db.execute(_nodes.insert(), rows)


def note_offers(db: Connection, offers: Iterable[tuple[int, str, int]]) -> None:
    """(rollout, node, generation of the manifest that carries its version to the node)."""
    by_rollout: dict[int, dict[str, int]] = {}
    for rollout, node, generation in offers:
        by_rollout.setdefault(rollout, {})[node] = generation
    for rollout, generations in by_rollout.items():
        known = admissions(db, rollout)
        news = [replace(known.get(node, Admission(node)), generation=g) for node, g in generations.items()]
        first = [a for a in news if a.node not in known or known[a.node].generation == 0]
        put_all(db, rollout, [replace(a, admitted=a.admitted or now_us()) for a in first])


def paces(db: Connection) -> Mapping[int, Pace]:
    """Of the present rollouts that admit node by node."""
    found = {id_: rollout for id_, rollout in _read(db, current_ids(db)).items() if rollout.is_paced}
    made = {}
    for id_ in found:
        entries = admissions(db, id_).values()
        admitted = frozenset(entry.node for entry in entries if entry.admitted)
        made[id_] = Pace(admitted, {entry.node: entry.before for entry in entries if not entry.admitted})
    return made


def lifts(db: Connection) -> Mapping[tuple[str, str, str], int]:
    return {(row.pipeline, row.node, row.digest): row.lift for row in db.execute(sa.select(store.lifts))}


def lift(db: Connection, pipeline: str, node: str, digest: str, number: int) -> None:
    c = store.lifts.c
    here = sa.and_(c.pipeline == pipeline, c.node == node, c.digest == digest)
    if db.execute(store.lifts.update().where(here).values(lift=number)).rowcount == 0:
        db.execute(store.lifts.insert().values(pipeline=pipeline, node=node, digest=digest, lift=number))


def _read(db: Connection, ids: Iterable[int]) -> dict[int, Rollout]:
    return {row.id: _rollout(row) for row in db.execute(sa.select(_table).where(_table.c.id.in_(list(ids))))}


def _loaded(db: Connection, id_: int) -> Rollout:
    return _read(db, [id_])[id_]


def _values(rollout: Rollout) -> dict[str, Any]:
    names = ("pipeline", "selector", "number", "digest", "soak_us", "failures", "state", "step", "since", "why", "by", "reason")
    return {name: getattr(rollout, name) for name in names} | {"steps": ",".join(map(str, rollout.steps))}


def _rollout(row: Row[Any]) -> Rollout:
    return Rollout(
        row.id,
        row.pipeline,
        row.selector,
        row.number,
        row.digest,
        parse_steps(row.steps.split(",") if row.steps else ()),
        row.soak_us,
        row.failures,
        row.state,
        row.step,
        row.since,
        row.why,
        row.by,
        row.reason,
        row.at,
    )


def _admission(row: Row[Any]) -> Admission:
    before = read_assignment(json.loads(row.before)) if row.before else None
    return Admission(row.node, row.admitted, row.generation, row.failed, row.excused, before)
