"""Which nodes a rollout takes next, and when it stops. Pure: contact, reports and the time are arguments (I8).

A rollout goes in steps, each a number or a share of the nodes in contact. A step admits nodes up to its size; it is over when
those that are in contact passed their gate and its soak is over. Silence is not failure: a node that went silent neither passes
nor fails, and another takes its place, but never are more than twice the step's size at risk at one time. Nodes that come into
contact later are admitted when they do, and judged like the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipelines.contract import causes
from pipelines.contract.folds import is_banned
from pipelines.contract.frames import sha256
from pipelines.contract.node_state import Gate, Reported

RUNNING, PAUSED, HELD, DONE, UNDONE, SUPERSEDED = "running", "paused", "held", "done", "undone", "superseded"
STATES = (RUNNING, PAUSED, HELD, DONE, UNDONE, SUPERSEDED)

# What a node's report says of the version.
NOTHING = ""  # it has not taken it yet
SOAKING = "soaking"
STUCK = "held"  # a source or sink fails, or it cannot run it: its gate says nothing meanwhile
PASSED = "passed"
FAILED = "failed"
ASIDE = "aside"  # somebody on site pinned or paused the pipeline

_STEP = re.compile(r"([1-9][0-9]{0,6})(%?)\Z")


@dataclass(frozen=True, slots=True)
class Step:
    """So many nodes, or so many of a hundred."""

    amount: int
    is_share: bool = False

    def size(self, of: int) -> int:
        return -(-of * self.amount // 100) if self.is_share else self.amount

    def __str__(self) -> str:
        return f"{self.amount}{'%' if self.is_share else ''}"


EVERYTHING = Step(100, is_share=True)


def parse_steps(words: Iterable[object]) -> tuple[Step, ...]:
    """Raises ValueError. The last step is always 100%; none at all: everywhere at once."""
    steps = list[Step]()
    for word in words:
        match = _STEP.match(str(word).strip()) if not isinstance(word, bool) else None
        step = Step(int(match[1]), match[2] == "%") if match else None
        if step is None or (step.is_share and step.amount > 100):
            raise ValueError(f"{word!r} is not a step: write a number of nodes or a share of them, as in 1, 10%, 100%")
        if steps and step.is_share == steps[-1].is_share and step.amount <= steps[-1].amount:
            raise ValueError(f"the step {step} is not above {steps[-1]}: write them rising, as in 1, 10%, 100%")
        steps.append(step)
    return (*steps, EVERYTHING) if steps and steps[-1] != EVERYTHING else tuple(steps)


@dataclass(frozen=True, slots=True)
class Pacing:
    """How a deploy is to go."""

    steps: tuple[Step, ...] = ()
    soak_us: int = 0
    failures: int = 0
    gate: Gate = field(default_factory=Gate)


AT_ONCE = Pacing()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One target on its way to a version. Times are microseconds of the control plane's clock."""

    id: int
    pipeline: str
    selector: str
    number: int
    digest: str
    steps: tuple[Step, ...] = ()
    soak_us: int = 0
    failures: int = 0  # nodes that may fail it
    state: str = RUNNING
    step: int = 0
    since: int = 0  # when a node was first admitted in this step; 0: none yet
    why: str = ""
    by: str = ""
    reason: str = ""
    at: int = 0

    @property
    def is_paced(self) -> bool:
        """Whether it admits node by node."""
        return len(self.steps) > 1

    @property
    def is_open(self) -> bool:
        return self.state in (RUNNING, PAUSED, HELD, DONE)


@dataclass(frozen=True, slots=True)
class Taker:
    """One node of the target, as the rollout sees it."""

    node: str  # id
    name: str
    in_contact: bool
    verdict: str = NOTHING
    detail: str = ""
    admitted: bool = False
    excused: bool = False
    site: str = ""

    @property
    def is_at_risk(self) -> bool:
        """Whether it has or may have the version, and nobody knows how that went."""
        return self.admitted and not self.excused and self.verdict not in (PASSED, FAILED, ASIDE)


@dataclass(frozen=True, slots=True)
class Advance:
    """What is to change: the rollout as it then is, and the nodes to admit. `waits` says what it waits for."""

    rollout: Rollout
    admit: tuple[str, ...] = ()
    waits: str = ""


def judge(now: Reported | None, digest: str, params: str, lift: int) -> tuple[str, str]:
    """What a node's report says of the version `digest` with the parameters `params` (a digest), and why."""
    if now is None:
        return NOTHING, ""
    for ban in now.bans:
        if is_banned((ban,), digest, params, lift):
            return FAILED, ban.reason or "its gate failed"
    if now.code in (causes.PINNED, causes.PAUSED) or now.phase == "paused":
        return ASIDE, now.reason or f"{now.code or now.phase} on site"
    if now.digest != digest or (now.params_digest != params and now.phase != "failed"):
        return NOTHING, ""
    if now.gate == "failed" and not any(ban.digest == digest for ban in now.bans):  # else it is to be tried again
        return FAILED, now.reason or "its gate failed"
    if now.gate == "passed":
        return PASSED, ""
    if now.gate == "held" or now.phase == "failed":
        return STUCK, now.reason
    return SOAKING, ""


