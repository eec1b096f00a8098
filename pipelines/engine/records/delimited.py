"""CSV lines to text columns. A line is a record: values with line breaks in them are not read.

A line without quotes is cut at every delimiter; one with quotes goes by RFC 4180, alone, so that an unbalanced quote spoils its
own line only.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.batch import Lines


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
        found = self._cut(texts, list(places.values()), len(header), bad)
        columns = {name: found[at] if (at := places.get(name)) is not None else pa.nulls(n, pa.string()) for name in wanted}
        self._find_headers(texts, columns, header, bad)
        return {name: _absent_as_null(column) for name, column in columns.items()}, bad

    def _cut(self, texts: pa.Array, places: Sequence[int], width: int, bad: dict[int, str]) -> Mapping[int, pa.Array]:
        """The columns at these places; lines that have other than `width` values become bad and are NULL."""
        quoted = pc.match_substring(texts, self.quote) if self.quote else None
        by_hand = [] if quoted is None else pc.indices_nonzero(quoted).to_pylist()
        plain = texts if not by_hand else pc.if_else(quoted, self.delimiter * (width - 1), texts)
        parts = pc.split_pattern(plain, self.delimiter)
        lengths = pc.list_value_length(parts)
        fits = pc.equal(lengths, pa.scalar(width, pa.int32()))
        if pc.all(fits).as_py() is False:
            for row in pc.indices_nonzero(pc.invert(fits)).to_pylist():
                bad.setdefault(row, f"{lengths[row].as_py()} fields, the header has {width}")
            parts = pc.split_pattern(pc.if_else(fits, plain, self.delimiter * (width - 1)), self.delimiter)
        flat, first = parts.flatten(), pc.multiply(pa.arange(0, len(texts)), pa.scalar(width, pa.int64()))
        found = {at: flat.take(pc.add(first, pa.scalar(at, pa.int64()))) for at in places}
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
        for name in columns:
            if name in header:
                named = pc.is_in(columns[name], pa.array(header, pa.string()))
                for row in pc.indices_nonzero(named).to_pylist() if pc.any(named).as_py() else []:
                    values = self._parse(row, texts[row].as_py(), len(header), dict(bad))
                    if sorted(value.strip() for value in values) == sorted(header):
                        bad.setdefault(row, "a header within the file")
                return

    def names(self) -> tuple[str, ...] | None:
        return None


def _absent_as_null(column: pa.Array) -> pa.Array:
    empty = pc.equal(column, pa.scalar(""))
    return pc.if_else(empty, pa.scalar(None, pa.string()), column) if pc.any(empty).as_py() else column
