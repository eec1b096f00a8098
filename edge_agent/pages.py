"""A SQLite file read page by page, as far as it goes: what `salvage` works with when SQLite itself refuses the file.

Source: https://sqlite.org/fileformat2.html. Reads the file and the committed part of its write-ahead log, and changes neither.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

PAGE_BYTES = 4096  # of a file whose header does not say
PAYLOAD_BYTES_MAX = 128 << 20  # a longer cell is garbage
_FRAME_HEAD = struct.Struct(">6I")
_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class Lost:
    """In place of a value whose bytes cannot be read."""


LOST: Final = Lost()
Row = tuple[int, list[Any]]  # rowid (0 in a table without) and values; fewer where the record ends early


class Damage(Exception):
    """These bytes are no page, cell or record."""


class Pages:
    """The pages of a file as of the last whole commit in its log. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        head = self._file.read(100).ljust(100, b"\0")
        size = int.from_bytes(head[16:18], "big")
        self.page_bytes = PAGE_BYTES if size < 512 or size & (size - 1) else size
        log = path.with_name(path.name + "-wal")
        self._log_file = log.open("rb") if log.exists() else None
        self._in_log = dict(self._committed()) if self._log_file else {}
        self.count = max(path.stat().st_size // self.page_bytes, *self._in_log, 0)
        self._seen: set[int] = set()  # pages of the trees that were walked

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._log_file:
            self._log_file.close()

    def tree(self, root: int) -> Tree:
        return Tree(self, root, self._seen)

    def loose_rows(self) -> Iterator[Row]:
        """What lies in table leaves that no tree walked so far reached: lost branches, and leaves that were freed."""
        for number in range(2, self.count + 1):
            if number not in self._seen:
                with suppress(Damage):
                    page = _Page(self, number)
                    if page.kind == _TABLE_LEAF:
                        yield from page.rows()

    def read(self, number: int) -> bytes:
        if not 1 <= number <= self.count:
            raise Damage(f"there is no page {number}")
        try:
            if number in self._in_log and self._log_file:
                data = os.pread(self._log_file.fileno(), self.page_bytes, self._in_log[number])
            else:
                data = os.pread(self._file.fileno(), self.page_bytes, (number - 1) * self.page_bytes)
        except OSError as error:
            raise Damage(str(error)) from None
        if len(data) < self.page_bytes:
            raise Damage(f"page {number} is cut")
        return data

    def _committed(self) -> Iterator[tuple[int, int]]:
        """(page, offset of its newest bytes in the log), up to the last commit whose checksums hold."""
        assert self._log_file is not None
        head = self._log_file.read(32)
        if len(head) < 32 or int.from_bytes(head[:4], "big") & ~1 != 0x377F0682:
            return
        order = ">" if head[3] & 1 else "<"
        size = int.from_bytes(head[8:12], "big")
        sums = _checksum(head[:24], order, (0, 0))
        if size != self.page_bytes or sums != struct.unpack(">2I", head[24:32]):
            return
        uncommitted: list[tuple[int, int]] = []
        while len(frame := self._frame(24 + size)) == 24 + size:
            number, pages_after, *rest = _FRAME_HEAD.unpack(frame[:24])
            sums = _checksum(frame[24:], order, _checksum(frame[:8], order, sums))
            if frame[8:16] != head[16:24] or sums != (rest[2], rest[3]):
                return
            uncommitted.append((number, self._log_file.tell() - size))
            if pages_after:
                yield from uncommitted
                uncommitted = []

    def _frame(self, size: int) -> bytes:
        assert self._log_file is not None
        try:
            return self._log_file.read(size)
        except OSError:
            return b""


class Tree:
    """The rows of one table. `is_whole` says, once they were read, whether nothing of the tree was missing."""

    def __init__(self, pages: Pages, root: int, seen: set[int]) -> None:
        self._pages, self._root, self._seen = pages, root, seen
        self.is_whole = True

    def __iter__(self) -> Iterator[Row]:
        todo = [self._root]
        while todo:
            number = todo.pop()
            try:
                if number in self._seen:
                    raise Damage("two branches hold one page")
                page = _Page(self._pages, number)
                self._seen.add(number)
                for row in page.rows():
                    self.is_whole &= not any(value is LOST for value in row[1])
                    yield row
                todo += page.children()
                self.is_whole &= page.is_whole
            except Damage:
                self.is_whole = False


class _Page:
    def __init__(self, pages: Pages, number: int) -> None:
        self._pages, self._data = pages, pages.read(number)
        start = 100 if number == 1 else 0
        self.kind, cells = self._data[start], int.from_bytes(self._data[start + 3 : start + 5], "big")
        self._is_interior = self.kind in (_INDEX_INTERIOR, _TABLE_INTERIOR)
        array = start + (12 if self._is_interior else 8)
        if self.kind not in (_INDEX_INTERIOR, _TABLE_INTERIOR, _INDEX_LEAF, _TABLE_LEAF):
            raise Damage(f"page {number} is of no tree")
        if array + 2 * cells > len(self._data):
            raise Damage(f"page {number} has {cells} cells")
        self._cells = struct.unpack_from(f">{cells}H", self._data, array)
        self._right = int.from_bytes(self._data[start + 8 : start + 12], "big")
        self.is_whole = True  # whether every cell could be read

    def children(self) -> list[int]:
        if not self._is_interior:
            return []
        return [int.from_bytes(self._data[cell : cell + 4], "big") for cell in self._cells] + [self._right]

    def rows(self) -> Iterator[Row]:
        if self.kind == _TABLE_INTERIOR:
            return
        for cell in self._cells:
            try:
                yield self._row(cell + 4 if self._is_interior else cell)
            except Damage:
                self.is_whole = False

    def _row(self, at: int) -> Row:
        size, at = _varint(self._data, at)
        rowid = 0
        if self.kind == _TABLE_LEAF:
            rowid, at = _varint(self._data, at)
        return _signed(rowid), _record(self._payload(at, size))

    def _payload(self, at: int, size: int) -> bytes:
        """Of a cell; shorter than `size` where the pages it goes on in cannot be read."""
        if size > min(PAYLOAD_BYTES_MAX, self._pages.count * self._pages.page_bytes):
            raise Damage(f"a cell of {size} bytes")
        usable = self._pages.page_bytes
        largest = usable - 35 if self.kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
        smallest = (usable - 12) * 32 // 255 - 23
        local = size
        if size > largest:
            local = smallest + (size - smallest) % (usable - 4)
            local = local if local <= largest else smallest
        parts = [self._data[at : at + local]]
        if len(parts[0]) < local:
            raise Damage("a cell ends beyond its page")
        left, following = size - local, int.from_bytes(self._data[at + local : at + local + 4], "big")
        with suppress(Damage):
            while left > 0:
                data = self._pages.read(following)
                parts.append(data[4 : 4 + left])
                left, following = left - len(parts[-1]), int.from_bytes(data[:4], "big")
        return b"".join(parts)


def _record(payload: bytes) -> list[Any]:
    head_bytes, at = _varint(payload, 0)
    kinds = []
    while at < min(head_bytes, len(payload)):
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if at != head_bytes:
        raise Damage("a record's head does not end where it says")
    values: list[Any] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    return values


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return (None if kind == 0 else kind - 8), at
    if kind in (10, 11):
        raise Damage("a value of no kind")
    size = _INTEGER_BYTES.get(kind, 8 if kind == 7 else (kind - 12) // 2)
    raw, end = payload[at : at + size], at + size
    if len(raw) < size:
        return LOST, end
    if kind in _INTEGER_BYTES:
        return int.from_bytes(raw, "big", signed=True), end
    if kind == 7:
        return struct.unpack(">d", raw)[0], end
    if kind % 2 == 0:
        return raw, end
    try:
        return raw.decode(), end
    except UnicodeDecodeError:
        return LOST, end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[at : at + 9]):
        if count == 8:
            return (value << 8) | byte, at + 9
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at + count + 1
    raise Damage("a number is cut")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
