"""value: the whole record is one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.engine.batch import Lines
from pipelines.engine.decoders.base import Columns


@dataclass(frozen=True)
class ValueDecoder:
    def columns(
        self, lines: Lines, wanted: Sequence[str], header: Sequence[str] = (), received_at_us: int | None = None
    ) -> tuple[Columns, dict[int, str]]:
        return {name: lines.text if name == "value" else pa.nulls(len(lines), pa.string()) for name in wanted}, {}

    def names(self) -> tuple[str, ...]:
        return ("value",)
