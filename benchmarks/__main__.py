"""`make bench`: what a core does. Prints a table and one JSON line; figures are of this machine, ratios carry over."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.contract.spec import load_spec
from pipelines.engine.decode import Batch
from pipelines.engine.framing import frame_lines
from pipelines.engine.plan import compile_plan
from pipelines.engine.run import run_batch
from pipelines.engine.state import State

ROWS = 1_000_000
PIPELINE = """
tidewire: 1
pipeline: bench
sources:
  log:
    file: {path: "PATH"}
schema:
  n: {type: integer}
  sensor: {type: string}
  t: {type: double, min: -40, max: 400}
  ok: {type: boolean}
steps:
  - filter: ok
sinks:
  rows: {lake: {table: bench_rows}}
"""
ALARM = """
windows:
  minute:
    every: 1m
    by: [sensor]
    select:
      mean: avg(t)
triggers:
  hot:
    over: 10s
    by: [sensor]
    when: max(t) > 399
"""


def main() -> None:
    results = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as directory:
        lines = _lines(ROWS)
        results["engine_rows_per_cpu_s"] = round(_engine(lines))
        for rows in (1, 100):
            results[f"batch_of_{rows}_ms"] = round(_latency(lines, rows, PIPELINE), 2)
            results[f"batch_of_{rows}_with_window_and_trigger_ms"] = round(_latency(lines, rows, PIPELINE + ALARM), 2)
        results["standalone_rows_per_s"] = round(_standalone(Path(directory), lines))
    for name, value in results.items():
        print(f"{name:45} {value:>15,}" if isinstance(value, int | float) else f"{name:45} {value:>15}")
    print(json.dumps(results))


def _lines(rows: int) -> bytes:
    """About 70 bytes a line; one in ten is filtered."""
    made = (
        f'{{"n": {i:07d}0, "sensor": "s{i % 100:02d}", "t": {20 + i % 997 / 10:.2f}, "ok": {str(i % 10 > 0).lower()}}}'
        for i in range(rows)
    )
    return ("\n".join(made) + "\n").replace('"n": 0', '"n": 1').encode()


def _engine(lines: bytes) -> float:
    """Parse, enforce four fields, filter: rows per CPU-second, in blocks of 1 MiB as the file source reads them."""
    plan, state = compile_plan(load_spec(PIPELINE)), State("bench")
    start, at = time.process_time(), 0
    while at < len(lines):
        end = lines.rfind(b"\n", at, at + (1 << 20)) + 1
        state, _ = run_batch(plan, state, Batch("log", at, at, frame_lines(lines[at:end])))
        at = end
    return ROWS / (time.process_time() - start)


def _latency(lines: bytes, rows: int, text: str) -> float:
    """Milliseconds from rows to evaluated result, median of 50."""
    plan, state = compile_plan(load_spec(text)), State("bench")
    block = b"".join(line + b"\n" for line in lines.split(b"\n", rows + 1)[1 : rows + 1])  # the first one is filtered
    times = []
    for i in range(50):
        start = time.perf_counter()
        state, _ = run_batch(plan, state, Batch("log", i * 1000, i * 1000, frame_lines(block)))
        times.append(time.perf_counter() - start)
    return sorted(times)[25] * 1000


def _standalone(directory: Path, lines: bytes) -> float:
    """Rows per second of `tidewire-agent run --until-eof`, start-up, commits and Parquet included."""
    (directory / "rows.jsonl").write_bytes(lines)
    (directory / "bench.yaml").write_text(PIPELINE.replace("PATH", str(directory / "rows.jsonl")))
    command = [
        sys.executable,
        "-m",
        "edge_agent",
        "run",
        str(directory / "bench.yaml"),
        "--until-eof",
        "--json",
        "--data-dir",
        str(directory / "data"),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return ROWS / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
