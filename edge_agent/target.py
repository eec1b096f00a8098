"""Which version of a pipeline should run here now, and why it is not what the centre offers. Pure: facts in, a target out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.contract import causes
from pipelines.contract.folds import Decision
from pipelines.contract.node_state import CONTROL, Assignment, Note, Scalar


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a version can run on this node now: the parameters it would have, or None and why not."""

    params: Mapping[str, Scalar] | None = None
    code: str = ""  # one of `causes.CODES`
    reason: str = ""
    phase: str = "failed"  # of a pipeline that it keeps from running


MISSING = Fit(None, causes.FETCHING, "its version is not on the node yet", "pending")


@dataclass(frozen=True, slots=True)
class Target:
    """What should run. `params` is None when it cannot: then what runs goes on. `code` and `reason` say why it is not, or not
    whole, what the manifest wants."""

    digest: str
    number: int
    params: Mapping[str, Scalar] | None = None
    is_paused: bool = False
    code: str = ""
    reason: str = ""
    phase: str = "pending"  # when nothing runs
    artifacts: Mapping[str, str] = field(default_factory=dict)


def target_of(assignment: Assignment, pin: Decision | None, pause: Decision | None, fits: Mapping[str, Fit]) -> Target:
    """The target of an assigned pipeline. `fits` says of each version by its digest whether it can run; one that is not there is
    not on the node. A pin chooses the version, a pause lets none run; what the manifest leaves out no note keeps alive."""
    target = _pinned(assignment, pin, fits) if pin and pin.is_set else _as_assigned(assignment, fits)
    if pause and pause.is_set:
        reason = f"paused {told(pause.note)}"
        return replace(target, is_paused=True, code=causes.PAUSED, reason=reason, phase="paused")
    return target


def pinned_version(pin: Decision | None) -> tuple[str, int] | None:
    """Digest and number of the version that is pinned, if one is."""
    if pin is None or not pin.is_set:
        return None
    digest, number = pin.note.body.get("digest"), pin.note.body.get("number", 0)
    return (digest, number) if isinstance(digest, str) and type(number) is int else None


def told(note: Note) -> str:
    """Who decided, where and why, for a reason."""
    where = "centrally" if note.author == CONTROL else "on site"
    return f"{where} by {note.by or note.author}" + (f": {note.reason}" if note.reason else "")


def _as_assigned(assignment: Assignment, fits: Mapping[str, Fit]) -> Target:
    fit = fits.get(assignment.digest, MISSING)
    return Target(assignment.digest, assignment.number, fit.params, False, fit.code, fit.reason, fit.phase, assignment.artifacts)


def _pinned(assignment: Assignment, pin: Decision, fits: Mapping[str, Fit]) -> Target:
    version = pinned_version(pin)
    if version is None or version[0] == assignment.digest:
        return _as_assigned(assignment, fits)
    fit = fits.get(version[0], MISSING)
    reason = f"version {version[1]} is pinned {told(pin.note)}"
    reason += f"; {fit.reason}" if fit.reason else ""
    return Target(*version, fit.params, False, causes.PINNED, reason, fit.phase, assignment.artifacts)
