"""The text of a file as a stream of UTF-8: as it lies there, or unpacked and re-encoded on the way.

Positions are offsets in that stream. An unpacked stream can only go forward: what lies before a position is unpacked again and
thrown away. Nothing is ever unpacked whole, so a few bytes that unpack to terabytes cost time, not memory.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa

PIECE_BYTES = 256 * 1024  # unpacked at once
SKIP_BYTES_MAX = 8 * 1024 * 1024  # unpacked in one look at the stream: about 20 ms, the other sources wait meanwhile
XZ_MEMORY_MAX = 128 * 1024 * 1024
_RAW_BYTES = 64 * 1024
_MAGIC = {
    "gzip": b"\x1f\x8b\x08",
    "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh?1AY&SY",  # ? is a digit
    "xz": b"\xfd7zXZ\x00",
}
MAGIC_BYTES = 10


class Stream(Protocol):
    @property
    def taken(self) -> int | None:
        """How much of the file itself was read, None where that is what positions say."""

    @property
    def trouble(self) -> str:
        """Why the rest cannot be read, "" when it can."""

    def read(self, offset: int, size: int) -> tuple[bytes, bool]:
        """Up to `size` bytes from `offset` on, none when they are not there yet; and whether nothing lies behind them now."""


def compression_of(head: bytes) -> str | None:
    """What the first bytes of a file say: a kind, "" for none; None while they are too few to tell."""
    for kind, magic in _MAGIC.items():
        known = bytes(0x3F if i == 3 and kind == "bzip2" else byte for i, byte in enumerate(head[: len(magic)]))
        if magic.startswith(known):
            return kind if len(head) >= len(magic) else None
    return ""


def open_stream(fd: int, compression: str, encoding: str) -> Stream:
    if not compression and encoding == "utf-8":
        return Plain(fd)
    return Unpacked(fd, compression, encoding)


class Plain:
    taken = None
    trouble = ""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, offset: int, size: int) -> tuple[bytes, bool]:
        data = os.pread(self._fd, size, offset)
        return data, len(data) < size or offset + len(data) >= os.fstat(self._fd).st_size


class Unpacked:
    def __init__(self, fd: int, compression: str, encoding: str) -> None:
        self._fd, self._compression, self._encoding = fd, compression, encoding
        self.trouble = ""
        self._reopen()

    def _reopen(self) -> None:
        self._start, self._buffer = 0, bytearray()
        self._is_drained = self._is_damaged = False
        self._pieces: _Pieces = _UNPACK.get(self._compression, _Raw)(self._fd)
        self._recode = recoder(self._encoding)

    @property
    def taken(self) -> int:
        return self._pieces.taken

    def read(self, offset: int, size: int) -> tuple[bytes, bool]:
        if offset < self._start:
            self._reopen()
        budget = max(SKIP_BYTES_MAX, 2 * size)
        while self._start + len(self._buffer) < offset + size and budget > 0:
            piece = self._piece()
            self._is_drained = not piece
            if not piece:
                break
            budget -= len(piece)
            self._buffer += self._recode(piece)
            self._forget(offset)
        self._forget(offset)
        data = bytes(self._buffer[offset - self._start :][:size]) if offset >= self._start else b""
        return data, self._is_drained and self._start + len(self._buffer) <= offset + len(data)

    def _piece(self) -> bytes:
        if self._is_damaged:
            return b""
        try:
            piece = self._pieces.next()
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            self._is_damaged = True
            self.trouble = f"the {self._compression} data is damaged before byte {self._pieces.taken}: {error}"
            return b""
        self.trouble = self._pieces.missing if not piece else ""
        return piece

    def _forget(self, offset: int) -> None:
        unneeded = min(offset - self._start, len(self._buffer))
        if unneeded > 0:
            del self._buffer[:unneeded]
            self._start += unneeded


def recoder(encoding: str) -> Callable[[bytes], bytes]:
    """To UTF-8. Bytes that mean nothing become bytes that are no UTF-8 either, so that their record says so."""
    if encoding == "utf-8":
        return bytes
    errors = "surrogatepass" if encoding == "utf-16" else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    return lambda piece: decoder.decode(piece).encode("utf-8", "surrogatepass")


class _Pieces(Protocol):
    @property
    def taken(self) -> int: ...

    @property
    def missing(self) -> str:
        """What is wrong with an end at this place."""

    def next(self) -> bytes:
        """What comes, b"" when there is no more now."""


class _Raw:
    missing = ""

    def __init__(self, fd: int) -> None:
        self._fd, self.taken = fd, 0

    def next(self) -> bytes:
        data = os.pread(self._fd, _RAW_BYTES, self.taken)
        self.taken += len(data)
        return data


class _Members:
    """gzip, bzip2 and xz: one compressed member after the other; zeros behind them are padding."""

    def __init__(self, fd: int, kind: str, make: Callable[[], Any]) -> None:
        self._fd, self.taken, self._kind, self._make = fd, 0, kind, make
        self._member: Any = None
        self._input = b""

    @property
    def missing(self) -> str:
        return "" if self._member is None else f"the {self._kind} data ends before its end"

    def next(self) -> bytes:
        while True:
            if not self._input and (self._member is None or self._member.needs_input):
                self._input = os.pread(self._fd, _RAW_BYTES, self.taken)
                self.taken += len(self._input)
                if not self._input:
                    return b""
            if self._member is None:
                self._input = self._input.lstrip(b"\0")
                if not self._input:
                    continue
                self._member = self._make()
            given, self._input = self._input, b""
            piece: bytes = self._member.decompress(given, PIECE_BYTES)
            if self._member.eof:
                self._input, self._member = self._member.unused_data, None
            if piece:
                return piece


class _Gzip:
    """zlib's decompressor with the manners of the other two."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.needs_input = True

    def decompress(self, data: bytes, limit: int) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, limit)
        self.needs_input = len(piece) < limit and not self._inner.unconsumed_tail
        return piece

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


