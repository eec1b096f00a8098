"""Segments into the lake, as the control plane's ingest stores them; `python -m benchmarks.ingest [GROUPS] [DIRECTORY]`.

Real signed segments of about 256 KiB with four columns, 100 of 20 nodes in a group. Prints JSON: rows, CPU and wall seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from control_plane.lake import Lake
from control_plane.settle import Settler, Upload
from pipelines.contract.frames import sha256
from pipelines.contract.keys import Key
from pipelines.contract.segment import ROWS, SegmentHeader, encode
from pipelines.engine.ipc import encode_rows

NODES, SEGMENTS_PER_NODE = 20, 5
SEGMENT_ROWS = 12_000
_STAMP = pa.timestamp("us", tz="UTC")


def groups(count: int) -> Iterator[list[Upload]]:
    """Groups of uploads, one of each node; each continues where the last one ended."""
    key = Key.from_entropy(bytes(32))
    last = {f"n{number:02d}": ("", 0) for number in range(NODES)}
    for _ in range(count):
        uploads = []
        for node in last:
            blobs = []
            for _ in range(SEGMENTS_PER_NODE):
                previous, seq = last[node]
                data, digest = _segment(node, key, previous, seq + 1)
                last[node] = (digest, seq + 1)
                blobs.append(data)
            uploads.append(Upload(node, key.public, blobs))
        yield uploads


def _segment(node: str, key: Key, previous: str, seq: int) -> tuple[bytes, str]:
    start = seq * SEGMENT_ROWS
    stamps = pa.array([(1_767_225_600_000 + i) * 1000 for i in range(start, start + SEGMENT_ROWS)], _STAMP)
    table = pa.table(
        {
            "ts": stamps,
            "sensor": [f"press-{i % 100:02d}" for i in range(SEGMENT_ROWS)],
            "t": [100 + (i * 7919 + seq) % 99_991 / 10 for i in range(SEGMENT_ROWS)],
            "ok": [i % 10 > 0 for i in range(SEGMENT_ROWS)],
            "_event_time": stamps,
        }
    )
    payload = encode_rows(table)
    header = SegmentHeader(
        node, "run", "readings", seq, previous, ROWS, "bench", SEGMENT_ROWS, sha256(payload), "bench", "sha256:v", 1,
        "sha256:p", 1, 1, "synced", "0", "lineage", "boot", 0, seq * SEGMENT_ROWS, seq,
        ledgers={"source": {"lines": {"read": seq * SEGMENT_ROWS}}},
    )  # fmt: skip
    segment = encode(header, payload, key)
    return segment.data, segment.digest


def measure(count: int, directory: Path) -> dict[str, float]:
    settler = Settler(Lake(directory / "lake"), directory / "refused", lambda *_: {"bench"})
    rows = count * NODES * SEGMENTS_PER_NODE * SEGMENT_ROWS
    cpu = wall = size = 0.0
    for group in groups(count):
        size += sum(len(blob) for upload in group for blob in upload.blobs)
        started, spent = time.perf_counter(), time.process_time()
        outcomes = settler.settle(group, 1)
        wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - spent
        assert not any(outcome.errors or outcome.refused for outcome in outcomes), outcomes
    return {
        "rows": rows,
        "segment_bytes": size / (count * NODES * SEGMENTS_PER_NODE),
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "rows_per_cpu_s": round(rows / cpu),
    }


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as scratch:
        print(json.dumps(measure(wanted, Path(scratch))))
