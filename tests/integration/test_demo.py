"""`tidewire demo` keeps its promise: nothing lost or doubled, both sides agree, and the last line says so in figures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FIGURES = {
    "rows_read",
    "rows_in_lake",
    "filtered",
    "quarantined",
    "lost",
    "duplicated",
    "incidents_while_cut",
    "action_p99_ms",
    "converged",
    "cut_seconds",
    "catch_up_seconds",
}


@pytest.mark.slow
def test_the_demo_converges_and_accounts_for_every_row() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "control_plane", "demo", "--json", "--fast"], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result.keys() == FIGURES
    assert result["lost"] == result["duplicated"] == 0
    assert result["converged"] is True
    assert result["rows_read"] == result["rows_in_lake"] + result["filtered"] + result["quarantined"]
    assert result["rows_in_lake"] > 5000
    assert result["incidents_while_cut"] >= 6, "two rounds of overheating on three presses; a stalled writer may split one"
    assert result["cut_seconds"] >= 9
