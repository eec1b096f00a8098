"""What keeps a node from giving rows is seen at the centre, and is gone when it is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prove.cluster import eventually
from tests.integration.here import cluster

PIPELINE = """
tidewire: 1
pipeline: scales
sources:
  log:
    file: {path: "weights/*.csv"}
    decode: csv
schema:
  kg: {type: double}
sinks:
  rows: {lake: {table: weights}}
"""


def test_a_source_without_files_is_told_at_the_centre(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        directory = await made.add_node("node-1")
        (home / "scales.yaml").write_text(PIPELINE)
        await made.tidewire("apply", "scales.yaml")
        await made.tidewire("deploy", "scales", "--select", "all")

        async def why() -> str:
            return await made.tidewire("why", "node-1", "scales")

        async def says_so() -> bool:
            return "no file matches" in await why()

        await eventually("the centre to know", says_so)
        (directory / "weights").mkdir()
        (directory / "weights" / "a.csv").write_text("kg\n1.5\n")
        await eventually("the row", lambda: made.counts("weights", "kg") == {1.5: 1})

        async def is_over() -> bool:
            return "no file matches" not in await why()

        await eventually("the trouble to be over", is_over)
