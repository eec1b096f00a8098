"""What came by digest: versions within agent.db, tables as files in `artifacts/` beside it; and the beginnings of others.

The bytes of a file count once its row is in the table `artifacts`; until then, and when it fails its check, it is a beginning
(`.part`), which a fetch goes on from. A beginning is on disk before more is asked for, so its length says where to go on, also
after a power cut; the digest of the whole says whether that was right.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge_agent import reserve
from edge_agent.config import make_private_dir
from edge_agent.store import Store
from pipelines.contract import causes
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact, check_released, is_digest
from pipelines.contract.errors import Refused
from pipelines.contract.size import shown_size

_BLOCK = 1024 * 1024
_log = structlog.get_logger("artifacts")


@dataclass(frozen=True, slots=True)
class Held:
    """An artifact that is here, without its bytes."""

    digest: str
    kind: str
    number: int
    size: int
    signature: bytes

    @property
    def is_file(self) -> bool:
        return self.kind != PIPELINE_VERSION


class Beginning:
    """The first bytes of an artifact under way; used by one fetch at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0
        self._sum = hashlib.sha256()

    def load(self) -> None:
        """What a former life left."""
        if self._path.exists():
            with self._path.open("rb") as file:
                for block in iter(lambda: file.read(_BLOCK), b""):
                    self._sum.update(block)
                    self.offset += len(block)

    def append(self, data: bytes) -> None:
        """Returns when it is on disk. Raises `Refused` when the disk is full."""
        is_new = not self.offset
        with _full_disk_told(self._path), _opened(self._path, os.O_WRONLY | os.O_CREAT) as descriptor:
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], self.offset + written)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, self.offset)  # what was not written whole is asked for again
                raise
        if is_new:
            _sync_folder(self._path)
        self._sum.update(data)
        self.offset += len(data)

    def read(self) -> bytes:
        return self._path.read_bytes()

    @property
    def digest(self) -> str:
        return f"sha256:{self._sum.hexdigest()}"

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)
        self.offset, self._sum = 0, hashlib.sha256()


