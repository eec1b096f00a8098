"""Conditions that go without TRY: what they are, that none of them can fail, and that rows fare the same with and without it."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.engine.connection import literal, open_engine
from pipelines.engine.expression import parse
from pipelines.engine.plain_condition import plain_condition
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


@settings(max_examples=300)
@given(_CONDITIONS)
def test_no_total_condition_fails_on_extreme_rows(text: str) -> None:
    if not total(text):
        return
    connection = ENGINE.cursor()
    connection.register("_in", _ROWS)
    plain = connection.execute(f"SELECT ({text}) AS v FROM _in").fetchall()
    tried = connection.execute(f"SELECT (TRY([{text}]))[1] AS v FROM _in").fetchall()
    assert plain == tried


_FINITE = (
    _ROWS.set_column(2, "d", pa.array([1.7e308, -0.0, None, 1.5]))
    .append_column("e", pa.array([5.0, -0.0, 1.5, None]))
    .append_column("z", pa.array(["", "x\0", None, "é"]))
)
_PLACES = {name: (name, TYPES.get(name, {"e": "DOUBLE", "z": "VARCHAR"}.get(name, ""))) for name in _FINITE.column_names}
_NUMBERS = "5 0 -0.0 1.5 0.1 -3 1e308 9223372036854775807 -9223372036854775808 9007199254740993 1.5000000000000000001"
_WORDS = ["'x'", "'x\0'", "'é'", "''", "true", "false", "null", "$n", "$x", "$w", "$f"]
_WORDS += [
    "CAST('1.5' AS DOUBLE)",
    "CAST('-1e+308' AS DOUBLE)",
    "CAST(' 5 ' AS DOUBLE)",
    "CAST(5 AS BIGINT)",
    "CAST('5' AS BIGINT)",
]
_PLAIN_ATOMS = st.sampled_from([*_PLACES, *_NUMBERS.split(), *_WORDS])
_PLAIN_TESTS = st.builds("{} {} {}".format, _PLAIN_ATOMS, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), _PLAIN_ATOMS)
_PLAIN = st.recursive(
    st.one_of(st.sampled_from(["b", "b = true", "d > 1", "z <> 'é'"]), _PLAIN_TESTS),
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
        st.builds("case when {} then true end".format, inner),
        st.builds("case when {} then false end".format, inner),
        st.builds("case when {} then true else {} end".format, inner, inner),
    ),
    max_leaves=4,
)
_VALUES = {**PARAMS, "f": True}


@settings(max_examples=500)
@given(_PLAIN)
@example("b and i <= $n or not d > -0.0")
def test_arrow_decides_a_plain_condition_as_duckdb_does(text: str) -> None:
    condition = plain_condition(parse(ENGINE, text, "x").tree, _PLACES, _VALUES)
    if condition is None:
        return
    connection = ENGINE.cursor()
    connection.register("_in", _FINITE)
    for name, value in _VALUES.items():
        text = text.replace(f"${name}", literal(value))
    expected = connection.execute(f"SELECT ({text}) AS v FROM _in").fetchall()
    assert [(value,) for value in condition(_FINITE).to_pylist()] == expected


@pytest.mark.parametrize(
    "text", ["b", "not b", "d > 1.5", "i > 5 and s = 'x'", "s <> $w", "b = true", "d > 5", "1.5 < d", "d < e"]
)
def test_these_conditions_need_no_statement(text: str) -> None:
    assert plain_condition(parse(ENGINE, text, "x").tree, _PLACES, _VALUES) is not None
