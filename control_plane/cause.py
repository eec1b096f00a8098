"""Why a pipeline runs on a node as it does: a code of `pipelines.contract.causes` and the words. `why` puts them on a screen.

What the node says of itself comes before what is only known here: it decides what runs (I12). Silence is no cause of anything
that the node had said before (I8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy.engine import Connection

from control_plane import fleet, registry, rollout_store
from control_plane.assign import Pace, Target
from control_plane.effects import Contact
from control_plane.fleet import Node
from control_plane.rollout import HELD, PAUSED, UNDONE, Rollout
from control_plane.selector import Selector, parse_selector
from pipelines.contract import causes
from pipelines.contract.folds import Effective, is_banned
from pipelines.contract.node_state import Assignment, Reported, params_digest

UNWANTED = frozenset({causes.NOT_DEPLOYED, causes.NOT_SELECTED})
ROLLOUT = frozenset({causes.WAITING, causes.ROLLOUT_PAUSED, causes.ROLLOUT_HELD, causes.ROLLOUT_UNDONE})
FINE = causes.RUNS_AS_WANTED | UNWANTED | ROLLOUT | {causes.OTHER_TARGET}
_PASSING = frozenset({causes.STARTING, causes.FETCHING, causes.NOT_APPLIED, causes.PARAMS_PENDING, causes.STILL_RUNNING})
_HELD_BACK = {PAUSED: causes.ROLLOUT_PAUSED, HELD: causes.ROLLOUT_HELD, UNDONE: causes.ROLLOUT_UNDONE}


@dataclass(frozen=True, slots=True)
class Cause:
    code: str  # one of `causes.CODES`
    text: str

    @property
    def is_fine(self) -> bool:
        """Whether the node does what the centre wants of it (I6)."""
        return self.code in FINE


class Causes:
    """Of many nodes and pipelines, within one transaction."""

    def __init__(self, db: Connection, contact: Contact) -> None:
        self._db, self._contact = db, contact
        self._rollouts: dict[str, list[Rollout]] = {}

    def of(self, node: Node, pipeline: str) -> Cause:
        cause = self._of(node, pipeline)
        if cause.code in _PASSING and not self._contact.is_in_contact(node):
            return Cause(causes.OUT_OF_CONTACT, f"{node.name} is {self._contact.words(node)}; when last heard: {cause.text}")
        return cause

    def targets(self, pipeline: str) -> tuple[Target, ...]:
        return self._targets.get(pipeline, ())

    def effective(self, node: Node, pipeline: str) -> Mapping[str, Effective]:
        return fleet.effective_for(self._db, node, node.notes, pipeline)

    def _of(self, node: Node, pipeline: str) -> Cause:
        now = node.reported.get(pipeline)
        wanted = node.manifest.assignments.get(pipeline) if node.manifest else None
        if node.replaced_by:
            return Cause(causes.REPLACED, f"another card has its name now ({node.replaced_by}): nothing should run here")
        if node.is_ahead:
            held = f"{node.name} holds generation {node.seen_generation} of term {node.seen_term}"
            return Cause(causes.NODE_AHEAD, f"{held}, newer than any issued here: this control plane was restored from a backup")
        if wanted is None:
            return self._unwanted(node, pipeline, now)
        params = self.effective(node, pipeline)
        missing = [name for name, entry in params.items() if entry.value is None]
        if (late := self._late(node)) is not None:
            return late
        if (told := _told(wanted, now, params_digest({name: entry.value for name, entry in params.items()}))) is not None:
            return told
        if missing:
            return Cause(causes.PARAM_MISSING, f"no value for the parameter {', '.join(missing)}")
        if now is None or now.digest != wanted.digest:
            return Cause(causes.NOT_APPLIED, f"the manifest is there; version {wanted.number} is not reported yet")
        return self._runs(node, pipeline, now)

    def _unwanted(self, node: Node, pipeline: str, now: Reported | None) -> Cause:
        if now is not None and now.phase != "stopped":
            if (late := self._late(node)) is not None:
                return late
            return Cause(causes.STILL_RUNNING, f"version {now.number} is {now.phase} though nothing wants it any more")
        if (step := self._rollout(node, pipeline, "nothing runs meanwhile")) is not None:
            return step
        if not self.targets(pipeline):
            return Cause(causes.NOT_DEPLOYED, f"{pipeline} is deployed nowhere")
        selectors = " | ".join(str(target.selector) for target in self.targets(pipeline))
        return Cause(causes.NOT_SELECTED, f"no target of {pipeline} selects {node.name}: {selectors}")

    def _late(self, node: Node) -> Cause | None:
        """The wanted manifest has not reached the node, as far as is known; or nothing of its state is taken any more."""
        if refused := self._refused.get(node.id):
            return Cause(causes.DOCUMENT_REFUSED, f"what {node.name} sends of its state is refused: {refused}")
        if node.has_newest_manifest:
            return None
        generation = node.manifest.generation if node.manifest else 0
        held = f"generation {node.seen_generation}, wanted is {generation}"
        if not self._contact.is_in_contact(node):
            return Cause(causes.OUT_OF_CONTACT, f"{node.name} is {self._contact.words(node)}; when last heard it held {held}")
        return Cause(causes.NOT_RECEIVED, f"{node.name} has not yet fetched what is wanted: it holds {held}")

    def _runs(self, node: Node, pipeline: str, now: Reported) -> Cause:
        told = f": {now.reason}" if now.reason else ""
        if now.phase == "failed":
            return Cause(causes.FAILED, f"version {now.number} failed{told or ': no reason given'}")
        if now.phase != "running":
            return Cause(causes.STARTING, f"version {now.number} is {now.phase}{told}")
        if wrong := fleet.convergence(self._db, node).get(pipeline):
            return Cause(causes.PARAMS_PENDING, wrong)
        if now.reason or now.code == causes.TROUBLED:
            return Cause(causes.TROUBLED, f"version {now.number} runs as wanted, but{told or ' something it needs fails'}")
        if now.gate == "soaking":
            return Cause(causes.SOAKING, f"version {now.number} runs as wanted; its gate is not passed yet")
        fine = Cause(causes.AS_WANTED, f"version {now.number} runs as wanted")
        return self._rollout(node, pipeline, f"version {now.number} runs on") or self._beaten(node, pipeline, now) or fine

    def _rollout(self, node: Node, pipeline: str, meanwhile: str) -> Cause | None:
        """The node has what it had before a rollout that did not take it yet, or that was undone."""
        target = next(iter(self._mine(node, pipeline)), None)
        pace = self._paces.get(target.rollout) if target else None
        newest = self._newest(pipeline)
        if target is not None and pace is not None and node.id not in pace.admitted and node.id in pace.before:
            rollout = next((r for r in newest if r.id == target.rollout), None)
            code = _HELD_BACK.get(rollout.state, causes.WAITING) if rollout else causes.WAITING
            step = f"step {rollout.step + 1} of {len(rollout.steps)}" if rollout else "its step"
            words = f"{rollout.state} {rollout.why}".rstrip() if rollout and code != causes.WAITING else f"at {step}"
            turn = "" if code != causes.WAITING else f": the turn of {node.name} comes"
            return Cause(code, f"the rollout of version {target.number} is {words}{turn}; {meanwhile}")
        if newest and newest[0].state == UNDONE and _matches(parse_selector(newest[0].selector), node):
            said = f" {newest[0].why}" if newest[0].why else ""
            return Cause(causes.ROLLOUT_UNDONE, f"the rollout of version {newest[0].number} was undone{said}; {meanwhile}")
        return None

    def _mine(self, node: Node, pipeline: str) -> list[Target]:
        """The targets that select the node; the first wins."""
        return [target for target in self.targets(pipeline) if _matches(target.selector, node)]

    def _newest(self, pipeline: str) -> list[Rollout]:
        if pipeline not in self._rollouts:
            self._rollouts[pipeline] = rollout_store.latest(self._db, pipeline)
        return self._rollouts[pipeline]

    def _beaten(self, node: Node, pipeline: str, now: Reported) -> Cause | None:
        """The later target with a newer version that this node would have, did not an earlier one select it."""
        mine = self._mine(node, pipeline)
        newer = [target for target in mine[1:] if target.number > now.number]
        if not newer:
            return None
        text = f"version {now.number} runs as the first target that selects {node.name} wants it: {mine[0].selector}"
        return Cause(causes.OTHER_TARGET, f"{text}; {newer[0].selector} -> version {newer[0].number} comes after it")

    @cached_property
    def _paces(self) -> Mapping[int, Pace]:
        return rollout_store.paces(self._db)

    @cached_property
    def _refused(self) -> Mapping[str, str]:
        return fleet.refused_documents(self._db)

    @cached_property
    def _targets(self) -> Mapping[str, tuple[Target, ...]]:
        return {deployment.pipeline: deployment.targets for deployment in registry.deployments(self._db)}


def _matches(selector: Selector, node: Node) -> bool:
    return selector.matches(node.name, node.member.selectable)


def _told(wanted: Assignment, now: Reported | None, params: str) -> Cause | None:
    """What the node itself said of what is wanted now."""
    if now is None:
        return None
    for ban in now.bans:
        if is_banned([ban], wanted.digest, params, wanted.lift):
            runs = f"; version {now.number} is {now.phase} instead" if now.digest != wanted.digest else ""
            return Cause(causes.BANNED, f"version {ban.number} failed its gate here: {ban.reason or 'no reason given'}{runs}")
    if now.code in causes.CODES - FINE:
        return Cause(now.code, now.reason or f"version {now.number} is {now.phase}")
    if now.phase == "paused":
        return Cause(causes.PAUSED, now.reason or f"version {now.number} is paused")
    if now.digest == wanted.digest and now.gate == "held":
        return Cause(causes.GATE_HELD, f"version {now.number} runs, its gate waits: {now.reason or 'a source or sink fails'}")
    return None
