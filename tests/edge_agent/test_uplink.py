"""The uplink against a lake that refuses, is slow, or is asked to take what the disk has damaged."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support import NODE, new_key, open_store, until

from edge_agent import uplink as uplink_module
from edge_agent.link import LinkDown
from edge_agent.outbox import Sealed
from edge_agent.store import Commit, Store
from edge_agent.uplink import Uplink
from pipelines.contract import messages
from pipelines.contract.errors import Refused
from pipelines.contract.segment import Segment, decode


class Peer:
    """A link with a control plane at its end that keeps segments in memory. `refuses` names streams that it does not take."""

    def __init__(self) -> None:
        self.is_up, self.key, self.node_key = True, new_key(), new_key()
        self.runs: dict[tuple[str, str], list[Segment]] = {}
        self.refuses: set[str] = set()
        self.requests = 0
        self.names = NODE  # whom its answers name
        self.blobs_max = 0
        self.is_silent = False
        self.on_link: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        self.on_link.append(callback)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        self.requests += 1
        if self.is_silent:
            raise LinkDown("no answer")
        request, blobs = messages.Upload.unpack(data)
        self.blobs_max = max(self.blobs_max, len(blobs))
        errors, touched = [], [(run, stream) for run, stream in request.streams]
        for blob in blobs:
            try:
                touched.append(self._store(decode(blob, self.node_key.public)))
            except Refused as error:
                errors.append(str(error))
        marks = [[*key, len(held), held[-1].digest if held else ""] for key in touched for held in [self.runs.get(key, [])]]
        return self._reply(request.nonce, marks, "; ".join(errors))

    def _reply(self, nonce: str, marks: list[list[object]], error: str) -> bytes:
        return messages.Receipts(nonce, marks, error=error, node=self.names).seal(self.key)

    def _store(self, segment: Segment) -> tuple[str, str]:
        key = (segment.header.run, segment.header.stream)
        held = self.runs.setdefault(key, [])
        if segment.header.stream in self.refuses:
            raise Refused("not this one")
        if segment.header.seq == len(held) + 1 and segment.header.previous == (held[-1].digest if held else ""):
            held.append(segment)
        return key

    def numbers(self, stream: str = "numbers") -> list[int]:
        return sorted(n for (_, s), run in self.runs.items() if s == stream for g in run for n in json.loads(g.payload))

    async def publish(self, subject: str, data: bytes) -> None: ...
    async def run(self) -> None: ...
    def on_message(self, subject: str, callback: Callable[[], None]) -> None: ...


async def put(store: Store, *numbers: int, stream: str = "numbers") -> None:
    await store.checkpoint(stream)
    sealed = [Sealed(stream, "rows", "t", 1, json.dumps([n]).encode() + b" " * 40) for n in numbers]
    await store.commit(stream, "sha256:v", 1, Commit({}, {}, sealed=sealed))


async def flip_a_bit(store: Store, seq: int, stream: str = "numbers", *, at: float = 0.99) -> None:
    def flip(db: sqlite3.Connection) -> None:
        [(row, data)] = db.execute(
            "SELECT o.id, o.data FROM outbox o JOIN streams s ON s.id = o.stream_id WHERE o.seq = ? AND s.stream = ?",
            (seq, stream),
        ).fetchall()
        changed = bytearray(data)
        changed[int(len(changed) * at)] ^= 1
        db.execute("UPDATE outbox SET data = ? WHERE id = ?", (bytes(changed), row))

    await store._write(flip)


def with_uplink(tmp_path: Path, test: Callable[[Store, Peer, Uplink], Awaitable[None]]) -> None:
    async def go(store: Store, peer: Peer) -> None:
        uplink = Uplink(store, peer, NODE, peer.key.public, 5)
        running = asyncio.create_task(uplink.run())
        store.on_commit(uplink.wake)
        uplink.wake()
        try:
            async with asyncio.timeout(30):
                await test(store, peer, uplink)
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    peer = Peer()
    with open_store(tmp_path, peer.node_key) as store:
        asyncio.run(go(store, peer))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "_PAUSE_FIRST_S", 0.02)


async def drained(store: Store) -> bool:
    return not (await store.backlog()).segments


@pytest.mark.parametrize("at", [0.02, 0.3, 0.99], ids=["signature", "header", "payload"])
@pytest.mark.parametrize("seq", [1, 4, 8])
def test_i4_a_damaged_segment_costs_itself_and_is_counted(tmp_path: Path, seq: int, at: float) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up = False
        await put(store, *range(8))
        await put(store, 7, stream="other")
        await flip_a_bit(store, seq, at=at)
        peer.is_up = True
        uplink.wake()
        await until(lambda: drained(store))
        assert peer.numbers() == [n for n in range(8) if n != seq - 1], "each of the others once"
        assert peer.numbers("other") == [7]
        backlog = await store.backlog()
        assert (backlog.damaged_segments, backlog.damaged_rows, backlog.evicted_rows) == (1, 1, 0)
        await put(store, 8)
        await until(lambda: drained(store))
        last = max((run[-1] for run in peer.runs.values()), key=lambda segment: segment.header.sealed_at_us)
        assert last.header.ledgers["stream"] == {"damaged": 1}

    with_uplink(tmp_path, test)


def test_a_damaged_segment_in_a_run_that_is_sealed_anew_harms_no_other(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up = False
        await put(store, *range(8))
        await flip_a_bit(store, 3)
        await flip_a_bit(store, 5, at=0.3)
        peer.is_up = True
        uplink.wake()
        await until(lambda: drained(store))
        assert peer.numbers() == [0, 1, 3, 5, 6, 7]
        assert (await store.backlog()).damaged_rows == 2

    with_uplink(tmp_path, test)


def test_a_stream_that_is_refused_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up, peer.refuses = False, {"bad"}
        await put(store, 1, 2, stream="bad")
        for stream in ("numbers", "more"):
            await put(store, *range(5), stream=stream)
        peer.is_up = True
        uplink.wake()
        await until(lambda: peer.numbers() == peer.numbers("more") == list(range(5)))
        await until(lambda: "not this one" in uplink.trouble)
        assert (await store.backlog()).segments == 2
        peer.refuses.clear()
        await until(lambda: drained(store))
        assert peer.numbers("bad") == [1, 2]
        assert not uplink.trouble

    with_uplink(tmp_path, test)


def test_i3_a_receipt_for_another_node_frees_nothing(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.names = "n2"
        await put(store, 1)
        await until(lambda: "another question" in uplink.trouble)
        assert (await store.backlog()).segments == 1

    with_uplink(tmp_path, test)


def test_a_message_holds_no_more_segments_than_the_control_plane_takes(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up = False
        await put(store, *range(300))
        peer.is_up = True
        uplink.wake()
        await until(lambda: drained(store))
        assert peer.numbers() == list(range(300))
        assert peer.blobs_max <= 128

    with_uplink(tmp_path, test)


def test_a_new_connection_to_a_slow_lake_does_not_shorten_the_pause(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_silent = True
        await put(store, 1)
        for _ in range(6):
            before = peer.requests
            await until(lambda before=before: peer.requests > before)  # type: ignore[misc] # mypy cannot tell the default's type
            for callback in peer.on_link:  # two time-outs make the link connect anew
                callback()
        assert uplink._pause_s > 8 * uplink_module._PAUSE_FIRST_S
        peer.is_silent = False
        await until(lambda: drained(store))

    with_uplink(tmp_path, test)
