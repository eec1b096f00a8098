"""Silence, limits and what becomes of incidents under another version of their trigger."""

from __future__ import annotations

import pytest
from engine_support import T0, Run, S, batch, compiled, pipeline, row, timer

from pipelines.engine.batch import Batch
from pipelines.engine.plan import Plan
from pipelines.engine.run import acknowledge, drain, reset
from pipelines.engine.state import entries, restore


def plan_of(*triggers: str) -> Plan:
    return compiled(pipeline("triggers:\n" + "".join(f"  {trigger}\n" for trigger in triggers)))


def restored(made: Run) -> Run:
    put, _ = entries(made.state, None)
    made.state = restore("lineage", put.items(), made.state.ledger(), made.state.epoch + 1)
    return made


def fed(plan: Plan, batches: list[Batch], *, restores: bool = False) -> Run:
    made = Run(plan)
    for one in batches:
        made = (restored(made) if restores else made).feed(one)
    return made


def told(made: Run) -> list[tuple[str, str, str, float]]:
    return [(t.trigger, t.group, t.transition, (t.at_us - T0) / S) for t in made.output.transitions]


def handed_over(made: Run, successor: Plan) -> list[tuple[str, str, str]]:
    made.state, output = drain(made.plan, made.state, successor, T0)
    made.plan = successor
    made.output += output
    return [(t.trigger, t.transition, t.state) for t in output.transitions]


def words(made: Run) -> list[str]:
    return [t.transition for t in made.output.transitions]


# -- silence


@pytest.mark.parametrize("restores", [False, True])
def test_a_group_that_comes_after_the_first_timer_is_watched(restores: bool) -> None:
    rows = [timer(1), batch([row(0, "a")], 1.1), timer(2), batch([row(40, "b")], 40), batch([row(62, "b")], 62)]
    made = fed(plan_of("t: {absent: 60s, by: [k]}"), [*rows, *(timer(i) for i in range(63, 90))], restores=restores)
    assert [(name, group, what) for name, group, what, _ in told(made)] == [("t", '{"k": "a"}', "raised")]
    assert made.output.transitions[0].at_us < T0 + 63 * S


@pytest.mark.parametrize("restores", [False, True])
def test_a_group_is_forgotten_before_it_could_be_silent_too_long(restores: bool) -> None:
    plan = plan_of("t: {absent: 60s, by: [k], expect: {seen: 10s}}")
    made = fed(
        plan, [timer(1), batch([row(0, "a"), row(0, "b")], 2), timer(3), batch([row(9, "b")], 9), timer(13)], restores=restores
    )
    assert [list(cells) for owner, cells in made.state.cells.items() if owner.startswith("heard.")] == [[("b",)]]


DOWN = "t: {absent: 5s, by: [k], suppressed_by: [p], actions: {on_raise: [log]}%s}"
POWER = "p: {over: latest, by: [n], when: v > 10}"


def test_a_source_that_is_down_is_held_back_as_its_groups_are() -> None:
    made = fed(plan_of(POWER, DOWN % ""), [batch([row(0, v=11, n=1)], 0), timer(6)])
    assert told(made)[1:] == [("t.source_down", '{"source": "s"}', "raised", 0)]
    assert made.output.transitions[1].flags == "suppressed" and not made.output.actions
    made.feed(batch([row(7, v=1, n=1)], 7))
    assert [what for _, _, what, _ in told(made)[2:]] == ["cleared", "cleared"]
    assert not made.output.actions


@pytest.mark.parametrize("ends", [False, True])
def test_a_latched_source_follows_what_suppresses_it(ends: bool) -> None:
    plan = plan_of(POWER, DOWN % ", latch: true")
    rows = [row(7, v=11, n=1), row(8, v=11, n=2), row(9, v=1 if ends else 11, n=1)]
    cuts = ([rows], [[text] for text in rows])
    before = [batch([row(0, v=11, n=1)], 0), timer(6)]
    whole, single = (fed(plan, [*before, *(batch(part, 7) for part in cut)]) for cut in cuts)
    assert told(whole) == told(single)
    assert "unsuppressed" not in words(whole)
    if ends:
        both = [row(10, v=1, n=1), row(10, v=1, n=2)]
        assert [t for t in told(whole.feed(batch(both, 8))) if t[2] == "unsuppressed"] == [
            ("t.source_down", '{"source": "s"}', "unsuppressed", 10)
        ]


