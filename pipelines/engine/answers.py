"""What a node says to a request, as rows of the lake's table `requests`."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipelines.contract.segment import REQUESTS
from pipelines.engine.ipc import TIMESTAMP

TABLE, STREAM, KIND = "requests", "_requests", REQUESTS
ROW = "row"
DONE, FAILED, REFUSED = "done", "failed", "refused"
ENDS = (DONE, FAILED, REFUSED)  # the last row of an answer; its `n` is how many came before it

# `row` is JSON, of a `row` only; `note` says what an end has to say; `at` is the node's wall clock, a label.
ANSWER_SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("n", pa.int64()),
        ("kind", pa.string()),
        ("row", pa.string()),
        ("note", pa.string()),
        ("at", TIMESTAMP),
    ]
)


def answer(request: str, first: int, rows: Sequence[str], at_us: int, end: str = "", note: str = "") -> pa.Table:
    """`rows` (JSON texts) numbered from `first` (1 is the first of all), and the end when it has come."""
    last = first + len(rows) - 1
    columns: list[tuple[int, str, str | None, str | None]] = [(first + i, ROW, row, None) for i, row in enumerate(rows)]
    if end:
        columns.append((last, end, None, note))
    numbers, kinds, texts, notes = zip(*columns, strict=True) if columns else ((), (), (), ())
    size = len(columns)
    return pa.table([[request] * size, numbers, kinds, texts, notes, [at_us] * size], schema=ANSWER_SCHEMA)
