"""What exists and where it should run: append-only versions, one deployment per pipeline, parameter rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from control_plane import artifacts, requests, rollout_store, store
from control_plane.assign import Deployment, Plans, Rule, Target
from control_plane.lineage import WindowKey
from control_plane.selector import Selector, parse_selector
from control_plane.store import now_us
from control_plane.times import iso
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact
from pipelines.contract.errors import Problem, Refused, SpecError, TidewireError, WrongUsage
from pipelines.contract.keys import Key
from pipelines.contract.node_state import Gate, Scalar
from pipelines.contract.spec import PipelineSpec, load_spec

_DEFAULTS_MAX = 1000
_defaults: dict[str, Mapping[str, Scalar]] = {}  # by the digest of the version


@dataclass(frozen=True, slots=True)
class Version:
    """One registered version. `at` is microseconds since 1970."""

    pipeline: str
    number: int
    digest: str
    canonical: bytes
    signature: bytes
    by: str
    reason: str
    at: int

    @property
    def artifact(self) -> Artifact:
        return Artifact(PIPELINE_VERSION, self.canonical, self.signature)

    @property
    def spec(self) -> PipelineSpec:
        return _parsed(self.canonical)


def register(db: Connection, spec: PipelineSpec, author: Key, by: str, reason: str) -> tuple[Version, bool]:
    """The version that `spec` is, and whether it is new. The same content again keeps its number."""
    artifact = Artifact.sign(PIPELINE_VERSION, spec.canonical_bytes(), author)
    known = _one(db, store.versions.c.pipeline == spec.pipeline, store.versions.c.digest == artifact.digest)
    if known is not None:
        return known, False
    newest = db.scalar(sa.select(sa.func.max(store.versions.c.number)).where(store.versions.c.pipeline == spec.pipeline))
    version = Version(spec.pipeline, (newest or 0) + 1, artifact.digest, artifact.data, artifact.signature, by, reason, now_us())
    db.execute(store.versions.insert().values({name: getattr(version, name) for name in Version.__slots__}))
    artifacts.note_references(db, version.digest, spec)
    store.record(db, by, "apply", f"{version.pipeline}@{version.number}", version.digest, reason)
    return version, True


def find_version(db: Connection, pipeline: str, number: int | None = None) -> Version:
    """Version `number`, or the newest. Raises `Refused` naming what there is."""
    wanted = [store.versions.c.pipeline == pipeline]
    if number is not None:
        wanted.append(store.versions.c.number == number)
    found = _one(db, *wanted)
    if found is not None:
        return found
    names = sorted(db.scalars(sa.select(store.versions.c.pipeline).distinct()))
    if pipeline in names:
        newest = find_version(db, pipeline).number
        raise Refused(f"{pipeline} has no version {number}", op="find version", hint=f"its versions are 1 to {newest}")
    known = ", ".join(names) or "none yet: tidewire apply FILE"
    raise Refused(f"there is no pipeline {pipeline!r}", op="find version", hint=f"known pipelines: {known}")


def find_digest(db: Connection, digest: str) -> Version | None:
    return _one(db, store.versions.c.digest == digest)


def defaults(db: Connection, digest: str) -> Mapping[str, Scalar]:
    """Parameter -> default of a version that is assigned somewhere. The digest says what is in it, so this is looked up once."""
    if (found := _defaults.get(digest)) is None:
        version = find_digest(db, digest)
        assert version is not None, "versions are append-only"
        if len(_defaults) >= _DEFAULTS_MAX:
            _defaults.clear()
        found = _defaults[digest] = version.spec.defaults()
    return found


def tables_of(db: Connection, pipeline: str, digest: str) -> Mapping[str, WindowKey | None]:
    """The lake tables that a registered version writes, and what the rows of a window's table are revisions of; none for a
    version that is not registered."""
    version = _one(db, store.versions.c.pipeline == pipeline, store.versions.c.digest == digest)
    if version is None:
        return {}
    spec = version.spec
    windows = {name: WindowKey.of(window.by, spec.definition("windows", name)) for name, window in spec.windows.items()}
    return {table: windows.get(spec.sinks[sink].from_ or "") for sink, table in spec.lake_tables().items()}


def newest_versions(db: Connection) -> list[Version]:
    newest: dict[str, Version] = {}
    for row in db.execute(sa.select(store.versions).order_by(store.versions.c.pipeline, store.versions.c.number)):
        newest[row.pipeline] = _version(row)
    return list(newest.values())


def put_target(
    db: Connection,
    version: Version,
    selector: Selector,
    params: Mapping[str, Scalar],
    by: str,
    reason: str,
    *,
    gate: Gate | None = None,
    rollout: int = 0,
) -> None:
    """Have the nodes of `selector` run `version`. A selector already there keeps its place; a new one goes first, `all` last."""
    table, text = store.targets, str(selector)
    values = {"number": version.number, "digest": version.digest, "by": by, "reason": reason, "at": now_us()}
    values |= {"gate": json.dumps(asdict(gate or Gate())), "rollout": rollout}
    here = sa.and_(table.c.pipeline == version.pipeline, table.c.selector == text)
    present = db.execute(sa.select(table).where(here)).first()
    if present is not None:
        kept = {name: value for name, value in json.loads(present.params).items() if name in version.spec.params}
        merged = {**kept, **params}
        check_params(version, merged)
        db.execute(table.update().where(here).values(**values, params=json.dumps(merged)))
    else:
        edge = sa.func.max(table.c.position) + 1 if selector.is_everything else sa.func.min(table.c.position) - 1
        position = db.scalar(sa.select(edge).where(table.c.pipeline == version.pipeline))
        row = {"pipeline": version.pipeline, "selector": text, "position": position or 0, "params": json.dumps(dict(params))}
        db.execute(table.insert().values(**row, **values))
    store.record(db, by, "deploy", f"{version.pipeline}@{version.number}", text, reason)


def replace_target(
    db: Connection,
    version: Version,
    selector: Selector,
    params: Mapping[str, Scalar],
    by: str,
    reason: str,
    *,
    gate: Gate,
    rollout: int,
) -> None:
    """As `put_target`, with these parameters and no others."""
    here = sa.and_(store.targets.c.pipeline == version.pipeline, store.targets.c.selector == str(selector))
    db.execute(store.targets.delete().where(here))
    put_target(db, version, selector, params, by, reason, gate=gate, rollout=rollout)


def set_gate(db: Connection, pipeline: str, selector: Selector, gate: Gate) -> None:
    here = sa.and_(store.targets.c.pipeline == pipeline, store.targets.c.selector == str(selector))
    db.execute(store.targets.update().where(here).values(gate=json.dumps(asdict(gate))))


def keep_targets(db: Connection, pipeline: str, selectors: Sequence[Selector]) -> None:
    """Let the deployment have these targets and no others, in this order."""
    table = store.targets
    names = [str(selector) for selector in selectors]
    db.execute(table.delete().where(table.c.pipeline == pipeline, table.c.selector.not_in(names)))
    for position, name in enumerate(names):
        db.execute(table.update().where(table.c.pipeline == pipeline, table.c.selector == name).values(position=position))


def remove_target(db: Connection, pipeline: str, selector: Selector, by: str, reason: str) -> None:
    table = store.targets
    here = sa.and_(table.c.pipeline == pipeline, table.c.selector == str(selector))
    if db.execute(table.delete().where(here)).rowcount == 0:
        known = [str(row) for row in db.scalars(sa.select(table.c.selector).where(table.c.pipeline == pipeline))]
        hint = f"its targets are: {' | '.join(known)}" if known else "it is deployed nowhere"
        raise Refused(f"{pipeline} has no target {selector}", op="deploy --remove", hint=hint)
    store.record(db, by, "deploy --remove", pipeline, str(selector), reason)


def deployments(db: Connection) -> list[Deployment]:
    table, found = store.targets, dict[str, list[Target]]()
    for row in db.execute(sa.select(table).order_by(table.c.pipeline, table.c.position)):
        target = Target(
            parse_selector(row.selector),
            row.number,
            row.digest,
            json.loads(row.params),
            row.by,
            row.reason,
            iso(row.at),
            Gate(**json.loads(row.gate)),
            row.rollout,
        )
        found.setdefault(row.pipeline, []).append(target)
    return [Deployment(pipeline, tuple(targets)) for pipeline, targets in found.items()]


def plans(db: Connection) -> Plans:
    admissions, lifts = rollout_store.paces(db), rollout_store.lifts(db)
    return Plans(tuple(deployments(db)), tuple(rules(db)), artifacts.named(db), admissions, lifts, tuple(requests.asks(db)))


def set_rule(db: Connection, rule: Rule, until: int = 0) -> None:
    """Add `rule` in place of one for the same pipeline, name and selector. The store gives it a new id. It ends at `until`, in
    microseconds since 1970 of our clock; 0: it does not."""
    _delete_rule(db, rule.pipeline, rule.name, rule.selector)
    values: dict[str, object] = {
        "pipeline": rule.pipeline,
        "name": rule.name,
        "value": json.dumps(rule.value),
        "selector": str(rule.selector),
    }
    values |= {"force": rule.force, "locked": rule.locked, "by": rule.by, "reason": rule.reason, "at": now_us()}
    values["until"] = until
    db.execute(store.rules.insert().values(values))
    store.record(db, rule.by, "set", rule.pipeline, f"{rule.name}={json.dumps(rule.value)} on {rule.selector}", rule.reason)


def end_rules(db: Connection, now: int) -> int:
    """Take back the rules whose time is over, and tell how many there were."""
    table = store.rules
    over = sa.and_(table.c.until > 0, table.c.until <= now)
    for row in db.execute(sa.select(table).where(over)).all():
        words = f"{row.name}={row.value} on {row.selector}: its time is over"
        store.record(db, row.by, "unset", row.pipeline, words, row.reason)
    return db.execute(table.delete().where(over)).rowcount


def unset_rule(db: Connection, pipeline: str, name: str, selector: Selector, by: str, reason: str) -> None:
    if _delete_rule(db, pipeline, name, selector) == 0:
        known = [f"{rule.name} on {rule.selector}" for rule in rules(db) if rule.pipeline == pipeline]
        hint = f"its rules are: {' | '.join(known)}" if known else "it has no rules"
        raise Refused(f"{pipeline} has no rule for {name} on {selector}", op="unset", hint=hint)
    store.record(db, by, "unset", pipeline, f"{name} on {selector}", reason)


def rules(db: Connection) -> list[Rule]:
    return [
        Rule(
            row.id,
            row.pipeline,
            row.name,
            json.loads(row.value),
            parse_selector(row.selector),
            row.by,
            row.reason,
            force=row.force,
            locked=row.locked,
            until=iso(row.until) if row.until else "",
        )
        for row in db.execute(sa.select(store.rules).order_by(store.rules.c.id))
    ]


def parse_params(version: Version, words: Mapping[str, str]) -> dict[str, Scalar]:
    """Command-line words as values of the version's parameters. Raises `SpecError` with every wrong one."""
    problems, values = list[Problem](), dict[str, Scalar]()
    for name, word in words.items():
        param = version.spec.params.get(name)
        if param is None:
            problems.append(_unknown_param(version, name))
            continue
        try:
            values[name] = param.parse(word)
        except ValueError as error:
            problems.append(Problem(str(error), f"{version.pipeline} {name}", _range(version, name)))
    if problems:
        raise SpecError(problems)
    return values


