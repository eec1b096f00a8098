"""Framing: bytes to records. Where a record begins and ends depends on the bytes, not on how they were cut into blocks (I14).

A framer is fed with the bytes that follow the last record it gave; what it does not consume comes again with more behind it. A
record over the limit is passed over however long it is, and leaves one undecodable record with its first bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.sources import RECORD_BYTES_MAX, Framing
from pipelines.engine.batch import Lines
from pipelines.engine.records.spans import Bytes, Mask, Places, Spans, find, has_byte

RECORD_BYTES_KEPT = 4096  # of a record that is too long
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_IN_LINE = 2  # `skipping` of a multi-line record: in the middle of a line


@dataclass(frozen=True)
class Framed:
    """`lines`: the records that are whole. `consumed`: bytes that need not come again. `skipping`: to be given back with the next
    bytes; not 0 while the middle of a record that is too long is being passed over."""

    lines: Lines | None
    consumed: int
    skipping: int = 0


class Framer(Protocol):
    @property
    def max_bytes(self) -> int:
        """The longest record; twice this much at once is enough for any progress."""

    def frame(self, data: bytes, base: int, skipping: int = 0, *, is_last: bool = False) -> Framed:
        """`base` is the position of the first byte of `data`; `is_last` says that no more bytes belong to its last record."""


def open_framer(spec: Framing | None) -> Framer:
    if spec is None or spec.lines:
        return Marked(b"\n", b"\r", spec.lines.max if spec and spec.lines else RECORD_BYTES_MAX)
    if spec.delimiter:
        return Marked(spec.delimiter.text.encode(), b"\r\n", spec.delimiter.max)
    if spec.length:
        return Counted(spec.length.bytes, spec.length.order, spec.length.includes_itself, spec.length.max)
    assert spec.multiline is not None
    pattern = spec.multiline.starts_with or spec.multiline.continues_with
    assert pattern is not None
    return MultiLine(f"^(?:{pattern})", spec.multiline.starts_with is not None, spec.multiline.max)


def frame_lines(block: bytes, base: int = 0) -> Lines:
    """The lines of a block, the last one with or without its line end. Blank lines and a byte order mark are no records."""
    lines = Marked(b"\n", b"\r", RECORD_BYTES_MAX).frame(block, base, is_last=True).lines
    assert lines is not None
    return lines


@dataclass(frozen=True)
class Marked:
    """Records that end with `mark`. Bytes of `trim` around a record are no part of it."""

    mark: bytes
    trim: bytes
    max_bytes: int

    def frame(self, data: bytes, base: int, skipping: int = 0, *, is_last: bool = False) -> Framed:
        start = _after_byte_order_mark(data, base)
        if skipping:
            start = data.find(self.mark) + len(self.mark)
            if start < len(self.mark):
                return Framed(None, len(data) if is_last else max(0, len(data) - len(self.mark) + 1), 1)
        block = np.frombuffer(data, np.uint8)
        marks = _marks(block, self.mark, start)
        starts, stops = np.concatenate(([start], marks + len(self.mark))), np.concatenate((marks, [len(data)]))
        end = len(data)
        if not is_last:
            end = int(starts[-1])
            starts, stops = starts[:-1], stops[:-1]
            if end == start and len(data) - len(self.mark) + 1 - start > self.max_bytes:  # its end may be a part of the mark
                return Framed(_too_long(data, start, base, self.max_bytes), len(data) - len(self.mark) + 1, 1)
        elif starts[-1] == len(data):
            starts, stops = starts[:-1], stops[:-1]
        return Framed(_lines(Spans(block, starts, stops), base, self.trim, self.max_bytes), end)


@dataclass(frozen=True)
class Counted:
    """Records behind their length, an unsigned number of `head` bytes."""

    head: int
    order: Literal["big", "little"]
    includes_itself: bool
    max_bytes: int

    def frame(self, data: bytes, base: int, skipping: int = 0, *, is_last: bool = False) -> Framed:
        at = min(skipping, len(data))
        skipping -= at
        records: list[bytes] = []
        starts: list[int] = []
        bad: dict[int, str] = {}
        while not skipping and at + self.head <= len(data):
            begin = at + self.head
            length = int.from_bytes(data[at:begin], self.order) - (self.head if self.includes_itself else 0)
            needed = length if length <= self.max_bytes else _kept(self.max_bytes)
            if begin + needed > len(data) and not is_last:
                break
            if why := self._wrong(length, len(data) - begin):
                bad[len(records)] = why
            starts.append(base + at)
            records.append(data[begin : begin + max(0, needed)])
            at = min(begin + max(0, length), len(data))
            skipping = 0 if is_last else max(0, begin + length - len(data))
        if is_last and at < len(data):
            bad[len(records)] = "the input ends within the length of a record"
            starts.append(base + at)
            records.append(data[at:])
            at = len(data)
        return Framed(_listed(records, starts, bad), at, skipping)

    def _wrong(self, length: int, available: int) -> str:
        if length < 0:
            return f"a length of {length + self.head} is less than its own {self.head} bytes"
        if length > self.max_bytes:
            return _longer_than(self.max_bytes)
        return f"the input ends {length - available} bytes before the record does" if length > available else ""


@dataclass(frozen=True)
class MultiLine:
    """Lines put together: `pattern` tells the lines that begin a record (`matches_first`), or those that continue one."""

    pattern: str
    matches_first: bool
    max_bytes: int

    def frame(self, data: bytes, base: int, skipping: int = 0, *, is_last: bool = False) -> Framed:
        start = _after_byte_order_mark(data, base)
        if skipping == _IN_LINE:
            start = data.find(b"\n") + 1
            if not start:
                return Framed(None, len(data), _IN_LINE)
        end = data.rfind(b"\n") + 1
        if is_last or len(data) - end > self.max_bytes:
            end = len(data)  # a line that does not end tells by its beginning what it is
        if end <= start:
            return Framed(None, start, 1 if skipping else 0)
        starts = self._starts(data, start, end, must_begin=not skipping)
        if not len(starts):
            return Framed(None, end, 1 if data[end - 1 : end] == b"\n" else _IN_LINE)
        if not is_last:
            last = int(starts[-1])
            if len(starts) == 1 and end - last > self.max_bytes:
                skip = 1 if data[end - 1 : end] == b"\n" else _IN_LINE
                return Framed(_too_long(data, last, base, self.max_bytes), end, skip)
            end, starts = last, starts[:-1]
        return Framed(self._records(data, starts, end, base), end)

    def _starts(self, data: bytes, start: int, end: int, *, must_begin: bool) -> Places:
        """Where records begin; the first line begins one even where it does not look so, unless one is being passed over."""
        block = np.frombuffer(data, np.uint8)
        ends = find(block, b"\n", start, end)
        if data[end - 1 : end] != b"\n":
            ends = np.append(ends, end)
        starts = np.concatenate(([start], ends[:-1] + 1))
        begins: Mask = pc.match_substring_regex(Spans(block, starts, ends).texts(), self.pattern).to_numpy(zero_copy_only=False)
        begins = begins.copy() if self.matches_first else ~begins
        begins[0] |= must_begin
        return starts[begins]

    def _records(self, data: bytes, starts: Places, end: int, base: int) -> Lines:
        """Records lie one behind the other."""
        bounds = np.append(starts, end)
        lines = _lines(Spans(np.frombuffer(data, np.uint8), bounds[:-1], bounds[1:]), base, b"\r\n", self.max_bytes)
        if b"\r" not in data:
            return lines
        return Lines(pc.replace_substring(lines.text, "\r\n", "\n"), lines.offsets, lines.bad)


def _after_byte_order_mark(data: bytes, base: int) -> int:
    return len(_BYTE_ORDER_MARK) if base == 0 and data.startswith(_BYTE_ORDER_MARK) else 0


def _one(data: bytes | Bytes, start: int, end: int) -> pa.BinaryArray:
    """A part of the bytes as an array of one value, nothing copied."""
    offsets = pa.array([start, end], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(data)])


def _marks(block: Bytes, mark: bytes, start: int) -> Places:
    if any(mark.startswith(mark[i:]) for i in range(1, len(mark))):  # a second one may begin within the first
        return np.array([found.start() for found in re.compile(re.escape(mark)).finditer(block.data, start)], np.int64)
    return find(block, mark, start, len(block))


def _lines(raw: Spans, base: int, trim: bytes, max_bytes: int) -> Lines:
    """Records of what lies there; empty ones are none. `trim`: bytes that are no part of a record at its ends."""
    is_long, offsets = raw.lengths > max_bytes, raw.starts + base
    records = _trimmed(raw, trim)
    if is_long.any():
        kept = np.where(is_long, raw.starts + _kept(max_bytes), records.stops)
        records = Spans(raw.data, np.where(is_long, raw.starts, records.starts), kept)
    if len(raw) and records.lengths.min() <= 0:
        is_record = records.lengths > 0
        records, offsets, is_long = records.pick(is_record), offsets[is_record], is_long[is_record]
    bad = dict.fromkeys(np.flatnonzero(is_long).tolist(), _longer_than(max_bytes))
    if bad or not _is_text(records):
        return Lines(_valid_text(records.texts().view(pa.binary()), bad), pa.array(offsets), bad)
    return Lines(records, pa.array(offsets))


def _trimmed(raw: Spans, trim: bytes) -> Spans:
    """Without bytes of `trim` at their ends; without "\\n" among them, at the last one only."""
    if not len(raw) or not any(has_byte(raw.data[raw.starts[0] : raw.stops[-1]], byte) for byte in trim):
        return raw
    starts, stops = raw.starts, raw.stops - _has_one(raw, raw.stops - 1, trim)  # more than one are rare
    if b"\n" in trim:
        starts = starts + _has_one(Spans(raw.data, starts, stops), starts, trim)
    found = Spans(raw.data, starts, stops)
    more = _has_one(found, stops - 1, trim)
    if b"\n" in trim:
        more |= _has_one(found, starts, trim)
    for i in np.flatnonzero(more):
        text = raw.data[starts[i] : stops[i]].tobytes()
        stops[i] = starts[i] + len(text.rstrip(trim))
        starts[i] += len(text.rstrip(trim)) - len(text.strip(trim)) if b"\n" in trim else 0
    return Spans(raw.data, starts, stops)


def _has_one(texts: Spans, places: Places, few: bytes) -> Mask:
    """Which texts have one of a few bytes at these places, of which they have none when they are empty."""
    found = np.zeros(len(texts), np.bool_)
    for byte in few:
        found |= texts.data[places] == byte
    return found & (texts.lengths > 0)


def _is_text(records: Spans) -> bool:
    """Whether all is UTF-8; they were cut at whole characters."""
    start, stop = (int(records.starts[0]), int(records.stops[-1])) if len(records) else (0, 0)
    if start == stop or records.data[start:stop].max() < 0x80:
        return True
    try:
        _one(records.data, start, stop).cast(pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def _valid_text(raw: pa.BinaryArray, bad: dict[int, str]) -> pa.StringArray:
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_mended(i, value, bad) for i, value in enumerate(raw.to_pylist())], pa.string())


def _mended(i: int, value: bytes, bad: dict[int, str]) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        bad.setdefault(i, f"not UTF-8 at byte {error.start}")
        return value.decode(errors="replace")


def _listed(records: list[bytes], starts: list[int], bad: Mapping[int, str]) -> Lines | None:
    """Records of a framer that goes from one to the next; empty ones are none, unless something is wrong with them."""
    kept = [i for i, record in enumerate(records) if record or i in bad]
    if not kept:
        return None
    why = {n: bad[i] for n, i in enumerate(kept) if i in bad}
    text = _valid_text(pa.array([records[i] for i in kept], pa.binary()), why)
    return Lines(text, pa.array([starts[i] for i in kept], pa.int64()), why)


def _too_long(data: bytes, start: int, base: int, max_bytes: int) -> Lines:
    text = data[start : start + _kept(max_bytes)].decode(errors="replace")
    return Lines(pa.array([text], pa.string()), pa.array([base + start], pa.int64()), {0: _longer_than(max_bytes)})


def _kept(max_bytes: int) -> int:
    return min(RECORD_BYTES_KEPT, max_bytes)


def _longer_than(max_bytes: int) -> str:
    return f"the record has more than {max_bytes} bytes"
