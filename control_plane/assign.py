"""From deployments and rules to what should run on each node. Pure: no clock, no disk (I5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from control_plane.selector import Selector
from pipelines.contract.node_state import REQUESTS_MAX, Assignment, Gate, Manifest, Request, Scalar, Setting

DEPLOYMENT = "deployment"  # the origin of a setting


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a deployment: nodes that match run version `number` of the pipeline."""

    selector: Selector
    number: int
    digest: str
    params: Mapping[str, Scalar] = field(default_factory=dict)
    by: str = ""
    reason: str = ""
    at: str = ""
    gate: Gate = field(default_factory=Gate)
    rollout: int = 0  # the one that brought it there, a key of `Plans.paces` while that admits node by node


@dataclass(frozen=True, slots=True)
class Deployment:
    """One per pipeline. The first target that matches a node wins."""

    pipeline: str
    targets: tuple[Target, ...] = ()

    def target_for(self, name: str, labels: Mapping[str, str]) -> Target | None:
        return next((target for target in self.targets if target.selector.matches(name, labels)), None)


@dataclass(frozen=True, slots=True)
class Rule:
    """A central value of one parameter on every node that matches, also on nodes that join later. The later rule wins."""

    id: int
    pipeline: str
    name: str
    value: Scalar
    selector: Selector
    by: str = ""
    reason: str = ""
    force: bool = False
    locked: bool = False
    until: str = ""  # when it ends, a label: who sets it ends it


