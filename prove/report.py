"""What `make prove` says: a line per scenario, prove/results.json, and the table in docs/prove.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from prove.scenarios import Result

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "prove" / "results.json", ROOT / "docs" / "prove.md"
BEGIN, END = "<!-- figures: written by make prove -->\n", "<!-- end of figures -->\n"
_COUNTED = ("lines", "missing", "void", "twice", "read_again")


def line(name: str, result: Result) -> str:
    if result.skipped:
        return f"- {name}: skipped, {result.skipped}"
    figures = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.figures.items())
    verdict = "WRONG: " + "; ".join(result.wrong) if result.wrong else "ok"
    return f"- {name}: {figures}: {verdict}"


def write(seed: int, results: Mapping[str, Result]) -> None:
    told = {"seed": seed, "scenarios": {name: asdict(found) for name, found in results.items()}}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(told) + END + rest.partition(END)[2])


def table(told: Mapping[str, object]) -> str:
    """The figures of results.json as Markdown."""
    scenarios = told["scenarios"]
    assert isinstance(scenarios, dict)
    rows = [_row(name, Result(**found)) for name, found in scenarios.items()]
    head = "| what breaks | how often | lines | missing | of these void | twice | read again |\n|---|---|---|---|---|---|---|\n"
    return head + "".join(rows)


def _row(name: str, result: Result) -> str:
    if result.skipped:
        return f"| {name} | skipped: {result.skipped} | | | | | |\n"
    faults = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.figures.items() if key not in _NOT_FAULTS)
    return f"| {name} | {faults} | {' | '.join(str(result.figures[key]) for key in _COUNTED)} |\n"


_NOT_FAULTS = {*_COUNTED, "rows", "keys_twice", "gaps", "ledgers_wrong"}
