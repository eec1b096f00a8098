"""Event-time windows against a computation of their own in plain Python."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from engine_support import T0, Run, S, batch, compiled, ledgers_balance, pipeline, row, timer

from pipelines.engine.run import open_window_rows
from pipelines.engine.watermark import AGREEING

WINDOW = """
windows:
  w:
    every: 10s
    by: [k]
    select:
      x: {select}
{more}
"""


def window(select: str = "count(*)", more: str = "", body: str = "") -> str:
    return pipeline(body + WINDOW.replace("{select}", select).replace("{more}", more))


def run(text: str, *rows: str) -> Run:
    made = Run(compiled(text)).feed(batch(rows))
    ledgers_balance(made.state)
    return made


Row = tuple[float, str, float | None]


def noise(n: int = 500) -> list[Row]:
    chance = random.Random(7)
    return [
        (
            i / 4 + chance.uniform(0, 3),
            chance.choice("abc"),
            chance.choice([None, chance.gauss(20, 1e-3), chance.uniform(-1e6, 1e6)]),
        )
        for i in range(n)
    ]


def values(rows: list[Row], at: int, k: str, keep: Any = lambda v: True) -> list[float]:
    """The values of a window in order of event time (the first that came on a tie)."""
    mine = sorted((r for r in rows if r[0] // 10 * 10 == at and r[1] == k), key=lambda r: r[0])
    return [v for _, _, v in mine if v is not None and keep(v)]


def stddev(x: list[float]) -> float | None:
    return statistics.stdev(x) if len(x) > 1 else None


AGGREGATES: list[tuple[str, Any]] = [
    ("count(v)", len),
    ("sum(v)", lambda x: math.fsum(x) if x else None),
    ("avg(v)", lambda x: math.fsum(x) / len(x) if x else None),
    ("mean(v)", lambda x: math.fsum(x) / len(x) if x else None),
    ("min(v)", lambda x: min(x, default=None)),
    ("max(v)", lambda x: max(x, default=None)),
    ("stddev(v)", stddev),
    ("max(v) - min(v)", lambda x: max(x) - min(x) if x else None),
    ("sum(v * 2) / count(v)", lambda x: math.fsum(2 * v for v in x) / len(x) if x else None),
]


@pytest.mark.parametrize(("select", "expected"), AGGREGATES)
@pytest.mark.parametrize("filtered", [False, True])
def test_each_aggregate(select: str, expected: Any, filtered: bool) -> None:
    rows = noise()
    keep = (lambda v: v > 20) if filtered else (lambda v: True)
    if filtered:
        select = select.replace(")", ") filter (where v > 20)")
    made = Run(compiled(window(select, "    lateness: 1m\n")))
    for start in range(0, len(rows), 37):
        made.feed(batch(row(t, k, v) for t, k, v in rows[start : start + 37]))
    made.finish()
    ledgers_balance(made.state)
    found = {(r["at"], r["k"]): r["x"] for r in made.windows()}
    assert set(found) == {(t // 10 * 10, k) for t, k, _ in rows}
    for (at, k), x in found.items():
        wanted = expected(values(rows, at, k, keep))
        assert (x is None and wanted is None) or x == pytest.approx(wanted, rel=1e-6 if "stddev" in select else 1e-12), (at, k)


def test_first_and_last_are_by_event_time_and_then_by_arrival() -> None:
    rows = [row(5, v=1), row(2, v=2), row(2, v=3), row(8, v=4), row(8, v=5), row(3, v=None)]
    made = run(window("first(v)"), *rows[:3]).feed(batch(rows[3:])).finish()
    assert made.windows()[0]["x"] == 2.0
    assert run(window("last(v)"), *rows[:4]).feed(batch(rows[4:])).finish().windows()[0]["x"] == 5.0
    assert run(window("last(k)"), row(1, "a")).finish().windows()[0]["x"] == "a"
    assert run(window("last(ts)"), row(1)).finish().windows()[0]["x"].timestamp() == T0 / S + 1


def test_integers_booleans_and_texts_aggregate_too() -> None:
    big = 2**62
    made = run(window("sum(n)"), row(0, n=big), row(1, n=-big), row(2, n=5)).finish()
    assert made.windows()[0]["x"] == 5
    assert run(window("sum(n)"), row(0, n=big), row(1, n=big)).finish().windows()[0]["x"] is None  # no room for it
    assert run(window("max(k)"), row(0), row(1)).finish().windows()[0]["x"] == "a"
    assert run(window("avg(n)"), row(0, n=1), row(1, n=2)).finish().windows()[0]["x"] == 1.5


def test_an_error_within_an_aggregate_counts_as_null_there() -> None:
    made = run(window("sum(n % (n - 3))"), row(0, n=3), row(1, n=7), row(2, n=4)).finish()
    assert made.windows()[0]["x"] == 3


def test_sums_do_not_depend_on_the_order_of_the_rows() -> None:
    chance = random.Random(3)
    numbers = [chance.uniform(-1, 1) * 10.0 ** chance.randint(-12, 12) for _ in range(300)]
    exact = math.fsum(numbers)
    for _ in range(5):
        chance.shuffle(numbers)
        made = Run(compiled(window("sum(v)")))
        for start in range(0, 300, 7):
            made.feed(batch(row(1, v=v) for v in numbers[start : start + 7]))
        assert made.finish().windows()[0]["x"] == exact


def test_a_window_closes_when_event_time_passes_its_end_and_lateness() -> None:
    text = window("count(*)", "    lateness: 5s\n")
    made = run(text, row(0), row(9.9), row(14.9))
    assert made.windows() == []
    made.feed(batch([row(15)]))
    assert made.windows() == [{"at": 0, "k": "a", "x": 2, "_partial": False}]


def test_a_row_too_late_is_quarantined_and_counted_but_is_still_a_row() -> None:
    made = run(window(), row(0), row(25), row(3), row(12))
    assert made.reasons() == [["too_late"], ["too_late"]]
    assert [r["step"] for r in made.quarantine()] == ["windows.w", "windows.w"]
    assert len(made.rows()) == 4
    assert made.state.streams["windows.w"]["too_late"] == 2
    made.finish()
    assert [(r["at"], r["x"]) for r in made.windows()] == [(0, 1), (20, 1)]
    ledgers_balance(made.state)


def test_a_window_sees_only_rows_that_its_condition_holds_for() -> None:
    made = run(
        window(more="    where: v > 1 and n % (n - 3) <> 9\n"), row(0, v=2, n=1), row(1, v=0, n=1), row(2, v=2, n=3)
    ).finish()
    assert [(r["at"], r["x"]) for r in made.windows()] == [(0, 1)]
    assert made.state.streams["windows.w"]["contributed"] == 1


def test_a_null_is_a_group() -> None:
    made = run(window(), row(0, None), row(1, None), row(2, "null")).finish()
    assert [(r["k"], r["x"]) for r in made.windows()] == [(None, 2), ("null", 1)]


def test_i10_a_row_from_2036_counts_and_makes_no_honest_row_late() -> None:
    ten_years = 10 * 365 * 86_400
    made = run(window(), row(0), row(ten_years), row(1), row(11), row(12))
    assert made.reasons() == []
    assert [(r["at"], r["x"]) for r in made.windows()] == [(0, 2)]
    made.finish()
    assert [r["x"] for r in made.windows()] == [2, 2, 1]
    assert made.feed(batch([row(21), row(22)])).reasons() == []  # closing the far one does not make later rows late
    ledgers_balance(made.state)


def test_a_first_row_from_2036_is_forgotten_once_honest_rows_agree() -> None:
    made = run(window(), row(3e8), *(row(i) for i in range(30))).finish()
    assert made.state.streams["windows.w"]["too_late"] == AGREEING - 1
    assert sum(r["x"] for r in made.windows()) == 31 - (AGREEING - 1)
    ledgers_balance(made.state)


def test_garbage_times_between_honest_rows_never_move_the_watermark() -> None:
    chance = random.Random(1)
    rows = []
    for i in range(400):
        rows.append(row(i / 10))
        rows += [row(chance.uniform(-1e9, 1e9), "wild") for _ in range(chance.randint(0, 3))]
    made = run(window(), *rows).finish()
    honest = [r for r in made.windows() if r["k"] == "a"]
    assert [(r["at"], r["x"]) for r in honest] == [(0, 100), (10, 100), (20, 100), (30, 100)]


def test_after_a_long_pause_time_goes_on() -> None:
    made = run(window(), row(0), row(1), *(row(86_400 + i) for i in range(40)))
    assert made.reasons() == []
    assert [(r["at"], r["x"]) for r in made.windows()] == [(0, 2), *((86_400 + 10 * i, 10) for i in range(3))]


def test_rows_hours_apart_move_the_watermark_too() -> None:
    """A meter that is read once a day: every row is far ahead of the one before."""
    made = run(window(), *(row(86_400 * day) for day in range(60)))
    assert 40 < len(made.windows()) < 60
    assert made.reasons() == []


def test_a_backwards_step_closes_the_old_time_line_and_starts_a_new_one() -> None:
    made = run(window(), *(row(100_000 + i) for i in range(12)), *(row(i) for i in range(30)))
    assert [(r["at"], r["x"], r["_partial"]) for r in made.windows()][:2] == [(100_000, 10, False), (100_010, 2, True)]
    made.finish()
    assert sum(r["x"] for r in made.windows()) == 42 - (AGREEING - 1)
    assert made.state.streams["windows.w"]["too_late"] == AGREEING - 1
    ledgers_balance(made.state)


def test_a_silent_source_goes_on_with_node_time_and_delays_nobody() -> None:
    made = Run(compiled(window())).feed(batch([row(0), row(1)], 100), timer(105))
    assert made.windows() == []
    made.feed(timer(111))
    assert [(r["at"], r["x"]) for r in made.windows()] == [(0, 2)]
    # what was not closed is not late, however long the silence was: an hourly file brings the rows of the whole hour
    made.feed(batch([row(11), row(12)], 3700), batch([row(25)], 3700))
    assert made.reasons() == []
    made.feed(batch([row(5)], 3701))
    assert made.reasons() == [["too_late"]]
    ledgers_balance(made.state)


def test_windows_wait_for_the_slower_of_two_sources_unless_it_is_silent() -> None:
    made = Run(compiled(window())).feed(batch([row(0, "a")], 1), batch([row(0, "b")], 1, "s2"))
    made.feed(batch([row(30, "a")], 2))
    assert made.windows() == []
    made.feed(batch([row(15, "b")], 3, "s2"))
    assert [(r["at"], r["k"]) for r in made.windows()] == [(0, "a"), (0, "b")]
    made.feed(batch([row(60, "a")], 100))  # s2 has been silent for long
    assert [(r["at"], r["k"]) for r in made.windows()][2:] == [(10, "b"), (30, "a")]
    made.feed(batch([row(16, "b")], 101, "s2"))
    assert made.reasons() == [["too_late"]]
    ledgers_balance(made.state)


def test_without_event_time_rows_are_stamped_on_arrival() -> None:
    schema = "  k: {type: string}"
    made = Run(compiled(pipeline(WINDOW.replace("{select}", "count(*)").replace("{more}", ""), schema=schema)))
    made.feed(batch(['{"k": "a"}'] * 2, 3), batch(['{"k": "a"}'], 14))
    assert [r["x"] for r in made.windows()] == [2]


def test_finish_emits_every_open_window_once() -> None:
    made = run(window(), row(0), row(11), row(12, "b")).finish().finish()
    assert [(r["at"], r["k"], r["x"]) for r in made.windows()] == [(0, "a", 1), (10, "a", 1), (10, "b", 1)]
    assert open_window_rows(made.state) == {}


def test_a_sink_of_a_window_takes_what_its_condition_holds_for() -> None:
    text = window() + "  many: {lake: {table: many}, from: w, where: x > 1 and _rows > 0}\n"
    made = Run(compiled(text)).feed(batch([row(0), row(1), row(11)])).finish()
    assert [r["x"] for r in made.rows("many")] == [2]
    assert made.state.streams["many"] == {"offered": 2, "not_selected": 1, "written": 1}
