"""What notes of both sides amount to (I5, I6): causal order, never a clock's; the same for any order of arrival."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.folds import Register, closed_incidents, decide, effective_params, is_banned, local_labels
from pipelines.contract.node_state import CONTROL, Assignment, Ban, Note

PAUSED = Register("press", "pause")


def site(seq: int, kind: str, *, seen: int = 0, subject: str = "press", **body: Any) -> Note:
    return Note("n1", seq, kind, subject, body, seen=seen)


def central(seq: int, kind: str, *, seen: int = 0, subject: str = "press", **body: Any) -> Note:
    return Note(CONTROL, seq, kind, subject, body, seen=seen)


@pytest.mark.parametrize(
    ("notes", "is_paused", "winner", "beaten"),
    [
        ([site(1, "pause")], True, "n1/1", None),
        ([site(1, "pause"), site(2, "resume")], False, "n1/2", None),
        ([central(1, "pause")], True, "control/1", None),
        ([site(1, "pause"), central(1, "resume", seen=1)], False, "control/1", "n1/1"),  # the centre had seen it
        ([central(1, "pause"), site(1, "resume", seen=1)], False, "n1/1", "control/1"),  # the site had
        ([site(1, "pause"), central(1, "resume")], True, "n1/1", "control/1"),  # neither had: the site is nearer
        ([site(1, "pause"), central(1, "resume", force=True)], False, "control/1", "n1/1"),
        ([site(1, "pause", seen=1), central(1, "resume", force=True)], True, "n1/1", "control/1"),  # it had seen the force
        ([site(1, "pause", for_s=60), site(2, "ended", note="n1/1")], False, "n1/1", None),
    ],
)
def test_i5_a_pause_of_two_sides(notes: list[Note], is_paused: bool, winner: str, beaten: str | None) -> None:
    decision = decide(notes, node="n1")[PAUSED]
    assert (decision.is_set, decision.note.name) == (is_paused, winner)
    assert (decision.beaten.name if decision.beaten else None) == beaten


def test_only_the_node_says_that_a_time_is_over() -> None:
    assert decide([site(1, "pause", for_s=60), central(1, "ended", note="n1/1")], node="n1")[PAUSED].is_set


def test_on_site_labels_are_under_local() -> None:
    notes = [site(1, "label", subject="", name="local.line", value="4"), site(2, "label", subject="", name="site", value="hq")]
    assert local_labels(notes, node="n1") == {"local.line": "4"}
    assert local_labels([*notes, site(3, "unlabel", subject="", name="local.line")], node="n1") == {}


def test_an_override_that_ended_is_gone() -> None:
    notes = [site(1, "param", name="limit", value=60, for_s=5), site(2, "ended", note="n1/1")]
    found = effective_params({"limit": 85}, Assignment("sha256:1", 1), notes, node="n1", pipeline="press")["limit"]
    assert (found.value, found.origin, found.losing) == (85, "default", ())


def test_a_closed_incident_is_the_nodes_word() -> None:
    notes = [site(1, "ended", subject="i1"), central(1, "ended", subject="i2")]
    assert closed_incidents(notes, node="n1") == {"i1"}


@pytest.mark.parametrize(
    ("digest", "params", "lift", "banned"),
    [("d", "p", 0, True), ("d", "p", 1, False), ("d", "q", 0, False), ("e", "p", 0, False)],
)
def test_i12_a_ban_is_of_a_version_with_its_parameters_until_lifted(digest: str, params: str, lift: int, banned: bool) -> None:
    assert is_banned([Ban("d", 4, "p", "crashed")], digest, params, lift) is banned


NOTES = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["pause", "resume", "pin", "unpin"]), st.integers(0, 6), st.booleans()), max_size=10
)


@given(NOTES, st.randoms())
def test_i6_the_order_of_arrival_does_not_matter(steps: list[tuple[bool, str, int, bool]], dice: random.Random) -> None:
    notes, counts = [], {True: 0, False: 0}
    for is_site, kind, seen, force in steps:
        counts[is_site] += 1
        make = site if is_site else central
        notes.append(make(counts[is_site], kind, seen=min(seen, counts[not is_site]), **({"force": True} if force else {})))
    shuffled = notes + dice.sample(notes, k=len(notes) // 2)
    dice.shuffle(shuffled)
    assert decide(shuffled, node="n1") == decide(notes, node="n1")
