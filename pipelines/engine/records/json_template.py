"""Lines that look like one example: machines write the same keys in the same order, and only the values change.

The example gives a template: the constant text before, between and behind its scalars. Every line is cut at the separators it
must have, and then each of its bytes is accounted for: the constant text lies where it must, and each scalar is shown to be of
the example's kind. A line for which that does not hold is told apart; nothing is guessed, hardly a byte is looked at twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.records.spans import Mask, Places, Spans, bytes_of, differ, either, has_byte

Path = tuple[str | int, ...]
SCALARS_MAX = 64  # of an example; wider records are for the general reader
_TOKEN = re.compile(
    r'\s*("(?:[^"\\\x00-\x1f]|\\.)*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null|[{}\[\]:,])', re.ASCII
)
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
INTEGER = r"-?(?:0|[1-9][0-9]{0,17})"
_NO_STRING = r'["\\\x00-\x1f]'
_SEPARATORS = (",", ', "', ',"')  # the first is found fastest; the others bear commas in texts
_ZERO, _NINE, _MINUS, _POINT, _SLASH, _QUOTE, _BACKSLASH = b'09-./"\\'


@dataclass(frozen=True)
class Scalar:
    """A value of the example: where in the record, of what kind, and at which characters (a string without its quotes)."""

    path: Path
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """`gaps`: the constant texts around the scalars. `numbers`: what a number at a path looks like, where not any will do.
    `empty` are the paths of `{}` and `[]`, which have no value; `layouts`: the ways to find the values, to be tried in turn."""

    gaps: Sequence[bytes]
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

    def cut(self, lines: Spans, types: Mapping[Path, pa.DataType]) -> tuple[dict[Path, pa.Array], Mask | None]:
        """The values: text, booleans, numbers of the given types; and the lines of another shape, None: all have this one. Such
        lines have anything in the columns; where all are, there are none. Raises ArrowInvalid for numbers that cannot be cast."""
        spans, odd = self._spans(lines)
        columns = {}
        for scalar in self.scalars[: len(spans)]:
            columns[scalar.path], wrong = self._proven(scalar, spans.pop(0), types.get(scalar.path, pa.float64()))
            odd = either(odd, wrong)
        return columns, odd

    def _spans(self, lines: Spans) -> tuple[list[Spans], Mask | None]:
        """Where the values lie, by the layout that most lines have."""
        spans, odd = self.layouts[0].cut(lines, self.gaps)
        for layout in self.layouts[1:]:
            if odd is None:
                break
            others, left = layout.cut(lines, self.gaps)
            if left is None or left.sum() < odd.sum():
                spans, odd = others, left
        return spans, odd

    def _proven(self, scalar: Scalar, values: Spans, type_: pa.DataType) -> tuple[pa.Array, Mask | None]:
        """The values as a column, and which are no JSON scalar of the kind, or a number that its field does not take."""
        if scalar.kind == "boolean":
            is_true = _are(values, b"true")
            return pa.array(is_true), _none_if_clean(~(is_true | _are(values, b"false")))
        if scalar.kind == "null":
            return pa.nulls(len(values)), _none_if_clean(~_are(values, b"null"))
        texts = values.texts()
        if scalar.kind == "string":
            return texts, None if _are_plain(texts) else _matching(texts, _NO_STRING)
        pattern = self.numbers.get(scalar.path, NUMBER)
        if _are_plain_numbers(values, texts, pattern):
            with suppress(pa.ArrowInvalid):
                return texts.cast(type_), None  # it takes no second point
        odd = _none_if_clean(~_matching(texts, rf"\A(?:{pattern})\z"))
        return (texts if odd is None else pc.if_else(pa.array(odd), None, texts)).cast(type_), odd


def _are(values: Spans, text: bytes) -> Mask:
    """Which of them are this text."""
    found: Mask = values.lengths == len(text)
    some = np.flatnonzero(found)
    odd = differ(values.data, values.starts[some], text)
    if odd is not None:
        found[some[odd]] = False
    return found


def _matching(texts: pa.Array, pattern: str) -> Mask:
    found: Mask = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
    return found


def _none_if_clean(odd: Mask) -> Mask | None:
    return odd if odd.any() else None


def _are_plain(texts: pa.Array) -> bool:
    """Whether the texts, which lie side by side, stand for themselves between quotes."""
    data = bytes_of(texts)
    return not len(data) or bool(data.min() >= 0x20 and not has_byte(data, _QUOTE) and not has_byte(data, _BACKSLASH))


def _are_plain_numbers(values: Spans, texts: pa.Array, pattern: str) -> bool:
    """Whether all are digits without a 0 before others, maybe behind a minus, and where `pattern` allows it with a point between
    two: JSON numbers, if none has a second point. A quick look; False means that another has to be taken."""
    data, starts, lengths = bytes_of(texts), values.starts, values.lengths
    if pattern not in (INTEGER, NUMBER) or lengths.min() < 1 or (pattern == INTEGER and lengths.max() > 18):
        return False
    least = data.min()
    if least < _MINUS or data.max() > _NINE or values.data[values.stops - 1].min() < _ZERO:
        return False
    if least == _MINUS:
        is_negative = values.data[starts] == _MINUS
        if is_negative.sum() != (data == _MINUS).sum():
            return False
        starts, lengths = starts + is_negative, lengths - is_negative
    if least < _ZERO and (has_byte(data, _SLASH) or (pattern == INTEGER and has_byte(data, _POINT))):
        return False
    first = values.data[starts]
    if first.min() > _ZERO:
        return True
    led = np.flatnonzero((first == _ZERO) & (lengths > 1))  # by a 0
    return bool(first.min() == _ZERO and (values.data[starts[led] + 1] == _POINT).all())


@dataclass(frozen=True)
class Layout:
    """How the values are found: a separator that stands `count` times in a line, in each gap but the outer ones, and in no value.
    `inner`: for each of those gaps which one it is, and how far behind the gap's beginning."""

    separator: bytes
    count: int
    inner: Sequence[tuple[int, int]]

    def cut(self, lines: Spans, gaps: Sequence[bytes]) -> tuple[list[Spans], Mask | None]:
        """Where the values lie in the lines whose other bytes are those of the gaps; the lines that have others, which are given
        the places of one that has not."""
        marks, odd = lines.cut(self.separator, self.count)
        if odd is not None:
            if odd.all():
                return [], odd
            lines = lines.pick(_but(odd))
        stops = [*(marks[:, which] - behind for which, behind in self.inner), lines.stops - len(gaps[-1])]
        starts = [lines.starts + len(gaps[0]), *(stop + len(gap) for stop, gap in zip(stops, gaps[1:-1], strict=False))]
        spans = [Spans(lines.data, start, stop) for start, stop in zip(starts, stops, strict=True)]
        spans, odd = _without(spans, odd, [_none_if_clean(values.lengths < 0) for values in spans])
        if not spans:
            return spans, odd
        wrong = [differ(lines.data, spans[0].starts - len(gaps[0]), gaps[0])]
        wrong += [differ(lines.data, values.stops, gap) for values, gap in zip(spans, gaps[1:], strict=True)]
        return _without(spans, odd, wrong)


