"""From rows to the evaluated result, in one process: small batches, and where the time of a large one goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from benchmarks.data import json_lines
from benchmarks.pipelines import ROWS, SPAN, WINDOW, many_triggers, pipeline
from benchmarks.report import Figure
from pipelines.contract.spec import load_spec
from pipelines.engine.batch import Batch
from pipelines.engine.ipc import encode_rows
from pipelines.engine.plan import compile_plan
from pipelines.engine.records.framing import frame_lines
from pipelines.engine.run import run_batch
from pipelines.engine.state import State

CALLS = 60
BLOCK_ROWS = 16_384


def measure() -> Iterator[Figure]:
    block = next(json_lines(100_000))
    lines = block.splitlines(keepends=True)
    window = WINDOW.replace("sinks:", "").replace("  minutes: {lake: {table: bench_minutes}, from: minute}", "")
    cases = [("filter", pipeline(ROWS), 3), ("filter, window, trigger", pipeline(window, SPAN, ROWS), 3)]
    cases.append(("filter, 50 triggers", pipeline(many_triggers(50), ROWS), 10))
    for name, text, budget in cases:
        for rows in (1, 10, 100):
            yield Figure(f"batch of {rows} rows: {name}", _latency_ms(text, lines, rows), "ms", budget, "lower")
    yield from _parts(b"".join(lines[:BLOCK_ROWS]))


def _latency_ms(text: str, lines: list[bytes], rows: int) -> float:
    """Median over calls, each with the next rows."""
    plan, state = compile_plan(load_spec(text)), State("bench")
    times = []
    for i in range(CALLS):
        block = b"".join(lines[i * rows + 1 : (i + 1) * rows + 1])
        start = time.perf_counter()
        state, _ = run_batch(plan, state, Batch("log", i * 1000, i * 1000, frame_lines(block)))
        times.append(time.perf_counter() - start)
    return sorted(times)[CALLS // 2] * 1000


def _parts(block: bytes) -> Iterator[Figure]:
    """CPU nanoseconds per row of each part, over blocks as the file source reads them."""
    plan = compile_plan(load_spec(pipeline(ROWS)))
    batch = Batch("log", 0, 0, frame_lines(block))
    records = plan.records["log"]
    _, output = run_batch(plan, State("bench"), batch)
    (table,) = output.rows["rows"]
    yield Figure("part: lines of a block", _ns(lambda: frame_lines(block)), "ns/row")
    yield Figure("part: JSON and the schema", _ns(lambda: records.read(batch)), "ns/row")
    lines = block.splitlines(keepends=True)
    odd = b"".join(line.replace(b'"t": ', b'"t": "x", "was": ') if i % 100 == 0 else line for i, line in enumerate(lines))
    spoilt = Batch("log", 0, 0, frame_lines(odd))
    yield Figure("part: JSON and the schema, one line in a hundred wrong", _ns(lambda: records.read(spoilt)), "ns/row")
    yield Figure("part: all of the engine", _ns(lambda: run_batch(plan, State("bench"), batch)), "ns/row")
    yield Figure("part: seal (Arrow, zstd)", _ns(lambda: encode_rows(table)), "ns/row")
    yield Figure("sealed", len(encode_rows(table)) / table.num_rows, "bytes/row")


def _ns(call: Callable[[], object]) -> float:
    call()
    start = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - start) / CALLS / BLOCK_ROWS * 1e9
