"""What must not leave the node does not leave by incidents either."""

from __future__ import annotations

import pytest
from engine_support import SCHEMA, pipeline

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.engine.plan import compile_plan

SENSITIVE = SCHEMA.replace("event_time: true", "event_time: true, sensitive: true")
TRIGGERS = {
    "latest": "over: latest\n    when: max(v) > 0",
    "absent": "absent: 10s\n    by: [k]",
    "window": "from: w\n    when: a > 0",
}
WINDOW = "windows:\n  w:\n    every: 10s\n    select:\n      a: sum(v)\n"


def without_sinks(steps: str, trigger: str) -> str:
    body = f"{steps}{WINDOW if 'from: w' in trigger else ''}triggers:\n  t:\n    {trigger}\n"
    return pipeline(body, schema=SENSITIVE).partition("sinks:")[0]


@pytest.mark.parametrize("kind", TRIGGERS)
def test_a_sensitive_event_time_leaves_with_no_incident(kind: str) -> None:
    with pytest.raises(SpecError, match="sensitive and leaves with every incident") as caught:
        compile_plan(load_spec(without_sinks("", TRIGGERS[kind])))
    (problem,) = caught.value.problems
    assert problem.path == "triggers.t"
    assert "generalise" in problem.hint
    coarse = "steps:\n  - redact: {ts: {generalise: {to: 1h}}}\n"
    compile_plan(load_spec(without_sinks(coarse, TRIGGERS[kind])))