@dataclass(frozen=True, slots=True)
class Pace:
    """Which nodes a rollout has admitted to its version. The others keep what they have."""

    admitted: frozenset[str] = frozenset()  # ids
    before: Mapping[str, Assignment | None] = field(default_factory=dict)  # what others had when it began


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to every node that matches and has not answered yet."""

    id: str
    selector: Selector
    request: Request
    answered: frozenset[str] = frozenset()  # ids of nodes


@dataclass(frozen=True, slots=True)
class Plans:
    """Everything that people want of the fleet: what the manifests are folded from."""

    deployments: tuple[Deployment, ...] = ()
    rules: tuple[Rule, ...] = ()
    artifacts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # version -> name of a table -> digest
    paces: Mapping[int, Pace] = field(default_factory=dict)  # by rollout; one that is not here is for everybody at once
    lifts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)  # (pipeline, node, digest) -> `Assignment.lift`
    asks: tuple[Ask, ...] = ()  # the oldest first


@dataclass(frozen=True, slots=True)
class Member:
    """What assignment needs to know of a node."""

    id: str
    name: str
    labels: Mapping[str, str]
    manifest: Manifest | None = None  # the newest issued one
    local: Mapping[str, str] = field(default_factory=dict)  # labels that people put on the node itself: `local.`

    @property
    def selectable(self) -> Mapping[str, str]:
        """What selectors see."""
        return {**self.labels, **self.local}


def assign(member: Member, plans: Plans, *, term: int) -> Manifest:
    """The manifest that `member` should hold: its present one, unless the content differs; then the next generation."""
    present = member.manifest or Manifest(member.id, term, 0)
    assignments = {
        deployment.pipeline: offer(deployment.pipeline, base, member, plans, present)
        for deployment in plans.deployments
        if (base := base_for(deployment, member, plans)) is not None
    }
    assignments = {name: replace(a, artifacts=plans.artifacts.get(a.digest, {})) for name, a in assignments.items()}
    asked = [a for a in plans.asks if member.id not in a.answered and a.selector.matches(member.name, member.selectable)]
    requests = {ask.id: ask.request for ask in asked[:REQUESTS_MAX]}
    wanted = replace(present, term=term, assignments=assignments, labels=dict(member.labels), requests=requests)
    return present if wanted == present else replace(wanted, generation=present.generation + 1)


def base_of(target: Target) -> Assignment:
    """What the deployment itself says, without rules."""
    settings = {name: Setting(value, DEPLOYMENT, target.by, target.reason) for name, value in target.params.items()}
    return Assignment(target.digest, target.number, settings, target.by, target.reason, target.at, target.gate)


def base_for(deployment: Deployment, member: Member, plans: Plans) -> Assignment | None:
    """What the deployment has for this node: of the first target that matches, or what came before while its rollout has not
    admitted the node."""
    target = deployment.target_for(member.name, member.selectable)
    if target is None:
        return None
    pace = plans.paces.get(target.rollout)
    if pace is None or member.id in pace.admitted:
        return base_of(target)
    if member.id in pace.before:
        return pace.before[member.id]
    return _kept(member.manifest.assignments.get(deployment.pipeline) if member.manifest else None)


def _kept(had: Assignment | None) -> Assignment | None:
    """Of an assignment what it was without rules, as far as it tells."""
    if had is None:
        return None
    own = {name: replace(s, generation=0) for name, s in had.params.items() if s.origin == DEPLOYMENT}
    return replace(had, params=own, lift=0)


def offer(pipeline: str, base: Assignment, member: Member, plans: Plans, present: Manifest) -> Assignment:
    """`base` with what the rules and the lifted bans make of it on this node."""
    settings = dict(base.params)
    for entry in matching_rules(pipeline, member, plans):
        settings[entry.name] = setting_of(entry)
    before = present.assignments.get(pipeline)
    known = before.params if before else {}
    dated = {name: _dated(setting, known.get(name), present.generation + 1) for name, setting in settings.items()}
    return replace(base, params=dated, lift=plans.lifts.get((pipeline, member.id, base.digest), 0))


def matching_rules(pipeline: str, member: Member, plans: Plans) -> list[Rule]:
    """Those for this node, the one that wins last."""
    mine = (rule for rule in plans.rules if rule.pipeline == pipeline)
    return sorted((r for r in mine if r.selector.matches(member.name, member.selectable)), key=lambda rule: rule.id)


def setting_of(rule: Rule) -> Setting:
    return Setting(rule.value, f"rule:{rule.id}", rule.by, rule.reason, force=rule.force, locked=rule.locked)


def _dated(setting: Setting, known: Setting | None, generation: int) -> Setting:
    """`setting` with the generation that first carried it: notes written since have seen it."""
    if known is not None and replace(known, generation=0) == setting:
        return known
    return replace(setting, generation=generation)


def newly_offered(member: Member, plans: Plans, after: Manifest) -> list[int]:
    """The rollouts whose version the step to `after` offers the node, which had another or other parameters."""
    before = member.manifest.assignments if member.manifest else {}
    found = []
    for deployment in plans.deployments:
        was, now = before.get(deployment.pipeline), after.assignments.get(deployment.pipeline)
        target = deployment.target_for(member.name, member.selectable)
        if now is None or target is None or not target.rollout or now.digest != target.digest:
            continue
        pace = plans.paces.get(target.rollout)
        if (pace is None or member.id in pace.admitted) and (was is None or _content(was) != _content(now)):
            found.append(target.rollout)
    return found


def _content(assignment: Assignment) -> tuple[str, dict[str, Scalar]]:
    return assignment.digest, {name: setting.value for name, setting in assignment.params.items()}


def is_about_requests(before: Manifest | None, after: Manifest) -> bool:
    """Whether the step from one manifest to the next changes only what the node is asked."""
    return before is not None and replace(before, generation=after.generation, requests=after.requests) == after


def changed_pipelines(before: Manifest | None, after: Manifest) -> dict[str, str]:
    """What the step from one manifest to the next does, in words, per pipeline."""
    old = before.assignments if before else {}
    words: dict[str, str] = {}
    for name in sorted(old.keys() | after.assignments.keys()):
        was, now = old.get(name), after.assignments.get(name)
        if was == now:
            continue
        if now is None:
            words[name] = "removed"
        elif was is None:
            words[name] = f"starts version {now.number}"
        elif was.digest != now.digest:
            words[name] = f"version {was.number} -> {now.number}"
        else:
            words[name] = _changed_params(was, now)
    return words


def _changed_params(was: Assignment, now: Assignment) -> str:
    names = sorted(n for n in was.params.keys() | now.params.keys() if was.params.get(n) != now.params.get(n))
    moves = []
    for name in names:
        old, new = was.params.get(name), now.params.get(name)
        moves.append(f"{name}: {'default' if old is None else old.value} -> {'default' if new is None else new.value}")
    tables = sorted(now.artifacts.items() - was.artifacts.items())
    moves += [f"another table {name}" if name in was.artifacts else f"table {name}" for name, _ in tables]
    return ", ".join(moves) or "same content, newly asked for"
