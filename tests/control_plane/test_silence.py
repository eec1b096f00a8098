"""Silent nodes become incidents, and only those: the ears of the control plane, with any clock and any downtime."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control_plane.silence import GAP_US, Ears, judge

S = 1_000_000
AFTER = 600 * S


def listen(ears: Ears, seconds: float, **seen: int) -> Ears:
    """In looks of ten seconds."""
    for _ in range(round(seconds / 10)):
        ears = ears.after(10 * S, seen)
    return ears


def test_a_node_is_silent_after_so_much_listening_and_back_at_its_next_word() -> None:
    ears = listen(Ears(), 590, a=5, b=5)
    assert judge(ears, {}, AFTER) == ([], [])
    ears = listen(ears, 20, a=5, b=600)
    assert judge(ears, {}, AFTER) == (["a"], [])
    assert judge(ears, {"a": 5}, AFTER) == ([], [])
    assert judge(listen(ears, 10, a=700, b=600), {"a": 5}, AFTER) == ([], ["a"])


def test_what_the_control_plane_did_not_listen_to_is_no_silence() -> None:
    ears = listen(Ears(), 500, a=5)
    asleep = ears.after(10 * 3600 * S, {"a": 5})  # a laptop that was shut
    for _ in range(100):
        asleep = asleep.after(0, {"a": 5})  # its broker was gone
    assert judge(asleep, {}, AFTER) == ([], [])
    assert judge(listen(Ears(), 590, a=5), {}, AFTER) == ([], [])  # it started anew: what was before is not known


def test_an_open_silence_outlives_a_restart_and_ends_with_a_removed_node() -> None:
    assert judge(listen(Ears(), 10, a=5), {"a": 5}, AFTER) == ([], [])
    assert judge(listen(Ears(), 10, b=5), {"a": 5}, AFTER) == ([], ["a"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 9, 31, 4000]),  # seconds since the last look; 0: nobody listened
            st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3),
        ),
        max_size=60,
    )
)
def test_any_history_raises_once_and_only_after_listening(looks: list[tuple[int, dict[str, int]]]) -> None:
    ears, open_, seen, waited = Ears(), dict[str, int](), dict[str, int](), dict[str, int]()
    for seconds, heard in looks:
        news = {node: seen.get(node, 0) + more for node, more in heard.items()}
        fresh = {node for node, at in news.items() if seen.get(node) != at}
        seen |= news
        ears = ears.after(seconds * S, seen)
        counted = seconds * S if seconds * S <= GAP_US else 0
        waited = {node: 0 if node in fresh else waited.get(node, 0) + counted for node in seen}
        silent, back = judge(ears, open_, 20 * S)
        assert set(silent) == {node for node, us in waited.items() if us >= 20 * S and node not in open_}
        assert set(back) == {node for node, since in open_.items() if seen[node] > since}
        for node in back:
            del open_[node]
        open_ |= {node: seen[node] for node in silent}
