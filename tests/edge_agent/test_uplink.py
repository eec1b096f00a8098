"""The uplink against a lake that refuses, is slow, or is asked to take what the disk has damaged."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_control import FakeControl, FakeLake
from support import NODE, new_key, open_store, until

from edge_agent import sending
from edge_agent import uplink as uplink_module
from edge_agent.link import LinkDown, Login, NatsLink
from edge_agent.outbox import Sealed
from edge_agent.shares import Buffer
from edge_agent.store import Commit, Store
from edge_agent.uplink import Uplink
from pipelines.contract import messages, subjects
from pipelines.contract.segment import Segment, decode
from tests.adapters.test_link import Proxy
from tests.nats_broker import Broker


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
        self.holds = False  # what is larger than a question
        self.loses_answers = 0  # of so many uploads
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
        if blobs and self.loses_answers:
            self.loses_answers -= 1
            for segment in taken:
                self.put(segment)
            raise LinkDown("no answer")
        error = "" if len(taken) == len(segments) else "not this one"
        touched = [self.put(segment) for segment in taken]
        return self.answer(request, touched, self.names, error).seal(self.key)

    async def _travel(self, size: int) -> None:
        now_s = asyncio.get_running_loop().time()
        if self.bytes_per_s:
            self.line_free_s = max(self.line_free_s, now_s) + size / self.bytes_per_s
            await asyncio.sleep(self.line_free_s - now_s)
        while self.holds and size > 10_000:
            await asyncio.sleep(0.01)

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


def with_uplink(tmp_path: Path, test: Callable[[Store, Peer, Uplink], Awaitable[None]], bytes_per_s: int = 0) -> None:
    async def go(store: Store, peer: Peer) -> None:
        uplink = Uplink(store, peer, NODE, peer.key.public, 5, bytes_per_s)
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


async def put_large(store: Store, *numbers: int, stream: str = "numbers", kind: str = "rows", size: int = 50_000) -> None:
    await store.checkpoint(stream)
    for n in numbers:
        await store.commit(stream, "sha256:v", 1, Commit({}, {}, sealed=[Sealed(stream, kind, "t", 1, _padded(n, size))]))


def _padded(n: int, size: int) -> bytes:
    return json.dumps([n]).encode() + b" " * size


def runs_of(peer: Peer, stream: str = "numbers") -> list[list[int]]:
    """The numbers that arrived, by run, oldest first."""
    return [[json.loads(s.payload)[0] for s in held] for (_, name), held in peer.runs.items() if name == stream]


def test_what_is_new_flows_beside_a_backlog_under_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "_LANES_AFTER_S", 0.0)
    monkeypatch.setattr(sending, "BACKLOG_S", 1.0)

    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up, peer.bytes_per_s = False, 2_000_000
        await put_large(store, *range(160))  # 8 MB: 4 s
        peer.is_up = True
        uplink.wake()
        await until(lambda: len(peer.arrived()) > 20)
        await until(lambda: _lanes(store))
        await put_large(store, 1000)
        await until(lambda: 1000 in peer.arrived())
        assert len(peer.arrived()) < 160, "the backlog still drains"
        await until(lambda: drained(store))
        assert runs_of(peer) == [list(range(160)), [1000]]
        await put_large(store, *range(2000, 2160))
        await until(lambda: drained(store))
        assert len(runs_of(peer)) == 2, "one new run per stream and hour"

    with_uplink(tmp_path, test)


async def _lanes(store: Store) -> object:
    return await store.get(uplink_module._LANES)


def test_incidents_pass_a_full_window_and_a_lake_that_is_busy(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up, peer.holds = False, True
        await put_large(store, *range(100))
        peer.is_up = True
        uplink.wake()
        await until(lambda: peer.under_way >= sending.WINDOW_FIRST)
        await put_large(store, 7, stream="alarms", kind="incidents", size=0)
        await until(lambda: any(_streams(request) == {"alarms"} for request in peer.requests), "in a request of its own")
        before = peer.requests[: [_streams(request) for request in peer.requests].index({"alarms"})]
        assert sum(map(len, before)) < 20, "it did not wait for the others"
        peer.holds = False
        await until(lambda: drained(store))

    with_uplink(tmp_path, test)


def _streams(request: list[Segment]) -> set[str]:
    return {segment.header.stream for segment in request}


def test_streams_go_by_priority(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up = False
        for stream in ("low", "numbers", "high"):
            await put_large(store, *range(30), stream=stream)
        await store.set_buffer("low", Buffer(priorities={"low": 9}))
        await store.set_buffer("high", Buffer(priorities={"high": 1}))
        peer.is_up = True
        uplink.wake()
        await until(lambda: drained(store))
        assert [s.header.stream for request in peer.requests for s in request] == ["high"] * 30 + ["numbers"] * 30 + ["low"] * 30

    with_uplink(tmp_path, test)


def test_i9_a_lake_that_takes_nothing_gets_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes, scaled: the pause grows to a sixth of a second instead of half a minute."""
    monkeypatch.setattr(uplink_module, "_PAUSE_MAX_S", 0.16)

    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up, peer.is_busy = False, True
        await put_large(store, *range(100))
        peer.is_up = True
        uplink.wake()
        await until(lambda: uplink._pause_s == 0.16)
        before, started = len(peer.requests), asyncio.get_running_loop().time()
        await asyncio.sleep(2.0)
        pauses = (asyncio.get_running_loop().time() - started) / 0.08
        assert len(peer.requests) - before <= 3 * pauses + 3, "a question and a request or two after each pause"
        assert uplink.trouble.endswith("busy")
        assert peer.under_way_max < 2 * sending.WINDOW_FIRST
        assert (await store.backlog()).rows == 100
        peer.is_busy = False
        await until(lambda: drained(store))
        assert peer.arrived() == list(range(100))

    with_uplink(tmp_path, test)


