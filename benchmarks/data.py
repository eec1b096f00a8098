"""Rows to measure with: deterministic, written once per run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

BLOCK_ROWS = 100_000


def json_lines(rows: int) -> Iterator[bytes]:
    """Blocks of JSON lines of about 70 bytes with four fields; `ok` is false in one of ten, `ts` counts milliseconds."""
    for start in range(0, rows, BLOCK_ROWS):
        yield "".join(
            f'{{"ts": {1_767_225_600_000 + i}, "sensor": "press-{i % 100:02d}", "t": {100 + i % 997 / 10:.2f}, '
            f'"ok": {"true" if i % 10 else "false"}}}\n'
            for i in range(start, min(start + BLOCK_ROWS, rows))
        ).encode()


def wide_lines(rows: int) -> Iterator[bytes]:
    """Blocks of JSON lines of about 140 bytes with seven fields, of 100 machines."""
    for start in range(0, rows, BLOCK_ROWS):
        yield "".join(
            f'{{"ts": {1_767_225_600_000 + i}, "machine": "press-{i % 100:02d}", "state": "running", '
            f'"temp_c": {100 + i % 997 / 10:.2f}, "pressure_bar": {3 + i % 89 / 100:.3f}, '
            f'"rpm": {1480 + i % 40}, "order": {471_100 + i // 50_000}}}\n'
            for i in range(start, min(start + BLOCK_ROWS, rows))
        ).encode()


def csv_lines(rows: int) -> Iterator[bytes]:
    """The same rows as CSV with a header."""
    yield b"ts,sensor,t,ok\n"
    for start in range(0, rows, BLOCK_ROWS):
        yield "".join(
            f"{1_767_225_600_000 + i},press-{i % 100:02d},{100 + i % 997 / 10:.2f},{'true' if i % 10 else 'false'}\n"
            for i in range(start, min(start + BLOCK_ROWS, rows))
        ).encode()


def write(path: Path, blocks: Iterator[bytes]) -> Path:
    with path.open("wb") as file:
        file.writelines(blocks)
    return path