def _without(spans: list[Spans], odd: Mask | None, wrong: Sequence[Mask | None]) -> tuple[list[Spans], Mask | None]:
    """The spans with those of one good line in the place of wrong ones; none where all are."""
    more = reduce(either, wrong)
    if more is None:
        return spans, odd
    odd = more if odd is None else odd | more
    return [] if odd.all() else [values.pick(_but(odd)) for values in spans], odd


def _but(odd: Mask) -> Places:
    """Each line's number, that of one which is not odd in place of those that are."""
    return np.where(odd, np.argmin(odd), np.arange(len(odd)))


def make_template(example: str, numbers: Mapping[Path, str]) -> Template | None:
    """`numbers` as in Template. None: there is no such template."""
    scalars, empty = _scalars(example)
    if not scalars or len({s.path for s in scalars}) < len(scalars) or any(c < " " for c in example):
        return None
    bounds = [0, *(at for scalar in scalars for at in (scalar.start, scalar.stop)), len(example)]
    gaps = [example[start:stop].encode() for start, stop in zip(bounds[0::2], bounds[1::2], strict=True)]
    values = [example[scalar.start : scalar.stop] for scalar in scalars]
    layouts = [found for separator in _SEPARATORS if (found := _layout(separator.encode(), gaps, values))]
    return Template(gaps, scalars, numbers, frozenset(empty), layouts) if layouts else None


def _layout(separator: bytes, gaps: Sequence[bytes], values: Sequence[str]) -> Layout | None:
    """None: it does not stand in each inner gap, or in some value."""
    inner, count = [], gaps[0].count(separator)
    for gap in gaps[1:-1]:
        inner.append((count, gap.find(separator)))
        count += gap.count(separator)
    if any(behind < 0 for _, behind in inner) or any(separator.decode() in value for value in values):
        return None
    return Layout(separator, count + gaps[-1].count(separator), inner)


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
