"""Files that say what should be: pipelines to register, deployments to bring in line; and what differs from what is."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from sqlalchemy.engine import Connection

from control_plane import deployments, effects, registry, rollouts, tables
from control_plane.deployment_file import DeploymentFile, as_lines, is_deployment, load_deployment, located
from control_plane.registry import Version
from pipelines.contract.errors import Problem, Refused, SpecError, TidewireError
from pipelines.contract.keys import Key
from pipelines.contract.spec import PipelineSpec
from pipelines.engine.plan import load_checked
from pipelines.tools.fmt import format_text


@dataclass(frozen=True)
class Declared:
    """What the files say, by file."""

    specs: Mapping[str, PipelineSpec]
    deployments: Mapping[str, DeploymentFile]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Present:
    """What there was before: canonical texts of the newest versions, and targets as lines."""

    versions: Mapping[str, str]
    targets: Mapping[str, list[str]]


def read_files(files: Sequence[tuple[str, str]]) -> Declared:
    """Raises `SpecError` with every problem of every file."""
    specs, found, problems = dict[str, PipelineSpec](), dict[str, DeploymentFile](), list[Problem]()
    for name, text in files:
        try:
            if is_deployment(text, name):
                found[name] = load_deployment(text, name)
            else:
                specs[name] = load_checked(text, name)
        except SpecError as error:
            problems += error.problems
    problems += _twice({name: spec.pipeline for name, spec in specs.items()}, "pipeline")
    problems += _twice({name: one.deployment for name, one in found.items()}, "deployment")
    if problems:
        raise SpecError(problems)
    return Declared(specs, found, dict(files))


def present(db: Connection, declared: Declared) -> Present:
    wanted = {spec.pipeline for spec in declared.specs.values()}
    newest = {version.pipeline: _text(version) for version in registry.newest_versions(db) if version.pipeline in wanted}
    return Present(newest, {one.deployment: _targets(db, one.deployment) for one in declared.deployments.values()})


def register(db: Connection, declared: Declared, author: Key, by: str, reason: str) -> list[dict[str, Any]]:
    rows = []
    for name, spec in declared.specs.items():
        version, new = registry.register(db, spec, author, by, reason)
        row = {"file": name, "pipeline": version.pipeline, "number": version.number, "digest": version.digest, "new": new}
        rows.append(row)
    return rows


def deploy(db: Connection, declared: Declared, by: str, reason: str, *, allow_empty: bool) -> list[dict[str, Any]]:
    """Bring each deployment in line with its file: a target that is new, or has another version or other parameters, begins a
    rollout; the others stay as they are. Raises `SpecError` with every problem and its place."""
    problems, resolved = list[Problem](), dict[str, list[Version]]()
    for name, one in declared.deployments.items():
        try:
            resolved[name] = _resolve(db, one)
        except SpecError as error:
            problems += [located(problem, declared.texts[name], name) for problem in error.problems]
    if problems:
        raise SpecError(problems)
    return [_deploy(db, name, one, resolved[name], by, reason, allow_empty) for name, one in declared.deployments.items()]


def difference(db: Connection, declared: Declared, before: Present) -> list[str]:
    """A unified diff from what there was to what there is now."""
    lines = list[str]()
    newest = {version.pipeline: version for version in registry.newest_versions(db)}
    for name, spec in declared.specs.items():
        old, new = before.versions.get(spec.pipeline, ""), _text(newest[spec.pipeline])
        lines += difflib.unified_diff(old.splitlines(), new.splitlines(), f"{spec.pipeline} (registered)", name, lineterm="")
    for name, one in declared.deployments.items():
        old_lines, new_lines = before.targets[one.deployment], _targets(db, one.deployment)
        title = f"deployment {one.deployment} (present)"
        lines += difflib.unified_diff(old_lines, new_lines, title, name, lineterm="", n=100)
    return lines


def _resolve(db: Connection, one: DeploymentFile) -> list[Version]:
    """The version of each target. Raises `SpecError` with the path of every one that there is not, or that does not fit."""
    versions, problems = list[Version](), list[Problem]()
    try:
        registry.find_version(db, one.deployment)
    except Refused as error:
        raise SpecError([Problem(error.cause, "deployment", error.hint)]) from None
    for index, target in enumerate(one.targets):
        path = f"targets[{index}]"
        try:
            version = registry.find_version(db, one.deployment, target.version if isinstance(target.version, int) else None)
        except Refused as error:
            problems.append(Problem(error.cause, f"{path}.version", error.hint))
            continue
        versions.append(version)
        try:
            registry.check_params(version, target.params)
            tables.check_deployable(db, version)
            registry.check_rules(db, version)
        except SpecError as error:
            problems += [Problem(p.message, f"{path}.params", p.hint) for p in error.problems]
        except TidewireError as error:
            problems.append(Problem(error.cause, path, error.hint))
    if problems:
        raise SpecError(dict.fromkeys(problems))
    return versions


def _deploy(
    db: Connection, name: str, one: DeploymentFile, versions: Sequence[Version], by: str, reason: str, allow_empty: bool
) -> dict[str, Any]:
    selectors = [target.selector for target in one.targets]
    empty = [s for s in selectors if not effects.matches_any(db, s)]
    if len(empty) == len(selectors):
        effects.check_matches(db, selectors[0], allow_empty=allow_empty)
    before = registry.plans(db)
    known = {str(t.selector): t for d in before.deployments if d.pipeline == one.deployment for t in d.targets}
    pacing, begun = one.rollout.pacing, []
    for target, version in zip(one.targets, versions, strict=True):
        values = {key: version.spec.params[key].check(value) for key, value in target.params.items()}
        old = known.get(target.select)
        if old is None or (old.digest, dict(old.params)) != (version.digest, values):
            rollout = rollouts.create(db, version, target.select, pacing, by, reason)
            begun.append(rollout)
            registry.replace_target(db, version, target.selector, values, by, reason, gate=pacing.gate, rollout=rollout.id)
        elif old.gate != pacing.gate:
            registry.set_gate(db, one.deployment, target.selector, pacing.gate)
    registry.keep_targets(db, one.deployment, selectors)
    deployments.remember(db, one.deployment, "apply", by, reason)
    rollouts.begin(db, begun, before, one.deployment)
    gone = sorted(known.keys() - {target.select for target in one.targets})
    return {
        "file": name,
        "pipeline": one.deployment,
        "changed": [rollout.selector for rollout in begun],
        "removed": gone,
        "rollouts": [rollout.id for rollout in begun],
        "matches_nothing": [str(s) for s in empty],
    }


def _targets(db: Connection, pipeline: str) -> list[str]:
    found = next((d for d in registry.deployments(db) if d.pipeline == pipeline), None)
    if found is None:
        return []
    return as_lines((str(t.selector), t.number, t.params, t.gate) for t in found.targets)


def _text(version: Version) -> str:
    """A version as its author would have written it."""
    plain = yaml.safe_dump(json.loads(version.canonical), sort_keys=False, allow_unicode=True, width=120)
    try:
        return format_text(plain, version.pipeline)
    except TidewireError:
        return plain


def _twice(names: Mapping[str, str], what: str) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for file, name in names.items():
        if name in first:
            yield Problem(f'the {what} "{name}" is in {first[name]} too', what, "keep one of them", 1, 1, file)
        first.setdefault(name, file)
