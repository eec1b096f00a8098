"""agent.db: everything the node must not forget. The agent process is its only writer."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

import structlog

from edge_agent import answers, checksums, forks, incident_rows, outbox, quarantine, rate, reserve, salvage, schema, shares
from edge_agent import clock as clocks
from edge_agent.answers import Progress
from edge_agent.clock import Anchor, ClockMark, NodeClock
from edge_agent.config import GIB, make_private_dir
from edge_agent.database import Damaged, Database, T, Work, connect, free_bytes, parsed
from edge_agent.forks import Break, Doubt
from edge_agent.gate import Book
from edge_agent.outbox import Mark, Origin, Pending, Sealed, Sealer
from edge_agent.rate import Rate
from edge_agent.sending import Position, Run
from edge_agent.shares import Buffer
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.keys import Key
from pipelines.contract.node_state import Scalar, SignedManifest
from pipelines.contract.segment import DAMAGED

Tap = Callable[[str, Sequence[Sealed]], None]  # pipeline, what one of its commits sealed
_HARDWARE_FILES = (
    "/etc/machine-id",
    "/sys/firmware/devicetree/base/serial-number",
    "/sys/block/mmcblk0/device/cid",
)
_log = structlog.get_logger("store")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a pipeline stands: what its last commit wrote. `digest` is the version that wrote it, "" before the first commit.

    `params` are those that version had last; None when they are not known.
    """

    lineage: str
    digest: str
    number: int
    positions: dict[str, Any]
    ledger: dict[str, Any]
    state: dict[str, bytes]
    params: dict[str, Scalar] | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """What a runner asks to make durable together (I1): `positions` and `ledger` whole, of the state only what changed."""

    positions: Mapping[str, Any]
    ledger: Mapping[str, Any]
    state_set: Mapping[str, bytes] = field(default_factory=dict)
    state_delete: Sequence[str] = ()
    sealed: Sequence[Sealed] = ()
    transitions: Sequence[Mapping[str, Any]] = ()
    actions: Sequence[Mapping[str, Any]] = ()
    params: Mapping[str, Scalar] | None = None  # in effect; None leaves what is stored
    quarantined: Sequence[quarantine.Chunk] = ()  # what stays on the node


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the lake has not confirmed, and what it never will: `evicted_*` by the full buffer, `damaged_*` by the disk.

    `segments` and `bytes` with the stubs that are to be sent, `rows` without: sealed = stored + refused + evicted + damaged
    + forgotten + rows (I4). `forgotten_rows` had been confirmed by a lake that was restored from an older backup since.
    """

    segments: int
    rows: int
    bytes: int
    stored_rows: int
    refused_rows: int
    forgotten_rows: int
    evicted_segments: int
    evicted_rows: int
    damaged_segments: int
    damaged_rows: int


class Store:
    """Opened by at most one process. Methods are coroutines that return when their effect is on disk.

    One transaction per call, several calls per fsync. Opening does not depend on the backlog.
    """

    def __init__(
        self,
        database: Database,
        lock: int,
        node: str,
        key: Key,
        budget_bytes: int,
        clock: NodeClock,
        quarantine_bytes: int = quarantine.BYTES_MAX,
    ) -> None:
        self._db, self._lock = database, lock
        self._node, self._limit, self._quarantine_bytes = node, budget_bytes, quarantine_bytes
        self._budget = budget_bytes  # of the limit what the disk can hold
        self._sealer = Sealer(key, self._origin_now)
        self._is_sending = False  # something was given to the uplink in this life
        self._has_room = asyncio.Event()  # set and replaced when something was freed
        self._turns: dict[str, asyncio.Lock] = {}  # of pipelines that wait when it is full: their commits keep their order
        self._waiting: set[str] = set()  # those that do
        self._given_up: dict[str, bool] = {}  # those whose runner ends meanwhile, and whether a commit of theirs was refused
        self._closing = False
        self.clock_quality = clocks.quality()
        self._callbacks: list[Callable[[], None]] = []
        self._on_transition: list[Callable[[], None]] = []
        self.taps: set[Tap] = set()  # what they are called with is on disk; they must not wait
        self._on_damage: list[Callable[[], None]] = []
        self.damage = ""  # what is wrong with the file; then nothing goes on but a new opening
        self.clock = clock
        self._anchor: Anchor | None = None
        self._stored_anchor: Anchor | None = None

    @classmethod
    def open(
        cls, data_dir: Path, node: str, key: Key, buffer_bytes: int = 2 * GIB, quarantine_bytes: int = quarantine.BYTES_MAX
    ) -> Self:
        """Raises `TidewireError` when another agent has it open or a newer one wrote it."""
        make_private_dir(data_dir)
        lock = lock_directory(data_dir)
        path = data_dir / "agent.db"
        try:
            clock = salvage.opened(path, key.public, lambda: _prepare(path))
        except BaseException:
            os.close(lock)
            raise
        database = Database(path, lambda db: schema.put_meta(db, "clock", json.dumps(asdict(clock.mark()))))
        store = cls(database, lock, node, key, buffer_bytes, clock, quarantine_bytes)
        store._shrink()
        return store

    def close(self) -> None:
        self._closing = True
        self._db.close()
        os.close(self._lock)

    @property
    def trouble(self) -> str:
        """Why writes wait at the moment (I15); "" when they do not."""
        return self._db.trouble

    async def _write(self, work: Work[T], lane: str = "") -> T:
        return await self._done(self._db.write(work, lane))

    async def _read(self, work: Work[T]) -> T:
        return await self._done(self._db.read(work))

    async def _done(self, asked: Future[T]) -> T:
        try:
            return await asyncio.wrap_future(asked)
        except Exception as error:
            if not salvage.is_damage(error):
                raise
            if not self.damage:
                self.damage = str(error)
                salvage.suspect(self._db.path, self.damage)
                for callback in self._on_damage:
                    callback()
            raise self._damaged() from error

    @contextmanager
    def telling_damage(self) -> Iterator[None]:
        """Around the work of whoever uses the store: raises `TidewireError` when that ended because the file is damaged."""
        try:
            yield
        except Exception:
            if not self.damage:
                raise
        if self.damage:
            raise self._damaged()

    def _damaged(self) -> TidewireError:
        return TidewireError(
            f"the store is damaged: {self.damage}", op="run", place=str(self._db.path),
            hint="start the agent again (a service manager does): it keeps what can be read and counts what is lost",
        )  # fmt: skip

    def on_damage(self, callback: Callable[[], None]) -> None:
        """Have `callback` run once the file is found not to hold what was written to it: the next opening salvages it."""
        self._on_damage.append(callback)

    # Pipelines

    async def checkpoint(self, pipeline: str) -> Checkpoint:
        """Where the pipeline stands; its lineage is minted when it never ran here."""
        if (found := await self._read(lambda db: _checkpoint(db, pipeline))) is not None:
            return found
        lineage = secrets.token_hex(8)
        await self._write(lambda db: _begin_pipeline(db, pipeline, lineage), pipeline)
        return await self.checkpoint(pipeline)

    async def commit(self, pipeline: str, version: str, number: int, commit: Commit) -> None:
        """All of it in one transaction (I1). Waits while the disk takes no writes (I15), or while the pipeline's buffer is full
        and its version says `block`."""
        if (turns := self._turns.get(pipeline)) is None:
            await self._write(lambda db: self._commit(db, pipeline, version, number, commit), pipeline)
        else:
            async with turns:
                await self._wait_for_room(pipeline, commit)
                await self._write(lambda db: self._commit(db, pipeline, version, number, commit), pipeline)
        if commit.sealed:
            self._sealed()
            for tap in self.taps:
                tap(pipeline, commit.sealed)
        if commit.transitions:
            for callback in self._on_transition:
                callback()

    def _sealed(self) -> None:
        for callback in self._callbacks:
            callback()

    async def set_buffer(self, pipeline: str, buffer: Buffer) -> None:
        """What the pipeline's version says of its buffer; holds from the next commit on."""
        if await self._read(lambda db: outbox.buffers(db).get(pipeline)) != buffer:
            await self._write(lambda db: outbox.set_buffer(db, pipeline, buffer), pipeline)
            self._shrink()
        if buffer.when_full == shares.BLOCK:
            self._turns.setdefault(pipeline, asyncio.Lock())
        else:
            self._turns.pop(pipeline, None)
        self._given_up.pop(pipeline, None)
        self._let_go()

    def waits(self, pipeline: str) -> bool:
        """Whether a commit of the pipeline waits for room (`block`)."""
        return pipeline in self._waiting

    def stop_waiting(self, pipeline: str) -> None:
        """Refuse the commits that wait for room, until the pipeline starts again: its source has what is in them."""
        self._given_up.setdefault(pipeline, False)
        self._let_go()

    async def _wait_for_room(self, pipeline: str, commit: Commit) -> None:
        """Raises `Refused` from the first commit on that found no room after `stop_waiting`: none overtakes it."""
        has_room = self._has_room
        while self._given_up.get(pipeline) or (commit.sealed and await self._is_full(pipeline, commit)):
            if pipeline in self._given_up:
                self._given_up[pipeline] = True
                self._set_waiting(pipeline, is_waiting=False)
                raise Refused("the buffer is full", op="commit", place=pipeline)
            if pipeline not in self._waiting:
                _log.warning("the buffer is full: the pipeline waits until the lake took some of it", pipeline=pipeline)
            self._set_waiting(pipeline, is_waiting=True)
            await has_room.wait()
            has_room = self._has_room
        self._set_waiting(pipeline, is_waiting=False)

    def _set_waiting(self, pipeline: str, *, is_waiting: bool) -> None:
        if is_waiting != (pipeline in self._waiting):
            self._waiting ^= {pipeline}
            for callback in self._on_transition:
                callback()

    async def _is_full(self, pipeline: str, commit: Commit) -> bool:
        added = sum(len(sealed.payload) for sealed in commit.sealed)
        return await self._read(lambda db: shares.must_wait(pipeline, added, outbox.usages(db), outbox.buffers(db), self._budget))

    def _let_go(self) -> None:
        """Those who wait for room look again."""
        self._has_room.set()
        self._has_room = asyncio.Event()

    def _shrink(self) -> None:
        """Evict down to the limits, a bounded part per transaction: one of them may be lower than it was."""

        def more(done: Future[int]) -> None:
            if not done.cancelled() and done.exception() is None and done.result() and not self._closing:
                self._shrink()

        self._db.write(lambda db: outbox.evict(db, self._sealer.handed, self._budget, sys.maxsize)).add_done_callback(more)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Have `callback` run after each commit that sealed segments."""
        self._callbacks.append(callback)

    def on_transition(self, callback: Callable[[], None]) -> None:
        """Have `callback` run after each commit that changed an incident, when a history broke off, and when a pipeline begins
        or ends to wait for room."""
        self._on_transition.append(callback)

    def _origin(self, db: sqlite3.Connection, pipeline: str, version: str, number: int, lineage: str) -> Origin:
        wall_us, node_us, time_line = clocks.wall_us(), self.clock.now_us(), self.clock.time_line
        if self._anchor is None and (stored := schema.get_meta(db, "anchor")):
            self._anchor = self._stored_anchor = parsed(lambda raw: Anchor(**raw), stored)
        offset_us, quality = clocks.utc_offset(wall_us, node_us, self.clock_quality, self._anchor, time_line)
        return Origin(self._node, pipeline, version, number, wall_us, node_us, quality, lineage, time_line, offset_us)

    def _origin_now(self, db: sqlite3.Connection, pipeline: str) -> Origin:
        """Of a stub: who says that the rows are lost, and when."""
        row = db.execute("SELECT digest, number, lineage FROM pipelines WHERE name = ?", (pipeline,)).fetchone()
        return self._origin(db, pipeline, *(row or ("", 0, "")))

    def _commit(self, db: sqlite3.Connection, pipeline: str, version: str, number: int, commit: Commit) -> None:
        (lineage,) = db.execute("SELECT lineage FROM pipelines WHERE name = ?", (pipeline,)).fetchone()
        origin = self._origin(db, pipeline, version, number, lineage)
        db.execute(
            "UPDATE pipelines SET digest = ?, number = ?, positions = ?, ledger = ?, params = coalesce(?, params) WHERE name = ?",
            (
                version,
                number,
                json.dumps(commit.positions),
                json.dumps(commit.ledger),
                None if commit.params is None else json.dumps(dict(commit.params)),
                pipeline,
            ),
        )
        checksums.put_state(db, pipeline, commit.state_delete, commit.state_set)
        checksums.seal(db, pipeline)
        if commit.sealed:
            self._seal(db, origin, commit.sealed)
        if commit.quarantined:
            quarantine.put(db, pipeline, commit.quarantined, self._quarantine_bytes)
        for transition in commit.transitions:
            incident_rows.apply_transition(db, pipeline, transition)
        incident_rows.put_actions(db, pipeline, commit.actions)

    def _seal(self, db: sqlite3.Connection, origin: Origin, sealed: Sequence[Sealed]) -> None:
        used = outbox.used_bytes(db)
        self._budget = min(self._limit, used + reserve.room_bytes(self._db.path) + free_bytes(db))
        for one in sealed:
            outbox.put(db, self._sealer.key, origin, one)
        if evicted := outbox.evict(db, self._sealer.handed, self._budget, used):
            _log.warning("the buffer is full: segments lost their rows", segments=evicted)
        _measure(db, origin.pipeline, sealed, origin.node_time_us)

    async def adopt(self, pipeline: str, version: str, number: int) -> None:
        """The state of `pipeline` is now that of `version`: the old one has emitted what does not carry over."""
        await self._write(lambda db: _adopt(db, pipeline, version, number), pipeline)

    async def close_streams(self, pipeline: str) -> None:
        """No more segments for now: what is pending drains, then the runs go."""
        await self._write(lambda db: outbox.close_runs(db, "pipeline = ?", pipeline), pipeline)

    # Outbox

    async def pending_segments(
        self,
        limit_bytes: int,
        sent: Mapping[tuple[str, str], int] | None = None,
        streams_max: int = outbox.BATCH_SEGMENTS_MAX,
    ) -> list[Pending]:
        """The next segments to send after the positions `sent` ((run, stream) -> seq); at least one while any can be sent."""
        return await self._take(lambda db: outbox.in_order(db, sent or {}), limit_bytes, streams_max)

    async def take(
        self, plan: Callable[[list[Run]], Sequence[Run]], sent: Mapping[Position, int], limit_bytes: int
    ) -> list[Pending]:
        """The segments of one request: from the runs that `plan` picks, in its order, after what is `sent` of each.
        At least one while any can be sent. `plan` is pure: it runs in the store's reading thread."""

        def order(db: sqlite3.Connection) -> list[tuple[str, str, int]]:
            return [(*run.position, run.after(sent)) for run in plan(outbox.runs(db))]

        return await self._take(order, limit_bytes)

    async def end_run(self, pipeline: str, stream: str) -> None:
        """The stream's active run takes no more segments: the next one starts a new run."""
        await self._write(lambda db: outbox.close_runs(db, "pipeline = ? AND stream = ?", pipeline, stream), pipeline)

    async def _take(
        self,
        order: Callable[[sqlite3.Connection], Sequence[tuple[str, str, int]]],
        limit_bytes: int,
        streams_max: int = outbox.BATCH_SEGMENTS_MAX,
    ) -> list[Pending]:
        if not self._is_sending:
            await self._write(outbox.begin_sending)
            self._is_sending = True
        while True:
            batch, damaged = await self._read(lambda db: outbox.take(db, self._sealer, order(db), limit_bytes, streams_max))
            if not damaged:
                return batch
            await self._write(partial(self._void_damaged, damaged=damaged))

    def _void_damaged(self, db: sqlite3.Connection, *, damaged: Sequence[int]) -> None:
        for segment_id in damaged:
            outbox.void(db, self._sealer.handed, segment_id, DAMAGED)
        _log.error("stored segments are damaged; their rows are lost and counted", segments=len(damaged))

    async def open_positions(self, *, pending_only: bool = False) -> list[tuple[str, str]]:
        return await self._read(lambda db: outbox.open_positions(db, pending_only=pending_only))

    async def confirm(self, marks: Sequence[Mark], *, asked: bool = False) -> list[Break]:
        """Free what the marks cover (I3). Histories that the lake does not share go on under new runs, which are returned, or
        are in doubt: see `doubtful`."""
        return await self._settled(lambda db: [forks.confirm(db, mark, asked=asked) for mark in marks])

    async def doubtful(self) -> list[Doubt]:
        """Which segments to ask the lake for; their runs wait until `settle_fork` has the answer. Empty when none is in doubt."""
        return await self._read(forks.doubtful)

    async def settle_fork(self, asked: Sequence[Doubt], found: Iterable[tuple[str, str, int, str]]) -> list[Break]:
        """`found` is the lake's whole answer to `asked`: (run, stream, seq, digest) of what it has. That is freed; the rest goes
        on under new runs, which are returned. What is still `doubtful` then is to be asked for in turn."""
        links: dict[tuple[str, str], dict[int, str]] = {}
        for run, stream, seq, digest in found:
            links.setdefault((run, stream), {})[seq] = digest
        return await self._settled(
            lambda db: [forks.settle(db, doubt, links.get((doubt.run, doubt.stream), {})) for doubt in asked]
        )

    async def _settled(self, work: Work[list[Break | None]]) -> list[Break]:
        breaks = [broken for broken in await self._write(work) if broken is not None]
        self._let_go()
        if breaks:
            await self.reseal()
            for callback in self._on_transition:
                callback()
        return breaks

    async def history(self) -> dict[str, Any]:
        """How often a run of this store broke off, and the last time why and when: see `forks.remember`. {} for never."""
        return await self.get(forks.HISTORY)

    async def reseal(self) -> None:
        """Finish moving broken runs to their successors; some segments per transaction, so that commits get through."""
        while await self._write(lambda db: forks.reseal(db, self._sealer)):
            pass

    async def backlog(self) -> Backlog:
        return await self._read(_backlog)

    async def streams(self) -> list[dict[str, Any]]:
        """Per pipeline and stream: what is pending, for `status`."""
        return await self._read(_streams)

    async def rates(self) -> dict[str, Rate]:
        """How fast each stream (`pipeline/stream`) fills the buffer."""
        return await self._read(_rates)

    @property
    def budget(self) -> tuple[int, int]:
        """(bytes that the buffer may take, bytes of them that the disk has room for), as of the last commit."""
        return self._limit, self._budget

    async def room(self) -> int:
        """Bytes that the buffer may have, with what it holds: the node's limit, or what the disk has room for now."""
        used, free = await self._read(lambda db: (outbox.used_bytes(db), free_bytes(db)))
        return min(self._limit, used + reserve.room_bytes(self._db.path) + free)

    async def buffer_lasts_s(self) -> float | None:
        """How long the free part of the buffer lasts at the measured rate; None while that is not known."""
        free = self._budget - (await self.backlog()).bytes
        return rate.lasts_s((await self.rates()).values(), free, self.clock.now_us())

    # Requests

    async def forget_requests(self, keep: Collection[str]) -> set[str]:
        """Forget what is known of others; those of `keep` that are answered. Writes only when there is something to forget."""
        known = await self._read(answers.known)
        if known.keys() - keep:
            await self._write(lambda db: answers.forget(db, keep), answers.OWNER)
        return {name for name, is_over in known.items() if is_over and name in keep}

    async def take_up(self, request: str) -> Progress:
        """How far the request is; it begins now if it had not."""
        return await self._write(lambda db: answers.take_up(db, request, self.clock.now_us()), answers.OWNER)

    async def answer(self, request: str, rows: int, payloads: Sequence[tuple[int, bytes]], *, is_over: bool) -> None:
        """Seal `payloads` (rows, Arrow IPC), with which `rows` rows of the answer are sealed, in one transaction (I1). Nothing,
        once its end is: a write that the disk does not take for a while goes on after whoever waited for it gave up."""

        def work(db: sqlite3.Connection) -> None:
            if answers.is_over(db, request):
                return
            before = answers.ledger(db)
            self._seal(db, self._origin(db, answers.OWNER, "", 0, before.lineage), answers.to_seal(db, before, payloads))
            answers.note(db, request, rows, is_over=is_over)

        await self._write(work, answers.OWNER)
        self._sealed()

    async def look(self, work: Work[T]) -> T:
        """One short read for whoever answers a request."""
        return await self._read(work)

    # Incidents and actions

    async def incidents(self) -> list[dict[str, Any]]:
        """The open ones: what was said when they were raised, their last `transition`, their `state` (active, or cleared and
        waiting for an acknowledgement or a reset) and whether they are `acknowledged`."""
        return await self._read(incident_rows.open_incidents)

    async def mark_note(self, incident: str, note: str, how: str) -> None:
        """Remember of a note (its kind, author and number) about an open incident that it was `handed` to a runner, or that it is
        `done`: it can have no more effect. The commit that acknowledges the incident marks as done what was handed."""
        await self._write(lambda db: incident_rows.mark_note(db, incident, note, how))

    async def pending_actions(self) -> list[dict[str, Any]]:
        """What was to be done and is not known to be: each as in the protocol, with `tries`."""
        return await self._read(incident_rows.pending)

    async def finished_actions(self) -> list[str]:
        """Ids of actions that are done, expired, failed or refused, oldest first."""
        query = "SELECT id FROM actions WHERE status <> 'pending' ORDER BY finished_us"
        return await self._read(lambda db: [row[0] for row in db.execute(query)])

    async def settle_action(self, action: Mapping[str, Any], status: str, tries: int, outcome: str) -> None:
        """Remember how the action stands, whether or not the commit that carries it has come yet."""
        finished = 0 if status == "pending" else self.clock.now_us()
        values = (action["id"], action["pipeline"], json.dumps(action), status, tries, outcome, finished)
        await self._write(lambda db: incident_rows.settle(db, [values]))

    async def hold_actions(self, held: Sequence[tuple[Mapping[str, Any], int, str]]) -> None:
        """Remember of pending actions how often they were tried, and what the last try said."""
        rows = [(a["id"], a["pipeline"], json.dumps(a), "pending", tries, said, 0) for a, tries, said in held]
        await self._write(lambda db: incident_rows.settle(db, rows))

    async def action_log(self, limit: int = 20) -> list[dict[str, Any]]:
        """The last actions, newest first, for `status`."""
        return await self._read(lambda db: incident_rows.log(db, limit))

    # NodeState and artifacts

    async def load_state(self) -> tuple[bytes | None, SignedManifest | None]:
        """The saved document and the manifest in force."""
        return await self._read(_load_state)

    async def save_state(self, document: bytes | None, manifest: SignedManifest | None) -> None:
        """Keep either or both; None leaves what is stored."""
        await self._write(lambda db: _save_state(db, document, manifest))

    async def artifact(self, digest: str) -> tuple[Artifact, int] | None:
        """The artifact and its number."""
        return await self._read(lambda db: _artifact(db, digest))

    async def put_artifact(self, artifact: Artifact, number: int) -> None:
        """Keep an artifact that its caller verified (I13)."""
        values = (artifact.digest, artifact.kind, number, len(artifact.data), artifact.signature, artifact.data)
        await self._write(lambda db: db.execute("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?, ?)", values))

    async def versions(self) -> list[tuple[str, int]]:
        """Digest and number of every pipeline version whose bytes are here."""
        query = "SELECT digest, number FROM artifacts WHERE kind = ? ORDER BY number"
        return await self._read(lambda db: db.execute(query, (PIPELINE_VERSION,)).fetchall())

    async def put_file(self, digest: str, kind: str, number: int, size: int, signature: bytes) -> None:
        """Know of an artifact whose bytes are in a file beside the store, and were verified (I13)."""
        values = (digest, kind, number, size, signature)
        await self._write(lambda db: db.execute("INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?, NULL)", values))

    async def artifacts(self) -> list[tuple[str, str, int, int, bytes]]:
        """Digest, kind, number, size and signature of every artifact, in the order in which they came."""
        query = "SELECT digest, kind, number, bytes, signature FROM artifacts ORDER BY rowid"
        return await self._read(lambda db: db.execute(query).fetchall())

    async def forget_artifacts(self, digests: Iterable[str]) -> None:
        """But for those that wrote the state of a pipeline, which may have to be drained, and what the node may go back to."""
        await self._write(lambda db: _forget_artifacts(db, list(digests)))

    async def gates(self) -> dict[str, Book]:
        """Pipeline -> what its gate found out."""
        query = "SELECT pipeline, body FROM gates"
        return await self._read(lambda db: {name: parsed(Book.of, body) for name, body in db.execute(query)})

    async def put_gate(self, pipeline: str, book: Book | None) -> None:
        """One pipeline's, in one transaction; None forgets it."""
        body = book.to_json() if book else ""
        await self._write(lambda db: _put_gate(db, pipeline, body))

    async def timers(self) -> dict[str, int]:
        """Notes that hold for some time -> node time when that is over."""
        return await self._read(lambda db: dict(db.execute("SELECT note, ends_us FROM timers")))

    async def set_timers(self, begin: Mapping[str, int], forget: Iterable[str]) -> None:
        await self._write(lambda db: _set_timers(db, begin, forget))

    async def anchor(self, told: Anchor) -> None:
        """Take over what the control plane told of the time. It outlasts a restart in the same boot (I10)."""
        if told.is_better_than(self._anchor):
            self._anchor = told
        if told.is_worth_writing_after(self._stored_anchor):
            self._stored_anchor = told
            await self.put("anchor", asdict(told))

    async def get(self, key: str) -> dict[str, Any]:
        """What was `put` under that key, {} when nothing was."""
        return await self._read(lambda db: parsed(dict[str, Any], schema.get_meta(db, key) or "{}"))

    async def put(self, key: str, value: Mapping[str, Any]) -> None:
        await self._write(lambda db: schema.put_meta(db, key, json.dumps(value)))


