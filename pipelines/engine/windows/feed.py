"""Windows over the rows of a pipeline and over each other: what a batch gives to them, and what closes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.engine.state import State
from pipelines.engine.windows import panes, sessions
from pipelines.engine.windows import rows as window_rows
from pipelines.engine.windows.emission import rows_of
from pipelines.engine.windows.panes import Contribution
from pipelines.engine.windows.plan import Session, WindowPlan, compile_window
from pipelines.engine.windows.rows import Rows

__all__ = ["Fed", "WindowPlan", "compile_window", "drain", "dry_run", "feed", "forget_time_line", "open_rows"]

Reached = Callable[[WindowPlan], int | None]  # how far event time has come for a window

_PREFIX = "window."


@dataclass
class Fed:
    """`tables` are the rows of windows that closed, by window, in order; `refused` are (window, row, reason) of rows that do not
    count in it."""

    state: State
    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    refused: list[tuple[str, int, str]] = field(default_factory=list)


def feed(
    plans: Mapping[str, WindowPlan],
    state: State,
    rows: pa.Table | None,
    reached: Reached,
    *,
    early: bool = False,
    partial: bool = False,
) -> Fed:
    """Merge accepted rows (with `_et`, `_row`, `_before`, `_at`) into the windows, then emit those that event time has `reached`;
    `early`: all of them. `partial` marks the rows of windows that would have taken more."""
    made = Fed(state)
    for plan in plans.values():
        for table in _tables_for(plan, rows, made):
            _contribute(plan, made, table)
        _close(plan, made, reached(plan), early=early, partial=partial)
    return made


def drain(plans: Mapping[str, WindowPlan], state: State, kept: Collection[str], reached_us: int | None) -> Fed:
    """Emit the windows that are not `kept` as they are, and forget them."""
    made = Fed(state)
    for plan in plans.values():
        if plan.name not in kept:
            for table in _tables_for(plan, None, made):
                _contribute(plan, made, table)
            _close(plan, made, reached_us, early=True, partial=True)
            for owner in [owner for owner in made.state.cells if owner == plan.owner or owner.startswith(f"{plan.owner}.")]:
                made.state = made.state.put(owner, {})
    return made


def forget_time_line(plans: Mapping[str, WindowPlan], state: State) -> State:
    """Event time started again: no window is closed yet."""
    for plan in plans.values():
        state = panes.forget_time_line(plan, state)
    return state


def open_rows(state: State) -> dict[str, int]:
    """Rows that have not come out yet, by window (I4)."""
    totals: dict[str, int] = {}
    for owner, cells in state.cells.items():
        words = owner.split(".")
        if owner.startswith(_PREFIX) and len(words) == 3:
            totals[words[1]] = totals.get(words[1], 0) + sum(cell[0] - cell[1] for cell in cells.values())
    return totals


def _tables_for(plan: WindowPlan, rows: pa.Table | None, made: Fed) -> list[pa.Table]:
    if plan.source is not None:
        return made.tables.get(plan.source.name, [])
    return [rows] if rows is not None and rows.num_rows else []


def _contribute(plan: WindowPlan, made: Fed, table: pa.Table) -> None:
    closed_us = panes.closed_us(plan, made.state)
    rows = (window_rows.of_window if plan.source else window_rows.of_pipeline)(plan, table, closed_us)
    given = _given(plan, made.state, rows)
    made.tables.setdefault(plan.name, []).extend(given.tables)
    counts = {"contributed": len(rows) - given.replaced, "too_late": 0, "over_limit": 0}
    for number, reason in given.refused:
        counts[reason] += 1
        if plan.source is None:
            made.refused.append((plan.name, number, reason))
    made.state = given.state.with_counts("streams", f"windows.{plan.name}", counts)


def _given(plan: WindowPlan, state: State, rows: Rows) -> Contribution:
    if not len(rows):
        return Contribution(state)
    return sessions.contribute(plan, state, rows) if isinstance(plan.kind, Session) else panes.contribute(plan, state, rows)


def _close(plan: WindowPlan, made: Fed, reached_us: int | None, *, early: bool, partial: bool) -> None:
    close = sessions.close if isinstance(plan.kind, Session) else panes.close
    made.state, table = close(plan, made.state, reached_us, early=early, partial=partial)
    if table is not None:
        made.tables.setdefault(plan.name, []).append(table)


def dry_run(plans: Mapping[str, WindowPlan], rows: pa.Table) -> None:
    """Run the statements of windows over no rows. Raises `duckdb.Error` for one that does not bind."""
    tables: dict[str, pa.Table] = {}
    for plan in plans.values():
        source = tables[plan.source.name] if plan.source else rows
        (window_rows.of_window if plan.source else window_rows.of_pipeline)(plan, source, None)
        tables[plan.name] = rows_of(plan, [], None, partial=False)
        tables[plan.name].select(plan.schema.names).cast(plan.schema)
