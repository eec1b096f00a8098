"""How long notes hold: pure, in node time (I10)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.timers import LONGEST_S, due, duration_s
from pipelines.contract.node_state import CONTROL, Note

NODE = "n1"
HOUR_US = 3_600_000_000


def note(kind: str, seq: int, author: str = NODE, subject: str = "p", **body: object) -> Note:
    return Note(author, seq, kind, subject, body, by="ann")


def test_a_duration_begins_when_the_node_first_holds_the_note_and_is_counted_once() -> None:
    pause = note("pause", 1, CONTROL, for_s=3600)
    first = due([pause], {}, 50, node=NODE)
    assert first.begin == {"control/1": 50 + HOUR_US} and first.over == () and first.next_us == 50 + HOUR_US
    assert due([pause], first.begin, HOUR_US, node=NODE).begin == {}, "an exchange later it is not begun again"
    over = due([pause], first.begin, 50 + HOUR_US, node=NODE)
    assert over.over == (pause,) and over.next_us is None
    ended = note("ended", 1, note="control/1")
    after = due([pause, ended], first.begin, 51 + HOUR_US, node=NODE)
    assert (after.over, after.begin, after.forget) == ((), {}, {"control/1"})


def test_what_was_taken_back_or_replaced_has_no_time_to_count() -> None:
    pin, unpin = note("pin", 1, digest="d", number=1, for_s=60), note("unpin", 2)
    assert due([pin, unpin], {"n1/1": 1}, 99, node=NODE).forget == {"n1/1"}
    assert due([pin, unpin], {"n1/1": 1}, 99, node=NODE).over == ()
    other = note("param", 3, name="b", value=1, for_s=60)
    again = note("param", 4, name="a", value=2)
    assert set(due([note("param", 1, name="a", value=1, for_s=60), other, again], {}, 0, node=NODE).begin) == {"n1/3"}


def test_a_duration_that_is_none_is_no_end() -> None:
    for for_s in (None, "8h", True, 0, -1, float("inf"), float("nan")):
        assert duration_s(note("pause", 1, for_s=for_s)) is None
    assert duration_s(note("pause", 1, for_s=1e300)) == LONGEST_S


@given(st.lists(st.tuples(st.sampled_from(["pause", "resume", "pin", "unpin"]), st.sampled_from([NODE, CONTROL]),
                          st.sampled_from([None, 1, 5]), st.integers(0, 4)), max_size=12))  # fmt: skip
def test_every_duration_ends_at_most_once_and_in_time(steps: list[tuple[str, str, int | None, int]]) -> None:
    """Notes come, time passes, the node settles after each: as the agent does it."""
    notes: list[Note] = []
    timers: dict[str, int] = {}
    now_us, ends = 0, {}
    for kind, author, for_s, passes_s in [*steps, *[("", NODE, None, 10)] * 2]:
        if kind:
            seq = 1 + max((n.seq for n in notes if n.author == author), default=0)
            notes.append(note(kind, seq, author, **({} if for_s is None else {"for_s": for_s})))
            ends[notes[-1].name] = None if for_s is None else now_us + for_s * 1_000_000
        found = due(notes, timers, now_us, node=NODE)
        timers = {name: at for name, at in {**timers, **found.begin}.items() if name not in found.forget}
        for one in found.over:
            assert ends[one.name] is not None and now_us >= ends[one.name]
            seq = 1 + max((n.seq for n in notes if n.author == NODE), default=0)
            notes.append(note("ended", seq, note=one.name))
        now_us += passes_s * 1_000_000
    written = [n.body["note"] for n in notes if n.kind == "ended"]
    assert len(written) == len(set(written))
    assert due(notes, timers, now_us, node=NODE).next_us is None, "nothing is left that could still end"
