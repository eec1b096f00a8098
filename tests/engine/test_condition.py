"""Conditions compiled to Python give exactly what DuckDB gives, or abstain."""

from __future__ import annotations

import random

import duckdb
import pytest

from pipelines.engine.triggers.condition import Abstain, compile_expressions

NAMES = {"a": "DOUBLE", "n": "BIGINT", "c": "COUNT", "s": "VARCHAR", "b": "BOOLEAN"}
ROW = "SELECT TRY({}) FROM (SELECT ?::DOUBLE AS a, ?::BIGINT AS n, ?::BIGINT AS c, ?::VARCHAR AS s, ?::BOOLEAN AS b)"
DOUBLES = [None, 0.0, 1.0, 2.5, 0.1, -3.0, 0.1 + 0.2, 0.3, 1e308]


def number(chance: random.Random, depth: int) -> str:
    words = ["a", "n", "c", "1", "0", "2.5", "0.1", "1e3", "-3", "CAST(85.0 AS DOUBLE)", "9007199254740993"]
    if depth and chance.random() < 0.4:
        left, right = number(chance, depth - 1), number(chance, depth - 1)
        return chance.choice([f"({left} {chance.choice('+-*/')} {right})", f"coalesce({left}, {right})", f"(- {left})"])
    return chance.choice(words)


def condition(chance: random.Random, depth: int) -> str:
    kind = chance.random()
    if depth == 0 or kind < 0.35:
        return f"{number(chance, 2)} {chance.choice(['=', '<>', '<', '>', '<=', '>='])} {number(chance, 2)}"
    if kind < 0.45:
        return f"s {chance.choice(['=', '<>', '<', '>'])} 'x'"
    if kind < 0.5:
        return f"{number(chance, 1)} BETWEEN {number(chance, 1)} AND {number(chance, 1)}"
    if kind < 0.6:
        return chance.choice(["s IN ('x', 'y')", f"{number(chance, 1)} NOT IN (1, 2, {number(chance, 0)})"])
    if kind < 0.65:
        return f"({number(chance, 1)}) IS {chance.choice(['', 'NOT '])}NULL"
    if kind < 0.7:
        return chance.choice(["b", "NOT b", "NULL"])
    if kind < 0.8:
        return f"NOT ({condition(chance, depth - 1)})"
    return f"(({condition(chance, depth - 1)}) {chance.choice(['AND', 'OR'])} ({condition(chance, depth - 1)}))"


def test_what_is_compiled_is_what_duckdb_says() -> None:
    chance, engine, compared = random.Random(7), duckdb.connect(), 0
    for _ in range(500):
        text = condition(chance, 3)
        evaluate = compile_expressions(engine, [text], NAMES)
        if evaluate is None:
            continue
        for _ in range(4):
            row = [
                chance.choice(DOUBLES),
                chance.choice([None, 0, 1, 2, -3, 2**60]),
                chance.choice([0, 1, 3, 1000]),
                chance.choice([None, "x", "y", "é", ""]),
                chance.choice([None, True, False]),
            ]
            try:
                (got,) = evaluate(*row)
            except Abstain:
                continue
            ((expected,),) = engine.execute(ROW.format(text), row).fetchall()
            assert got is expected or (expected is not None and got == expected), (text, row)
            compared += 1
    assert compared > 1000


@pytest.mark.parametrize(
    "text", ["round(a) > 1", "n % 2 = 0", "c * 0.1 > 0.3", "s || 'x' = 'y'", "CASE WHEN b THEN a ELSE 1 END > 0"]
)
def test_what_is_not_simple_is_left_to_duckdb(text: str) -> None:
    assert compile_expressions(duckdb.connect(), [text], NAMES) is None


def test_deep_nesting_is_left_to_duckdb() -> None:
    text = "b"
    for _ in range(40):
        text = f"(a > 1 OR (b AND {text}))"
    assert compile_expressions(duckdb.connect(), [text], NAMES) is None
