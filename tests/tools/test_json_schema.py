"""The editors' schema is the models': it takes what they take, and refuses what they refuse, as far as a schema can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import load_spec
from pipelines.contract.yaml_reader import read
from pipelines.tools.cases import load_cases
from pipelines.tools.json_schema import Schema, cases_schema, pipeline_schema, to_json
from tests.docs.blocks import Block, blocks

ROOT = Path(__file__).parents[2]
PIPELINE, CASES = Draft202012Validator(pipeline_schema()), Draft202012Validator(cases_schema())
SHIPPED = sorted([*(ROOT / "pipelines").rglob("*.yaml"), *(ROOT / "control_plane").rglob("*.yaml")])
DOCS = [
    (f"{path.name}-{i}", block)
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for i, block in enumerate(blocks(path))
    if block.info == "yaml" or block.info.startswith("yaml cases=")
]


def problems(text: str, *, cases: bool = False) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in (CASES if cases else PIPELINE).iter_errors(read(text).data)]


@pytest.mark.parametrize(("name", "made"), [("pipeline", pipeline_schema), ("cases", cases_schema)])
def test_the_committed_schema_is_that_of_the_models(name: str, made: Callable[[], Schema]) -> None:
    committed = ROOT / "docs" / f"{name}.schema.json"
    command = f"tidewire schema {'--cases ' if name == 'cases' else ''}> docs/{committed.name}"
    assert committed.read_text() == to_json(made()), f"run: {command}"


def test_the_schemas_are_schemas() -> None:
    Draft202012Validator.check_schema(pipeline_schema())
    Draft202012Validator.check_schema(cases_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_we_ship_is_valid(path: Path) -> None:
    assert not problems(path.read_text(), cases=path.name.endswith(".cases.yaml"))


@pytest.mark.parametrize(("name", "block"), DOCS, ids=[name for name, _ in DOCS])
def test_what_the_docs_show_is_valid(name: str, block: Block) -> None:
    assert not problems(block.text, cases="cases=" in block.info)


BASE = """
tidewire: 1
pipeline: p
sources:
  s:
    file: {path: x}
schema:
  a: {type: double}
"""


@pytest.mark.parametrize(
    "more",
    [
        "steps: [{filter: a > 1}]",
        "steps: [{derive: {b: a}}]",
        "steps: [{lookup: {table: t, take: [x, y]}}]\nlookups: {t: {rows: [{k: 1, x: 2, y: 3}], key: k}}",
        "steps: [{redact: {a: drop}}]",
        "steps: [{dedupe: {by: a, within: 10s}}]",
        "triggers: {t: {over: 10s, when: max(a) > 1, actions: {on_raise: [log]}}}",
        "triggers: {t: {over: latest, when: max(a) > 1, actions: {on_raise: [{log: null}]}}}",
        "triggers: {t: {over: 10s, when: max(a) > 1, actions: {on_raise: [{log: null, valid_for: 1h}]}}}",
        "sinks: {s: {lake: {table: t}}}",
    ],
)
def test_short_forms_are_taken(more: str) -> None:
    load_spec(BASE + more)
    assert not problems(BASE + more)


@pytest.mark.parametrize(
    "kinds", ["decode: json", "file: {path: x}\n    simulate: {}", "framing: {lines: {}, length: {bytes: 2}}"]
)
def test_a_source_has_exactly_one_kind(kinds: str) -> None:
    text = BASE.replace("file: {path: x}", kinds)
    with pytest.raises(SpecError):
        load_spec(text)
    assert problems(text)


def test_a_decoder_in_one_word() -> None:
    text = BASE.replace("file: {path: x}", "file: {path: x}\n    decode: json")
    assert not problems(text)
    assert problems(text.replace("json", "jsn"))


@pytest.mark.parametrize(
    "more",
    [
        "step: []",
        "steps: filter",
        "steps: [{filtr: a}]",
        "steps: [{filter: [a]}]",
        "steps: [{derive: {1x: a}}]",
        "windows: {w: {every: 10, select: {n: count(*)}}}",
        "windows: {w: {every: ten, select: {n: count(*)}}}",
        "windows: {w: {every: 10s, select: {}}}",
        "triggers: {t: {over: 10s, when: max(a) > 1, severity: high}}",
        "triggers: {t: {over: 10s, when: max(a) > 1, actions: {on_raise: [horn]}}}",
        "sinks: {s: {lake: t}}",
        "sinks: {s: {lake: {table: t}, colour: red}}",
        "params: {x: {type: float}}",
        "on_invalid: explode",
        "owner: 5",
        "steps: [{filter: a > 1, derive: {b: a}}]",
        "steps: [{}]",
        "steps: [{redact: {a: {drop: {}, hash: {key: '${secret:k}'}}}}]",
        "steps: [{parse: {from: a, json: {}, csv: {}}}]",
        "steps: [{sample: {by: a}}]",
        "windows: {w: {every: 10s, gap: 1s, select: {n: count(*)}}}",
        "windows: {w: {select: {n: count(*)}}}",
        "triggers: {t: {over: 10s, severity: info}}",
        "triggers: {t: {over: 10s, when: max(a) > 1, absent: 10s}}",
        "triggers: {t: {over: 10s, when: max(a) > 1, actions: {on_raise: [{valid_for: 1h}]}}}",
        "triggers: {t: {over: 10s, when: max(a) > 1, actions: {on_raise: [{log: null, exec: {program: /bin/true}}]}}}",
        "lookups: {t: {key: a}}",
    ],
)
def test_what_the_models_refuse_the_schema_refuses(more: str) -> None:
    with pytest.raises(SpecError):
        load_spec(BASE + more)
    assert problems(BASE + more)


@pytest.mark.parametrize(
    ("case", "fine"),
    [
        ("at 0s: {rows: [{a: 1}], expect: {rows: [{a: 1}]}}", True),
        ("at 1m30s: [{rows: [{a: 1}]}, {lines: x}]", True),
        ("at 0s: {expect: {rows: 3, incidents: [hot raised], actions: [{mqtt: {topic: x}}], alarms: {hot: active}}}", True),
        ("at 0s: {expect: {rows: {readings: {count: 3, contains: [{a: 1}]}}}}", True),
        ("at 0s: {ack: hot}", True),
        ("at 0: {}", False),
        ("at 0s: {rwos: []}", False),
        ("at 0s: {expect: {row: []}}", False),
        ("at 0s: {link: maybe}", False),
        ("finish: 1", False),
    ],
)
def test_cases(case: str, fine: bool) -> None:
    text = f"cases:\n  - name: a\n    {case}\n"
    assert (not problems(text, cases=True)) == fine
    if fine:
        load_cases(text)
    else:
        with pytest.raises(SpecError):
            load_cases(text)


def test_editors_have_something_to_show() -> None:
    schema = pipeline_schema()
    described = [name for name, one in schema["$defs"].items() if one.get("description")]
    assert len(described) > 0.8 * len(schema["$defs"])
    assert schema["$defs"]["Trigger"]["properties"]["when"]["anyOf"][0]["format"] == "sql"
    assert list(schema["properties"])[:2] == ["tidewire", "pipeline"]
    assert schema["additionalProperties"] is False
