"""I14 and I1 for every kind of trigger: any split of the same rows, and any restart, gives the same incidents and captures."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from engine_support import Run, pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batching import Instant, Split, equal, inputs, long_stretches, outcome, play, record, single, whole

from pipelines.engine.run import shelve
from pipelines.engine.state import State, entries, restore
from pipelines.engine.triggers.alarm import Alarm
from pipelines.engine.triggers.incident import Shelf, alarms_of

TEXT = pipeline("""
windows:
  w:
    every: 10s
    by: [k]
    select:
      m: max(v)
triggers:
  power:
    over: latest
    when: max(v) > 9
    clear_when: max(v) < 5
    on_no_data: clear
    stale_after: 8s
  votes:
    over: latest
    each: [n]
    by: [k]
    stale_after: 20s
    when: count(*) filter (where v > 4) >= 2
    for: 1s
    clear_for: 2s
    degraded_when: count(*) < 4
    suppressed_by: [power]
    flapping:
      raises: 3
      within: 30s
    remind: 5s
  newest:
    over: latest
    each: [k]
    when: last(v) > 3 or first(k) = 'b' or arg_max(k, v) = 'a' or median(v) > 8
    for: v / 2
    only_when: min(n) >= 3
    only_delay: 2s
    max_age: 4s
    ack: required
  sliding:
    over: 6s
    by: [n]
    when: >-
      sum(v) > 12 or stddev(v) > 4 or count(distinct k) > 1 and min(v) < 0 or arg_min(k, v) = 'b' and quantile_cont(v, 0.3) > 2
    clear_when: avg(v) <= 1 or first(v) < 2 and last(k) = 'a'
    clear_for: 3s
    on_no_data: raise
    max_open: 2
  stuck:
    over: latest
    by: [k]
    when: v > 6
    latch: true
    escalate:
      - after: 3s
        unless: acknowledged
        actions:
          - log
  asked:
    over: 6s
    by: [k]
    when: round(max(v), 1) > 4 and length(last(k)) = 1
    suppressed_by: [power, votes]
    capture:
      before: 4s
      after: 3s
      to: raw
  few:
    over: latest
    each: [n, k]
    by: [n]
    when: max(v) > 2
    max_groups: 3
  of_windows:
    from: w
    by: [k]
    when: m > 5
    suppressed_by: [votes]
  silent:
    absent: 3s
    by: [k]
    suppressed_by: [power]
    clear_for: 1s
""") + "  raw: {lake: {table: raw}, from: raw, where: v is not null}\n"  # fmt: skip


def captured(made: Run) -> dict[str, Any]:
    found = outcome(made)
    return {**found, "raw": made.rows("raw")}


def stripped(found: dict[str, Any]) -> dict[str, Any]:
    """Without how rows are stored: chunks keep rows that left, and sequence numbers go on from the last that is stored."""
    cells = {}
    for owner, kept in found["cells"].items():
        if owner.startswith("latest."):
            order = sorted(kept, key=lambda key: kept[key][0])
            cells[owner] = {key: (order.index(key), *value[1:]) for key, value in kept.items()}
        elif not owner.startswith(("span.", "capture.")):
            cells[owner] = kept
    return {**found, "cells": cells}


@settings(max_examples=20)
@given(st.one_of(inputs(), long_stretches()), st.randoms(use_true_random=False))
def test_i14_batching_is_invisible_to_every_kind_of_trigger(instants: list[Instant], chance: random.Random) -> None:
    expected = captured(play(instants, whole, text=TEXT))
    equal(captured(play(instants, single, text=TEXT)), expected)
    equal(captured(play(instants, lambda n: sorted(chance.sample(range(n), min(n, 3))), text=TEXT)), expected)


class Store:
    """The store of a node that crashes often: after every batch the state is written, and read back into a new one."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.last: State | None = None

    def __call__(self, made: Run) -> None:
        put, gone = entries(made.state, self.last)
        for key in gone:
            del self.stored[key]
        self.stored.update(put)
        ledger = json.loads(json.dumps(made.state.ledger()))
        self.last = made.state = restore(made.state.lineage, list(self.stored.items()), ledger, made.state.epoch + 1)


def shelving(made: Run) -> None:
    """What people decide between two instants: it depends on what was fed, not on how it was cut."""
    fed = made.state.sources.get("s", {}).get("read", 0) + made.state.sources.get("s2", {}).get("read", 0)
    open_ = sorted(a.incident for cells in alarms_of(made.state) for a in (Alarm(*c) for c in cells.values()) if a.incident)
    shelves = {name: Shelf(True, "ann", "known") for name in ("sliding", "silent") if fed % 3 != 0}
    shelves |= {incident: Shelf(True, "bob", "seen") for incident in open_[fed % 2 :: 2]}
    state, output = shelve(made.plan, made.state, shelves, fed, 10**9)
    again, nothing = shelve(made.plan, state, shelves, 0, 10**9)
    assert not nothing.transitions and again.cells == state.cells, "the same again changes nothing"
    made.state, made.output = state, made.output + output