def check_params(version: Version, values: Mapping[str, Scalar]) -> None:
    problems = []
    for name, value in values.items():
        param = version.spec.params.get(name)
        try:
            if param is None:
                problems.append(_unknown_param(version, name))
            else:
                param.check(value)
        except ValueError as error:
            problems.append(Problem(str(error), f"{version.pipeline}@{version.number} {name}", _range(version, name)))
    if problems:
        raise SpecError(problems)


def check_rules(db: Connection, version: Version) -> None:
    """Standing rules must hold for what is deployed: a value out of its range would stop the pipeline on the node."""
    standing = {r.name: r.value for r in rules(db) if r.pipeline == version.pipeline and r.name in version.spec.params}
    try:
        check_params(version, standing)
    except SpecError as error:
        raise TidewireError(
            f"a standing rule does not fit: {error}",
            op="deploy",
            place=f"{version.pipeline}@{version.number}",
            hint="tidewire set or unset it first",
        ) from None


def parse_reference(text: str) -> tuple[str, int | None]:
    """`NAME` or `NAME@N`."""
    name, at, number = text.partition("@")
    if not name or (at and not (number.isascii() and number.isdigit())):
        raise WrongUsage(f"{text!r} names no version", hint="write NAME for the newest, or NAME@N")
    return name, int(number) if at else None


