"""What is wrong with a file is told with line, column and a hint; nothing else than `SpecError` comes of any file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import Problem, SpecError
from pipelines.engine.plan import load_checked
from pipelines.tools.cases import load_cases
from pipelines.tools.fmt import format_text

ROOT = Path(__file__).parents[2]
BASE = """tidewire: 1
pipeline: p
sources:
  s:
    file: {path: x}
schema:
  ts: {type: timestamp, event_time: true}
  state: {type: string}
  temp_c: {type: double}
"""
TRIGGER = "triggers:\n  t:\n    over: 10s\n    when: max(temp_c) > 3\n"
EXPRESSION = "steps:\n  - derive:\n      x: "


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        load_checked(text, "f.yaml")
    return caught.value.problems


@pytest.mark.parametrize(
    ("more", "line", "column", "message", "hint"),
    [
        ("steps:\n  - filter: %x = 1\n", 11, 13, "cannot start any token", "put it in quotes"),
        ("steps:\n  - filter: @x\n", 11, 13, "cannot start any token", "put it in quotes"),
        ("steps:\n  - filter: `x`\n", 11, 13, "cannot start any token", "put it in quotes"),
        ("steps:\n  - filter: 'run' = state\n", 11, 19, "the value ends at its closing quote", "other kind of quotes"),
        ('steps:\n  - filter: "temp-c" > 3\n', 11, 24, "the value ends at its closing quote", "other kind of quotes"),
        ("steps:\n  - filter: !running\n", 11, 13, "tags like !running", "write `not`"),
        ("steps:\n  - filter: state <> 'a #b'\n", 11, 5, "unterminated", "` #` starts a comment"),
        ("steps:\n  - filter: state = 'a: b'\n", 11, 23, "mapping values", "put the value in quotes"),
        ("steps:\n  - derive: {x: coalesce(state, 'b'), y: 1}\n", 11, 36, "a {..} map ends here", "a comma ends"),
        ("steps:\n  - derive: {x: round(temp_c, 2)}\n", 11, 14, "half of an expression", "a comma ends"),
        ("steps:\n\t- filter: x\n", 11, 1, "", "spaces, not tabs"),
        ("steps:\n  - filter:\n", 11, 5, "nothing is written here", "in quotes or on its own line"),
        ("steps:\n  - filter: [a, b]\n", 11, 5, "is not text", "put it in quotes"),
        ("steps:\n  - filtr: temp_c > 3\n", 11, 5, 'unknown key "filtr"; did you mean "filter"?', "known here: filter"),
        ("steps:\n  - filter: tmp_c > 3\n", 11, 5, 'did you mean "temp_c"?', ""),
        ("steps:\n  - filter: temp_c\n", 11, 5, "not a condition", "compare with"),
        ("steps:\n  - filter: temp_c >\n", 11, 5, "not an expression", "SQL"),
        ("steps:\n  - filter: temp_c > 3; drop table x\n", 11, 5, "; is not allowed", "one expression"),
        ("steps:\n  - filter: max(temp_c) > 3\n", 11, 5, "aggregate", "windows:"),
        ("steps:\n  - filter: now() > ts\n", 11, 5, "now()", "event time"),
        (EXPRESSION + "lag(temp_c) over ()\n", 12, 7, "only this batch", ""),
        (EXPRESSION + "foo(temp_c)\n", 12, 7, "foo()", "list of functions"),
        (EXPRESSION + "temp_c + state\n", 12, 7, "", "cast"),
        (EXPRESSION + "3\n", 12, 7, "3 is not text", "put it in quotes"),
        (EXPRESSION + '"\\d"\n', 12, 12, "a backslash in double quotes", "single quotes"),
        ("steps:\n  filter: temp_c > 3\n", 10, 1, "is not a list", "after `- `"),
        ("steps:\n  - filter: a\n - filter: b\n", 12, 2, "indented otherwise", "in one column"),
        ("sinks:\n  r: {lake: t}\n", 11, 7, "is not a map of keys", "write `key: value`"),
        ("sinks:\n  r: {lake: {table: t}, from: w}\n", 11, 25, "there is no window", "without `from:`"),
        ("windows:\n  w:\n    every: 10\n    select:\n      n: count(*)\n", 12, 5, "10 is not a duration", "as in 10s"),
        ("windows:\n  w:\n    every: 10s\n    by: [stat]\n    select:\n      n: count(*)\n", 13, 5, 'did you mean "state"?', ""),
        (TRIGGER + "    message: {state} is hot\n", 14, 22, "", "YAML"),
        (TRIGGER + "    severity: high\n", 14, 5, '"high" is not', "write one of critical"),
        ("params:\n  x: {type: float}\n", 11, 7, '"float" is not', "write one of"),
        ("pipeline: q\n", 10, 1, 'the key "pipeline" stands twice', "remove one"),
        ("a: &x 1\n", 10, 4, "anchors", "write the value out"),
        ("---\nb: 1\n", 10, 1, "second document", "one pipeline"),
        ("steps: [\n", 11, 1, "the file ends in the middle", "never closed"),
        ('steps:\n  - filter: "temp_c\n', 11, 13, "this quote is never closed", "close it"),
        ("steps: \x00\n", 10, 8, "U+0000", "remove it"),
        ("steps: \x07\n", 10, 8, "U+0007", "remove it"),
        ("? [a]\n: b\n", 10, 3, "a key must be a word", "write `key: value`"),
        ("description: " + "x" * 300_000, 1, 1, "over 256 KiB", "lookup table"),
        ("steps: " + "[" * 50 + "]" * 50, 10, 39, "more than 32 levels", "flatten"),
        ("steps: " + "[" * 50_000, 10, 39, "more than 32 levels", "flatten"),
        ("on_invalid: quarantin\n", 10, 1, 'did you mean "quarantine"?', "write one of"),
        ("sinks2: 1\n", 10, 1, 'did you mean "sinks"?', "known here: tidewire"),
    ],
)
def test_where_and_what_to_do(more: str, line: int, column: int, message: str, hint: str) -> None:
    problem = problems(BASE + more)[0]
    assert (problem.file, problem.line, problem.column) == ("f.yaml", line, column), problem
    assert message in problem.message, problem
    assert hint in problem.hint, problem


@pytest.mark.parametrize("text", ["", "# nothing", "[]", "3", "null", "{}", "a: 1", "tidewire: 1", "\ufeff", "---", "..."])
def test_hardly_a_file(text: str) -> None:
    assert all(problem.line and problem.column and problem.hint for problem in problems(text))


@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n\n"])
def test_line_ends_and_a_byte_order_mark(ends: str) -> None:
    load_checked("\ufeff" + BASE.replace("\n", ends))
    problem = problems(BASE.replace("\n", ends) + "steps: 5" + ends)[0]
    assert problem.line == (19 if ends == "\n\n" else 10)


CORPUS = [path.read_text() for path in sorted((ROOT / "pipelines").rglob("*.yaml")) if not path.name.endswith(".cases.yaml")]
CASES = [path.read_text() for path in sorted((ROOT / "pipelines").rglob("*.cases.yaml"))]
_INSERTS = [
    *(
        "'",
        '"',
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        ": ",
        "#",
        " #",
        "- ",
        "%",
        "&a",
        "*a",
        "!t",
        "|",
        ">",
        "\t",
        "\n",
        "\x00",
        "\ufeff",
    ),
    *(
        "null",
        "~",
        "true",
        "-1",
        "1e999",
        "9" * 30,
        "${secret:",
        "$limit",
        "$$",
        "\\",
        "é",
        "😀",
        "max(",
        "select",
        ";",
        "over ()",
        "'; --",
    ),
]


def mutated(text: str, seed: int) -> str:
    """`text` with some of what goes wrong when people edit."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        lines = text.splitlines(keepends=True)
        n = rng.randrange(len(lines))
        how = rng.randrange(7)
        if how == 0:
            text = text[:at] + rng.choice(_INSERTS) + text[at:]
        elif how == 1:
            text = text[:at] + text[at + rng.randint(1, 12) :]
        elif how == 2:
            text = "".join([*lines[:n], *lines[n + 1 :]]) or text
        elif how == 3:
            text = "".join([*lines[:n], rng.choice(lines), *lines[n:]])
        elif how == 4:
            text = "".join([*lines[:n], rng.choice(["  ", "    ", "\t"]) + lines[n], *lines[n + 1 :]])
        elif how == 5:
            key, colon, _ = lines[n].partition(":")
            text = "".join([*lines[:n], f"{key}{colon} {rng.choice(_INSERTS)}\n", *lines[n + 1 :]])
        else:
            text = text[:at]
        text = text or "x"
    return text


@given(st.sampled_from(CORPUS), st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_damaged_pipeline_is_one_or_a_spec_error(text: str, seed: int) -> None:
    damaged = mutated(text, seed)
    try:
        load_checked(damaged, "f.yaml")
    except SpecError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.file == "f.yaml" and problem.line >= 1 and problem.column >= 1, problem
            assert "defect" not in problem.hint, problem


@given(st.sampled_from(CORPUS + CASES), st.integers(0, 2**32))
@settings(max_examples=80)
def test_damaged_files_are_formatted_or_refused(text: str, seed: int) -> None:
    damaged = mutated(text, seed)
    try:
        made = format_text(damaged, "f.yaml")
    except SpecError:
        return
    assert format_text(made, "f.yaml") == made


@given(st.sampled_from(CASES or ["cases: []"]), st.integers(0, 2**32))
@settings(max_examples=100)
def test_damaged_cases_are_cases_or_a_spec_error(text: str, seed: int) -> None:
    try:
        load_cases(mutated(text, seed), "f.cases.yaml")
    except SpecError as error:
        assert all(problem.line >= 1 and problem.column >= 1 for problem in error.problems)
