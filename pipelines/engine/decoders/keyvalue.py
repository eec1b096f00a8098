"""keyvalue and logfmt: pairs of a name and a value, in any order.

Whole columns are cut into pairs at once. Texts with quotes go that way too, with the separators in them masked meanwhile, where
they are plain: quotes around whole values, no escapes. The rest goes one by one through `parse`, which says what is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.batch import Lines
from pipelines.engine.decoders.base import Columns

_BLANKS = " \t\n\r\f\v"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_MASKS = "\x1d\x1e"  # stand for the separators within quotes; a text that has one of them is no plain one
NO_NAME = "a value without a name"


@dataclass(frozen=True)
class KeyValueDecoder:
    """`pair` parts the pairs, "" for blanks; `separator`, not blank at either end, parts a name from its value."""

    pair: str
    separator: str

    def columns(
        self, lines: Lines, wanted: Sequence[str], header: Sequence[str] = (), received_at_us: int | None = None
    ) -> tuple[Columns, dict[int, str]]:
        text = pc.fill_null(lines.text, "")
        is_quoted = pc.match_substring(text, '"')
        is_plain = self._is_plain(text, is_quoted)
        columns, bad = self._split(self._masked(text, pc.and_(is_quoted, is_plain)), wanted)
        odd = pc.indices_nonzero(pc.invert(is_plain)).to_pylist()
        if odd:
            parsed = [self.parse(line) for line in text.filter(pc.invert(is_plain)).to_pylist()]
            for name in wanted:
                values = pa.array([found.get(name) for found, _ in parsed], pa.string())
                columns[name] = pc.replace_with_mask(columns[name], pc.invert(is_plain), values)
            bad = {i: why for i, why in bad.items() if is_plain[i].as_py()}
            bad |= {i: why for i, (_, why) in zip(odd, parsed, strict=True) if why}
        if lines.text.null_count:
            bad = {i: why for i, why in bad.items() if lines.text[i].is_valid}
        return columns, bad

    def names(self) -> None:
        return None

    # -- one text

    def parse(self, text: str) -> tuple[dict[str, str], str]:
        """The values by name, or why there are none. Of several of one name the last counts."""
        found: dict[str, str] = {}
        at, has_value = self._to_next(text, 0), False
        while at < len(text):
            end = self._ends.search(text, at)
            begin = end.end() if end and end[0] == self.separator else None
            name = text[at : end.start() if end else len(text)].strip(_BLANKS)
            value, at = "true", end.start() if end else len(text)
            if begin is not None:
                has_value = True
                value, at, why = self._value(text, begin)
                if why or not name:
                    return {}, why or NO_NAME
            found[name] = value
            at = self._to_next(text, at)
        return (found, "") if has_value else ({}, self._nothing)

    def _value(self, text: str, at: int) -> tuple[str, int, str]:
        """The value that begins at `at`, where it ends, what is wrong."""
        if self.pair:
            at += len(text[at:]) - len(text[at:].lstrip(_BLANKS))
        if text[at : at + 1] != '"':
            end = self._pair_end(text, at)
            return text[at:end].strip(_BLANKS), end, ""
        quoted = _QUOTED.match(text, at)
        if not quoted:
            return "", at, "a quoted value does not end"
        end = self._pair_end(text, quoted.end())
        if text[quoted.end() : end].strip(_BLANKS):
            return "", end, "text right behind a quoted value"
        return _ESCAPE.sub(_unescaped, quoted[1]), end, ""

    def _to_next(self, text: str, at: int) -> int:
        skipped = self._between.match(text, at)
        return skipped.end() if skipped else at

    def _pair_end(self, text: str, at: int) -> int:
        end = self._pair.search(text, at)
        return end.start() if end else len(text)

    @cached_property
    def _pair(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.pair) if self.pair else f"[{_BLANKS}]")

    @cached_property
    def _between(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{re.escape(self.pair)}|[{_BLANKS}])*" if self.pair else f"[{_BLANKS}]*")

    @cached_property
    def _ends(self) -> re.Pattern[str]:
        return re.compile(f"{re.escape(self.separator)}|{self._pair.pattern}")

    # -- whole columns

    def _split(self, text: pa.StringArray, wanted: Sequence[str]) -> tuple[Columns, dict[int, str]]:
        pairs = pc.split_pattern(text, self.pair) if self.pair else pc.ascii_split_whitespace(text)
        tokens, rows = pc.ascii_trim_whitespace(pairs.values), pc.list_parent_indices(pairs)
        is_filled = pc.greater(pc.binary_length(tokens), 0)
        tokens, rows = tokens.filter(is_filled), rows.filter(is_filled)
        names, values, has_value = self._named(tokens)
        columns: Columns = {}
        for name in wanted:
            of_name = pc.equal(names, name)
            columns[name] = _placed(rows.filter(of_name), values.filter(of_name), len(text))
        bad = dict.fromkeys(pc.unique(rows.filter(pc.and_(has_value, pc.equal(names, "")))).to_pylist(), NO_NAME)
        nothing = pc.invert(pc.is_in(pa.arange(0, len(text)), value_set=rows.filter(has_value)))
        return columns, bad | dict.fromkeys(pc.indices_nonzero(nothing).to_pylist(), self._nothing)

    def _named(self, tokens: pa.StringArray) -> tuple[pa.StringArray, pa.StringArray, pa.BooleanArray]:
        """Name and value of each token, and whether it has a separator."""
        parts = pc.split_pattern(tokens, self.separator, max_splits=1)
        has_value = pc.equal(pc.list_value_length(parts), 2)
        last = pc.add(pc.list_value_length(parts), pc.subtract(parts.offsets[:-1], 1))
        values = pc.if_else(has_value, parts.values.take(last), "true")
        names = pc.list_element(parts, 0) if len(parts) else tokens
        if self.pair:
            names, values = pc.ascii_trim_whitespace(names), pc.ascii_trim_whitespace(values)
        is_quoted = pc.starts_with(values, '"')
        if pc.any(is_quoted).as_py():
            values = pc.if_else(is_quoted, self._unmasked(pc.utf8_slice_codeunits(values, 1, -1)), values)
        return names, values, has_value

    def _is_plain(self, text: pa.StringArray, is_quoted: pa.BooleanArray) -> pa.BooleanArray:
        """Without quotes; or each around a whole value, with nothing in it that needs more than masking."""
        if not pc.any(is_quoted).as_py():
            return pa.repeat(True, len(text))
        if len(self.pair) > 1 or len(self.separator) > 1:
            return pc.invert(is_quoted)
        return pc.if_else(is_quoted, pc.match_substring_regex(text, self._plain), True)

    @cached_property
    def _plain(self) -> str:
        blank, separator, quoted = r"[ \t\n\r\f\v]", _in_class(self.separator), rf'"[^"\\\n\r\f\v{_MASKS}]*"'
        if not self.pair:
            part = rf"[^ \t\n\r\f\v\"{separator}]+(?:[{separator}](?:{quoted}|[^ \t\n\r\f\v\"]*))?"
            return rf"\A{blank}*(?:{part}(?:{blank}+|\z))*\z"
        pair = _in_class(self.pair)
        part = rf'[^{pair}{separator}"]*(?:[{separator}](?:{blank}*{quoted}{blank}*|[^{pair}"]*))?'
        return rf"\A(?:{part}[{pair}])*{part}\z"

    def _masked(self, text: pa.StringArray, quoted: pa.BooleanArray) -> pa.StringArray:
        """The quoted texts with the separators within quotes masked."""
        if not pc.any(quoted).as_py():
            return text
        pieces = pc.split_pattern(text.filter(quoted), '"')
        number = pc.subtract(pa.arange(0, len(pieces.values)), pieces.offsets.take(pc.list_parent_indices(pieces)))
        masked = pieces.values
        for mark, mask in self._masks:
            masked = pc.replace_substring(masked, mark, mask)
        values = pc.if_else(pc.equal(pc.bit_wise_and(number, 1), 1), masked, pieces.values)
        joined = pc.binary_join(pa.ListArray.from_arrays(pieces.offsets, values), '"')
        return pc.replace_with_mask(text, quoted, joined)

    def _unmasked(self, values: pa.StringArray) -> pa.StringArray:
        for mark, mask in self._masks:
            values = pc.replace_substring(values, mask, mark)
        return values

    @cached_property
    def _masks(self) -> list[tuple[str, str]]:
        return list(zip([self.pair] if self.pair else [" ", "\t"], _MASKS, strict=False))

    @cached_property
    def _nothing(self) -> str:
        return f'there is no "{self.separator}" in it, so no value'


def _placed(rows: pa.Int64Array, values: pa.StringArray, count: int) -> pa.StringArray:
    """A column of `count` rows with each value in its row; of several for one row the last."""
    if len(rows) == count and rows.equals(pa.arange(0, count)):
        return values
    last_first = pa.arange(len(rows) - 1, -1, -1)
    return values.take(last_first).take(pc.index_in(pa.arange(0, count), value_set=rows.take(last_first)))


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) == 1:
        return _ESCAPED.get(code, code)
    number = int(code[1:], 16)
    return chr(number) if not 0xD800 <= number < 0xE000 else "\ufffd"  # half of a pair is no text


def _in_class(character: str) -> str:
    return re.escape(character) if character in r"\^-]" else character
