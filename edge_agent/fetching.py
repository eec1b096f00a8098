"""Fetch artifacts by digest, chunk by chunk: each goes on where it was cut, for as long as it is wanted."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from edge_agent.artifacts import Artifacts, Beginning
from edge_agent.config import Identity
from edge_agent.link import Link, LinkDown
from pipelines.contract import causes, subjects
from pipelines.contract.artifact import ARTIFACT_BYTES_MAX, CHUNK_BYTES_MAX, PIPELINE_VERSION, check_released
from pipelines.contract.errors import Refused
from pipelines.contract.messages import ArtifactReply, ArtifactRequest

CHUNK_BYTES_MIN, CHUNK_BYTES_FIRST = 16 * 1024, 128 * 1024
CHUNK_S = 1.0  # about how long one takes: heartbeats and exchanges come between two
PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 60.0
_log = structlog.get_logger("fetch")


@dataclass(slots=True)
class Fetch:
    """One under way. `bytes` of `size` are here (0: not known yet); `trouble` and `code` say why it does not move on."""

    digest: str
    kind: str
    bytes: int = 0
    size: int = 0
    trouble: str = ""
    code: str = ""
    failures: int = 0  # in a row


class Fetcher:
    """`want` says what; a version does not wait for tables, tables come one after another."""

    def __init__(
        self, artifacts: Artifacts, identity: Identity, link: Link, request_timeout_s: float, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called when something came, and when the trouble of a fetch is another; not as bytes come."""
        self._artifacts, self._identity, self._link = artifacts, identity, link
        self._timeout_s, self._on_change = request_timeout_s, on_change
        self.under_way: dict[str, Fetch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._table = asyncio.Lock()
        self._chunk_bytes = CHUNK_BYTES_FIRST
        self._is_up = asyncio.Event()
        self._link_changed()
        link.on_change(self._link_changed)

    def want(self, wanted: Mapping[str, str], tasks: asyncio.TaskGroup) -> None:
        """Exactly these: digest -> kind."""
        for digest in self.under_way.keys() - wanted.keys():
            self.under_way.pop(digest)
            self._tasks.pop(digest).cancel()
        for digest in wanted.keys() - self.under_way.keys():
            fetch = self.under_way[digest] = Fetch(digest, wanted[digest])
            self._tasks[digest] = tasks.create_task(self._run(fetch))

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _run(self, fetch: Fetch) -> None:
        while not await self._attempt(fetch):
            await self._pause(fetch)
        if self.under_way.get(fetch.digest) is fetch:
            del self.under_way[fetch.digest], self._tasks[fetch.digest]
        self._on_change()

    async def _attempt(self, fetch: Fetch) -> bool:
        """Whether it is here now, verified."""
        before = fetch.bytes
        try:
            if fetch.kind == PIPELINE_VERSION:
                await self._pull(fetch)
            else:
                async with self._table:
                    await self._pull(fetch)
        except (LinkDown, Refused) as error:
            fetch.failures = 0 if fetch.bytes > before else fetch.failures + 1
            trouble = "the control plane is out of reach" if isinstance(error, LinkDown) else error.cause
            code = error.code or (causes.FETCHING if fetch.kind == PIPELINE_VERSION else causes.ARTIFACT_MISSING)
            if (fetch.trouble, fetch.code) != (trouble, code):
                _log.warning("an artifact does not come", digest=fetch.digest, bytes=fetch.bytes, reason=str(error))
                fetch.trouble, fetch.code = trouble, code
                self._on_change()
            return False
        except Exception as error:  # noqa: BLE001 - a card that fails to read, say: it is no reason to end the agent (I11)
            _log.exception("a fetch failed", digest=fetch.digest)
            fetch.failures, fetch.trouble, fetch.code = fetch.failures + 1, f"{error}", causes.STORE_FULL
            self._on_change()
            return False
        return True

    async def _pull(self, fetch: Fetch) -> None:
        """From where it was cut to the end. Raises `LinkDown`, or `Refused`, with what came kept unless it is wrong."""
        beginning = self._artifacts.beginning(fetch.digest)
        await asyncio.to_thread(beginning.load)
        fetch.bytes = beginning.offset
        if beginning.offset:
            _log.info("going on with a fetch", digest=fetch.digest, bytes=beginning.offset)
        while True:
            reply, chunk, signature = await self._chunk(fetch, beginning)
            if reply.size != fetch.size:
                await self._artifacts.make_room(fetch.digest, reply.size)
                fetch.size = reply.size
            if chunk:
                await asyncio.to_thread(beginning.append, chunk)
                fetch.bytes = beginning.offset
                self._moves_on(fetch)
            if beginning.offset == reply.size:
                break
            if not chunk or beginning.offset > reply.size:
                await self._throw_away(fetch, beginning, f"it does not end after {reply.size} bytes")
        try:
            await self._artifacts.finish(beginning, fetch.digest, reply.kind, reply.number, signature)
        finally:
            fetch.bytes = beginning.offset
        _log.info("an artifact came", digest=fetch.digest, kind=reply.kind, number=reply.number, bytes=reply.size)

    async def _chunk(self, fetch: Fetch, beginning: Beginning) -> tuple[ArtifactReply, bytes, bytes]:
        """The next one, of about the size that the link carries in `CHUNK_S`."""
        node, asked_s = self._identity.node, time.monotonic()
        request = ArtifactRequest(node, secrets.token_hex(8), fetch.digest, beginning.offset, self._chunk_bytes)
        try:
            raw = await self._link.request(subjects.artifact(node), request.pack(), self._timeout_s)
        except LinkDown:
            self._chunk_bytes = max(self._chunk_bytes // 4, CHUNK_BYTES_MIN)
            raise
        took_s = time.monotonic() - asked_s
        if took_s > CHUNK_S:
            self._chunk_bytes = max(self._chunk_bytes // 2, CHUNK_BYTES_MIN)
        elif took_s < CHUNK_S / 4:
            self._chunk_bytes = min(self._chunk_bytes * 2, CHUNK_BYTES_MAX)
        reply, blobs = ArtifactReply.unseal(self._identity.control, raw)
        if (reply.nonce, reply.node) != (request.nonce, node):
            raise Refused("not an answer to what was asked", op="fetch", place=fetch.digest)
        if reply.error and beginning.offset:
            await self._throw_away(fetch, beginning, reply.error)
        if reply.error or len(blobs) != 2 or not 0 <= reply.size <= ARTIFACT_BYTES_MAX:
            raise Refused(reply.error or f"it is said to have {reply.size} bytes", op="fetch", place=fetch.digest)
        if reply.kind != fetch.kind:
            raise Refused(f"it is a {reply.kind}, not a {fetch.kind}", op="fetch", place=fetch.digest, code=causes.SIGNATURE)
        check_released(reply.kind, fetch.digest, blobs[1], self._identity.author)  # before a byte of it is stored
        return reply, blobs[0], blobs[1]

    async def _throw_away(self, fetch: Fetch, beginning: Beginning, why: str) -> None:
        await asyncio.to_thread(beginning.discard)
        fetch.bytes = 0
        raise Refused(f"{why}; what came is thrown away", op="fetch", place=fetch.digest, code=causes.SIGNATURE)

    def _moves_on(self, fetch: Fetch) -> None:
        """Wrong bytes are still said while they come once more."""
        if fetch.trouble and fetch.code != causes.SIGNATURE:
            fetch.trouble = fetch.code = ""
            self._on_change()

    async def _pause(self, fetch: Fetch) -> None:
        """Longer each time; over at once when the link comes back, which says nothing of what was refused."""
        pause_s = min(PAUSE_FIRST_S * 2 ** min(max(fetch.failures - 1, 0), 16), PAUSE_MAX_S)
        if self._link.is_up:
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads a fleet
        else:
            await self._is_up.wait()

    def _link_changed(self) -> None:
        (self._is_up.set if self._link.is_up else self._is_up.clear)()
