"""Expressions nested deeper than anything can walk are refused with words; long ones in triggers work."""

from __future__ import annotations

import pytest
from engine_support import Run, batch, pipeline, row

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.engine.plan import compile_plan

LATEST = "triggers:\n  t:\n    over: latest\n    by: [k]\n"
SLOTS = {
    "filter": "steps:\n  - filter: {} > 1\n",
    "derive": "steps:\n  - derive:\n      m: {}\n",
    "window": "windows:\n  w:\n    every: 10s\n    select:\n      a: sum({})\n",
    "window, outside": "windows:\n  w:\n    every: 10s\n    select:\n      a: sum(n) + {}\n",
    "window where": "windows:\n  w:\n    every: 10s\n    where: {} > 1\n    select:\n      a: sum(n)\n",
    "when": LATEST + "    when: max({}) > 1\n",
    "when, outside": LATEST + "    when: max(n) > 1 and {} > 1\n",
    "when of a span": "triggers:\n  t:\n    over: 1m\n    by: [k]\n    when: max({}) > 1\n",
    "clear_when": LATEST + "    when: max(n) > 1\n    clear_when: max({}) < 1\n",
    "filter of an aggregate": LATEST + "    when: count(*) filter (where {} > 1) > 1\n",
}
CHAINS = {
    "sum": lambda n: "0" + " + 1" * n,
    "brackets": lambda n: "(" * n + "1" + ")" * n,
    "concat": lambda n: "length('a'" + " || 'a'" * n + ")",
    "functions": lambda n: "abs(" * n + "1" + ")" * n,
    "not": lambda n: f"CAST(({'not ' * n}true) AS BIGINT)",
    "case": lambda n: "CASE WHEN true THEN " * (n // 2) + "1" + " END" * (n // 2),
    "cast": lambda n: "1" + "::BIGINT" * n,
}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("chain", CHAINS)
def test_deep_expressions_are_refused_with_words(slot: str, chain: str) -> None:
    for levels in (60, 135, 500):
        text = pipeline(SLOTS[slot].format(CHAINS[chain](levels)))
        try:
            compile_plan(load_spec(text))
        except SpecError as error:
            said = " ".join(problem.message for problem in error.problems)
            assert "nested too deep" in said or "8192" in said or chain == "not" or levels < 135, (levels, said)
            assert all(problem.hint for problem in error.problems), error.problems
        else:
            assert levels < 135 or chain == "case", levels


GROUP = '{"k": "a"}'
LONG = {
    "in": "last(k) in (" + ", ".join(f"'{i}'" for i in range(100)) + ", 'a')",
    "not in": "last(k) not in (" + ", ".join(f"'{i}'" for i in range(100)) + ")",
    "sum": " + ".join(["max(v)"] * 100) + " >= 700",
    "coalesce": f"coalesce({', '.join(['min(n)'] * 100)}, max(v)) = 7",
    "or": " or ".join(f"max(v) = {i}" for i in range(100)),
    "and": " and ".join(f"max(v) <> {i}" for i in range(8, 100)),
    "nested": "(not " * 100 + "max(v) = 7" + ")" * 100,
}


@pytest.mark.parametrize("what", LONG)
@pytest.mark.parametrize("over", ["latest", "10s"])
def test_long_conditions_work(what: str, over: str) -> None:
    body = f"triggers:\n  t:\n    over: {over}\n    by: [k]\n    when: {LONG[what]}\n"
    run = Run(compile_plan(load_spec(pipeline(body)))).feed(batch([row(0, "a", 7.0)], 1))
    assert run.transitions() == [(GROUP, "raised", 0.0)]


def test_a_quote_in_a_text_does_not_hide_brackets() -> None:
    words = ", ".join(f"'it''s )){i}'" for i in range(100))
    body = f"triggers:\n  t:\n    over: latest\n    by: [k]\n    when: last(k) not in ({words})\n"
    run = Run(compile_plan(load_spec(pipeline(body)))).feed(batch([row(0, "a", 7.0)], 1))
    assert run.transitions() == [(GROUP, "raised", 0.0)]


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    for digits in (401, 5_000):
        with pytest.raises(SpecError, match=r"a number of 401 digits|a number of 5,000 digits") as caught:
            load_spec("tidewire: " + "9" * digits)
        assert caught.value.problems[0].hint
