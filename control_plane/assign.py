"""From deployments and rules to what should run on each node. Pure: no clock, no disk (I5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from control_plane.selector import Selector
from pipelines.contract.node_state import Assignment, Manifest, Scalar, Setting


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


@dataclass(frozen=True, slots=True)
class Plans:
    """Everything that people want of the fleet: what the manifests are folded from."""

    deployments: tuple[Deployment, ...] = ()
    rules: tuple[Rule, ...] = ()
    artifacts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # version -> name of a table -> digest


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
    ordered = sorted(plans.rules, key=lambda rule: rule.id)
    assignments = {
        deployment.pipeline: _assignment(deployment.pipeline, target, member, ordered, present)
        for deployment in plans.deployments
        if (target := deployment.target_for(member.name, member.selectable)) is not None
    }
    assignments = {name: replace(a, artifacts=plans.artifacts.get(a.digest, {})) for name, a in assignments.items()}
    wanted = replace(present, term=term, assignments=assignments, labels=dict(member.labels))
    return present if wanted == present else replace(wanted, generation=present.generation + 1)


def _assignment(pipeline: str, target: Target, member: Member, rules: list[Rule], present: Manifest) -> Assignment:
    settings = {name: Setting(value, "deployment", target.by, target.reason) for name, value in target.params.items()}
    for rule in rules:
        if rule.pipeline == pipeline and rule.selector.matches(member.name, member.selectable):
            settings[rule.name] = Setting(
                rule.value, f"rule:{rule.id}", rule.by, rule.reason, force=rule.force, locked=rule.locked
            )
    before = present.assignments.get(pipeline)
    known = before.params if before else {}
    dated = {name: _dated(setting, known.get(name), present.generation + 1) for name, setting in settings.items()}
    return Assignment(target.digest, target.number, dated, target.by, target.reason, target.at)


def _dated(setting: Setting, known: Setting | None, generation: int) -> Setting:
    """`setting` with the generation that first carried it: notes written since have seen it."""
    if known is not None and replace(known, generation=0) == setting:
        return known
    return replace(setting, generation=generation)


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
