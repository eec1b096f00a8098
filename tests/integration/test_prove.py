"""The short form of `make prove`: what breaks are real processes, links and disks; the lake holds the files once (I1-I3, I15)."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from prove.__main__ import ALL
from prove.report import PAGE, RESULTS, line, table
from prove.scenarios import SHORT

SEED = 20261120


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_i1_i2_i3_nothing_is_lost_or_doubled(tmp_path: Path, name: str) -> None:
    found = asyncio.run(ALL[name](tmp_path / "plant", random.Random(f"{SEED} {name}"), SHORT))
    if found.skipped:
        pytest.skip(found.skipped)
    assert not found.wrong, line(name, found)


def test_the_page_says_what_was_measured() -> None:
    assert table(json.loads(RESULTS.read_text())) in PAGE.read_text()