@settings(max_examples=15)
@given(st.one_of(inputs(), long_stretches()), st.randoms(use_true_random=False))
def test_i14_batching_is_invisible_while_people_shelve(instants: list[Instant], chance: random.Random) -> None:
    expected = captured(play(instants, whole, text=TEXT, after=shelving))
    equal(captured(play(instants, single, text=TEXT, after=shelving)), expected)
    some: Split = lambda n: sorted(chance.sample(range(n), min(n, 3)))  # noqa: E731 - as above
    stored_often = stripped(captured(play(instants, some, Store(), text=TEXT, after=shelving)))
    equal(stored_often, stripped(expected))


def test_people_who_shelve_are_heard_in_the_batching_test() -> None:
    made = play(long_stream(1), whole, text=TEXT, after=shelving)
    kinds = {(t.trigger, t.transition) for t in made.output.transitions}
    assert {("sliding", "shelved"), ("sliding", "unshelved"), ("votes", "shelved"), ("votes", "unshelved")} <= kinds
    assert any(t.transition == "raised" and t.flags.startswith("shelved") for t in made.output.transitions)


@settings(max_examples=12)
@given(st.one_of(inputs(), long_stretches()))
def test_i1_a_stored_state_goes_on_like_the_one_in_memory(instants: list[Instant]) -> None:
    thirds: Split = lambda n: [n // 3, 2 * n // 3]  # noqa: E731 - beside the two others
    stored_often = stripped(captured(play(instants, thirds, Store(), text=TEXT)))
    equal(stored_often, stripped(captured(play(instants, thirds, text=TEXT))))


def long_stream(seed: int) -> list[Instant]:
    chance = random.Random(seed)
    made: list[Instant] = []
    level = dict.fromkeys("abc", 0.0)
    for i in range(30):
        records, names = [], chance.choice(["abc", "abc", "ab", "c"])
        for j in range(25):
            k = chance.choice(names)
            level[k] = max(-3.0, min(12.0, level[k] + chance.uniform(-2, 2)))
            value = None if chance.random() < 0.03 else round(level[k], 1)
            late = chance.choice([0, 0, 0, -1, -8])
            records.append(record(i * 5 + j / 5 + late, k, value, chance.choice([None, 3, 4, 5])))
        made.append(Instant(i * 5.0, "s", tuple(records)))
        made += [Instant(i * 5.0 + tick, "", ()) for tick in range(1, chance.choice([2, 5, 12]))]
    return made


@pytest.mark.parametrize("seed", [1])
def test_i14_and_i1_on_a_long_stream(seed: int) -> None:
    chance = random.Random(seed)
    instants = long_stream(seed)
    expected = captured(play(instants, whole, text=TEXT))
    kinds = {(t.trigger, t.transition) for t in expected["transitions"]}
    for trigger in ("power", "votes", "votes.degraded", "newest", "sliding", "stuck", "asked", "few", "of_windows", "silent"):
        assert (trigger, "raised") in kinds, trigger
    for what in ("cleared", "suppressed", "unsuppressed", "reminded", "escalated", "latched", "raised_again"):
        assert what in {kind for _, kind in kinds}, what
    assert len(expected["raw"]) > 20
    split: Split = lambda n: sorted(chance.sample(range(n), min(n, 3)))  # noqa: E731 - as above
    equal(captured(play(instants, split, text=TEXT)), expected)
    equal(stripped(captured(play(instants, split, Store(), text=TEXT))), stripped(expected))
    one_open_incident_per_group(expected["transitions"])


def one_open_incident_per_group(transitions: list[Any]) -> None:
    open_: dict[tuple[str, str], str] = {}
    closed: set[str] = set()
    for t in transitions:
        key = (t.trigger, t.group)
        assert t.incident not in closed, t
        if t.transition == "raised":
            assert key not in open_, t
            open_[key] = t.incident
        assert open_[key] == t.incident, t
        if t.state == "closed":
            closed.add(open_.pop(key))


def test_alarms_in_the_cells_are_alarms() -> None:
    made = play(long_stream(1), whole, text=TEXT)
    cells = {owner: kept for owner, kept in made.state.cells.items() if owner.startswith("alarm.")}
    assert cells
    assert all(Alarm(*value)._replace() == value for kept in cells.values() for value in kept.values())
    assert replace(made.state, cells={}) != made.state
