"""Triggers at their edges: delays that are never over, NULL in `by`, what suppression and age keep silent, restarts."""

from __future__ import annotations

import json

import pytest
from engine_support import T0, Run, S, batch, pipeline, row, timer

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.engine.plan import Plan, compile_plan
from pipelines.engine.run import acknowledge
from pipelines.engine.state import entries, restore


def plan(*triggers: str) -> Plan:
    return compile_plan(load_spec(pipeline("triggers:\n" + "".join(f"  {text}\n" for text in triggers))))


def restarted(made: Run) -> Run:
    """As a new process goes on: from what is stored alone."""
    put, _ = entries(made.state, None)
    ledger = json.loads(json.dumps(made.state.ledger()))
    made.state = restore(made.state.lineage, list(dict(put).items()), ledger, made.state.epoch + 1)
    return made


def told(made: Run, trigger: str = "t") -> list[tuple[str, bool]]:
    return [(t.transition, t.sounds) for t in made.output.transitions if t.trigger == trigger]


# -- delays


@pytest.mark.parametrize(
    ("delay", "v", "raised"),
    [
        ("v", 1e305, False),
        ("v * 10", 1.7e308, False),
        ("v * NULL", 12.0, True),
        ("v", 1e11, False),
        ("v", 30.0, False),
        ("0 - v", 12.0, True),
    ],
)
def test_an_expression_as_delay_is_bounded(delay: str, v: float, raised: bool) -> None:
    """What is not finite is never over; NULL and what is below 0 is no delay."""
    made = Run(plan(f"t: {{over: latest, by: [k], when: v > 10, for: {delay}, clear_for: {delay}}}"))
    made.feed(batch([row(0, "a", v), row(10, "a", v)]), timer(11))
    assert told(made) == ([("raised", True)] if raised else [])


def test_a_clear_for_without_end_never_clears() -> None:
    made = Run(plan("t: {over: latest, when: v > 10, clear_for: max(n)}"))
    made.feed(batch([row(0, "a", 11, n=2**62), row(1, "a", 1, n=2**62), row(3000, "a", 1, n=2**62)]))
    assert told(made) == [("raised", True)]


# -- a capture


@pytest.mark.parametrize(("by", "groups"), [("k", [{"k": "a"}, {"k": None}]), ("n", [{"n": 1}, {"n": None}])])
def test_a_capture_of_a_group_that_is_null_survives_a_restart(by: str, groups: list[dict[str, object]]) -> None:
    made = Run(plan(f"t: {{over: 8s, by: [{by}], when: max(v) > 5, capture: {{before: 3s, after: 2s, to: raw}}}}"))
    for group in groups:
        made.feed(batch([row(0, v=6, **{"k": "x", **group})]))
    restarted(made).feed(batch([row(1, v=6, **{"k": "x", **group}) for group in groups]))
    assert told(made) == [("raised", True)] * 2


# -- suppression


def _suppressed_again() -> Run:
    made = Run(
        plan(
            "p: {over: latest, by: [], when: last(n) > 0}",
            "t: {over: latest, by: [], when: last(v) > 5, ack: required, suppressed_by: [p]}",
        )
    )
    made.feed(batch([row(0, v=6, n=0), row(1, v=1, n=0), row(2, v=1, n=1), row(3, v=6, n=1)]))
    assert told(made) == [("raised", True), ("cleared", True), ("raised_again", False)]
    return made


def test_what_is_raised_again_under_suppression_sounds_once_that_ends() -> None:
    made = _suppressed_again().feed(batch([row(4, v=6, n=0), row(5, v=1, n=0)]))
    assert told(made)[3:] == [("unsuppressed", True), ("cleared", True)]


def test_what_is_raised_again_under_suppression_still_waits_for_its_acknowledgement() -> None:
    """Who was called is told the end, and acknowledges."""
    made = _suppressed_again().feed(batch([row(4, v=1, n=1)]))
    assert told(made)[3:] == [("cleared", True)]
    incident = made.output.transitions[-1].incident
    made.state, output = acknowledge(made.plan, made.state, incident, "me", "", T0 + 5 * S, 5 * S)
    assert [(t.transition, t.sounds, t.state) for t in output.transitions] == [("acknowledged", True, "closed")]


