"""YAML without its surprises: what is refused, where exactly, and with what hint."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.yaml_reader import BYTES_MAX, DEPTH_MAX, decode, format_path, parse_path, read


def problem_of(text: str) -> Problem:
    with pytest.raises(SpecError) as caught:
        read(text, "f.yaml")
    problem = caught.value.problems[0]
    assert problem.file == "f.yaml"
    return problem


def where(text: str) -> tuple[int, int, str]:
    problem = problem_of(text)
    return problem.line, problem.column, problem.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("12:30:00", "12:30:00"),
        ("010", "010"),
        ("0o10", "0o10"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("10", 10),
        ("-3", -3),
        ("+3", 3),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", ".5"),
        (".inf", ".inf"),
        ("null", None),
        ("~", None),
        ("", None),
        ("Null", "Null"),
        ("'10'", "10"),
        ('"true"', "true"),
        ("'null'", "null"),
        ("|-\n  10", "10"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_plain_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    found = read(f"a: {text}\n").data["a"]
    assert (found, type(found)) == (value, type(value))


def test_every_place_is_known() -> None:
    source = read("a: 1\nb:\n  - c: x\n    d: y\n")
    assert source.data == {"a": 1, "b": [{"c": "x", "d": "y"}]}
    assert source.place(("b", 0, "d")) == (4, 5)
    assert source.place(("b", 0, "nope", 3)) == (3, 5)
    assert source.place(()) == (1, 1)


def test_refusals_and_where_they_are() -> None:
    assert where("a: 1\nb: 2\na: 3\n") == (3, 1, 'the key "a" stands twice')
    assert where("a: &x 1\nb: *x\n") == (1, 4, "anchors and aliases are not allowed")
    assert where("a: *x\n") == (1, 4, "anchors and aliases are not allowed")
    assert where("a: !!str 1\n") == (1, 4, "tags like tag:yaml.org,2002:str are not allowed")
    assert where("a: !!python/object:os.system x\n")[2].startswith("tags like tag:yaml.org,2002:python")
    assert where("a: !mine [1]\n")[2] == "tags like !mine are not allowed"
    assert where("!!map {a: 1}\n")[2].startswith("tags like")
    assert where("? [1]\n: 2\n") == (1, 3, "a key must be a word")
    assert where("a: 1\n---\nb: 2\n")[:2] == (2, 1)
    assert where("") == (1, 1, "the document is empty")
    assert where("# only a comment\n") == (1, 1, "the document is empty")


def test_bombs_are_refused_before_they_go_off() -> None:
    deep = "[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1)
    assert where(f"a: {deep[1:-1]}\n") == (1, 3 + DEPTH_MAX, f"more than {DEPTH_MAX} levels deep")
    assert problem_of("a: " + "[" * 100_000).message
    assert "over 256 KiB" in problem_of("a: " + "x" * BYTES_MAX).message
    assert "over 256 KiB" in problem_of("a: " + "é" * (BYTES_MAX // 2)).message
    laughs = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in pairwise("abcdefghi"))
    assert "anchors" in problem_of(laughs).message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: %x\n", "put it in quotes"),
        ("a: @x\n", "put it in quotes"),
        ("a: `x`\n", "put it in quotes"),
        ("a:\n\tb: 1\n", "spaces, not tabs"),
        ("a: b: c\n", "a colon followed by a space ends a key"),
        ("a: 1\n---\nb: 2\n", "one file holds one pipeline"),
        ("a: [1\n", "a bracket or quote above is never closed"),
        ("a: 'x\n", "close it, or double it"),
        ('a: "\\d+"\n', "use single quotes"),
        ("a: 'run' = state\n", "the other kind of quotes"),
        ('a: "temp-c" > 3\n', "the other kind of quotes"),
        ("a: !running\n", "write `not`"),
        ("a: * 3\n", "put the value in quotes"),
        ("a: > 3\n", "put the value in quotes"),
        ("a:\n  - b\n - c\n", "entries of one list start in one column"),
        ("a:\n  b: 1\n c: 2\n", "keys of one map start in one column"),
        ("a: 1\nb\n", "write `key: value`"),
        ("a: \x00\n", "remove it"),
        ("select: [count(*), quantile(x, 0.95)]\n", "put the expression in quotes"),
        ("select: {p95: quantile_cont(x, 0.95), b: 1}\n", "put the expression in quotes"),
        ("select: {a: 'x', b}\n", "put the expression in quotes"),
        ("select: {a: concat('b, 'c)}\n", "close it"),
        ("a: 1\na: 2\n", "remove one of the two"),
        ("a: &x 1\n", "write the value out"),
    ],
)
def test_hints(text: str, hint: str) -> None:
    assert hint in problem_of(text).hint


def test_a_flow_map_that_cut_an_expression_is_told_at_its_key() -> None:
    problem = problem_of("w:\n  select: {p: quantile_cont(x, 0.95)}\n")
    assert (problem.path, problem.line, problem.column) == ("w.select.p", 2, 12)
    assert problem.message == '"p" looks like half of an expression'
    read("a: {type: double, min: 0, default: '(', b: \"it's\", c: [1, 2]}\n")  # nothing of this was cut


@pytest.mark.parametrize(
    "text",
    [
        "a: {type: integer, description: the motor's limit}",
        "a: {description: the sensors' limit, unit: the motor's own}",
        "a: {description: summer of the '90s (it's hot), type: integer}",
        "a: {one_of: [driver's, passenger's]}",
        "a: {description: the pump's limit (in bar)}",
    ],
)
def test_an_apostrophe_in_prose_cuts_nothing(text: str) -> None:
    assert "'" in str(read(text).data["a"])


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a: {filter: name = 'x, y'}", "a.y'"),
        ("a: {filter: name in (x, y)}", "a.filter"),
        ("a: {b': 1}", "a.b'"),
        ("a: {x: left(b, n: 2)}", "a.x"),
        ("a: [left(b, 2)]", "a[0]"),
    ],
)
def test_signs_of_a_cut(text: str, path: str) -> None:
    assert problem_of(text).path == path


def test_where_a_quote_was_opened_and_where_a_byte_is_wrong() -> None:
    assert where("a: 1\nb: 'x\nc: 2\n") == (2, 4, "this quote is never closed")
    assert where("a: 1\nb: é\x07\n") == (2, 5, "the character U+0007 is not allowed in YAML")
    with pytest.raises(SpecError) as caught:
        decode("a: 1\r\nb: é".encode() + b"\xff\n", "f.yaml")
    problem = caught.value.problems[0]
    assert (problem.line, problem.column, problem.message, problem.file) == (2, 5, "this byte is not UTF-8 text", "f.yaml")


def test_every_kind_of_line_end_and_a_byte_order_mark() -> None:
    for text in ("a: 1\nb: 2\n", "a: 1\r\nb: 2\r\n", "a: 1\rb: 2\r", "\ufeffa: 1\nb: 2", "a: 1\r\nb: 2\n"):
        source = read(text)
        assert source.data == {"a": 1, "b": 2}
        assert source.place(("b",)) == (2, 1)


def test_paths_round_trip() -> None:
    assert format_path(("steps", 2, "filter")) == "steps[2].filter"
    assert parse_path("steps[2].filter") == ("steps", 2, "filter")
    assert parse_path("") == ()


@given(st.one_of(st.text(), st.text(alphabet="{}[]:,-?&*!|>'\"%@`#\n\t a1\\\x00\ud800\ufeff\x85")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read(text)
    except SpecError as error:
        assert all(problem.line and problem.column and problem.hint for problem in error.problems)
