"""The runner protocol's frames: a blocking `Channel` for the runner, an `AsyncChannel` for the agent.

A frame is a u32 length (big endian), then `pipelines.contract.frames.pack(header, blobs)`; `header["type"]` names the message.
A state goes to a runner in `state` messages (`keys`, a blob for each) that follow `start`, as many as `start` says.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from pipelines.contract.errors import Refused
from pipelines.contract.frames import pack, unpack

if TYPE_CHECKING:
    import asyncio

FRAME_BYTES_MAX = 256 * 1024 * 1024
PART_BYTES = 8 * 1024 * 1024  # of state in one frame: what was committed piece by piece may be more than one frame holds
_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 * 1024

Message = tuple[dict[str, Any], list[bytes]]


def to_frame(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    body = pack(header, blobs)
    if len(body) > FRAME_BYTES_MAX:
        said = f"{len(body) >> 20} MiB at once are more than the {FRAME_BYTES_MAX >> 20} MiB that go from a runner to its agent"
        hint = "lower max_groups, or the size of the texts that windows, steps and triggers keep"
        raise Refused(said, op="send", place=str(header.get("type")), hint=hint)
    return _LENGTH.pack(len(body)) + body


def parts(state: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    """The entries of a state in order, as much as a frame should hold at a time."""
    part: dict[str, bytes] = {}
    size = 0
    for key, value in state.items():
        part[key] = value
        size += len(key) + len(value) + 16
        if size >= PART_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


class Channel:
    """The runner's end, over a connected, blocking Unix stream socket. For one thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """Readable when `receive` may have something; a whole message may also wait in the buffer already."""
        return self._socket.fileno()

    def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Raises EOFError when the agent is gone."""
        try:
            self._socket.sendall(to_frame(header, blobs))
        except OSError as error:
            raise EOFError(f"the agent is gone: {error}") from error

    def receive(self, timeout_s: float | None) -> Message | None:
        """The next message; None when none was whole within `timeout_s` (None: wait for ever; 0: only look).

        Raises EOFError when the agent is gone, `Refused` on bytes that are no frame.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (body := self._take()) is None:
            left_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if not self._poll.poll(left_ms):
                return None
            self._fill()
        return unpack(body, FRAME_BYTES_MAX)

    def _take(self) -> bytes | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + _checked_length(bytes(self._buffer[: _LENGTH.size]))
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[_LENGTH.size : end])
        del self._buffer[:end]
        return body

    def _fill(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError as error:
            raise EOFError(f"the agent is gone: {error}") from error
        if not data:
            raise EOFError("the agent is gone")
        self._buffer += data


class AsyncChannel:
    """The agent's end. `send` applies back-pressure; one task sends and one receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        import asyncio  # the runner imports this file too and needs no event loop

        return cls(*await asyncio.open_unix_connection(sock=sock))

    async def send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Raises EOFError when the runner is gone."""
        try:
            self._writer.write(to_frame(header, blobs))
            await self._writer.drain()
        except OSError as error:
            raise EOFError(f"the runner is gone: {error}") from error

    async def receive(self) -> Message:
        """Raises EOFError when the runner is gone, `Refused` on bytes that are no frame."""
        try:
            length = _checked_length(await self._reader.readexactly(_LENGTH.size))
            return unpack(await self._reader.readexactly(length), FRAME_BYTES_MAX)
        except OSError as error:
            raise EOFError(f"the runner is gone: {error}") from error

    def close(self) -> None:
        self._writer.close()


def _checked_length(prefix: bytes) -> int:
    (length,) = _LENGTH.unpack(prefix)
    if length > FRAME_BYTES_MAX:
        raise Refused(f"a frame of {length} bytes", op="receive")
    return int(length)
