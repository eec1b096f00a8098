"""Lookup tables that are artifacts: what is in one, which versions and nodes use it, and whether they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import artifacts, fleet, registry, store
from pipelines.contract.artifact import parse_reference
from pipelines.contract.errors import Problem, Refused, SpecError
from pipelines.contract.spec import PipelineSpec
from pipelines.engine.lookup_csv import read_table
from pipelines.engine.plan import compile_plan, example_params

_HEAD_BYTES = 1024 * 1024  # of a table, as much of it as a deploy looks at: all of it was looked at when it was put
_ROWS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class User:
    """A version of a pipeline that names an artifact, as `reference`."""

    pipeline: str
    number: int
    reference: str
    spec: PipelineSpec
    is_deployed: bool

    def __str__(self) -> str:
        return f"{self.pipeline}@{self.number}"


def users(db: Connection, name: str) -> list[User]:
    """The versions for which the newest table of `name` is: those that targets or manifests name, and the newest of each
    pipeline."""
    c = store.version_artifacts.c
    naming = [(row.version, row.reference) for row in db.execute(sa.select(c.version, c.reference)) if row.reference == name]
    deployed = {target.digest for deployment in registry.deployments(db) for target in deployment.targets}
    for node in fleet.all_nodes(db) if naming else ():
        deployed |= {assignment.digest for assignment in (node.manifest.assignments.values() if node.manifest else ())}
    newest = {version.digest for version in registry.newest_versions(db)} if naming else set()
    found = []
    for digest, reference in naming:
        version = registry.find_digest(db, digest)
        if version is not None and (digest in deployed or digest in newest):
            found.append(User(version.pipeline, version.number, reference, version.spec, digest in deployed))
    return sorted(found, key=lambda user: (user.pipeline, user.number))


def misfit(spec: PipelineSpec, tables: Mapping[str, pa.Table]) -> Sequence[Problem]:
    """Why the pipeline cannot use `tables` (reference -> rows as texts); nothing when it can. Other tables are not looked at."""
    given = {name: tables.get(lookup.artifact or "") for name, lookup in spec.lookups.items() if lookup.rows is None}
    try:
        compile_plan(spec, example_params(spec), lookups=given)
    except SpecError as error:
        return error.problems
    return ()


def check_users(users: Sequence[User], table: pa.Table) -> list[str]:
    """Raise `SpecError` with every reason why a version that is deployed could not use `table`; the same of other versions as
    warnings."""
    problems, warnings = list[Problem](), list[str]()
    for user in users:
        for problem in misfit(user.spec, {user.reference: table}):
            if user.is_deployed:
                problems.append(Problem(problem.message, f"{user} {problem.path}", problem.hint or "nothing was changed"))
            else:
                warnings.append(f"{user}, which is deployed nowhere, cannot use it: {problem.path}: {problem.message}")
    pa.default_memory_pool().release_unused()  # a large table was typed once for each of them
    if problems:
        raise SpecError(problems)
    return warnings


def checked_name(name: str) -> str:
    """A name that a new artifact may have. Raises `Refused`."""
    try:
        if parse_reference(name)[1] is None:
            return name
    except ValueError:
        pass
    hint = "letters, digits, _ and -, at most 63; the number is given by the control plane"
    raise Refused(f"{name!r} is no name for an artifact", op="artifact put", hint=hint)


def check_deployable(db: Connection, version: registry.Version) -> None:
    """Raise unless every artifact that `version` names is there and fits it."""
    tables = {}
    for reference in sorted({lookup.artifact for lookup in version.spec.lookups.values() if lookup.artifact}):
        try:
            found = artifacts.find(db, reference)
        except Refused as error:
            cause = f"it looks things up in {reference}: {error.cause}"
            raise Refused(cause, op="deploy", place=f"{version.pipeline}@{version.number}", hint=error.hint) from None
        whole = artifacts.whole(db, found.digest)
        assert whole is not None, "it was found"
        data = whole.data
        tables[reference] = read_table(data if len(data) <= _HEAD_BYTES else data[: data.rfind(b"\n", 0, _HEAD_BYTES) + 1])
    problems = misfit(version.spec, tables) if tables else ()
    if problems:
        raise SpecError(
            Problem(problem.message, f"{version.pipeline}@{version.number} {problem.path}", problem.hint) for problem in problems
        )


def read_csv(data: bytes, place: str) -> pa.Table:
    """A table that was handed in. Raises `Refused`."""
    try:
        data.decode()
        return read_table(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = "save it as UTF-8"
        raise Refused(f"line {line} is not UTF-8", op="artifact put", place=place, hint=hint) from None
    except ValueError as error:
        hint = "a CSV file in UTF-8 with a header line"
        raise Refused(str(error), op="artifact put", place=place, hint=hint) from None


def shown(data: bytes) -> dict[str, Any]:
    """What is in a table, for people."""
    table = read_table(data)
    rows = table.slice(0, _ROWS_SHOWN).to_pylist()
    return {"columns": table.column_names, "rows": table.num_rows, "first": [list(row.values()) for row in rows]}


def use(db: Connection, digest: str) -> list[dict[str, Any]]:
    """The nodes that should have these bytes or do: `{node, pipeline, wanted, in_use}`."""
    rows = []
    for node in fleet.all_nodes(db):
        manifest = node.manifest.assignments if node.manifest else {}
        for pipeline in sorted(manifest.keys() | node.reported.keys()):
            wanted = manifest[pipeline].artifacts.values() if pipeline in manifest else ()
            has = node.reported[pipeline].artifacts.values() if pipeline in node.reported else ()
            if digest in wanted or digest in has:
                row = {"node": node.name, "pipeline": pipeline, "wanted": digest in wanted, "in_use": digest in has}
                rows.append(row)
    return rows