def lock_directory(data_dir: Path) -> int:
    """Have this directory alone until the descriptor is closed. Raises `TidewireError` when another agent has it."""
    lock = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise TidewireError(
            "another agent is running with it",
            op="open",
            place=str(data_dir),
            hint="use that one (`tidewire-agent status`), stop it, or give another --data-dir",
        ) from None
    return lock


def _prepare(path: Path) -> NodeClock:
    """The clock as the store remembers it; the file is made when it is new."""
    with closing(connect(path)) as db:
        path.chmod(0o600)
        schema.prepare(db)
        mark = schema.get_meta(db, "clock")
        _mint_runs_after_move(db)
        db.execute("BEGIN IMMEDIATE")
        outbox.begin_life(db)
        db.execute("COMMIT")
    resumed = parsed(lambda raw: ClockMark(**raw), mark) if mark else None
    return NodeClock.resume(resumed, boot=clocks.boot_id(), boottime_us=clocks.boottime_us(), wall_us=clocks.wall_us())


def _mint_runs_after_move(db: sqlite3.Connection) -> None:
    """On other hardware than last time this is a copy: no run of the original may get another segment from here."""
    here = json.dumps([_read_text(Path(name)) for name in _HARDWARE_FILES])
    before = schema.get_meta(db, "hardware")
    if before != here:
        db.execute("BEGIN IMMEDIATE")
        outbox.close_runs(db)
        if before is not None:
            forks.remember(
                db, Break("", "", "this store was on other hardware before: moved, or the image of a joined node", True)
            )
        schema.put_meta(db, "hardware", here)
        db.execute("COMMIT")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _begin_pipeline(db: sqlite3.Connection, pipeline: str, lineage: str) -> None:
    fresh = (pipeline, lineage)
    db.execute(
        "INSERT OR IGNORE INTO pipelines (name, lineage, digest, number, positions, ledger) VALUES (?, ?, '', 0, '{}', '{}')",
        fresh,
    )
    checksums.seal(db, pipeline)


