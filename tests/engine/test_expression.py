"""What an expression may say, and what it is told when it says something else."""

from __future__ import annotations

import pytest
from engine_support import compiled, pipeline

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.engine.connection import open_engine
from pipelines.engine.functions import AGGREGATES, ROW_FUNCTIONS, SPAN_AGGREGATES
from pipelines.engine.plan import check_spec


def problem_of(body: str) -> tuple[str, str, str]:
    """(path, message, hint) of the first problem."""
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(pipeline(body)))
    problem = caught.value.problems[0]
    assert problem.line > 0
    return problem.path, problem.message, problem.hint


def derive(expression: str) -> str:
    return f"steps:\n  - derive:\n      x: {expression}"


def select(expression: str) -> str:
    return f"windows:\n  w:\n    every: 10s\n    by: [k]\n    select:\n      x: {expression}"


def when(expression: str) -> str:
    return f"triggers:\n  t:\n    over: 10s\n    by: [k]\n    when: {expression}"


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("(select 1)", "a subquery is not allowed"),
        ("v in (select 1)", "a subquery is not allowed"),
        ("exists(select 1)", "a subquery is not allowed"),
        ("lag(v) over ()", "OVER is not allowed"),
        ("sum(v) over (order by v)", "OVER is not allowed"),
        ("columns(*)", "* is not allowed"),
        ("list_transform([1], x -> x)", "list_transform() is not allowed"),
        ("now()", "now() is not allowed"),
        ("random()", "random() is not allowed"),
        ("uuid()", "uuid() is not allowed"),
        ("unnest([1, 2])", "unnest() is not allowed"),
        ("repeat('x', 9)", "repeat() is not allowed"),
        ("range(9)", "range() is not allowed"),
        ("read_text('/etc/passwd')", "read_text() is not allowed"),
        ("getenv('HOME')", "getenv() is not allowed"),
        ("current_setting('x')", "current_setting() is not allowed"),
        ("nextval('s')", "nextval() is not allowed"),
        ("main.abs(v)", "main.abs() is not allowed"),
        ("sum(v)", "the aggregate sum() is not allowed here"),
        ("median(v)", "the aggregate median() is not allowed here"),
        ("v::JSON", "a cast to JSON is not allowed"),
        ("v, n", "this is not one expression"),
        ("v from t", "this is not one expression"),
        ("v where n > 1", "this is not one expression"),
        ("v limit 1", "this is not one expression"),
        ("distinct v", "this is not one expression"),
        ("v as y", "AS is not allowed"),
        ("v; drop table t", "; is not allowed"),
        ("'v -- hi' || k -- tail", "-- is not allowed"),
        ("v /* hi */", "/* is not allowed"),
        ("$a$text$a$", "$a$ is not allowed"),
        ("e'\\n' || k", "e' is not allowed"),
        ("v +", "not an expression"),
        ("(v", "not an expression"),
        ("$nope", "there is no parameter $nope"),
        ("tmp", 'column "tmp" is not in the schema'),
        ("k.x", 'column "k.x" is not in the schema'),
        ("meta.tpic", "there is no meta.tpic"),
        ("sqrt(k, 1)", "sqrt"),
        ("to_days(1)", "has no column type"),
    ],
)
def test_a_row_expression_is_refused(expression: str, says: str) -> None:
    path, message, _ = problem_of(derive(f'"{expression}"' if '"' not in expression else expression).replace("\\", "\\\\"))
    assert path == "steps[0].derive.x"
    assert says in message


def test_refusals_come_with_what_to_write_instead() -> None:
    assert problem_of(derive("now()"))[2] == "it differs on every run; use the event time or meta.received_at"
    assert 'did you mean "sqrt"?' in problem_of(derive("sqrtt(v)"))[1]
    assert problem_of("steps:\n  - filter: v + 1")[1:] == (
        "this is a double, not a condition",
        "compare with =, <, > or use and, or, not",
    )


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("median(v)", "the aggregate median() is not allowed here"),
        ("sum(distinct v)", "DISTINCT is not allowed within sum()"),
        ("sum(max(v))", "an aggregate within an aggregate"),
        ("v", "a window's column is an aggregate"),
        ("max(v) + n", '"n" stands outside an aggregate'),
        ("max(v) + N", '"N" stands outside an aggregate'),
        ("first(v order by n)", "ORDER BY within first() is not allowed"),
        ("sum(k)", "sum"),
    ],
)
def test_a_windows_column_is_refused(expression: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(pipeline(select(expression))))
    assert any(says in problem.message for problem in caught.value.problems), caught.value.problems
    assert all(problem.path.startswith("windows.w") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("v > 1", "a condition looks at the rows of the span"),
        ("max(v)", "this is a double, not a condition"),
        ("max(v) > 1 and n > 1", '"n" stands outside an aggregate'),
        ("count(distinct n % 2) > 1", "here count() takes plain columns"),
        ("max(vv) > 1", 'column "vv" is not in the rows; did you mean "v"?'),
    ],
)
def test_a_condition_is_refused(expression: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(pipeline(when(expression))))
    assert any(says in problem.message for problem in caught.value.problems), caught.value.problems


def test_all_problems_of_a_file_are_told_at_once_in_the_order_of_the_file() -> None:
    body = "steps:\n  - filter: vv > 1\n  - derive:\n      x: now()\n" + when("max(zz) > 1")
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(pipeline(body)))
    assert [p.path for p in caught.value.problems] == ["steps[0].filter", "steps[1].derive.x", "triggers.t.when"]
    assert [p.line for p in caught.value.problems] == sorted(p.line for p in caught.value.problems)


@pytest.mark.parametrize("expression", ["k || ')('", "k || ' -- no comment ;'", '"v" + 1', "V * 2", "-v", "v between 1 and 2"])
def test_odd_but_right_expressions_compile(expression: str) -> None:
    compiled(pipeline(derive("|-\n        " + expression)))


def test_brackets_in_text_do_not_confuse_the_parts_of_an_aggregate() -> None:
    compiled(pipeline(select("|-\n        first(replace(k, ')', '(')) filter (where k <> ')')")))


def test_every_allowed_function_exists_and_gives_the_same_for_the_same() -> None:
    found = open_engine().execute("SELECT function_name, function_type, stability FROM duckdb_functions()").fetchall()
    known = {name: (kind, stability) for name, kind, stability in found}
    for name in ROW_FUNCTIONS - {"if", "coalesce", "ifnull"}:  # these three are grammar, not functions
        kind, stability = known[name]
        assert kind in ("scalar", "macro"), name
        assert stability in ("CONSISTENT", None), name
    for name in SPAN_AGGREGATES | AGGREGATES:
        assert known[name][0] in ("aggregate", "macro"), name
