"""The aggregates that rows enter and leave, against DuckDB over the rows that are in sight at each row."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import duckdb
import pytest
from engine_support import Run, batch, compiled, pipeline, row

CALLS = {
    "count(*)": "count(*)",
    "count(v)": "count(v)",
    "count(distinct k)": "count(distinct k)",
    "sum(n)": "sum(n)",
    "sum(v)": "sum(v)",
    "avg(v)": "avg(v)",
    "min(v)": "min(v)",
    "max(v)": "max(v)",
    "max(k)": "max(k)",
    "first(v)": "first(v ORDER BY i)",
    "last(k)": "last(k ORDER BY i)",
    "any_value(v)": "any_value(v ORDER BY i)",
    "stddev(v)": "stddev_samp(v)",
    "var_pop(n)": "var_pop(n)",
    "median(v)": "median(v)",
    "quantile_cont(v, 0.3)": "quantile_cont(v, 0.3)",
    "quantile_disc(n, 0.7)": "quantile_disc(n, 0.7)",
    "arg_max(k, v)": "arg_max(k, v ORDER BY i)",
    "arg_min(n, v)": "arg_min(n, v ORDER BY i)",
    "bool_and(v > 0)": "bool_and(v > 0)",
    "bool_or(v > 9)": "bool_or(v > 9)",
    "count_if(v > 3)": "coalesce(count_if(v > 3), 0)",
    "sum(v) filter (where k = 'a')": "sum(v) filter (where k = 'a')",
    "last(v) filter (where n > 4)": "last(v ORDER BY i) filter (where n > 4)",
    "arg_max(k, v) filter (where n > 4)": "arg_max(k, v ORDER BY i) filter (where n > 4)",
}


def rows_of(seed: int) -> list[dict[str, Any]]:
    chance, now, found = random.Random(seed), 0.0, []
    for i in range(70):
        now += chance.choice([0.5, 0.5, 1, 4])
        value = chance.choice([None, 0.1, 0.3, 5.5, round(chance.uniform(-9, 12), 2)])
        k, n = chance.choice(["a", "b", "c", None]), chance.choice([None, 3, 4, 5, 6])
        found.append({"i": i, "ts": now, "k": k, "v": value, "n": n, "turn": i % 2})
    return found


def told(over: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    schema = "\n".join(
        f"  {name}: {{type: {type_}}}"
        for name, type_ in (
            ("ts", "timestamp, event_time: true, unit: s"),
            ("k", "string, nullable: true"),
            ("v", "double, nullable: true"),
            ("n", "integer, nullable: true"),
            ("turn", "integer"),
        )
    )
    conditions = " or ".join(f"coalesce({call} is null and false, false)" for call in CALLS)
    text = pipeline(f"triggers:\n  t:\n{over}\n    when: last(turn) = 0 or {conditions}", schema=schema)
    made = Run(compiled(text)).feed(
        batch([row(r["ts"], r["k"], r["v"], n=r["n"], turn=r["turn"]) for r in rows]),
    )
    return [json.loads(t.value) for t in made.output.transitions]


def expected(rows: list[dict[str, Any]]) -> tuple[Any, ...]:
    values = ", ".join("(?::INT, ?::VARCHAR, ?::DOUBLE, ?::BIGINT)" for _ in rows)
    flat = [value for r in rows for value in (r["i"], r["k"], r["v"], r["n"])]
    found: tuple[Any, ...] = (
        duckdb.connect().execute(f"SELECT {', '.join(CALLS.values())} FROM (VALUES {values}) AS t(i, k, v, n)", flat).fetchone()
    ) or ()
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)
    return bool(a == b)


@pytest.mark.parametrize("seed", [1, 5])
def test_over_a_span(seed: int) -> None:
    rows = rows_of(seed)
    for at, got in enumerate(told("    over: 10s", rows)):
        in_sight = [r for r in rows[: at + 1] if r["ts"] > rows[at]["ts"] - 10]
        for (label, _), value in zip(CALLS.items(), expected(in_sight), strict=True):
            assert same(got[label], value), (at, label)
        assert got["count"] == len(in_sight)


@pytest.mark.parametrize("seed", [1, 5])
def test_over_the_newest_of_each(seed: int) -> None:
    rows = rows_of(seed)
    for at, got in enumerate(told("    over: latest\n    each: [k]\n    stale_after: 12s", rows)):
        newest = {r["k"]: r for r in rows[: at + 1]}
        in_sight = sorted((r for r in newest.values() if r["ts"] > rows[at]["ts"] - 12), key=lambda r: int(r["i"]))
        for (label, _), value in zip(CALLS.items(), expected(in_sight), strict=True):
            assert same(got[label], value), (at, label)
