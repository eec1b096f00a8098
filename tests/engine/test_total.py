"""Conditions that go without TRY: what they are, that none of them can fail, and that rows fare the same with and without it."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine.connection import open_engine
from pipelines.engine.expression import parse
from pipelines.engine.total import is_total

TYPES = {"b": "BOOLEAN", "i": "BIGINT", "d": "DOUBLE", "s": "VARCHAR", "c": "DECIMAL(18,3)", "t": "TIMESTAMP"}
PARAMS = {"n": 5, "x": 1.5, "w": "a"}
ENGINE = open_engine()
TOTAL = ["b", "not b", "d > 1.5", "i > 5 and s = 'x'", "b is null", "I >= $n or d < $x", "s <> $w", "i < d", "b = true", "d > 5"]
NOT = [
    "s > 5",
    "i > 1.5",
    "i > 9999999999999999999",
    "t > '2026-01-01'",
    "i / 0 > 1",
    "c > 1",
    "i + 1 > 0",
    "s",
    "i",
    "s.x",
    "null",
]
NOT += ["b and s > 5", "i between 1 and 2", "i in (1, 2)", "meta.file = 'x'", "s like 'x'", "(s = 'x') = (i = 1) and null"]


def total(text: str) -> bool:
    return is_total(parse(ENGINE, text, "x").tree, TYPES, PARAMS)


@pytest.mark.parametrize("text", TOTAL)
def test_a_comparison_within_a_kind_is_total(text: str) -> None:
    assert total(text)


@pytest.mark.parametrize("text", NOT)
def test_what_converts_or_computes_is_not(text: str) -> None:
    assert not total(text)


_ATOMS = st.sampled_from(
    ["b", "i", "d", "s", "c", "t", "5", "1.5", "-3", "1e308", "'x'", "'5'", "true", "null", "9223372036854775807"]
)
_TESTS = st.builds("{} {} {}".format, _ATOMS, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), _ATOMS)
_EACH = st.one_of(_ATOMS, _TESTS, st.builds("{} is null".format, _ATOMS), st.builds("{} is not null".format, _ATOMS))
_CONDITIONS = st.recursive(
    _EACH,
    lambda inner: st.one_of(st.builds("not ({})".format, inner), st.builds("({}) and ({})".format, inner, inner)),
    max_leaves=4,
)
_ROWS = pa.table(
    {
        "b": [True, False, None, True],
        "i": pa.array([2**63 - 1, -(2**63), None, 0], pa.int64()),
        "d": [1.7e308, -1.7e308, None, math.nan],
        "s": ["x", "", None, "5"],
    }
)


@settings(max_examples=300, deadline=None)
@given(_CONDITIONS)
def test_no_total_condition_fails_on_extreme_rows(text: str) -> None:
    if not total(text):
        return
    connection = ENGINE.cursor()
    connection.register("_in", _ROWS)
    plain = connection.execute(f"SELECT ({text}) AS v FROM _in").fetchall()
    tried = connection.execute(f"SELECT (TRY([{text}]))[1] AS v FROM _in").fetchall()
    assert plain == tried
