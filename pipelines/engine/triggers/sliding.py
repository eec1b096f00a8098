"""The rows of one group within a span of event time, and aggregates over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.engine.triggers.tally import Tally

Row = tuple[int, int, tuple[Any, ...], int]  # event time, chunk, what it brings to each tally, sequence number


class Sliding:
    """Event time within a group never goes back: a row behind it counts at the newest time."""

    __slots__ = ("rows", "t_us", "tallies")

    def __init__(self, makers: Sequence[Callable[[], Tally]]) -> None:
        self.rows: deque[Row] = deque()
        self.tallies = [make() for make in makers]
        self.t_us: int | None = None

    def push(self, t_us: int, over_us: int, chunk: int, seq: int, values: tuple[Any, ...], left: dict[int, int]) -> bool:
        """A row enters, those out of the span leave (counted by chunk in `left`). Whether it sees no other."""
        rows = self.rows
        if self.t_us is not None and self.t_us > t_us:
            t_us = self.t_us
        self.t_us = t_us
        floor_us = t_us - over_us
        while rows and rows[0][0] <= floor_us:
            self.drop_oldest(left)
        alone = not rows
        rows.append((t_us, chunk, values, seq))
        for tally, value in zip(self.tallies, values, strict=True):
            tally.add(value, None)
        return alone

    def drop_oldest(self, left: dict[int, int]) -> None:
        _, chunk, values, _ = self.rows.popleft()
        for tally, value in zip(self.tallies, values, strict=True):
            tally.remove(value, None)
        left[chunk] = left.get(chunk, 0) + 1

    def results(self) -> tuple[Any, ...]:
        return tuple([tally.result() for tally in self.tallies])
