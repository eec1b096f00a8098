"""Send what lies after the confirmed mark. Catch up by position: ask where the lake stands, then send in order."""

from __future__ import annotations

import asyncio
import random
import secrets
import sqlite3
from collections.abc import Sequence

import structlog

from edge_agent.link import Link, LinkDown
from edge_agent.outbox import Break, Mark, Pending
from edge_agent.store import Store
from pipelines.contract import subjects
from pipelines.contract.errors import Refused
from pipelines.contract.messages import Receipts, Upload

REQUEST_BYTES = 700 * 1024  # of segments in one request: below NATS's default payload limit of 1 MiB
WINDOW_FIRST, WINDOW_MAX = 2, 16  # requests in flight
_ASKED_AT_ONCE = 500  # streams in one question
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.5, 30.0  # after `busy`; starts over with the first success
_BUSY = "busy"  # the control plane's word for: later
_PAST_ALL = 1 << 62  # a position after every segment
_log = structlog.get_logger("uplink")


class Uplink:
    """One loop. `wake` it after a commit and when the link changed; it is idle otherwise."""

    def __init__(self, store: Store, link: Link, node: str, control: str, timeout_s: float) -> None:
        self._store, self._link, self._node, self._control, self._timeout_s = store, link, node, control, timeout_s
        self._wake = asyncio.Event()
        self._window = float(WINDOW_FIRST)
        self._pause_s = 0.0
        self._has_asked = False  # on this connection
        self._one_by_one = False  # a batch of several streams was not taken: find out whose fault it is
        self._stuck: dict[tuple[str, str], str] = {}  # streams that the control plane does not take now, and why
        self.trouble = ""  # what the control plane last said against our segments
        link.on_change(self._on_link)

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._link.is_up:
                continue
            try:
                await self._store.reseal()  # what a former life left half moved
                await self._catch_up()
            except (LinkDown, Refused, sqlite3.Error) as error:
                self._back_off(str(error))
            if self._pause_s:
                await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads a fleet; no secret
                self._wake.set()

    async def _catch_up(self) -> None:
        """Until the outbox is empty. Raises when something did not go as expected: the next step is a question then."""
        if not self._has_asked:
            await self._ask(await self._store.open_positions())
            self._has_asked = True
        self._stuck = {}
        while await self._send_in_order() or await self._store.void_damaged():
            pass
        if self._stuck:
            self._has_asked = False
            raise LinkDown("; ".join(sorted(set(self._stuck.values()))[:3]), op="upload")
        self._one_by_one = False
        if left := await self._store.open_positions(pending_only=True):
            await self._ask(left)  # what lost its bytes: did it arrive before it did?

    async def _send_in_order(self) -> bool:
        """Keep the window full until all is sent and confirmed; whether there was anything."""
        sent = dict.fromkeys(self._stuck, _PAST_ALL)
        has_sent = False
        flying: set[asyncio.Task[None]] = set()
        done: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(flying) < int(self._window) and (batch := await self._next_batch(sent)):
                    sent |= {(p.run, p.stream): p.seq for p in batch}
                    flying.add(asyncio.create_task(self._send(batch)))
                    has_sent = True
                if not flying:
                    return has_sent
                done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                sent |= dict.fromkeys(self._stuck, _PAST_ALL)
        except (LinkDown, Refused):
            self._has_asked = False  # ask, never resend blindly (I3)
            raise
        finally:
            await asyncio.gather(*flying, *done, return_exceptions=True)

    async def _next_batch(self, sent: dict[tuple[str, str], int]) -> list[Pending]:
        if self._one_by_one:
            return await self._store.pending_segments(REQUEST_BYTES, sent, streams_max=1)
        return await self._store.pending_segments(REQUEST_BYTES, sent)

    async def _send(self, batch: Sequence[Pending]) -> None:
        """Raises `LinkDown` unless the lake now holds all of it, or it is known which stream it does not take."""
        receipts = await self._request([], [pending.data for pending in batch])
        marks = [Mark(*mark) for mark in receipts.marks]
        await self._confirm(marks, asked=False)
        reached = {(mark.run, mark.stream): mark.seq for mark in marks}
        if receipts.error or any(reached.get((p.run, p.stream), 0) < p.seq for p in batch):
            self._blame(batch, receipts.error or "the lake did not take all of it")
            return
        self._window = min(self._window + 1 / self._window, WINDOW_MAX)
        self._pause_s, self.trouble = 0.0, ""

    def _blame(self, batch: Sequence[Pending], error: str) -> None:
        """A stream that is not taken must not hold up the others: it waits for the next catch-up. Raises `LinkDown` in doubt."""
        streams = {(pending.run, pending.stream) for pending in batch}
        if error == _BUSY or len(streams) > 1:
            self._one_by_one |= error != _BUSY
            raise LinkDown(error, op="upload")
        self._stuck |= dict.fromkeys(streams, error)

    async def _ask(self, positions: Sequence[tuple[str, str]]) -> None:
        """Where the lake stands. Nothing is in flight, so the answers are final."""
        for start in range(0, len(positions), _ASKED_AT_ONCE):
            receipts = await self._request([list(position) for position in positions[start : start + _ASKED_AT_ONCE]], [])
            if receipts.error and not receipts.marks:
                raise LinkDown(receipts.error, op="ask for marks")
            await self._confirm([Mark(*mark) for mark in receipts.marks], asked=True)

    async def _confirm(self, marks: Sequence[Mark], *, asked: bool) -> None:
        for broken in await self._store.confirm(marks, asked=asked):
            _report(broken)
            self.wake()

    async def _request(self, streams: list[list[str]], blobs: Sequence[bytes]) -> Receipts:
        request = Upload(self._node, secrets.token_hex(8), streams)
        data = await self._link.request(subjects.data(self._node), request.pack(blobs), self._timeout_s)
        receipts, _ = Receipts.unseal(self._control, data)
        if (receipts.nonce, receipts.node) != (request.nonce, self._node):
            raise Refused("the answer belongs to another question", op="upload", place=self._node)
        for run, stream, seq, reason in receipts.refused:
            _log.error("the control plane refused a segment and keeps it aside", run=run, stream=stream, seq=seq, reason=reason)
        return receipts

    def _on_link(self) -> None:
        self._has_asked = False
        self._wake.set()

    def _back_off(self, reason: str) -> None:
        self.trouble = reason
        self._window = max(1.0, self._window / 2)
        if self._link.is_up:  # a link that comes and goes is no reason to wait longer; a lake that is slow is
            self._pause_s = min(max(self._pause_s * 2, _PAUSE_FIRST_S), _PAUSE_MAX_S)
        _log.info("upload waits", reason=reason, pause_s=self._pause_s)


def _report(broken: Break) -> None:
    words = {"reason": broken.reason, "run": broken.run, "stream": broken.stream}
    if broken.is_security:
        _log.error("security: this node's history forked (a restored or cloned card?); going on under a new run", **words)
    else:
        _log.warning("the lake lost what it had confirmed; going on under a new run", **words)
