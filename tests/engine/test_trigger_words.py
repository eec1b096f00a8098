"""The words of a trigger, one by one, through the whole engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from engine_support import T0, Run, S, batch, compiled, ledgers_balance, pipeline, row, timer

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.engine.plan import compile_plan
from pipelines.engine.run import acknowledge, drain, reset, shelve
from pipelines.engine.state import State, entries, restore
from pipelines.engine.triggers import sight
from pipelines.engine.triggers import watch as triggers
from pipelines.engine.triggers.arrived import Arrived
from pipelines.engine.triggers.incident import Shelf
from pipelines.engine.triggers.sight import SPAN_ROWS_MAX
from pipelines.engine.triggers.watch import resume


def triggers_of(text: str, more: str = "") -> str:
    lines = "\n".join("  " + line for line in text.strip("\n").split("\n"))
    return pipeline(f"params:\n  limit: {{type: double, default: 10}}\ntriggers:\n{lines}\n") + more


def run(text: str, *rows: str, at: float = 100) -> Run:
    return Run(compiled(triggers_of(text))).feed(batch(rows, at))


def told(made: Run) -> list[tuple[str, str]]:
    """(trigger, transition)."""
    return [(t.trigger, t.transition) for t in made.output.transitions]


def steps(made: Run) -> list[tuple[str, float]]:
    return [(t.transition, (t.at_us - T0) / S) for t in made.output.transitions]


def problems(text: str) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        compile_plan(load_spec(triggers_of(text)))
    return [(p.path, p.message) for p in caught.value.problems]


LATEST = """
t:
  over: latest
  each: [k]
  when: count(*) filter (where v > $limit) >= 2
"""


# -- latest


def test_latest_is_what_is_not_what_was_within_a_time() -> None:
    made = run(LATEST, row(0, "a", 11), row(1, "a", 5), row(2, "b", 11), row(3, "a", 12), row(4, "b", 1))
    assert steps(made) == [("raised", 3), ("cleared", 4)]


def test_the_newest_is_told_by_event_time_then_by_arrival() -> None:
    made = run(LATEST, row(5, "a", 11), row(4, "a", 1), row(5, "b", 1), row(5, "b", 12))
    assert steps(made) == [("raised", 5)]


def test_a_stale_key_has_no_vote_and_a_slow_clock_is_not_stale() -> None:
    text = LATEST + "  stale_after: 10s\n"
    assert steps(run(text, row(0, "a", 11), row(10, "b", 11))) == []
    assert steps(run(text, row(0, "a", 11), row(9, "b", 11))) == [("raised", 9)]
    assert steps(run(text, row(100, "a", 11), row(40, "b", 11), row(105, "a", 11))) == [("raised", 100)]


def test_a_bare_column_is_that_of_the_newest_row_also_as_a_delay() -> None:
    text = "t:\n  over: latest\n  by: [k]\n  when: v > 10\n  for: n\n"
    made = run(text, row(0, "a", 11, n=2), row(0, "b", 11, n=5), row(3, "a", 11, n=2), row(3, "b", 11, n=5), row(5, "b", 12, n=5))
    assert [(t.group, (t.at_us - T0) / S) for t in made.output.transitions] == [('{"k": "a"}', 3), ('{"k": "b"}', 5)]
    made = run("t:\n  over: latest\n  by: [k]\n  when: v > 10\n  for: n\n", row(0, "a", 11))
    assert steps(made) == [("raised", 0)]  # no delay is known


def test_a_parameter_changes_and_the_rows_in_sight_stay() -> None:
    made = run(LATEST, row(0, "a", 9), row(1, "b", 9))
    made.plan = compile_plan(made.plan.spec, {"limit": 5.0})
    assert steps(made.feed(batch([row(2, "c", 1)], 101))) == [("raised", 2)]


# -- windows


def test_from_a_window() -> None:
    text = pipeline(
        "windows:\n  w:\n    every: 10s\n    by: [k]\n    select:\n      m: max(v)\n"
        "triggers:\n  t:\n    from: w\n    by: [k]\n    when: m > 10\n    message: '{k} at {m}'\n"
    )
    made = Run(compiled(text)).feed(batch([row(1, "a", 11), row(11, "a", 5), row(21, "a", 5), row(31, "a", 5)], 100))
    assert steps(made) == [("raised", 10), ("cleared", 20)]
    assert made.output.transitions[0].message == "a at 11"
    made.finish()
    assert steps(made) == [("raised", 10), ("cleared", 20)]


# -- suppression


SUPPRESSED = """
low:
  over: latest
  by: [k]
  when: v < 0
  suppressed_by: [power]
  actions:
    on_raise:
      - log
    on_clear:
      - log
