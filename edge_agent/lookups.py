"""Lookup tables from CSV files, read by the runner: at its start, and again when a file has changed and lies still."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256
from pipelines.contract.language.lookups import LOOKUP_BYTES_MAX
from pipelines.engine.lookup_csv import read_table

_Stamp = tuple[int, int, int]


@dataclass
class _File:
    path: str
    table: pa.Table = field(default_factory=lambda: pa.table({}))
    digest: str = ""
    stamp: _Stamp | None = None  # of what was read
    seen: _Stamp | None = None  # at the last look


class LookupFiles:
    """`tables` hold texts as they stand in the files; the plan types them. `digests` are those of the files' bytes."""

    def __init__(self, paths: Mapping[str, str], may_read: Callable[[str], bool]) -> None:
        """Raises `Refused` when one cannot be read: a pipeline does not start without its tables."""
        self._may_read, self.paths = may_read, dict(paths)
        self._files = {name: self._read(name, _File(path)) for name, path in paths.items()}

    @property
    def tables(self) -> dict[str, pa.Table]:
        return {name: file.table for name, file in self._files.items()}

    @property
    def digests(self) -> dict[str, str]:
        return {name: file.digest for name, file in self._files.items()}

    def look(self) -> dict[str, tuple[pa.Table, str] | Refused]:
        """What the files that changed since they were read, and not since the last look, hold now."""
        found: dict[str, tuple[pa.Table, str] | Refused] = {}
        for name, file in self._files.items():
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
            data, file.stamp = self._bytes(file.path)
            file.table = read_table(data)
        except Refused:
            raise
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise Refused(f"{why}", op=f"read lookup {name}", place=file.path, hint="a CSV file with a header line") from None
        file.seen, file.digest = file.stamp, sha256(data)
        return file

    def _bytes(self, path: str) -> tuple[bytes, _Stamp]:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not self._may_read(str(Path(f"/proc/self/fd/{opened.fileno()}").readlink())):
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
