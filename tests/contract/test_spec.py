"""PipelineSpec: what a file may say, the words of every refusal, and the bytes that are hashed and signed."""

# ruff: noqa: E501 - the tables of refusals read better a line each

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.language.params import Param
from pipelines.contract.spec import load_spec
from pipelines.contract.version import PipelineVersion

GOLDEN = Path(__file__).parents[1] / "golden" / "pipeline-v1.json"
FULL = """
tidewire: 1
pipeline: press-overheat
description: Catch it
owner: line 4
params:
  limit_c: {type: double, default: 85, min: 0, max: 400}
  mode: {type: string, default: auto, one_of: [auto, off]}
sources:
  a:
    file: {path: [data/*.csv, more/*.csv]}
    decode: {csv: {delimiter: ";", columns: [ts, temp]}}
  b:
    simulate:
      seed: 3
      sensors: 2
      every: 500ms
      value: {base: 80, swing: 10}
      faults:
        - {kind: garbage, share: 0.01}
    decode: json
schema:
  ts: {type: timestamp, event_time: true}
  temp_c: {type: double, from: temp, min: -40, max: 400, unit: celsius}
  status: {type: string, one_of: [ok, warn], default: ok}
  n: {type: integer, nullable: true}
on_invalid: drop
steps:
  - filter: status <> 'no'
  - derive:
      temp_f: temp_c * 9 / 5 + 32
      alpha: "'z'"
  - enrich:
      site: node.site
windows:
  ten:
    every: 10s
    by: [site]
    where: temp_c > 0
    select:
      z: avg(temp_c)
      a: count(*)
    lateness: 2s
triggers:
  hot:
    over: 1m30s
    by: [site]
    when: max(temp_c) > $limit_c
    for: 5s
    clear_when: max(temp_c) < $limit_c - 5
    severity: critical
    message: "Hot: {site}"
    actions:
      on_raise:
        - log:
        - exec: {program: /bin/horn, args: ["on"]}
          valid_for: 30s
      on_clear:
        - webhook: {url: "https://x.example/y", timeout: 2s}
sinks:
  readings: {lake: {table: Press_Readings}}
  summary: {lake: {table: press_10s}, from: ten, where: a > 1}
"""
SMALL = """
tidewire: 1
pipeline: p
sources:
  s:
    file: {path: x}
schema:
  v: {type: double}
"""


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        load_spec(text, "f.yaml")
    return caught.value.problems


# -- canonical bytes


def test_canonical_bytes_are_stable() -> None:
    """What is hashed and signed must never change for the same file: old digests name stored versions."""
    assert load_spec(FULL).canonical_bytes() == GOLDEN.read_bytes()


def test_canonical_bytes_load_to_the_same_spec_and_the_same_bytes() -> None:
    spec = load_spec(FULL)
    again = load_spec(spec.canonical_bytes().decode())
    assert again.model_dump() == spec.model_dump()
    assert again.canonical_bytes() == spec.canonical_bytes()
    assert PipelineVersion.of(spec) == PipelineVersion(spec.canonical_bytes())


def test_layout_comments_and_written_out_defaults_do_not_show_in_the_bytes() -> None:
    other = (
        SMALL.replace("file: {path: x}", "file:   # a comment\n      path: [x]\n    decode: {json: {}}")
        + "steps: []\non_invalid: quarantine\n"
    )
    assert load_spec(other).canonical_bytes() == load_spec(SMALL).canonical_bytes()


def test_the_order_of_columns_is_kept() -> None:
    data = json.loads(load_spec(FULL).canonical_bytes())
    assert list(data["steps"][1]["derive"]) == ["temp_f", "alpha"]
    assert list(data["windows"]["ten"]["select"]) == ["z", "a"]
    assert load_spec(FULL).lake_tables() == {"readings": "press_readings", "summary": "press_10s__log"}
    defaults = load_spec(FULL).defaults()
    assert defaults == {"limit_c": 85.0, "mode": "auto"}
    assert repr(defaults["limit_c"]) == "85.0", "I6: its digest is that of a 85.0 which somebody sets"
    assert load_spec(FULL).event_time == "ts"


def test_definitions_change_with_what_decides_state_only() -> None:
    spec = load_spec(FULL)
    same = load_spec(
        FULL.replace("severity: critical", "severity: info").replace("for: 5s", "for: 9s").replace("data/*.csv", "d/*.csv")
    )
    assert same.definition("triggers", "hot") == spec.definition("triggers", "hot")
    assert same.definition("windows", "ten") == spec.definition("windows", "ten")
    for old, new in (("over: 1m30s", "over: 2m"), ("temp_c * 9", "temp_c * 8"), ("min: -40", "min: -41")):
        assert load_spec(FULL.replace(old, new)).definition("triggers", "hot") != spec.definition("triggers", "hot")


