"""regex: the named groups of a pattern. RE2 takes time linear in the text, whatever the pattern: none can hang a node."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.batch import Lines
from pipelines.engine.decoders.base import Columns, PatternError

EXPANDED_MAX = 64 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NAMED = re.compile(r"\(\?P?<([^=!>][^>]*)>")
_CLASS = re.compile(r"\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\]", re.DOTALL)


@dataclass(frozen=True)
class Group:
    """A capturing group: `open` to `begin` is its bracket with the name, "" without one; the closing bracket is at `close`."""

    name: str
    open: int
    begin: int
    close: int


@dataclass(frozen=True)
class Extraction:
    """A pattern that captures the wanted groups only. `fields` are (name, group, whether an empty text means no part)."""

    pattern: str
    fields: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class RegexDecoder:
    pattern: str

    def columns(
        self, lines: Lines, wanted: Sequence[str], header: Sequence[str] = (), received_at_us: int | None = None
    ) -> tuple[Columns, dict[int, str]]:
        found, matches = extract(lines.text, self.pattern, wanted)
        wrong = pc.indices_nonzero(pc.invert(pc.fill_null(matches, True))).to_pylist()
        return found, dict.fromkeys(wrong, "does not match the pattern")

    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group.name for group in groups(self.pattern) if group.name))


def extract(text: pa.StringArray, pattern: str, wanted: Sequence[str]) -> tuple[Columns, pa.BooleanArray]:
    """The wanted groups, null where a group took no part; and which texts match (null for a null text)."""
    extraction = _extraction(pattern, frozenset(wanted))
    columns: Columns = {}
    if not extraction.fields:
        matches = pc.match_substring_regex(text, extraction.pattern)
    else:
        parts = pc.extract_regex(text, extraction.pattern)
        matches = pc.if_else(pc.is_valid(text), pc.is_valid(parts), None)
        for name, group, empty_is_none in extraction.fields:
            column = pc.struct_field(parts, group)
            if empty_is_none:
                column = pc.if_else(pc.equal(column, ""), None, column)
            columns[name] = pc.coalesce(columns[name], column) if name in columns else column
    return {name: columns[name] if name in columns else pa.nulls(len(text), pa.string()) for name in wanted}, matches


@lru_cache(maxsize=256)
def _extraction(pattern: str, wanted: frozenset[str]) -> Extraction:
    """A group that is not captured costs nothing; Arrow wants every group named, and no name twice."""
    all_ = list(groups(pattern))
    kept = [group for group in all_ if group.name in wanted]
    names = [group.name for group in kept]
    text, end, number = "", 0, 0
    for group in all_:
        text += pattern[end : group.open]
        if group.name in wanted:
            text += f"(?P<g{number}>"
            number += 1
        else:
            text += "(?:"
        end = group.begin
    text += pattern[end:]
    fields = tuple(
        (g.name, f"g{i}", names.count(g.name) > 1 or not _can_be_empty(pattern[g.begin : g.close])) for i, g in enumerate(kept)
    )
    return Extraction(text, fields)


def groups(pattern: str) -> Iterator[Group]:
    """The capturing groups, in the order of their opening brackets; what is no regular expression gives some of them."""
    found: list[Group] = []
    stack: list[tuple[str, int, int] | None] = []
    i = 0
    while i < len(pattern):
        if pattern.startswith("\\Q", i):
            i = pattern.find("\\E", i) + 2 if "\\E" in pattern[i:] else len(pattern)
        elif pattern[i] == "\\":
            i += 2
        elif pattern[i] == "[" and (skipped := _CLASS.match(pattern, i)):
            i = skipped.end()
        elif pattern[i] == "(":
            named = _NAMED.match(pattern, i)
            begin = named.end() if named else i + 1
            is_capturing = named or pattern[begin : begin + 1] != "?"
            stack.append((named[1] if named else "", i, begin) if is_capturing else None)
            i = begin
        else:
            if pattern[i] == ")" and stack and (opened := stack.pop()):
                found.append(Group(*opened, i))
            i += 1
    return iter(sorted(found, key=lambda group: group.open))


def _can_be_empty(body: str) -> bool:
    try:
        return bool(pc.match_substring_regex(pa.array([""]), rf"\A(?:{body})\z")[0].as_py())
    except pa.ArrowInvalid:
        return True


def check_pattern(pattern: str, path: str) -> None:
    """Raise `PatternError` unless the pattern compiles and names what it finds."""
    check_match(pattern, path)
    names = [group.name for group in groups(pattern) if group.name]
    if not names:
        raise PatternError(path, "the pattern names nothing", r"name what it finds: (?P<level>\w+), in grok %{WORD:level}")
    wrong = next((name for name in names if not _NAME.match(name)), None)
    if wrong is not None:
        raise PatternError(path, f'"{wrong}" cannot be a name', "a name has letters, digits and underscores")


def check_match(pattern: str, path: str) -> None:
    """Raise `PatternError` unless RE2 takes the pattern."""
    if len(pattern) > EXPANDED_MAX:
        raise PatternError(path, f"the pattern has {len(pattern)} characters, at most {EXPANDED_MAX}", "take a simpler one")
    try:
        pc.match_substring_regex(pa.array(["", "x"]), _extraction(pattern, frozenset()).pattern)
    except pa.ArrowInvalid as error:
        raise PatternError(path, *_explained(str(error))) from None


def _explained(message: str) -> tuple[str, str]:
    why = message.split("\n")[0].removeprefix("Invalid regular expression: ")
    if "invalid perl operator" in why or "invalid escape" in why or "bad repetition operator" in why:
        hint = "RE2 has no look-around, back-references, atomic or possessive groups: that is why it never hangs"
        return f"not a pattern of RE2: {why}", hint
    if "pattern too large" in why or "invalid repetition size" in why:
        return f"the pattern is too large: {why}", "repeat at most 1000 times, and do not nest large repetitions"
    return f"not a regular expression: {why}", "see https://github.com/google/re2/wiki/Syntax"