def _adopt(db: sqlite3.Connection, pipeline: str, version: str, number: int) -> None:
    db.execute("UPDATE pipelines SET digest = ?, number = ?, params = NULL WHERE name = ?", (version, number, pipeline))
    if db.execute("SELECT changes()").fetchone()[0]:
        checksums.seal(db, pipeline)


def _checkpoint(db: sqlite3.Connection, pipeline: str) -> Checkpoint | None:
    """Raises `Damaged` when it is not what was written."""
    row = db.execute("SELECT * FROM pipelines WHERE name = ?", (pipeline,)).fetchone()
    if row is None:
        return None
    state = db.execute("SELECT key, value FROM state WHERE pipeline = ? ORDER BY key", (pipeline,)).fetchall()
    if not checksums.is_intact(row, state):
        raise Damaged(f"positions or state of {pipeline} are not those that were written")
    params = None if row[6] is None else json.loads(row[6])
    return Checkpoint(row[1], row[2], row[3], json.loads(row[4]), json.loads(row[5]), dict(state), params)


def _backlog(db: sqlite3.Connection) -> Backlog:
    row = db.execute(
        "SELECT coalesce(sum(pending_segments), 0), coalesce(sum(pending_rows - lost_rows), 0), coalesce(sum(pending_bytes), 0)"
        " FROM streams"
    ).fetchone()
    names = [name.name for name in fields(Backlog)[3:]]
    sums = db.execute(f"SELECT {', '.join(f'coalesce(sum({name}), 0)' for name in names)} FROM stream_ledgers").fetchone()
    return Backlog(*row, *sums)