power:
  over: latest
  when: n > 5
"""


def test_a_suppressed_incident_is_recorded_and_performs_nothing() -> None:
    made = run(
        SUPPRESSED, row(0, "a", -1, n=9), row(1, "a", 1, n=9), row(2, "b", -1, n=9), row(3, "c", 1, n=1), row(4, "b", 1, n=1)
    )
    assert told(made) == [
        ("power", "raised"),
        ("low", "raised"),
        ("low", "cleared"),
        ("low", "raised"),
        ("power", "cleared"),
        ("low", "unsuppressed"),
        ("low", "cleared"),
    ]
    assert [(a.transition, json.loads(str(json.dumps(a.context["group"])))) for a in made.output.actions] == [
        ("unsuppressed", {"k": "b"}),
        ("cleared", {"k": "b"}),
    ]
    assert [t.flags for t in made.output.transitions if t.transition == "raised"] == ["", "suppressed", "suppressed"]


def test_suppression_follows_the_columns_both_group_by() -> None:
    text = SUPPRESSED.replace("power:\n  over: latest\n", "power:\n  over: latest\n  by: [k]\n")
    made = run(text, row(0, "a", 1, n=9), row(1, "a", -1, n=9), row(2, "b", -1, n=1))
    assert [(t.group, t.flags) for t in made.output.transitions if t.trigger == "low"] == [
        ('{"k": "a"}', "suppressed"),
        ('{"k": "b"}', ""),
    ]


# -- degraded, limits


def test_too_few_to_judge_is_an_incident_of_its_own() -> None:
    text = LATEST + "  stale_after: 10s\n  degraded_when: count(*) < 2\n  actions:\n    on_degraded:\n      - log\n"
    made = run(
        text, row(0, "a", 1), row(1, "b", 1), row(5, "a", 1), row(12, "a", 1), row(21, "a", 1), row(23, "a", 1), row(24, "b", 1)
    )
    assert [(*t[:2],) for t in told(made)] == [("t.degraded", "raised"), ("t.degraded", "cleared")]
    assert steps(made) == [("raised", 22 + 1), ("cleared", 24)]
    assert [a.transition for a in made.output.actions] == ["raised"]
    ever = run(text, row(0, "a", 1)).feed(timer(105), timer(111), timer(121))
    assert told(ever) == [("t.degraded", "raised")]


def test_beyond_max_open_one_incident_stands_for_all() -> None:
    text = "t:\n  over: latest\n  by: [k]\n  when: v > 10\n  max_open: 2\n"
    made = run(text, *(row(i, f"k{i}", 11) for i in range(5)))
    groups = [json.loads(t.group) for t in made.output.transitions]
    assert groups == [{"k": "k0"}, {"k": "k1"}, {"more": "open incidents"}]
    made.feed(batch([row(10 + i, f"k{i}", 1) for i in range(5)], 101))
    assert [t.transition for t in made.output.transitions[3:]] == ["cleared"] * 3
    assert triggers_closed(made)


def triggers_closed(made: Run) -> bool:
    opened = {t.incident for t in made.output.transitions}
    return opened == {t.incident for t in made.output.transitions if t.state == "closed"}


@pytest.mark.parametrize("each", ["by: [k]", "each: [k]"])
def test_rows_of_too_many_groups_are_not_judged(each: str) -> None:
    text = f"t:\n  over: latest\n  {each}\n  when: max(v) > 10\n  max_groups: 2\n"
    made = run(text, row(0, "a", 1), row(1, "b", 1), row(2, "c", 99), row(3, "a", 1), row(4, "d", 99))
    assert [(json.loads(t.group), t.transition) for t in made.output.transitions] == [({"more": "keys"}, "raised")]


def test_the_oldest_rows_leave_a_span_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "SPAN_ROWS_MAX", 10)
    assert SPAN_ROWS_MAX == 100_000
    text = "t:\n  over: 1h\n  by: [k]\n  when: count(*) >= 6 and max(v) > 20\n"
    rows = [row(i / 10, "ab"[i % 3 == 0], i) for i in range(40)]
    made, again = run(text, *rows), Run(compiled(triggers_of(text)))
    for i, one in enumerate(rows):
        again.feed(batch([one], 100))
        if i == 25:
            put, _ = entries(again.state, None)
            again.state = replace(restore("lineage", put.items(), again.state.ledger(), 2))
    assert [replace(t, row=0) for t in made.output.transitions] == [replace(t, row=0) for t in again.output.transitions]
    assert json.loads(made.output.transitions[0].value)["truncated"] is True


def test_groups_that_raised_once_and_went_take_no_room_and_ids_stay_unique() -> None:
    text = "t:\n  over: 10s\n  by: [k]\n  when: max(v) > 10\n"
    made, ids = run(text), []
    for hour in range(6):
        at = hour * 7200.0
        made.feed(*(batch([row(at + i, f"k{i % 3}", v) for i in range(9)], at) for v in (11, 1, 11, 1)), timer(at + 3))
        made.feed(batch([row(at + 3600, "other", 1)] * 9, at + 3600), timer(at + 3601))
    ids = [t.incident for t in made.output.transitions if t.transition == "raised"]
    assert len(ids) == len(set(ids))
    assert len(made.state.of("alarm.t")) <= 4


# -- what is unfit, late or down


def watch(made: Run, table: Mapping[str, list[Any]], arrival_s: float) -> list[tuple[str, str]]:
    n = len(table["ts"])
    times = [T0 + round(t * S) for t in table["ts"]]
    columns = {name: values for name, values in table.items() if name != "ts"}
    arrow: dict[str, Any] = {"_row": pa.array(range(n), pa.int32()), "_et": times, "_at": times, **columns}
    rows = Arrived(pa.table(arrow), round(arrival_s * S), "s")
    made.state, watched = triggers.watch(made.plan.triggers, made.state, rows, round(arrival_s * S), 0)
    return [(t.transition, t.flags) for t in watched.transitions]


def test_unfit_rows_never_raise_and_flag_what_is_open() -> None:
    text = "t:\n  over: latest\n  each: [k]\n  when: max(v) > 10\n"
    made = Run(compiled(triggers_of(text)))
    assert watch(made, {"ts": [0, 1], "k": ["a", "a"], "v": [99.0, 99.0], "_unfit": [True, True]}, 100) == []
    assert watch(made, {"ts": [2], "k": ["b"], "v": [11.0]}, 100) == [("raised", "unreliable")]
    assert watch(made, {"ts": [3], "k": ["a"], "v": [1.0]}, 100) == [("reliable", "")]
    assert watch(made, {"ts": [4], "k": ["b"], "v": [1.0], "_unfit": [True]}, 100) == [("unreliable", "unreliable")]
    put, _ = entries(made.state, None)
    made.state = restore("lineage", put.items(), {}, 2)
    assert watch(made, {"ts": [5], "k": ["b"], "v": [12.0]}, 100) == [("reliable", "")]
    any_ = Run(compiled(triggers_of(text + "  quality: any\n")))
    assert watch(any_, {"ts": [0], "k": ["a"], "v": [99.0], "_unfit": [True]}, 100) == [("raised", "")]


def test_a_backlog_makes_history_and_no_horn() -> None:
    text = "t:\n  over: latest\n  by: [k]\n  when: v > 10\n  max_age: 2m\n  actions:\n    on_raise: [log]\n    on_clear: [log]\n"
    made = run(text, *(row(i, "a", 1) for i in range(5)), at=1000)
    made.feed(batch([row(60 + i, "a", 11 if 20 < i < 50 else 1) for i in range(100)], 4600))  # an hour later, in order
    assert steps(made) == [("raised", 81), ("cleared", 110)]
    assert not made.output.actions
    made.feed(batch([row(3500, "a", 11)], 4601))  # 100 s behind its best pace
    assert [a.transition for a in made.output.actions] == ["raised"]
    stuck = run(text, row(0, "a", 1), at=1000)
    stuck.feed(*(batch([row(60 + i, "a", 11)], 4600 + i) for i in range(70)))  # steadily an hour behind: that is live
    assert [t for t, _ in steps(stuck)] == ["raised", "unsuppressed"]
    replayed = run(text, *(row(i * 60, "a", 11 if i % 2 else 1) for i in range(6)))
    assert len(replayed.output.actions) == 5  # a file that is read from its start is not late


ABSENT = "t:\n  absent: 60s\n  by: [k]\n  message: '{k} silent for {silent_s} s'\n"


def every(made: Run, start: int, stop: int, *keys: str) -> Run:
    for at in range(start, stop, 10):
        if keys:
            made.feed(batch([row(at, k) for k in keys], at))
        made.feed(timer(at + 5))
    return made


def groups(made: Run) -> list[tuple[str, str]]:
    return [(t.group, t.transition) for t in made.output.transitions if t.group != '{"source": "s2"}']


def test_a_silent_group_raises_and_its_next_row_clears() -> None:
    made = every(every(run(ABSENT), 0, 20, "a", "b"), 20, 200, "a")
    assert groups(made) == [('{"k": "b"}', "raised")]
    assert made.output.transitions[0].message == "b silent for 65 s"
    every(made, 200, 210, "a", "b")
    assert groups(made)[1:] == [('{"k": "b"}', "cleared")]


def test_a_source_that_is_down_is_one_incident() -> None:
    made = every(every(run(ABSENT), 0, 50, *(f"k{i}" for i in range(20))), 50, 400)
    assert told(made) == [("t.source_down", "raised")]
    every(made, 400, 460, "k1", "k2")
    assert told(made)[1:] == [("t.source_down", "cleared")]
    every(made, 460, 480, "k1", "k2")
    assert len(told(made)) == 2 + 18  # those that did not come back with it


def test_expected_ones_that_never_spoke() -> None:
    made = every(run(ABSENT + "  expect: [a, b]\n  start_grace: 2m\n"), 0, 110, "a", "x")
    assert groups(made) == []
    assert groups(every(made, 110, 140, "a", "x")) == [('{"k": "b"}', "raised")]
    made.state = resume(made.state, 1000 * S)
    every(made, 1000, 1050, "a")
    other = compile_plan(load_spec(triggers_of(ABSENT + "  expect: [a]\n  start_grace: 2m\n")))
    made.plan = other
    assert groups(every(made, 1050, 1300, "a"))[1:] == [('{"k": "b"}', "retired")]


def test_a_group_that_was_not_seen_for_long_is_forgotten() -> None:
    made = every(every(run(ABSENT + "  expect:\n    seen: 5m\n"), 0, 20, "a", "b"), 20, 500, "a")
    assert groups(made) == [('{"k": "b"}', "raised"), ('{"k": "b"}', "retired")]
    assert len(next(cells for owner, cells in made.state.cells.items() if owner.startswith("heard."))) == 1


# -- captures


CAPTURE = "t:\n  over: latest\n  by: [k]\n  when: v > 10\n  capture:\n    before: 3s\n    after: 2s\n    to: raw\n"


def test_a_capture_has_the_rows_around_an_incident_once() -> None:
    sink = "  raw: {lake: {table: raw}, from: raw}\n"
    plan = compiled(triggers_of(CAPTURE, sink))
    values = [1, 1, 1, 1, 1, 11, 1, 11, 1, 1, 1, 1]
    made = Run(plan)
    for i, v in enumerate(values):
        made.feed(batch([row(i, "a", v), row(i, "b", 1)], 100 + i))
        put, _ = entries(made.state, None)
        made.state = restore("lineage", put.items(), made.state.ledger(), made.state.epoch + 1)
    captured = made.rows("raw")
    assert [(r["k"], (r["_event_time"].timestamp() - T0 / S)) for r in captured] == [("a", float(i)) for i in range(2, 10)]
    first, second = (t.incident for t in made.output.transitions if t.transition == "raised")
    assert [r["_incident"] for r in captured] == [first] * 6 + [second] * 2
    ledgers_balance(made.state)
    whole = Run(plan).feed(batch([text for i, v in enumerate(values) for text in (row(i, "a", v), row(i, "b", 1))], 100))
    assert whole.rows("raw") == captured


def test_what_is_kept_for_a_capture_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.engine.triggers import capture

    monkeypatch.setattr(capture, "BYTES_MAX", 1000)
    made = Run(compiled(triggers_of(CAPTURE.replace("3s", "1h"), "  raw: {lake: {table: raw}, from: raw}\n")))
    for i in range(100):
        made.feed(batch([row(i, "a", 1)], 100))
    made.feed(batch([row(100, "a", 11)], 100))
    assert 5 < len(made.rows("raw")) < 20


# -- people, versions, bad input


def test_by_hand() -> None:
    text = "t:\n  over: latest\n  when: v > 10\n  latch: true\n  actions:\n    on_clear:\n      - log\n"
    made = run(text, row(0, v=11), row(1, v=1))
    incident = made.output.transitions[0].incident
    for do, expected in ((acknowledge, ["acknowledged"]), (acknowledge, []), (reset, ["reset"]), (reset, [])):
        made.state, output = do(made.plan, made.state, incident, "ann", "seen", T0, 0)
        assert [t.transition for t in output.transitions] == expected
        made.output += output
    assert [a.transition for a in made.output.actions] == ["reset"]
    assert steps(made.feed(batch([row(2, v=11)], 101)))[-1] == ("raised", 2)


def test_acknowledged_on_both_sides_at_once_has_one_effect_and_never_touches_the_next() -> None:
    text = "t:\n  over: latest\n  when: v > 10\n  actions:\n    on_ack:\n      - log\n"
    made = run(text, row(0, v=11))
    first = made.output.transitions[0].incident
    said = []
    for by in ("eve", "bob"):
        made.state, output = acknowledge(made.plan, made.state, first, by, "", T0, 0)
        said += [(t.transition, t.by, len(output.actions)) for t in output.transitions]
    assert said == [("acknowledged", "eve", 1)]
    made.feed(batch([row(1, v=1), row(2, v=11)], 101))
    for by in ("eve", "bob"):  # told again after a restart, or late
        made.state, output = acknowledge(made.plan, made.state, first, by, "", T0, 0)
        assert not output.transitions
    assert [t.acknowledged for t in made.output.transitions if t.transition == "raised"] == [False, False]


def test_days_without_a_link_are_one_incident_and_one_call_each_reminder() -> None:
    text = "t:\n  over: latest\n  when: v > 10\n  remind: 8h\n  actions:\n    on_raise:\n      - log\n"
    made = run(text, row(0, v=11))
    for hour in range(1, 73):
        made.feed(batch([row(3600 * hour, v=11 + hour % 2)], 100 + 3600 * hour), timer(100 + 3600 * hour + 1800))
    assert {t.incident for t in made.output.transitions} == {made.output.transitions[0].incident}
    assert [a.transition for a in made.output.actions] == ["raised", *["reminded"] * 9]


def test_actions_have_an_id_of_their_own_each_time() -> None:
    text = "t:\n  over: latest\n  when: v > 10\n  ack: required\n  remind: 10s\n  actions:\n    on_raise:\n      - log\n"
    made = run(text, row(0, v=11)).feed(timer(110), timer(120), batch([row(1, v=1), row(2, v=11)], 125))
    assert [a.transition for a in made.output.actions] == ["raised", "reminded", "reminded", "raised_again"]
    assert len({a.id for a in made.output.actions}) == 4


def test_a_trigger_that_is_gone_is_retired_and_its_horn_stopped() -> None:
    text = "t:\n  over: latest\n  when: v > 10\n  actions:\n    on_clear:\n      - log\n"
    made = run(text, row(0, v=11))
    made.state, output = drain(made.plan, made.state, compile_plan(load_spec(pipeline())), 0)
    assert [(t.transition, t.state) for t in output.transitions] == [("retired", "closed")]
    assert [a.transition for a in output.actions] == ["retired"]


HORN = """
t:
  over: latest
  by: [k]
  when: v > 10
  actions:
    on_raise:
      - log
    on_ack:
      - log
