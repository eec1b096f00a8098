"""Every state that a deployment had, so that there is something to go back to."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import store
from control_plane.store import now_us
from pipelines.contract.errors import Refused

_states, _targets = store.deployment_states, store.targets


def remember(db: Connection, pipeline: str, action: str, by: str, reason: str) -> None:
    """Keep what the deployment is now; an undo goes back to what it was before."""
    last = _newest(db, pipeline)
    targets = _rows(db, pipeline)
    if last is not None and json.loads(last.targets) == targets:
        return
    _add(db, pipeline, last.id if last is not None else None, action, targets, by, reason)


def go_back(db: Connection, pipeline: str, by: str, reason: str) -> None:
    """Bring the deployment back to what it was before its last change. Called again it goes one further back."""
    last = _newest(db, pipeline)
    back = db.execute(sa.select(_states).where(_states.c.id == last.back)).first() if last is not None else None
    if back is None or not json.loads(back.targets):
        known = f"what it has is its first deployment; to stop it: tidewire deploy {pipeline} --select S --remove"
        hint = known if last is not None else f"tidewire deploy {pipeline} --select S"
        raise Refused(f"{pipeline} has nothing to go back to", op="rollout undo", hint=hint)
    targets = json.loads(back.targets)
    db.execute(_targets.delete().where(_targets.c.pipeline == pipeline))
    db.execute(_targets.insert(), targets)
    _add(db, pipeline, back.back, "rollout undo", targets, by, reason)


def states(db: Connection, pipeline: str) -> list[dict[str, Any]]:
    """Newest first."""
    rows = db.execute(sa.select(_states).where(_states.c.pipeline == pipeline).order_by(_states.c.id.desc()))
    return [{**row._asdict(), "targets": json.loads(row.targets)} for row in rows]


def _newest(db: Connection, pipeline: str) -> Row[Any] | None:
    wanted = sa.select(_states).where(_states.c.pipeline == pipeline).order_by(_states.c.id.desc()).limit(1)
    return db.execute(wanted).first()


def _rows(db: Connection, pipeline: str) -> list[dict[str, Any]]:
    wanted = sa.select(_targets).where(_targets.c.pipeline == pipeline).order_by(_targets.c.position)
    return [dict(row._asdict()) for row in db.execute(wanted)]


def _add(db: Connection, pipeline: str, back: int | None, action: str, targets: Any, by: str, reason: str) -> None:
    row = {"pipeline": pipeline, "back": back, "action": action, "targets": json.dumps(targets)}
    db.execute(_states.insert().values(**row, by=by, reason=reason, at=now_us()))
