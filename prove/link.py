"""The link between the planes with more ways to be bad than up and down. Processes run on; only bytes wait."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from dataclasses import dataclass

from control_plane.demo.proxy import CHUNK_BYTES, Link


@dataclass(frozen=True)
class Way:
    """How bytes go in one direction."""

    is_open: bool = True
    delay_s: float = 0.0  # of each chunk, one after the other, as a satellite link that takes no more in flight
    bytes_per_s: float = 0.0  # 0: as fast as they come


OPEN, SHUT = Way(), Way(is_open=False)


class FaultyLink(Link):
    """`up` is from node to control plane. A way that is shut holds bytes as TCP does; `forget` loses them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = OPEN, OPEN
        self.passed = {"up": 0, "down": 0}  # bytes, of all connections
        self._epoch = 0
        self._changed = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    def set(self, up: Way, down: Way) -> None:
        self.up, self.down = up, down
        self._wake()

    def forget(self) -> None:
        """Connections that exist never carry a byte again, nor do they end: a router that lost its table."""
        self._epoch += 1
        self._wake()

    def cut(self) -> None:
        super().cut()
        self._wake()

    def heal(self) -> None:
        super().heal()
        self.set(OPEN, OPEN)

    async def close(self) -> None:
        await super().close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._forward(reader, writer)
        except asyncio.CancelledError:  # by `close` only; asyncio.start_server logs a cancelled handler as an error
            writer.transport.abort()
        finally:
            self._serving.discard(task)

    async def _forward(self, reader: StreamReader, writer: StreamWriter) -> None:
        epoch = self._epoch
        if self.is_cut or not self.target_port:
            writer.transport.abort()
            return
        while not (self.up.is_open and self.down.is_open):  # accepted, and nobody ever answers
            await self._changed.wait()
            if self.is_cut or epoch != self._epoch:
                writer.transport.abort()
                return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(self._pump(reader, far_writer, "up", epoch), self._pump(far_reader, writer, "down", epoch))
        finally:
            self._writers -= {writer, far_writer}
            writer.transport.abort()
            far_writer.transport.abort()

    async def _pump(self, reader: StreamReader, writer: StreamWriter, way: str, epoch: int) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._pass(way, epoch, len(data), writer)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _pass(self, way: str, epoch: int, size: int, writer: StreamWriter) -> None:
        """Wait as long as the chunk is under way."""
        now: Way = getattr(self, way)
        while epoch != self._epoch or not now.is_open:
            if writer.transport.is_closing():
                raise ConnectionAbortedError
            await self._changed.wait()
            now = getattr(self, way)
        if pause_s := now.delay_s + (size / now.bytes_per_s if now.bytes_per_s else 0.0):
            await asyncio.sleep(pause_s)
        self.passed[way] += size
