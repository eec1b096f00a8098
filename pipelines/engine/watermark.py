"""How far event time has come in each source, told without any clock (I10).

The watermark is the largest event time seen. A row more than `FAR_US` from it counts but does not move it, until `AGREEING` rows
without a near one between them went on from each other, on the same side: ahead, then time really went on (a machine was off);
behind, then the sensor's clock was set back, or an older file is read: a new time line starts and open windows are closed as they
are. The last of those rows is not believed before the next one confirms it.

Where rows have keys (what they are grouped by), one sensor with a wrong clock does not agree with itself: the rows must be of two
keys, once two were seen. If all others stay silent, `AGREEING_ALONE` rows of one will do, or time would stand still. The files of
a source share a watermark: they are read one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.duration import US_PER
from pipelines.engine.state import Watermark

FAR_US = US_PER["h"]
AGREEING = 8
AGREEING_ALONE = 64
NEVER_US = -(1 << 62)  # before any time
IDLE_US_MIN = 5 * US_PER["s"]  # a writer that pauses for less is not idle, however short the windows


@dataclass(frozen=True)
class Stretch:
    """Rows `start` to `stop` of a batch that lie on one time line. `before_us[i]` is the watermark each row met, `at_us[i]` the
    one after it. `stepped_back` says that a new time line starts with this stretch."""

    start: int
    stop: int
    before_us: pa.Int64Array
    at_us: pa.Int64Array
    stepped_back: bool = False


def advance(
    mark: Watermark, times: pa.Int64Array, arrival_us: int, keys: pa.Array | None = None
) -> tuple[Watermark, list[Stretch]]:
    """The watermark after rows with these event times and keys (none null), and the batch's stretches, in order."""
    if not len(times):
        return mark, []
    first = times[0].as_py() if mark.us is None else mark.us
    reached = pc.max_element_wise(pc.cumulative_max(times), pa.scalar(first, pa.int64()))
    before = pa.concat_arrays([pa.array([first], pa.int64()), reached[:-1]])
    far = pc.or_(pc.greater(times, pc.add(before, FAR_US)), pc.less(times, pc.subtract(before, FAR_US)))
    if not mark.streak and not pc.any(far).as_py():
        known = mark if keys is None else _with_keys(mark, keys)
        mark = replace(known, us=reached[-1].as_py(), arrival_us=arrival_us)
        return mark, [Stretch(0, len(times), before, reached)]
    return _advance_slowly(replace(mark, us=first), times.to_pylist(), arrival_us, keys.to_pylist() if keys is not None else None)


def _with_keys(mark: Watermark, keys: pa.Array) -> Watermark:
    if mark.many:
        return mark
    key = keys[0].as_py() if mark.key is None else mark.key
    return replace(mark, key=key, many=not pc.all(pc.equal(keys, pa.scalar(key, keys.type))).as_py())


@dataclass
class _Streak:
    """Rows without a near one between them that went on from each other, on one side of the watermark."""

    rows: int
    newest: int
    key: str | None
    many: bool

    def goes_on(self, time: int, now: int) -> bool:
        return self.rows > 0 and (time > now) == (self.newest > now) and time >= self.newest - FAR_US

    def start(self, time: int, key: str | None) -> None:
        self.rows, self.newest, self.key, self.many = 1, time, key, False

    def add(self, time: int, key: str | None) -> None:
        self.rows, self.newest, self.many = self.rows + 1, max(self.newest, time), self.many or key != self.key

    def agrees_with(self, key: str | None, several: bool) -> bool:
        """Whether one more row of this key is enough. `several`: rows of more than one key were seen."""
        rows = self.rows + 1
        return rows >= AGREEING_ALONE or (rows >= AGREEING and (not several or self.many or key != self.key))


def _advance_slowly(
    mark: Watermark, times: list[int], arrival_us: int, keys: list[str] | None
) -> tuple[Watermark, list[Stretch]]:
    """The same, row by row: some are far from the watermark."""
    now, streak = mark.us or 0, _Streak(mark.streak, mark.streak_us, mark.streak_key, mark.streak_many)
    first_key, several = mark.key, mark.many
    stretches: list[Stretch] = []
    before: list[int] = []
    at: list[int] = []
    start, stepped = 0, False
    for i, time in enumerate(times):
        key = keys[i] if keys is not None else None
        first_key = key if first_key is None else first_key
        several = several or key != first_key
        if abs(time - now) > FAR_US:
            goes_on = streak.goes_on(time, now)
            if goes_on and streak.agrees_with(key, several):
                if streak.newest < now:
                    if i > start:
                        stretches.append(_stretch(start, i, before, at, stepped))
                    start, stepped, before, at = i, True, [], []
                now, streak.rows = streak.newest, 0
            elif goes_on:
                streak.add(time, key)
            else:
                streak.start(time, key)
        before.append(now)
        if abs(time - now) <= FAR_US:
            now, streak.rows = max(now, time), 0
        elif not streak.rows:
            streak.start(time, key)
        at.append(now)
    stretches.append(_stretch(start, len(times), before, at, stepped))
    mark = Watermark(now, arrival_us, key=first_key, many=several)
    if streak.rows:
        mark = replace(mark, streak=streak.rows, streak_us=streak.newest, streak_key=streak.key, streak_many=streak.many)
    return mark, stretches


def _stretch(start: int, stop: int, before: list[int], at: list[int], stepped: bool) -> Stretch:
    return Stretch(start, stop, pa.array(before, pa.int64()), pa.array(at, pa.int64()), stepped)


def reached_us(mark: Watermark, arrival_us: int, idle_after_us: int) -> int | None:
    """How far event time has come in a source by now: one without rows since `idle_after_us` goes on with node time. One that
    was never heard holds everybody back for as long, and then (None) nobody."""
    silent_us = arrival_us - mark.arrival_us
    is_idle = silent_us > max(idle_after_us, IDLE_US_MIN)
    if mark.us is None:
        return None if is_idle else NEVER_US
    return mark.us + silent_us if is_idle else mark.us