"""


def shelve_all(made: Run, arrival_s: float, **shelves: bool) -> list[tuple[str, str]]:
    """(transition, by); on top of what the run gave."""
    found = {name: Shelf(on, "ann", "being mended") for name, on in shelves.items()}
    made.state, output = shelve(made.plan, made.state, found, T0, int(arrival_s * S))
    made.output += output
    return [(t.transition, t.by) for t in output.transitions]


def test_a_shelved_trigger_covers_its_later_incidents_until_it_is_taken_back() -> None:
    made = run(HORN, row(0, "a", 11))
    assert shelve_all(made, 101, t=True) == [("shelved", "ann")]
    made.feed(batch([row(1, "b", 11), row(2, "a", 1), row(3, "a", 12)], 102), timer(9_000))
    assert [(t.transition, t.flags, t.reason) for t in made.output.transitions[2:]] == [
        ("raised", "shelved", "shelved"), ("cleared", "", ""), ("raised", "shelved", "shelved"),
    ]  # fmt: skip
    assert [a.transition for a in made.output.actions] == ["raised", "shelved"], "the horn sounds once, and is stopped"
    assert shelve_all(made, 9_001, t=False) == [("unshelved", "ann")] * 2
    assert [a.transition for a in made.output.actions[2:]] == ["unshelved"] * 2, "each still active one is annunciated once"
    assert shelve_all(made, 9_002) == []


def test_a_shelf_goes_with_its_incident_and_not_to_the_next() -> None:
    made = run(HORN, row(0, "a", 11))
    first = made.output.transitions[0].incident
    shelve_all(made, 101, **{first: True})
    made.feed(batch([row(1, "a", 1), row(2, "a", 11)], 102))
    assert [(t.transition, t.flags) for t in made.output.transitions[1:]] == [
        ("shelved", "shelved"), ("cleared", ""), ("raised", ""),
    ]  # fmt: skip
    assert shelve_all(made, 103, **{first: True}) == []


@pytest.mark.parametrize(
    ("after", "first", "later"),
    [(HORN.replace("> 10", "> 9"), "", "shelved"), (HORN.replace("by: [k]", "by: [n]"), "retired", "shelved")],
)
def test_a_new_version_inherits_what_is_shelved(after: str, first: str, later: str) -> None:
    made = run(HORN, row(0, "a", 11))
    shelve_all(made, 101, t=True)
    successor = compiled(triggers_of(after))
    state, output = drain(made.plan, made.state, successor, 0)
    assert "".join(t.transition for t in output.transitions) == first
    heir = Run(successor, state).feed(batch([row(5, "c", 11)], 110))
    assert [(t.transition, t.flags, t.sounds) for t in heir.output.transitions] == [("raised", later, False)]


def test_without_its_trigger_a_shelved_incident_is_retired_and_its_shelf_forgotten() -> None:
    made = run(HORN, row(0, "a", 11))
    shelve_all(made, 101, t=True)
    state, output = drain(made.plan, made.state, compile_plan(load_spec(pipeline())), 0)
    assert [t.transition for t in output.transitions] == ["retired"]
    assert not [owner for owner in state.cells if owner.startswith("alarm.")]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("t: {over: 1s, when: v > 1}", "triggers.t.when", '"v" stands outside an aggregate'),
        ("t: {over: 1s, when: max(k) + 1 > 1}", "triggers.t.when", ""),
        ("t: {over: 1s, when: sum(k) > 1}", "triggers.t.when", "sum() is for numbers, this is a varchar"),
        ("t: {over: 1s, when: max(v)}", "triggers.t.when", "this is a double, not a condition"),
        ("t: {over: 1s, when: max(v) > 1, for: k}", "triggers.t.for", '"k" stands outside an aggregate'),
        ("t: {over: latest, when: v > 1, for: k}", "triggers.t.for", "this is a varchar, not a number of seconds"),
        ("t: {over: latest, each: [x], when: v > 1}", "triggers.t.each", 'column "x" is not in the rows'),
        ("t: {from: w, when: v > 1}", "triggers.t.from", 'there is no window "w"'),
        ("t: {over: latest, when: v > 1, suppressed_by: [u]}", "triggers.t.suppressed_by[0]", 'there is no trigger "u"'),
        (
            "t: {over: latest, when: v > 1, suppressed_by: [t]}",
            "triggers.t.suppressed_by",
            "triggers suppress each other: t -> t",
        ),
        ("t: {over: latest, when: v > 1, message: '{x}'}", "triggers.t.message", "there is nothing to fill {x} with"),
        ("t: {absent: 1m, by: [k], expect: {lookup: z, key: k}}", "triggers.t.expect.lookup", 'there is no lookup table "z"'),
        ('t: {over: 1s, when: "quantile_cont(v, n) > 1"}', "triggers.t.when", "quantile_cont() takes a column and a number"),
    ],
)
def test_what_is_refused(text: str, path: str, message: str) -> None:
    found = problems(text)
    assert found[0][0] == path
    assert message in found[0][1]


def test_the_state_of_a_trigger_is_small() -> None:
    made = run(LATEST, *(row(i, f"k{i % 50}", 1) for i in range(1000)))
    put, _ = entries(made.state, None)
    assert sum(len(data) for data in put.values()) < 50 * 150
    assert isinstance(made.state, State)
