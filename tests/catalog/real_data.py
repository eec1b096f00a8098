"""The shared real data sets and an independent reading of them: the csv module and plain arithmetic, nothing of ours."""

from __future__ import annotations

import csv
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "pipelines" / "catalog"
DATA = ROOT.parent / "shared" / "data"
NAB = DATA / "nab" / "machine_temperature_system_failure.csv"
NAB_WINDOWS = DATA / "nab" / "anomaly_windows.json"
VALVES = [DATA / "skab" / f"valve1-{i}.csv" for i in range(4)]
RAISES = [False, True, False, True]  # which of VALVES the flow alarm belongs to

needs_data = pytest.mark.skipif(not NAB.exists(), reason="the shared data sets are not on this machine")


def temperatures() -> list[tuple[datetime, float]]:
    with NAB.open(newline="") as file:
        return [(datetime.fromisoformat(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]


def labelled_windows() -> list[tuple[datetime, datetime]]:
    (windows,) = json.loads(NAB_WINDOWS.read_text()).values()
    return [(datetime.fromisoformat(start), datetime.fromisoformat(end)) for start, end in windows]


def hourly_means(rows: list[tuple[datetime, float]]) -> dict[datetime, tuple[float, int]]:
    """Start of the hour -> mean and count."""
    hours: dict[datetime, list[float]] = {}
    for at, value in rows:
        hours.setdefault(at.replace(minute=0, second=0, microsecond=0), []).append(value)
    return {hour: (sum(values) / len(values), len(values)) for hour, values in hours.items()}


def cold_since_30_minutes(rows: list[tuple[datetime, float]], limit: float = 40.0) -> list[datetime]:
    """When "below the limit for 30 minutes" first holds, once per cold spell; a reading sees the ten minutes before it."""
    raised, since, is_active, seen = [], None, False, list[tuple[datetime, float]]()
    for at, value in rows:
        seen = [(t, v) for t, v in seen if t > at - timedelta(minutes=10)] + [(at, value)]
        is_alone, hot, cold = len(seen) == 1, min(v for _, v in seen), max(v for _, v in seen)
        if is_active and hot >= limit:
            is_active = False
        if cold >= limit:
            since = None if not is_active else since
        elif since is None or (is_alone and not is_active):
            since = at
        if not is_active and since is not None and at - since >= timedelta(minutes=30):
            raised.append(at)
            is_active, since = True, None
    return raised


def valve_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def first_low_flow(rows: list[dict[str, str]], limit: float = 30.9) -> datetime | None:
    """The first reading at which the mean flow of the 60 seconds up to it is below the limit."""
    times = [datetime.fromisoformat(row["datetime"]) for row in rows]
    flows = [float(row["Volume Flow RateRMS"]) for row in rows]
    for i, at in enumerate(times):
        span = [flow for t, flow in zip(times[: i + 1], flows[: i + 1], strict=True) if t > at - timedelta(seconds=60)]
        if sum(span) / len(span) < limit:
            return at
    return None


def labelled_period(rows: list[dict[str, str]]) -> tuple[datetime, datetime]:
    labelled = [datetime.fromisoformat(row["datetime"]) for row in rows if float(row["anomaly"]) == 1]
    return min(labelled), max(labelled)


def catalog_text(name: str, paths: list[Path]) -> str:
    """A catalog pipeline that reads these files instead."""
    listed = json.dumps([str(path.resolve()) for path in paths])
    text, count = re.subn(r"file: \{path: [^}]*\}", f"file: {{path: {listed}}}", (CATALOG / f"{name}.yaml").read_text())
    assert count == 1
    return text
