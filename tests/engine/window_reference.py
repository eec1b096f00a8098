"""Windows computed in plain Python from all rows, for the tests to compare with: nothing merges, nothing is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from engine_support import S

Row = tuple[float, str | None, float | None]  # seconds after T0, group, value
Bounds = tuple[int, int]  # microseconds


@dataclass
class Reference:
    """`windows(time)` are the bounds of each window that holds the time. One source, no row far from the others."""

    windows: Callable[[int], list[Bounds]]
    lateness: int = 0
    keep: int = 0
    grid: int = 60 * S
    accepted: list[tuple[int, Any, Any, list[Bounds]]] = field(default_factory=list)
    emitted: dict[tuple[Bounds, Any], int] = field(default_factory=dict)
    dirty: dict[tuple[Bounds, Any], int] = field(default_factory=dict)
    out: list[dict[str, Any]] = field(default_factory=list)
    held: dict[Any, Any] = field(default_factory=dict)
    too_late: int = 0

    def run(self, rows: list[tuple[int, Any, Any]]) -> Reference:
        """`rows` are (microseconds, group, value) in order of arrival."""
        watermark = rows[0][0] if rows else 0
        for row in rows:
            self._add(row, watermark)
            watermark = max(watermark, row[0])
            self._emit(lambda due, now=watermark: due <= now)
        self._emit(lambda due: True)
        return self

    def _add(self, row: tuple[int, Any, Any], watermark: int) -> None:
        mine = self.windows(row[0])
        hold = max(self.lateness, self.keep)
        if all(end + hold <= watermark for _, end in mine):
            self.too_late += 1
            return
        mine = [bounds for bounds in mine if bounds[1] + hold > watermark]
        self.accepted.append((*row, mine))
        for bounds in mine:
            key = (bounds, row[1])
            if bounds[1] + self.lateness <= watermark < bounds[1] + hold:
                self.dirty.setdefault(key, (watermark // self.grid + 1) * self.grid)
                self.emitted.setdefault(key, 0)

    def _emit(self, is_due: Callable[[int], bool]) -> None:
        keys = {(bounds, k) for _, k, _, mine in self.accepted for bounds in mine}
        due = {key: key[0][1] + self.lateness for key in keys if key not in self.emitted} | self.dirty
        ready = [(at, key) for key, at in due.items() if is_due(at)]
        for _, (bounds, k) in sorted(ready, key=lambda r: (r[0], r[1][0][0], r[1][1] is not None, str(r[1][1]))):
            revision = self.emitted.get((bounds, k), 0)
            first = (bounds, k) not in self.dirty
            self.emitted[bounds, k] = revision + 1
            self.dirty.pop((bounds, k), None)
            rows = [(t, v) for t, g, v, mine in self.accepted if g == k and bounds in mine]
            if rows or first:
                before = self.held.get(k)
                self.out.append({"bounds": bounds, "k": k, "rows": rows, "revision": revision, "before": before})
                self._hold(bounds, k, rows)

    def _hold(self, bounds: Bounds, k: Any, rows: list[tuple[int, Any]]) -> None:
        """What the window's first pane leaves to the next."""
        pane = [r for r in rows if self.windows(r[0])[-1] == bounds]
        if points := held_points(pane):
            self.held[k] = points[-1][1]


