"""How fast streams fill the buffer, and so how long it lasts: pure, over node time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

MEMORY_S = 3600.0  # what was sealed an hour ago counts 1/e
KNOWN_AFTER_S = 60.0  # a rate measured for less says nothing
HEADER_BYTES = 1500  # about what a segment has beside its rows


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes sealed since `since_us`, each weighted by exp(-age / MEMORY_S) as of `at_us` (node time)."""

    weight: float
    at_us: int
    since_us: int

    def after(self, sealed_bytes: int, now_us: int) -> Rate:
        return replace(self._aged(now_us), weight=self._aged(now_us).weight + sealed_bytes)

    def per_s(self, now_us: int) -> float | None:
        """Bytes a second: of a steady stream its true rate from the start on. None before it is known."""
        seen_s = (now_us - self.since_us) / 1e6
        if seen_s < KNOWN_AFTER_S:
            return None
        return self._aged(now_us).weight / (MEMORY_S * -math.expm1(-seen_s / MEMORY_S))

    def _aged(self, now_us: int) -> Rate:
        age_s = max(now_us - self.at_us, 0) / 1e6
        return Rate(self.weight * math.exp(-age_s / MEMORY_S), max(now_us, self.at_us), self.since_us)


def lasts_s(rates: Iterable[Rate], free_bytes: int, now_us: int) -> float | None:
    """Seconds until `free_bytes` are used up with the link cut; None when no rate is known or nothing comes."""
    known = [per_s for rate in rates if (per_s := rate.per_s(now_us)) is not None]
    return max(free_bytes, 0) / sum(known) if sum(known) >= 1 else None


def note(rates: Mapping[str, Rate], sealed: Iterable[tuple[str, int]], now_us: int) -> dict[str, Rate]:
    """`rates` by stream after these (stream, payload bytes) were sealed; streams that fell silent long ago are forgotten."""
    after = {stream: rate for stream, rate in rates.items() if now_us - rate.at_us < 20 * MEMORY_S * 1e6}
    for stream, size in sealed:
        after[stream] = after.get(stream, Rate(0.0, now_us, now_us)).after(size + HEADER_BYTES, now_us)
    return after


def text(seconds: float) -> str:
    """A duration as people say it: `40 s`, `12 min`, `26 h`, `9 days`."""
    for unit, size, enough in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < enough:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"
