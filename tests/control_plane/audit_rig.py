"""A node's whole path in one process, without a link: engine, uncommitted rows, store; and the lake that takes its segments."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane.audit import Audit, Scope, run_audit
from control_plane.lake import Lake
from control_plane.settle import Settler, Upload
from edge_agent.host import _to_commit
from edge_agent.outbox import Mark
from edge_agent.store import Store
from edge_agent.uncommitted import Uncommitted
from pipelines.contract.keys import Key
from pipelines.contract.spec import load_spec
from pipelines.contract.version import PipelineVersion
from pipelines.engine.batch import Batch
from pipelines.engine.plan import compile_plan
from pipelines.engine.records.framing import frame_lines
from pipelines.engine.run import run_batch
from pipelines.engine.state import restore

S = 1_000_000
KEY = Key.from_entropy(bytes(range(32)))
TIMED = "  ts: {type: timestamp, event_time: true, unit: s}\n"
PIPELINE = """
tidewire: 1
pipeline: press
sources:
  s:
    file: {{path: x}}
schema:
{timed}  k: {{type: string, nullable: true}}
  v: {{type: double, max: 90}}
  n: {{type: integer, nullable: true}}
steps:
  - filter: v <> 13
  - filter: n > 0
  - dedupe: {{by: [k, n], within: 10s}}
windows:
  w:
    every: 5s
    by: [k]
    lateness: 1s
    select:
      c: count(*)
triggers:
  hot:
    over: latest
    by: [k]
    when: v > 80
sinks:
  readings: {{lake: {{table: readings}}}}
  high: {{lake: {{table: high}}, where: v > 50}}
  out: {{lake: {{table: windows}}, from: w}}
"""


def text(*, timed: bool = True) -> str:
    return PIPELINE.format(timed=TIMED if timed else "")


class Cloud:
    """The lake and what settles into it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.now_us = directory, 1_000 * S
        self.versions: dict[tuple[str, str], frozenset[str]] = {}
        self.restart()

    @property
    def lake(self) -> Path:
        return self.directory / "lake"

    def restart(self) -> None:
        self.settler = Settler(Lake(self.lake), self.directory / "refused", lambda *version: self.versions.get(version, ()))

    def take(self, node: str, blobs: Sequence[bytes]) -> list[Mark]:
        self.now_us += S
        (outcome,) = self.settler.settle([Upload(node, KEY.public, blobs)], self.now_us)
        return [Mark(k.run, k.stream, m.seq, m.digest, m.rows, m.stored) for k, m in outcome.marks.items()]

    def audit(self, **scope: Any) -> Audit:
        return run_audit(self.lake, Scope(**scope))


class Node:
    """`records` is its source, read in order; `at` is how many it has read. A crash forgets what was not committed."""

    def __init__(self, directory: Path, cloud: Cloud, spec: str, name: str = "n1", **options: Any) -> None:
        self.directory, self.cloud, self.name, self.options = directory, cloud, name, options
        self.plan = compile_plan(load_spec(spec))
        self.version = PipelineVersion.of(self.plan.spec)
        cloud.versions["press", self.version.digest] = frozenset(self.plan.spec.lake_tables().values())
        self.arrival_us, self.wall_us = 1_000 * S, 5_000 * S
        self._loop = asyncio.new_event_loop()
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.directory, self.name, KEY, **self.options)
        there = self._wait(self.store.checkpoint("press"))
        ledger = there.ledger or {}
        self.state = restore(there.lineage, list(there.state.items()), ledger, int(ledger.get("epoch", 0)) + 1)
        self.at = int(there.positions.get("s", {}).get("offset", 0))
        self.uncommitted = Uncommitted(self.plan.spec, dict(there.positions), self.state)

    def crash(self) -> None:
        self.store.close()
        self.start()

    def close(self) -> None:
        self.store.close()
        self._loop.close()

    def restore_card(self, saved: Path) -> None:
        """The store as it was when it was `save`d."""
        self.store.close()
        shutil.rmtree(self.directory)
        shutil.copytree(saved, self.directory)
        self.start()

    def save(self, to: Path) -> Path:
        self.store.close()
        shutil.copytree(self.directory, to)
        self.start()
        return to

    def read(self, records: Sequence[str], seconds: float = 1) -> None:
        """Evaluate what the source has to say; nothing: a timer."""
        self.arrival_us += round(seconds * S)
        lines = frame_lines("".join(f"{record}\n" for record in records).encode()) if records else None
        batch = Batch("s" if records else "", self.arrival_us, self.wall_us, lines, "f")
        self.state, output = run_batch(self.plan, self.state, batch)
        self.state = self.uncommitted.add(self.state, output, "sha256:p")
        self.at += len(records)

    def commit(self, *, final: bool = False) -> None:
        header, blobs, self.state = self.uncommitted.seal(self.state, {"s": {"offset": self.at}}, "sha256:p", final=final)
        if header is not None:
            self._wait(self.store.commit("press", self.version.digest, 1, _to_commit(header, blobs)))

    def send(self, limit_bytes: int = 1 << 30, *, hears: bool = True) -> int:
        """One request; `hears` its answer. How many segments it had."""
        batch = self._wait(self.store.pending_segments(limit_bytes))
        marks = self.cloud.take(self.name, [pending.data for pending in batch]) if batch else []
        if hears and marks:
            self._wait(self.store.confirm(marks))
        return len(batch)

    def drain(self) -> None:
        self.commit(final=True)
        while self.send():
            pass

    def _wait(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 60))


def record(at_s: float, k: str | None, v: object, n: int | None) -> str:
    return json.dumps({"ts": at_s, "k": k, "v": v, "n": n})
