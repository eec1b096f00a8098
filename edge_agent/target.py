"""Which version of a pipeline should run here now, and why it is not what the centre offers. Pure: facts in, a target out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edge_agent.gate import EMPTY, Book, Good
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
    lacks: str = ""  # the digest of a version to fetch


def target_of(
    assignment: Assignment,
    pin: Decision | None,
    pause: Decision | None,
    fits: Mapping[str, Fit],
    book: Book = EMPTY,
    running: str = "",
) -> Target:
    """The target of an assigned pipeline. `fits` says of each version by its digest whether it can run; one that is not there is
    not on the node. `running` is the digest of what runs, "" for nothing.

    A pause lets none run; a pin chooses the version; one that failed its gate gives way to the last that passed, and so does one
    that cannot run while nothing else does. What the manifest leaves out no note keeps alive.
    """
    if (version := pinned_version(pin)) is not None and pin is not None and version[0] != assignment.digest:
        target = _pinned(assignment, version, pin.note, fits)
    else:
        target = _as_assigned(assignment, fits)
        if is_banned := target.params is not None and book.bans_it(target.digest, target.params, assignment.lift):
            is_banned = version is None and book.good is not None
        target = _gone_back(target, assignment, fits, book) if is_banned else target
    if target.params is None and book.good is not None and running in ("", book.good.digest):
        target = _meanwhile(target, fits, book.good)
    if pause and pause.is_set:
        reason = f"paused {told(pause.note)}"
        return replace(target, is_paused=True, code=causes.PAUSED, reason=reason, phase="paused")
    return target


def _gone_back(target: Target, assignment: Assignment, fits: Mapping[str, Fit], book: Book) -> Target:
    good = book.good
    assert good is not None
    ban = next(b for b in reversed(book.bans) if b.digest == target.digest)
    reason = f"version {assignment.number} failed its gate here: {ban.reason}"
    params = _params_of(good, fits) if good.digest in fits else None
    if params is not None and book.bans_it(good.digest, params, assignment.lift):
        params = good.params  # with these it ran well
    return Target(good.digest, good.number, params, False, causes.BANNED, reason, "pending", good.artifacts)


def _meanwhile(target: Target, fits: Mapping[str, Fit], good: Good) -> Target:
    """The last version that passed, while the wanted one cannot run and nothing else does."""
    params = _params_of(good, fits) if good.digest in fits and good.digest != target.digest else None
    if params is None:
        return target
    return replace(target, digest=good.digest, number=good.number, params=params, lacks=target.lacks, artifacts=good.artifacts)


def _params_of(good: Good, fits: Mapping[str, Fit]) -> Mapping[str, Scalar] | None:
    """What is said of its parameters now; what it had, when that does not fit it."""
    fit = fits[good.digest]
    return good.params if fit.params is None and fit.code in (causes.PARAM_MISSING, causes.PARAM_INVALID) else fit.params


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
    lacks = "" if assignment.digest in fits else assignment.digest
    words = (fit.code, fit.reason, fit.phase, assignment.artifacts, lacks)
    return Target(assignment.digest, assignment.number, fit.params, False, *words)


def _pinned(assignment: Assignment, version: tuple[str, int], note: Note, fits: Mapping[str, Fit]) -> Target:
    fit = fits.get(version[0], MISSING)
    reason = f"version {version[1]} is pinned {told(note)}" + (f"; {fit.reason}" if fit.reason else "")
    lacks = "" if version[0] in fits else version[0]
    return Target(*version, fit.params, False, causes.PINNED, reason, fit.phase, assignment.artifacts, lacks)
