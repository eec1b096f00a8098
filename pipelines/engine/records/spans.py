"""Texts where they lie in a block of bytes, and what vectors over that block tell of them: nothing is copied to find them.

The bytes of whole blocks are compared at once, a place is a number, and a text that is wanted as a column is copied once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Spans:
    """Text i is `data[starts[i]:stops[i]]`, UTF-8. They follow each other, maybe with other bytes between them."""

    data: Bytes
    starts: Places
    stops: Places

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, texts: pa.StringArray) -> Spans:
        """Of an array without nulls."""
        _, bounds, data = texts.buffers()
        n = len(texts)
        if not n:
            return cls(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))
        offsets = np.frombuffer(bounds, np.int32, n + 1, 4 * texts.offset).astype(np.int64)
        return cls(np.frombuffer(data or b"", np.uint8), offsets[:-1], offsets[1:])

    def texts(self) -> pa.StringArray:
        """A copy: Arrow's texts lie side by side. The bytes between two texts are a text as well there, which nobody takes."""
        n = len(self)
        if not n:
            return pa.array([], pa.string())
        length = int(self.lengths[0])
        if length and (self.lengths == length).all():
            ends = np.arange(0, (n + 1) * length, length, dtype=np.int32)
            copied = at(self.data, self.starts, length)
            return pa.Array.from_buffers(pa.string(), n, [None, pa.py_buffer(ends), pa.py_buffer(copied)])
        bounds = np.empty(2 * n, np.int32)
        bounds[0::2], bounds[1::2] = self.starts, self.stops
        every = pa.Array.from_buffers(pa.string(), 2 * n - 1, [None, pa.py_buffer(bounds), pa.py_buffer(self.data)])
        return every.take(pa.array(np.arange(0, 2 * n, 2, dtype=np.int32)))

    def pick(self, which: Mask | Places | slice) -> Spans:
        return Spans(self.data, self.starts[which], self.stops[which])

    @cached_property
    def lengths(self) -> Places:
        return self.stops - self.starts

    def cut(self, mark: bytes, count: int) -> tuple[npt.NDArray[np.int64], Mask | None]:
        """The `count` places of `mark` in each text, a column each; and the texts that do not have so many, which are given the
        places of one that has, if any has. None: all have. Marks do not overlap themselves; -1 of them has no text."""
        marks = find(self.data, mark, int(self.starts[0]), int(self.stops[-1])) if len(self) else np.empty(0, np.int64)
        if len(marks) == len(self) * count and count >= 0:
            table = marks.reshape(len(self), count)
            if not count or ((table[:, 0] >= self.starts).all() and (table[:, -1] < self.stops).all()):
                return table, None
        first = np.searchsorted(marks, self.starts)
        odd = np.searchsorted(marks, self.stops) - first != count
        if odd.all():
            return np.zeros((len(self), max(0, count)), np.int64), odd
        first[odd] = first[np.argmin(odd)]
        return marks[first[:, None] + np.arange(count)], odd


def bytes_of(texts: pa.StringArray) -> Bytes:
    """All bytes of an array of text: what holds for none of them holds for no text. What lies under its nulls is among them."""
    _, bounds, data = texts.buffers()
    if data is None or not len(texts):
        return np.empty(0, np.uint8)
    first, last = np.frombuffer(bounds, np.int32, len(texts) + 1, 4 * texts.offset)[[0, -1]]
    return np.frombuffer(data, np.uint8, last - first, first)


def has_byte(data: Bytes, byte: int) -> bool:
    return bool((data == byte).any())


def either(odd: Mask | None, other: Mask | None) -> Mask | None:
    if odd is None or other is None:
        return other if odd is None else odd
    return odd | other


def find(data: Bytes, mark: bytes, start: int, stop: int) -> Places:
    """All places of `mark`, which does not overlap itself."""
    stop -= len(mark) - 1
    if stop <= start:
        return np.empty(0, np.int64)
    found = np.flatnonzero(data[start:stop] == mark[0])
    found += start
    for i, byte in enumerate(mark[1:], 1):
        found = found[data[found + i] == byte]
    return found


def at(data: Bytes, places: Places, size: int) -> npt.NDArray[np.void]:
    """The `size` bytes from each of these places on."""
    every: npt.NDArray[np.void] = np.ndarray(max(0, len(data) - size + 1), f"V{size}", data, strides=(1,))
    return every[places]


def differ(data: Bytes, places: Places, text: bytes) -> Mask | None:
    """At which of these places other bytes lie than those of `text`; None: at none."""
    found = at(data, places, len(text))
    return None if found.tobytes() == text * len(places) else found != np.void(text)