def test_i3_after_silence_it_asks_and_sends_nothing_again_that_arrived(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up = False
        await put_large(store, *range(20))
        peer.is_up, peer.loses_answers = True, 1
        uplink.wake()
        await until(lambda: drained(store))
        sent = [s.header.seq for request in peer.requests for s in request]
        assert sorted(sent) == list(range(1, 21)), "each once"
        lost = next(n for n, request in enumerate(peer.requests) if request)
        later = [len(request) for request in peer.requests[lost + 1 :]]
        assert 0 in later, "a question came in between"

    with_uplink(tmp_path, test)


def test_the_pause_ends_when_the_link_was_away_and_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "_PAUSE_FIRST_S", 600.0)
    monkeypatch.setattr(uplink_module, "_PAUSE_MAX_S", 600.0)
    monkeypatch.setattr(uplink_module, "_AWAY_S", 0.05)

    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_silent = True
        await put(store, 1)
        await until(lambda: uplink._pause_s)
        peer.set_up(False)
        await asyncio.sleep(0.1)
        peer.is_silent = False
        peer.set_up(True)
        await until(lambda: drained(store))
        assert not uplink._pause_s

    with_uplink(tmp_path, test)


def test_the_cap_holds_and_incidents_do_not_wait_for_it(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up = False
        await put_large(store, *range(60))
        started = asyncio.get_running_loop().time()
        peer.is_up = True
        uplink.wake()
        await until(lambda: len(peer.arrived()) > 3)
        await put_large(store, 7, stream="alarms", kind="incidents", size=0)
        await until(lambda: peer.arrived("alarms"))
        assert len(peer.arrived()) < 60
        await until(lambda: drained(store))
        elapsed_s = asyncio.get_running_loop().time() - started
        sent = sum(len(s.data) for request in peer.requests for s in request)
        assert sent <= 1_000_000 * (elapsed_s + 1) + 500_000

    with_uplink(tmp_path, test, bytes_per_s=1_000_000)


def test_i2_a_card_restored_from_an_image_keeps_what_matches_and_sends_the_rest_under_a_new_run(tmp_path: Path) -> None:
    """The lake has 1 to 6; the image holds 1 to 4 as pending and the node then seals others as 5 to 8."""
    peer = Peer()
    image, card = tmp_path / "image", tmp_path / "card"

    async def seal(store: Store, *numbers: int) -> None:
        await put(store, *numbers)

    async def drain(store: Store) -> None:
        uplink = Uplink(store, peer, NODE, peer.key.public, 5)
        running = asyncio.create_task(uplink.run())
        uplink.wake()
        await until(lambda: drained(store))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with open_store(image, peer.node_key) as store:
        asyncio.run(seal(store, 1, 2, 3, 4))
    shutil.copytree(image, card)
    with open_store(card, peer.node_key) as store:
        asyncio.run(seal(store, 5, 6))
        asyncio.run(drain(store))
    with open_store(image, peer.node_key) as store:
        asyncio.run(seal(store, 105, 106, 107, 108))
        asyncio.run(drain(store))
    assert sorted(runs_of(peer)) == [[1, 2, 3, 4, 5, 6], [105, 106, 107, 108]]


def test_stubs_are_sent_in_their_place(tmp_path: Path) -> None:
    async def test(store: Store, peer: Peer, uplink: Uplink) -> None:
        peer.is_up = False
        await put_large(store, *range(8))
        for seq in (3, 4, 8):
            await flip_a_bit(store, seq)
        peer.is_up = True
        uplink.wake()
        await until(lambda: drained(store))
        [held] = peer.runs.values()
        assert [(s.header.first, s.header.seq) for s in held if s.header.is_stub][-1] == (8, 8)
        assert held[-1].header.seq == 8 and held[-1].header.run_rows == 8
        assert peer.arrived() == [0, 1, 4, 5, 6]

    with_uplink(tmp_path, test)


async def over_nats(tmp_path: Path, test: Callable[[Store, FakeControl, Proxy, NatsLink], Awaitable[None]], **line: int) -> None:
    """A store, its uplink and a control plane at the two ends of a real broker, with a proxy in between."""
    broker, key = Broker(tmp_path), new_key()
    control = FakeControl(NODE, key.public)
    with open_store(tmp_path / "node", key) as store:
        try:
            proxy = Proxy(broker.port, **line)
            link = NatsLink(Login(f"nats://127.0.0.1:{await proxy.start()}", subjects.inbox(NODE)))
            uplink = Uplink(store, link, NODE, control.key.public, 1.0)
            store.on_commit(uplink.wake)
            await control.serve(broker)
            running = [asyncio.create_task(link.run()), asyncio.create_task(uplink.run())]
            async with asyncio.timeout(60):
                await test(store, control, proxy, link)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await control.close()
        finally:
            broker.kill()


def test_segments_that_take_longer_than_the_first_time_out_get_through_a_slow_line(tmp_path: Path) -> None:
    changes: list[bool] = []

    async def test(store: Store, control: FakeControl, proxy: Proxy, link: NatsLink) -> None:
        link.on_change(lambda: changes.append(link.is_up))
        await put_large(store, *range(4), size=256 * 1024)
        await until(lambda: drained(store), timeout_s=50)
        assert sorted(control.numbers()) == list(range(4))
        assert changes == [True], "the connection was kept"
        assert sum(int(request[5:]) for request in control.requests if request != "ask") == 4, "nothing was sent twice"

    asyncio.run(over_nats(tmp_path, test, bytes_per_s=200_000))


def test_i2_black_holes_and_cuts_while_it_sends_double_nothing_and_lose_nothing(tmp_path: Path) -> None:
    async def test(store: Store, control: FakeControl, proxy: Proxy, link: NatsLink) -> None:
        await put_large(store, *range(40))
        for n in range(3):
            await until(lambda n=n: len(control.numbers()) > 5 * n)
            await put_large(store, *range(40 + 10 * n, 50 + 10 * n))
            if n == 1:
                proxy.black_hole()
                await asyncio.sleep(1)
                proxy.heal()
            proxy.cut()
        await until(lambda: drained(store), timeout_s=50)
        assert sorted(control.numbers()) == list(range(70))

    asyncio.run(over_nats(tmp_path, test, bytes_per_s=2_000_000))
