"""I9: what flaps writes a bounded number of reports, and its last state is told all the same."""

from __future__ import annotations

from edge_agent.flapping import BURST, REFILL_S, Flapping


def test_rare_changes_are_written_at_once() -> None:
    flapping = Flapping()
    assert all(flapping.wait_s("press", n * REFILL_S) == 0 for n in range(100))
    assert [flapping.wait_s("oven", 0.0) for _ in range(BURST)] == [0] * BURST


def test_a_day_of_flapping_costs_few_writes_and_harms_no_other_key() -> None:
    flapping, day_s = Flapping(), 86_400
    written = sum(flapping.wait_s("press", float(s)) == 0 for s in range(0, day_s, 16))
    assert day_s / REFILL_S - 1 <= written <= BURST + day_s / REFILL_S
    assert flapping.wait_s("oven", day_s) == 0


def test_after_the_wait_that_it_names_a_change_is_written() -> None:
    flapping = Flapping()
    while not (wait_s := flapping.wait_s("press", 10.0)):
        pass
    assert 0 < wait_s <= REFILL_S
    assert flapping.wait_s("press", 10.0 + wait_s / 2) > 0
    assert flapping.wait_s("press", 10.001 + wait_s) == 0
