"""Windows between wall-clock times of a time zone: shifts, local days. A day of 23 or 25 hours is as long as it is.

A time that a day lacks (02:30 in spring) is as long after midnight as on other days; one that a day has twice counts when it
comes first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.duration import US_PER

DAY_US, MINUTE_US = US_PER["d"], US_PER["m"]
_FAR_MINUTES = 10**10  # makes minutes since 1970 positive, whatever the year
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_DAY, _LAST_DAY = date(1, 1, 5).toordinal(), date(9999, 12, 27).toordinal()
_EPOCH_DAY = _EPOCH.toordinal()


@dataclass(frozen=True)
class Shifts:
    """`at` are minutes of the day, ascending."""

    at: tuple[int, ...]
    timezone: str

    def around(self, time_us: int) -> tuple[int, int]:
        """Start and end of the shift that holds the time. Whole minutes: older zones had seconds."""
        day = min(max(_EPOCH_DAY + time_us // DAY_US, _FIRST_DAY), _LAST_DAY)
        bounds = self._bounds(day)
        at = bisect_right(bounds, time_us)
        return bounds[max(at - 1, 0)], bounds[min(at, len(bounds) - 1)]

    def assign(self, times: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Start and end of the shift of each time: looked up once for each minute that occurs."""
        minutes = pc.divide(pc.add(times, _FAR_MINUTES * MINUTE_US), MINUTE_US).dictionary_encode()
        found = [self.around((minute - _FAR_MINUTES) * MINUTE_US) for minute in minutes.dictionary.to_pylist()]
        starts, ends = ([pair[i] for pair in found] for i in (0, 1))
        return pa.array(starts, pa.int64()).take(minutes.indices), pa.array(ends, pa.int64()).take(minutes.indices)

    def _bounds(self, day: int) -> Sequence[int]:
        """The bounds on the days around this one (UTC), ascending."""
        return _bounds(self.at, self.timezone, day)


@lru_cache(maxsize=4096)
def _bounds(at: tuple[int, ...], timezone: str, day: int) -> Sequence[int]:
    zone = ZoneInfo(timezone)
    return sorted({_moment(date.fromordinal(day + i), minute, zone) for i in (-2, -1, 0, 1, 2) for minute in at})


def _moment(day: date, minute: int, zone: ZoneInfo) -> int:
    local = datetime.combine(day, time(minute // 60, minute % 60), zone)
    return (local.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) // MINUTE_US * MINUTE_US
