"""How far event time has come in each source, told without any clock (I10).

The watermark is the largest event time seen. A row more than `FAR_US` ahead of it counts but does not move it, until `AGREEING`
rows in a row are as far: then time really went on (a machine was off). Likewise rows far behind: then the sensor's clock was set
back, or an older file is read; a new time line starts and open windows are closed as they are. An idle source advances with node
time, so that it holds nobody back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.duration import US_PER
from pipelines.engine.state import Watermark

FAR_US = US_PER["h"]
AGREEING = 8


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
    now, streak, extreme = mark.us or 0, mark.streak, mark.streak_us
    stretches: list[Stretch] = []
    before: list[int] = []
    at: list[int] = []
    start, stepped = 0, False
    for i, time in enumerate(times):
        before.append(now)
        if abs(time - now) <= FAR_US:
            now, streak = max(now, time), 0
        else:
            together = streak > 0 and abs(time - extreme) <= FAR_US
            streak, extreme = (streak + 1, max(extreme, time)) if together else (1, time)
            if streak >= AGREEING:
                if extreme < now:
                    if i > start:
                        stretches.append(_stretch(start, i, before[:-1], at, stepped))
                    start, stepped, before, at = i, True, [extreme], []
                now, streak = extreme, 0
        at.append(now)
    stretches.append(_stretch(start, len(times), before, at, stepped))
    return Watermark(now, arrival_us, streak, extreme if streak else 0), stretches


def _stretch(start: int, stop: int, before: list[int], at: list[int], stepped: bool) -> Stretch:
    return Stretch(start, stop, pa.array(before, pa.int64()), pa.array(at, pa.int64()), stepped)


def idle_advance(mark: Watermark, arrival_us: int, idle_after_us: int) -> Watermark:
    """The watermark of a source without rows since `idle_after_us`: it goes on with node time."""
    silent_us = arrival_us - mark.arrival_us
    if mark.us is None or silent_us <= idle_after_us:
        return mark
    return replace(mark, us=mark.us + silent_us, arrival_us=arrival_us)