def test_a_latched_source_that_is_back_does_not_come_back_with_every_batch() -> None:
    made = fed(plan_of("t: {absent: 5s, by: [k], latch: true}"), [batch([row(0, "a"), row(0, "b")], 0), timer(6)])
    for i in range(7, 20):
        made.feed(batch([row(i, "a")], i), timer(i))
    assert [t[:3] for t in told(made)][-1] == ("t", '{"k": "b"}', "raised")


def test_more_groups_is_told_at_the_row_that_was_too_many() -> None:
    plan = plan_of("t: {absent: 60s, by: [k], max_groups: 1}")
    rows = [row(i, k) for i, k in enumerate("abcbb")]
    whole, single = (fed(plan, [batch(part, 7) for part in cut]) for cut in ([rows], [[text] for text in rows]))
    assert told(whole) == told(single) == [("t", '{"more": "groups"}', "raised", 1)]


def test_a_limit_is_not_suppressed_and_so_never_sounds() -> None:
    trigger = "t: {over: latest, by: [k], when: v > 10, max_open: 1, suppressed_by: [p], actions: {on_raise: [log]}}"
    made = fed(plan_of("p: {over: latest, when: max(n) > 1}", trigger), [batch([row(i, k, 11, n=1) for i, k in enumerate("ab")])])
    made.feed(batch([row(3, "a", 11, n=2), row(4, "a", 11, n=1)]))
    assert [what for name, group, what, _ in told(made) if "more" in group] == ["raised"]
    assert [a.transition for a in made.output.actions] == ["raised"]


# -- another version of the trigger


WHEN = "t: {over: latest, by: [%s], when: v > 10, remind: 5s}"
ABSENT = "t: {absent: 60s, by: [%s], remind: 5s}"
RAISED = [batch([row(0, "a", 11, n=1)], 0)]


@pytest.mark.parametrize("new", [WHEN % "k, n", WHEN % "", WHEN % "n", ABSENT % "k", ABSENT % "", ABSENT % "k, n"])
@pytest.mark.parametrize("restores", [False, True])
def test_a_trigger_with_other_groups_starts_afresh(new: str, restores: bool) -> None:
    made = fed(plan_of(WHEN % "k"), RAISED)
    incident = made.output.transitions[0].incident
    assert handed_over(made, plan_of(new)) == [("t", "retired", "closed")]
    if restores:
        restored(made)
    for act in (acknowledge, reset):
        made.state, output = act(made.plan, made.state, incident, "ann", "", T0, 0)
        assert not output.transitions
    made.feed(timer(20), timer(30))
    assert words(made) == ["raised", "retired"]
    if "when" in new:
        made.feed(batch([row(31, "a", 11, n=1)], 31), batch([row(32, "a", 1, n=1)], 32))
        assert words(made)[2:] == ["raised", "cleared"]


def test_an_incident_that_is_degraded_or_of_a_silent_group_starts_afresh_too() -> None:
    text = "t: {over: 10s, by: [%s], when: max(v) > 10, degraded_when: count(*) < 3}"
    made = fed(plan_of(text % "k"), [batch([row(0, "a")], 0), timer(5), timer(12), timer(25)])
    assert words(made) == ["raised"]
    assert handed_over(made, plan_of(text % "n")) == [("t.degraded", "retired", "closed")]
    made = fed(plan_of(ABSENT % "k"), [batch([row(0, "a"), row(0, "b")], 0), batch([row(61, "b")], 61), timer(61)])
    assert handed_over(made, plan_of(WHEN % "k")) == [("t", "retired", "closed")]
    made.feed(timer(80))
    assert words(made) == ["raised", "retired"]


def test_an_id_is_not_given_again_after_the_groups_were_others() -> None:
    made = fed(plan_of(WHEN % "k"), [batch([row(0, "1", 11)], 0)])
    for by in ("n", "k", "n", "k"):
        handed_over(made, plan_of(WHEN % by))
        made.feed(batch([row(1, "1", 11, n=1)], 1))
    raised = [t.incident for t in made.output.transitions if t.transition == "raised"]
    assert len(set(raised)) == len(raised) == 5


