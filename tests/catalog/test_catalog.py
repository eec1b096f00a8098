"""Every catalog pipeline compiles, and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contract.spec import load_spec
from pipelines.engine.plan import check_spec

CATALOG = Path(__file__).parents[2] / "pipelines" / "catalog"


@pytest.mark.parametrize("path", sorted(CATALOG.glob("*.yaml")), ids=lambda path: path.stem)
def test_catalog_pipeline_compiles(path: Path) -> None:
    spec = load_spec(path.read_text(), path.name)
    check_spec(spec)
    assert spec.pipeline == path.stem
    assert spec.description
