"""The state machine of a rollout: what it admits, when it stops, that it never gets stuck."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_plane.rollout import (
    ASIDE,
    DONE,
    FAILED,
    HELD,
    NOTHING,
    PASSED,
    PAUSED,
    RUNNING,
    SOAKING,
    STUCK,
    Rollout,
    Taker,
    advance,
    judge,
    parse_steps,
    word,
)
from pipelines.contract.node_state import Ban, Reported

SOAK = 600


def rollout(steps: str = "1,10%,100%", **more: object) -> Rollout:
    return replace(Rollout(1, "press", "all", 4, "sha256:4", parse_steps(steps.split(",")), SOAK), **more)  # type: ignore[arg-type]


def takers(count: int, *, silent: int = 0, **more: object) -> list[Taker]:
    made = [Taker(f"n{i:02}", f"pi{i:02}", in_contact=i < count - silent) for i in range(count)]
    return [replace(taker, **more) for taker in made]  # type: ignore[arg-type]


def test_steps_are_numbers_or_shares_that_rise_to_everything() -> None:
    assert [str(s) for s in parse_steps(["1", "10%", "100%"])] == ["1", "10%", "100%"]
    assert [str(s) for s in parse_steps([2])] == ["2", "100%"]
    assert parse_steps([]) == ()
    assert [step.size(30) for step in parse_steps([1, "10%", "25%"])] == [1, 3, 8, 30]
    for wrong in (["0"], ["101%"], ["x"], [5, 3], ["20%", "10%"], [True], ["-1"], ["1.5"]):
        with pytest.raises(ValueError, match=r"step"):
            parse_steps(wrong)


def test_canaries_are_nodes_in_contact_spread_over_sites() -> None:
    nodes = [replace(t, site="lyon" if i % 2 else "paris") for i, t in enumerate(takers(10, silent=4))]
    first = advance(rollout("2"), nodes, now=5)
    assert first.rollout.since == 5 and len(first.admit) == 2
    chosen = [t for t in nodes if t.node in first.admit]
    assert all(t.in_contact for t in chosen) and {t.site for t in chosen} == {"lyon", "paris"}
    assert advance(rollout("2"), list(reversed(nodes)), now=5).admit == first.admit


def test_a_step_is_over_when_its_nodes_passed_and_its_soak_is_over() -> None:
    world = World(takers(30))
    world.run()
    assert world.admitted == 1 and world.rollout.step == 0
    world.take()
    assert "to pass the gate" in world.run()
    world.passes()
    assert "soaks" in world.run()
    world.now += SOAK
    world.run()
    assert (world.rollout.step, world.admitted) == (1, 3)
    world.take()
    world.passes()
    world.run()
    world.now += SOAK
    world.run()
    assert (world.rollout.step, world.admitted) == (2, 30)
    world.take()
    world.passes()
    world.run()
    world.now += SOAK
    world.run()
    assert world.rollout.state == DONE


def test_one_failure_holds_it_and_what_runs_goes_on() -> None:
    world = World(takers(30))
    world.run()
    world.take()
    world.fails()
    assert "temp_c is text" in world.run() and world.rollout.state == HELD
    world.now += SOAK * 9
    world.run()
    assert (world.rollout.state, world.admitted) == (HELD, 1)


def test_as_many_may_fail_as_was_said() -> None:
    world = World(takers(30), rollout("1", failures=1))
    world.run()
    world.take()
    world.fails()
    world.run()
    assert (world.rollout.state, world.admitted) == (RUNNING, 2), "another takes its place"


def test_who_has_banned_it_before_counts_as_failed_and_is_not_asked() -> None:
    nodes = [replace(takers(1)[0], verdict=FAILED, detail="banned"), *takers(5)[1:]]
    held = advance(rollout(), nodes, now=1)
    assert held.rollout.state == HELD and not held.admit


def test_silent_nodes_are_replaced_but_never_more_than_twice_the_step_is_at_risk() -> None:
    world = World(takers(30))
    for _ in range(10):
        world.run()
        world.take()
        for node, taker in world.nodes.items():
            if taker.admitted:
                world.nodes[node] = replace(taker, in_contact=False)
    assert world.admitted == 2, "a version that cuts its nodes off reaches two of them"
    assert "went silent" in world.run()
    first = next(n for n, t in world.nodes.items() if t.admitted)
    world.nodes[first] = replace(world.nodes[first], in_contact=True, verdict=PASSED)
    world.now += SOAK
    world.run()
    assert world.rollout.step == 1, "one that came back and passed is what the step waited for"


def test_a_stuck_gate_holds_the_step_and_fails_nothing() -> None:
    world = World(takers(10))
    world.run()
    world.set_admitted(verdict=STUCK, detail="source plc: no route")
    world.now += SOAK * 5
    assert "no route" in world.run()
    assert (world.rollout.state, world.admitted) == (RUNNING, 1)


def test_who_is_paused_on_site_is_no_canary_and_blocks_nothing() -> None:
    nodes = takers(3, verdict=ASIDE)
    world = World([*nodes, *(replace(t, node=f"m{t.node}") for t in takers(2))])
    for _ in range(8):
        world.run()
        for node, t in world.nodes.items():
            if t.admitted and t.verdict == NOTHING:
                world.nodes[node] = replace(t, verdict=PASSED)
        world.now += SOAK
    assert world.rollout.state == DONE and world.admitted == 5


def test_nobody_in_contact_is_not_done() -> None:
    world = World(takers(5, silent=5))
    world.now += SOAK * 9
    assert "in contact" in world.run()
    assert (world.rollout.state, world.admitted) == (RUNNING, 0)


def test_a_node_that_returns_after_the_end_is_a_canary_of_itself() -> None:
    world = World([*takers(30, admitted=True, verdict=PASSED), *(replace(t, node=f"m{t.node}") for t in takers(20))])
    world.rollout = rollout(state=DONE, step=2)
    world.run()
    assert world.admitted == 35, "at most as many at a time as the step before 100% had"
    world.take()
    world.fails(1)
    assert "failed it" in world.run() and world.rollout.state == HELD
    world.run()
    assert world.admitted == 35


def test_everywhere_at_once_is_done_when_all_in_contact_passed() -> None:
    everybody = Rollout(1, "press", "all", 4, "sha256:4")
    nodes = takers(5, silent=2, admitted=True)
    assert advance(everybody, nodes, 1).rollout.state == RUNNING
    nodes = [replace(t, verdict=PASSED) if t.in_contact else t for t in nodes]
    assert advance(everybody, nodes, 1).rollout.state == DONE
    nodes[0] = replace(nodes[0], verdict=FAILED, detail="it crashed")
    assert advance(everybody, nodes, 1).rollout.state == HELD


def test_what_a_report_says_of_a_version() -> None:
    def said(**more: object) -> str:
        fields: dict[str, object] = {"digest": "d4", "number": 4, "phase": "running", "params_digest": "p", "gate": "soaking"}
        return judge(Reported(**{**fields, **more}), "d4", "p", lift=1)[0]  # type: ignore[arg-type]

    ban = Ban("d4", 4, "p", "crashed", lift=1)
    assert judge(None, "d4", "p", 0) == (NOTHING, "")
    assert [said(), said(gate="passed"), said(gate="held"), said(gate="failed")] == [SOAKING, PASSED, STUCK, FAILED]
    assert said(digest="d3", gate="passed") == NOTHING
    assert said(params_digest="old", gate="passed") == NOTHING, "it passed with other parameters"
    assert said(digest="d3", bans=(ban,)) == FAILED
    assert said(digest="d3", bans=(replace(ban, lift=0),)) == NOTHING, "lifted"
    assert said(digest="d3", bans=(replace(ban, params_digest="q"),)) == NOTHING, "it failed with other parameters"
    assert said(gate="failed", bans=(replace(ban, lift=0),)) != FAILED, "it is to try again, and has not yet"
    assert said(phase="paused", gate="", code="paused") == ASIDE and said(digest="d3", code="pinned") == ASIDE
    assert said(phase="failed", gate="", params_digest="") == STUCK


def test_a_node_in_a_word() -> None:
    one = takers(1)[0]
    assert word(rollout(), one, "02:51") == "pending"
    assert word(rollout(state=HELD), one, "") == word(rollout(state=PAUSED), one, "") == "waiting"
    admitted = replace(one, admitted=True)
    assert word(rollout(), admitted, "") == "in contact"
    assert [word(rollout(), replace(admitted, verdict=v), "") for v in (SOAKING, PASSED, STUCK, FAILED)] == [
        *("soaking", "healthy", "held", "banned")
    ]
    assert word(rollout(), replace(admitted, in_contact=False), "02:51") == "unknown since 02:51"
    assert word(rollout(state="undone"), one, "") == "superseded"


@dataclass
class World:
    """Nodes that do what they are told, for as long as they hear it."""

    start: list[Taker]
    rollout: Rollout = field(default_factory=rollout)
    now: int = 1_000

    def __post_init__(self) -> None:
        self.nodes = {taker.node: taker for taker in self.start}

    @property
    def admitted(self) -> int:
        return sum(1 for t in self.nodes.values() if t.admitted)

    def run(self) -> str:
        """What it waits for. Run until nothing changes: one more run must change nothing (I7)."""
        done = advance(self.rollout, list(self.nodes.values()), self.now)
        while done.admit or done.rollout != self.rollout:
            self.rollout = done.rollout
            for node in done.admit:
                self.nodes[node] = replace(self.nodes[node], admitted=True)
            done = advance(self.rollout, list(self.nodes.values()), self.now)
        return done.rollout.why or done.waits

    def set_admitted(self, **more: object) -> None:
        for node, t in self.nodes.items():
            if t.admitted and t.verdict in (NOTHING, SOAKING) and t.in_contact:
                self.nodes[node] = replace(t, **more)  # type: ignore[arg-type]

    def take(self) -> None:
        self.set_admitted(verdict=SOAKING)

    def passes(self) -> None:
        self.set_admitted(verdict=PASSED)

    def fails(self, count: int = 1_000) -> None:
        for node, t in self.nodes.items():
            if t.admitted and t.verdict == SOAKING and count:
                self.nodes[node] = replace(t, verdict=FAILED, detail="temp_c is text")
                count -= 1


NODES = 12


class Fleet(RuleBasedStateMachine):
    """Random contact, failures, returns and restarts around one rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(takers(NODES))

    def _pick(self, number: int) -> tuple[str, Taker]:
        return list(self.world.nodes.items())[number % NODES]

    @rule(number=st.integers(0, NODES - 1))
    def goes_silent_or_returns(self, number: int) -> None:
        node, t = self._pick(number)
        self.world.nodes[node] = replace(t, in_contact=not t.in_contact)

    @rule(number=st.integers(0, NODES - 1), verdict=st.sampled_from([SOAKING, PASSED, STUCK, FAILED]))
    def reports(self, number: int, verdict: str) -> None:
        node, t = self._pick(number)
        if t.admitted and t.in_contact and t.verdict not in (PASSED, FAILED):
            self.world.nodes[node] = replace(t, verdict=verdict)

    @rule(seconds=st.sampled_from([1, SOAK // 2, SOAK]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += seconds

    @rule()
    def advances(self) -> None:
        before = self.world
        known = dict(before.nodes)
        step = advance(before.rollout, list(known.values()), before.now)
        if step.admit:
            assert before.rollout.state in (RUNNING, DONE)
            assert all(known[n].in_contact and not known[n].admitted for n in step.admit), "only who is in contact, and once"
            assert not any(known[n].verdict == FAILED for n in step.admit), "never who has banned it"
            reach = sum(1 for t in known.values() if t.in_contact or t.verdict == PASSED)
            in_step = before.rollout.step if before.rollout.state == RUNNING else 1
            largest = max(
                s.size(reach) for s in before.rollout.steps[in_step : step.rollout.step + 1] or before.rollout.steps[1:2]
            )
            at_risk = sum(1 for t in known.values() if t.is_at_risk) + len(step.admit)
            assert at_risk <= 2 * largest, "more at risk than was allowed"
        before.rollout = step.rollout
        for node in step.admit:
            before.nodes[node] = replace(before.nodes[node], admitted=True)

    @rule()
    @precondition(lambda self: self.world.rollout.state == HELD)
    def somebody_resumes(self) -> None:
        for node, t in self.world.nodes.items():
            if t.verdict == FAILED or t.is_at_risk:
                self.world.nodes[node] = replace(t, excused=True)
        self.world.rollout = replace(self.world.rollout, state=RUNNING)

    @invariant()
    def failures_hold_it(self) -> None:
        failed = [t for t in self.world.nodes.values() if t.verdict == FAILED and not t.excused]
        if failed:
            done = advance(self.world.rollout, list(self.world.nodes.values()), self.world.now)
            assert done.rollout.state == HELD and not done.admit

    def teardown(self) -> None:
        """Never stuck: once all are in contact and healthy it gets to its end."""
        world = self.world
        world.nodes = {
            n: replace(t, in_contact=True, verdict=PASSED if t.admitted else NOTHING, excused=False)
            for n, t in world.nodes.items()
        }
        if world.rollout.state == HELD:
            world.rollout = replace(world.rollout, state=RUNNING)
        for _ in range(NODES * 3):
            world.run()
            world.passes()
            world.now += SOAK
        assert world.rollout.state == DONE
        assert all(t.admitted for t in world.nodes.values())


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=40)


@given(st.integers(1, 60), st.integers(0, 59), st.sampled_from(["1", "3", "1,10%,100%", "25%", "2,50%"]))
def test_a_version_that_is_bad_everywhere_reaches_the_first_step_only(count: int, silent: int, steps: str) -> None:
    world = World(takers(count, silent=min(silent, count)), rollout(steps))
    size = world.rollout.steps[0].size(count - min(silent, count))
    for _ in range(5):
        world.run()
        world.take()
        world.fails()
        world.now += SOAK
        for node, t in world.nodes.items():
            world.nodes[node] = replace(t, in_contact=True)
    assert world.admitted <= max(size, world.rollout.steps[0].size(count))
