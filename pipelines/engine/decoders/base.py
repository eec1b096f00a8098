"""What all text decoders have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from pipelines.engine.batch import Lines

Columns = dict[str, pa.StringArray]


class TextDecoder(Protocol):
    def columns(
        self, lines: Lines, wanted: Sequence[str], header: Sequence[str] = (), received_at_us: int | None = None
    ) -> tuple[Columns, dict[int, str]]:
        """A text column for each wanted name, null where a text has no such part; and for each text that does not decode, why.
        A null text is null in every column, and nothing is wrong with it."""

    def names(self) -> tuple[str, ...] | None:
        """The names it can give, None where any may occur."""


class PatternError(ValueError):
    def __init__(self, path: str, message: str, hint: str = "") -> None:
        self.path, self.message, self.hint = path, message, hint
        super().__init__(message)
