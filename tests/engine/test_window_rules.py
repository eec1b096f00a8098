"""Corrections, limits, windows over windows, and what is refused."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from engine_support import T0, Run, S, batch, compiled, ledgers_balance, pipeline, row, timer

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.engine.batch import Batch
from pipelines.engine.plan import check_spec, compile_plan
from pipelines.engine.run import drain, open_window_rows
from pipelines.engine.state import entries, restore
from pipelines.engine.watermark import AGREEING
from pipelines.engine.windows import panes


def window(settings: str, select: str = "x: count(*)", more: str = "", by: str = "[k]") -> str:
    body = f"windows:\n  w:\n{settings.rstrip()}\n    by: {by}\n    select:\n      {select}\n{more}"
    return pipeline(body)


def run(text: str, *rows: str) -> Run:
    made = Run(compiled(text)).feed(batch(rows))
    ledgers_balance(made.state)
    return made


def emitted(made: Run, column: str = "x") -> list[tuple[float, Any, int]]:
    return [(r["_window_start"].timestamp() - T0 / S, r[column], r["_revision"]) for r in made.rows("out")]


KEPT = "    every: 10s\n    lateness: 2s\n    keep: 1m\n"


def test_a_late_row_corrects_its_window_until_keep() -> None:
    made = run(window(KEPT), row(1), row(13))
    assert emitted(made) == [(0, 1, 0)]
    made.feed(batch([row(2), row(3)]))
    assert emitted(made)[1:] == []  # collected until the watermark passes a multiple of 10 s
    made.feed(batch([row(21)]))
    assert emitted(made)[1:] == [(0, 3, 1)]
    made.feed(batch([row(4), row(35)]))
    assert emitted(made)[2:] == [(10, 1, 0), (0, 4, 2), (20, 1, 0)]
    made.feed(batch([row(71), row(5)]))
    assert made.reasons() == [["too_late"]]
    made.finish()
    ledgers_balance(made.state)
    assert made.state.streams["windows.w"] == {"contributed": 9, "too_late": 1, "over_limit": 0, "emitted": 8}
    assert made.state.of(made.plan.windows["w"].owner) == {}


def test_a_late_row_may_make_a_window_that_had_none() -> None:
    made = run(window(KEPT), row(1), row(30), row(12, "b"), row(45))
    assert (10, 1, 0) in emitted(made)
    ledgers_balance(made.state)


def test_rows_that_came_out_are_not_open_while_the_window_may_be_corrected() -> None:
    made = run(window(KEPT), row(1), row(13), row(2))
    assert open_window_rows(made.state) == {"w": 2}  # the one at 13 s and the correction
    assert made.state.streams["windows.w"]["emitted"] == 1


def test_time_avg_holds_the_last_value_of_the_window_before() -> None:
    text = window("    every: 10s\n", "x: time_avg(v)")
    made = run(text, row(5, v=10), row(15, v=20), row(25, v=0), row(25, "b", v=3)).finish()
    assert emitted(made) == [(0, 10.0, 0), (10, 15.0, 0), (20, 10.0, 0), (20, 3.0, 0)]
    kept = window("    every: 10s\n    keep: 1m\n", "x: time_avg(v)")
    made = run(kept, row(5, v=10), row(15, v=20), row(25, v=0), row(18, v=40), row(45, v=0))
    assert (10, pytest.approx((50 + 60 + 80) / 10), 1) in emitted(made)


def test_an_average_over_a_duty_cycle_may_be_of_conditions() -> None:
    made = run(window("    every: 10s\n", "x: time_avg(v > 5)"), row(0, v=0), row(4, v=9), row(9, v=1)).finish()
    assert emitted(made) == [(0, 0.5, 0)]


def test_the_groups_of_a_window_are_limited_and_those_beyond_accounted() -> None:
    text = window("    every: 10s\n    max_groups: 3\n")
    rows = [row(1, k) for k in "abcdae"] + [row(11, k) for k in "defg"]
    expected = run(text, *rows).finish()
    assert expected.reasons() == [["over_limit"]] * 3
    assert [(r["at"], r["k"], r["x"]) for r in expected.windows()] == [
        *((0, k, n) for k, n in (("a", 2), ("b", 1), ("c", 1))),
        *((10, k, 1) for k in "def"),
    ]
    ledgers_balance(expected.state)
    one_by_one = Run(compiled(text)).feed(*(batch([r]) for r in rows)).finish()
    assert one_by_one.windows() == expected.windows()
    assert one_by_one.state.ledger() == expected.state.ledger()


@pytest.mark.parametrize("small", [1, 10**9])
@pytest.mark.parametrize("kind", ["    every: 10s\n", "    gap: 5s\n"])
def test_i9_stamps_at_random_do_not_fill_the_memory(kind: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panes, "SMALL", small)
    monkeypatch.setattr(panes, "AHEAD_MAX", 20)
    monkeypatch.setattr("pipelines.engine.windows.sessions.AHEAD_MAX", 20)
    chance = random.Random(4)
    rows = []
    for i in range(300):
        rows += [row(i), row(chance.uniform(1e8, 9e8), "wild")]
    text = window(kind)
    made = Run(compiled(text)).feed(*(batch(rows[i : i + 50]) for i in range(0, 600, 50)))
    assert made.state.streams["windows.w"]["over_limit"] == 280
    assert len(made.state.of(made.plan.windows["w"].owner)) <= 22
    ledgers_balance(made.state)
    other = Run(compiled(text)).feed(*(batch([r]) for r in rows))
    assert other.state.ledger() == made.state.ledger()
    assert other.finish().windows() == made.finish().windows()


def test_i9_open_cells_of_all_windows_together_are_limited() -> None:
    text = window("    every: 1s\n    lateness: 10m\n    max_groups: 1\n")
    rows = [row(i) for i in range(100)]
    made = Run(compiled(text)).feed(batch(rows))
    assert made.state.streams["windows.w"]["over_limit"] == 80
    one_by_one = Run(compiled(text)).feed(*(batch([r]) for r in rows))
    assert one_by_one.finish().windows() == made.finish().windows()


METERS = """
windows:
  quarter_hour:
    every: 15m
    by: [k]
    select:
      kwh: sum(v)
      peak: 4 * sum(v)
{more}  w:
    at: ["06:00", "14:00", "22:00"]
    timezone: Europe/Paris
    from: quarter_hour
    by: [k]
    select:
      kwh: sum(kwh)
      highest: max(peak)
      quarters: count(*)
