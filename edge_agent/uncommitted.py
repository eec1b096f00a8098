"""What a runner has made since its last commit, and how it becomes the next one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from edge_agent import quarantine
from pipelines.contract import segment
from pipelines.contract.errors import Refused
from pipelines.contract.spec import PipelineSpec
from pipelines.engine import run
from pipelines.engine.connection import ENGINE
from pipelines.engine.ipc import encode_rows
from pipelines.engine.state import State, entries
from pipelines.engine.triggers.incident import alarms_of, open_incidents

SEAL_BYTES_MAX = 3 * 1024 * 1024  # of Arrow in memory: however small they will be once compressed
USUAL_DENSITY = 1 / 3  # a byte of Arrow in memory, in bytes of payload
TELLING_BYTES = 64 * 1024  # less tell nothing of their density: a payload has a schema too
KEPT_BYTES_MAX = 64 * 1024 * 1024  # while nothing is committed: beyond this the rows are given up, and counted
TRANSITIONS_MAX = 1_000  # the same for transitions; the newest stay
FILES_TOLD_MAX = 100  # per segment header, whose size is bounded
PAYLOAD_BYTES_MAX = segment.SEGMENT_BYTES_MAX - 64 * 1024  # the rest is for the header
STATE_BYTES_MAX = 512 * 1024 * 1024  # of all that a pipeline remembers, as it is stored: its memory is several times that
LEDGER_EVERY = 10  # commits that seal nothing else carry the ledgers up this often


@dataclass
class _Part:
    """What was made under one set of parameters and with the same lookup tables."""

    params: str
    lookups: Mapping[str, str]
    output: run.Output


@dataclass(frozen=True)
class _Payload:
    """Rows of one stream that fit a segment."""

    part: _Part
    stream: str
    kind: str
    table: str
    rows: int
    payload: bytes


class Uncommitted:
    """Rows, transitions and actions since the last commit. `positions` are those of the last commit; `lookups` the digests of
    the tables in effect."""

    def __init__(
        self,
        spec: PipelineSpec,
        positions: dict[str, Any],
        state: State,
        lookups: Mapping[str, str] | None = None,
        stored_bytes: int = 0,
    ) -> None:
        """`stored_bytes` is the size of what is stored of `state`."""
        self._tables, self._raw = spec.lake_tables(), spec.raw_policy
        own = segment.OWN if spec.event_time else segment.NODE_TIME
        self._stamps = {segment.ROWS: own, segment.QUARANTINE: segment.WALL}  # transitions have times of several clocks
        self.lookups = lookups or {}
        self.positions = positions
        self._committed = state
        self._stored_bytes, self._measured_bytes = stored_bytes, stored_bytes
        self._parts: list[_Part] = []
        self.bytes = 0
        self._density = USUAL_DENSITY
        self._unsealed_ledger = 0

    @property
    def is_full(self) -> bool:
        """Whether there is about as much as a payload should hold, going by the last ones."""
        return self.bytes >= min(SEAL_BYTES_MAX, segment.PAYLOAD_BYTES_TARGET / self._density)

    def has_changes(self, state: State) -> bool:
        return self.bytes > 0 or state.ledger() != self._committed.ledger() or alarms_of(state) != alarms_of(self._committed)

    def add(self, state: State, output: run.Output, params: str) -> State:
        """Take what a batch gave under `params` (a digest); returns the state with the ledger entries of what was given up."""
        if not self._parts or (self._parts[-1].params, self._parts[-1].lookups) != (params, self.lookups):
            self._parts.append(_Part(params, self.lookups, run.Output()))
        part = self._parts[-1]
        part.output += output
        if output.transitions:
            state = run.offer(state, run.INCIDENT_STREAM, len(output.transitions), len(output.transitions))
            state = self._give_up_transitions(state)
        self.bytes += sum(t.nbytes for tables in output.rows.values() for t in tables) + sum(t.nbytes for t in output.quarantine)
        return self._give_up_rows(state) if self.bytes > KEPT_BYTES_MAX else state

    def seal(
        self, state: State, positions: Mapping[str, Any], params: str, *, final: bool
    ) -> tuple[dict[str, Any] | None, list[bytes], State]:
        """The commit message and its blobs, and the state that follows it; None when nothing has changed."""
        put, delete = entries(state, self._committed)
        self._check_size(state, put)
        unmoved = dict(positions) == self.positions and state.ledger() == self._committed.ledger()
        is_told = not final or not self._unsealed_ledger
        if not put and not delete and self.bytes == 0 and unmoved and is_told:
            return None, [], state
        state, made = self._payloads(state)
        if self.bytes >= TELLING_BYTES:
            self._density = sum(len(one.payload) for one in made) / self.bytes or USUAL_DENSITY
        sealed, payloads = self._segments(state, made, positions, params, final=final)
        kept = [] if self._raw != "local" else list(_kept_here(t for part in self._parts for t in part.output.quarantine))
        header = {
            "positions": dict(positions),
            "ledger": {**state.ledger(), "epoch": state.epoch},
            "params_digest": params,
            "state_set": list(put),
            "state_delete": delete,
            "sealed": sealed,
            "transitions": [asdict(t) for part in self._parts for t in part.output.transitions],
            "actions": [vars(action) for part in self._parts for action in part.output.actions],
            "quarantined": [chunk.rows for chunk in kept],
        }
        self._committed, self.positions = state, dict(positions)
        self._parts, self.bytes = [], 0
        blobs = [*put.values(), *payloads, *(chunk.data for chunk in kept)]
        return header, blobs, replace(state, epoch=state.epoch + 1)

    def stats(self, state: State) -> dict[str, Any]:
        """Moving figures for `status`."""
        totals: dict[str, int] = {}
        for counts in state.sources.values():
            for name, n in counts.items():
                word = name.split(".")[0]
                totals[word] = totals.get(word, 0) + n
        marks = [mark.us for mark in state.watermarks.values() if mark.us is not None]
        return {
            **totals,
            "watermark_us": min(marks, default=None),
            "open_incidents": open_incidents(state),
            "uncommitted_bytes": self.bytes,
        }

    def _check_size(self, state: State, put: Mapping[str, bytes]) -> None:
        """Raise `Refused` for a state beyond its bound. It is measured only when so much was written that it may be."""
        self._stored_bytes += sum(len(key) + len(value) for key, value in put.items())
        if self._stored_bytes <= max(STATE_BYTES_MAX, self._measured_bytes + STATE_BYTES_MAX // 4):
            return
        whole, _ = entries(state, None)
        self._stored_bytes = self._measured_bytes = sum(len(key) + len(value) for key, value in whole.items())
        if self._stored_bytes > STATE_BYTES_MAX:
            by_owner: Counter[str] = Counter()
            for key, value in whole.items():
                by_owner[".".join(json.loads(key)[1].split(".")[:2])] += len(key) + len(value)
            raise Refused(
                f"its state is {self._stored_bytes >> 20} MiB, more than {STATE_BYTES_MAX >> 20} MiB: most of it in"
                f" {by_owner.most_common(1)[0][0]}",
                hint="lower max_groups, shorten within: or the windows, or keep shorter texts",
            )

    def _payloads(self, state: State) -> tuple[State, list[_Payload]]:
        """What the segments hold, and the state that counts the rows that none can hold."""
        made: list[_Payload] = []
        for part in self._parts:
            for stream, kind, table, tables in self._streams(part.output):
                for rows, payload in fit(pa.concat_tables(tables)):
                    if len(payload) > PAYLOAD_BYTES_MAX:
                        state = state.with_counts("streams", stream, {"void": rows})
                    else:
                        made.append(_Payload(part, stream, kind, table, rows, payload))
        return state, made

    def _segments(
        self, state: State, made: Sequence[_Payload], positions: Mapping[str, Any], params: str, *, final: bool
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Heads and payloads of the segments."""
        base = {"positions": _moved(self.positions, positions), "engine": ENGINE}
        sealed: list[dict[str, Any]] = []
        payloads = [one.payload for one in made]
        for one, through in zip(made, _sealed_rows(state, made), strict=True):
            counts = {"source": dict(state.sources), "stream": dict(state.streams.get(one.stream, {}))}
            ledgers = {"commit": state.epoch, **counts, "sealed": through}
            made_with = {"params": one.part.params, "lookups": dict(one.part.lookups)}
            head = {"stream": one.stream, "kind": one.kind, "table": one.table, "ledgers": ledgers, **made_with, **base}
            sealed.append({**head, "rows": one.rows, "stamps": self._stamps.get(one.kind, segment.OWN)})
        self._unsealed_ledger += 1
        if final or self._unsealed_ledger >= LEDGER_EVERY:
            self._unsealed_ledger = 0
            open_rows = dict(run.open_window_rows(state))
            counts = {"source": dict(state.sources), "streams": dict(state.streams)}
            ledgers = {"commit": state.epoch, **counts, "open": open_rows}
            head = {"stream": run.LEDGER_STREAM, "kind": segment.LEDGER, "table": "", "ledgers": ledgers, "params": params}
            sealed.append({**head, "rows": 0, **base})
            payloads.append(b"")
        return sealed, payloads

    def _streams(self, output: run.Output) -> Iterator[tuple[str, str, str, list[pa.Table]]]:
        """(stream, kind, lake table, rows) of all that has rows."""
        for sink, tables in output.rows.items():
            yield sink, segment.ROWS, self._tables[sink], tables
        if output.quarantine:
            rows = output.quarantine if self._raw == "upload" else [_without_raw(table) for table in output.quarantine]
            yield run.QUARANTINE_STREAM, segment.QUARANTINE, "quarantine", rows
        if output.transitions:
            yield run.INCIDENT_STREAM, segment.INCIDENTS, "incidents", [run.incident_rows(output.transitions)]

    def _give_up_rows(self, state: State) -> State:
        """Drop all rows that are kept, each counted as void (I4): alarms go on, memory stays bounded (I9, I15)."""
        for part in self._parts:
            for sink, tables in part.output.rows.items():
                state = state.with_counts("streams", sink, {"void": sum(t.num_rows for t in tables)})
            quarantined = sum(t.num_rows for t in part.output.quarantine)
            if quarantined:
                state = state.with_counts("streams", run.QUARANTINE_STREAM, {"void": quarantined})
            part.output = replace(part.output, rows={}, quarantine=[])
        self.bytes = 0
        return state

    def _give_up_transitions(self, state: State) -> State:
        over = sum(len(part.output.transitions) for part in self._parts) - TRANSITIONS_MAX
        for part in self._parts:
            void = min(max(over, 0), len(part.output.transitions))
            over -= void
            if void:
                state = state.with_counts("streams", run.INCIDENT_STREAM, {"void": void})
                kept = part.output.transitions[void:]
                part.output = replace(part.output, transitions=kept, actions=part.output.actions[-TRANSITIONS_MAX:])
        self._parts = [part for part in self._parts if part.output != run.Output()] or self._parts[-1:]
        return state


