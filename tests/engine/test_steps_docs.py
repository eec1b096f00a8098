"""Every fragment on the steps' page is a part of a pipeline that compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contract.language.steps import STEP_KINDS
from pipelines.contract.spec import load_spec
from pipelines.engine.plan import check_spec
from pipelines.engine.steps import COMPILE
from tests.docs.blocks import Block, blocks

PAGE = Path(__file__).parents[2] / "docs" / "language" / "steps.md"
HEAD = """
tidewire: 1
pipeline: p
sources:
  s: {file: {path: x}}
schema:
  ts: {type: timestamp, event_time: true}
  open: {type: boolean}
  seq: {type: integer}
"""
TEXTS = ["status", "debug", "asset_id", "text", "host", "code", "sensor", "state", "recipe", "valve"]
NUMBERS = ["temp_c", "lat", "lon"]


@pytest.mark.parametrize("block", [b for b in blocks(PAGE) if b.info == "yaml fragment"], ids=lambda b: b.heading)
def test_a_fragment_compiles(block: Block) -> None:
    texts = TEXTS if "machine: asset_id" in block.text else [*TEXTS, "machine"]
    fields = "".join(f"  {name}: {{type: string}}\n" for name in texts) + "".join(
        f"  {name}: {{type: double}}\n" for name in NUMBERS
    )
    check_spec(load_spec(f"{HEAD}{fields}{block.text}sinks:\n  rows: {{lake: {{table: rows}}}}\n"))


def test_every_step_has_its_part_of_the_page() -> None:
    headings = {word for line in PAGE.read_text().splitlines() if line.startswith("## ") for word in line[3:].split(", ")}
    assert headings == set(STEP_KINDS) == set(COMPILE)