def held_points(rows: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The rows that have weight: none is older than the one before."""
    points: list[tuple[int, Any]] = []
    for t, v in rows:
        if v is not None and (not points or t >= points[-1][0]):
            points.append((t, v))
    return points


def tumbling(every: int) -> Callable[[int], list[Bounds]]:
    return lambda t: [(t // every * every, t // every * every + every)]


def sliding(every: int, slide: int) -> Callable[[int], list[Bounds]]:
    """The earliest first."""
    return lambda t: [(s, s + every) for s in range((t // slide * slide) - every + slide, t // slide * slide + 1, slide)]


def shifts(at: list[str], zone: str) -> Callable[[int], list[Bounds]]:
    def windows(t: int) -> list[Bounds]:
        now = datetime.fromtimestamp(t / S, UTC)
        bounds = sorted(_moments(now, at, ZoneInfo(zone)))
        start = max(b for b in bounds if b <= t)
        return [(start, min(b for b in bounds if b > t))]

    return windows


def _moments(now: datetime, at: list[str], zone: ZoneInfo) -> Iterator[int]:
    for days in (-2, -1, 0, 1, 2):
        day = now.astimezone(zone).date() + timedelta(days)
        for time in at:
            local = datetime(day.year, day.month, day.day, int(time[:2]), int(time[3:]), tzinfo=zone)
            yield round(local.timestamp() * S)


# -- aggregates, of the (time, value) of a window in order of arrival


def values(rows: list[tuple[int, Any]]) -> list[float]:
    return [v for _, v in rows if v is not None]


def total(rows: list[tuple[int, Any]]) -> float | None:
    found = values(rows)
    return float(sum(map(Fraction, found))) if found else None


def mean(rows: list[tuple[int, Any]]) -> float | None:
    found = values(rows)
    return float(sum(map(Fraction, found)) / len(found)) if found else None


def deviation(rows: list[tuple[int, Any]]) -> float | None:
    found = [Fraction(v) for v in values(rows)]
    if len(found) < 2:
        return None
    middle = sum(found) / len(found)
    return math.sqrt(sum((v - middle) ** 2 for v in found) / (len(found) - 1))


def first(rows: list[tuple[int, Any]]) -> float | None:
    found = [(t, i, v) for i, (t, v) in enumerate(rows) if v is not None]
    return min(found)[2] if found else None


def last(rows: list[tuple[int, Any]]) -> float | None:
    found = [(t, i, v) for i, (t, v) in enumerate(rows) if v is not None]
    return max(found)[2] if found else None


def time_average(rows: list[tuple[int, Any]], before: float | None, start: int, end: int) -> float | None:
    points = held_points(rows)
    if not points:
        return None
    if before is not None:
        points = [(start, before), *points]
    spans = [b[0] - a[0] for a, b in zip(points, [*points[1:], (end, None)], strict=True)]
    if sum(spans) == 0:
        return points[-1][1]
    return float(sum(Fraction(v) * span for (_, v), span in zip(points, spans, strict=True)) / sum(spans))


# -- sessions


def sessions(rows: list[tuple[int, Any, Any]], gap: int, most: int | None, lateness: int) -> tuple[list[dict[str, Any]], int]:
    """The sessions in the order in which they come out, and how many rows were too late."""
    opened: list[dict[str, Any]] = []
    out: list[dict[str, Any]] = []
    too_late = 0
    watermark = rows[0][0] if rows else 0

    def due(times: list[int]) -> int:
        end = max(times) + gap
        return (end if most is None else min(end, min(times) + most)) + lateness

    for t, k, v in rows:
        joined = [{"k": k, "rows": [(t, v)]}]
        for one in sorted((s for s in opened if s["k"] == k), key=lambda s: min(x for x, _ in s["rows"])):
            times = [x for x, _ in one["rows"]]
            together = [x for s in [*joined, one] for x, _ in s["rows"]]
            if min(times) - gap < t < max(times) + gap and (most is None or max(together) - min(together) < most):
                joined.append(one)
        if len(joined) == 1 and due([t]) <= watermark:
            too_late += 1
            continue
        opened = [s for s in opened if not any(s is j for j in joined)]
        order = [*joined[1:2], joined[0], *joined[2:]]  # the row stands between the sessions it joins
        opened.append({"k": k, "rows": [r for s in order for r in s["rows"]]})
        watermark = max(watermark, t)
        ready = [s for s in opened if due([x for x, _ in s["rows"]]) <= watermark]
        out += _in_order(ready, due)
        opened = [s for s in opened if not any(s is r for r in ready)]
    return out + _in_order(opened, due), too_late


def _in_order(found: list[dict[str, Any]], due: Callable[[list[int]], int]) -> list[dict[str, Any]]:
    for one in found:
        times = [x for x, _ in one["rows"]]
        one["due"], one["start"] = due(times), min(times)
    return sorted(found, key=lambda s: (s["due"], s["start"], s["k"] is not None, str(s["k"])))
