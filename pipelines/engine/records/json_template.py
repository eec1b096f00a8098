"""Lines that look like one example: machines write the same keys in the same order, and only the values change.

From the example comes a pattern (RE2, no captures: linear, 2 ns a byte) of the whole line, in which each value is a JSON scalar
of the example's kind. A line that matches is cut at the separators, and its values have fixed distances from the cuts. So a match
decides alone what the values are: there is no guess in it. What does not match is not wrong: another reader looks at it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Path = tuple[str | int, ...]
_END = 1 << 28  # beyond any value; None, which should mean the same, overflows in pyarrow 26
SCALARS_MAX = 64  # of an example; wider records are for the general reader
_TOKEN = re.compile(
    r'\s*("(?:[^"\\\x00-\x1f]|\\.)*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null|[{}\[\]:,])', re.ASCII
)
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
INTEGER = r"-?(?:0|[1-9][0-9]{0,17})"
_STRING = r'[^"\\\x00-\x1f]*'
_SEPARATORS = (', "', ',"')


@dataclass(frozen=True)
class Scalar:
    """A value of the example: where in the record, of what kind, and at which characters (a string without its quotes)."""

    path: Path
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """`cuts`: by path the kind, which piece, and how many bytes before and after the value in it. `empty` are the paths of `{}`
    and `[]`, which have no value."""

    pattern: str
    separator: str
    pieces: int
    cuts: Mapping[Path, tuple[str, int, int, int]]
    empty: frozenset[Path]

    def has_below(self, path: Path) -> bool:
        """Whether the example has an object or a list at the path."""
        return any(known[: len(path)] == path for known in (*self.cuts, *self.empty))

    def matches(self, texts: pa.Array) -> pa.Array:
        return pc.match_substring_regex(texts, self.pattern)

    def split(self, texts: pa.Array) -> pa.Array:
        """The pieces of lines that match, one after the other. Raises ArrowInvalid when a separator stands in some value too."""
        pieces = pc.split_pattern(texts, self.separator).flatten()
        if len(pieces) != self.pieces * len(texts):
            raise pa.ArrowInvalid("a separator within a value")
        return pieces

    def values(self, pieces: pa.Array, path: Path, rows: pa.Array) -> pa.Array:
        """The text of one value in each row; `rows` are the numbers 0 to n - 1."""
        _, piece, before, after = self.cuts[path]
        at = pc.add(pc.multiply(rows, pa.scalar(self.pieces, rows.type)), pa.scalar(piece, rows.type))
        raw = pieces.take(at).cast(pa.binary())
        return _as_text(pc.binary_slice(raw, before, -after if after else _END))


def make_template(example: str, number_patterns: Mapping[Path, str]) -> Template | None:
    """`number_patterns`: what a number at a path looks like, where not any number will do. None: there is no such pattern."""
    scalars, empty = _scalars(example)
    if not scalars or not example.isascii() or len({s.path for s in scalars}) < len(scalars) or _inner_space(example):
        return None
    separator = next((s for s in _SEPARATORS if example.count(s) == len(scalars) - 1), "")
    if not separator:
        return None
    starts = [0]
    starts += [found.end() for found in re.finditer(re.escape(separator), example)]
    stops = [start - len(separator) for start in starts[1:]] + [len(example)]
    cuts: dict[Path, tuple[str, int, int, int]] = {}
    for piece, (scalar, start, stop) in enumerate(zip(scalars, starts, stops, strict=True)):
        if not start <= scalar.start <= scalar.stop <= stop:
            return None
        cuts[scalar.path] = (scalar.kind, piece, scalar.start - start, stop - scalar.stop)
    return Template(_pattern(example, scalars, number_patterns), separator, len(scalars), cuts, frozenset(empty))


def _inner_space(example: str) -> bool:
    return any(c < " " for c in example)


def _pattern(example: str, scalars: Sequence[Scalar], number_patterns: Mapping[Path, str]) -> str:
    kinds = {"string": _STRING, "boolean": "(?:true|false)", "null": "null"}
    parts, at = [], 0
    for scalar in scalars:
        value = kinds.get(scalar.kind) or number_patterns.get(scalar.path, NUMBER)
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
