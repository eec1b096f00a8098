"""The little of HTTP/1.1 (RFC 9112) that a POST of rows takes: one thread, one event loop, everything bounded.

A request is turned down before its body is read wherever its head tells enough. Whatever is not a whole, sound request ends its
connection, so nothing can be mistaken for the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import threading
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.contract.language.sources import HttpSource as HttpSpec
from pipelines.contract.language.sources import listen_address

if TYPE_CHECKING:
    from edge_agent.sources.http import Inbox

CONNECTIONS_MAX = 256
HEAD_BYTES_MAX = 16 * 1024
KEY_BYTES_MAX = 128
IDLE_S = 60.0  # between two requests
HEAD_S = 10.0  # from its first byte to its last
BODY_S = 60.0
ANSWER_S = 30.0  # a body waits so long to be committed
LINGER_S = 2.0  # what a client still sends is thrown away for so long, that it may read why
FLUSH_S = 1.0  # for the last answers, at the end
REBIND_S = 1.0
_PIECE = 64 * 1024
_LINE_END = b"\r\n"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_MORE = {401: "WWW-Authenticate: Bearer\r\n", 405: "Allow: POST\r\n", 503: "Retry-After: 1\r\n"}


class _Reject(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why


@dataclass(frozen=True)
class _Head:
    method: str
    path: str
    version: str
    fields: Mapping[str, str]  # names in lower case

    @property
    def keeps_alive(self) -> bool:
        return self.version == "HTTP/1.1" and "close" not in self.fields.get("connection", "").lower()


class Server:
    """Listens from its making on; an address that cannot be had is tried again, and told by `trouble`."""

    def __init__(self, spec: HttpSpec, inbox: Inbox) -> None:
        self._spec, self._inbox = spec, inbox
        self._token = hashlib.sha256((spec.token or "").encode()).digest()
        self.trouble = ""
        self._connections = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="http source", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End within about a second: what was promised is answered first."""
        with suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(2 * FLUSH_S)

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        host, port = listen_address(self._spec.listen)
        while not self._closing.is_set():
            try:
                server = await asyncio.start_server(self._talk, host, port, limit=HEAD_BYTES_MAX)
            except OSError as error:
                self.trouble = f"cannot listen on {self._spec.listen}: {error.strerror or error}"
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), REBIND_S)
                continue
            self.trouble = ""
            await self._closing.wait()
            server.close()
        if self._answering:
            await asyncio.wait(self._answering, timeout=FLUSH_S)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first request to its last."""
        self._connections += 1
        task = asyncio.current_task()
        assert task is not None
        try:
            if self._connections > CONNECTIONS_MAX:
                await _answer(writer, 503, error="too many connections", close=True)
                return
            while await self._next(reader, writer, task):
                pass
        except (OSError, EOFError, TimeoutError):
            pass  # the client is gone, or does not go on
        except asyncio.CancelledError:
            pass  # by the end of this thread's loop alone; asyncio would tell of it with a traceback
        finally:
            self._connections -= 1
            self._answering.discard(task)
            writer.close()

    async def _next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]) -> bool:
        """Read and answer a request; whether another may follow."""
        async with asyncio.timeout(IDLE_S):
            first = await reader.readexactly(1)
        self._answering.add(task)
        try:
            head = await _head(reader, first)
            self._check(head)
            records = await self._post(head, reader, writer)
        except _Reject as reject:
            await _answer(writer, reject.status, error=reject.why, close=True)
            await _linger(reader, writer)
            return False
        is_last = self._closing.is_set() or not head.keeps_alive
        await _answer(writer, 200, records=records, close=is_last)
        self._answering.discard(task)
        return not is_last

    def _check(self, head: _Head) -> None:
        """What the head alone tells. Raises `_Reject`."""
        if head.path != self._spec.path:
            raise _Reject(404, "nothing is here")
        if head.method != "POST":
            raise _Reject(405, "rows are sent with POST")
        if self._spec.token is not None:
            scheme, _, given = head.fields.get("authorization", "").partition(" ")
            digest = hashlib.sha256(given.strip().encode("latin-1")).digest()
            if not hmac.compare_digest(digest, self._token) or scheme.lower() != "bearer":
                raise _Reject(401, "the token is missing or wrong: send Authorization: Bearer TOKEN")
        if len(head.fields.get("idempotency-key", "")) > KEY_BYTES_MAX:
            raise _Reject(400, f"an Idempotency-Key has at most {KEY_BYTES_MAX} bytes")
        if head.fields.get("content-encoding", "identity").lower() not in ("identity", "gzip", "x-gzip"):
            raise _Reject(415, "a body is sent as it is, or with Content-Encoding: gzip")

    async def _post(self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """The number of records, once they are committed."""
        from edge_agent.sources.http import key_digest

        room = _Room(self._inbox, self._spec.max_body)
        try:
            async with asyncio.timeout(BODY_S):
                data = await self._body(head, reader, writer, room)
        except TimeoutError:
            raise _Reject(408, "the body did not come in time") from None
        finally:
            room.give_back()
        post = self._inbox.offer(data, key_digest(head.fields.get("idempotency-key", "")))
        if not post.answer.done():
            await asyncio.wait([asyncio.wrap_future(post.answer)], timeout=ANSWER_S)
            if not post.answer.done():
                self._inbox.withdraw(post)
        records = post.answer.result()
        if records is None:
            raise _Reject(503, "it is not known to be stored: send it again")
        return records

    async def _body(self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: _Room) -> bytes:
        """Whole and unpacked."""
        pieces = _pieces(head, reader, self._spec.max_body)
        length = head.fields.get("content-length", "0")
        room.take(int(length) if length.isdigit() else 0)
        if head.fields.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.fields.get("content-encoding", "identity").lower() != "identity":
            pieces = _unpacked(pieces)
        data = bytearray()
        async for piece in pieces:
            data += piece
            room.cover(len(data))
        return bytes(data)


class _Room:
    """What a body that comes in takes of the inbox's room."""

    def __init__(self, inbox: Inbox, most: int) -> None:
        self._inbox, self._most, self._size = inbox, most, 0

    def take(self, size: int) -> None:
        """Raises `_Reject` where there is none."""
        if not self._inbox.reserve(size):
            raise _Reject(503, "commits do not keep up: send it again")
        self._size += size

    def cover(self, size: int) -> None:
        """Have room for `size` in all."""
        if size > self._most:
            raise _Reject(413, f"a body has at most {self._most} bytes, unpacked too")
        if size > self._size:
            self.take(size - self._size)

    def give_back(self) -> None:
        self._inbox.release(self._size)
        self._size = 0


