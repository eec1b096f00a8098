"""I14: any split of the same rows into batches gives the same rows, windows, incidents and ledgers. And a stored state goes on
exactly as the one in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from engine_support import T0, Run, S, batch, compiled, ledgers_balance, pipeline, timer
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine.state import State, entries, restore

TEXT = pipeline("""
steps:
  - filter: v < 90
  - derive:
      m: n % (n - 3)
windows:
  w:
    every: 10s
    by: [k]
    lateness: 3s
    select:
      c: count(*)
      s: sum(v)
      a: avg(v)
      lo: min(v)
      hi: max(ts)
      f: first(v)
      l: last(k)
      q: sum(n) filter (where v > 3)
  overlapping:
    every: 20s
    slide: 5s
    keep: 1m
    by: [k]
    select:
      a: avg(v)
      d: stddev(v)
      t: time_avg(v)
  busy:
    gap: 4s
    max: 30s
    lateness: 1s
    by: [k]
    max_groups: 5
    select:
      u: distinct(v)
      p: quantile(v, 0.9)
  quarters:
    every: 15s
    keep: 30s
    by: [k]
    select:
      s: sum(v)
  shift:
    at: ["00:00", "00:01"]
    timezone: Asia/Kolkata
    from: quarters
    by: [k]
    select:
      s: sum(s)
      h: histogram(s, [0, 10])
triggers:
  many:
    over: 8s
    by: [k]
    when: count(*) >= 3
    for: 2s
  mean:
    over: 20s
    when: avg(v) > 5.3
    clear_when: avg(v) < 4.1 or count(distinct k) > 2
  last:
    over: 5s
    by: [k]
    when: last(v) > 5
    for: 1s
    clear_when: last(v) <= 2
