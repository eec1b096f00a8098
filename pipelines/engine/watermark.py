"""How far event time has come in each source, told without any clock (I10).

The watermark is the largest event time seen. A row more than `FAR_US` from it counts but does not move it, until `AGREEING` rows
without a near one between them went on from each other, on the same side: ahead, then time really went on (a machine was off);
behind, then the sensor's clock was set back, or an older file is read: a new time line starts and open windows are closed as they
are. The last of those rows is not believed before the next one confirms it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.duration import US_PER
from pipelines.engine.state import Watermark

FAR_US = US_PER["h"]
AGREEING = 8
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


def advance(mark: Watermark, times: pa.Int64Array, arrival_us: int) -> tuple[Watermark, list[Stretch]]:
    """The watermark after rows with these event times (none null), and the batch's stretches, in order."""
    if not len(times):
        return mark, []
    first = times[0].as_py() if mark.us is None else mark.us
    reached = pc.max_element_wise(pc.cumulative_max(times), pa.scalar(first, pa.int64()))
    before = pa.concat_arrays([pa.array([first], pa.int64()), reached[:-1]])
    far = pc.or_(pc.greater(times, pc.add(before, FAR_US)), pc.less(times, pc.subtract(before, FAR_US)))
    if not mark.streak and not pc.any(far).as_py():
        return Watermark(reached[-1].as_py(), arrival_us), [Stretch(0, len(times), before, reached)]
    return _advance_slowly(replace(mark, us=first), times.to_pylist(), arrival_us)


def _advance_slowly(mark: Watermark, times: list[int], arrival_us: int) -> tuple[Watermark, list[Stretch]]:
    """The same, row by row: some are far from the watermark."""
    now, streak, newest = mark.us or 0, mark.streak, mark.streak_us
    stretches: list[Stretch] = []
    before: list[int] = []
    at: list[int] = []
    start, stepped = 0, False
    for i, time in enumerate(times):
        if abs(time - now) > FAR_US:
            goes_on = streak > 0 and (time > now) == (newest > now) and time >= newest - FAR_US
            if goes_on and streak + 1 >= AGREEING:
                if newest < now:
                    if i > start:
                        stretches.append(_stretch(start, i, before, at, stepped))
                    start, stepped, before, at = i, True, [], []
                now, streak = newest, 0
            else:
                streak, newest = (streak + 1, max(newest, time)) if goes_on else (1, time)
        before.append(now)
        if abs(time - now) <= FAR_US:
            now, streak = max(now, time), 0
        elif not streak:
            streak, newest = 1, time
        at.append(now)
    stretches.append(_stretch(start, len(times), before, at, stepped))
    return Watermark(now, arrival_us, streak, newest if streak else 0), stretches


def _stretch(start: int, stop: int, before: list[int], at: list[int], stepped: bool) -> Stretch:
    return Stretch(start, stop, pa.array(before, pa.int64()), pa.array(at, pa.int64()), stepped)


def reached_us(mark: Watermark, arrival_us: int, idle_after_us: int) -> int | None:
    """How far event time has come in a source by now: one without rows since `idle_after_us` goes on with node time."""
    silent_us = arrival_us - mark.arrival_us
    return mark.us + silent_us if mark.us is not None and silent_us > max(idle_after_us, IDLE_US_MIN) else mark.us
