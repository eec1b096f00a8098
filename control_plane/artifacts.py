"""Artifacts: signed, numbered bytes that nodes pull by digest; which version names which; and the chunks that go out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import store
from control_plane.store import now_us
from control_plane.times import iso
from pipelines.contract.artifact import CHUNK_BYTES_MAX, LOOKUP_TABLE, PIPELINE_VERSION, Artifact, parse_reference
from pipelines.contract.errors import Refused
from pipelines.contract.keys import Key
from pipelines.contract.messages import ArtifactReply, ArtifactRequest
from pipelines.contract.spec import PipelineSpec

CACHE_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Registered:
    """One artifact, without its bytes. `at` is microseconds since 1970."""

    name: str
    number: int
    kind: str
    digest: str
    size: int
    by: str
    reason: str
    at: int

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"

    def as_json(self) -> dict[str, Any]:
        return {**{field: getattr(self, field) for field in self.__slots__}, "at": iso(self.at)}


def put(db: Connection, name: str, data: bytes, author: Key, by: str, reason: str) -> tuple[Registered, bool]:
    """`data` as the newest table of `name`, and whether that is news: what the newest one holds already keeps its number."""
    made, newest = Artifact.sign(LOOKUP_TABLE, data, author), _one(db, name)
    if newest is not None and newest.digest == made.digest:
        return newest, False
    row = Registered(name, newest.number + 1 if newest else 1, made.kind, made.digest, len(data), by, reason, now_us())
    values = {field: getattr(row, field) for field in Registered.__slots__}
    db.execute(store.artifacts.insert().values(**values, data=data, signature=made.signature))
    store.record(db, by, "artifact put", str(row), row.digest, reason)
    return row, True


def find(db: Connection, reference: str) -> Registered:
    """`NAME` or `NAME@N`. Raises `Refused` naming what there is."""
    try:
        name, number = parse_reference(reference)
    except ValueError as error:
        raise Refused(str(error), op="find artifact", place=reference) from None
    found = _one(db, name, number)
    if found is not None:
        return found
    if newest := _one(db, name):
        raise Refused(f"there is no {reference}", op="find artifact", hint=f"its numbers are 1 to {newest.number}")
    names = ", ".join(sorted(db.scalars(sa.select(store.artifacts.c.name).distinct()))) or "none yet"
    hint = f"tidewire artifact put {name} FILE.csv; known artifacts: {names}"
    raise Refused(f"there is no artifact {name!r}", op="find artifact", hint=hint)


def listed(db: Connection, name: str = "") -> list[Registered]:
    """All numbers of `name`, the newest first; without one the newest of each, by name."""
    c = store.artifacts.c
    if name:
        find(db, name)
        rows = db.execute(sa.select(*_columns()).where(c.name == name).order_by(c.number.desc()))
        return [Registered(*row) for row in rows]
    newest = sa.select(c.name, sa.func.max(c.number).label("number")).group_by(c.name).subquery()
    here = sa.and_(c.name == newest.c.name, c.number == newest.c.number)
    return [Registered(*row) for row in db.execute(sa.select(*_columns()).join(newest, here).order_by(c.name))]


def note_references(db: Connection, digest: str, spec: PipelineSpec) -> None:
    """Keep which artifacts a version names."""
    for reference in {lookup.artifact for lookup in spec.lookups.values() if lookup.artifact}:
        db.execute(store.version_artifacts.insert().values(version=digest, reference=reference))


def named(db: Connection) -> dict[str, dict[str, str]]:
    """Version -> what it calls an artifact -> digest of the bytes that this means now."""
    c, found = store.artifacts.c, dict[str, dict[str, str]]()
    digests = {(row.name, row.number): row.digest for row in db.execute(sa.select(c.name, c.number, c.digest))}
    newest: dict[str, int] = {}
    for name, number in digests:
        newest[name] = max(newest.get(name, 0), number)
    for version, reference in db.execute(sa.select(store.version_artifacts)):
        name, number = parse_reference(reference)
        digest = digests.get((name, number or newest.get(name, 0)))
        found.setdefault(version, {}).update({reference: digest} if digest else {})
    return found


@dataclass(frozen=True, slots=True)
class Whole:
    """An artifact with its bytes, and the number that it has among those of its name."""

    kind: str
    data: bytes
    signature: bytes
    number: int


def whole(db: Connection, digest: str) -> Whole | None:
    """A version or a table."""
    c = store.versions.c
    row = db.execute(sa.select(c.canonical, c.signature, c.number).where(c.digest == digest).order_by(c.number.desc())).first()
    if row is not None:
        return Whole(PIPELINE_VERSION, *row)
    t = store.artifacts.c
    found = db.execute(sa.select(t.kind, t.data, t.signature, t.number).where(t.digest == digest).limit(1)).first()
    return Whole(*found) if found is not None else None


class Chunks:
    """Answers nodes out of a bounded memory: bytes do not leave the store once for each of their chunks (I9)."""

    def __init__(self, load: Callable[[str], Awaitable[Whole | None]], bytes_max: int = CACHE_BYTES) -> None:
        self._load, self._max = load, bytes_max
        self._held: OrderedDict[str, Whole] = OrderedDict()  # the one used last at the end

    async def answer(self, node: str, data: bytes) -> tuple[ArtifactReply, list[bytes]]:
        """One chunk of an artifact. They hold no secrets: every enrolled node may read every one."""
        request, _ = ArtifactRequest.unpack(data)
        found = await self._get(request.digest)
        if found is None or not 0 <= request.offset <= len(found.data):
            error = f"there is no artifact {request.digest} from {request.offset} on"
            return ArtifactReply(request.nonce, error=error, node=node), []
        chunk = found.data[request.offset : request.offset + min(max(request.length, 1), CHUNK_BYTES_MAX)]
        return ArtifactReply(request.nonce, found.kind, len(found.data), found.number, node=node), [chunk, found.signature]

    async def _get(self, digest: str) -> Whole | None:
        found = self._held.get(digest)
        if found is None:
            found = await self._load(digest)
            if found is None:
                return None
        self._held[digest] = found
        self._held.move_to_end(digest)
        while sum(len(one.data) for one in self._held.values()) > self._max:
            self._held.popitem(last=False)
        return found


def _columns() -> list[sa.Column[Any]]:
    return [store.artifacts.c[field] for field in Registered.__slots__]


def _one(db: Connection, name: str, number: int | None = None) -> Registered | None:
    c = store.artifacts.c
    wanted = [c.name == name, *([c.number == number] if number is not None else [])]
    row = db.execute(sa.select(*_columns()).where(*wanted).order_by(c.number.desc()).limit(1)).first()
    return Registered(*row) if row is not None else None
