"""What the engine's tests share: a small pipeline, rows in, results out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pyarrow as pa

from pipelines.contract.spec import load_spec
from pipelines.engine.batch import Batch
from pipelines.engine.plan import NodeFacts, Plan, compile_plan
from pipelines.engine.records.framing import frame_lines
from pipelines.engine.run import Output, finish, open_window_rows, run_batch
from pipelines.engine.state import State, Watermark
from pipelines.engine.watermark import NEVER_US

S = 1_000_000  # microseconds
T0 = 1_767_225_600 * S  # 2026-01-01T00:00:00Z
SCHEMA = """
  ts: {type: timestamp, event_time: true, unit: s}
  k: {type: string, nullable: true}
  v: {type: double, nullable: true}
  n: {type: integer, nullable: true}
"""


def pipeline(body: str = "", *, schema: str = SCHEMA, decode: str = "json", head: str = "") -> str:
    return f"""
tidewire: 1
pipeline: p
{head}
sources:
  s:
    file: {{path: x}}
    decode: {decode}
  s2:
    file: {{path: y}}
    decode: {decode}
schema:
{schema.strip(chr(10))}
{body}
sinks:
  rows: {{lake: {{table: rows}}}}
""" + ("  out: {lake: {table: windows}, from: w}\n" if "windows:" in body else "")


@cache
def compiled(text: str) -> Plan:
    return compile_plan(load_spec(text), node=NodeFacts("n1", "press", {"site": "lyon"}, {"firmware": "7"}))


def row(second: float, k: str | None = "a", v: object = 1.0, **more: object) -> str:
    """A record, `second`s after T0."""
    return json.dumps({"ts": T0 / S + second, "k": k, "v": v, **more})


def batch(rows: Iterable[str], arrival_s: float = 0, source: str = "s", header: Sequence[str] = ()) -> Batch:
    data = "".join(f"{text}\n" for text in rows).encode()
    return Batch(source, round(arrival_s * S), T0, frame_lines(data), "f", tuple(header))


def timer(arrival_s: float) -> Batch:
    return Batch("", round(arrival_s * S), T0)


@dataclass
class Run:
    """A pipeline under way; what it gave so far. `waits`: for sources that were not heard yet, as a runner does."""

    plan: Plan
    state: State = field(default_factory=lambda: State("lineage"))
    output: Output = field(default_factory=Output)
    waits: bool = False

    def __post_init__(self) -> None:
        if not self.waits and not self.state.watermarks:
            ended = {name: Watermark(arrival_us=NEVER_US) for name in self.plan.spec.sources}
            self.state = replace(self.state, watermarks=ended)

    def feed(self, *batches: Batch) -> Run:
        for one in batches:
            self.state, made = run_batch(self.plan, self.state, one)
            self.output += made
        return self

    def finish(self) -> Run:
        self.state, made = finish(self.plan, self.state)
        self.output += made
        return self

    def rows(self, sink: str = "rows") -> list[dict[str, Any]]:
        return [r for table in self.output.rows.get(sink, []) for r in table.to_pylist()]

    def windows(self) -> list[dict[str, Any]]:
        """Rows of window `w`, with `at` the start in seconds after T0 instead of the window's own columns."""
        found = []
        for r in self.rows("out"):
            at = r.pop("_window_start").timestamp() - T0 / S
            found.append({"at": at, **{k: x for k, x in r.items() if not k.startswith("_") or k == "_partial"}})
        return found

    def quarantine(self) -> list[dict[str, Any]]:
        return [r for table in self.output.quarantine for r in table.to_pylist()]

    def reasons(self) -> list[list[str]]:
        return [r["reasons"] for r in self.quarantine()]

    def transitions(self) -> list[tuple[str, str, float]]:
        """(group, transition, seconds after T0)."""
        return [(t.group, t.transition, (t.at_us - T0) / S) for t in self.output.transitions]


def ledgers_balance(state: State, open_windows: bool = True) -> None:
    """I4, for everything that can be checked inside the engine."""
    for counts in state.sources.values():
        filtered = sum(n for name, n in counts.items() if name.startswith(("filtered", "deduplicated")))
        assert counts["read"] == counts["undecodable"] + counts["made"]
        assert counts["made"] == counts["quarantined"] + counts["dropped_invalid"] + filtered + counts["accepted"]
    for name, counts in state.streams.items():
        if name.startswith("windows."):
            held = open_window_rows(state).get(name.removeprefix("windows."), 0)
            refused = counts["too_late"] + counts["over_limit"]
            assert counts["contributed"] == counts.get("emitted", 0) + held + refused, name
        else:
            assert counts["offered"] == counts["not_selected"] + counts["written"]


def plain(table: pa.Table) -> list[Mapping[str, Any]]:
    return list(table.to_pylist())