def _rates(db: sqlite3.Connection) -> dict[str, Rate]:
    stored = schema.get_meta(db, "rates") or "{}"
    return parsed(lambda raw: {stream: Rate(*fields) for stream, fields in raw.items()}, stored)


def _measure(db: sqlite3.Connection, pipeline: str, sealed: Sequence[Sealed], node_us: int) -> None:
    sizes = [(f"{pipeline}/{one.stream}", len(one.payload)) for one in sealed]
    after = rate.note(_rates(db), sizes, node_us)
    schema.put_meta(db, "rates", json.dumps({stream: (r.weight, r.at_us, r.since_us) for stream, r in after.items()}))


def _streams(db: sqlite3.Connection) -> list[dict[str, Any]]:
    names = ("pipeline", "stream", "kind", "table", "segments", "rows", "bytes", "runs")
    rows = db.execute(
        "SELECT pipeline, stream, kind, max(lake_table), sum(pending_segments), sum(pending_rows - lost_rows),"
        " sum(pending_bytes), count(*) FROM streams GROUP BY pipeline, stream, kind ORDER BY pipeline, stream"
    ).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def _load_state(db: sqlite3.Connection) -> tuple[bytes | None, SignedManifest | None]:
    document, body, signature = (schema.get_meta(db, key) for key in ("document", "manifest", "manifest_signature"))
    manifest = SignedManifest(body, signature) if isinstance(body, bytes) and isinstance(signature, bytes) else None
    return (document if isinstance(document, bytes) else None), manifest


