"""The pipelines that are measured. Each reads PATH."""

from __future__ import annotations

FILTER = """
tidewire: 1
pipeline: bench
sources:
  log:
    file: {path: PATH}
    decode: DECODE
schema:
  ts: {type: timestamp, event_time: true, unit: ms}
  sensor: {type: string}
  t: {type: double, min: -40, max: 400}
  ok: {type: boolean}
steps:
  - filter: ok
"""
ROWS = """
sinks:
  rows: {lake: {table: bench_rows}}
"""
WINDOW = """
windows:
  minute:
    every: 1m
    by: [sensor]
    select:
      mean: avg(t)
      highest: max(t)
      readings: count(*)
sinks:
  minutes: {lake: {table: bench_minutes}, from: minute}
"""
LATEST = """
triggers:
  hot:
    over: latest
    each: [sensor]
    when: count(*) filter (where t > 198) >= 40
    for: 5s
"""
SPAN = """
triggers:
  hot:
    over: 10s
    by: [sensor]
    when: max(t) > 399
"""


def pipeline(*parts: str, path: str = "x.jsonl", decode: str = "json") -> str:
    return "".join([FILTER, *parts]).replace("PATH", path).replace("DECODE", decode)


def many_triggers(count: int) -> str:
    """`count` triggers of three kinds, each with an aggregate of its own."""
    kinds = (
        "  t{i}: {{over: 10s, by: [sensor], when: max(t) > {limit}}}\n",
        "  t{i}: {{over: latest, each: [sensor], when: count(*) filter (where t > {limit}) >= 4, for: 5s}}\n",
        "  t{i}: {{over: 30s, by: [sensor], when: avg(t) > {limit}, clear_when: avg(t) < 120}}\n",
    )
    return "triggers:\n" + "".join(kinds[i % 3].format(i=i, limit=150 + i) for i in range(count))
