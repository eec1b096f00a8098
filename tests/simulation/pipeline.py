"""What runs on the simulated nodes, and the rows that they read."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

PIPELINE = "sim"
GROUPS = ("a", "b", "c")
LIMIT_C = 80.0
WINDOW_S = 10
TEXT = """\
tidewire: 1
pipeline: sim
description: {description}
params:
  limit_c: {{type: double, default: 80, min: 0, max: 1000}}
sources:
  lines:
    file:
      path: "{base}/${{label:dir}}/*.jsonl"
    decode: json
schema:
  n: {{type: integer}}
  ts: {{type: timestamp, event_time: true}}
  g: {{type: string}}
  t: {{type: double, min: -40, max: 400}}
{lookups}steps:
  - filter: g <> 'skip'
{lookup}  - derive:
      twice: {twice}
windows:
  per_group:
    every: 10s
    by: [g]
    select:
      number: count(*)
      total: sum(n)
    lateness: 1s
    keep: 1h
triggers:
  hot:
    over: latest
    each: [g]
    by: [g]
    when: max(t) > $limit_c
    severity: critical
    message: "{{g}} is hot"
    actions:
      on_raise:
        - log: {{}}
          valid_for: 1h
sinks:
  readings:
    lake: {{table: sim_rows}}
  summary:
    from: per_group
    lake: {{table: sim_windows}}
"""


LOOKUPS = """\
lookups:
  marks:
    artifact: sim_marks
    key: [g]
    columns: {mark: integer}
"""
LOOKUP = """\
  - lookup:
      table: marks
      take: [mark]
"""


def text(base: Path, number: int, *, is_retyped: bool = False, with_table: bool = False) -> str:
    """`is_retyped`: the column `twice`, whole numbers until then, gets halves: the lake must not round them. `with_table`: each
    row gets the `mark` of the table."""
    return TEXT.format(
        base=base,
        description=f"Version {number}.",
        twice="n * 2 + 0.5::DOUBLE" if is_retyped else "n * 2",
        lookups=LOOKUPS if with_table else "",
        lookup=LOOKUP if with_table else "",
    )


def table(mark: int) -> bytes:
    """As CSV: the same mark for every group."""
    return "".join(["g,mark\n", *(f"{group},{mark}\n" for group in GROUPS)]).encode()


@dataclass
class Line:
    """What a line of a source file says. `raises`: the row with which its group gets hot."""

    n: int
    ts_us: int
    group: str
    t: float
    kind: str  # good | invalid | skipped
    raises: bool = False
    file: str = ""
    end: int = 0  # the offset behind it in its file

    @property
    def bytes(self) -> bytes:
        if self.kind == "invalid":
            return json.dumps({"n": self.n, "ts": "yesterday", "g": self.group, "t": self.t}).encode() + b"\n"
        group = "skip" if self.kind == "skipped" else self.group
        return json.dumps({"n": self.n, "ts": _iso(self.ts_us), "g": group, "t": self.t}).encode() + b"\n"


def _iso(us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat()


@dataclass
class Writer:
    """Writes a node's source files: lines with numbers from 1 on, at true time; now and then a new file."""

    directory: Path
    rng: random.Random
    lines: list[Line] = field(default_factory=list)
    files: int = 1
    _hot: dict[str, int] = field(default_factory=dict)  # group -> good lines until it cools

    def write(self, now_us: int, count: int) -> None:
        fresh = list(self._make(now_us, count))
        self.lines += fresh
        path = self.directory / f"{self.files:03d}.jsonl"
        with path.open("ab") as file:
            for line in fresh:
                file.write(line.bytes)
                line.file, line.end = str(path), file.tell()

    def next_file(self) -> None:
        self.files += 1

    def _make(self, now_us: int, count: int) -> Iterator[Line]:
        for i in range(count):
            chance = self.rng.random()
            kind = "invalid" if chance < 0.03 else "skipped" if chance < 0.06 else "good"
            group = self.rng.choice(GROUPS)
            line = Line(len(self.lines) + i + 1, now_us + i, group, round(self.rng.uniform(10, 60), 1), kind)
            if kind == "good":
                self._warm(line)
            yield line

    def _warm(self, line: Line) -> None:
        """Now and then a group gets hot for some rows; at least one cool row lies between two such times."""
        left = self._hot.get(line.group, 0)
        if left > 0:
            line.t = 99.0
            self._hot[line.group] = left - 1 or -1
        elif left < 0:
            self._hot[line.group] = 0
        elif self.rng.random() < 0.02:
            line.t, line.raises, self._hot[line.group] = 99.0, True, self.rng.randrange(1, 5)
