"""`buffer:` and `priority:` in a pipeline file."""

from __future__ import annotations

import pytest

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.spec import load_spec

FILE = """tidewire: 1
pipeline: p
sources: {a: {file: {path: x}}}
schema:
  v: {type: double}
"""
BLOCK_ONLY = "block is accepted only for file and http sources, which lose nothing by it, in pipelines without triggers: "


def problem_of(text: str) -> Problem:
    with pytest.raises(SpecError) as refused:
        load_spec(text)
    [problem] = refused.value.problems
    return problem


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest", "block"])
def test_a_buffer_and_priorities(when_full: str) -> None:
    more = "sinks: {t: {lake: {table: t}, priority: 2}}\nbuffer: {max_size: 1GiB, when_full: " + when_full + "}"
    spec = load_spec(FILE + more)
    assert (spec.buffer.max_size, spec.buffer.when_full, spec.sinks["t"].priority) == (1 << 30, when_full, 2)
    assert load_spec(spec.canonical_bytes().decode()).buffer == spec.buffer
    assert b"buffer" not in load_spec(FILE).canonical_bytes(), "what is not said changes no digest"


@pytest.mark.parametrize(
    ("more", "line", "column", "path", "message"),
    [
        ("buffer: {max_size: 2 GB}", 6, 10, "buffer.max_size", "is not a size"),
        ("buffer: {max_size: 100KiB}", 6, 10, "buffer.max_size", "100KiB is too small for a buffer"),
        ("buffer:\n  when_full: drop", 7, 3, "buffer.when_full", "\"drop\" is not 'drop_oldest', 'drop_newest' or 'block'"),
        ("buffer:\n  maxsize: 1GiB", 7, 3, "buffer.maxsize", 'unknown key "maxsize"; did you mean "max_size"?'),
        ("sinks:\n  t: {lake: {table: t}, priority: 0}", 7, 25, "sinks.t.priority", "0 is no priority"),
        ("sinks:\n  t: {lake: {table: t}, priority: 10}", 7, 25, "sinks.t.priority", "10 is no priority"),
    ],
)
def test_refusals(more: str, line: int, column: int, path: str, message: str) -> None:
    problem = problem_of(FILE + more)
    assert (problem.line, problem.column, problem.path) == (line, column, path), problem
    assert message in problem.message


def test_i15_block_needs_sources_that_keep_their_data() -> None:
    simulated = FILE.replace("{a: {file: {path: x}}}", "{a: {file: {path: x}}, b: {simulate: {}}}")
    problem = problem_of(simulated + "buffer:\n  when_full: block")
    assert problem.message == BLOCK_ONLY + 'source "b" does not'
    assert (problem.line, problem.column, problem.path) == (7, 3, "buffer.when_full")
    assert problem.hint == "write drop_oldest or drop_newest"


def test_i15_block_would_mute_triggers() -> None:
    problem = problem_of(FILE + "triggers:\n  hot: {over: 1s, when: max(v) > 1}\nbuffer: {when_full: block}")
    assert problem.message == BLOCK_ONLY + 'trigger "hot" would be mute meanwhile'
