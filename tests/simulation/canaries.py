"""Deliberate bugs, each a patch of production code for the time of one simulation: the checkers must see every one of them.

A canary names the scenario in which it shows and the invariants that then complain. `python -m tests.simulation --canary NAME`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, Transaction, write_deltalake

import control_plane.columns
import control_plane.fleet
import control_plane.lake
import control_plane.settle
import edge_agent.agent
import edge_agent.forks
import edge_agent.gate
import edge_agent.host
import edge_agent.outbox
import edge_agent.runner
import edge_agent.store
import edge_agent.uncommitted
import edge_agent.uplink
from control_plane.sequence import Continuation
from edge_agent.outbox import Mark
from edge_agent.store import Commit
from tests.simulation.life import LIFE
from tests.simulation.patches import EPOCH_S

Patches = Iterator[tuple[Any, str, Any]]


@dataclass(frozen=True)
class Canary:
    """`faults` and `buffer_bytes` are those of `simulate`; one of `seeds` at least must bring a complaint of `sees`."""

    patches: Callable[[], Patches]
    sees: tuple[str, ...]
    faults: Sequence[str]
    seeds: Sequence[int] = (1,)
    buffer_bytes: int = 0


CANARIES: dict[str, Canary] = {}


def canary(*sees: str, faults: Sequence[str], seeds: Sequence[int] = (1,), buffer_bytes: int = 0) -> Callable[..., Any]:
    def register(patches: Callable[[], Patches]) -> Callable[[], Patches]:
        CANARIES[patches.__name__] = Canary(patches, sees, faults, seeds, buffer_bytes)
        return patches

    return register


@canary("I3", faults=("one_way_cut", "control_killed", "broker_wiped"))
def free_on_send() -> Patches:
    """A segment is freed when it is sent, not when its receipt comes."""
    real = edge_agent.uplink.Uplink._send

    async def send(self: Any, request: Any) -> None:
        await self._store.confirm([Mark(p.run, p.stream, p.seq, p.digest) for p in request.batch], asked=False)
        await real(self, request)

    yield edge_agent.uplink.Uplink, "_send", send


@canary("I1", "I3", "I4", "I15", faults=("agent_killed",) * 4)
def acknowledge_before_commit() -> Patches:
    """The source's position is stored before the rows are."""
    real = edge_agent.store.Store.commit

    async def commit(self: Any, pipeline: str, version: str, number: int, commit: Commit) -> None:
        await real(self, pipeline, version, number, Commit(commit.positions, commit.ledger))
        await edge_agent.store.asyncio.sleep(2)
        await real(self, pipeline, version, number, commit)

    yield edge_agent.store.Store, "commit", commit


@canary("I2", "I3", "I4", faults=("one_way_cut", "one_way_cut", "delay_and_reorder"))
def dedup_by_a_time_window() -> Patches:
    """What came within the last seconds is known; the marks are not asked."""
    seen: dict[str, float] = {}

    def continue_from(mark: Any, arrived: Any) -> Continuation:
        now = time.monotonic()
        fresh = [s for s in sorted(arrived, key=lambda s: s.header.seq) if now - seen.get(s.digest, -1e9) > 5]
        seen.update({segment.digest: now for segment in fresh})
        return Continuation(tuple(fresh))

    yield control_plane.settle, "continue_from", continue_from
    yield control_plane.lake.LakeTable, "mark", lambda self, key: 0


@canary("I3", "I4", "log", faults=("broker_wiped",))
def drop_a_position_with_its_segment() -> Patches:
    """Once all of a run is confirmed, nobody remembers how far it was numbered."""
    real = edge_agent.forks.confirm

    def confirm(db: Any, mark: Mark, *, asked: bool) -> Any:
        broken = real(db, mark, asked=asked)
        db.execute(
            "UPDATE streams SET next_seq = 1, last_digest = '', run_rows = 0, mark_seq = 0, mark_digest = '', mark_rows = 0,"
            " mark_stored = 0 WHERE run = ? AND pending_segments = 0 AND kind = 'rows'",
            (mark.run,),
        )
        return broken

    yield edge_agent.forks, "confirm", confirm


@canary("I2", faults=("control_stalled",))
def commit_by_path() -> Patches:
    """Rows are appended to whatever the table is by now, not to what the marks were read from."""

    def append(self: Any, rows: pa.Table, marks: Mapping[Any, int]) -> None:
        plain = pa.table({n: _plain(rows[n]) for n in rows.column_names})
        transactions = [Transaction(key.app_id, seq) for key, seq in marks.items()]
        properties = CommitProperties(app_transactions=transactions)
        write_deltalake(str(self._path), plain, mode="append", schema_mode="merge", commit_properties=properties)
        self.reload()

    yield control_plane.lake.LakeTable, "append", append


def _plain(column: Any) -> Any:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


