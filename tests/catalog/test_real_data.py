"""Two catalog pipelines stand-alone on real data; counts, values and times against an independent reading of the files."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.catalog.real_data import (
    NAB,
    RAISES,
    VALVES,
    catalog_text,
    cold_since_30_minutes,
    first_low_flow,
    hourly_means,
    labelled_period,
    labelled_windows,
    needs_data,
    temperatures,
    valve_rows,
)

pytestmark = needs_data


def run_alone(home: Path, name: str, paths: list[Path], text: str = "") -> dict[str, Any]:
    """The report of a stand-alone run over these files; of `text` instead of the catalog's pipeline."""
    (home / f"{name}.yaml").write_text(text or catalog_text(name, paths))
    command = [sys.executable, "-m", "edge_agent", "run", f"{name}.yaml", "--until-eof", "--json", "--data-dir", "data"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["balanced"]
    return dict(report)


def table(home: Path, name: str) -> pa.Table:
    files = sorted((home / "data" / "lake" / name).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file, use_threads=False) for file in files])


def raised(home: Path) -> list[Any]:
    folder = home / "data" / "lake" / "incidents"
    if not folder.exists():
        return []
    rows = table(home, "incidents").to_pylist()
    return sorted(row["at"].replace(tzinfo=None) for row in rows if row["transition"] == "raised")


def test_machine_temperature(tmp_path: Path) -> None:
    rows = temperatures()
    report = run_alone(tmp_path, "machine-temperature", [NAB])
    assert len(rows) == report["sources"]["log"]["accepted"] == report["tables"]["machine_temperature"] == 22_695
    stored = table(tmp_path, "machine_temperature").select(["ts", "temp_c"]).to_pylist()
    assert sorted((row["ts"].replace(tzinfo=None), row["temp_c"]) for row in stored) == sorted(rows)
    hours = table(tmp_path, "machine_temperature_hourly").to_pylist()
    means = {row["_window_start"].replace(tzinfo=None): (row["mean_c"], row["readings"]) for row in hours}
    expected = hourly_means(rows)
    assert means.keys() == expected.keys()
    assert len(means) == len(hours)
    for hour, (mean, count) in expected.items():
        assert means[hour] == (pytest.approx(mean, rel=1e-12), count)


def test_machine_temperature_is_cold_in_the_second_and_fourth_window_and_nowhere_else(tmp_path: Path) -> None:
    run_alone(tmp_path, "machine-temperature", [NAB])
    times = raised(tmp_path)
    assert times == cold_since_30_minutes(temperatures())
    windows = labelled_windows()
    assert {next((i for i, (start, end) in enumerate(windows) if start <= at <= end), None) for at in times} == {1, 3}


@pytest.mark.parametrize(("path", "raises"), list(zip(VALVES, RAISES, strict=True)), ids=[path.stem for path in VALVES])
def test_valve_closing(tmp_path: Path, path: Path, raises: bool) -> None:
    rows = valve_rows(path)
    report = run_alone(tmp_path, "valve-closing", [path])
    counts = report["sources"]["bench"]
    assert counts["read"] == counts["accepted"] == report["tables"]["valve_readings"] == len(rows)
    stored = sorted(table(tmp_path, "valve_readings").to_pylist(), key=lambda row: row["ts"])
    assert [f"{row['ts'].replace(tzinfo=None)}" for row in stored] == [row["datetime"] for row in rows]
    assert [row["flow"] for row in stored] == [float(row["Volume Flow RateRMS"]) for row in rows]
    assert [row["pressure_bar"] for row in stored] == [float(row["Pressure"]) for row in rows]
    times, expected = raised(tmp_path), first_low_flow(rows)
    assert bool(times) is raises is (expected is not None)
    if raises:
        assert times[0] == expected
        start, end = labelled_period(rows)
        assert all(start <= at <= end + timedelta(seconds=60) for at in times)
