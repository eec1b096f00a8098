"""Runner processes as fibers: the real runner on a channel in memory."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any

from edge_agent import answering, runner
from edge_agent.requests import ANSWERER
from edge_agent.wire import FRAME_BYTES_MAX, Message, to_frame
from pipelines.contract.frames import unpack
from tests.simulation.life import LIFE, Crashed, Life, Machine
from tests.simulation.loop import Fiber, VirtualLoop

_LENGTH_BYTES = 4
KILLED = -9
CRASHES_AFTER_S = 0.7


def _copied(header: dict[str, Any], blobs: Sequence[bytes]) -> Message:
    """As it arrives at the other end of a socket."""
    return unpack(to_frame(header, blobs)[_LENGTH_BYTES:], FRAME_BYTES_MAX)


class SimProcess:
    """What `RunnerProcess` is to its host, and the channel's agent end; `RunnerEnd` is the runner's."""

    _pids = itertools.count(100)

    def __init__(
        self,
        loop: VirtualLoop,
        machine: Machine,
        name: str,
        serve: Callable[[Any], object],
        at: Callable[[str, Life], None],
        crashing: Container[int],
    ) -> None:
        """`crashing` are the numbers of versions that do not live long."""
        self._crashing = crashing
        self.pid = next(SimProcess._pids)
        self.life = Life(machine, f"{machine.name}/{name}")
        self.channel = self
        self.is_open = True
        self._loop, self._at, self.started_s = loop, at, loop.now
        self._up: asyncio.Queue[Message | None] = asyncio.Queue()
        self.inbox: deque[Message] = deque()
        self._ended: asyncio.Future[int] = loop.create_future()
        token = LIFE.set(self.life)
        self.fiber = Fiber(loop, lambda: serve(RunnerEnd(self)))
        loop.call_soon(self.fiber.resume)
        LIFE.reset(token)
        self.fiber.result.add_done_callback(lambda result: self._end(result.exception()))

    def _end(self, error: BaseException | None) -> None:
        self.life.is_dead = True
        status = KILLED if isinstance(error, Crashed) else 1 if error is not None and not isinstance(error, EOFError) else 0
        if not self._ended.done():
            self._ended.set_result(status)
        self._up.put_nowait(None)

    def kill(self) -> None:
        if not self.life.is_dead:
            self.life.is_dead = True
            self.fiber.kill()
            self._end(Crashed())

    async def wait(self) -> int:
        status = await asyncio.shield(self._ended)
        self.is_open = False
        return status

    async def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        if self.life.is_dead:
            raise EOFError("the runner is gone")
        if header["type"] == "start" and header.get("number") in self._crashing and header["mode"] != "drain":
            self._loop.call_later(CRASHES_AFTER_S, self.kill)
        self.inbox.append(_copied(header, blobs))
        self._loop.call_soon(self.fiber.resume)

    async def receive(self) -> Message:
        message = await self._up.get()
        if message is None:
            self._up.put_nowait(None)
            raise EOFError("the runner is gone")
        return message

    def close(self) -> None: ...

    # the runner's side, in its fiber

    def take(self, timeout_s: float | None) -> Message | None:
        if not self.inbox and timeout_s != 0:
            self.fiber.park(timeout_s)
            while not self.inbox and timeout_s is None:
                self.fiber.park(None)
        return self.inbox.popleft() if self.inbox else None

    def give(self, header: dict[str, Any], blobs: Sequence[bytes]) -> None:
        self._at(f"runner sends {header['type']}", self.life)
        self._up.put_nowait(_copied(header, blobs))


class RunnerEnd:
    """What `Channel` is over a socket."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process

    def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        self._process.give(header, blobs)

    def receive(self, timeout_s: float | None) -> Message | None:
        return self._process.take(timeout_s)


class SimSupervisor:
    def __init__(
        self, loop: VirtualLoop, machine: Machine, at: Callable[[str, Life], None], crashing: Container[int] = ()
    ) -> None:
        self._loop, self._machine, self._at, self._crashing = loop, machine, at, crashing
        self.running: list[SimProcess] = []
        self.started = 0

    async def start(self, name: str, entry: str = "", memory_bytes: int = 0) -> SimProcess:
        await asyncio.sleep(0.05)
        self.started += entry != ANSWERER
        serve = _answer if entry == ANSWERER else runner.serve
        process = SimProcess(self._loop, self._machine, name, serve, self._at, self._crashing)
        self.running = [other for other in self.running if not other.life.is_dead] + [process]
        return process


def _answer(end: Any) -> None:
    """`answering.main`, without the limits of a process."""
    start, _ = end.receive(None)
    answering.serve(end, start)
