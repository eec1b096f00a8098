"""Rows per CPU-second from a file to the durable commit, start-up of every process included; and the yardstick."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import data
from benchmarks.pipelines import LATEST, ROWS, WINDOW, pipeline
from benchmarks.report import Figure

MILLION = 1e6
_YARDSTICK = """
import sys, time, pyarrow as pa, pyarrow.json as pj
schema = pa.schema([("ts", pa.int64()), ("sensor", pa.string()), ("t", pa.float64()), ("ok", pa.bool_())])
parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
rows = 0
with open(sys.argv[1], "rb") as file:
    while lines := file.readlines(1 << 20):
        read = pj.ReadOptions(use_threads=False, block_size=1 << 22)
        rows += pj.read_json(pa.BufferReader(b"".join(lines)), read_options=read, parse_options=parse).num_rows
print(rows / time.process_time())
"""


def measure(directory: Path, rows: int) -> Iterator[Figure]:
    lines = data.write(directory / "rows.jsonl", data.json_lines(rows))
    table = data.write(directory / "rows.csv", data.csv_lines(rows))
    yardstick = float(subprocess.run([sys.executable, "-c", _YARDSTICK, str(lines)], check=True, capture_output=True).stdout)
    yield Figure("yardstick: pyarrow.json reads the same file", yardstick, "rows/CPU-s")
    cases = [
        ("JSON: parse, enforce 4 fields, filter, durable commit", pipeline(ROWS, path=str(lines)), 2.0),
        ("CSV: parse, enforce 4 fields, filter, durable commit", pipeline(ROWS, path=str(table), decode="csv"), 2.0),
        ("JSON: one-minute window over 100 keys", pipeline(WINDOW, path=str(lines)), 1.5),
        ("JSON: latest-value trigger over 100 sensors", pipeline(LATEST, ROWS, path=str(lines)), 0.5),
    ]
    for name, text, budget in cases:
        result = run(directory, text)
        assert result["rows"] == rows, result
        yield Figure(name, rows / result["cpu_s"], "rows/CPU-s", budget * MILLION)
        yield Figure(f"{name}: in yardsticks", rows / result["cpu_s"] / yardstick, "x")
        yield Figure(f"{name}: runner at most", result["runner_peak_bytes"] / MILLION, "MB", 150, "lower")


def run(directory: Path, text: str) -> dict[str, float]:
    file = directory / "bench.yaml"
    file.write_text(text)
    store = directory / f"agent-{len(list(directory.glob('agent-*')))}"
    command = [sys.executable, "-m", "benchmarks.durable", str(file), str(store)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
