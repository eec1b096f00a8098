"""Lookup tables from CSV, read by the runner: files of the node at its start, and again when one has changed and lies still;
artifacts when the agent gives their bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256
from pipelines.contract.language.lookups import LOOKUP_BYTES_MAX
from pipelines.engine.lookup_csv import read_table

_Stamp = tuple[int, int, int]


Given = Mapping[str, tuple[str, str]]  # what the pipeline calls an artifact -> path and digest of its bytes


@dataclass
class _File:
    path: str
    must_be: str = ""  # the digest of an artifact's bytes; "" for a file of the node
    table: pa.Table = field(default_factory=lambda: pa.table({}))
    digest: str = ""
    stamp: _Stamp | None = None  # of what was read
    seen: _Stamp | None = None  # at the last look


class LookupFiles:
    """`tables` hold texts as they stand in the files; the plan types them. `digests` are those of the files' bytes."""

    def __init__(
        self,
        paths: Mapping[str, str],
        may_read: Callable[[str], bool],
        artifacts: Mapping[str, str] = MappingProxyType({}),
        given: Given = MappingProxyType({}),
    ) -> None:
        """`artifacts`: table -> what it calls its artifact. Raises `Refused` when one cannot be read: a pipeline does not start
        without its tables."""
        self._may_read, self.paths, self._artifacts = may_read, dict(paths), dict(artifacts)
        self._files = {name: self._read(name, _File(path)) for name, path in paths.items()}
        for name, artifact in artifacts.items():
            if artifact not in given:
                raise Refused("the agent did not give it", op=f"read lookup {name}", place=artifact)
            self._files[name] = self._read(name, _File(*given[artifact]))

    @property
    def tables(self) -> dict[str, pa.Table]:
        return {name: file.table for name, file in self._files.items()}

    @property
    def digests(self) -> dict[str, str]:
        return {name: file.digest for name, file in self._files.items()}

    @property
    def in_use(self) -> dict[str, str]:
        """Artifact -> digest of the bytes in use."""
        return {artifact: self._files[name].digest for name, artifact in self._artifacts.items()}

    def changed(self, given: Given) -> Iterator[tuple[str, tuple[pa.Table, str] | Refused]]:
        """The tables whose artifact has other bytes now."""
        for name, artifact in self._artifacts.items():
            if artifact in given and given[artifact][1] != self._files[name].digest:
                try:
                    new = self._read(name, _File(*given[artifact]))
                except Refused as error:
                    yield name, error
                else:
                    yield name, (new.table, new.digest)

    def look(self) -> dict[str, tuple[pa.Table, str] | Refused]:
        """What the files that changed since they were read, and not since the last look, hold now."""
        found: dict[str, tuple[pa.Table, str] | Refused] = {}
        for name, file in self._files.items():
            if file.must_be:
                continue
            stamp = _stamp(file.path)
            is_still, file.seen = stamp == file.seen, stamp
            if stamp == file.stamp or not is_still:
                continue
            try:
                new = self._read(name, _File(file.path))
            except Refused as error:
                found[name] = error
                file.stamp = stamp  # told once
            else:
                file.stamp = new.stamp
                found[name] = new.table, new.digest
        return found

    def take(self, name: str, table: pa.Table, digest: str) -> None:
        """Have the table in use, and its digest."""
        self._files[name].table, self._files[name].digest = table, digest

    def _read(self, name: str, file: _File) -> _File:
        try:
            data, file.stamp = self._bytes(file)
            if file.must_be and sha256(data) != file.must_be:
                raise ValueError("it is damaged")
            file.table = read_table(data)
        except Refused:
            raise
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Refused(f"{why}", op=f"read lookup {name}", place=file.path, hint="a CSV file with a header line") from None
        file.seen, file.digest = file.stamp, sha256(data)
        return file

    def _bytes(self, file: _File) -> tuple[bytes, _Stamp]:
        path = file.path
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not file.must_be and not self._may_read(str(Path(f"/proc/self/fd/{opened.fileno()}").readlink())):
                raise Refused("policy.yaml does not allow to read it", place=path, hint="list it under files:")
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no regular file")
            data = opened.read(LOOKUP_BYTES_MAX + 1)
        if len(data) > LOOKUP_BYTES_MAX:
            raise ValueError(f"it has more than {LOOKUP_BYTES_MAX >> 20} MiB")
        return data, (status.st_mtime_ns, status.st_size, status.st_ino)


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - once a second
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
