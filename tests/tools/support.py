"""A pipeline and its cases in memory, played."""

from __future__ import annotations

from textwrap import dedent, indent

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.spec import load_spec
from pipelines.tools.cases import load_cases
from pipelines.tools.checks import Failure
from pipelines.tools.play import Player

PRESS = """
tidewire: 1
pipeline: press
params:
  limit_c: {type: double, default: 85, max: 400}
sources:
  sensors:
    file: {path: x}
schema:
  ts: {type: timestamp, event_time: true, unit: ms}
  sensor: {type: string}
  machine: {type: string, default: m1}
  temp_c: {type: double, min: -40, max: 400}
steps:
  - filter: sensor <> 'test'
windows:
  minute:
    every: 1m
    by: [machine]
    select:
      mean_c: avg(temp_c)
      readings: count(*)
triggers:
  hot:
    over: 10s
    by: [machine]
    when: max(temp_c) > $limit_c
    for: 5s
    severity: critical
    message: "{machine} over {limit_c}"
    actions:
      on_raise:
        - exec: {program: /usr/bin/horn, args: ["on"]}
      on_ack:
        - exec: {program: /usr/bin/horn, args: ["off"]}
sinks:
  readings: {lake: {table: press}}
  minutes: {lake: {table: minutes}, from: minute}
"""


def play(case: str, pipeline: str = PRESS, *, head: str = "") -> list[Failure]:
    """The failures of one case, given as the keys below its name."""
    text = f"{dedent(head)}\ncases:\n  - name: a\n{indent(dedent(case).strip(chr(10)), '    ')}\n"
    cases = load_cases(text, "p.cases.yaml")
    return list(Player(load_spec(pipeline), cases).play(0).failures)


def passes(case: str, pipeline: str = PRESS, *, head: str = "") -> None:
    failures = play(case, pipeline, head=head)
    assert not failures, [(f.when, f.what, [(p.kind, p.expected, p.got) for p in f.pairs]) for f in failures]


def fails(case: str, pipeline: str = PRESS) -> Failure:
    """The only failure of a case."""
    (failure,) = play(case, pipeline)
    return failure


def refused(case: str, pipeline: str = PRESS, *, head: str = "") -> Problem:
    """The first problem of a case that cannot be played."""
    try:
        failures = play(case, pipeline, head=head)
    except SpecError as error:
        problem = error.problems[0]
        assert problem.line and problem.column and problem.file == "p.cases.yaml"
        return problem
    raise AssertionError(f"it was played: {failures}")
