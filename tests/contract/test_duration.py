"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("10s", 10_000_000),
        ("1h30m", 5_400_000_000),
        ("500ms", 500_000),
        ("250us", 250),
        ("7d", 604_800_000_000),
        ("1.5s", 1_500_000),
        ("0s", 0),
        (0, 0),
    ],
)
def test_parse(text: object, us: int) -> None:
    assert parse_duration(text) == us


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 s", "-1s", "10S", "1h 30m", "ten", 10, 1.5, None, True, [], "1s\n", "٣s", "1e3s"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="as in 10s or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 30 + "d", "200000d"])
def test_longer_than_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="longer than"):
        parse_duration(text)


@given(st.integers(0, 10**15))
def test_round_trip(us: int) -> None:
    assert parse_duration(format_duration(us)) == us


def test_the_shortest_form() -> None:
    assert [format_duration(us) for us in (0, 90_000_000, 86_400_000_000, 1, 1_001)] == ["0s", "1m30s", "1d", "1us", "1ms1us"]