"""


def test_shifts_over_quarters_of_an_hour_on_a_day_of_25_hours() -> None:
    start = 297 * 86_400 - 8 * 3600  # 24 October 2026, 16:00 UTC
    rows = [row(start + i * 300, "m", 0.25) for i in range(40 * 12)]
    text = pipeline(METERS.replace("{more}", ""))
    made = Run(compiled(text))
    for i in range(0, len(rows), 37):
        made.feed(batch(rows[i : i + 37]))
    made.finish()
    out = [(r["_window_end"] - r["_window_start"], r["quarters"], r["kwh"]) for r in made.rows("out")]
    hours = [(d.total_seconds() / 3600, quarters, kwh) for d, quarters, kwh in out]
    assert hours[1:-1] == [(9, 36, 27.0), (8, 32, 24.0), (8, 32, 24.0), (8, 32, 24.0)]
    assert all(r["highest"] == 3.0 for r in made.rows("out"))
    ledgers_balance(made.state)


def test_a_revised_row_replaces_its_older_self_in_the_window_above() -> None:
    text = pipeline(METERS.replace("{more}", "    keep: 2h\n"))
    made = Run(compiled(text))
    made.feed(batch([row(i * 60, "m", 1) for i in range(60)]))
    made.feed(batch([row(100, "m", 1000)]))  # late for the first quarter
    made.feed(batch([row(3600 + i * 60, "m", 1) for i in range(120)]))
    made.finish()
    ledgers_balance(made.state)
    last = {r["_window_start"]: r for r in made.rows("out")}
    assert sum(r["kwh"] for r in last.values()) == 180 + 1000
    assert sum(r["quarters"] for r in last.values()) == 12
    assert max(r["highest"] for r in last.values()) == 4 * 1015


@pytest.mark.parametrize("more", ["", "    keep: 30m\n"])
def test_i1_i14_windows_over_windows(more: str) -> None:
    text = pipeline(METERS.replace("{more}", more))
    chance = random.Random(9)
    rows = [row(i * 120 - chance.choice([0, 0, 0, 600, 1900]), chance.choice("ab"), chance.uniform(0, 5)) for i in range(500)]
    outcomes = []
    for cuts in ([], list(range(0, 500, 7)), sorted(chance.sample(range(500), 20))):
        made, stored = Run(compiled(text)), {}
        since = None
        for start, stop in pairwise([0, *cuts, 500]):
            if start < stop:
                made.feed(batch(rows[start:stop]))
            put, gone = entries(made.state, since)
            stored.update(put)
            for key in gone:
                del stored[key]
            ledger = json.loads(json.dumps(made.state.ledger()))
            made.state = since = restore("lineage", list(stored.items()), ledger, made.state.epoch + 1)
        ledgers_balance(made.state)
        outcomes.append((made.finish().rows("out"), made.state.ledger()))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(outcomes[0][0]) > 5


def test_time_alone_closes_a_window_over_a_window() -> None:
    made = Run(compiled(pipeline(METERS.replace("{more}", "")))).feed(batch([row(0, "m")], 10))
    made.feed(timer(10 + 9 * 3600))
    assert [r["quarters"] for r in made.rows("out")] == [1]


def test_a_long_window_does_not_make_a_short_one_wait_for_a_silent_source() -> None:
    text = pipeline(
        "windows:\n  w:\n    every: 10s\n    select:\n      x: count(*)\n  day:\n    every: 1d\n    select:\n      x: count(*)\n"
    )
    made = Run(compiled(text)).feed(batch([row(0)], 10), timer(30))
    assert [r["x"] for r in made.rows("out")] == [1]


def test_a_session_is_as_long_as_it_lasts() -> None:
    made = run(window("    gap: 30s\n    max: 1h\n", "x: sum(v)"), row(0), row(20), row(45), row(80), row(300)).finish()
    out = [(r["_window_start"].timestamp() - T0 / S, r["_window_end"].timestamp() - T0 / S, r["x"]) for r in made.rows("out")]
    assert out == [(0, 75, 3.0), (80, 110, 1.0), (300, 330, 1.0)]


def test_distinct_is_exact_up_to_a_thousand_and_near_beyond() -> None:
    text = window("    every: 1d\n", "x: distinct(n)\n      y: count(distinct n) filter (where v > 1)")
    made = run(text, *(row(i / 100, n=i % 900) for i in range(3000))).finish()
    assert (made.windows()[0]["x"], made.windows()[0]["y"]) == (900, 0)
    made = run(text, *(row(i / 100, n=i) for i in range(20_000))).finish()
    assert made.windows()[0]["x"] == pytest.approx(20_000, rel=0.05)


def test_integers_sum_exactly_and_the_mean_of_booleans_is_a_share() -> None:
    text = window("    every: 1d\n", "x: sum(n)\n      y: avg(v > 2)\n      z: sum(CAST(v AS DECIMAL(10, 2)))")
    made = run(text, *(row(1, v=i % 4, n=2**53 + i) for i in range(500))).finish()
    assert made.windows()[0]["x"] == sum(2**53 + i for i in range(500))
    assert made.windows()[0]["y"] == 0.25
    assert str(made.windows()[0]["z"]) == "750.00"


def test_sums_beyond_2_to_the_66th_do_not_depend_on_order() -> None:
    numbers = [1e300, 3.5, -1e300, 1e70, 2.25, -1e70, 1e16, 1.0, -1e16]
    for _ in range(5):
        random.Random(1).shuffle(numbers)
        made = run(window("    every: 1d\n", "x: sum(v)"), *(row(1, v=v) for v in numbers)).finish()
        assert made.windows()[0]["x"] == 6.75


def test_a_new_definition_closes_a_window_as_partial_and_forgets_it() -> None:
    text = window("    every: 10s\n    keep: 1m\n", "x: time_avg(v)")
    made = run(text, row(1), row(13), row(2))
    made.state, output = drain(made.plan, made.state, compile_plan(load_spec(text.replace("10s", "20s"))), 0)
    assert [(r["_partial"], r["_revision"]) for t in output.rows["out"] for r in t.to_pylist()] == [(True, 1), (True, 0)]
    assert not made.state.cells
    ledgers_balance(made.state)
    made = run(text, row(1))
    made.state, output = drain(made.plan, made.state, compile_plan(load_spec(text + "description: another text\n")), 0)
    assert not output.rows and made.state.cells


def test_a_step_back_ends_sessions_and_sliding_windows_too() -> None:
    for kind in ("    gap: 5s\n", "    every: 10s\n    slide: 5s\n"):
        made = run(window(kind), *(row(100_000 + i) for i in range(12)), *(row(i) for i in range(30)))
        assert any(r["_partial"] for r in made.rows("out"))
        made.finish()
        assert made.state.streams["windows.w"]["too_late"] == AGREEING - 1
        ledgers_balance(made.state)


REFUSED = [
    ("    every: 10s\n    gap: 5s\n", "x: count(*)", "exactly one kind"),
    ("    every: 10s\n    slide: 3s\n", "x: count(*)", "a multiple of slide"),
    ("    slide: 3s\n    gap: 1s\n", "x: count(*)", "slide goes with every"),
    ("    gap: 5s\n    keep: 1h\n", "x: count(*)", "takes no corrections"),
    ('    at: ["06:00"]\n', "x: count(*)", "at: goes with timezone:"),
    ('    at: ["14:00", "06:00"]\n    timezone: UTC\n', "x: count(*)", "stand in order"),
    ('    at: ["24:00"]\n    timezone: UTC\n', "x: count(*)", "not a time of the day"),
    ("    every: 1d\n    timezone: Europe/Pariss\n", "x: count(*)", "there is no time zone"),
    ("    every: 1h\n    timezone: Europe/Paris\n", "x: count(*)", "timezone goes with at: or every: 1d"),
    ("    every: 1s\n    keep: 7d\n", "x: count(*)", "windows would be open at a time"),
    ("    every: 1s\n", "x: quantile(v)", "quantile() takes 2 arguments"),
    ("    every: 1s\n", "x: quantile(v, 95)", "a share between 0 and 1"),
    ("    every: 1s\n", "x: quantile(v, n)", "a share between 0 and 1"),
    ("    every: 1s\n", "x: histogram(v, [3, 2])", "rising numbers"),
    ("    every: 1s\n", "x: stddev(k)", "stddev() is of numbers"),
    ("    every: 1s\n", "x: median(v)", "the aggregate median() is not allowed here"),
    ("    every: 1s\n    from: nothing\n", "x: count(*)", 'there is no window "nothing"'),
    ("    every: 1s\n    from: w\n", "x: count(*)", "stands below"),
    ("    every: 1s\n", "x: max(v)\n      X: min(v)", "stands twice"),
]


@pytest.mark.parametrize(("kind", "select", "says"), REFUSED)
def test_what_is_refused_says_why(kind: str, select: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(window(kind, select)))
    assert any(says in problem.message for problem in caught.value.problems), caught.value.problems
    assert all(problem.path.startswith("windows.w") for problem in caught.value.problems)


OVER = [
    ("    every: 10s\n    slide: 5s\n", "overlap and would count twice"),
    ("    gap: 10s\n", "no longest time to wait for"),
    ("    every: 10s\n    keep: 1h\n", "is no group of"),
]


@pytest.mark.parametrize(("below", "says"), OVER)
def test_a_window_over_a_window_is_refused_where_it_would_lie(below: str, says: str) -> None:
    text = pipeline(
        f"windows:\n  low:\n{below}    by: [k]\n    select:\n      x: last(n)\n"
        "  w:\n    every: 1h\n    from: low\n    by: [x]\n    select:\n      y: count(*)\n"
    )
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(text))
    assert any(says in problem.message for problem in caught.value.problems), caught.value.problems


def test_only_a_count_of_something_sensitive_may_leave() -> None:
    schema = "  ts: {type: timestamp, event_time: true}\n  badge: {type: string, sensitive: true}\n  n: {type: integer}"
    select = "{x: max(badge), y: count(badge), z: distinct(badge), q: sum(n), f: count(*) filter (where badge > 'a')}"
    text = f"""