def advance(rollout: Rollout, takers: Sequence[Taker], now: int) -> Advance:
    """One step of the machine; called again it does no more (I7)."""
    failed = [t for t in takers if t.verdict == FAILED and not t.excused]
    if rollout.state in (RUNNING, DONE) and len(failed) > rollout.failures:
        first = failed[0]
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return Advance(replace(rollout, state=HELD, why=f"{first.name}{more} failed it: {first.detail}"))
    if not rollout.is_paced:
        return _everywhere(rollout, takers)
    if rollout.state == DONE:
        return _take_returned(rollout, takers)
    while rollout.state == RUNNING:
        done = _within_step(rollout, takers, now)
        if done is not None:
            return done
        last = rollout.step + 1 == len(rollout.steps)
        rollout = replace(rollout, state=DONE, why="") if last else replace(rollout, step=rollout.step + 1, since=0)
    return Advance(rollout)


def _everywhere(rollout: Rollout, takers: Sequence[Taker]) -> Advance:
    if rollout.state != RUNNING:
        return Advance(rollout)
    open_ = [t for t in takers if t.in_contact and t.is_at_risk]
    if open_ or (takers and not any(t.verdict == PASSED for t in takers)):
        return Advance(rollout, waits=_waits(open_) if open_ else "no node in contact has taken it yet")
    return Advance(replace(rollout, state=DONE))


def _within_step(rollout: Rollout, takers: Sequence[Taker], now: int) -> Advance | None:
    """What the step still needs; None when it is over."""
    reach = sum(1 for t in takers if t.verdict != ASIDE and (t.in_contact or (t.admitted and t.verdict == PASSED)))
    size = rollout.steps[rollout.step].size(reach)
    live = [t for t in takers if t.admitted and t.verdict not in (FAILED, ASIDE) and (t.in_contact or t.verdict == PASSED)]
    admit = _choose(rollout, takers, size - len(live), size)
    if admit:
        return Advance(replace(rollout, since=rollout.since or now), admit, f"{len(admit)} more nodes to take it")
    open_ = [t for t in live if t.is_at_risk]
    if open_:
        return Advance(rollout, waits=_waits(open_))
    silent = [t for t in takers if t.is_at_risk]
    if len(live) < size and silent and _candidates(rollout, takers):
        names = ", ".join(t.name for t in silent[:5])
        return Advance(rollout, waits=f"{names} took it and went silent; it goes on when one returns, or `rollout resume`")
    if not live and not any(t.excused for t in takers):
        return Advance(rollout, waits="no node is in contact")
    if rollout.since and now < rollout.since + rollout.soak_us:
        return Advance(rollout, waits=f"step {rollout.step + 1} soaks")
    return None


def _take_returned(rollout: Rollout, takers: Sequence[Taker]) -> Advance:
    """Those who were not in contact when it was their turn, at most as many at a time as the step before 100% had."""
    reach = sum(1 for t in takers if t.in_contact and t.verdict != ASIDE)
    size = rollout.steps[-2].size(reach)
    busy = sum(1 for t in takers if t.is_at_risk and t.in_contact)
    return Advance(rollout, _choose(rollout, takers, size - busy, size))


def _choose(rollout: Rollout, takers: Sequence[Taker], missing: int, size: int) -> tuple[str, ...]:
    """Nodes to admit: spread over the sites, otherwise in an order that depends on nothing but names."""
    room = min(missing, 2 * size - sum(1 for t in takers if t.is_at_risk))
    if room <= 0:
        return ()
    at_site = Counter(t.site for t in takers if t.admitted)
    queues: dict[str, list[Taker]] = {}
    for taker in sorted(_candidates(rollout, takers), key=lambda t: sha256(f"{rollout.id} {t.node}".encode())):
        queues.setdefault(taker.site, []).append(taker)
    chosen = list[str]()
    while len(chosen) < room and queues:
        site = min(queues, key=lambda s: (at_site[s], s))
        chosen.append(queues[site].pop(0).node)
        at_site[site] += 1
        if not queues[site]:
            del queues[site]
    return tuple(chosen)


def _candidates(rollout: Rollout, takers: Sequence[Taker]) -> list[Taker]:
    """Those in contact that may be next. Who is set aside on site makes no canary."""
    last = rollout.state == DONE or rollout.step + 1 == len(rollout.steps)
    return [t for t in takers if t.in_contact and not t.admitted and t.verdict != FAILED and (last or t.verdict != ASIDE)]


def _waits(open_: Sequence[Taker]) -> str:
    stuck = [t for t in open_ if t.verdict == STUCK]
    if stuck:
        return f"{stuck[0].name} holds its gate: {stuck[0].detail}"
    names = ", ".join(t.name for t in open_[:5]) + (f" and {len(open_) - 5} more" if len(open_) > 5 else "")
    return f"{names} to pass the gate"


def word(rollout: Rollout, taker: Taker, since: str) -> str:
    """A node's state in one word; `since` when it was last heard."""
    if taker.verdict == FAILED:
        return "banned"
    if rollout.state in (UNDONE, SUPERSEDED):
        return "superseded"
    if taker.verdict == PASSED and taker.admitted:
        return "healthy"
    if not taker.in_contact:
        return f"unknown since {since}"
    if not taker.admitted:
        return "waiting" if rollout.state in (PAUSED, HELD) else "pending"
    return {STUCK: "held", ASIDE: "held", SOAKING: "soaking"}.get(taker.verdict, "in contact")