def _save_state(db: sqlite3.Connection, document: bytes | None, manifest: SignedManifest | None) -> None:
    if document is not None:
        schema.put_meta(db, "document", document)
    if manifest is not None:
        schema.put_meta(db, "manifest", manifest.body)
        schema.put_meta(db, "manifest_signature", manifest.signature)


def _set_timers(db: sqlite3.Connection, begin: Mapping[str, int], forget: Iterable[str]) -> None:
    db.executemany("DELETE FROM timers WHERE note = ?", [(note,) for note in forget])
    db.executemany("INSERT OR IGNORE INTO timers VALUES (?, ?)", list(begin.items()))


def _put_gate(db: sqlite3.Connection, pipeline: str, book: str) -> None:
    if book:
        db.execute("INSERT OR REPLACE INTO gates VALUES (?, ?)", (pipeline, book))
    else:
        db.execute("DELETE FROM gates WHERE pipeline = ?", (pipeline,))


def _last_good(db: sqlite3.Connection) -> set[str]:
    """Digests of what the node could go back to: versions and their lookup tables."""
    found = [json.loads(body)["good"] for (body,) in db.execute("SELECT body FROM gates")]
    return {digest for good in found if good for digest in (good["digest"], *good["artifacts"].values())}


def _artifact(db: sqlite3.Connection, digest: str) -> tuple[Artifact, int] | None:
    query = "SELECT kind, data, signature, number FROM artifacts WHERE digest = ? AND data IS NOT NULL"
    row = db.execute(query, (digest,)).fetchone()
    return (Artifact(row[0], row[1], row[2]), row[3]) if row else None


def _forget_artifacts(db: sqlite3.Connection, digests: Sequence[str]) -> None:
    kept = {digest for (digest,) in db.execute("SELECT digest FROM pipelines")} | _last_good(db)
    for digest in set(digests) - kept:
        db.execute("DELETE FROM artifacts WHERE digest = ?", (digest,))
