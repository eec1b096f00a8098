"""Lines of files: follows growing and new ones, survives rotation by rename or truncation, resumes by position.

A file is known by its inode and the digest of its first bytes, so a rename is no new file and a reused inode is no old one. Only
whole lines are handed on; with `until_eof`, the last line may lack its line end.
"""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from edge_agent.sources import Block, SourceContext
from pipelines.contract.errors import TidewireError
from pipelines.contract.spec import Decode
from pipelines.contract.spec import FileSource as FileSpec
from pipelines.engine.decode import RECORD_BYTES_KEPT, RECORD_BYTES_MAX, Lines, frame_lines, parse_header

BLOCK_BYTES = 1024 * 1024
HEAD_BYTES_MAX = 256
RESCAN_S = 1.0  # a new file is noticed within this time


@dataclass(frozen=True)
class FilePosition:
    """How far one file was read. `skipping`: the middle of a record that is too long is being passed over."""

    inode: int
    offset: int = 0
    head: str = ""  # SHA-256 of the first `head_bytes`
    head_bytes: int = 0
    header: tuple[str, ...] = ()
    skipping: bool = False


class FileSource:
    def __init__(self, spec: FileSpec, decode: Decode, position: Mapping[str, Any], context: SourceContext) -> None:
        self._patterns = spec.path
        self._csv = decode.csv
        self._context = context
        self._known = {
            path: FilePosition(**{**entry, "header": tuple(entry.get("header", ()))})
            for path, entry in position.get("files", {}).items()
        }
        self._open: dict[str, int] = {}
        self._next_scan_s = 0.0
        self._refused: list[str] = []
        self._scan()
        if context.until_eof and not self._open:
            raise TidewireError(
                self.trouble(), op="open source", hint="check the path; it is relative to where the agent was started"
            )

    @property
    def position(self) -> dict[str, Any]:
        return {"files": {path: asdict(entry) for path, entry in self._known.items()}}

    @property
    def exhausted(self) -> bool:
        return self._context.until_eof and all(
            os.fstat(fd).st_size <= self._known[path].offset for path, fd in self._open.items()
        )

    def trouble(self) -> str:
        if self._refused:
            return f"local policy or permissions do not allow reading {', '.join(self._refused[:3])}"
        return "" if self._open else f"no file matches {', '.join(self._patterns)}"

    def read(self) -> Block | None:
        if time.monotonic() >= self._next_scan_s:
            self._scan()
        for path, fd in list(self._open.items()):
            block = self._read_file(path, fd)
            if block is not None:
                return block
        return None

    def _read_file(self, path: str, fd: int) -> Block | None:
        """The next lines of one file; headers and over-long records are passed on the way."""
        while True:
            entry = self._known[path]
            size = os.fstat(fd).st_size
            if size < entry.offset:
                self._known[path] = FilePosition(entry.inode)
                continue
            data = os.pread(fd, BLOCK_BYTES, entry.offset) if size > entry.offset else b""
            if not data:
                return None
            end = data.rfind(b"\n") + 1
            is_last = self._context.until_eof and entry.offset + len(data) >= size
            if entry.skipping:
                newline = data.find(b"\n") + 1
                self._advance(path, fd, newline or len(data), skipping=not newline)
            elif not end and not is_last:
                if len(data) <= RECORD_BYTES_MAX:
                    return None
                return self._over_long(path, fd, data)
            elif self._csv and self._csv.columns is None and not entry.header:
                self._take_header(path, fd, data)
            else:
                return self._block(path, fd, data if is_last else data[:end])

    def _block(self, path: str, fd: int, data: bytes) -> Block | None:
        entry = self._known[path]
        lines = frame_lines(data, entry.offset)
        self._advance(path, fd, len(data))
        columns = tuple(self._csv.columns) if self._csv and self._csv.columns else entry.header
        return Block(lines, path, columns)

    def _over_long(self, path: str, fd: int, data: bytes) -> Block:
        entry = self._known[path]
        text = pa.array([data[:RECORD_BYTES_KEPT].decode(errors="replace")], pa.string())
        bad = {0: f"the record has more than {RECORD_BYTES_MAX} bytes"}
        self._advance(path, fd, len(data), skipping=True)
        return Block(Lines(text, pa.array([entry.offset], pa.int64()), bad), path, entry.header)

    def _take_header(self, path: str, fd: int, data: bytes) -> None:
        assert self._csv is not None
        end = data.find(b"\n") + 1 or len(data)
        self._advance(path, fd, end)
        self._known[path] = replace(self._known[path], header=parse_header(data[:end], self._csv.delimiter))

    def _advance(self, path: str, fd: int, count: int, *, skipping: bool = False) -> None:
        entry = self._known[path]
        entry = replace(entry, offset=entry.offset + count, skipping=skipping)
        if entry.head_bytes < HEAD_BYTES_MAX:
            length = min(entry.offset, HEAD_BYTES_MAX)
            entry = replace(entry, head=_head(fd, length), head_bytes=length)
        self._known[path] = entry

    def _scan(self) -> None:
        """Find the files that match, tell old from new, and open them. Files that are gone are forgotten once read to their end."""
        self._next_scan_s = time.monotonic() + RESCAN_S
        self._refused = []
        found = sorted(
            {os.path.abspath(p) for pattern in self._patterns for p in glob.glob(os.path.expanduser(pattern), recursive=True)}
        )
        for path in found:
            if os.path.isfile(path) and not self._is_open(path):
                self._open_file(path)
        for path in [p for p in self._open if p not in found and not self._has_more(p)]:
            os.close(self._open.pop(path))
            del self._known[path]

    def _open_file(self, path: str) -> None:
        if not self._context.may_read(os.path.realpath(path)):
            self._refused.append(path)
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._refused.append(path)
            return
        inode = os.fstat(fd).st_ino
        old = next((p for p, e in self._known.items() if e.inode == inode and _continues(fd, e)), None)
        if old is not None and old != path and old in self._open:
            os.close(self._open.pop(old))
        entry = self._known.pop(old) if old is not None else FilePosition(inode)
        stale = self._open.pop(path, None)
        if stale is not None:
            os.close(stale)
        self._known[path] = entry
        self._open[path] = fd

    def _is_open(self, path: str) -> bool:
        fd = self._open.get(path)
        if fd is None:
            return False
        return os.fstat(fd).st_ino == os.stat(path).st_ino or self._has_more(path)

    def _has_more(self, path: str) -> bool:
        return os.fstat(self._open[path]).st_size > self._known[path].offset


def _head(fd: int, length: int) -> str:
    return hashlib.sha256(os.pread(fd, length, 0)).hexdigest()


def _continues(fd: int, entry: FilePosition) -> bool:
    return os.fstat(fd).st_size >= entry.offset and _head(fd, entry.head_bytes) == (entry.head or hashlib.sha256(b"").hexdigest())