# -- refusals


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "path", "message", "hint"),
    [
        ("sources:", "sorces:", 4, 1, "sorces", 'unknown key "sorces"; did you mean "sources"?', "known here: tidewire, pipeline"),
        ("{path: x}", "{paht: x}", 6, 12, "sources.s.file.paht", 'unknown key "paht"; did you mean "path"?', "known here: path"),
        ("type: double", "type: dubble", 8, 7, "schema.v.type", '"dubble" is not ', ""),
        ("type: double", "typ: double", 8, 7, "schema.v.typ", 'unknown key "typ"; did you mean "type"?', "known here: type"),
        ("type: double", "type: double, min: low", 8, 21, "schema.v.min", '"low" is not a number', ""),
        ("type: double", "type: double, nullable: no", 8, 21, "schema.v.nullable", '"no" is neither true nor false', "write true or false"),
        ("tidewire: 1\n", "", 2, 1, "tidewire", '"tidewire" is missing', "start the file with `tidewire: 1`"),
        ("tidewire: 1", "tidewire: 2", 2, 1, "tidewire", "2 is not 1", ""),
        ("pipeline: p", "pipeline: Press 1", 3, 1, "pipeline", "a pipeline's name has lower-case letters", ""),
        ("pipeline: p", "pipeline: 7", 3, 1, "pipeline", "7 is not text", "put it in quotes"),
        ("  v:", "  _v:", 8, 3, "schema._v", "names that start with _ are Tidewire's own", ""),
        ("  v:", "  meta:", 8, 3, "schema.meta", '"meta" is a reserved word', ""),
        ("  v:", "  'a b':", 8, 3, "schema.a b", "a name has letters, digits and underscores", ""),
        ("file: {path: x}", "file: {path: x}\n    simulate: {}", 5, 3, "sources.s", "a source has exactly one kind of: file, http, simulate; here are file and simulate", ""),
        ("file: {path: x}", "decode: json", 5, 3, "sources.s", "a source has exactly one kind of: file, http, simulate", ""),
        ("file: {path: x}", "file: {path: x}\n    decode: xml", 7, 5, "sources.s.decode.xml", 'unknown key "xml"', "known here: json, csv"),
        ("{path: x}", "{path: []}", 6, 12, "sources.s.file.path", "there must be at least one", ""),
        ("{path: x}", "{path: 5}", 6, 12, "sources.s.file.path", "5 is not a list", ""),
        ("{type: double}", "double", 8, 3, "schema.v", '"double" is not a map of keys', ""),
        ("{type: double}", "", 8, 3, "schema.v", "nothing is written here", ""),
    ],
)  # fmt: skip
def test_a_refusal_names_place_path_and_fix(
    old: str, new: str, line: int, column: int, path: str, message: str, hint: str
) -> None:
    assert old in SMALL
    problem = problems_of(SMALL.replace(old, new, 1))[0]
    assert (problem.line, problem.column, problem.path) == (line, column, path)
    assert message in problem.message
    assert hint in problem.hint
    assert str(problem).startswith(f"f.yaml:{line}:{column}: {path}: ")


