"""The short form of `make prove`: what breaks are real processes, links and disks; the lake holds the files once (I1-I3, I15)."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from prove.faults import SHORT
from prove.report import PAGE, RESULTS, line, table
from prove.run import ALL, run

SEED = 20261120


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_i1_i2_i3_i15_whatever_breaks_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    found = asyncio.run(run(list(ALL), tmp_path / "plant", random.Random(SEED), SHORT))  # what needs root is left out without
    assert not found.wrong, line("short form", found)


def test_the_page_says_what_was_measured() -> None:
    assert table(json.loads(RESULTS.read_text())) in PAGE.read_text()
