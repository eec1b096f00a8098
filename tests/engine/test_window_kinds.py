"""Every kind of window and every aggregate against a computation in plain Python over all rows; any split into batches, by rows
and by columns, with a restart after every batch (I1, I14)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import window_reference as reference
from engine_support import T0, Run, S, batch, compiled, ledgers_balance, pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from window_reference import Reference, Row, shifts, sliding, tumbling

from pipelines.engine.state import State, entries, restore
from pipelines.engine.windows import panes

SELECT = """
    by: [k]
    select:
      n: count(*)
      c: count(v)
      s: sum(v)
      a: avg(v)
      lo: min(v)
      hi: max(v)
      d: stddev(v)
      f: first(v)
      l: last(v)
      u: distinct(v)
      q: quantile(v, 0.5)
      h: histogram(v, [0, 10])
      t: time_avg(v)
      big: count(*) filter (where v > 10)
      twice: 2 * sum(v) + count(*)
"""


def text(kind: str) -> str:
    return pipeline(f"windows:\n  w:\n{kind.rstrip()}{SELECT}")


def play(pipeline_text: str, rows: list[Row], cuts: list[int], small: int, monkeypatch: Any, *, restarts: bool = False) -> Run:
    """Rows in batches cut at `cuts`; batches of fewer than `small` rows go row by row."""
    monkeypatch.setattr(panes, "SMALL", small)
    made = Run(compiled(pipeline_text))
    lines = [json.dumps({"ts": T0 / S + t, "k": k, "v": v}) for t, k, v in rows]
    stored: dict[str, bytes] = {}
    committed: State | None = None
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if start < stop:
            made.feed(batch(lines[start:stop]))
        if restarts:
            put, gone = entries(made.state, committed)
            stored.update(put)
            for key in gone:
                del stored[key]
            ledger = json.loads(json.dumps(made.state.ledger()))
            made.state = committed = restore("lineage", list(stored.items()), ledger, made.state.epoch + 1)
    ledgers_balance(made.state)
    made.finish()
    ledgers_balance(made.state)
    return made


def found(made: Run) -> list[dict[str, Any]]:
    return [{**r, "_window_start": us(r["_window_start"]), "_window_end": us(r["_window_end"])} for r in made.rows("out")]


def us(time: Any) -> int:
    return round(time.timestamp() * S)


def close_to(x: float | None) -> Any:
    return None if x is None else pytest.approx(x, rel=1e-9, abs=1e-9)


def check(row: dict[str, Any], rows: list[tuple[int, Any]], before: float | None, start: int, end: int) -> None:
    values = reference.values(rows)
    assert (row["n"], row["_rows"], row["c"]) == (len(rows), len(rows), len(values))
    assert row["s"] == reference.total(rows)
    assert row["a"] == reference.mean(rows)
    assert (row["lo"], row["hi"]) == (min(values, default=None), max(values, default=None))
    assert row["d"] == close_to(reference.deviation(rows))
    assert (row["f"], row["l"]) == (reference.first(rows), reference.last(rows))
    assert row["u"] == len(set(values))
    assert row["h"] == [sum(v < 0 for v in values), sum(0 <= v < 10 for v in values), sum(v >= 10 for v in values)]
    assert row["big"] == sum(v > 10 for v in values)
    assert row["t"] == close_to(reference.time_average(rows, before, start, end))
    assert row["twice"] == close_to(None if row["s"] is None else 2 * row["s"] + len(rows))
    low, high = (sorted(values)[i] for i in ((len(values) - 1) // 2, len(values) // 2)) if values else (0.0, 0.0)
    off = 0.0101 * max(abs(low), abs(high)) + 1e-12
    assert row["q"] == (pytest.approx((low + high) / 2, abs=off) if values else None)


near = st.one_of(st.integers(-20, 20), st.floats(-30, 30, width=16))
far = st.sampled_from([-90.0, -600.0, -45.0])  # but less than an hour in the end
numbers = st.one_of(st.floats(-1e3, 1e3), st.floats(-1, 1e9)).map(lambda v: round(v, 6))  # within 17 decades: see sketch.py
values = st.one_of(st.none(), st.sampled_from([0.0, 0.1, 10.0, -3.5]), numbers)


@st.composite
def streams(draw: st.DrawFn, step: float) -> list[Row]:
    """Time that goes on by about `step` seconds a row, with rows out of order."""
    now, rows = 0.0, []
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from([0, 0.1, 1, 1, 3])) * step
        offset = draw(near if step > 100 else st.one_of(near, near, near, far))
        rows.append((now + offset * step / 10, draw(st.sampled_from(["a", "a", "b", None])), draw(values)))
    return rows


KINDS: dict[str, tuple[str, Callable[[int], list[reference.Bounds]], dict[str, int], float, int]] = {
    # name: (settings, windows of a time, how late, seconds between rows, where time starts)
    "tumbling": ("    every: 10s", tumbling(10 * S), {}, 2, 0),
    "late": ("    every: 10s\n    lateness: 5s", tumbling(10 * S), {"lateness": 5 * S}, 2, 0),
    "corrected": (
        "    every: 10s\n    lateness: 2s\n    keep: 1m",
        tumbling(10 * S),
        {"lateness": 2 * S, "keep": 60 * S, "grid": 10 * S},
        2,
        0,
    ),
    "sliding": ("    every: 10s\n    slide: 2s\n    lateness: 1s", sliding(10 * S, 2 * S), {"lateness": S}, 2, 0),
    "sliding corrected": (
        "    every: 30s\n    slide: 10s\n    keep: 2m",
        sliding(30 * S, 10 * S),
        {"keep": 120 * S, "grid": 10 * S},
        4,
        0,
    ),
    "day of 23 hours": (
        '    at: ["06:00", "14:00", "22:00"]\n    timezone: Europe/Paris',
        shifts(["06:00", "14:00", "22:00"], "Europe/Paris"),
        {},
        400,
        87 * 86_400 + 4 * 3600 - 5000,
    ),
    "local day of 25 hours": (
        "    every: 1d\n    timezone: Europe/Paris\n    lateness: 20m",
        shifts(["00:00"], "Europe/Paris"),
        {"lateness": 1200 * S},
        400,
        297 * 86_400 + 23 * 3600 - 5000,
    ),
    "shifts corrected": (
        '    at: ["02:30", "15:00"]\n    timezone: America/New_York\n    keep: 1h',
        shifts(["02:30", "15:00"], "America/New_York"),
        {"keep": 3600 * S, "grid": 60 * S},
        400,
        66 * 86_400 + 27_000 - 5000,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_i14_a_window_is_what_its_rows_say(name: str) -> None:
    kind, windows, late, step, origin = KINDS[name]

    @settings(max_examples=12)
    @given(streams(step), st.randoms(use_true_random=False))
    def against_the_reference(rows: list[Row], chance: random.Random) -> None:
        rows = [(round(origin + t, 3), k, v) for t, k, v in rows]
        expected = Reference(windows, **late).run([(T0 + round(t * S), k, v) for t, k, v in rows])
        ways = [
            ([], 1, False),  # one batch by columns
            (list(range(1, len(rows))), 10**9, True),  # row by row, a restart after each
            (sorted(chance.sample(range(len(rows)), min(len(rows), 4))), 3, True),
        ]
        for cuts, small, restarts in ways:
            with pytest.MonkeyPatch.context() as patch:
                made = play(text(kind), rows, cuts, small, patch, restarts=restarts)
            assert made.state.streams["windows.w"]["too_late"] == expected.too_late
            out = found(made)
            keys = [((r["_window_start"], r["_window_end"]), r["k"], r["_revision"]) for r in out]
            assert keys == [(e["bounds"], e["k"], e["revision"]) for e in expected.out]
            for row, e in zip(out, expected.out, strict=True):
                before = e["before"] if "keep" not in late else None
                in_panes = sorted(e["rows"], key=lambda r: windows(r[0])[-1])
                if "keep" in late:
                    row = {**row, "t": reference.time_average(in_panes, None, *e["bounds"])}  # a test of its own
                check(row, in_panes, before, *e["bounds"])

    against_the_reference()


@pytest.mark.parametrize(("most", "lateness"), [(None, 0), (40, 0), (25, 6), (None, 10)])
def test_i14_a_session_is_what_its_rows_say(most: int | None, lateness: int) -> None:
    kind = f"    gap: 8s\n    lateness: {lateness}s" + (f"\n    max: {most}s" if most else "")

    @settings(max_examples=12)
    @given(streams(3), st.randoms(use_true_random=False))
    def against_the_reference(rows: list[Row], chance: random.Random) -> None:
        rows = [(round(t, 3), k, v) for t, k, v in rows]
        stamped = [(T0 + round(t * S), k, v) for t, k, v in rows]
        expected, too_late = reference.sessions(stamped, 8 * S, most and most * S, lateness * S)
        for cuts, restarts in (([], False), (list(range(1, len(rows))), True), ([len(rows) // 2], False)):
            with pytest.MonkeyPatch.context() as patch:
                made = play(text(kind), rows, cuts, 128, patch, restarts=restarts)
            out = found(made)
            keys = [(r["_window_start"], r["_window_end"], r["k"]) for r in out]
            assert keys == [(e["start"], e["due"] - lateness * S, e["k"]) for e in expected]
            assert made.state.streams["windows.w"]["too_late"] == too_late
            for row, e in zip(out, expected, strict=True):
                check(row, e["rows"], None, e["start"], max(t for t, _ in e["rows"]))

    against_the_reference()


@settings(max_examples=15)
@given(streams(2), st.randoms(use_true_random=False))
def test_i14_rows_by_columns_and_one_by_one_leave_the_same_state(rows: list[Row], chance: random.Random) -> None:
    """Not only the results: what is kept is the same, digit by digit."""
    cells = []
    for small in (1, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(panes, "SMALL", small)
            made = Run(compiled(text("    every: 20s\n    slide: 10s\n    keep: 1m")))
            lines = [json.dumps({"ts": T0 / S + t, "k": k, "v": v}) for t, k, v in rows]
            made.feed(batch(lines[: len(rows) // 2]), batch(lines[len(rows) // 2 :]))
            cells.append({owner: dict(kept) for owner, kept in made.state.cells.items()})
    assert cells[0] == cells[1]
