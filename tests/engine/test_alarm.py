"""The state machine of an incident: every state meets every input, and the table of docs/language/triggers.md is what happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine.triggers.alarm import (
    BY_ITSELF,
    BY_TRIGGER,
    LATE,
    NORMAL,
    TRANSITIONS,
    Alarm,
    Moment,
    Rules,
    Step,
    acknowledge,
    forget_time_line,
    pass_time,
    pause,
    reset,
    retire,
    see,
    see_silence,
    shelve,
    suppress,
    unshelve,
)

S = 1_000_000
Result = tuple[Alarm, Sequence[Step]]
Input = Callable[[Rules, Alarm, int], Result]


def name(n: int) -> str:
    return f"i{n}"


def moment(when: bool | None, clear: bool | None, **more: Any) -> Input:
    """What is seen of a row; what suppresses the alarm still does."""

    def given_(rules: Rules, alarm: Alarm, at: int) -> Result:
        suppressor = "" if alarm.suppressed == LATE else alarm.suppressed
        return see(rules, alarm, Moment(when, clear, at, at, **{"suppressor": suppressor, **more}), name)

    return given_


HOLDS, BACK, UNKNOWN = moment(True, False), moment(False, True), moment(None, None)
INPUTS: dict[str, Input] = {
    "when holds": HOLDS,
    "back to normal": BACK,
    "neither": UNKNOWN,
    "acknowledge": lambda rules, alarm, at: acknowledge(rules, alarm, "ann", "seen"),
    "reset": lambda rules, alarm, at: reset(rules, alarm, "ann", "fixed"),
    "suppressor raised": lambda rules, alarm, at: suppress(rules, alarm, "power", at),
    "suppressor cleared": lambda rules, alarm, at: suppress(rules, alarm, "", at),
    "shelve": lambda rules, alarm, at: shelve(alarm, BY_ITSELF, "ann", "known"),
    "unshelve": lambda rules, alarm, at: unshelve(alarm, BY_ITSELF, "ann", "mended", at),
    "retire": lambda rules, alarm, at: retire(alarm, "gone"),
}


def after(rules: Rules, *inputs: Input) -> Alarm:
    alarm = NORMAL
    for i, one in enumerate(inputs):
        alarm, _ = one(rules, alarm, i)
    return alarm


REQUIRED, LATCH = Rules(ack="required"), Rules(latch=True)
STATES: dict[str, tuple[Rules, Alarm]] = {
    "normal": (Rules(), NORMAL),
    "active": (Rules(), after(Rules(), HOLDS)),
    "active, acknowledged": (Rules(), after(Rules(), HOLDS, INPUTS["acknowledge"])),
    "active (ack: required)": (REQUIRED, after(REQUIRED, HOLDS)),
    "active, acknowledged (ack: required)": (REQUIRED, after(REQUIRED, HOLDS, INPUTS["acknowledge"])),
    "cleared, unacknowledged (ack: required)": (REQUIRED, after(REQUIRED, HOLDS, BACK)),
    "active (latch)": (LATCH, after(LATCH, HOLDS)),
    "active, latched (latch)": (LATCH, after(LATCH, HOLDS, BACK)),
    "active, suppressed": (Rules(), after(Rules(), INPUTS["when holds"], INPUTS["suppressor raised"])),
    "active, shelved": (Rules(), after(Rules(), HOLDS, INPUTS["shelve"])),
    "cleared, unacknowledged, shelved (ack: required)": (REQUIRED, after(REQUIRED, HOLDS, INPUTS["shelve"], BACK)),
}


def shown(alarm: Alarm) -> str:
    words: list[str] = [alarm.state if alarm.state != "closed" else "normal"]
    if alarm.state == "cleared" or alarm.acknowledged:
        words.append("acknowledged" if alarm.acknowledged else "unacknowledged")
    return ", ".join([*words, *alarm.flags])


def cell(state: str, given_input: str) -> str:
    """What the table says: `-`, or the transition and the state after it."""
    rules, alarm = STATES[state]
    new, steps = INPUTS[given_input](rules, alarm, 100)
    if not steps:
        assert new.state == alarm.state
        return "-"
    return " then ".join(f"`{step.what}`" for step in steps) + f" → {shown(new)}"


def table() -> str:
    names = list(INPUTS)
    lines = ["| state | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {state} | " + " | ".join(cell(state, one) for one in names) + " |" for state in STATES]
    return "\n".join(lines)


def test_the_table_of_the_docs_is_what_happens() -> None:
    text = (Path(__file__).parents[2] / "docs/language/triggers.md").read_text()
    assert table() in text, f"the state table should be:\n{table()}"


# -- single rules


def run(rules: Rules, *inputs: Input) -> tuple[Alarm, list[tuple[str, bool]]]:
    alarm, found = NORMAL, []
    for i, one in enumerate(inputs):
        alarm, steps = one(rules, alarm, i * S)
        found += [(step.what, step.sounds) for step in steps]
    return alarm, found


def test_a_suppressed_incident_is_recorded_and_does_nothing() -> None:
    held = moment(True, False, suppressor="power")
    alarm, found = run(Rules(ack="required"), held, moment(False, True, suppressor="power"))
    assert found == [("raised", False), ("cleared", False)]
    assert alarm.state == "closed"  # nobody was called, so nobody has to acknowledge


def test_what_was_suppressed_sounds_when_that_ends_and_it_is_still_there() -> None:
    held = moment(True, False, suppressor="power")
    assert run(Rules(), held, INPUTS["suppressor cleared"], BACK)[1] == [
        ("raised", False),
        ("unsuppressed", True),
        ("cleared", True),
    ]


def test_a_horn_that_sounded_is_stopped_though_suppressed_meanwhile() -> None:
    cleared = moment(False, True, suppressor="power")
    assert run(Rules(), HOLDS, INPUTS["suppressor raised"], cleared)[1] == [
        ("raised", True),
        ("suppressed", False),
        ("cleared", True),
    ]


def test_late_rows_make_history_and_never_a_horn_until_a_fresh_row_confirms() -> None:
    late = moment(True, False, late=True)
    assert run(Rules(), late, moment(False, True, late=True))[1] == [("raised", False), ("cleared", False)]
    assert run(Rules(), late, late, HOLDS, HOLDS)[1] == [("raised", False), ("unsuppressed", True)]
    assert run(Rules(), late, BACK)[1] == [("raised", False), ("cleared", False)]


def test_cleared_and_unacknowledged_is_raised_again_in_the_same_incident() -> None:
    alarm, found = run(REQUIRED, HOLDS, BACK, HOLDS, INPUTS["acknowledge"], BACK)
    assert [what for what, _ in found] == ["raised", "cleared", "raised_again", "acknowledged", "cleared"]
    assert alarm == NORMAL._replace(occurrence=1)


def test_a_latch_holds_until_reset_and_only_without_its_cause() -> None:
    reset_ = INPUTS["reset"]
    assert [what for what, _ in run(LATCH, HOLDS, reset_, BACK, HOLDS, reset_, BACK, reset_)[1]] == [
        "raised",
        "latched",
        "latched",
        "reset",
    ]


def test_no_acknowledgement_where_there_is_none() -> None:
    assert run(Rules(ack="none"), HOLDS, INPUTS["acknowledge"])[1] == [("raised", True)]


def test_flapping_becomes_one_chattering_incident_that_needs_calm() -> None:
    rules = Rules(flapping_raises=3, flapping_us=10 * S)
    inputs = [HOLDS, BACK] * 4
    alarm, found = run(rules, *inputs)
    assert [what for what, _ in found] == ["raised", "cleared", "raised", "cleared", "raised"]
    assert alarm.flags == ("chattering",)
    calm, steps = BACK(rules, alarm, 16 * S)
    assert not steps
    calm, steps = BACK(rules, calm, 17 * S)
    assert [step.what for step in steps] == ["cleared"]
    assert (calm.flags, calm.raises) == ((), ())


def test_only_when_bypasses_the_start_and_its_end_clears() -> None:
    rules = Rules(has_only_when=True, only_delay_us=3 * S)
    hot, off, unknown = moment(True, False), moment(True, False, only=False), moment(True, False, only=None)
    alarm, found = run(rules, off, hot, hot, hot, hot)
    assert found == [("raised", True)]
    assert alarm.raised_arrival_us == 4 * S
    assert not unknown(rules, alarm, 9 * S)[1]
    assert [step.what for step in off(rules, alarm, 9 * S)[1]] == ["cleared"]


def test_reminders_and_escalation_count_from_the_raise_and_come_once_after_a_pause() -> None:
    rules = Rules(remind_us=10 * S, escalate=((5 * S, True), (15 * S, False)))
    alarm = after(rules, HOLDS)

    def at(seconds: int) -> list[str]:
        nonlocal alarm
        alarm, steps = pass_time(rules, alarm, seconds * S)
        return [step.what for step in steps]

    assert [at(4), at(5), at(6), at(10), at(11)] == [[], ["escalated"], [], ["reminded"], []]
    assert at(3600) == ["escalated", "reminded"]
    alarm, _ = acknowledge(rules, alarm, "ann", "")
    assert at(9999) == []
    acked, _ = acknowledge(rules, after(rules, HOLDS), "ann", "")
    acked, steps = pass_time(rules, acked, 99 * S)
    assert [step.what for step in steps] == ["escalated"]  # the one that is not `unless: acknowledged`


def test_a_silence_does_not_count_for_a_delay_in_node_time() -> None:
    delayed = moment(True, False, for_us=5 * S)
    silent: Input = lambda rules, alarm, at: see_silence(rules, alarm, Moment(None, None, at, at, for_us=5 * S), name)  # noqa: E731 - an input
    rules = Rules()
    pending = after(rules, delayed)
    held, _ = silent(rules, pending, 100 * S)
    assert (held.since_us, held.since_arrival_us) == (0, None)
    late = see(rules, held, Moment(True, False, 1, 101 * S, for_us=5 * S), name)
    assert not late[1]
    assert see(rules, late[0], Moment(True, False, 2, 106 * S, for_us=5 * S), name)[1]


def test_what_is_shelved_does_nothing_but_end_what_was_begun_and_annunciates_again_after_it() -> None:
    rules = Rules(remind_us=2 * S, escalate=((3 * S, True),))
    time: Input = lambda rules, alarm, at: pass_time(rules, alarm, at)  # noqa: E731 - an input
    found = run(rules, HOLDS, INPUTS["shelve"], time, time, time, time, INPUTS["unshelve"], time, time, time)[1]
    assert found == [("raised", True), ("shelved", True), ("unshelved", True), ("reminded", True), ("escalated", True)]
    assert run(rules, HOLDS, INPUTS["shelve"], BACK, HOLDS, BACK)[1] == [
        ("raised", True), ("shelved", True), ("cleared", True), ("raised", True), ("cleared", True),
    ]  # the shelf of an incident ends with it  # fmt: skip
    assert run(rules, HOLDS, INPUTS["acknowledge"], INPUTS["shelve"], INPUTS["unshelve"])[1] == [
        ("raised", True), ("acknowledged", True), ("shelved", False), ("unshelved", False),
    ]  # fmt: skip


def test_a_shelf_of_the_trigger_covers_what_is_raised_under_it_and_two_shelves_are_two() -> None:
    held = moment(True, False, shelved=True)
    alarm, found = run(Rules(), held, INPUTS["shelve"], INPUTS["unshelve"])
    assert (found, alarm.shelved) == ([("raised", False)], (BY_TRIGGER,))
    alarm, steps = unshelve(alarm, BY_TRIGGER, "ann", "", 9 * S)
    assert [(step.what, step.sounds) for step in steps] == [("unshelved", True)]
    assert (alarm.sounded, alarm.raised_arrival_us) == (True, 9 * S)


def test_shelved_and_suppressed_sounds_when_both_ended() -> None:
    on, off = INPUTS["suppressor raised"], INPUTS["suppressor cleared"]
    shelve_, unshelve_ = INPUTS["shelve"], INPUTS["unshelve"]
    first = [("raised", True), ("shelved", True), ("suppressed", False)]
    assert run(Rules(), HOLDS, shelve_, on, off, unshelve_)[1] == [*first, ("unsuppressed", False), ("unshelved", True)]
    assert run(Rules(), HOLDS, shelve_, on, unshelve_, off)[1] == [*first, ("unshelved", False), ("unsuppressed", True)]


# -- any life


moments = st.builds(
    Moment,
    when=st.sampled_from([True, False, None]),
    clear=st.sampled_from([True, False, None]),
    t_us=st.just(0),
    arrival_us=st.just(0),
    only=st.sampled_from([True, True, False, None]),
    for_us=st.sampled_from([0, 0, 2]),
    clear_for_us=st.sampled_from([0, 0, 2]),
    alone=st.booleans(),
    late=st.booleans(),
    suppressor=st.sampled_from(["", "", "power"]),
    unreliable=st.booleans(),
    shelved=st.sampled_from([False, False, True]),
)
rules_ = st.builds(
    Rules,
    latch=st.booleans(),
    ack=st.sampled_from(["required", "optional", "none"]),
    on_no_data=st.sampled_from(["hold", "clear", "raise"]),
    has_only_when=st.booleans(),
    only_delay_us=st.sampled_from([0, 2]),
    remind_us=st.sampled_from([None, 3]),
    escalate=st.sampled_from([(), ((2, True), (4, False))]),
    flapping_raises=st.sampled_from([0, 3]),
    flapping_us=st.just(10),
)
inputs_ = st.one_of(
    moments,
    moments,
    moments,
    st.sampled_from(["silence", "time", "acknowledge", "reset", "retire", "suppress", "unsuppress", "pause", "time line"]),
    st.sampled_from(["shelve", "unshelve", "shelve trigger", "unshelve trigger"]),
)


LOUD = ("raised", "raised_again", "unsuppressed", "unshelved", "reminded", "escalated")


def do(rules: Rules, alarm: Alarm, what: Any, at: int) -> Result:
    if isinstance(what, Moment):
        return see(rules, alarm, what._replace(t_us=at, arrival_us=at), name)
    if what == "silence":
        return see_silence(rules, alarm, Moment(None, None, at, at), name)
    table: dict[str, Callable[[], Result]] = {
        "time": lambda: pass_time(rules, alarm, at),
        "acknowledge": lambda: acknowledge(rules, alarm, "ann", ""),
        "reset": lambda: reset(rules, alarm, "ann", ""),
        "retire": lambda: retire(alarm, ""),
        "suppress": lambda: suppress(rules, alarm, "power", at),
        "unsuppress": lambda: suppress(rules, alarm, "", at),
        "shelve": lambda: shelve(alarm, BY_ITSELF, "ann", ""),
        "unshelve": lambda: unshelve(alarm, BY_ITSELF, "ann", "", at),
        "shelve trigger": lambda: shelve(alarm, BY_TRIGGER, "ann", ""),
        "unshelve trigger": lambda: unshelve(alarm, BY_TRIGGER, "ann", "", at),
        "pause": lambda: (pause(alarm), ()),
        "time line": lambda: (forget_time_line(alarm), ()),
    }
    return table[what]()


@settings(max_examples=400)
@given(rules_, st.lists(inputs_, max_size=40))
def test_any_life_of_an_alarm_is_in_order(rules: Rules, inputs: list[Any]) -> None:
    alarm, horn, seen = NORMAL, False, 0
    for at, what in enumerate(inputs):
        before = alarm
        alarm, steps = do(rules, alarm, what, at)
        assert do(rules, before, what, at) == (alarm, steps)
        for step in steps:
            assert step.what in TRANSITIONS
            assert step.incident == f"i{alarm.occurrence}"
            horn = horn or (step.sounds and step.what in ("raised", "raised_again", "unsuppressed", "unshelved"))
            assert not (step.sounds and step.after.shelved and step.what in LOUD), step
        made = [step.what for step in steps]
        assert (not alarm.is_open) <= (alarm == NORMAL._replace(**kept(alarm)))  # what is closed leaves nothing behind
        assert alarm.active <= alarm.is_open
        assert alarm.latched <= (rules.latch and alarm.active)
        assert alarm.occurrence - before.occurrence == made.count("raised")
        assert alarm.occurrence >= seen
        seen = alarm.occurrence
        if "cleared" in made:
            assert not rules.latch
            assert not (isinstance(what, Moment) and what.when is True and what.only is True and not rules.only_delay_us)
        if before.latched and not alarm.active:
            assert what in ("reset", "retire")
        if before.is_open and not alarm.is_open and rules.ack == "required" and before.sounded and what != "retire":
            assert before.acknowledged or what in ("acknowledge", "reset")
        if before.is_open and (not before.shelved) != (not alarm.shelved):
            assert {"shelved", "unshelved", "cleared", "acknowledged", "reset", "retired", "raised_again"} & set(made)
        if before.shelved and alarm.is_open and alarm.active and not (alarm.shelved or alarm.acknowledged or alarm.suppressed):
            assert alarm.sounded, "active, nobody looked at it, nothing holds it back: it must have annunciated"
        if not alarm.is_open and horn:
            assert steps[-1].sounds  # whoever was called is told the end
            horn = False


def kept(alarm: Alarm) -> dict[str, Any]:
    """What outlives an incident, or belongs to the next."""
    names = ("occurrence", "raises", "since_us", "since_arrival_us", "only_us", "only_arrival_us")
    pending = ("late",) if alarm.since_us is not None else ()
    return {name: getattr(alarm, name) for name in (*names, *pending)}


@pytest.mark.parametrize("what", TRANSITIONS)
def test_every_transition_is_in_the_docs(what: str) -> None:
    text = (Path(__file__).parents[2] / "docs/language/triggers.md").read_text()
    assert re.search(rf"^\| `{what}` \|", text, re.MULTILINE)
