"""Lines that look like one example: machines write the same keys in the same order, and only the values change.

The example gives a template: the constant text before, between and behind its scalars. Lines are cut at separators, and then
every byte is accounted for: the constant texts of all lines are put side by side and compared with the template's at once, and
each scalar is shown to be one of the example's kind. Either all lines are proven to have exactly the template's shape, or none
is taken. Nothing is guessed, and hardly a byte is looked at twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.records.raw import raw_bytes

Path = tuple[str | int, ...]
SCALARS_MAX = 64  # of an example; wider records are for the general reader
_TOKEN = re.compile(
    r'\s*("(?:[^"\\\x00-\x1f]|\\.)*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null|[{}\[\]:,])', re.ASCII
)
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
INTEGER = r"-?(?:0|[1-9][0-9]{0,17})"
_STRING = r'[^"\\\x00-\x1f]*'
_ANY_INTEGER = r"-?(?:0|[1-9][0-9]*)"
_SEPARATORS = (",", ', "', ',"')  # the first is found fastest; the others bear commas in texts
_TILES_MAX = 1 << 18  # distances that are kept: a block of more values is cut in parts
_TRUE, _FALSE, _NULL, _ONE = (pa.scalar(text) for text in ("true", "false", "null", "1"))
_TWICE = pa.scalar((1 << 32) + 1, pa.int64())


@dataclass(frozen=True)
class Scalar:
    """A value of the example: where in the record, of what kind, and at which characters (a string without its quotes)."""

    path: Path
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """`pattern` (RE2) matches the lines of its shape. `numbers`: what a number at a path looks like, where not any will do.
    `empty` are the paths of `{}` and `[]`, which have no value; `layouts`: the ways to cut, to be tried in turn."""

    pattern: str
    scalars: Sequence[Scalar]
    numbers: Mapping[Path, str]
    empty: frozenset[Path]
    layouts: Sequence[Layout]

    def kind(self, path: Path) -> str:
        """Of the value at a path; null where there is none."""
        return next((s.kind for s in self.scalars if s.path == path), "null")

    def has_below(self, path: Path) -> bool:
        """Whether the example has an object or a list at the path."""
        return any(known[: len(path)] == path for known in (*(s.path for s in self.scalars), *self.empty))

    def matches(self, texts: pa.Array) -> pa.Array:
        return pc.match_substring_regex(texts, self.pattern)

    def cut(self, texts: pa.Array, types: Mapping[Path, pa.DataType]) -> dict[Path, pa.Array]:
        """The values of lines that have this shape: text, booleans, numbers of the given types. Raises ArrowInvalid unless all
        have it."""
        for layout in self.layouts:
            try:
                found = layout.cut(texts)
            except pa.ArrowInvalid:
                continue
            return {s.path: self._proven(s, v, types) for s, v in zip(self.scalars, found, strict=True)}
        raise pa.ArrowInvalid("lines of another shape")

    def _proven(self, scalar: Scalar, values: pa.Array, types: Mapping[Path, pa.DataType]) -> pa.Array:
        """Raises ArrowInvalid unless each text is a JSON scalar of the kind, and a number one that its field takes."""
        if scalar.kind in ("boolean", "null"):
            is_first = pc.equal(values, _TRUE if scalar.kind == "boolean" else _NULL)
            _require(pc.all(pc.or_(is_first, pc.equal(values, _FALSE)) if scalar.kind == "boolean" else is_first).as_py())
            return is_first
        if scalar.kind == "string":
            _require(_is_plain(values))
            return values
        pattern = self.numbers.get(scalar.path, NUMBER)
        is_plain = _are_plain_numbers(values, pattern)
        made = values.cast(types.get(scalar.path, pa.float64()))  # it takes no second point
        if not is_plain:
            pattern = _ANY_INTEGER if pattern == INTEGER and pc.max(pc.binary_length(values)).as_py() <= 18 else pattern
            _require(pc.all(pc.match_substring_regex(values, rf"\A(?:{pattern})\z")).as_py())
        return made


def _require(holds: bool | None) -> None:
    if holds is False:
        raise pa.ArrowInvalid("lines of another shape")


def _is_plain(values: pa.Array) -> bool:
    """Whether the texts, which lie side by side, stand for themselves between quotes."""
    least, _, data = _bytes(values)
    return least >= 0x20 and b'"' not in data and b"\\" not in data


def _are_plain_numbers(values: pa.Array, pattern: str) -> bool:
    """Whether these are digits that do not begin with 0, and where `pattern` allows it a point after one and before another: JSON
    numbers, if there is no second point in any. A quick look; False means that another has to be taken."""
    least, most, data = _bytes(values)
    if pattern not in (INTEGER, NUMBER) or most > ord("9") or not pc.all(pc.greater_equal(values, _ONE)).as_py():
        return False
    if least >= ord("0"):
        return True
    return pattern == NUMBER and least == ord(".") and b"/" not in data and not pc.any(pc.ends_with(values, ".")).as_py()


def _bytes(values: pa.Array) -> tuple[int, int, bytes]:
    """The least and the greatest byte of texts that lie side by side, and all bytes."""
    data = raw_bytes(values)
    bounds = pc.min_max(pa.Array.from_buffers(pa.uint8(), len(data), [None, pa.py_buffer(data)])).as_py()
    return (bounds["min"], bounds["max"], data) if data else (0x7F, 0, data)


@dataclass(frozen=True)
class Layout:
    """How lines are cut: at `separator` into pieces that hold one value each. `margins`: how many bytes lie before and behind it
    in the piece; `constant`: all bytes of a line that are neither values nor separators."""

    separator: str
    margins: Sequence[tuple[int, int]]
    constant: bytes
    tiles: dict[int, pa.Array] = field(default_factory=dict, compare=False)

    def cut(self, texts: pa.Array) -> list[pa.Array]:
        """The texts of the values, a column each. Raises ArrowInvalid unless everything else in the lines is `constant`."""
        rows_max = _TILES_MAX // len(self.margins)
        parts = [self._cut(texts.slice(start, rows_max)) for start in range(0, len(texts), rows_max)]
        return parts[0] if len(parts) == 1 else [pa.concat_arrays(column) for column in zip(*parts, strict=True)]

    def _cut(self, texts: pa.Array) -> list[pa.Array]:
        n, width, split = len(texts), len(self.margins), pc.split_pattern(texts, self.separator)
        pieces = split.values
        _require(len(pieces) == n * width)
        _require(pc.all(pc.equal(pc.list_value_length(split), pa.scalar(width, pa.int32()))).as_py())
        bounds = self._bounds(pieces)
        _require(pc.min(pc.subtract(bounds[1:], bounds[:-1])).as_py() >= 0)
        segments = pa.Array.from_buffers(pa.binary(), len(bounds) - 1, [None, bounds.buffers()[1], pieces.buffers()[2]])
        constants = segments.take(_numbers(0, 2 * len(pieces) + 1, 2)).buffers()[2]
        _require(constants.equals(pa.py_buffer(self.constant * n)))
        return [_as_text(segments.take(_numbers(2 * at + 1, 2 * len(pieces), 2 * width))) for at in range(width)]

    def _bounds(self, pieces: pa.Array) -> pa.Array:
        """Where constant text and values begin and end in turn, in the data of the pieces: 0, begin and end of each value, the
        end of the data. Two bounds are one number: where a value ends, and in its upper half where the next one begins."""
        n = len(pieces)
        ends = pa.Array.from_buffers(pa.int32(), n, [None, pieces.buffers()[1]], offset=1)
        pairs = pc.add(pc.multiply(ends.cast(pa.int64()), _TWICE), self._tile(n).slice(0, n))
        values = pa.Array.from_buffers(pa.int32(), 2 * n - 1, [None, pairs.buffers()[1]])
        return pa.concat_arrays([pa.array([0, self.margins[0][0]], pa.int32()), values, ends[-1:]])

    def _tile(self, pieces: int) -> pa.Array:
        """What is to be added to the ends of so many pieces, at least."""
        size = 1 << max(10, (pieces - 1).bit_length())
        if size not in self.tiles:
            before = [before for before, _ in self.margins[1:]] + [self.margins[0][0]]
            line = [(first << 32) - behind for first, (_, behind) in zip(before, self.margins, strict=True)]
            self.tiles[size] = pa.array(line * (size // len(line) + 1), pa.int64())
        return self.tiles[size]


def _numbers(start: int, stop: int, step: int) -> pa.Array:
    return pa.arange(start, stop, step).cast(pa.int32())


def make_template(example: str, numbers: Mapping[Path, str]) -> Template | None:
    """`numbers` as in Template. None: there is no such template."""
    scalars, empty = _scalars(example)
    if not scalars or not example.isascii() or len({s.path for s in scalars}) < len(scalars) or _inner_space(example):
        return None
    layouts = [layout for separator in _SEPARATORS if (layout := _layout(example, scalars, separator))]
    if not layouts:
        return None
    return Template(_pattern(example, scalars, numbers), scalars, numbers, frozenset(empty), layouts)


def _layout(example: str, scalars: Sequence[Scalar], separator: str) -> Layout | None:
    """None: the pieces between separators do not hold one value each."""
    pieces = example.split(separator)
    if len(pieces) != len(scalars):
        return None
    margins, constant, start = [], "", 0
    for piece, scalar in zip(pieces, scalars, strict=True):
        before, behind = scalar.start - start, start + len(piece) - scalar.stop
        if before < 0 or behind < 0:
            return None
        margins.append((before, behind))
        constant += piece[:before] + piece[len(piece) - behind :]
        start += len(piece) + len(separator)
    return Layout(separator, margins, constant.encode())


def _inner_space(example: str) -> bool:
    return any(c < " " for c in example)


def _pattern(example: str, scalars: Sequence[Scalar], numbers: Mapping[Path, str]) -> str:
    kinds = {"string": _STRING, "boolean": "(?:true|false)", "null": "null"}
    parts, at = [], 0
    for scalar in scalars:
        value = kinds.get(scalar.kind) or numbers.get(scalar.path, NUMBER)
        parts += [re.escape(example[at : scalar.start]), value]
        at = scalar.stop
    return rf"\A{''.join(parts)}{re.escape(example[at:])}\z"


def _scalars(example: str) -> tuple[list[Scalar], list[Path]]:
    """The scalars and empty values of an object that reads as JSON; none where there are too many, or keys with escapes."""
    found: list[Scalar] = []
    empty: list[Path] = []
    before = ""
    stack: list[Any] = []  # per level the key (text) or index (number) under way
    is_key = False
    at = 0
    for token in _TOKEN.finditer(example):
        if token.start() != at:
            return [], []  # something that is none of RFC 8259, such as NaN
        at = token.end()
        text, start = token[1], token.start(1)
        if text in "{[":
            stack.append("" if text == "{" else 0)
            is_key = text == "{"
        elif text in "}]":
            stack.pop()
            if before in ("{", "["):
                empty.append(tuple(stack))
        elif text == ",":
            if isinstance(stack[-1], int):
                stack[-1] += 1
            is_key = isinstance(stack[-1], str)
        elif text == ":":
            is_key = False
        elif is_key:
            if "\\" in text:
                return [], []
            stack[-1] = text[1:-1]
        else:
            found.append(_scalar(tuple(stack), text, start))
        before = text
        if len(found) > SCALARS_MAX:
            return [], []
    return (found, empty) if at == len(example) else ([], [])


def _scalar(path: Path, text: str, start: int) -> Scalar:
    if text.startswith('"'):
        return Scalar(path, "string", start + 1, start + len(text) - 1)
    kind = (
        "boolean"
        if text in ("true", "false")
        else "null"
        if text == "null"
        else "number"
        if set(text) & set(".eE")
        else "integer"
    )
    return Scalar(path, kind, start, start + len(text))


def _as_text(raw: pa.Array) -> pa.Array:
    """Bytes cut out of text at ASCII characters are text."""
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count, raw.offset)
