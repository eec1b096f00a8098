"""Answers what the manifest asks: SQL over what the node holds, rows of a pipeline as they pass, the agent's last lines.

Level-triggered (I7): what is in the manifest and not answered is worked on, one after the other; what leaves the manifest is
stopped at once. The work is a child's (answering.py), with limits; the agent only hands over, and seals what the child made.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent import answers, logs
from edge_agent.answers import Progress
from edge_agent.config import MIB
from edge_agent.outbox import Sealed
from edge_agent.supervisor import RunnerProcess, Supervisor
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.language.base import LOG
from pipelines.contract.node_state import REQUESTS_MAX, Request
from pipelines.contract.segment import ROWS

if TYPE_CHECKING:
    from edge_agent.agent import Agent

ANSWERER = "edge_agent.answering:main"
MEMORY_BYTES = 768 * MIB  # of address space, half of which is libraries
LOOKED_AT_BYTES_MAX = 16 * MIB  # of what the buffer holds, the newest
QUARANTINE_ROWS_MAX, QUARANTINE_CHUNKS_MAX = 10_000, 100
TAP_BYTES_MAX = 4 * MIB  # that wait for the child: more are dropped and counted, the pipeline never waits
MAX_S, MAX_ROWS, MAX_BYTES = 600.0, 10_000, 4 * MIB  # whatever the control plane asks for
_GRACE_S = 5.0  # for the child's own end, and for its start
_PAUSE_S = 5.0  # after what failed here, before it is tried again
_LINES_A_MESSAGE = 500
_log = structlog.get_logger("requests")


class Requests:
    def __init__(self, agent: Agent, supervisor: Supervisor) -> None:
        self._agent, self._supervisor = agent, supervisor
        self._store, self._record = agent.store, agent.record
        self._wake = asyncio.Event()
        self._at: tuple[str, Request] | None = None
        self._working: asyncio.Task[None] | None = None
        agent.record.on_change(self._look)

    async def run(self) -> None:
        while True:
            self._wake.clear()
            try:
                while (found := await self._next()) is not None:
                    await self._work(*found)
            except TidewireError as error:
                _log.error("a request could not be worked on; it is tried again", reason=str(error))
                await asyncio.sleep(_PAUSE_S)
                continue
            except Exception:  # noqa: BLE001 - the fork server: nothing else stops for it (I11)
                _log.exception("a request could not be worked on; it is tried again")
                await asyncio.sleep(_PAUSE_S)
                continue
            await self._wake.wait()

    def _look(self) -> None:
        """The manifest may have changed: what it no longer asks is worked on no more."""
        if self._at is not None and self._asked().get(self._at[0]) != self._at[1] and self._working is not None:
            self._working.cancel()
        self._wake.set()

    def _asked(self) -> Mapping[str, Request]:
        return self._record.manifest.requests

    async def _next(self) -> tuple[str, Request] | None:
        asked = self._asked()
        known = await self._store.forget_requests(asked)
        waiting = [(request.at, name) for name, request in asked.items() if name not in known]
        return (name, asked[name]) if (name := min(waiting, default=("", ""))[1]) else None

    async def _work(self, name: str, request: Request) -> None:
        self._at, self._working = (name, request), asyncio.create_task(self._answer(name, request))
        try:
            await asyncio.wait({self._working})
            if not self._working.cancelled():
                self._working.result()
        finally:
            self._working.cancel()
            self._at = self._working = None

    async def _answer(self, name: str, request: Request) -> None:
        open_ = sorted(self._asked())
        why = self._agent.policy.refuses_request(request.kind)
        if open_.index(name) >= REQUESTS_MAX:
            why = f"more than {REQUESTS_MAX} requests are open on this node"
        progress = await self._store.take_up(name)
        _log.info("request", id=name, kind=request.kind, by=request.by, refused=why)
        if why:
            await self._say(progress, request, "refused", why)
            return
        try:
            max_s = min(request.max_s, MAX_S)
            if request.kind == "tap":
                await self._tap(progress, request, max_s)
                return
            async with asyncio.timeout(max_s + _GRACE_S):
                await (self._query if request.kind == "query" else self._logs)(progress, request)
        except TimeoutError:
            await self._say(progress, request, "failed", f"stopped after {request.max_s:g} s")
        except _Died as died:
            await self._say(progress, request, "failed", str(died))
        except TidewireError as error:
            how = "refused" if isinstance(error, Refused) else "failed"
            await self._say(progress, request, how, error.cause + (f" ({error.hint})" if error.hint else ""))

    # The kinds

    async def _query(self, progress: Progress, request: Request) -> None:
        words = frozenset(re.findall(r"\w+", str(request.body.get("sql", "")).lower()))
        async with self._child(progress, request, "query") as child:
            skipped = await self._send_buffered(child, words)
            for table, rows in (await self._own_tables(words)).items():
                await child.channel.send({"type": "table", "name": table, "rows": rows})
            await child.channel.send({"type": "run", "skipped": skipped, "note": ""})
            await self._seal(child, progress)

    async def _send_buffered(self, child: RunnerProcess, words: frozenset[str]) -> int:
        """Hand over what waits for the lake of the tables that are named, the newest first; rows that are left out."""
        tables = await self._store.look(answers.tables)
        wanted = {table for table in tables if _is_named(table, words)}
        for pipeline in self._record.manifest.assignments:
            version = self._agent.version(pipeline)
            if version is not None and any(_is_named(table, words) for table in version.spec.lake_tables().values()):
                await child.channel.send({"type": "version"}, [version.canonical])
        skipped, left = 0, LOOKED_AT_BYTES_MAX
        for segment_id, table, rows, size in await self._store.look(lambda db: answers.buffered(db, wanted)):
            left -= size
            if left < 0:
                skipped += rows
            elif (payload := await self._store.look(lambda db, it=segment_id: answers.payload(db, it))) is not None:  # type: ignore[misc]
                await child.channel.send({"type": "part", "table": table, "rows": rows}, [payload])
        return skipped

    async def _own_tables(self, words: frozenset[str]) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        if "incidents" in words:
            found["incidents"] = await self._store.incidents()
        if "pipelines" in words:
            names = sorted({*self._record.manifest.assignments, *self._agent.keepers})
            found["pipelines"] = [self._pipeline(name) for name in names]
        if "quarantine" in words:
            found["quarantine"] = await self._kept()
        return found

    def _pipeline(self, name: str) -> dict[str, Any]:
        keeper, status = self._agent.keepers.get(name), self._agent.status_of(name)
        version = keeper.version if keeper else self._agent.version(name)
        told = {"version": version.number, "digest": version.digest} if version else {}
        params = dict(keeper.params) if keeper else {}
        return {"pipeline": name, "phase": status.phase, "reason": status.reason, "since": status.since, "params": params, **told}

    async def _kept(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        before = 2**62
        for _ in range(QUARANTINE_CHUNKS_MAX):
            chunk = await self._store.look(lambda db, it=before: answers.kept_chunk(db, it))  # type: ignore[misc]
            if chunk is None or len(rows) >= QUARANTINE_ROWS_MAX:
                break
            before = chunk[0]
            rows += [{"pipeline": chunk[1], **row} for row in reversed(chunk[3])]
        return rows[:QUARANTINE_ROWS_MAX]

    async def _logs(self, progress: Progress, request: Request) -> None:
        secrets = [secret.value for secret in self._agent.secrets.all().values()]
        lines = logs.recent(min(request.max_rows, logs.LINES_KEPT), str(request.body.get("pipeline", "")), secrets)
        await self._say(progress, request, "done", "", lines)

    async def _tap(self, progress: Progress, request: Request, max_s: float) -> None:
        """Its rows leave as they come, so an agent that starts again goes on with the next number for the time that is left."""
        pipeline = str(request.body.get("pipeline", ""))
        if pipeline not in self._agent.keepers:
            runs = ", ".join(sorted(self._agent.keepers)) or "none"
            raise Refused(f"{pipeline} does not run here", hint=f"what runs: {runs}")
        left_s = max_s - (self._store.clock.now_us() - progress.begun_us) / 1e6
        async with self._child(progress, request, "tap") as child:
            passing = Passing(pipeline)
            self._store.taps.add(passing)
            feeding = asyncio.create_task(_feed(child, passing, left_s))
            try:
                await self._seal(child, progress)
            finally:
                self._store.taps.discard(passing)
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    async def _say(
        self, progress: Progress, request: Request, how: str, note: str, lines: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """What the agent itself has to say, made into rows by a child: the agent has no Arrow."""
        progress = await self._store.take_up(progress.id)
        async with asyncio.timeout(MAX_S), self._child(progress, request, "tell") as child:
            for start in range(0, len(lines), _LINES_A_MESSAGE):
                some = [dict(line) for line in lines[start : start + _LINES_A_MESSAGE]]
                await child.channel.send({"type": "lines", "rows": some})
            await child.channel.send({"type": "run", "end": how, "note": note})
            await self._seal(child, progress)

    # The child

    @asynccontextmanager
    async def _child(self, progress: Progress, request: Request, kind: str) -> AsyncIterator[RunnerProcess]:
        """Raises `_Died` when it ended before its answer did."""
        child = await self._supervisor.start(f"request {progress.id}", ANSWERER, MEMORY_BYTES)
        limits = {
            "max_s": min(request.max_s, MAX_S),
            "max_rows": min(request.max_rows, MAX_ROWS),
            "max_bytes": min(request.max_bytes, MAX_BYTES),
        }
        start = {
            "type": "start",
            "id": progress.id,
            "kind": kind,
            "body": dict(request.body),
            "first": progress.rows + 1,
            **limits,
        }
        ended: EOFError | None = None
        try:
            await child.channel.send(start)
            yield child
        except EOFError as error:
            ended = error
        finally:
            child.kill()
            status = await child.wait()
        if ended is not None:
            raise _Died(_how_it_ended(status))

    async def _seal(self, child: RunnerProcess, progress: Progress) -> None:
        """What the child says, each part as it comes, until its answer is over."""
        is_over = False
        while not is_over:
            header, blobs = await child.channel.receive()
            is_over = header["is_over"]
            payloads = list(zip(header["sizes"], blobs, strict=True))
            await self._store.answer(progress.id, header["rows"], payloads, is_over=is_over)


class Passing:
    """The rows of a pipeline that passed through the store and wait for the child. Called by the store: it never waits."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._waiting: deque[Sealed] = deque()
        self._bytes = self.dropped = 0
        self._has_some = asyncio.Event()

    def __call__(self, pipeline: str, sealed: Iterable[Sealed]) -> None:
        for one in sealed if pipeline == self._pipeline else ():
            if one.kind != ROWS or not one.rows:
                continue
            if self._bytes + len(one.payload) > TAP_BYTES_MAX:
                self.dropped += one.rows
                continue
            self._bytes += len(one.payload)
            self._waiting.append(one)
            self._has_some.set()

    async def take(self) -> Sealed:
        while not self._waiting:
            self._has_some.clear()
            await self._has_some.wait()
        one = self._waiting.popleft()
        self._bytes -= len(one.payload)
        return one


async def _feed(child: RunnerProcess, passing: Passing, left_s: float) -> None:
    """Until the time is over. A child that is gone is noticed by whoever listens to it."""
    try:
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                while True:
                    one = await passing.take()
                    await child.channel.send({"type": "rows", "stream": one.stream}, [one.payload])
        except TimeoutError:
            said = f"{passing.dropped} rows passed too quickly to be looked at" if passing.dropped else ""
            await child.channel.send({"type": "stop", "note": said})
    except EOFError:
        return


def _is_named(table: str, words: Set[str]) -> bool:
    return table in words or table.removesuffix(LOG) in words


class _Died(Exception):
    pass


def _how_it_ended(status: int) -> str:
    if status in (-24, -9):  # SIGXCPU; the kernel's memory killer
        return "it took more time or memory than a request may have, and was killed"
    return (
        f"the process that worked on it ended with status {status}: it needs more memory than a request may have, or is a defect"
    )
