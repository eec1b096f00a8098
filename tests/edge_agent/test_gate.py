"""What is judged, what is not, what follows: pure (I12)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.gate import (
    BANS_MAX,
    ROWS_MIN,
    Book,
    Good,
    Measure,
    Trial,
    crashed,
    failed,
    grown,
    judge,
    opened,
    passed,
    share_bounds,
    size_class,
)
from edge_agent.target import Fit, target_of
from pipelines.contract import causes
from pipelines.contract.folds import Decision
from pipelines.contract.node_state import Assignment, Ban, Gate, Note, params_digest

GATE = Gate(soak_s=60, crashes=2, memory_bytes=100 << 20, slower=10, rejected=0.05)
GOOD = Good("d3", 3, {"n": 1}, {}, Measure(100_000, 200, {0: (1_000, 1_000_000)}))
S = 1_000_000


def on_trial(measure: Measure = Measure(100), good: Good | None = GOOD, **more: Any) -> Book:  # noqa: B008 - frozen
    return Book(good, Trial("d4", 4, measure=measure, **more))


def test_a_version_that_rejects_far_more_than_its_predecessor_fails_and_says_why() -> None:
    bad = on_trial(Measure(1303, 412, reasons={"temp_c is text": 412}))
    why = '32 % of 1,303 rows rejected (limit 5 % above version 3\'s 0.2 %): "temp_c is text" x 412'
    assert judge(GATE, bad) == judge(GATE, bad, is_running=False) and judge(GATE, bad).why == why
    assert judge(GATE, bad, trouble="source a: it is gone").state == "held", "a failing source proves nothing"
    assert judge(GATE, on_trial(bad.trial.measure, None)).state == "soaking", "nothing to hold it against"  # type: ignore[union-attr]
    dirty = Good("d3", 3, measure=Measure(1_000, 300))
    assert judge(GATE, on_trial(Measure(1303, 412), dirty)).state == "soaking", "its predecessor rejected as many"


def test_few_rows_are_no_share() -> None:
    assert judge(GATE, on_trial(Measure(ROWS_MIN - 1, ROWS_MIN - 1))).state == "soaking"
    assert judge(GATE, on_trial(Measure(ROWS_MIN, ROWS_MIN))).state == "failed"
    assert judge(GATE, on_trial(Measure(40, 6))).state == "soaking", "15 % of 40 rows may be chance"
    assert judge(GATE, on_trial(Measure(4000, 600))).state == "failed", "15 % of 4,000 is none"


def test_crashes_and_memory_are_the_versions_own() -> None:
    assert judge(GATE, on_trial(crashes=2), is_running=False) == judge(GATE, on_trial(), is_running=False)
    verdict = judge(GATE, on_trial(crashes=3, crash="status 3"), trouble="source a: it is gone", is_running=False)
    assert (verdict.state, verdict.why) == ("failed", "it ended by itself 3 times (limit 2): status 3")
    assert judge(GATE, on_trial(), memory_bytes=101 << 20).why == "its runner holds 101 MiB (limit 100 MiB)"
    assert judge(Gate(memory_bytes=0), on_trial(), memory_bytes=1 << 40).state == "soaking", "no limit was asked for"


def test_a_slow_version_fails_at_equal_sizes_of_batches_only() -> None:
    """A row of a lone batch costs a thousandfold of one among thousands: other rhythms are no slowness."""
    slow = Measure(1_000, 0, {0: (1_000, 11 * S)})
    assert judge(GATE, on_trial(slow)).why == "a row takes 11 times as long as with version 3 (limit 10 times): 11,000 us of CPU"
    assert judge(GATE, on_trial(Measure(1_000, 0, {0: (1_000, 9 * S)}))).state == "soaking"
    assert judge(GATE, on_trial(Measure(50, 0, {0: (50, 900_000)}))).state == "soaking", "less than a second is not measured"
    large = Good("d3", 3, measure=Measure(10**6, 0, {8: (10**6, S)}))
    assert judge(GATE, on_trial(Measure(1_000, 0, {0: (1_000, 2 * S)}), large)).state == "soaking"
    assert judge(GATE, on_trial(Measure(50_000, 0, {5: (50_000, 600 * S)}))).state == "failed", (
        "larger batches cost less, not more"
    )


def test_it_passes_by_the_time_that_it_really_ran_with_rows() -> None:
    book = on_trial(Measure())
    assert judge(GATE, book).why == "no rows have come yet"
    book = grown(book, Measure(), 500 * S)
    assert judge(GATE, book).state == "held", "time without rows does not count"
    book = grown(book, Measure(30), 59 * S)
    assert judge(GATE, book).state == "soaking"
    assert judge(GATE, grown(book, Measure(), S)).state == "passed"
    after = passed(grown(book, Measure(), S), {"n": 2}, {"t": "d"})
    assert after == Book(Good("d4", 4, {"n": 2}, {"t": "d"}, Measure(30)))


def test_a_failed_pair_is_banned_until_lifted_or_with_other_parameters() -> None:
    book = failed(on_trial(), "bad", {"n": 1}, lift=0, at="now")
    assert book.trial is None and book.bans == (Ban("d4", 4, params_digest({"n": 1}), "bad", 0, "now"),)
    assert book.bans_it("d4", {"n": 1}, 0) and not book.bans_it("d4", {"n": 2}, 0) and not book.bans_it("d4", {"n": 1}, 1)
    assert opened(book, Assignment("d4", 4, lift=1)) == Book(GOOD, Trial("d4", 4), ()), "what was lifted is tried anew"
    assert opened(book, Assignment("d3", 3)).trial is None, "the one that passed is never on trial again"
    for n in range(20):
        book = failed(opened(book, Assignment(f"e{n}", n)), "bad", {}, 0, "")
    assert [ban.digest for ban in book.bans] == [f"e{n}" for n in range(20 - BANS_MAX, 20)]


def test_a_first_version_is_tried_again_since_a_ban_would_leave_nothing() -> None:
    book = on_trial(good=None, crashes=3, crash="status 3")
    after = failed(book, judge(GATE, book).why, {}, 0, "")
    assert after.bans == () and after.trial is not None and after.trial.crashes == 0 and "status 3" in after.trial.failed
    assert judge(GATE, grown(after, Measure(10), 60 * S)).state == "passed", "it may still turn out well"


def test_books_are_stored_whole() -> None:
    measure = Measure(7, 2, {0: (3, 5), 2: (4, 6)}, {'say "x"': 2})
    book = Book(Good("d3", 3, {"n": 1, "s": None}, {"t": "d"}, measure), Trial("d4", 4, 5, 1, "x", measure), (Ban("a", 1, "b"),))
    assert Book.of(json.loads(book.to_json())) == book
    assert Book.of(json.loads(Book().to_json())) == Book()


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_share_bounds_hold_the_share(part: int, more: int) -> None:
    whole = part + more
    low, high = share_bounds(part, whole)
    assert 0 <= low <= high <= 1
    if whole:
        assert low <= part / whole + 1e-9 and high >= part / whole - 1e-9


@given(st.integers(1, 1 << 30))
def test_classes_of_sizes_grow_with_the_size(rows: int) -> None:
    assert size_class(rows) <= size_class(rows + 1) <= size_class(rows * 4) == size_class(rows) + 1


EVENTS = st.one_of(
    st.tuples(st.just("run"), st.integers(0, 200), st.integers(0, 40)),  # rows, seconds
    st.tuples(st.just("reject"), st.integers(20, 200), st.integers(0, 5)),
    st.tuples(st.just("crash"), st.just(0), st.just(0)),
    st.tuples(st.just("assign"), st.integers(1, 4), st.integers(0, 2)),  # number, lift
    st.tuples(st.just("params"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("power"), st.just(0), st.just(0)),
)


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=60))
def test_i12_whatever_happens_something_that_may_run_is_chosen(events: list[tuple[str, int, int]]) -> None:
    """The machine as the agent drives it: never a banned pair while another passed, never two changes without a cause, and what
    passed is not lost by any power cut."""
    assignment, params, book = Assignment("d1", 1), {"n": 0}, Book()
    changes = 0
    for what, a, b in events:
        book = opened(Book.of(json.loads(book.to_json())) if what == "power" else book, assignment)
        fits = {f"d{n}": Fit(dict(params)) for n in range(1, 5)}
        target = target_of(assignment, None, None, fits, book, "")
        assert target.params is not None
        if book.good is not None:
            assert not book.bans_it(target.digest, target.params, assignment.lift) or target.digest == book.good.digest
            assert target.digest in (assignment.digest, book.good.digest)
        assert (target.code == causes.BANNED) or target.digest == assignment.digest
        is_trial = book.trial is not None and target.digest == book.trial.digest
        good = book.good
        if what == "assign":
            assignment = Assignment(f"d{a}", a, lift=b)
        elif what == "params":
            params = {"n": a}
        elif is_trial:
            book = crashed(book, "x") if what == "crash" else grown(book, Measure(a, a if what == "reject" else 0), b * S)
            verdict = judge(GATE, book, is_running=what != "crash")
            if verdict.state == "failed":
                book = failed(book, verdict.why, params, assignment.lift, "")
                changes += 1
                again = target_of(assignment, None, None, fits, opened(book, assignment), "")
                assert good is None or again.digest == good.digest, "it goes back at once, with nobody in reach"
            elif verdict.state == "passed":
                book = passed(book, params, {})
                assert book.good is not None and book.good.digest == assignment.digest
        if book.good is None:
            assert good is None, "the last good version is never forgotten"


def note(kind: str, **body: object) -> Decision:
    return Decision(Note("n1", 1, kind, "p", body, "eve", "why not"), is_set=True)


FITS = {"d3": Fit({"n": 1}), "d4": Fit({"n": 1})}
FOUR = Assignment("d4", 4)


def test_what_runs_is_pinned_paused_banned_or_as_assigned() -> None:
    assert target_of(FOUR, None, None, FITS).digest == "d4"
    pinned = target_of(FOUR, note("pin", digest="d3", number=3), None, FITS)
    assert (pinned.digest, pinned.code, pinned.reason) == ("d3", "pinned", "version 3 is pinned on site by eve: why not")
    paused = target_of(FOUR, note("pin", digest="d3", number=3), note("pause"), FITS)
    assert (paused.is_paused, paused.code, paused.phase, paused.digest) == (True, "paused", "paused", "d3")
    banned = failed(on_trial(), "bad", {"n": 1}, 0, "")
    back = target_of(FOUR, None, None, FITS, banned)
    assert (back.digest, back.code, back.reason) == ("d3", "banned", "version 4 failed its gate here: bad")
    assert target_of(FOUR, note("pin", digest="d4", number=4), None, FITS, banned).digest == "d4", "people may insist"
    assert target_of(FOUR, None, None, FITS, Book(None, None, banned.bans)).digest == "d4", "better than nothing"


def test_what_cannot_run_leaves_what_runs_or_the_last_good_version() -> None:
    book, unfit = Book(GOOD), {**FITS, "d4": Fit(None, causes.LANGUAGE, "too new")}
    for running in ("", "d3"):
        target = target_of(FOUR, None, None, unfit, book, running)
        assert (target.digest, target.code, target.reason, target.lacks) == ("d3", causes.LANGUAGE, "too new", "")
    assert target_of(FOUR, None, None, unfit, book, "d2").params is None, "what runs goes on, though it did not pass yet"
    away = target_of(FOUR, None, None, {"d3": FITS["d3"]}, book, "")
    assert (away.digest, away.code, away.lacks) == ("d3", causes.FETCHING, "d4"), "after a reboot while cut (I12)"
    assert target_of(FOUR, None, None, {}, Book(), "").lacks == "d4"


def test_the_last_good_version_runs_with_what_is_said_now_or_with_what_it_had() -> None:
    book = failed(on_trial(), "bad", {"n": 1}, 0, "")
    other = target_of(FOUR, None, None, {**FITS, "d3": Fit({"n": 7})}, book)
    assert other.params == {"n": 7}
    misfit = target_of(FOUR, None, None, {**FITS, "d3": Fit(None, causes.PARAM_INVALID)}, book)
    assert misfit.params == {"n": 1}
    itself = Book(Good("d4", 4, {"n": 5}), None, book.bans)  # passed later with other parameters; now the banned ones again
    assert target_of(FOUR, None, None, FITS, itself).params == {"n": 5}


@pytest.mark.parametrize("body", [{}, {"digest": 1}, {"digest": "d3", "number": "3"}])
def test_a_pin_that_names_no_version_is_none(body: dict[str, object]) -> None:
    assert target_of(FOUR, note("pin", **body), None, FITS).code == ""
