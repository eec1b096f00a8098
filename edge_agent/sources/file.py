"""Records of files: follows growing and new ones, survives rotation by rename or truncation, resumes by position.

A file is known by its inode and the digest of its first bytes, so a rename is no new file and a reused inode is no old one; one
that was packed meanwhile is known by what it unpacks to. Only whole records are handed on; the last one may lack its end where
no more can come: with `until_eof`, or when the file's path leads to another file by now.
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

from edge_agent.sources import Block, SourceContext
from edge_agent.sources.stream import MAGIC_BYTES, Stream, compression_of, open_stream
from pipelines.contract.errors import TidewireError
from pipelines.contract.language.sources import Source as SourceSpec
from pipelines.engine.batch import parse_header
from pipelines.engine.records.framing import Framed, open_framer

BLOCK_BYTES = 1792 * 1024  # larger ones cost memory (I9), smaller ones what each batch costs
LOOKS_MAX = 16  # blocks without a record, as within one that is too long, before another file has its turn
HEAD_BYTES_MAX = 1024
RESCAN_S = 1.0  # a new file is noticed within this time; at once where its folder is known without a pattern
GONE_S = 10.0  # a writer may go on for this long in a file that was renamed under it
GONE_MAX = 32  # files remembered after their end: one of them may come again packed


@dataclass(frozen=True)
class FilePosition:
    """How far one file was read. `skipping`: what the framer needs while it passes over a record that is too long. `raw`: where
    the file is unpacked or re-encoded, how much of the file itself was read; `offset` counts in what comes of it then."""

    inode: int
    offset: int = 0
    head: str = ""  # SHA-256 of the first `head_bytes` of the file itself
    head_bytes: int = 0
    header: tuple[str, ...] = ()
    skipping: int = 0
    raw: int | None = None

    @property
    def size_min(self) -> int:
        """A file that is smaller was cut."""
        return self.offset if self.raw is None else self.raw


@dataclass
class _File:
    """An open file. `stream` is None until its first bytes tell how it is packed. `gone_at_s`: since when its path leads
    elsewhere; `GONE_S` later it is closed at its end. `end` and `end_at_s`: how far it reached, and since when."""

    path: str
    fd: int
    at: FilePosition
    stream: Stream | None = None
    gone_at_s: float | None = None
    is_read: bool = False
    end: int = 0
    end_at_s: float = 0.0

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def advance(self, count: int, skipping: int) -> None:
        taken = self.stream.taken if self.stream else None
        at = replace(self.at, offset=self.at.offset + count, skipping=skipping, raw=taken)
        if at.head_bytes < HEAD_BYTES_MAX:
            length = min(at.size_min, HEAD_BYTES_MAX)
            at = replace(at, head=_head(self.fd, length), head_bytes=length)
        self.at = at

    def start_again(self) -> None:
        self.at, self.stream, self.is_read = FilePosition(self.at.inode), None, False

    def is_quiet(self, end: int, for_s: float) -> bool:
        """Whether nothing came behind `end` for this long."""
        if end != self.end:
            self.end, self.end_at_s = end, time.monotonic()
        return time.monotonic() >= self.end_at_s + for_s

    @property
    def is_done(self) -> bool:
        """Whether all that lies in it now was handed on."""
        if self.stream is None or self.stream.taken is None:
            return self.at.raw is None and self.size <= self.at.offset
        return self.is_read and (self.size <= self.stream.taken or bool(self.stream.trouble))

    @property
    def has_ended(self) -> bool:
        """Whether no more records can come."""
        return self.gone_at_s is not None and time.monotonic() >= self.gone_at_s + GONE_S


class FileSource:
    def __init__(self, spec: SourceSpec, position: Mapping[str, Any], context: SourceContext) -> None:
        assert spec.file is not None
        self._patterns = spec.file.path
        self._unpacks = spec.file.compression == "auto"
        self._encoding = spec.encoding
        self._csv = spec.decode.csv
        self._framer = open_framer(spec.framing)
        multiline = spec.framing.multiline if spec.framing else None
        self._flush_after_s = multiline.flush_after / 1e6 if multiline else None
        self._context = context
        self._resume = {path: _position(entry) for path, entry in position.get("files", {}).items()}
        self._gone = {path: _position(entry) for path, entry in position.get("gone", {}).items()}
        self._files: list[_File] = []
        self._next_scan_s = 0.0
        self._folders = sorted(
            {
                str(Path(pattern).expanduser().parent)
                for pattern in self._patterns
                if not glob.has_magic(str(Path(pattern).parent))
            }
        )
        self._folder_times: list[int] = []
        self._refused: list[str] = []
        self._scan()
        if context.until_eof and not self._files:
            hint = "check the path; it is relative to where the agent was started"
            raise TidewireError(self.trouble(), op="open source", hint=hint)

    @property
    def position(self) -> dict[str, Any]:
        """By path; a file that has lost its path to another one has its inode added. `gone`: files read to their end, closed."""
        files: dict[str, Any] = {}
        for file in self._files:
            files[file.path if file.gone_at_s is None else f"{file.path}#{file.at.inode}"] = asdict(file.at)
        return {"files": files, **({"gone": {path: asdict(at) for path, at in self._gone.items()}} if self._gone else {})}

    @property
    def exhausted(self) -> bool:
        return self._context.until_eof and all(file.is_done for file in self._files)

    def trouble(self) -> str:
        if self._refused:
            return f"local policy or permissions do not allow reading {', '.join(self._refused[:3])}"
        damaged = [f"{file.path}: {file.stream.trouble}" for file in self._files if file.stream and file.stream.trouble]
        if damaged:
            return "; ".join(damaged[:3])
        return "" if self._files else f"no file matches {', '.join(self._patterns)}"

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        for file in self._files:
            os.close(file.fd)
        self._files = []

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
        """The next records of one file; headers and what is no record are passed on the way."""
        for _ in range(LOOKS_MAX):
            if file.size < file.at.size_min:
                file.start_again()
            stream = self._stream(file)
            if stream is None:
                return None
            data, is_end, framed = self._look(file, stream)
            if not framed.consumed:
                file.is_read = is_end and (not data or bool(stream.trouble))  # a beginning that was cut off is no record
                return None
            file.advance(framed.consumed, framed.skipping)
            file.is_read = is_end and framed.consumed == len(data)
            lines = framed.lines
            if lines is not None and len(lines) and self._csv and self._csv.columns is None and not file.at.header:
                file.at = replace(file.at, header=parse_header(lines.text[0].as_py().encode(), self._csv.delimiter))
                lines = lines.without_first()
            if lines is not None and len(lines):
                return Block(lines, file.path, self._columns(file))
        return None

    def _look(self, file: _File, stream: Stream) -> tuple[bytes, bool, Framed]:
        """A block, or more where a record needs it; whether nothing lies behind it now; the records in it."""
        size = BLOCK_BYTES // 2 if self._context.is_small else BLOCK_BYTES
        while True:
            data, is_end = stream.read(file.at.offset, size)
            framed = self._framed(file, data, is_end) if data else Framed(None, 0)
            if framed.consumed or is_end or not data or size >= 4 * self._framer.max_bytes:
                return data, is_end, framed
            size *= 2

    def _framed(self, file: _File, data: bytes, is_end: bool) -> Framed:
        base, skipping = file.at.offset, file.at.skipping
        is_whole = file.stream is not None and not file.stream.trouble
        is_last = is_end and is_whole and (self._context.until_eof or file.has_ended)
        framed = self._framer.frame(data, base, skipping, is_last=is_last)
        if framed.consumed or not is_end or self._flush_after_s is None:
            return framed
        whole = data[: data.rfind(b"\n") + 1]
        if whole and file.is_quiet(base + len(data), self._flush_after_s):
            return self._framer.frame(whole, base, skipping, is_last=True)
        return framed

    def _stream(self, file: _File) -> Stream | None:
        """The stream of a file, None while it is too short to tell how it is packed."""
        if file.stream is None:
            kind = compression_of(os.pread(file.fd, MAGIC_BYTES, 0)) if self._unpacks else ""
            if kind is None and not self._context.until_eof and not file.has_ended:
                return None
            file.stream = open_stream(file.fd, kind or "", self._encoding)
        return file.stream

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
        fresh: list[_File] = []
        for path in self._found():
            file = self._file_at(path, before, inodes)
            if file is not None:
                inodes.add(file.at.inode)
                (fresh if self._is_packed(file) else self._files).append(file)
        for file in before:
            self._keep_to_its_end(file)
        self._files += self._find_moved(inodes)
        self._gone |= {path: at for path, at in self._resume.items() if self._may_come_packed(at)}
        self._resume = {}
        self._files += [file for file in fresh if self._has_own_content(file)]
        self._gone = dict(list(self._gone.items())[-GONE_MAX:])

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
            file.start_again()
        return file

    def _keep_to_its_end(self, file: _File) -> None:
        """A file renamed out of sight, or deleted."""
        if file.gone_at_s is None:
            file.gone_at_s = time.monotonic()
        if not file.has_ended or not file.is_done:
            self._files.append(file)
            return
        os.close(file.fd)
        if self._may_come_packed(file.at):
            self._gone[f"{file.path}#{file.at.inode}"] = file.at

    # -- files that were packed after they were read

    def _may_come_packed(self, at: FilePosition) -> bool:
        return self._unpacks and at.raw is None and at.head_bytes > 0 and any(map(glob.has_magic, self._patterns))

    def _is_packed(self, file: _File) -> bool:
        """Whether this is a packed file of which nothing was read yet."""
        return (
            self._unpacks
            and self._encoding == "utf-8"
            and not file.at.offset
            and bool(compression_of(os.pread(file.fd, MAGIC_BYTES, 0)))
        )

    def _has_own_content(self, file: _File) -> bool:
        """False while the file is read that this one was made of; afterwards it goes on where that one ended."""
        stream = self._stream(file)
        start, is_end = stream.read(0, HEAD_BYTES_MAX) if stream else (b"", True)
        is_too_short = is_end and len(start) < HEAD_BYTES_MAX and stream is not None and bool(stream.trouble)
        is_being_made = is_too_short and not self._context.until_eof
        if is_being_made or any(_is_copy(start, file.path, other.path, other.at) for other in self._files):
            os.close(file.fd)
            return False
        for path, at in self._gone.items():
            if _is_copy(start, file.path, path.partition("#")[0], at):
                file.at = replace(file.at, offset=at.offset, header=at.header, skipping=at.skipping, raw=0)
        return True

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
    return FilePosition(**{**entry, "header": tuple(entry.get("header", ())), "skipping": int(entry.get("skipping", 0))})


def _is_copy(start: bytes, path: str, other_path: str, other: FilePosition) -> bool:
    """Whether a packed file at `path` that unpacks to `start` was made of the other one: by its first KiB, or by name and content
    where that is shorter."""
    if other.raw is not None or not 0 < other.head_bytes <= len(start):
        return False
    is_named_so = path.startswith(f"{other_path}.") or path == other_path
    return (other.head_bytes == HEAD_BYTES_MAX or is_named_so) and _digest(start[: other.head_bytes]) == other.head


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
    return _digest(os.pread(fd, length, 0))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _continues(fd: int, at: FilePosition) -> bool:
    """Whether the file still begins with what was read of it."""
    return os.fstat(fd).st_size >= at.size_min and (not at.head_bytes or _head(fd, at.head_bytes) == at.head)
