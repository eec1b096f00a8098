"""The reference of expressions names exactly the functions that are allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.engine import functions

PAGE = (Path(__file__).parents[2] / "docs" / "language" / "expressions.md").read_text()


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Numbers", functions.MATH),
        ("Text", functions.TEXT),
        ("Time", functions.TIME),
        ("NULL and choice", functions.LOGIC),
        ("Lists and structs", functions.NESTED),
    ],
)
def test_the_page_lists_the_functions(title: str, names: frozenset[str]) -> None:
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"**{title}**"))
    assert set(re.findall(r"`([^`]+)`", line)) == names
