"""Send what lies after the confirmed mark. Catch up by position: ask where the lake stands, then send in order.

What goes next, and how much at once, is decided in sending.py; here it is done.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from edge_agent.forks import Break
from edge_agent.link import Link, LinkDown
from edge_agent.outbox import Mark, Pending
from edge_agent.sending import LANE_US, Allowance, Pace, Position, Run, Shares, lane_key, new_lanes, order
from edge_agent.store import Store
from pipelines.contract import subjects
from pipelines.contract.errors import Refused
from pipelines.contract.messages import Receipts, Upload

REQUESTS_MAX = 32  # under way; the window counts bytes, and a stream of small segments fills it with many
_HEADER_BYTES_MAX = 32 * 1024  # of a request, beside the segments
_ASKED_AT_ONCE = 500  # streams in one question
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.5, 30.0  # after `busy` or silence; starts over with the first success
_AWAY_S = 2.0  # a link that was down longer is another one, not our own connecting anew after time-outs: no more pause
_LANES_AFTER_S, _LANES_EVERY_S = 5.0, 1.0  # of catching up: the rate is then known
_LANES = "lanes"  # in the store: when each stream last started a lane
_BUSY = "busy"  # the control plane's word for: later
_PAST_ALL = 1 << 62  # a position after every segment
_log = structlog.get_logger("uplink")


@dataclass(frozen=True, slots=True)
class _Request:
    """Segments under way; `delivered` is what had arrived in all when it left, at `sent_s`."""

    batch: Sequence[Pending]
    size: int
    is_urgent: bool
    delivered: int
    sent_s: float


class Uplink:
    """One loop. `wake` it after a commit and when the link changed; it is idle otherwise. `bytes_per_s`: its cap, 0 for none."""

    def __init__(self, store: Store, link: Link, node: str, control: str, timeout_s: float, bytes_per_s: int = 0) -> None:
        self._store, self._link, self._node, self._control = store, link, node, control
        self._wake, self._came_back = asyncio.Event(), asyncio.Event()
        self._pace, self._shares, self._allowance = Pace(timeout_s), Shares(), Allowance(bytes_per_s)
        self._under_way: dict[asyncio.Task[None], _Request] = {}
        self._runs: list[Run] = []  # that had segments to send when it was last looked
        self._has_more = False  # of them than the window takes
        self._delivered = 0  # bytes, since the start
        self._pause_s = 0.0
        self._has_asked = False  # on this connection
        self._one_by_one = False  # a batch of several streams was not taken: find out whose fault it is
        self._stuck: dict[Position, str] = {}  # streams that the control plane does not take now, and why
        self._lanes_at_s = 0.0  # when to see next whether a stream needs a new run
        self._down_since_s = math.inf
        self.trouble = ""  # what the control plane last said against our segments
        link.on_change(self._on_link)

    def wake(self) -> None:
        self._wake.set()

    @property
    def stats(self) -> dict[str, Any]:
        """For `status`: bytes, bytes/s and seconds."""
        return {
            "window": int(self._pace.window),
            "under_way": self._size_under_way,
            "rate": int(self._pace.rate),
            "round_trip_s": round(self._pace.round_trip_s, 3),
            "pause_s": round(self._pause_s, 1),
            "cap": int(self._allowance.rate),
            "backlogs": len({(run.pipeline, run.stream) for run in self._runs if not run.is_active}),
        }

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
                self._has_asked = False  # ask, never resend blindly (I3)
                self._back_off(str(error))
            if self._pause_s:
                await self._pause()
                self._wake.set()

    async def _pause(self) -> None:
        """Jittered, so that a fleet does not come back in step; over at once when the link was away and is back."""
        self._came_back.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - no secret
                await self._came_back.wait()

    async def _catch_up(self) -> None:
        """Until the outbox is empty. Raises when something did not go as expected: the next step is a question then."""
        self._stuck = {}
        is_done = False
        while not is_done:
            if not self._has_asked:
                self._has_asked = True
                await self._ask(await self._store.open_positions())
                self._lanes_at_s = _now_s() + _LANES_AFTER_S
            is_done = not (await self._send_all() or await self._settle_forks())
        if self._stuck:
            raise LinkDown("; ".join(sorted(set(self._stuck.values()))[:3]), op="upload")
        self._one_by_one = False
        self._pause_s, self.trouble = 0.0, ""  # also when there was nothing to ask or to send

    async def _send_all(self) -> bool:
        """Keep the window full until all is sent and confirmed, or it is to be asked first; whether there was anything."""
        sent = dict.fromkeys(self._stuck, _PAST_ALL)
        has_sent = False
        try:
            while True:
                self._wake.clear()
                self._reap()
                if not self._has_asked:
                    return True  # connected anew: ask first
                sent |= dict.fromkeys(self._stuck, _PAST_ALL)
                while batch := await self._next_batch(sent):
                    self._launch(batch)
                    has_sent = True
                held_s = self._allowance.wait_s(_now_s())
                if not self._under_way and not (held_s and self._has_more):
                    return has_sent
                await self._start_lanes()
                with suppress(TimeoutError):
                    async with asyncio.timeout(held_s or None):
                        await self._wake.wait()
        finally:
            await asyncio.gather(*self._under_way, return_exceptions=True)
            self._under_way.clear()

    def _launch(self, request: _Request) -> None:
        task = asyncio.create_task(self._send(request))
        self._under_way[task] = request
        task.add_done_callback(lambda _: self._wake.set())

    def _reap(self) -> None:
        """Forget the requests that were answered. Raises what went wrong with one."""
        for task in [task for task in self._under_way if task.done()]:
            del self._under_way[task]
            task.result()

    @property
    def _size_under_way(self) -> int:
        return sum(request.size for request in self._under_way.values())

    async def _next_batch(self, sent: dict[Position, int]) -> _Request | None:
        """What to send now; `sent` and the shares then count it. Incidents and ledgers wait for neither window nor cap."""
        is_full = self._size_under_way >= self._pace.window or len(self._under_way) >= REQUESTS_MAX
        is_held = self._allowance.wait_s(_now_s()) > 0
        if (is_full or is_held) and any(request.is_urgent for request in self._under_way.values()):
            return None
        shares, taken = self._shares, dict(sent)
        one_by_one, plans = self._one_by_one, list[tuple[list[Run], list[Run]]]()

        def plan(found: list[Run]) -> list[Run]:
            picked = order(found, taken, shares, urgent_only=is_full or is_held)
            picked = picked[:1] if one_by_one else picked
            plans.append((found, picked))
            return picked

        most = min(self._link.payload_bytes_max - _HEADER_BYTES_MAX, self._allowance.request_bytes)
        batch = await self._store.take(plan, sent, self._pace.request_bytes(most))
        self._runs, picked = plans[-1]
        self._has_more = bool(order(self._runs, taken, shares))
        if not batch:
            return None
        sizes: dict[Run, int] = {}
        runs = {run.position: run for run in picked}
        for pending in batch:
            run = runs[pending.run, pending.stream]
            sent[run.position] = pending.seq
            sizes[run] = sizes.get(run, 0) + len(pending.data)
        size = sum(sizes.values())
        self._shares = self._shares.served(sizes)
        self._allowance = self._allowance.spent(size, _now_s())
        return _Request(batch, size, picked[0].is_urgent, self._delivered, _now_s())

    async def _send(self, request: _Request) -> None:
        """Raises `LinkDown` unless the lake now holds all of it, or it is known which stream it does not take."""
        timeout_s = self._pace.timeout_s(self._size_under_way)
        receipts = await self._request(Upload(self._node, _nonce()), [pending.data for pending in request.batch], timeout_s)
        marks = [Mark(*mark) for mark in receipts.marks]
        await self._confirm(marks, asked=False)
        reached = {(mark.run, mark.stream): mark.seq for mark in marks}
        if receipts.error or any(reached.get((p.run, p.stream), 0) < p.seq for p in request.batch):
            self._blame(request.batch, receipts.error or "the lake did not take all of it")
            return
        took_s = max(_now_s() - request.sent_s, 1e-6)
        self._delivered += request.size
        rate = (self._delivered - request.delivered) / took_s
        self._pace = self._pace.succeeded(request.size, took_s, rate, is_full=self._has_more)
        self._pause_s, self.trouble = 0.0, ""

    def _blame(self, batch: Sequence[Pending], error: str) -> None:
        """A stream that is not taken must not hold up the others: it waits for the next catch-up. Raises `LinkDown` in doubt."""
        streams = {(pending.run, pending.stream) for pending in batch}
        if error == _BUSY or len(streams) > 1:
            self._one_by_one |= error != _BUSY
            raise LinkDown(error, op="upload")
        self._stuck |= dict.fromkeys(streams, error)

    async def _start_lanes(self) -> None:
        """End the runs whose backlog takes long, so that what is sealed from now on flows beside it (70:30)."""
        now_s = _now_s()
        if not self._pace.rate or now_s < self._lanes_at_s:
            return
        self._lanes_at_s = now_s + _LANES_EVERY_S
        now_us = self._store.clock.now_us()
        last_us: Mapping[str, int] = await self._store.get(_LANES)
        for run in new_lanes(self._runs, self._pace.rate, now_us, last_us):
            last_us = {**{key: at for key, at in last_us.items() if now_us - at < LANE_US}, lane_key(run): now_us}
            await self._store.put(_LANES, last_us)  # first: a crash in between costs an hour, not a run per life
            await self._store.end_run(run.pipeline, run.stream)
            _log.info("a backlog drains beside what is new", pipeline=run.pipeline, stream=run.stream, bytes=run.bytes)

    async def _ask(self, positions: Sequence[Position]) -> None:
        """Where the lake stands. Nothing is in flight, so the answers are final."""
        for start in range(0, len(positions), _ASKED_AT_ONCE):
            asked = [list(position) for position in positions[start : start + _ASKED_AT_ONCE]]
            receipts = await self._request(Upload(self._node, _nonce(), streams=asked))
            if receipts.error and not receipts.marks:
                raise LinkDown(receipts.error, op="ask for marks")
            await self._confirm([Mark(*mark) for mark in receipts.marks], asked=True)
        await self._settle_forks()

    async def _settle_forks(self) -> bool:
        """Find out what the lake has of the histories that are not ours alone, part by part; whether there were any."""
        has_settled = False
        while doubts := await self._store.doubtful():
            for doubt in doubts:
                question = Upload(self._node, _nonce(), digests=[[doubt.run, doubt.stream, doubt.first, doubt.last]])
                receipts = await self._request(question)
                if receipts.error:
                    raise LinkDown(receipts.error, op="ask for digests")
                links = [(run, stream, seq, link) for run, stream, seq, link in receipts.digests]
                for broken in await self._store.settle_fork([doubt], links):
                    _report(broken)
            has_settled = True
        return has_settled

    async def _confirm(self, marks: Sequence[Mark], *, asked: bool) -> None:
        for broken in await self._store.confirm(marks, asked=asked):
            _report(broken)
            self.wake()

    async def _request(self, request: Upload, blobs: Sequence[bytes] = (), timeout_s: float = 0.0) -> Receipts:
        timeout_s = timeout_s or self._pace.timeout_s(0)
        data = await self._link.request(subjects.data(self._node), request.pack(blobs), timeout_s)
        receipts, _ = Receipts.unseal(self._control, data)
        if (receipts.nonce, receipts.node) != (request.nonce, self._node):
            raise Refused("the answer belongs to another question", op="upload", place=self._node)
        for run, stream, seq, reason in receipts.refused:
            _log.error("the control plane refused a segment and keeps it aside", run=run, stream=stream, seq=seq, reason=reason)
        return receipts

    def _on_link(self) -> None:
        now_s = _now_s()
        if not self._link.is_up:
            self._down_since_s = min(self._down_since_s, now_s)
        else:
            if now_s - self._down_since_s > _AWAY_S:
                self._pause_s = 0.0
                self._came_back.set()
            self._down_since_s, self._pace = math.inf, self._pace.restarted()
        self._has_asked = False
        self._wake.set()

    def _back_off(self, reason: str) -> None:
        self.trouble = reason
        self._pace = self._pace.troubled()
        if self._link.is_up:  # a link that comes and goes is no reason to wait longer; a lake that is slow is
            self._pause_s = min(max(self._pause_s * 2, _PAUSE_FIRST_S), _PAUSE_MAX_S)
        _log.info("upload waits", reason=reason, pause_s=self._pause_s)


def _nonce() -> str:
    return secrets.token_hex(8)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _report(broken: Break) -> None:
    words = {"reason": broken.reason, "run": broken.run, "stream": broken.stream}
    if broken.is_security:
        _log.error("security: this node's history forked (a restored or cloned card?); going on under a new run", **words)
    else:
        _log.warning("the lake lost what it had confirmed; going on under a new run", **words)
