"""CSV lines to text columns. A line is a record: values with line breaks in them are not read.

A line without quotes is cut at every delimiter; one with quotes goes by RFC 4180, alone, so that an unbalanced quote spoils its
own line only.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.batch import Lines
from pipelines.engine.records.raw import raw_bytes


@dataclass(frozen=True)
class Delimited:
    """`quote` None: quotes are letters like any other."""

    delimiter: str
    quote: str | None

    def columns(
        self, lines: Lines, wanted: Sequence[str], header: Sequence[str] = (), received_at_us: int | None = None
    ) -> tuple[dict[str, pa.Array], dict[int, str]]:
        """Text columns by name, NULL where the header has no such column or the line has nothing there; and why lines are bad."""
        n, texts = len(lines), lines.text
        doubled = next((name for name in wanted if header.count(name) > 1), None)
        if doubled is not None:
            why = f'the header has the column "{doubled}" twice'
            return {name: pa.nulls(n, pa.string()) for name in wanted}, dict.fromkeys(range(n), why)
        bad: dict[int, str] = dict(lines.bad)
        places = {name: header.index(name) for name in wanted if name in header}
        has_quotes = self.quote is not None and self.quote.encode() in raw_bytes(texts)
        found = self._cut(texts, list(places.values()), len(header), bad, has_quotes=has_quotes)
        columns = {name: found[at] if (at := places.get(name)) is not None else pa.nulls(n, pa.string()) for name in wanted}
        self._find_headers(texts, columns, header, bad)
        return {name: _absent_as_null(column) for name, column in columns.items()}, bad

    def _cut(
        self, texts: pa.Array, places: Sequence[int], width: int, bad: dict[int, str], *, has_quotes: bool
    ) -> Mapping[int, pa.Array]:
        """The columns at these places; lines that have other than `width` values become bad and are NULL."""
        quoted = pc.match_substring(texts, self.quote) if has_quotes else None
        by_hand = [] if quoted is None else pc.indices_nonzero(quoted).to_pylist()
        plain = texts if not by_hand else pc.if_else(quoted, self.delimiter * (width - 1), texts)
        parts = pc.split_pattern(plain, self.delimiter)
        fits = pc.equal(pc.list_value_length(parts), pa.scalar(width, pa.int32()))
        if pc.all(fits).as_py() is False:
            lengths = pc.list_value_length(parts)
            for row in pc.indices_nonzero(pc.invert(fits)).to_pylist():
                bad.setdefault(row, f"{lengths[row].as_py()} fields, the header has {width}")
            parts = pc.split_pattern(pc.if_else(fits, plain, self.delimiter * (width - 1)), self.delimiter)
        flat = parts.values
        found = {at: flat.take(pa.arange(at, len(flat), width).cast(pa.int32())) for at in places}
        return self._put_quoted(found, texts, quoted, by_hand, width, bad) if by_hand else found

    def _put_quoted(
        self,
        found: Mapping[int, pa.Array],
        texts: pa.Array,
        quoted: pa.Array,
        rows: Sequence[int],
        width: int,
        bad: dict[int, str],
    ) -> Mapping[int, pa.Array]:
        empty = [""] * width
        values = [
            self._parse(row, text, width, bad) or empty for row, text in zip(rows, texts.filter(quoted).to_pylist(), strict=True)
        ]
        return {
            at: pc.replace_with_mask(column, quoted, pa.array([row[at] for row in values], pa.string()))
            for at, column in found.items()
        }

    def _parse(self, row: int, text: str, width: int, bad: dict[int, str]) -> list[str]:
        try:
            (values,) = csv.reader([text], delimiter=self.delimiter, quotechar=self.quote, strict=True)
        except (csv.Error, ValueError) as error:
            bad.setdefault(row, f"not CSV: {error}")
            return []
        if len(values) != width:
            bad.setdefault(row, f"{len(values)} fields, the header has {width}")
            return []
        return values

    def _find_headers(self, texts: pa.Array, columns: Mapping[str, pa.Array], header: Sequence[str], bad: dict[int, str]) -> None:
        """A line that has the columns' own names as values is a header within the file."""
        column = next((column for name, column in columns.items() if name in header), None)
        if column is None or not _has_lengths(column, {len(name.encode()) for name in header}):
            return
        is_name = pc.is_in(column, pa.array(header, pa.string()))
        for row in pc.indices_nonzero(is_name).to_pylist() if pc.any(is_name).as_py() else []:
            values = self._parse(row, texts[row].as_py(), len(header), dict(bad))
            if sorted(value.strip() for value in values) == sorted(header):
                bad.setdefault(row, "a header within the file")

    def names(self) -> tuple[str, ...] | None:
        return None


def _has_lengths(column: pa.Array, lengths: Collection[int]) -> bool:
    """Whether texts of one of these lengths may be in it."""
    found = pc.min_max(pc.binary_length(column)).as_py()
    return found["min"] is not None and any(found["min"] <= length <= found["max"] for length in lengths)


def _absent_as_null(column: pa.Array) -> pa.Array:
    if pc.min(pc.binary_length(column)).as_py() != 0:
        return column
    return pc.if_else(pc.equal(column, pa.scalar("")), pa.scalar(None, pa.string()), column)
