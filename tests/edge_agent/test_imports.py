"""What the agent process may load: 70 MB of pyarrow and duckdb belong to the runners."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["edge_agent.agent", "edge_agent.cli", "edge_agent.local_api", "edge_agent.join"])
def test_the_agent_loads_neither_pyarrow_nor_duckdb(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'pyarrow', 'duckdb', 'deltalake', 'control_plane'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
