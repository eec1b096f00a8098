"""The newest row of each key of one group, and aggregates over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.engine.triggers.tally import Tally

# The group's time when the row came, its event time, sequence number and cell, what it brings to each tally. Changed in place.
Row = list[Any]
T, TE, SEQ, CELL, VALUES = 0, 1, 2, 3, 4
NEVER = 1 << 62


class Latest:
    """Newest by event time, then by arrival. A row's age is told by the group's time when it came, so a sensor whose clock is
    behind is not stale for that."""

    __slots__ = ("rows", "stale_at_us", "t_us", "tallies")

    def __init__(self, makers: Sequence[Callable[[], Tally]]) -> None:
        self.rows: dict[Any, Row] = {}
        self.tallies = [make() for make in makers]
        self.t_us: int | None = None
        self.stale_at_us = NEVER  # no key is stale before the group's time reaches it

    def push(
        self, te_us: int, stale_us: int | None, key: Any, seq: int, cell: Any, values: tuple[Any, ...], gone: list[Any]
    ) -> bool | None:
        """A row comes; stale keys leave, their cells into `gone`. Whether there was none before; None: the key has
        a newer one."""
        rows = self.rows
        t_us = te_us if self.t_us is None or te_us > self.t_us else self.t_us
        self.t_us = t_us
        if t_us >= self.stale_at_us and stale_us is not None:
            self.drop_stale(t_us, stale_us, gone)
        old = rows.get(key)
        if old is not None:
            if old[TE] > te_us:
                return None
            for tally, value, before in zip(self.tallies, values, old[VALUES:], strict=True):
                tally.remove(before, key)
                tally.add(value, key)
            old[:] = (t_us, te_us, seq, cell, *values)
            return False
        for tally, value in zip(self.tallies, values, strict=True):
            tally.add(value, key)
        rows[key] = [t_us, te_us, seq, cell, *values]
        if stale_us is not None:
            self.stale_at_us = min(self.stale_at_us, t_us + stale_us)
        return len(rows) == 1

    def restore(
        self, t_us: int, te_us: int, key: Any, seq: int, cell: Any, values: tuple[Any, ...], stale_us: int | None
    ) -> None:
        """A row that came earlier; in the order in which they came."""
        self.t_us = t_us if self.t_us is None else max(self.t_us, t_us)
        self.rows[key] = [t_us, te_us, seq, cell, *values]
        for tally, value in zip(self.tallies, values, strict=True):
            tally.add(value, key)
        if stale_us is not None:
            self.stale_at_us = min(self.stale_at_us, t_us + stale_us)

    def drop_stale(self, t_us: int, stale_us: int, gone: list[Any]) -> None:
        floor_us = t_us - stale_us
        stale = [key for key, row in self.rows.items() if row[T] <= floor_us]
        for key in stale:
            row = self.rows.pop(key)
            gone.append(row[CELL])
            for tally, value in zip(self.tallies, row[VALUES:], strict=True):
                tally.remove(value, key)
        self.stale_at_us = min((row[T] for row in self.rows.values()), default=NEVER) + stale_us

    def results(self) -> tuple[Any, ...]:
        return tuple([tally.result() for tally in self.tallies])