async def _head(reader: asyncio.StreamReader, first: bytes) -> _Head:
    try:
        async with asyncio.timeout(HEAD_S):
            text = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError:
        raise _Reject(431, f"the head has more than {HEAD_BYTES_MAX} bytes") from None
    except TimeoutError:
        raise _Reject(408, "the head did not come in time") from None
    request, *lines = text[:-4].split("\r\n")
    words = request.split(" ")
    if len(words) != 3 or not _NAME.match(words[0]) or not words[1].startswith("/"):
        raise _Reject(400, "this is no request of HTTP/1.1")
    if words[2] not in ("HTTP/1.0", "HTTP/1.1"):
        raise _Reject(505, "speak HTTP/1.1")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.match(name) or "\r" in value or "\n" in value or "\0" in value:
            raise _Reject(400, "a header field is broken")
        name = name.lower()
        fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
    return _Head(words[0], words[1].partition("?")[0], words[2], fields)


def _pieces(head: _Head, reader: asyncio.StreamReader, most: int) -> AsyncIterator[bytes]:
    """The body as it was sent. Raises `_Reject` at once for one whose end cannot be told, or that is too long."""
    length, coding = head.fields.get("content-length"), head.fields.get("transfer-encoding")
    if coding is not None:
        if length is not None or head.version == "HTTP/1.0":
            raise _Reject(400, "a body has a length or is chunked, not both")
        if coding.lower() != "chunked":
            raise _Reject(501, "the only transfer coding is chunked")
        return _chunks(reader, most)
    if length is None:
        raise _Reject(411, "the length of the body is missing")
    if not re.fullmatch(r"[0-9]{1,15}", length):
        raise _Reject(400, "Content-Length is no number")
    if int(length) > most:
        raise _Reject(413, f"a body has at most {most} bytes")
    return _exactly(reader, int(length))


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(min(size, _PIECE))
        if not piece:
            raise EOFError
        size -= len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader, most: int) -> AsyncIterator[bytes]:
    sent = 0
    while True:
        digits = (await _line(reader)).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", digits):
            raise _Reject(400, "a chunk has no size")
        size = int(digits, 16)
        if not size:
            break
        sent += size
        if sent > most:
            raise _Reject(413, f"a body has at most {most} bytes")
        async for piece in _exactly(reader, size):
            yield piece
        if await reader.readexactly(2) != _LINE_END:
            raise _Reject(400, "a chunk is longer than it says")
    for _ in range(32):
        if not await _line(reader):
            return
    raise _Reject(400, "too many trailers")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(_LINE_END))[:-2]
    except asyncio.LimitOverrunError:
        raise _Reject(400, "a line of the chunked body does not end") from None


async def _unpacked(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A gzip body, in pieces so small that a bomb goes off in nobody's memory."""
    inner = zlib.decompressobj(wbits=31)
    try:
        async for piece in pieces:
            while out := inner.decompress(piece, _PIECE):
                piece = inner.unconsumed_tail
                yield out
            if inner.eof and inner.unused_data.strip(b"\0"):
                raise _Reject(400, "something follows the gzip data")
    except zlib.error:
        raise _Reject(400, "the gzip data is damaged") from None
    if not inner.eof:
        raise _Reject(400, "the gzip data ends before its end")


async def _answer(writer: asyncio.StreamWriter, status: int, *, close: bool, **told: str | int) -> None:
    body = json.dumps(told).encode() + b"\n"
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    more = _MORE.get(status, "") + ("Connection: close\r\n" if close else "")
    writer.write(f"{head}{more}\r\n".encode() + body)
    async with asyncio.timeout(HEAD_S):
        await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A connection that is closed on unread bytes may lose the answer on its way."""
    with suppress(OSError, TimeoutError):
        writer.write_eof()
        async with asyncio.timeout(LINGER_S):
            while await reader.read(_PIECE):
                pass
