"""The uplink against a lake that refuses, is slow, or is asked to take what the disk has damaged."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_control import FakeLake
from support import NODE, new_key, open_store, until

from edge_agent import uplink as uplink_module
from edge_agent.link import LinkDown
from edge_agent.outbox import Sealed
from edge_agent.store import Commit, Store
from edge_agent.uplink import Uplink
from pipelines.contract import messages
from pipelines.contract.segment import Segment, decode


class Peer(FakeLake):
    """A link with a control plane at its end that keeps segments in memory. `refuses` names streams that it does not take."""

    payload_bytes_max = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.is_up, self.key, self.node_key = True, new_key(), new_key()
        self.refuses: set[str] = set()
        self.requests: list[list[Segment]] = []  # the segments of each
        self.names = NODE  # whom its answers name
        self.is_silent = self.is_busy = False
        self.delay_s = 0.0
        self.bytes_per_s = 0  # of the line, one request after another
        self.line_free_s = 0.0
        self.under_way = self.under_way_max = 0  # bytes
        self.on_link: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        self.on_link.append(callback)

    def set_up(self, is_up: bool) -> None:
        self.is_up = is_up
        for callback in self.on_link:
            callback()

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        request, blobs = messages.Upload.unpack(data)
        segments = [decode(blob, self.node_key.public) for blob in blobs]
        self.requests.append(segments)
        self.under_way += len(data)
        self.under_way_max = max(self.under_way, self.under_way_max)
        try:
            async with asyncio.timeout(timeout_s):
                await self._travel(len(data))
                if self.is_silent:
                    raise LinkDown("no answer")
        except TimeoutError:
            raise LinkDown("no answer in time") from None
        finally:
            self.under_way -= len(data)
        if blobs and self.is_busy:
            return self.answer(request, [], self.names, "busy").seal(self.key)
        taken = [segment for segment in segments if segment.header.stream not in self.refuses]
        error = "" if len(taken) == len(segments) else "not this one"
        touched = [self.put(segment) for segment in taken]
        return self.answer(request, touched, self.names, error).seal(self.key)

    async def _travel(self, size: int) -> None:
        now_s = asyncio.get_running_loop().time()
        if self.bytes_per_s:
            self.line_free_s = max(self.line_free_s, now_s) + size / self.bytes_per_s
            await asyncio.sleep(self.line_free_s - now_s)
        await asyncio.sleep(self.delay_s)

    def arrived(self, stream: str = "numbers") -> list[int]:
        return sorted(self.numbers(stream))

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
        assert peer.arrived() == [n for n in range(8) if n != seq - 1], "each of the others once"
        assert peer.arrived("other") == [7]
        backlog = await store.backlog()
        assert (backlog.damaged_segments, backlog.damaged_rows, backlog.evicted_rows) == (1, 1, 0)
        await put(store, 8)
        await until(lambda: drained(store))
        [numbers] = [run for (_, stream), run in peer.runs.items() if stream == "numbers"]
        assert [s.header.void for s in numbers] == ["damaged" if n == seq else "" for n in range(1, 10)], "the run goes on"

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
        assert peer.arrived() == [0, 1, 3, 5, 6, 7]
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
        await until(lambda: peer.arrived() == peer.arrived("more") == list(range(5)))
        await until(lambda: "not this one" in uplink.trouble)
        assert (await store.backlog()).segments == 2
        peer.refuses.clear()
        await until(lambda: drained(store))
        assert peer.arrived("bad") == [1, 2]
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
        assert peer.arrived() == list(range(300))
        assert max(map(len, peer.requests)) <= 128

    with_uplink(tmp_path, test)


def test_a_new_connection_to_a_slow_lake_does_not_shorten_the_pause(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_silent = True
        await put(store, 1)
        for _ in range(6):
            before = len(peer.requests)
            await until(lambda before=before: len(peer.requests) > before)
            peer.set_up(False)  # two time-outs make the link connect anew
            peer.set_up(True)
        assert uplink._pause_s > 8 * uplink_module._PAUSE_FIRST_S
        peer.is_silent = False
        await until(lambda: drained(store))

    with_uplink(tmp_path, test)
