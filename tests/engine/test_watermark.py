"""How far event time has come, told without any clock (I10)."""

from __future__ import annotations

import random
from itertools import pairwise

import pyarrow as pa
import pytest
from engine_support import S
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine.state import Watermark
from pipelines.engine.watermark import AGREEING, AGREEING_ALONE, FAR_US, advance, reached_us

YEAR = 365 * 86_400
Row = tuple[float, str]  # seconds, key


def after(*rows: Row, mark: Watermark | None = None) -> tuple[Watermark, int]:
    """The watermark after rows that came one by one, and how often a new time line started."""
    mark, steps = mark or Watermark(), 0
    for time, key in rows:
        mark, stretches = advance(mark, pa.array([round(time * S)], pa.int64()), 0, pa.array([key]))
        steps += sum(stretch.stepped_back for stretch in stretches)
    return mark, steps


def seconds(mark: Watermark) -> float:
    assert mark.us is not None
    return mark.us / S


def test_it_is_the_newest_event_time_and_never_goes_back() -> None:
    mark, _ = after((10, "a"), (30, "a"), (20, "b"))
    assert seconds(mark) == 30


@pytest.mark.parametrize("rows", [1, AGREEING, AGREEING_ALONE - 1])
def test_one_sensor_from_2036_does_not_agree_with_itself(rows: int) -> None:
    mark, _ = after((1, "a"), (2, "b"), *((10 * YEAR + i, "wrong") for i in range(rows)))
    assert seconds(mark) == 2


def test_several_sensors_agree_that_time_went_on() -> None:
    night = [(1, "a"), (2, "b"), *((40_000 + i, "ab"[i % 2]) for i in range(AGREEING))]
    mark, _ = after(*night)
    assert seconds(mark) == 40_000 + AGREEING - 1


def test_the_only_sensor_agrees_with_itself() -> None:
    mark, _ = after((1, "a"), *((40_000 + i, "a") for i in range(AGREEING)))
    assert seconds(mark) == 40_000 + AGREEING - 1


def test_if_all_others_stay_silent_one_sensor_is_believed_in_the_end() -> None:
    mark, _ = after((1, "a"), (2, "b"), *((40_000 + i, "a") for i in range(AGREEING_ALONE + 1)))
    assert seconds(mark) == 40_000 + AGREEING_ALONE


def test_an_honest_row_between_them_ends_the_agreement() -> None:
    rows: list[Row] = [(1, "a"), (2, "b")]
    for i in range(100):
        rows += [(10 * YEAR + i, "wrong"), (10 * YEAR + i, "wrong too"), (3 + i, "a")]
    mark, _ = after(*rows)
    assert seconds(mark) == 102


def test_a_node_that_boots_in_1970_goes_on_when_its_clock_is_set() -> None:
    booted = [(i, "ab"[i % 2]) for i in range(20)]
    synced = [(56 * YEAR + i, "ab"[i % 2]) for i in range(20)]
    mark, steps = after(*booted, *synced)
    assert (seconds(mark), steps) == (56 * YEAR + 19, 0)


def test_a_clock_set_back_starts_a_new_time_line_once() -> None:
    rows = [*((YEAR + i, "ab"[i % 2]) for i in range(20)), *((i, "ab"[i % 2]) for i in range(20))]
    mark, steps = after(*rows)
    assert (seconds(mark), steps) == (19, 1)


def test_an_idle_source_goes_on_with_node_time() -> None:
    mark = Watermark(us=100 * S, arrival_us=0)
    assert reached_us(mark, 4 * S, 0) == 100 * S  # a pause is not silence
    assert reached_us(mark, 60 * S, 0) == 160 * S
    assert reached_us(mark, 60 * S, 90 * S) == 100 * S
    assert reached_us(Watermark(), 60 * S, 0) is None


times = st.one_of(st.integers(0, 60), st.sampled_from([0, 5000, 90_000, 90_001, -7200, 10 * YEAR, 10 * YEAR + 5]))


@settings(max_examples=100)
@given(st.lists(st.tuples(times, st.sampled_from("aab")), max_size=60), st.integers(1, 12), st.randoms(use_true_random=False))
def test_i14_any_split_gives_the_same_watermarks(rows: list[Row], repeat: int, chance: random.Random) -> None:
    rows = [row for row in rows for _ in range(repeat)]
    outcomes = []
    for cuts in ([], list(range(1, len(rows))), sorted(chance.sample(range(len(rows)), min(len(rows), 3)))):
        mark, met = Watermark(), []
        for start, stop in pairwise([0, *cuts, len(rows)]):
            if start == stop:
                continue
            part = rows[start:stop]
            stamps = pa.array([round(time * S) for time, _ in part], pa.int64())
            mark, stretches = advance(mark, stamps, 0, pa.array([key for _, key in part]))
            assert [s.start for s in stretches] == [0, *(s.stop for s in stretches[:-1])]
            for s in stretches:
                befores, ats = s.before_us.to_pylist(), s.at_us.to_pylist()
                met += [(b, a, s.stepped_back and i == 0) for i, (b, a) in enumerate(zip(befores, ats, strict=True))]
                assert all(x <= y for x, y in pairwise(ats))
        outcomes.append((mark, met))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_far_is_an_hour() -> None:
    assert FAR_US == 3600 * S