class _Zstd:
    """Arrow's stream gives up what it has unpacked when the input is cut off: near such an end it is read in ever smaller pieces,
    and anew when the file has grown."""

    def __init__(self, fd: int) -> None:
        self._fd, self._given, self._seen, self._size = fd, 0, 0, PIECE_BYTES
        self.taken, self.missing = 0, ""
        self._open()

    def _open(self) -> None:
        self._file = _RawFile(self._fd)
        self._inner = pa.CompressedInputStream(pa.PythonFile(self._file, "r"), "zstd")
        to_skip = self._given
        while to_skip and (piece := self._inner.read(min(to_skip, PIECE_BYTES))):
            to_skip -= len(piece)

    def next(self) -> bytes:
        if self._seen and os.fstat(self._fd).st_size == self._seen:
            return b""  # still at the end
        if self._seen:
            self._seen, self.missing, self._size = 0, "", PIECE_BYTES
            self._open()
        while True:
            try:
                piece: bytes = self._inner.read(self._size)
            except OSError as error:
                if self._size > 1:
                    self._size = max(1, self._size // 64)
                    self._open()
                    continue
                piece, self.missing = b"", f"the zstd data is damaged or ends before its end: {error}"
            self.taken = self._file.at
            self._given += len(piece)
            if not piece:
                self._seen = os.fstat(self._fd).st_size
            return piece


class _RawFile:
    """What `pa.PythonFile` needs to read."""

    closed = False

    def __init__(self, fd: int) -> None:
        self._fd, self.at = fd, 0

    def read(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self.at)
        self.at += len(data)
        return data

    def close(self) -> None:
        self.closed = True


_UNPACK: dict[str, Callable[[int], _Pieces]] = {
    "gzip": lambda fd: _Members(fd, "gzip", _Gzip),
    "bzip2": lambda fd: _Members(fd, "bzip2", bz2.BZ2Decompressor),
    "xz": lambda fd: _Members(fd, "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_AUTO, XZ_MEMORY_MAX)),
    "zstd": _Zstd,
}
