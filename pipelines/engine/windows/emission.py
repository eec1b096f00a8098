"""Windows that close, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.engine.types import to_arrow
from pipelines.engine.windows.aggregates import Closing
from pipelines.engine.windows.plan import WindowPlan


def in_order(closings: Sequence[Closing]) -> list[Closing]:
    """As they would come out if the watermark moved by single microseconds (I14)."""
    return sorted(closings, key=lambda c: (c.due_us, c.start_us, [(value is not None, str(value)) for value in c.group]))


def rows_of(plan: WindowPlan, closings: Sequence[Closing], reached_us: int | None, *, partial: bool) -> pa.Table:
    """The rows, with `columns` of the plan, `_due` (when each came out) and the `keep_column`s of sinks."""
    values = [[aggregate.value(closing) for closing in closings] for aggregate in plan.aggregates]
    ends = _column([c.end_us for c in closings], "TIMESTAMP")
    columns: dict[str, Any] = {
        "_event_time": ends,
        "_window_start": _column([c.start_us for c in closings], "TIMESTAMP"),
        "_window_end": ends,
        **{name: _column([c.group[i] for c in closings], plan.columns[name].type) for i, name in enumerate(plan.by)},
    }
    if plan.emission is None:
        columns |= {name: _column(values[at], type_) for name, at, type_ in plan.select if isinstance(at, int)}
    else:
        columns |= {f"_v{i}": _column(values[i], aggregate.type) for i, aggregate in enumerate(plan.aggregates)}
    columns["_rows"] = _column([c.rows for c in closings], "BIGINT")
    columns["_revision"] = _column([c.revision for c in closings], "BIGINT")
    columns["_partial"] = _column([partial] * len(closings), "BOOLEAN")
    last = None if reached_us is None else reached_us + 1
    columns["_due"] = _column([c.due_us if last is None else min(c.due_us, last) for c in closings], "BIGINT")
    table = pa.table(columns)
    return table if plan.emission is None else plan.emission(table)


def _column(values: Sequence[Any], type_: str) -> pa.Array:
    return pa.array(values, to_arrow(type_))