tidewire: 1
pipeline: p
sources: {{s: {{file: {{path: x}}, decode: json}}}}
schema:
{schema}
windows: {{w: {{every: 1s, by: [], select: {select}}}}}
sinks: {{out: {{lake: {{table: t}}, from: w}}}}
"""
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(text))
    assert "x" in str(caught.value.problems)
    plan = compile_plan(load_spec(text.replace("x: max(badge), ", "")))
    assert not any(column.sensitive for column in plan.windows["w"].columns.values())


TWO_SOURCES = pipeline("windows:\n  w:\n    every: 10s\n    by: [k]\n    select:\n      n: count(*)\n")


def test_a_source_that_was_not_heard_yet_is_waited_for() -> None:
    made = Run(compiled(TWO_SOURCES), waits=True)
    made.feed(batch([row(0), row(600)], 1, "s"), batch([row(0, "b"), row(600, "b")], 1, "s2"))
    assert [(w["at"], w["k"], w["n"]) for w in made.windows()] == [(0, "a", 1), (0, "b", 1)]
    assert made.quarantine() == []


def test_a_source_that_is_never_heard_is_not_waited_for_long() -> None:
    made = Run(compiled(TWO_SOURCES), waits=True)
    made.feed(batch([row(0), row(600)], 1, "s"), timer(5))
    assert made.windows() == []
    assert [w["at"] for w in made.feed(timer(30)).windows()] == [0, 600]


def test_a_source_that_has_ended_is_not_waited_for() -> None:
    made = Run(compiled(TWO_SOURCES), waits=True)
    made.feed(batch([row(0), row(600)], 1, "s"), Batch("s2", 1 * S, T0))
    assert [w["at"] for w in made.windows()] == [0]
