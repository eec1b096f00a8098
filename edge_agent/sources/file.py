"""Lines of files: follows growing and new ones, survives rotation by rename or truncation, resumes by position.

A file is known by its inode and the digest of its first bytes, so a rename is no new file and a reused inode is no old one. Only
whole lines are handed on; the last line may lack its line end where no more can come: with `until_eof`, or when the file's path
leads to another file by now.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from edge_agent.sources import Block, SourceContext
from pipelines.contract.errors import TidewireError
from pipelines.contract.language.decoders import Decode
from pipelines.contract.language.sources import RECORD_BYTES_MAX
from pipelines.contract.language.sources import FileSource as FileSpec
from pipelines.engine.decode import Lines, parse_header
from pipelines.engine.framing import RECORD_BYTES_KEPT, frame_lines

BLOCK_BYTES = 1024 * 1024
HEAD_BYTES_MAX = 1024
RESCAN_S = 1.0  # a new file is noticed within this time; at once where its folder is known without a pattern
GONE_S = 10.0  # a writer may go on for this long in a file that was renamed under it


@dataclass(frozen=True)
class FilePosition:
    """How far one file was read. `skipping`: the middle of a record that is too long is being passed over."""

    inode: int
    offset: int = 0
    head: str = ""  # SHA-256 of the first `head_bytes`
    head_bytes: int = 0
    header: tuple[str, ...] = ()
    skipping: bool = False


@dataclass
class _File:
    """An open file. `gone_at_s`: since when its path leads elsewhere; `GONE_S` later it is closed at its end."""

    path: str
    fd: int
    at: FilePosition
    gone_at_s: float | None = None

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def advance(self, count: int, *, skipping: bool = False) -> None:
        at = replace(self.at, offset=self.at.offset + count, skipping=skipping)
        if at.head_bytes < HEAD_BYTES_MAX:
            length = min(at.offset, HEAD_BYTES_MAX)
            at = replace(at, head=_head(self.fd, length), head_bytes=length)
        self.at = at

    @property
    def has_ended(self) -> bool:
        """Whether no more lines can come."""
        return self.gone_at_s is not None and time.monotonic() >= self.gone_at_s + GONE_S


class FileSource:
    def __init__(self, spec: FileSpec, decode: Decode, position: Mapping[str, Any], context: SourceContext) -> None:
        self._patterns = spec.path
        self._csv = decode.csv
        self._context = context
        self._resume = {path: _position(entry) for path, entry in position.get("files", {}).items()}
        self._files: list[_File] = []
        self._next_scan_s = 0.0
        self._folders = sorted(
            {str(Path(pattern).expanduser().parent) for pattern in spec.path if not glob.has_magic(str(Path(pattern).parent))}
        )
        self._folder_times: list[int] = []
        self._refused: list[str] = []
        self._scan()
        if context.until_eof and not self._files:
            hint = "check the path; it is relative to where the agent was started"
            raise TidewireError(self.trouble(), op="open source", hint=hint)

    @property
    def position(self) -> dict[str, Any]:
        """By path; a file that has lost its path to another one has its inode added."""
        files: dict[str, Any] = {}
        for file in self._files:
            files[file.path if file.gone_at_s is None else f"{file.path}#{file.at.inode}"] = asdict(file.at)
        return {"files": files}

    @property
    def exhausted(self) -> bool:
        return self._context.until_eof and all(file.size <= file.at.offset for file in self._files)

    def trouble(self) -> str:
        if self._refused:
            return f"local policy or permissions do not allow reading {', '.join(self._refused[:3])}"
        return "" if self._files else f"no file matches {', '.join(self._patterns)}"

    def read(self) -> Block | None:
        if time.monotonic() >= self._next_scan_s or self._changed_at() != self._folder_times:
            self._scan()
        for file in self._files:
            try:
                block = self._read_file(file)
            except OSError as error:
                self._refused.append(f"{file.path} ({error.strerror})")
                continue
            if block is not None:
                return block
        return None

    def _read_file(self, file: _File) -> Block | None:
        """The next lines of one file; headers and over-long records are passed on the way."""
        while True:
            at, size = file.at, file.size
            if size < at.offset:
                file.at = FilePosition(at.inode)  # truncated: it starts again
                continue
            data = os.pread(file.fd, BLOCK_BYTES, at.offset) if size > at.offset else b""
            if not data:
                return None
            end = data.rfind(b"\n") + 1
            is_last = (self._context.until_eof or file.has_ended) and at.offset + len(data) >= size
            if at.skipping:
                newline = data.find(b"\n") + 1
                file.advance(newline or len(data), skipping=not newline)
            elif not end and not is_last:
                return self._over_long(file, data) if len(data) > RECORD_BYTES_MAX else None
            elif self._csv and self._csv.columns is None and not at.header:
                _take_header(file, data, self._csv.delimiter)
            else:
                return self._block(file, data if is_last else data[:end])

    def _block(self, file: _File, data: bytes) -> Block:
        lines = frame_lines(data, file.at.offset)
        file.advance(len(data))
        return Block(lines, file.path, self._columns(file))

    def _over_long(self, file: _File, data: bytes) -> Block:
        text = pa.array([data[:RECORD_BYTES_KEPT].decode(errors="replace")], pa.string())
        bad = {0: f"the record has more than {RECORD_BYTES_MAX} bytes"}
        lines = Lines(text, pa.array([file.at.offset], pa.int64()), bad)
        file.advance(len(data), skipping=True)
        return Block(lines, file.path, self._columns(file))

    def _columns(self, file: _File) -> tuple[str, ...]:
        return tuple(self._csv.columns) if self._csv and self._csv.columns else file.at.header

    # -- which files there are

    def _scan(self) -> None:
        """Find the files that match, tell old from new and renamed ones, and open what is new."""
        self._next_scan_s = time.monotonic() + RESCAN_S
        self._folder_times = self._changed_at()
        self._refused = []
        before, self._files = self._files, []
        inodes: set[int] = set()
        for path in self._found():
            file = self._file_at(path, before, inodes)
            if file is not None:
                inodes.add(file.at.inode)
                self._files.append(file)
        for file in before:
            self._keep_to_its_end(file)
        self._files += self._find_moved(inodes)
        self._resume = {}

    def _changed_at(self) -> list[int]:
        """When a file was last added to or taken from the folders: one stat each, cheap enough for every look."""
        return [_modified_ns(folder) for folder in self._folders]

    def _found(self) -> list[str]:
        patterns = [str(Path.cwd() / Path(pattern).expanduser()) for pattern in self._patterns]
        return sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)})  # noqa: PTH207 - absolute

    def _file_at(self, path: str, before: list[_File], inodes: set[int]) -> _File | None:
        """The file that `path` leads to, taken out of `before` or opened; None for one that another path led to already."""
        try:
            inode = Path(path).stat().st_ino
        except OSError:
            return None  # removed since it was found
        if inode in inodes:
            return None
        file = next((f for f in before if f.at.inode == inode), None)
        if file is None:
            return self._open(path)
        before.remove(file)
        file.path, file.gone_at_s = path, None
        if not _continues(file.fd, file.at):
            file.at = FilePosition(inode)
        return file

    def _keep_to_its_end(self, file: _File) -> None:
        """A file renamed out of sight, or deleted."""
        if file.gone_at_s is None:
            file.gone_at_s = time.monotonic()
        if file.has_ended and file.size <= file.at.offset:
            os.close(file.fd)
        else:
            self._files.append(file)

    def _open(self, path: str) -> _File | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._refused.append(path)
            return None
        status = os.fstat(fd)
        is_allowed = self._context.may_read(str(Path(f"/proc/self/fd/{fd}").readlink()))
        if not stat.S_ISREG(status.st_mode) or not is_allowed:
            os.close(fd)
            self._refused += [path] if not is_allowed else []
            return None
        return _File(path, fd, self._resumed(fd, status.st_ino))

    def _resumed(self, fd: int, inode: int) -> FilePosition:
        """Where an earlier process stopped in this file, wherever it lay then."""
        for path, at in self._resume.items():
            if at.inode == inode and _continues(fd, at):
                del self._resume[path]
                return at
        return FilePosition(inode)

    def _find_moved(self, inodes: set[int]) -> Iterator[_File]:
        """Files that were renamed out of the pattern while nobody looked, with lines still unread."""
        for path, at in list(self._resume.items()):
            for beside in _files_beside(path):
                if at.inode in inodes or beside.stat().st_ino != at.inode:
                    continue
                file = self._open(str(beside))
                if file is not None and file.at == at:
                    file.gone_at_s = time.monotonic()
                    yield file
                elif file is not None:
                    os.close(file.fd)


def _position(entry: Mapping[str, Any]) -> FilePosition:
    return FilePosition(**{**entry, "header": tuple(entry.get("header", ()))})


def _take_header(file: _File, data: bytes, delimiter: str) -> None:
    end = data.find(b"\n") + 1 or len(data)
    file.advance(end)
    if data[:end].strip():
        file.at = replace(file.at, header=parse_header(data[:end], delimiter))


def _files_beside(path: str) -> list[Path]:
    try:
        return [entry for entry in Path(path).parent.iterdir() if entry.is_file()]
    except OSError:
        return []


def _modified_ns(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116 - called at every look, a Path costs more than the stat
    except OSError:
        return 0


def _head(fd: int, length: int) -> str:
    return hashlib.sha256(os.pread(fd, length, 0)).hexdigest()


def _continues(fd: int, at: FilePosition) -> bool:
    """Whether the file still begins with what was read of it."""
    return os.fstat(fd).st_size >= at.offset and (not at.head_bytes or _head(fd, at.head_bytes) == at.head)
