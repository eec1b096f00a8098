"""What `make prove` says: a line per scenario, prove/results.json, and the table in docs/prove.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prove.run import ALL, Result

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "prove" / "results.json", ROOT / "docs" / "prove.md"
BEGIN, END = "<!-- figures: written by make prove -->\n", "<!-- end of figures -->\n"
_COUNTED = ("lines", "missing", "void", "twice", "read_again")


def line(name: str, result: Result) -> str:
    if not result.counted:
        return f"- {name}: skipped, {result.skipped}"
    verdict = "WRONG: " + "; ".join(result.wrong) if result.wrong else "ok"
    return f"- {name}: {_words(result.did | result.counted)}: {verdict}"


def _words(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures.items())


def write(seed: int, results: Mapping[str, Result]) -> None:
    """Faults that are not among them keep the figures that they had."""
    told = json.loads(RESULTS.read_text()) | {name: {"seed": seed, **asdict(found)} for name, found in results.items()}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(told) + END + rest.partition(END)[2])


def table(told: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of results.json as Markdown."""
    head = "| what breaks | how often | lines | missing | of these void | twice | read again |\n|---|---|---|---|---|---|---|\n"
    return head + "".join(
        _row(name, Result(**{k: v for k, v in told[name].items() if k != "seed"})) for name in ALL if name in told
    )


def _row(name: str, result: Result) -> str:
    if not result.counted:
        return f"| {name} | skipped: {result.skipped} | | | | | |\n"
    return f"| {name} | {_words(result.did)} | {' | '.join(str(result.counted[key]) for key in _COUNTED)} |\n"
