"""When a value is as expected, and what is shown when it is not."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tools.matching import align, fits, misfits, show
from pipelines.tools.report import failure_json, failure_lines
from tests.tools.support import PRESS, fails, passes

START = 1_767_225_600_000_000
MINUTE = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expected", "got", "fine"),
    [
        (20, 20.0, True),
        (20, 20.4, False),
        (20.3, 20.333, True),
        (20.3, 20.36, False),
        (20.33, 20.333, True),
        (0.1, 0.1, True),
        (1e-9, 1e-9, True),
        (3, True, False),
        (True, True, True),
        (True, 1, False),
        (None, None, True),
        (None, 0, False),
        ("a", "a", True),
        ("a", "ab", False),
        ("/a./", "xab", True),
        ("/^a$/", "ab", False),
        ("1m", MINUTE, True),
        ("61s", MINUTE, False),
        ("2026-01-01T00:01:00Z", MINUTE, True),
        ("2026-01-01T01:01:00+01:00", MINUTE, True),
        ("noon", MINUTE, False),
        (1.5, Decimal("1.50"), True),
        ("1.50", Decimal("1.5"), True),
        (1, Decimal("1.01"), False),
        (1.0, Decimal("1.0"), True),
        (0, Decimal("0.0"), True),
        (0.5, Decimal("0.0"), False),
        ([1.0, 2], [Decimal("1.0"), Decimal("2.00")], True),
        ("x", b"x", True),
        ([1, 2], [1, 2], True),
        ([1, 2], (1, 2), True),
        ([1, 2], [1, 2, 3], False),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 3}, {"a": 1, "b": 2}, False),
        ({"a": None}, {}, True),
        ({"a": 1}, {}, False),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        (5, "5", True),
        ("nan", float("nan"), True),
        (5, float("inf"), False),
    ],
)
def test_what_fits(expected: Any, got: Any, fine: bool) -> None:
    assert (not misfits({"v": expected}, {"v": got}, START)) == fine


def test_misfits_are_named_by_their_path() -> None:
    assert misfits({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 3}}, START) == ["a.c", "d"]


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_alignment_says_same_exactly_when_the_lists_are(a: list[int], b: list[int]) -> None:
    def differs(x: int, y: int) -> list[str]:
        return [] if x == y else ["v"]

    fine, pairs = align("exactly", a, b, differs)
    assert fine == (a == b)
    assert [p.expected for p in pairs if p.kind != "unexpected"] == a
    assert [p.got for p in pairs if p.kind != "missing"] == b
    assert align("any_order", a, b, differs)[0] == (sorted(a) == sorted(b))
    rest = iter(b)
    assert align("contains", a, b, differs)[0] == all(any(x == y for y in rest) for x in a)


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.booleans()))
def test_what_came_can_be_written_down_as_expected(value: Any) -> None:
    if isinstance(value, str) and len(value) > 2 and value[0] == value[-1] == "/":
        return
    assert fits(value, value, START)
    assert isinstance(show(value), str)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1.50"), "1.50"),
        (Decimal("1E-7"), "0.0000001"),
        ([Decimal("1.5"), MINUTE], '[1.5, "2026-01-01T00:01:00Z"]'),
        ({"a": Decimal(2)}, '{"a": 2.0}'),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(seconds=90), "0:01:30"),
    ],
)
def test_values_that_json_does_not_know_are_shown(value: Any, text: str) -> None:
    assert show(value) == text


def test_decimals_in_a_failure() -> None:
    text = PRESS.replace("steps:\n", "steps:\n  - derive:\n      d: case when temp_c > 3 then 1.0 else 0.0 end\n")
    rows = "at 0s: {rows: [{sensor: a, temp_c: 4}, {sensor: b, temp_c: 1}], expect: {rows: "
    passes(rows + "[{d: 1.0}, {d: 0}]}}", text)
    failure = fails(rows + "[{d: 1.0}, {d: 0.5}]}}", text)
    lines = ["".join(span for _, span in line).split() for line in failure_lines(failure, "f")]
    assert ["+", "0.0", "came", "instead"] in lines
    assert failure_json(failure, "f")["differences"][0]["got"]["d"] == "0.0"


def shown(case: str) -> list[str]:
    return ["".join(text for _, text in line).rstrip() for line in failure_lines(fails(case), "p.cases.yaml")]


ROWS = "[{sensor: a, temp_c: 1}, {sensor: b, temp_c: 2}, {sensor: c, temp_c: 3}]"


def test_a_difference_stands_beside_its_nearest_row() -> None:
    expected = "".join(f"\n      - {row}" for row in ("{sensor: a}", "{sensor: b, temp_c: 5}", "{sensor: c}"))
    case = f"at 0s:\n  rows: {ROWS}\n  expect:\n    rows:{expected}"
    assert shown(case) == [
        "  p.cases.yaml:7:9: at 0s: rows of sink readings: 2 of 3 as expected, 3 came",
        "      sensor  temp_c",
        "      a       -",
        "    - b       5       expected at 9:13",
        "    + b       2.0     came instead",
        "      c       -",
    ]


def test_what_is_missing_and_what_nobody_expected() -> None:
    case = f"at 0s: {{rows: {ROWS}, expect: {{rows: [{{sensor: a}}, {{sensor: x, temp_c: 9}}, {{sensor: b}}]}}}}"
    lines = shown(case)
    assert [line[:12].rstrip() for line in lines[2:]] == ["      a", "    - x", "      b", "    + c"]


def test_a_long_list_is_cut_to_what_differs() -> None:
    same = ", ".join(["{sensor: a}"] * 20)
    lines = shown(
        f"at 0s: {{rows: [{same}], repeat: 1, expect: {{rows: [{same}, {{sensor: z}}]}}}}".replace(
            "{sensor: a}", "{sensor: a, temp_c: 1}"
        )
    )
    assert lines[2] == "      ... 18 as expected"
    assert len(lines) == 6


def test_the_cells_that_differ_are_marked() -> None:
    case = f"at 0s: {{rows: {ROWS}, expect: {{rows: [{{sensor: a}}, {{sensor: b, temp_c: 5}}, {{sensor: c}}]}}}}"
    spans = [span for line in failure_lines(fails(case), "f") for span in line]
    assert ("wrong_expected", "5") in spans
    assert ("wrong_got", "2.0") in spans
    assert ("missing", "b") in spans


def test_json() -> None:
    case = f"at 0s: {{rows: {ROWS}, expect: {{rows: [{{sensor: a}}, {{sensor: b, temp_c: 5}}, {{sensor: c}}]}}}}"
    made = failure_json(fails(case), "f")
    assert (made["file"], made["line"], made["at"]) == ("f", 4, "at 0s")
    (difference,) = made["differences"]
    assert difference["kind"] == "changed"
    assert difference["misfits"] == ["temp_c"]
    assert difference["expected"] == {"sensor": "b", "temp_c": 5}
    assert difference["got"]["temp_c"] == 2.0