@pytest.mark.parametrize(
    ("more", "line", "path", "message"),
    [
        ("steps:\n  - filter: a\n    derive: {b: a}", 10, "steps[0]", "here are filter and derive"),
        ("steps:\n  - fliter: a", 10, "steps[0].fliter", 'unknown key "fliter"; did you mean "filter"?'),
        ("steps:\n  - derive:\n      b:", 11, "steps[0].derive.b", "nothing is written here"),
        ("steps:\n  - filter:", 10, "steps[0].filter", "nothing is written here"),
        ("steps:\n  - filter: 5", 10, "steps[0].filter", "5 is not text"),
        ("windows:\n  w:\n    every: 10\n    select: {n: count(*)}", 11, "windows.w.every", "10 is not a duration"),
        ("windows:\n  w:\n    every: 0s\n    select: {n: count(*)}", 10, "windows.w", "every must be longer than nothing"),
        ("windows:\n  w:\n    every: 1s\n    by: [n]\n    select: {n: count(*)}", 10, "windows.w", "stands in both by and select"),
        ("windows:\n  w:\n    every: 1s", 10, "windows.w.select", '"select" is missing'),
        ("triggers:\n  t:\n    over: 1s\n    when: x\n    severity: bad", 13, "triggers.t.severity", "\"bad\" is not 'critical', 'warning' or 'info'"),
        ("triggers:\n  t:\n    over: 1s\n    when: x\n    actions:\n      on_raise: [{mqtt: {}}]", 14, "triggers.t.actions.on_raise[0].mqtt", 'unknown key "mqtt"'),
        ("triggers:\n  t:\n    over: 1s\n    when: x\n    actions:\n      on_raise: [{exec: {program: horn}}]", 14, "triggers.t.actions.on_raise[0].exec.program", ""),
        ("sinks:\n  a: {lake: {table: t}, from: w}", 10, "sinks.a.from", 'there is no window or capture "w"'),
        ("sinks:\n  a: {lake: {table: t}}\n  b: {lake: {table: T}}", 11, "sinks.b.lake.table", "two sinks write to the same table"),
        ("sinks:\n  a: {lake: {table: incidents}}", 10, "sinks.a.lake.table", "one of Tidewire's own tables"),
        ("sinks:\n  a: {lake: {table: 'x;y'}}", 10, "sinks.a.lake.table", "a name has letters"),
        ("params:\n  a: {type: integer, default: 1.5}", 10, "params.a", "1.5 is not of type integer"),
        ("params:\n  a: {type: double, default: 5, max: 1}", 10, "params.a", "5 is above the maximum 1"),
    ],
)  # fmt: skip
def test_refusals_in_every_section(more: str, line: int, path: str, message: str) -> None:
    problem = problems_of(SMALL + more)[0]
    assert (problem.line, problem.path) == (line, path), problem
    assert message in problem.message


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("{type: string, min: 1}", "min and max are for numbers, this is a string"),
        ("{type: double, event_time: true}", "event_time needs `type: timestamp`"),
        ("{type: timestamp, event_time: true, nullable: true}", "may not be nullable"),
        ("{type: timestamp, unit: hours}", "the unit of a timestamp is s, ms, us or ns, not hours"),
        ("{type: double, format: '%Y'}", "format is for timestamps"),
        ("{type: integer, default: 1.5}", "1.5 is not of type integer"),
        ("{type: integer, default: true}", "true is not of type integer"),
        ("{type: string, one_of: [a, 5]}", "5 is not of type string"),
        ("{type: timestamp, default: '2026-01-01'}", "a timestamp has no default"),
        ("{type: double, min: 5, max: 1}", "the min is above the max: 5 > 1"),
        ("{type: double, min: 5, default: 1}", "1 is below the minimum 5"),
        ("{type: string, one_of: [a], default: b}", '"b" is not one of a'),
        ("{type: double, one_of: []}", "there must be at least one"),
    ],
)
def test_fields_that_contradict_themselves(field: str, message: str) -> None:
    problem = problems_of(SMALL.replace("{type: double}", field))[0]
    assert problem.path.startswith("schema.v")
    assert message in problem.message


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = SMALL.replace("{path: x}", "{paht: x}").replace("type: double", "type: dubble") + "stesp: []\n"
    found = problems_of(text)
    assert [p.path for p in found if p.path != "sources.s.file.path"] == ["sources.s.file.paht", "schema.v.type", "stesp"]
    assert [p.line for p in found] == sorted(p.line for p in found)


def test_only_one_event_time_and_no_names_that_differ_in_case_only() -> None:
    two = SMALL + "  a: {type: timestamp, event_time: true}\n  b: {type: timestamp, event_time: true}\n"
    assert "only one field can be the event_time, here are a and b" in problems_of(two)[0].message
    assert "differ only in upper and lower case" in problems_of(SMALL + "  V: {type: double}\n")[0].message


@pytest.mark.parametrize("text", ["5", "[]", "- a", "text", "'x'", "null"])
def test_what_is_no_map_is_no_pipeline(text: str) -> None:
    (problem,) = problems_of(text)
    assert problem.line == 1


@given(st.text())
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    try:
        load_spec(text)
    except SpecError as error:
        assert error.problems
        assert all(line for line in error.lines())


MUTANTS = [" ", "\n", ":", "-", "{", "}", "[", "]", "'", '"', "#", "%", "&a", "*a", "!", "|", "\t", "null", "1", "true", "\0"]


@given(st.integers(0, len(FULL)), st.integers(0, 12), st.sampled_from(MUTANTS))
def test_a_damaged_pipeline_is_a_spec_or_a_spec_error(at: int, cut: int, put: str) -> None:
    text = FULL[:at] + put + FULL[at + cut :]
    try:
        spec = load_spec(text)
    except SpecError as error:
        assert all(problem.message for problem in error.problems)
    else:
        assert load_spec(spec.canonical_bytes().decode()).canonical_bytes() == spec.canonical_bytes()


# -- parameters


def test_parameters_are_checked_and_read_from_words() -> None:
    limit = Param(type="double", min=0, max=10)
    assert limit.check(5) == 5.0
    assert isinstance(limit.check(5), float)
    assert limit.parse("7.5") == 7.5
    for word in ("x", "11", "-1", "true", "NaN", "1e999", '"5"', "null"):
        with pytest.raises(ValueError, match=r"is (not|above|below)"):
            limit.parse(word)
    assert Param(type="string").parse("5") == "5"
    assert Param(type="boolean").parse("true") is True
    assert Param(type="integer").parse("5") == 5
    for word in ("5.0", "true", "5x"):
        with pytest.raises(ValueError, match="is not of type integer"):
            Param(type="integer").parse(word)
    with pytest.raises(ValueError, match='"b" is not one of a'):
        Param(type="string", one_of=["a"]).parse("b")
