"""CSV lines to text columns. A line is a record: values with line breaks in them are not read.

A line without quotes is cut at every delimiter; one with quotes goes by RFC 4180, alone, so that an unbalanced quote spoils its
own line only.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.batch import Lines
from pipelines.engine.records.spans import Mask, Spans, either, find


@dataclass(frozen=True)
class Delimited:
    """`quote` None: quotes are letters like any other."""

    delimiter: str
    quote: str | None

    def columns(
        self, lines: Lines, wanted: Sequence[str], header: Sequence[str] = (), received_at_us: int | None = None
    ) -> tuple[dict[str, pa.Array], dict[int, str]]:
        """Text columns by name, NULL where the header has no such column or the line has nothing there; and why lines are bad."""
        n = len(lines)
        doubled = next((name for name in wanted if header.count(name) > 1), None)
        if doubled is not None:
            why = f'the header has the column "{doubled}" twice'
            return {name: pa.nulls(n, pa.string()) for name in wanted}, dict.fromkeys(range(n), why)
        bad: dict[int, str] = dict(lines.bad)
        places = {name: header.index(name) for name in wanted if name in header}
        found = self._cut(lines, list(places.values()), len(header), bad)
        columns = {name: found[at] if (at := places.get(name)) is not None else pa.nulls(n, pa.string()) for name in wanted}
        self._find_headers(lines, columns, header, bad)
        return {name: _absent_as_null(column) for name, column in columns.items()}, bad

    def _cut(self, lines: Lines, places: Sequence[int], width: int, bad: dict[int, str]) -> Mapping[int, pa.Array]:
        """The columns at these places; lines that have other than `width` values become bad and have nothing there."""
        spans, mark, quoted = lines.spans, self.delimiter.encode(), self._quoted(lines.spans)
        marks, odd = spans.cut(mark, width - 1)
        for row in np.flatnonzero(odd if quoted is None else odd & ~quoted).tolist() if odd is not None else []:
            bad.setdefault(row, f"{lines.text[row].as_py().count(self.delimiter) + 1} fields, the header has {width}")
        starts = [spans.starts, *(marks.T + len(mark))]
        stops = [*marks.T, spans.stops]
        odd = either(odd, quoted)
        if odd is not None:
            starts = [np.where(odd, spans.starts, each) for each in starts]
            stops = [np.where(odd, spans.starts, each) for each in stops]
        found = {at: Spans(spans.data, starts[at], stops[at]).texts() for at in places}
        return found if quoted is None else self._put_quoted(found, lines.text, quoted, width, bad)

    def _quoted(self, lines: Spans) -> Mask | None:
        """Which lines have a quote in them; None: none has."""
        if self.quote is None or not len(lines):
            return None
        quotes = find(lines.data, self.quote.encode(), int(lines.starts[0]), int(lines.stops[-1]))
        if not len(quotes):
            return None
        return np.searchsorted(quotes, lines.stops) > np.searchsorted(quotes, lines.starts)

    def _put_quoted(
        self, found: Mapping[int, pa.Array], texts: pa.Array, quoted: Mask, width: int, bad: dict[int, str]
    ) -> Mapping[int, pa.Array]:
        which, empty = pa.array(quoted), [""] * width
        by_hand = zip(np.flatnonzero(quoted).tolist(), texts.filter(which).to_pylist(), strict=True)
        values = [self._parse(row, text, width, bad) or empty for row, text in by_hand]
        return {
            at: pc.replace_with_mask(column, which, pa.array([row[at] for row in values], pa.string()))
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

    def _find_headers(self, lines: Lines, columns: Mapping[str, pa.Array], header: Sequence[str], bad: dict[int, str]) -> None:
        """A line that has the columns' own names as values is a header within the file."""
        column = next((column for name, column in columns.items() if name in header), None)
        if column is None or not _has_lengths(column, {len(name.encode()) for name in header}):
            return
        is_name = pc.is_in(column, pa.array(header, pa.string()))
        for row in pc.indices_nonzero(is_name).to_pylist() if pc.any(is_name).as_py() else []:
            values = self._parse(row, lines.text[row].as_py(), len(header), dict(bad))
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
