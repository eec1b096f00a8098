"""The network between nodes and the control plane: cuts, loss, delay, duplicates. It carries requests as core NATS does."""

from __future__ import annotations

import asyncio
import fnmatch
import itertools
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from control_plane.bus import Handler, _guarded, several_at_once
from edge_agent.link import LinkDown
from pipelines.contract import subjects

PINGS_S = 20.0  # a connection over which nothing comes is given up after this
TIMEOUTS_MAX = 2
_CONNECT_PAUSE_S = 1.0


@dataclass
class Path:
    """One node's way to the control plane and back."""

    up: bool = True
    down: bool = True
    loss: float = 0.0
    duplicates: float = 0.0
    delay_s: tuple[float, float] = (0.001, 0.02)
    links: list[SimLink] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return self.up and self.down


@dataclass(frozen=True)
class Message:
    subject: str
    reply: str
    data: bytes


class Network:
    def __init__(self, rng: random.Random, note: Callable[..., None]) -> None:
        self.rng, self.note = rng, note
        self.paths: dict[str, Path] = {}
        self.buses: list[SimBus] = []  # of the control planes that are up
        self.is_up = True  # the broker
        self._replies: dict[str, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count()

    def path(self, node: str) -> Path:
        return self.paths.setdefault(node, Path())

    def reset(self) -> None:
        """The broker starts anew: every connection is lost."""
        for path in self.paths.values():
            for link in path.links:
                link.drop("the broker went away")

    def send_up(self, node: str, subject: str, data: bytes, reply: str = "") -> None:
        path = self.path(node)
        for _ in range(1 + (self.rng.random() < path.duplicates)):
            if path.up and self.is_up and self.rng.random() >= path.loss:
                self._later(path, self._arrive, path, Message(subject, reply, data))

    def send_down(self, node: str, deliver: Callable[[], None]) -> None:
        path = self.path(node)
        for _ in range(1 + (self.rng.random() < path.duplicates)):
            if path.down and self.is_up and self.rng.random() >= path.loss:
                self._later(path, deliver)

    def _later(self, path: Path, what: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(self.rng.uniform(*path.delay_s), what, *args)

    def _arrive(self, path: Path, message: Message) -> None:
        """To every subscriber; data is then taken by whoever serves the node's partition."""
        if path.up:
            for bus in self.buses:
                bus.deliver(message)

    def ask(self, node: str, subject: str, data: bytes) -> asyncio.Future[bytes]:
        reply = f"{subjects.inbox(node)}.{next(self._numbers)}"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._replies[reply] = future
        self.send_up(node, subject, data, reply)
        return future

    def answer(self, node: str, reply: str, data: bytes) -> None:
        def deliver() -> None:
            future = self._replies.pop(reply, None)
            if future is not None and not future.done():
                future.set_result(data)

        self.send_down(node, deliver)


class SimBus:
    """The control plane's end: what `Bus` is over NATS."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._handlers: dict[str, tuple[Handler, int]] = {}
        self._served: dict[str, Handler] = {}
        self._queues: dict[str, asyncio.Queue[Message]] = {}
        self.is_connected = asyncio.Event()

    def on(self, subject: str, handler: Handler, at_once: int = 1) -> None:
        self._handlers[subject] = handler, at_once

    async def serve(self, subjects: Collection[str], handler: Handler) -> None:
        self._served = dict.fromkeys(subjects, handler)

    async def poke(self, node: str) -> None:
        for link in self._network.path(node).links:
            self._network.send_down(node, link.poked)

    async def answer(self, message: Any, sender: str, data: bytes) -> None:
        if message.reply.startswith(f"{subjects.inbox(sender)}."):
            self._network.answer(sender, message.reply, data)

    async def run(self) -> None:
        """Serve each subscription one message after another, as nats-py does."""
        self._network.buses.append(self)
        self.is_connected.set()
        async with asyncio.TaskGroup() as tasks:
            for subject, (handler, at_once) in {"tw.data.>": (self._hand_over, 1), **self._handlers}.items():
                queue = self._queues[subject.split(".")[1]] = asyncio.Queue()
                tasks.create_task(self._serve(queue, several_at_once(_guarded(handler), at_once)))

    async def _serve(self, queue: asyncio.Queue[Message], handle: Callable[[Any], Awaitable[None]]) -> None:
        while True:
            await handle(await queue.get())

    async def _hand_over(self, node: str, message: Any) -> None:
        """To whoever is served the subject now; what nobody serves is lost."""
        for pattern, handler in self._served.items():
            if fnmatch.fnmatchcase(message.subject, pattern.replace(">", "*")):
                await handler(node, message)
                return

    def deliver(self, message: Message) -> None:
        queue = self._queues.get(message.subject.split(".")[1])
        if queue is not None:
            queue.put_nowait(message)


class SimLink:
    """The node's end: what `NatsLink` is over NATS, with its time-outs and its back-off."""

    def __init__(self, network: Network, node: str) -> None:
        self._network, self._node = network, node
        self._path = network.path(node)
        self._callbacks: list[Callable[[], None]] = []
        self._subscriptions: dict[str, Callable[[], None]] = {}
        self._closed: asyncio.Future[None] | None = None
        self._timeouts = 0
        self.trouble, self.since = "not tried yet", ""

    @property
    def is_up(self) -> bool:
        return self._closed is not None

    @property
    def payload_bytes_max(self) -> int:
        return 1024 * 1024

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def on_message(self, subject: str, callback: Callable[[], None]) -> None:
        self._subscriptions[subject] = callback

    def poked(self) -> None:
        if self.is_up and (callback := self._subscriptions.get(subjects.poke(self._node))):
            callback()

    async def run(self) -> None:
        self._path.links.append(self)
        loop = asyncio.get_running_loop()
        while True:
            if self._path.is_whole and self._network.is_up:
                self._closed, self._timeouts = loop.create_future(), 0
                self._set("")
                last_whole = loop.time()
                while not self._closed.done():
                    await asyncio.wait({self._closed}, timeout=5.0)
                    last_whole = loop.time() if self._path.is_whole else last_whole
                    if loop.time() - last_whole >= PINGS_S:
                        self.drop("no pong")
                self._closed = None
                self._set("the connection was lost")
            await asyncio.sleep(_CONNECT_PAUSE_S * self._network.rng.uniform(0.5, 1.5))

    def drop(self, why: str) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _set(self, trouble: str) -> None:
        self.trouble = trouble
        self._network.note("link", node=self._node, up=not trouble)
        for callback in self._callbacks:
            callback()

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        closed = self._closed
        if closed is None or closed.done():
            raise LinkDown(self.trouble, op="request", place=subject)
        if self._path.is_whole and not self._network.buses:
            await asyncio.sleep(0.01)
            raise LinkDown("the broker is there, the control plane is not", op="request", place=subject)
        asking = self._network.ask(self._node, subject, data)
        await asyncio.wait({asking, closed}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            self._timeouts = 0
            return asking.result()
        if closed.done():
            raise LinkDown("the connection was lost", op="request", place=subject)
        self._timeouts += 1
        if self._timeouts >= TIMEOUTS_MAX:
            self.drop("no answer twice in a row")
        raise LinkDown(f"no answer within {timeout_s:g} s", op="request", place=subject)

    async def publish(self, subject: str, data: bytes) -> None:
        if not self.is_up:
            raise LinkDown(self.trouble, op="publish", place=subject)
        self._network.send_up(self._node, subject, data)
