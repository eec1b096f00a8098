"""What a runner has made since its last commit, and how it becomes the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from pipelines.contract import segment
from pipelines.contract.spec import PipelineSpec
from pipelines.engine import run
from pipelines.engine.connection import ENGINE
from pipelines.engine.ipc import encode_rows
from pipelines.engine.state import State, entries

SEAL_BYTES = 768 * 1024  # of Arrow in memory: about PAYLOAD_BYTES_TARGET once compressed
KEPT_BYTES_MAX = 64 * 1024 * 1024  # with the agent's disk full: beyond this the oldest rows are given up, and counted
LEDGER_EVERY = 10  # commits that seal nothing else carry the ledgers up this often


class Uncommitted:
    """Rows, transitions and actions since the last commit. `positions` are those of the last commit."""

    def __init__(self, spec: PipelineSpec, positions: dict[str, Any], state: State) -> None:
        self._tables = spec.lake_tables()
        self.positions = positions
        self._committed = state
        self._output = run.Output()
        self._bytes = 0
        self._unsealed_ledger = 0

    @property
    def is_full(self) -> bool:
        return self._bytes >= SEAL_BYTES

    def has_changes(self, state: State) -> bool:
        return self._bytes > 0 or state.ledger() != self._committed.ledger() or state.alarms != self._committed.alarms

    def add(self, state: State, output: run.Output) -> State:
        """Take what a batch gave; returns the state with the ledger entries of rows that had to be given up."""
        self._output += output
        if output.transitions:
            state = run.offer(state, run.INCIDENT_STREAM, len(output.transitions), len(output.transitions))
        self._bytes += sum(t.nbytes for tables in output.rows.values() for t in tables) + sum(t.nbytes for t in output.quarantine)
        return self._give_up(state) if self._bytes > KEPT_BYTES_MAX else state

    def seal(
        self, state: State, positions: Mapping[str, Any], params: str, *, final: bool
    ) -> tuple[dict[str, Any] | None, list[bytes], State]:
        """The commit message and its blobs, and the state that follows it; None when nothing has changed."""
        put, delete = entries(state, self._committed)
        ledger = {**state.ledger(), "epoch": state.epoch}
        if (
            not put
            and not delete
            and self._bytes == 0
            and dict(positions) == self.positions
            and state.ledger() == self._committed.ledger()
        ):
            return None, [], state
        sealed, payloads = self._segments(state, positions, params, final=final)
        header = {
            "positions": dict(positions),
            "ledger": ledger,
            "params_digest": params,
            "state_set": list(put),
            "state_delete": delete,
            "sealed": sealed,
            "transitions": [asdict(t) for t in self._output.transitions],
            "actions": [vars(action) for action in self._output.actions],
        }
        blobs = [*put.values(), *payloads]
        self._committed, self.positions = state, dict(positions)
        self._output, self._bytes = run.Output(), 0
        return header, blobs, replace(state, epoch=state.epoch + 1)

    def stats(self, state: State) -> dict[str, Any]:
        """Moving figures for `status`."""
        totals: dict[str, int] = {}
        for counts in state.sources.values():
            for name, n in counts.items():
                word = name.split(".")[0]
                totals[word] = totals.get(word, 0) + n
        marks = [mark.us for mark in state.watermarks.values() if mark.us is not None]
        open_incidents = sum(alarm.phase == "active" for alarm in state.alarms.values())
        return {
            **totals,
            "watermark_us": min(marks, default=None),
            "open_incidents": open_incidents,
            "uncommitted_bytes": self._bytes,
        }

    def _segments(
        self, state: State, positions: Mapping[str, Any], params: str, *, final: bool
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        open_rows = run.open_window_rows(state)
        base = {
            "positions": _moved(self.positions, positions),
            "params": params,
            "engine": ENGINE,
        }
        streams = [(sink, segment.ROWS, self._tables[sink], tables) for sink, tables in self._output.rows.items()]
        if self._output.quarantine:
            streams.append((run.QUARANTINE_STREAM, segment.QUARANTINE, "quarantine", self._output.quarantine))
        if self._output.transitions:
            streams.append((run.INCIDENT_STREAM, segment.INCIDENTS, "incidents", [run.incident_rows(self._output.transitions)]))
        sealed: list[dict[str, Any]] = []
        payloads: list[bytes] = []
        for stream, kind, table, tables in streams:
            for rows, payload in fit(pa.concat_tables(tables)):
                ledgers = {"source": dict(state.sources), "stream": dict(state.streams.get(stream, {}))}
                sealed.append({"stream": stream, "kind": kind, "table": table, "rows": rows, "ledgers": ledgers, **base})
                payloads.append(payload)
        self._unsealed_ledger += 1
        if final or self._unsealed_ledger >= LEDGER_EVERY:
            self._unsealed_ledger = 0
            ledgers = {"source": dict(state.sources), "streams": dict(state.streams), "open": dict(open_rows)}
            sealed.append(
                {"stream": run.LEDGER_STREAM, "kind": segment.LEDGER, "table": "", "rows": 0, "ledgers": ledgers, **base}
            )
            payloads.append(b"")
        return sealed, payloads

    def _give_up(self, state: State) -> State:
        """Drop the rows kept for sinks, oldest evidence first would need an order: all of them go, each counted as void (I4, I15)."""
        for sink, tables in self._output.rows.items():
            state = state.with_counts("streams", sink, {"void": sum(t.num_rows for t in tables)})
        self._output = replace(self._output, rows={})
        self._bytes = sum(t.nbytes for t in self._output.quarantine)
        return state


def fit(table: pa.Table) -> list[tuple[int, bytes]]:
    """Payloads of at most SEGMENT_BYTES_MAX, in order, with their row counts."""
    payload = encode_rows(table)
    if len(payload) <= segment.PAYLOAD_BYTES_TARGET * 2 - 64 * 1024 or table.num_rows == 1:
        return [(table.num_rows, payload)]
    middle = table.num_rows // 2
    return [*fit(table.slice(0, middle)), *fit(table.slice(middle))]


def _moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What went in, per source: where reading stood at the last commit and where it stands now; files that did not move left out."""
    moved: dict[str, Any] = {}
    for name, now in new.items():
        before = old.get(name) or {}
        if now == before:
            continue
        if "files" in now:
            paths = {p: e for p, e in now["files"].items() if before.get("files", {}).get(p) != e}
            was = {p: before.get("files", {}).get(p, {}).get("offset", 0) for p in paths}
            moved[name] = {"from": was, "to": {p: e["offset"] for p, e in paths.items()}}
        else:
            moved[name] = {"from": before, "to": now}
    return moved
