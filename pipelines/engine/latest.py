"""The newest row of each key of one group, and aggregates over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.engine.tally import Tally

Row = tuple[int, int, tuple[Any, ...]]  # the group's time when it came, its own event time, what it brings to each tally


class Latest:
    """Newest by event time, then by arrival. A row's age is told by the group's time when it came, so a sensor whose clock is
    behind is not stale for that."""

    __slots__ = ("count", "rows", "t_us", "tallies")

    def __init__(self, makers: Sequence[Callable[[], Tally]]) -> None:
        self.rows: dict[Any, Row] = {}  # in the order in which they came
        self.tallies = [make() for make in makers]
        self.t_us: int | None = None
        self.count = 0

    def push(self, te_us: int, stale_us: int | None, key: Any, values: tuple[Any, ...], gone: list[Any]) -> bool | None:
        """A row comes; keys that are stale by now leave (into `gone`). Whether there was none; None: a newer one was there."""
        rows = self.rows
        t_us = te_us if self.t_us is None or te_us > self.t_us else self.t_us
        self.t_us = t_us
        if stale_us is not None:
            self.drop_stale(t_us - stale_us, gone)
        old = rows.get(key)
        if old is None:
            alone = not rows
            self.count += 1
            for tally, value in zip(self.tallies, values, strict=True):
                tally.add(value, key)
        else:
            if old[1] > te_us:
                return None
            alone = False
            del rows[key]
            for tally, value, before in zip(self.tallies, values, old[2], strict=True):
                tally.remove(before, key)
                tally.add(value, key)
        rows[key] = (t_us, te_us, values)
        return alone

    def restore(self, t_us: int, te_us: int, key: Any, values: tuple[Any, ...]) -> None:
        """A row that came in earlier; in the order in which they came."""
        self.t_us = t_us if self.t_us is None else max(self.t_us, t_us)
        self.rows[key] = (t_us, te_us, values)
        self.count += 1
        for tally, value in zip(self.tallies, values, strict=True):
            tally.add(value, key)

    def drop_stale(self, floor_us: int, gone: list[Any]) -> None:
        rows = self.rows
        while rows:
            key = next(iter(rows))
            t_us, _, values = rows[key]
            if t_us > floor_us:
                return
            del rows[key]
            self.count -= 1
            gone.append(key)
            for tally, value in zip(self.tallies, values, strict=True):
                tally.remove(value, key)

    def results(self) -> tuple[Any, ...]:
        return tuple([tally.result() for tally in self.tallies])