def _sealed_rows(state: State, made: Sequence[_Payload]) -> list[int]:
    """For each payload: how many rows of its stream this lineage has sealed, its own included. After the last of a commit that is
    all that was written and not void (I4)."""
    found: list[int] = []
    left: Counter[str] = Counter()
    for one in reversed(made):
        counts = state.streams[one.stream]
        found.append(counts["written"] - counts.get("void", 0) - left[one.stream])
        left[one.stream] += one.rows
    return found[::-1]


def _without_raw(rejected: pa.Table) -> pa.Table:
    field = rejected.schema.field("raw")
    return rejected.set_column(rejected.schema.get_field_index("raw"), field, pa.nulls(rejected.num_rows, field.type))


def _kept_here(tables: Iterable[pa.Table]) -> Iterator[quarantine.Chunk]:
    """Rejected records as the node keeps them."""
    chunk: list[dict[str, Any]] = []
    size = 0
    for table in tables:
        for row in table.drop_columns(["pipeline"]).to_pylist():
            raw, at = row["raw"], row.pop("_event_time")
            row["raw"] = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw
            chunk.append({"at": at.isoformat(), **row})
            size += len(row["raw"] or "") + 100
            if len(chunk) >= quarantine.CHUNK_ROWS_MAX or size >= quarantine.CHUNK_BYTES_MAX:
                yield quarantine.pack(chunk)
                chunk, size = [], 0
    if chunk:
        yield quarantine.pack(chunk)


def fit(table: pa.Table) -> list[tuple[int, bytes]]:
    """Payloads that fit a segment beside its header, in order, with their row counts; larger only where one row alone is."""
    payload = encode_rows(table)
    if len(payload) <= PAYLOAD_BYTES_MAX or table.num_rows == 1:
        return [(table.num_rows, payload)]
    middle = table.num_rows // 2
    return [*fit(table.slice(0, middle)), *fit(table.slice(middle))]


def _told(position: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys of an http source, for which a header has no room."""
    return {word: value for word, value in position.items() if word != "keys"}


def _moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What went in, per source: where reading stood at the last commit and where it stands now; of files, those that moved."""
    moved: dict[str, Any] = {}
    for name, now in new.items():
        before = old.get(name) or {}
        if now == before:
            continue
        if "files" in now:
            paths = {p: e for p, e in now["files"].items() if before.get("files", {}).get(p) != e}
            told = list(paths)[:FILES_TOLD_MAX]
            was = {p: before.get("files", {}).get(p, {}).get("offset", 0) for p in told}
            moved[name] = {"from": was, "to": {p: paths[p]["offset"] for p in told}, "files": len(paths)}
        else:
            moved[name] = {"from": _told(before), "to": _told(now)}
    return moved
