"""Uploads as requests, lake commits in groups, receipts as replies (I3). Never blocks the loop; full means `busy`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from nats.aio.msg import Msg

from control_plane.bus import Bus
from control_plane.settle import RANGES_MAX, Opened, Outcome, Settler, Upload, open_upload
from control_plane.store import now_us
from control_plane.upkeep import Upkeep
from pipelines.contract import messages
from pipelines.contract.errors import Refused
from pipelines.contract.keys import Key
from pipelines.contract.segment import StreamKey

log = structlog.get_logger()
T = TypeVar("T")

GROUP_WAIT_S = 0.05
GROUP_SEGMENTS_MAX = 128
QUEUE_BYTES_MAX = 64 * 1024 * 1024  # above, nodes are told to come back
BUSY = "busy"
STREAMS_MAX, BLOBS_MAX = 500, 128  # of one request
UPKEEP_EVERY_S = 10.0
_ERRORS_TOLD_MAX = 3


@dataclass(frozen=True)
class _Waiting:
    message: Msg
    request: messages.Upload
    upload: Opened
    size: int  # bytes

    @property
    def node(self) -> str:
        return self.upload.upload.node


class Ingest:
    """`lookup` gives a node's public key (None: unknown); `report` takes (node, security event).

    Three threads unless told otherwise: `lake` alone has the settler, `opener` checks what arrives beside it, `keeper` tidies.
    """

    def __init__(
        self,
        settler: Settler,
        bus: Bus,
        control: Key,
        lookup: Callable[[str], Awaitable[str | None]],
        report: Callable[[str, str], Awaitable[None]],
        upkeep: Upkeep | None = None,
        executors: Callable[[str], Executor] = lambda name: ThreadPoolExecutor(1, name),
    ) -> None:
        self._settler, self._bus, self._control = settler, bus, control
        self._lookup, self._report = lookup, report
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._queued_bytes = 0
        self._upkeep = upkeep
        self._thread, self._opener, self._keeper = executors("lake"), executors("opener"), executors("keeper")

    async def handle(self, node: str, message: Msg) -> None:
        """Queue an upload; its answer follows its commit."""
        try:
            request, blobs = messages.Upload.unpack(message.data)
            streams = [StreamKey(node, run, stream) for run, stream in request.streams]
            ranges = [(StreamKey(node, str(run), str(stream)), int(a), int(b)) for run, stream, a, b in request.digests]
        except (Refused, ValueError, TypeError) as error:
            log.warning("upload: not readable", node=node, cause=str(error))
            return
        public = await self._lookup(node)
        size = sum(map(len, blobs))
        if public is None or request.node != node:
            problem = "this node is not enrolled here"
        elif len(streams) > STREAMS_MAX or len(blobs) > BLOBS_MAX or len(ranges) > RANGES_MAX:
            problem = f"more than {STREAMS_MAX} streams, {BLOBS_MAX} segments or {RANGES_MAX} ranges in one request"
        elif self._queued_bytes + size > QUEUE_BYTES_MAX:
            problem = BUSY
        else:
            self._queued_bytes += size
            upload = await self._in(self._opener, open_upload, Upload(node, public, blobs, streams, ranges))
            self._queue.put_nowait(_Waiting(message, request, upload, size))
            return
        await self._answer(node, message, messages.Receipts(request.nonce, error=problem, node=node))

    async def run(self) -> None:
        keeping = asyncio.create_task(self._keep())
        try:
            while True:
                group = await self._next_group()
                outcomes = await asyncio.shield(self._settle(group))
                for waiting, outcome in zip(group, outcomes, strict=True):
                    await self._try_reply(waiting, outcome)
        finally:
            keeping.cancel()
            for executor in (self._opener, self._keeper, self._thread):
                executor.shutdown()  # waits for what is under way

    async def retake(self, digests: Collection[str] | None) -> dict[str, str]:
        """See `Settler.retake`."""
        return await self._in(self._thread, self._settler.retake, digests, now_us())

    async def refused(self) -> list[dict[str, Any]]:
        return await self._in(self._thread, self._settler.refused)

    async def _keep(self) -> None:
        while self._upkeep is not None:
            await asyncio.sleep(UPKEEP_EVERY_S)
            await self._in(self._keeper, self._upkeep.step)

    async def _in(self, executor: Executor, do: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, do, *args)

    async def _next_group(self) -> list[_Waiting]:
        group = [await self._queue.get()]
        deadline = time.monotonic() + GROUP_WAIT_S
        while sum(len(w.upload.upload.blobs) for w in group) < GROUP_SEGMENTS_MAX and (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):  # `wait_for` may swallow our cancellation in Python 3.11
                    group.append(await self._queue.get())
            except TimeoutError:
                break
        self._queued_bytes -= sum(waiting.size for waiting in group)
        return group

    async def _settle(self, group: list[_Waiting]) -> list[Outcome]:
        uploads = [waiting.upload for waiting in group]
        try:
            return await self._in(self._thread, self._settler.settle, uploads, now_us())
        except OSError as error:  # the disk is full, or fails: no defect of ours
            reason = str(error).partition("\n")[0]
            log.error("ingest: a group could not be stored", reason=reason)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            log.exception("ingest: a group could not be stored")
        return [Outcome(errors=[f"the lake cannot store now: {reason}"]) for _ in group]

    async def _try_reply(self, waiting: _Waiting, outcome: Outcome) -> None:
        """What one node makes us fail at must not end the others' ingest; a node without an answer asks again (I7)."""
        try:
            await self._reply(waiting, outcome)
        except Exception:
            log.exception("ingest: no reply", node=waiting.node)

    async def _reply(self, waiting: _Waiting, outcome: Outcome) -> None:
        node = waiting.node
        for event in outcome.security[:_ERRORS_TOLD_MAX]:
            await self._report(node, event)
        marks = [[key.run, key.stream, mark.seq, mark.digest, mark.rows, mark.stored] for key, mark in outcome.marks.items()]
        refused = [[key.run, key.stream, seq, reason] for key, seq, reason in outcome.refused]
        error = "; ".join(outcome.errors[:_ERRORS_TOLD_MAX])
        links = [[key.run, key.stream, seq, link] for key, seq, link in outcome.links]
        receipts = messages.Receipts(waiting.request.nonce, marks, refused, error, node, links)
        await self._answer(node, waiting.message, receipts)

    async def _answer(self, node: str, message: Msg, receipts: messages.Receipts) -> None:
        await self._bus.answer(message, node, receipts.seal(self._control))
