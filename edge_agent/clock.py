"""Node time: CLOCK_BOOTTIME summed over boots, in microseconds. It never decreases and owes nothing to the wall clock (I10)."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.contract.segment import ANCHORED, SYNCED, UNSYNCED

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # more than any struct timex; zero `modes` only reads


_DRIFT = 100e-6  # of a quartz that nobody corrects: 9 s a day
_ANCHOR_KEPT_US = 3_600_000_000  # the stored one is renewed this often: an idle node writes little


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

    @property
    def time_line(self) -> str:
        """What segments call their boot: node times of one time line differ by what passed between them. Another
        store in the same boot of the machine counts otherwise, and gets another."""
        return f"{self.boot[:8]}-{self.offset_us & 0xFFFFFFFF:08x}"


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the control plane told of the time: at `node_time_us` of a time line UTC was `utc_offset_us` later, give or take."""

    time_line: str
    node_time_us: int
    utc_offset_us: int
    uncertainty_us: int

    @classmethod
    def told(cls, time_line: str, asked_us: int, answered_us: int, utc_us: int) -> Anchor:
        """From an answer that says `utc_us`; the others in node time. True to half the round trip (Cristian, 1989)."""
        half_us = (answered_us - asked_us) // 2
        return cls(time_line, answered_us, utc_us - asked_us - half_us, half_us)

    def is_better_than(self, old: Anchor | None) -> bool:
        """Whether to go by this one from now on: the uncertainty of an old one grows as clocks drift."""
        if old is None or old.time_line != self.time_line:
            return True
        return self.uncertainty_us <= old.uncertainty_us + (self.node_time_us - old.node_time_us) * _DRIFT

    def is_worth_writing_after(self, stored: Anchor | None) -> bool:
        return stored is None or stored.time_line != self.time_line or self.node_time_us - stored.node_time_us >= _ANCHOR_KEPT_US


def utc_offset(wall_us: int, node_us: int, quality: str, anchor: Anchor | None, time_line: str) -> tuple[int, str]:
    """UTC minus node time as well as it is known, and how well: synced, anchored or unsynced (as the wall clock says)."""
    if quality == SYNCED:
        return wall_us - node_us, SYNCED
    if anchor is not None and anchor.time_line == time_line:
        return anchor.utc_offset_us, ANCHORED
    return wall_us - node_us, UNSYNCED


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
