"""The sensors of one node: lines appended to a file, as a logger on the machine would, with the faults that real ones have.

What is written here is the truth that the lake is compared with; nothing of Tidewire is asked.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

SENSORS = 6
ROWS_PER_S = 240  # per node: each sensor 40 times a second
PERIOD_S = 0.02
GARBAGE, NO_NUMBER, FAILED = 0.004, 0.006, 0.03  # share of lines that do not decode, break the schema, or are filtered
LINES_PER_FILE = 2500


@dataclass
class Written:
    """Ids by what should become of them."""

    good: set[int] = field(default_factory=set)
    filtered: set[int] = field(default_factory=set)
    quarantined: set[int] = field(default_factory=set)

    @property
    def lines(self) -> int:
        return len(self.good) + len(self.filtered) + len(self.quarantined)


class Press:
    """One press with SENSORS temperature sensors, read by one node."""

    def __init__(self, node: str, directory: Path, seed: int) -> None:
        self.node, self.written, self.is_overheating = node, Written(), False
        self._directory, self._random = directory, random.Random(seed)  # noqa: S311 - a simulation
        self._file: TextIO | None = None
        self._started_s = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)

    async def run(self) -> None:
        """Write until cancelled."""
        due = 0.0
        while True:
            due += ROWS_PER_S * PERIOD_S
            while self.written.lines < due:
                self._write_line()
            if self._file is not None:
                self._file.flush()
            await asyncio.sleep(PERIOD_S)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write_line(self) -> None:
        n = self.written.lines
        if n % LINES_PER_FILE == 0:
            self.close()
            self._file = (self._directory / f"press-{n // LINES_PER_FILE:04d}.jsonl").open("w")
        assert self._file is not None
        self._file.write(self._line(n) + "\n")

    def _line(self, n: int) -> str:
        sensor = n % SENSORS
        elapsed_s = time.monotonic() - self._started_s
        temp_c = (
            62
            + 6 * math.sin(elapsed_s / 4 + sensor)
            + self._random.gauss(0, 0.4)
            + (34 if self.is_overheating and sensor < 5 else 0)
        )
        reading: dict[str, object] = {
            "ts": datetime.now(UTC).isoformat(timespec="microseconds"),
            "press": f"press-{self.node}",
            "sensor": f"t{sensor + 1}",
            "t": round(temp_c, 2),
            "status": "ok",
            "n": n,
        }
        dice = self._random.random()
        if dice < GARBAGE:
            self.written.quarantined.add(n)
            return f"~~ line noise {n} ~~"
        if dice < GARBAGE + NO_NUMBER:
            self.written.quarantined.add(n)
            return json.dumps({**reading, "t": "n/a"})
        if dice < GARBAGE + NO_NUMBER + FAILED:
            self.written.filtered.add(n)
            return json.dumps({**reading, "status": "fail"})
        self.written.good.add(n)
        return json.dumps(reading)
