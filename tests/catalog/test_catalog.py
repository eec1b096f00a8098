"""Every catalog pipeline compiles, stands in its canonical form, says what it is for, and does what its cases say."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pipelines.contract.spec import PipelineSpec, load_spec
from pipelines.contract.yaml_reader import read
from pipelines.engine.plan import check_spec
from pipelines.tools.cases import load_cases
from pipelines.tools.fmt import format_text
from pipelines.tools.json_schema import cases_schema, pipeline_schema
from pipelines.tools.play import Player

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "pipelines" / "catalog"
CASES = ".cases.yaml"
FILES = sorted(CATALOG.glob("*.yaml"))
NAMES = [path.stem for path in FILES if not path.name.endswith(CASES)]
PLAYED = [
    pytest.param(name, i, id=f"{name}: {case.name}")
    for name in NAMES
    for i, case in enumerate(load_cases((CATALOG / f"{name}{CASES}").read_text(), name).cases)
]


@cache
def spec_of(name: str) -> PipelineSpec:
    return load_spec((CATALOG / f"{name}.yaml").read_text(), f"{name}.yaml")


@cache
def player_of(name: str) -> Player:
    """One for all cases of a file: its plans are compiled once."""
    return Player(spec_of(name), load_cases((CATALOG / f"{name}{CASES}").read_text(), f"{name}{CASES}"))


@pytest.mark.parametrize("name", NAMES)
def test_catalog_pipeline_compiles(name: str) -> None:
    spec = spec_of(name)
    check_spec(spec)
    assert spec.pipeline == name
    assert spec.description.endswith(".")


@pytest.mark.parametrize(("name", "index"), PLAYED)
def test_catalog_cases(name: str, index: int) -> None:
    result = player_of(name).play(index)
    assert not [
        (failure.when, failure.what, [pair for pair in failure.pairs if pair.kind != "same"]) for failure in result.failures
    ]


def test_every_pipeline_has_cases_good_and_bad() -> None:
    assert len(NAMES) >= 16
    assert {path.name.removesuffix(CASES) for path in CATALOG.glob(f"*{CASES}")} == set(NAMES)
    few = {name: len(player_of(name).cases.cases) for name in NAMES if len(player_of(name).cases.cases) < 4}
    assert not few


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_catalog_files_are_canonical_and_known_to_editors(path: Path) -> None:
    text = path.read_text()
    assert format_text(text, path.name) == text
    schema = cases_schema() if path.name.endswith(CASES) else pipeline_schema()
    assert not [error.message for error in Draft202012Validator(schema).iter_errors(read(text, path.name).data)]


@pytest.mark.parametrize("name", NAMES)
def test_every_alarm_says_what_happened_and_what_to_do(name: str) -> None:
    for trigger in spec_of(name).triggers.values():
        assert trigger.message
        assert trigger.advice.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_says_what_it_is_and_is_bounded(name: str) -> None:
    for param in spec_of(name).params.values():
        assert param.description
        assert param.type not in ("integer", "double") or (param.min is not None and param.max is not None)


def test_the_page_tells_of_each_pipeline() -> None:
    """docs/catalog.md: the table and the paragraphs name the files, all of them and no others, and the parameters there are."""
    page = (ROOT / "docs" / "catalog.md").read_text()
    assert sorted(re.findall(r"^\| \[([a-z-]+)\]", page, re.MULTILINE)) == NAMES
    paragraphs = dict(re.findall(r"^## ([a-z-]+)\n\n(.+?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert sorted(paragraphs) == NAMES
    for name, paragraph in paragraphs.items():
        missing = [param for param in spec_of(name).params if f"`{param}`" not in paragraph]
        assert not missing, f"{name}: the page says nothing of {missing}"