@canary("I2", faults=("card_restored",), seeds=(2,))
def reuse_a_run_after_a_restore() -> Patches:
    """A history that the lake does not share goes on under its old run, numbered behind what the lake has."""

    def confirm(db: Any, mark: Mark, *, asked: bool) -> Any:
        found = db.execute(
            "SELECT id, mark_seq, next_seq FROM streams WHERE run = ? AND stream = ? AND successor IS NULL",
            (mark.run, mark.stream),
        ).fetchone()
        ours = found and db.execute("SELECT digest FROM outbox WHERE stream_id = ? AND seq = ?", (found[0], mark.seq)).fetchone()
        if not found or not asked or mark.seq <= found[1] or (ours and ours[0] == mark.digest):
            return real(db, mark, asked=asked)
        stream_id = found[0]
        run = f"{mark.run}"
        db.execute("UPDATE streams SET run = run || '.old' WHERE id = ?", (stream_id,))
        pipeline, stream, kind, table = db.execute(
            "SELECT pipeline, stream, kind, lake_table FROM streams WHERE id = ?", (stream_id,)
        ).fetchone()
        edge_agent.outbox.close_runs(db, "pipeline = ? AND stream = ?", pipeline, stream)
        new = edge_agent.outbox.new_run(db, run, pipeline, stream, kind, table, active=True)
        db.execute(
            "UPDATE streams SET next_seq = ?, last_digest = ?, run_rows = ?, mark_seq = ?, mark_digest = ?, mark_rows = ?,"
            " mark_stored = ? WHERE id = ?",
            (mark.seq + 1, mark.digest, mark.rows, mark.seq, mark.digest, mark.rows, mark.stored, new),
        )
        db.execute("UPDATE streams SET successor = ? WHERE id = ?", (new, stream_id))
        return None

    real = edge_agent.forks.confirm
    yield edge_agent.forks, "confirm", confirm


@canary("I1", "I2", "I3", "I4", "I10", "I15", faults=("clock_jump", "clock_jump", "clock_jump"))
def wall_clock_durations() -> Patches:
    """Node time is what the wall clock shows."""
    real = time.clock_gettime_ns

    def clock_gettime_ns(which: int) -> int:
        life = LIFE.get()
        return real(which) if life is None else real(which) + int((EPOCH_S + life.machine.wall_offset_s) * 1e9)

    yield time, "clock_gettime_ns", clock_gettime_ns


@canary("I5", "I6", faults=("on_site_params_by_a_wrong_clock",))
def conflict_by_wall_clock() -> Patches:
    """Of two entries the one with the later stamp holds."""
    real = edge_agent.agent.effective_params

    def effective_params(defaults: Any, assignment: Any, notes: Any, *, node: str, pipeline: str) -> Any:
        ordered = sorted(notes, key=lambda note: note.at)
        renumbered = [replace(note, seq=i) for i, note in enumerate(ordered, 1)]
        return real(defaults, assignment, renumbered, node=node, pipeline=pipeline)

    yield edge_agent.agent, "effective_params", effective_params
    yield control_plane.fleet, "effective_params", effective_params


@canary("I12", faults=("version_that_crashes",))
def never_go_back() -> Patches:
    """A version that ends by itself again and again is started again and again, since that is what the centre wants."""
    yield edge_agent.gate, "crashed", lambda book, why: book


@canary("I1", "I4", faults=("runner_killed",) * 3)
def forget_timers() -> Patches:
    """Open windows and what triggers wait for live in memory only."""
    real = edge_agent.uncommitted.entries

    def entries(state: Any, committed: Any) -> Any:
        put, delete = real(state, committed)
        return {key: value for key, value in put.items() if json.loads(key)[0] != "cell"}, delete

    yield edge_agent.uncommitted, "entries", entries


@canary("I3", "I4", "I6", faults=("cut", "cut", "cut"), buffer_bytes=8 * 1024)
def evict_without_stub() -> Patches:
    """What a full buffer loses leaves nothing: the node says that the next run follows."""

    def void(db: Any, handed: Any, segment_id: int, how: str) -> None:
        (stream_id,) = db.execute("SELECT stream_id FROM outbox WHERE id = ?", (segment_id,)).fetchone()
        db.execute("DELETE FROM outbox WHERE id = ?", (segment_id,))
        edge_agent.outbox.close_runs(db, "id = ?", stream_id)

    yield edge_agent.outbox, "void", void


@canary("I15", faults=("disk_full", "disk_full", "disk_full"), seeds=(2,))
def block_when_full() -> Patches:
    """While the disk takes no commits nothing is read, and so nothing sounds."""
    yield edge_agent.runner._Runner, "_must_wait", lambda self: self.in_flight > 0


@canary("I2", faults=("retyped_column",))
def let_deltalake_cast() -> Patches:
    """A column of another type is cast to the table's."""

    def merged_schema(table: Any, batch: pa.Schema) -> pa.Schema:
        if table is None:
            return batch
        ours = {field.name: field for field in table if field.name not in control_plane.columns.LINEAGE.names}
        return pa.schema([*ours.values(), *(field for field in batch if field.name not in ours)])

    def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
        columns = [
            rows[field.name].cast(field.type, safe=False)
            if field.name in rows.column_names
            else pa.nulls(rows.num_rows, field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)

    yield control_plane.settle, "merged_schema", merged_schema
    yield control_plane.settle, "conform", conform


@canary("I15", faults=("agent_killed",) * 4 + ("runner_killed_sending",) * 2)
def actions_without_their_row() -> Patches:
    """An action waits for the commit of its row, and is then handed over in memory only."""

    def act(self: Any, header: Any, blobs: Any) -> None:
        loop = edge_agent.store.asyncio.get_running_loop()
        for action in header["actions"]:
            loop.call_later(20, self._services.actions.offer, self.version.pipeline, self._with_values(action, ""))

    real = edge_agent.store.Store.commit

    async def commit(self: Any, pipeline: str, version: str, number: int, commit: Commit) -> None:
        await real(self, pipeline, version, number, replace(commit, actions=()))

    yield edge_agent.host.PipelineHost, "_on_act", act
    yield edge_agent.store.Store, "commit", commit
