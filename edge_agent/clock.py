"""Node time: CLOCK_BOOTTIME summed over boots, in microseconds. It never decreases and owes nothing to the wall clock (I10)."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # more than any struct timex; zero `modes` only reads


@dataclass(frozen=True, slots=True)
class ClockMark:
    """Where node time stood when the store last wrote."""

    boot: str
    offset_us: int
    node_time_us: int


@dataclass(frozen=True, slots=True)
class NodeClock:
    """Node time is BOOTTIME plus `offset_us`, which is fixed while the agent runs."""

    boot: str
    offset_us: int = 0

    @classmethod
    def resume(cls, mark: ClockMark | None, *, boot: str, boottime_us: int, wall_us: int = 0) -> NodeClock:
        """Go on where `mark` stood: same boot, same offset; another boot counts from the last node time that was stored.

        The first of all starts at what the wall clock shows, so that rows without a stamp of their own get a readable one.
        """
        if mark is None:
            return cls(boot, wall_us - boottime_us)
        if mark.boot == boot:
            return cls(boot, max(mark.offset_us, mark.node_time_us - boottime_us))
        return cls(boot, mark.node_time_us)

    def now_us(self) -> int:
        return boottime_us() + self.offset_us

    def mark(self) -> ClockMark:
        return ClockMark(self.boot, self.offset_us, self.now_us())


def boottime_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def wall_us() -> int:
    """The wall clock, microseconds since 1970: a label, never an order."""
    return time.time_ns() // 1000


def wall_text() -> str:
    """The wall clock as RFC 3339 text in UTC: a label, never an order."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def quality() -> str:
    """`synced` when the kernel or systemd says that the wall clock follows a time server, else `unsynced`."""
    if Path("/run/systemd/timesync/synchronized").exists():
        return "synced"
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return "synced" if 0 <= state < _TIME_ERROR else "unsynced"