class Artifacts:
    def __init__(self, store: Store, data_dir: Path, author: str, budget_bytes: int) -> None:
        self._store, self._author, self.budget_bytes = store, author, budget_bytes
        self._folder = data_dir / "artifacts"
        self._held: dict[str, Held] = {}  # the one that came first at the beginning
        self._sound: set[str] = set()  # files whose bytes were looked at in this life
        self._needed: frozenset[str] = frozenset()

    async def load(self) -> None:
        """What the store knows. A file without a row may be whole, or not: a fetch finds out."""
        make_private_dir(self._folder)
        self._held = {held.digest: held for held in [Held(*row) for row in await self._store.artifacts()]}
        for path in list(self._folder.iterdir()):
            if path.suffix == "" and f"sha256:{path.name}" not in self._held:
                path.rename(path.with_suffix(".part"))
        for digest in [held.digest for held in self._held.values() if held.is_file and not self.path(held.digest).exists()]:
            await self._forget([digest])

    @property
    def held(self) -> dict[str, Held]:
        return dict(self._held)

    def path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise Refused("not a digest", op="artifact", place=digest[:100])
        return self._folder / digest.removeprefix("sha256:")

    def beginning(self, digest: str) -> Beginning:
        return Beginning(self.path(digest).with_suffix(".part"))

    def doubt(self, digests: Collection[str]) -> None:
        """Look at these bytes again before they are next used."""
        self._sound.difference_update(digests)

    async def tables(self, wanted: Collection[str]) -> dict[str, Path]:
        """Of the files that are wanted, those that are here and are what they should be (I13)."""
        found = {}
        for digest in wanted:
            held = self._held.get(digest)
            if held is None or not held.is_file:
                continue
            if digest not in self._sound:
                problem = await asyncio.to_thread(self._problem, held)
                if problem:
                    _log.error("a stored table is damaged; it is fetched again", digest=digest, reason=problem)
                    await self._forget([digest])
                    continue
                self._sound.add(digest)
            found[digest] = self.path(digest)
        return found

    def _problem(self, held: Held) -> str:
        """What is wrong with the bytes of a file; "" for nothing."""
        beginning = Beginning(self.path(held.digest))
        try:
            beginning.load()
            check_released(held.kind, held.digest, held.signature, self._author)
        except (OSError, Refused) as error:
            return str(error)
        return "" if beginning.digest == held.digest else f"its bytes have digest {beginning.digest}"

    async def finish(self, beginning: Beginning, digest: str, kind: str, number: int, signature: bytes) -> None:
        """The fetch is through: keep the bytes if they are those, throw them away if not (I13). Raises `Refused`."""
        check_released(kind, digest, signature, self._author)
        if beginning.digest != digest:
            _log.error("security: wrong bytes", digest=digest, found=beginning.digest)
            await asyncio.to_thread(beginning.discard)
            told = "the bytes are not those that were released; they are thrown away"
            raise Refused(told, op="fetch", place=digest, code=causes.SIGNATURE)
        if kind == PIPELINE_VERSION:
            artifact = Artifact(kind, await asyncio.to_thread(beginning.read), signature)
            await self._store.put_artifact(artifact, number)
            await asyncio.to_thread(beginning.discard)
        else:
            await asyncio.to_thread(self._settle_file, digest)
            await self._store.put_file(digest, kind, number, beginning.offset, signature)
            self._sound.add(digest)
        self._held.pop(digest, None)
        self._held[digest] = Held(digest, kind, number, beginning.offset, signature)

    def _settle_file(self, digest: str) -> None:
        path = self.path(digest)
        path.with_suffix(".part").replace(path)
        _sync_folder(path)

    # -- the budget

    def need(self, digests: Collection[str]) -> None:
        """What must stay: what assignments name, what is in use, and what may be gone back to. Beginnings of others go."""
        self._needed = frozenset(digests)
        with suppress(OSError):
            for path in self._folder.glob("*.part"):
                if f"sha256:{path.stem}" not in self._needed:
                    path.unlink(missing_ok=True)

    async def make_room(self, digest: str, size: int) -> None:
        """For an artifact of `size` bytes: what is not needed goes, the oldest first. Raises `Refused` (`disk`) without a change
        when that cannot be enough."""
        others = [held for held in self._held.values() if held.digest != digest]
        kept = sum(held.size for held in others if held.digest in self._needed)
        if kept + size > self.budget_bytes:
            left = max(self.budget_bytes - kept, 0)
            hint = f"artifacts_bytes in agent.yaml is {shown_size(self.budget_bytes)}"
            raise Refused(
                f"needs {shown_size(size)} for a table, {shown_size(left)} left for tables",
                op="fetch",
                code=causes.DISK,
                hint=hint,
            )
        dispensable = [held for held in others if held.digest not in self._needed]
        beginning = self.path(digest).with_suffix(".part")
        missing = size - (beginning.stat().st_size if beginning.exists() else 0)
        room = reserve.room_bytes(self._folder)
        if room + sum(held.size for held in dispensable if held.is_file) < missing:
            raise Refused(f"needs {shown_size(missing)} for a table, {shown_size(room)} free", op="fetch", code=causes.DISK)
        used = sum(held.size for held in others)
        while dispensable and (used + size > self.budget_bytes or room < missing):
            held = dispensable.pop(0)
            await self._forget([held.digest])
            used, room = used - held.size, room + (held.size if held.is_file else 0)

    async def _forget(self, digests: Collection[str]) -> None:
        """Rows first: a file without a row is only a beginning."""
        await self._store.forget_artifacts(digests)
        for digest in digests:
            self._held.pop(digest, None)
            self._sound.discard(digest)
            with suppress(OSError):  # without a row it is a beginning that nobody needs, looked at again at the next start
                await asyncio.to_thread(self.path(digest).unlink, missing_ok=True)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = causes.DISK if error.errno in (errno.ENOSPC, errno.EDQUOT) else causes.STORE_FULL
        raise Refused(error.strerror or str(error), op="fetch", place=str(path), code=code) from None


def _sync_folder(path: Path) -> None:
    with _opened(path.parent, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
