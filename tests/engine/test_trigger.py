"""Alarm logic: when an incident is raised, cleared and acknowledged, in event time and in node time."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from engine_support import T0, Run, S, batch, compiled, ledgers_balance, pipeline, row, timer

from pipelines.contract.spec import load_spec
from pipelines.engine.plan import compile_plan
from pipelines.engine.run import acknowledge, drain, open_window_rows
from pipelines.engine.state import State
from pipelines.engine.triggers.alarm import Alarm
from pipelines.engine.triggers.watch import resume

RAISED, CLEARED = "raised", "cleared"


def trigger(when: str = "max(v) > 10", *, over: str = "10s", by: str = "[]", more: str = "") -> str:
    return pipeline(f"""
params:
  limit: {{type: double, default: 10}}
triggers:
  t:
    over: {over}
    by: {by}
    when: {when}
{more}""")


def run(text: str, *rows: str) -> Run:
    made = Run(compiled(text)).feed(batch(rows))
    ledgers_balance(made.state)
    return made


def alarms(made: Run, name: str = "t") -> dict[tuple[object, ...], Alarm]:
    return {key: Alarm(*value) for key, value in made.state.of(f"alarm.{name}").items()}


def spans(made: Run) -> list[pa.Table]:
    """The rows in sight, by commit."""
    return [
        table
        for owner, cells in made.state.cells.items()
        if owner.startswith("span.")
        for key, table in cells.items()
        if key[0] == "rows"
    ]


def steps(made: Run) -> list[tuple[str, float]]:
    return [(what, at) for _, what, at in made.transitions()]


# -- the span


def test_each_row_is_judged_at_its_own_time_over_the_span_before_it() -> None:
    made = run(trigger("sum(v) >= 3"), row(0), row(5), row(9.9), row(10), row(14), row(20), row(24))
    # at 9.9: three rows; at 10 the row of 0 has left, three remain; at 14: 5, 9.9, 10, 14; at 20: 14 and 20
    assert steps(made) == [(RAISED, 9.9), (CLEARED, 20)]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("count(*) >= 3", [(RAISED, 2), (CLEARED, 30)]),
        ("count(distinct k) >= 2", [(RAISED, 1), (CLEARED, 30)]),
        ("avg(v) > 11.4", [(RAISED, 3), (CLEARED, 30)]),
        ("max(v) - min(v) >= 2", [(RAISED, 2), (CLEARED, 30)]),
        ("count(*) filter (where v > 11) >= 2", [(RAISED, 3), (CLEARED, 30)]),
        ("last(v) > 12", [(RAISED, 3), (CLEARED, 30)]),
        ("first(v) = 10", [(RAISED, 0), (CLEARED, 30)]),
        ("median(v) >= 11.5", [(RAISED, 3), (CLEARED, 30)]),
        ("quantile_cont(v, 0.9) > 12", [(RAISED, 3), (CLEARED, 30)]),
        ("arg_max(k, v) = 'd'", [(RAISED, 3), (CLEARED, 30)]),
        ("stddev(v) > 1.2", [(RAISED, 3)]),  # over one row it is NULL: neither true nor false
        ("bool_or(k = 'c')", [(RAISED, 2), (CLEARED, 30)]),
        ("count_if(v > 11) = 2", [(RAISED, 3), (CLEARED, 30)]),
    ],
)
def test_aggregates_over_a_span(when: str, expected: list[tuple[str, float]]) -> None:
    made = run(trigger(when), row(0, "a", 10), row(1, "b", 11), row(2, "c", 12), row(3, "d", 13), row(30, "e", 1))
    assert steps(made) == expected


def test_an_average_of_equal_values_is_that_value_however_the_rows_came() -> None:
    rows = [row(i, v=30.9) for i in range(200)]
    for size in (1, 7, 200):
        made = Run(compiled(trigger("avg(v) < 30.9", over="60s")))
        for start in range(0, 200, size):
            made.feed(batch(rows[start : start + size]))
        assert steps(made) == []


def test_a_row_behind_its_group_counts_at_the_newest_time() -> None:
    made = run(trigger("count(*) >= 3"), row(0), row(9), row(3))
    assert steps(made) == [(RAISED, 9)]


def test_a_row_from_2036_is_seen_but_time_does_not_jump() -> None:
    made = run(trigger("count(*) >= 3"), row(0), row(3e8, v=1), row(1))
    assert steps(made) == [(RAISED, 1)]


# -- when, clear_when


def test_without_clear_when_the_opposite_clears() -> None:
    made = run(trigger("last(v) > 10"), row(0, v=11), row(1, v=12), row(2, v=9), row(3, v=8), row(4, v=11))
    assert steps(made) == [(RAISED, 0), (CLEARED, 2), (RAISED, 4)]


def test_clear_when_leaves_a_gap_between() -> None:
    text = trigger("last(v) > 10", more="    clear_when: last(v) < 5")
    assert steps(run(text, row(0, v=11), row(1, v=9), row(2, v=11), row(3, v=4), row(4, v=9))) == [(RAISED, 0), (CLEARED, 3)]


def test_what_still_holds_is_not_cleared() -> None:
    made = run(trigger("last(v) > 10", more="    clear_when: last(v) > 0"), row(0, v=11), row(1, v=12), row(2, v=12), row(3, v=1))
    assert steps(made) == [(RAISED, 0), (CLEARED, 3)]


def test_null_neither_raises_nor_clears() -> None:
    made = run(trigger("last(v) > 10"), row(0, v=None), row(1, v=11), row(2, v=None), row(3, v=9))
    assert steps(made) == [(RAISED, 1), (CLEARED, 3)]
    made = run(trigger("last(v) > 10", more="    for: 3s"), row(0, v=11), row(2, v=None), row(3, v=11), row(5, v=11))
    assert steps(made) == []


def test_an_error_in_a_condition_is_null() -> None:
    made = run(trigger("last(n) % (last(n) - 3) = 1"), row(0, n=3), row(1, n=5))
    assert steps(made) == [(RAISED, 1)]
    made = run(trigger("sum(n % (n - 3)) > 0"), row(0, n=3), row(1, n=5))
    assert steps(made) == [(RAISED, 1)]


# -- for


def test_for_is_held_in_event_time() -> None:
    text = trigger("last(v) > 10", more="    for: 5s")
    assert steps(run(text, row(0, v=11), row(4.9, v=11), row(5, v=11))) == [(RAISED, 5)]
    assert steps(run(text, row(0, v=11), row(4, v=9), row(5, v=11), row(9, v=11), row(10, v=11))) == [(RAISED, 10)]


def test_for_is_held_in_node_time_by_a_timer_or_by_rows_whose_clock_stands() -> None:
    text = trigger("last(v) > 10", more="    for: 5s")
    made = Run(compiled(text)).feed(batch([row(0, v=11)], 100), timer(104))
    assert steps(made) == []
    assert steps(made.feed(timer(105), timer(106))) == [(RAISED, 5)]
    made = Run(compiled(text)).feed(batch([row(0, v=11)], 100), batch([row(0, v=11)], 104), batch([row(0, v=11)], 105))
    assert steps(made) == [(RAISED, 0)]


def test_a_row_that_sees_no_other_begins_anew() -> None:
    text = trigger("last(v) > 10", over="3s", more="    for: 5s")
    assert steps(run(text, row(0, v=11), row(4, v=11), row(8, v=11))) == []
    assert steps(run(text, row(0, v=11), row(2, v=11), row(4, v=11), row(6, v=11))) == [(RAISED, 6)]


def test_no_rows_hold_what_is_but_do_not_count_for_node_time() -> None:
    text = trigger("last(v) > 10", over="3s", more="    for: 5s")
    made = Run(compiled(text)).feed(batch([row(0, v=11)], 100), timer(102), timer(104), timer(106), batch([row(1, v=11)], 107))
    assert steps(made) == []
    made = Run(compiled(trigger("last(v) > 10", over="3s"))).feed(batch([row(0, v=11)], 100), timer(104), timer(999))
    assert steps(made) == [(RAISED, 0)]


def test_a_pause_of_the_runner_does_not_count_for_node_time() -> None:
    text = trigger("last(v) > 10", more="    for: 5s")
    made = Run(compiled(text)).feed(batch([row(0, v=11)], 100))
    made.state = resume(made.state, 3600 * S)
    assert steps(made.feed(batch([row(1, v=11)], 3600))) == []
    assert steps(made.feed(batch([row(5, v=11)], 3601))) == [(RAISED, 5)]


def test_between_its_rows_a_group_stays_as_it_is() -> None:
    """A writer, a link or an agent that stalls changes nothing: what comes late is judged at its own time."""
    text = trigger("count(*) >= 2", over="10s")
    made = Run(compiled(text)).feed(batch([row(0), row(4)], 100), *(timer(100 + i) for i in range(60)))
    assert steps(made) == [(RAISED, 4)]
    assert steps(made.feed(batch([row(8), row(12), row(16)], 160))) == [(RAISED, 4)]
    assert steps(made.feed(batch([row(30)], 161))) == [(RAISED, 4), (CLEARED, 30)]


def test_no_data_clears_or_raises_where_that_is_said() -> None:
    clears = trigger("count(*) >= 2", more="    on_no_data: clear")
    made = Run(compiled(clears)).feed(batch([row(0), row(4)], 100), timer(109), timer(110), timer(111))
    assert steps(made) == [(RAISED, 4), (CLEARED, 14)]
    raises = trigger("count(*) < 0", more="    on_no_data: raise\n    clear_for: 2s")
    made = Run(compiled(raises)).feed(batch([row(0)], 100), timer(109), timer(110), batch([row(15), row(17)], 115))
    assert steps(made) == [(RAISED, 10), (CLEARED, 17)]
    nothing_ever = Run(compiled(raises)).feed(timer(100), timer(109), timer(110))
    assert [t.transition for t in nothing_ever.output.transitions] == [RAISED]


# -- groups


def test_groups_are_apart_and_null_is_one() -> None:
    made = run(trigger("count(*) >= 2", by="[k]"), row(0, "a"), row(1, "b"), row(2, None), row(3, None), row(4, "a"))
    assert made.transitions() == [('{"k": null}', RAISED, 3), ('{"k": "a"}', RAISED, 4)]


def test_groups_by_two_columns_whose_texts_run_together_are_apart() -> None:
    schema = "  ts: {type: timestamp, event_time: true, unit: s}\n  k: {type: string}\n  l: {type: string}"
    text = trigger("count(*) >= 2", by="[k, l]").split("schema:")
    plan = compiled(f"{text[0]}schema:\n{schema}\n" + "triggers" + text[1].split("triggers", 1)[1])
    made = Run(plan).feed(batch([json.dumps({"ts": T0 / S, "k": k, "l": m}) for k, m in [("a\x1fb", "c"), ("a", "b\x1fc")]]))
    assert made.transitions() == []


def test_incidents_have_messages_values_and_ids_of_their_own() -> None:
    text = trigger(
        "max(v) > $limit", by="[k]", more='    message: "{k} over {limit} ({count}) on {node}"\n    severity: critical'
    )
    made = run(text, row(0, "a", 11), row(1, "b", 12), row(2, "a", 13))
    first, second = made.output.transitions
    assert (first.message, second.message) == ("a over 10 (1) on press", "b over 10 (1) on press")
    assert json.loads(first.value) == {"max(v)": 11.0, "count": 1}
    assert (first.severity, first.trigger, first.pipeline, json.loads(first.group)) == ("critical", "t", "p", {"k": "a"})
    assert first.incident != second.incident


def test_ids_are_the_same_in_a_replay_and_new_for_each_occurrence() -> None:
    text = trigger("last(v) > 10")
    rows = [row(0, v=11), row(1, v=1), row(2, v=11), row(3, v=1)]
    made, again = run(text, *rows), Run(compiled(text)).feed(*(batch([r]) for r in rows))
    ids = [t.incident for t in made.output.transitions]
    assert ids == [t.incident for t in again.output.transitions]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    other = Run(compiled(text), State("another lineage")).feed(batch(rows))
    assert not set(ids) & {t.incident for t in other.output.transitions}


def test_actions_are_planned_once_per_transition_with_stable_ids() -> None:
    more = """    actions:
      on_raise:
        - log:
        - exec: {program: /bin/true}
          valid_for: 30s
      on_clear:
        - webhook: {url: "http://x/y", timeout: 2s}"""
    made = Run(compiled(trigger("last(v) > 10", more=more))).feed(batch([row(0, v=11), row(1, v=1)], 50))
    actions = made.output.actions
    assert [(a.kind, a.transition, a.valid_for_us, a.at_us) for a in actions] == [
        ("log", RAISED, None, 50 * S),
        ("exec", RAISED, 30 * S, 50 * S),
        ("webhook", CLEARED, None, 50 * S),
    ]
    assert actions[2].config == {"url": "http://x/y", "headers": {}, "timeout_s": 2.0}
    assert actions[0].context["value"]["count"] == 1
    assert len({a.id for a in actions}) == 3
    again = Run(compiled(trigger("last(v) > 10", more=more))).feed(batch([row(0, v=11)], 70), batch([row(1, v=1)], 71))
    assert [a.id for a in again.output.actions] == [a.id for a in actions]


# -- by hand, and the end


def acked(made: Run, incident: str) -> list[tuple[str, str, str]]:
    made.state, output = acknowledge(made.plan, made.state, incident, "ann", "seen", T0 + 7 * S, 0)
    made.output += output
    return [(t.transition, t.by, t.reason) for t in output.transitions]


def test_an_acknowledgement_names_an_incident_and_works_once() -> None:
    made = run(trigger("last(v) > 10"), row(0, v=11))
    incident = made.output.transitions[0].incident
    assert acked(made, "i-unknown") == []
    assert acked(made, incident) == [("acknowledged", "ann", "seen")]
    assert acked(made, incident) == []
    made.feed(batch([row(1, v=1), row(2, v=11)]))
    assert acked(made, incident) == []  # cleared: it does not hit the next one
    assert steps(made) == [(RAISED, 0), ("acknowledged", 7), (CLEARED, 1), (RAISED, 2)]


def test_drain_closes_what_the_successor_does_not_carry_over() -> None:
    windows = "windows:\n  w:\n    every: 10s\n    by: [k]\n    select:\n      x: {}\n"
    old = pipeline(windows.format("count(*)") + "triggers:\n  t:\n    over: 10s\n    when: last(v) > 10\n")
    rows = [row(0, v=11), row(1, v=12)]
    cases = {
        old: (False, False),  # the same definitions: everything goes on
        old.replace("> 10", "> 5"): (False, False),  # another condition over the same rows
        old.replace("count(*)", "max(v)"): (True, False),
        old.replace("  t:\n", "  other:\n"): (False, True),
        pipeline(): (True, True),
    }
    for new, (closes_window, clears) in cases.items():
        made = run(old, *rows)
        made.state, output = drain(made.plan, made.state, compile_plan(load_spec(new)), 0)
        assert bool(output.rows) == closes_window, new
        assert [t.transition for t in output.transitions] == (["retired"] if clears else []), new
        assert bool(open_window_rows(made.state)) != closes_window
        if closes_window:
            assert [r["_partial"] for r in output.rows["out"][0].to_pylist()] == [True]
        ledgers_balance(made.state)
    made = run(old, *rows)
    made.state, output = drain(made.plan, made.state, None, 0)
    assert output.rows and output.transitions and "retired" in output.transitions[0].reason
    assert made.state.cells == {}


def test_an_incident_goes_on_under_a_new_version_with_the_same_trigger() -> None:
    text = trigger("last(v) > 10")
    made = run(text, row(0, v=11))
    made.plan = compile_plan(load_spec(text.replace("> 10", "> 20")))
    made.feed(batch([row(1, v=15)]))
    assert steps(made) == [(RAISED, 0), (CLEARED, 1)]
    first, second = made.output.transitions
    assert first.incident == second.incident


def test_a_backwards_step_forgets_spans_and_what_is_pending() -> None:
    made = run(trigger("count(*) >= 3", more="    for: 2s"), *(row(100_000 + i) for i in range(3)))
    assert alarms(made)[()].since_us is not None
    made.feed(batch([row(i / 10) for i in range(8)]))
    assert [table.num_rows for table in spans(made)] == [1]
    assert not alarms(made)


def test_silent_groups_are_forgotten_and_the_memory_of_a_span_is_bounded() -> None:
    made = Run(compiled(trigger("count(*) > 1000", by="[k]")))
    for minute in range(0, 200, 10):
        made.feed(batch([row(minute * 60 + i / 10, f"k{minute}") for i in range(50)]))
        made.state = replace(made.state, epoch=made.state.epoch + 1)
        made.feed(timer(minute))
    assert sum(table.num_rows for table in spans(made)) <= 50 * 8  # an hour of groups, and `over`


def test_alarms_of_a_group_that_never_raised_take_no_room() -> None:
    made = run(trigger("last(v) > 10", by="[k]", more="    for: 1m"), row(0, "a", 11), row(1, "b", 1))
    assert list(alarms(made)) == [("a",)]
    assert alarms(made.feed(batch([row(2, "a", 1)]))) == {}