def _unknown_param(version: Version, name: str) -> Problem:
    known = ", ".join(version.spec.params) or "none"
    return Problem(f"there is no parameter {name!r}", f"{version.pipeline}@{version.number}", f"its parameters are: {known}")


def _range(version: Version, name: str) -> str:
    param = version.spec.params[name]
    bounds = [f"{word} {value:g}" for word, value in (("min", param.min), ("max", param.max)) if value is not None]
    choices = [f"one of {', '.join(map(str, param.one_of))}"] if param.one_of else []
    return f"{name} is of type {param.type}" + "".join(f", {bound}" for bound in bounds + choices)


def _delete_rule(db: Connection, pipeline: str, name: str, selector: Selector) -> int:
    c = store.rules.c
    here = sa.and_(c.pipeline == pipeline, c.name == name, c.selector == str(selector))
    return db.execute(store.rules.delete().where(here)).rowcount


def _one(db: Connection, *where: sa.ColumnElement[bool]) -> Version | None:
    table = store.versions
    row = db.execute(sa.select(table).where(*where).order_by(table.c.number.desc()).limit(1)).first()
    return _version(row) if row is not None else None


def _version(row: Row[tuple[object, ...]]) -> Version:
    return Version(**{name: getattr(row, name) for name in Version.__slots__})


@lru_cache(maxsize=256)
def _parsed(canonical: bytes) -> PipelineSpec:
    return load_spec(canonical.decode())
