"""Two catalog pipelines through a control plane, on real data: every row once in the lake, every alarm where it belongs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from prove.cluster import eventually
from tests.catalog.real_data import (
    NAB,
    VALVES,
    catalog_text,
    cold_since_30_minutes,
    first_low_flow,
    needs_data,
    temperatures,
    valve_rows,
)
from tests.integration.here import Here, cluster

pytestmark = needs_data


def test_catalog_pipelines_through_a_control_plane(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(home: Path) -> None:
    async with cluster(home) as made:
        await made.add_node("node-1")
        for name, paths in (("machine-temperature", [NAB]), ("valve-closing", VALVES)):
            (home / f"{name}.yaml").write_text(catalog_text(name, paths))
            await made.tidewire("apply", f"{name}.yaml")
            await made.tidewire("deploy", name, "--select", "all")
        expected = {"machine-temperature": len(temperatures()), "valve-closing": sum(len(valve_rows(p)) for p in VALVES)}
        await eventually("every row in the lake", lambda: _rows_of(made) == expected)
        await eventually("both sides to agree", made.has_converged)
        assert expected["machine-temperature"] == 22_695
        for table, rows in (("machine_temperature", "machine-temperature"), ("valve_readings", "valve-closing")):
            counts = made.rows(f"SELECT count(*), count(DISTINCT (_node, _run, _stream, _seq, _row)) FROM {table}")
            assert counts == [[expected[rows], expected[rows]]]
        _check_incidents(made)


def _rows_of(made: Here) -> dict[str, int]:
    """Rows of accepted readings in the lake, by pipeline."""
    sql = "SELECT pipeline, sum(rows) FROM segments WHERE stream = 'readings' AND verdict = 'stored' GROUP BY 1"
    return {name: int(rows) for name, rows in made.rows(sql)}


def _check_incidents(made: Here) -> None:
    sql = "SELECT pipeline, epoch_us(_event_time) FROM incidents WHERE transition = 'raised' ORDER BY 2"
    raised: dict[str, list[datetime]] = {}
    for name, us in made.rows(sql):
        raised.setdefault(name, []).append(datetime.fromtimestamp(int(us) / 1e6, UTC).replace(tzinfo=None))
    assert raised["machine-temperature"] == cold_since_30_minutes(temperatures())
    assert raised["valve-closing"] == [at for path in VALVES if (at := first_low_flow(valve_rows(path))) is not None]
