"""Every YAML block in the docs is valid, every link leads somewhere, every command that the docs name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from control_plane.deployment_file import load_deployment
from edge_agent.policy import Policy
from pipelines.contract import yaml_reader
from pipelines.contract.spec import load_spec
from pipelines.engine.plan import check_spec
from pipelines.tools.cases import load_cases
from pipelines.tools.play import Player
from tests.docs import cli_reference
from tests.docs.blocks import Block, blocks

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").glob("*.md")])
YAML_BLOCKS = [(path, block) for path in DOCS for block in blocks(path) if block.info.startswith("yaml")]


@pytest.mark.parametrize(("path", "block"), YAML_BLOCKS, ids=lambda x: x.name if isinstance(x, Path) else x.heading)
def test_every_yaml_block_is_what_it_says(path: Path, block: Block) -> None:
    """`yaml`: a whole pipeline. `yaml fragment`: some of one. `yaml deployment`: a whole deployment.
    `yaml cases=NAME`: cases that pass, of the page's pipeline NAME."""
    kind, _, name = block.info.removeprefix("yaml").strip().partition("=")
    if kind == "policy":
        Policy.model_validate(yaml.safe_load(block.text))
    elif kind == "deployment":
        load_deployment(block.text, path.name)
    elif kind == "fragment":
        yaml_reader.read(block.text, path.name)
    elif kind == "cases":
        specs = {spec.pipeline: spec for other in blocks(path) if other.info == "yaml" for spec in [load_spec(other.text)]}
        cases = load_cases(block.text, path.name)
        player = Player(specs[name], cases)
        results = [player.play(i) for i in range(len(cases.cases))]
        assert not [(result.name, failure.what) for result in results for failure in result.failures]
    else:
        assert not kind, f"what is ```{block.info}?"
        check_spec(load_spec(block.text, path.name))


def test_docs_have_yaml_blocks() -> None:
    found = {str(path.relative_to(ROOT)) for path, _ in YAML_BLOCKS}
    pages = ("README", "cases", "schema", "sinks", "sources", "steps", "triggers", "windows")
    assert found >= {"README.md", "docs/security.md", *(f"docs/language/{page}.md" for page in pages)}


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    broken = []
    for page, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text()):
        target = path.parent / page if page else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{page}#{anchor}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("program", "module"), [("tidewire", "control_plane"), ("tidewire-agent", "edge_agent")])
def test_every_command_in_the_docs_exists(program: str, module: str) -> None:
    named = set()
    for path in DOCS:
        named |= set(re.findall(rf"(?:^|[`(\s]){re.escape(program)} ([a-z][a-z-]+)", path.read_text(), re.MULTILINE))
    out = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^\W*([a-z][a-z-]+)\s", out, re.MULTILINE))
    assert named - {"needs"} <= known, f"{program} has no {sorted(named - known)}"


def test_the_command_reference_is_that_of_the_commands() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == cli_reference.reference(), (
        "run: python -m tests.docs.cli_reference > docs/cli.md"
    )


@pytest.mark.parametrize("program", cli_reference.PROGRAMS)
def test_every_command_and_option_says_what_it_is(program: str) -> None:
    group = typer.main.get_command(cli_reference.PROGRAMS[program])
    for words, command in cli_reference.commands(group, program):
        assert command.help, f"{words} has no help"
        for option in cli_reference.parameters(command)[1]:
            assert option.help, f"{words} {option.opts[0]} has no help"