def test_a_limit_starts_afresh_too() -> None:
    text = "t: {over: latest, by: [%s], when: v > 10, max_open: 1}"
    made = fed(plan_of(text % "k"), [batch([row(0, k, 11, n=i) for i, k in enumerate("abc")], 0)])
    assert handed_over(made, plan_of(text % "n")) == [("t", "retired", "closed")] * 2
    for at in (1, 2):
        made.feed(batch([row(at, v=11, n=n) for n in range(3)] + [row(at, v=1, n=n) for n in range(3)], at))
    raised = [t.incident for t in made.output.transitions if t.transition == "raised"]
    assert len(set(raised)) == len(raised) == 6


@pytest.mark.parametrize("restores", [False, True])
@pytest.mark.parametrize("then", [timer(2), batch([row(2, "a", 1)], 2)])
def test_a_trigger_that_loses_its_latch_lets_go(restores: bool, then: Batch) -> None:
    text = "t: {over: latest, by: [k], when: v > 10%s}"
    made = fed(plan_of(text % ", latch: true"), [batch([row(0, "a", 11)], 0), batch([row(1, "a", 1)], 1)])
    assert words(made) == ["raised", "latched"]
    assert handed_over(made, plan_of(text % "")) == []
    if restores:
        restored(made)
    assert words(made.feed(then)) == ["raised", "latched", "cleared"]


def test_a_trigger_that_needs_no_acknowledgement_any_more_lets_go() -> None:
    text = "t: {over: latest, by: [k], when: v > 10%s}"
    made = fed(plan_of(text % ", ack: required"), [batch([row(0, "a", 11)], 0), batch([row(1, "a", 1)], 1)])
    assert handed_over(made, plan_of(text % ", latch: true, ack: required")) == []
    assert handed_over(made, plan_of(text % ", ack: none")) == [("t", "retired", "closed")]


# -- limits


@pytest.mark.parametrize("restores", [False, True])
@pytest.mark.parametrize("then", [timer(5), batch([row(5, "c", 11)], 5)])
def test_what_is_beyond_the_limit_gets_its_incident_when_there_is_room(restores: bool, then: Batch) -> None:
    plan = plan_of("t: {over: latest, by: [k], when: v > 10, clear_when: v < 5, max_open: 2, actions: {on_raise: [log]}}")
    rows = [row(0, k, 11) for k in "abcd"]
    made = fed(plan, [batch(rows, 0), batch([row(1, "d", 7)], 1), batch([row(2, "a", 1)], 2), then], restores=restores)
    by_c = [t for t in made.output.transitions if t.group == '{"k": "c"}']
    assert [(t.transition, t.sounds) for t in by_c] == [("raised", True)]
    assert [what for _, group, what, _ in told(made) if "more" in group] == ["raised"]
    made.feed(batch([row(6, "b", 1), row(6, "d", 7)], 6), timer(7))
    assert '{"k": "d"}' not in {t.group for t in made.output.transitions}  # it neither holds nor is it back
    made.feed(batch([row(8, "d", 11)], 8))
    assert told(made)[-2:] == [("t", '{"k": "d"}', "raised", 8), ("t", '{"more": "open incidents"}', "cleared", 8)]


def test_room_is_found_whatever_the_split() -> None:
    plan = plan_of("t: {over: latest, by: [k], when: v > 10, max_open: 1}")
    rows = [row(i, k, v) for i, (k, v) in enumerate(zip("abcabcbcabc", (11, 11, 11, 1, 11, 11, 1, 11, 11, 1, 1), strict=True))]
    whole, single = (fed(plan, [batch(part, 7) for part in cut]) for cut in ([rows], [[text] for text in rows]))
    stored = fed(plan, [batch([text], 7) for text in rows], restores=True)
    assert told(whole) == told(single) == told(stored)
    raised = [group for _, group, what, _ in told(whole) if what == "raised"]
    assert raised == ['{"k": "a"}', '{"more": "open incidents"}', '{"k": "b"}', '{"k": "c"}', '{"more": "open incidents"}']
