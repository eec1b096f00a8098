"""Row steps: a row's fate is its own."""

from __future__ import annotations

import pytest
from engine_support import Run, batch, compiled, ledgers_balance, pipeline, row


def run(body: str, *rows: str) -> Run:
    made = Run(compiled(pipeline(body))).feed(batch(rows))
    ledgers_balance(made.state)
    return made


def test_filter_counts_false_and_null_apart_per_step() -> None:
    body = "steps:\n  - filter: v > 1\n  - filter: n > 0\n"
    made = run(body, row(0, v=2, n=1), row(1, v=0, n=1), row(2, v=None, n=1), row(3, v=2, n=0), row(4, v=2), row(5, v=2))
    counts = made.state.sources["s"]
    assert {k: n for k, n in counts.items() if k.startswith("filtered")} == {
        "filtered.0": 1,
        "filtered_null.0": 1,
        "filtered.1": 1,
        "filtered_null.1": 2,
    }
    assert counts["accepted"] == len(made.rows()) == 1


@pytest.mark.parametrize(
    ("expression", "bad"),
    [
        ("n % (n - 3)", {"n": 3}),
        ("n * 9223372036854775807", {"n": 2}),
        ("CAST(k AS DOUBLE)", {"k": "x"}),
        ("sqrt(v)", {"v": -1}),
        ("ln(v)", {"v": 0}),
        ("v / 0", {"v": 1}),
        ("CAST(n AS TINYINT)", {"n": 1000}),
        ("strptime(k, '%Y')", {"k": "x"}),
    ],
)
def test_an_expression_that_errors_on_a_row_quarantines_that_row_only(expression: str, bad: dict[str, object]) -> None:
    good: dict[str, object] = {"k": "2000", "v": None, "n": None} if "v /" in expression else {"k": "2000", "v": 1, "n": 1}
    made = run(f"steps:\n  - derive:\n      x: {expression}\n", row(0, **good), row(1, **{**good, **bad}), row(2, **good))  # type: ignore[arg-type]  # columns by name
    assert len(made.rows()) == 2
    (rejected,) = made.quarantine()
    assert rejected["step"] == "steps[0]"
    assert rejected["reasons"][0].startswith("steps[0].derive.x: the expression fails on this row")
    assert rejected["raw"] == row(1, **{**good, **bad})  # type: ignore[arg-type]  # columns by name


def test_an_error_in_a_filter_quarantines_and_a_null_does_not() -> None:
    made = run("steps:\n  - filter: n % (n - 3) = 0\n", row(0, n=3), row(1), row(2, n=4), row(3, n=5))
    assert [r["step"] for r in made.quarantine()] == ["steps[0]"]
    assert made.state.sources["s"]["filtered_null.0"] == 1
    assert [r["n"] for r in made.rows()] == [4]


def test_two_tries_of_the_same_failing_expression_stay_apart() -> None:
    """DuckDB's common subexpression optimizer would lift it out of both and fail the batch."""
    made = run("steps:\n  - derive:\n      x: n % (n - 3)\n      y: n % (n - 3) + 1\n", row(0, n=3), row(1, n=5))
    assert len(made.quarantine()) == 1
    assert [(r["x"], r["y"]) for r in made.rows()] == [(1, 2)]


def test_later_steps_see_derived_columns_and_not_rows_that_are_gone() -> None:
    body = "steps:\n  - filter: n <> 0\n  - derive:\n      q: 12 // n\n      r: q + 1\n  - filter: r > 4\n"
    made = run(body, row(0, n=0), row(1, n=3), row(2, n=4))
    assert [(r["q"], r["r"]) for r in made.rows()] == [(4, 5)]
    assert made.quarantine() == []


def test_derived_texts_cannot_double_from_step_to_step() -> None:
    doubled = "".join(f"      t{i + 1}: t{i} || t{i}\n" for i in range(30))
    made = run(f"steps:\n  - derive:\n      t0: k || k\n{doubled}", row(0, k="x" * 100), row(1, k=""))
    assert len(made.rows()) == len(made.quarantine()) == 1


def test_enrich_is_the_nodes_and_params_and_meta_are_values() -> None:
    enrich = "  - enrich:\n      site: node.site\n      fw: node.facts.firmware\n      no: node.nothing\n"
    body = f"steps:\n{enrich}  - derive:\n      x: v * $gain\n      o: meta.offset\n      who: node.name\n"
    plan = compiled(pipeline(body, head="params:\n  gain: {type: double, default: 2}"))
    (found,) = Run(plan).feed(batch([row(0, v=3)])).rows()
    assert (found["site"], found["fw"], found["no"], found["x"], found["o"], found["who"]) == ("lyon", "7", None, 6.0, 0, "press")


def test_sinks_take_what_their_condition_holds_for() -> None:
    plan = compiled(
        pipeline("")
        + "  high: {lake: {table: high}, where: v > 1 or n % (n - 3) = 9}\n  far: {lake: {table: far}, where: meta.offset > 0}\n"
    )
    made = Run(plan).feed(batch([row(0, v=1), row(1, v=2), row(2, v=None), row(3, v=0, n=3)]))
    ledgers_balance(made.state)
    assert len(made.rows()) == 4
    assert [r["v"] for r in made.rows("high")] == [2.0]
    assert made.state.streams["high"] == {"offered": 4, "not_selected": 3, "written": 1}
    assert made.state.streams["far"]["written"] == 3