LATE = (
    "p: {over: 10s, by: [k], when: last(n) > 0}",
    "t: {over: 10s, by: [k], when: last(v) > 5, max_age: 10s, suppressed_by: [p]}",
)


def _late() -> Run:
    """A live row, then rows that are 998 s old."""
    made = Run(plan(*LATE)).feed(batch([row(1000, "live", v=1, n=0)], 1000))
    return made.feed(batch([row(2, v=6, n=0)], 1000), batch([row(3, v=6, n=1)], 1000), batch([row(4, v=6, n=0)], 1000))


def test_a_late_alarm_stays_silent_when_a_suppressor_comes_and_goes() -> None:
    made = _late()
    assert told(made) == [("raised", False)]
    made.feed(batch([row(5, v=6, n=0)], 1000))
    assert told(made) == [("raised", False)]
    made.feed(batch([row(1001, v=6, n=0)], 1001))
    assert told(made) == [("raised", False), ("unsuppressed", True)]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("first", "second", "sounds"), [(1, 1002, True), (1001, 5, False)])
def test_whether_the_last_row_was_late_decides_when_the_suppressor_goes(
    restart: bool, first: float, second: float, sounds: bool
) -> None:
    """It counts though it changes nothing."""
    made = Run(plan(*LATE)).feed(batch([row(1000, "live", v=1, n=0)], 1000))
    made.feed(batch([row(first, v=1, n=1), row(first, v=6, n=1)], 1001))
    made = restarted(made) if restart else made
    made.feed(batch([row(second, v=6, n=1)], 1002))
    made = restarted(made) if restart else made
    made.feed(batch([row(second, v=6, n=0)], 1002))
    raised = [("raised", False)]
    assert told(made) == ([*raised, ("unsuppressed", True)] if sounds else raised)


# -- restarts


def _two_sources(text: str, restart: bool) -> Run:
    """Group a has no row in sight any more, but an incident: the other source is far ahead."""
    made = Run(plan(text)).feed(batch([row(0, "a", 6)], 0), batch([row(20_000, "z", 1)], 1, "s2"), timer(2))
    return restarted(made) if restart else made


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("over", ["over: 8s", "over: latest, stale_after: 8s"])
def test_a_group_without_rows_in_sight_keeps_its_time(restart: bool, over: str) -> None:
    made = _two_sources(f"t: {{{over}, by: [k], when: max(v) > 5, remind: 4s}}", restart).feed(timer(7))
    assert made.transitions() == [('{"k": "a"}', "raised", 0), ('{"k": "a"}', "reminded", 7)]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("over", ["over: 8s", "over: latest, stale_after: 8s"])
def test_who_is_let_in_is_the_same_after_a_restart(restart: bool, over: str) -> None:
    made = _two_sources(f"t: {{{over}, by: [k], when: max(v) > 5, max_groups: 2}}", restart)
    made.feed(batch([row(10, "a", 1)], 2))
    made = restarted(made) if restart else made
    made.feed(batch([row(20_001, "c", 6)], 3, "s2"))
    assert made.transitions() == [('{"k": "a"}', "raised", 0), ('{"k": "a"}', "cleared", 10), ('{"k": "c"}', "raised", 20_001)]


# -- lists


@pytest.mark.parametrize(
    "when",
    [
        "max(l) = [1]",
        "min(s) is null",
        "count(distinct l) > 1",
        "arg_max(v, s) > 1",
        "max([v]) = [1]",
        "quantile_disc(l, 0.5) = [1]",
    ],
)
@pytest.mark.parametrize("over", ["10s", "latest"])
def test_lists_and_structs_are_not_compared(when: str, over: str) -> None:
    steps = "steps:\n  - derive:\n      l: '[v]'\n      s: \"{'a': v}\"\n"
    text = pipeline(f"{steps}triggers:\n  t:\n    over: {over}\n    when: {when}\n")
    with pytest.raises(SpecError) as refused:
        compile_plan(load_spec(text))
    (problem,) = refused.value.problems
    assert problem.path == "triggers.t.when" and "compares values" in problem.message and problem.hint


def test_lists_are_taken_where_nothing_is_compared() -> None:
    made = Run(plan("t: {over: 10s, when: 'last([v]) = [1]'}")).feed(batch([row(0, v=None), row(1, v=1)]))
    assert told(made) == [("raised", True)]