""") + "  high: {lake: {table: high}, where: v > 5}\n" + "".join(
    f"  {name}: {{lake: {{table: {name}}}, from: {name}}}\n" for name in ("overlapping", "busy", "quarters", "shift")
)  # fmt: skip


@dataclass(frozen=True)
class Instant:
    """Rows that one source has at one moment, or, without, a timer."""

    arrival_s: float
    source: str
    rows: tuple[str, ...]


def record(time: float, k: str | None, v: float | None, n: int | None) -> str:
    return json.dumps({"ts": T0 / S + time, "k": k, "v": v, "n": n})


times = st.one_of(
    st.integers(0, 60), st.floats(0, 60, width=32), st.sampled_from([-7200.0, 3e8, 7200.0, 7205.0, 7209.0, -7190.0, 90_000.0])
)
values = st.one_of(st.none(), st.sampled_from([0.1, 5.3, 30.9, 95.0]), st.floats(-10, 10))
records = st.builds(record, times, st.sampled_from(["a", "b", None]), values, st.sampled_from([None, 3, 4, 7]))
garbage = st.sampled_from(["garbage", '{"ts": "x"}', '{"v": 1}', "[]", '{"ts": 1767225600, "v": "x", "n": 1.5}'])
rows = st.lists(st.one_of(records, records, records, garbage), max_size=25)


@st.composite
def inputs(draw: st.DrawFn) -> list[Instant]:
    """Mostly rising times, with all that can be wrong with them."""
    found, now = [], 0.0
    for _ in range(draw(st.integers(1, 4))):
        now += draw(st.sampled_from([0.5, 3.0, 15.0, 4000.0]))
        if draw(st.booleans()):
            found.append(Instant(now, "", ()))
        found.append(Instant(now, draw(st.sampled_from(["s", "s", "s2"])), tuple(draw(rows))))
    return found


@st.composite
def long_stretches(draw: st.DrawFn) -> list[Instant]:
    """Runs of rows one after the other, so that far-away ones agree and time lines step."""
    found = []
    for i in range(draw(st.integers(1, 4))):
        start = draw(st.sampled_from([0, 30, 5000, 100_000, -50_000]))
        step = draw(st.sampled_from([0.5, 1, 4000]))
        seed = draw(st.integers(0, 99))
        chance = random.Random(seed)
        made = tuple(
            record(start + step * j, chance.choice("ab"), chance.uniform(0, 10), 4) for j in range(draw(st.integers(1, 25)))
        )
        found.append(Instant(float(i), "s", made))
    return found


Split = Callable[[int], list[int]]


def _nothing(made: Run) -> None:
    pass


def play(
    instants: list[Instant],
    split: Split,
    between: Callable[[Run], None] = _nothing,
    text: str = TEXT,
    after: Callable[[Run], None] = _nothing,
) -> Run:
    """`between` runs after each batch, `after` after each instant."""
    made = Run(compiled(text))
    for one in instants:
        if not one.source:
            made.feed(timer(one.arrival_s))
        cuts = [0, *split(len(one.rows)), len(one.rows)]
        offset = 0
        for start, stop in pairwise(cuts):
            part = batch(one.rows[start:stop], one.arrival_s, one.source)
            if part.lines is None or not len(part.lines):
                continue
            offsets = [o + offset for o in part.lines.offsets.to_pylist()]
            offset += sum(len(r.encode()) + 1 for r in one.rows[start:stop])
            made.feed(replace(part, lines=replace(part.lines, offsets=_int64(offsets))))
            between(made)
        after(made)
    return made.finish()


def _int64(numbers: list[int]) -> Any:
    import pyarrow as pa

    return pa.array(numbers, pa.int64())


def outcome(made: Run) -> dict[str, Any]:
    ledgers_balance(made.state)
    return {
        "rows": made.rows(),
        "high": made.rows("high"),
        **{name: made.rows(name) for name in ("out", "overlapping", "busy", "quarters", "shift")},
        "quarantine": made.quarantine(),
        "transitions": [replace(t, row=0) for t in made.output.transitions],
        "actions": [a.id for a in made.output.actions],
        "ledger": made.state.ledger(),
        "watermarks": made.state.watermarks,
        "cells": {owner: dict(cells) for owner, cells in made.state.cells.items()},
    }


def equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    for name in a:
        assert a[name] == b[name], name


whole: Split = lambda n: []  # noqa: E731 - three ways to cut, side by side
single: Split = lambda n: list(range(1, n))  # noqa: E731 - as above


@settings(max_examples=25)
@given(st.one_of(inputs(), long_stretches()), st.randoms(use_true_random=False))
def test_i14_batching_is_invisible(instants: list[Instant], chance: random.Random) -> None:
    expected = outcome(play(instants, whole))
    equal(outcome(play(instants, single)), expected)
    equal(outcome(play(instants, lambda n: sorted(chance.sample(range(n), min(n, 3))))), expected)


@settings(max_examples=12)
@given(st.one_of(inputs(), long_stretches()))
def test_i1_a_stored_state_goes_on_like_the_one_in_memory(instants: list[Instant]) -> None:
    """After every batch the state is written as entries, and read back into a new one: the store of a node that crashes often."""
    stored: dict[str, bytes] = {}
    last: list[State | None] = [None]

    def commit(made: Run) -> None:
        put, gone = entries(made.state, last[0])
        for key in gone:
            del stored[key]
        stored.update(put)
        ledger = json.loads(json.dumps(made.state.ledger()))
        made.state = restore(made.state.lineage, list(stored.items()), ledger, made.state.epoch + 1)
        last[0] = made.state

    thirds: Split = lambda n: [n // 3, 2 * n // 3]  # noqa: E731 - as above
    stored_often, in_memory = outcome(play(instants, thirds, commit)), outcome(play(instants, thirds))
    for made in (stored_often, in_memory):
        for owner in [owner for owner in made["cells"] if owner.startswith(("span.", "capture."))]:
            del made["cells"][owner]  # a stored chunk keeps rows that left until its last one has
    equal(stored_often, in_memory)


@pytest.mark.parametrize("seed", range(6))
def test_i14_on_a_long_stream(seed: int) -> None:
    chance = random.Random(seed)
    made = []
    for i in range(3000):
        time = i / 8 + chance.uniform(-4, 0) + (chance.random() < 0.01) * chance.choice([3e8, -9000, 5000])
        made.append(record(time, chance.choice("abc"), chance.choice([None, chance.uniform(0, 12), 30.9]), chance.randint(0, 9)))
        if chance.random() < 0.02:
            made.append("garbage")
    instants = [Instant(1.0, "s", tuple(made))]
    expected = outcome(play(instants, whole))
    assert len(expected["out"]) > 100
    assert len(expected["transitions"]) > 20
    equal(outcome(play(instants, lambda n: sorted(chance.sample(range(n), 40)))), expected)
