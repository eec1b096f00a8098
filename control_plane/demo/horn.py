"""The horn on the factory floor: a local HTTP server that notes when it was switched on, and for which incident."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Blast:
    """`after_ms`: from the sensor's stamp of the row that raised the incident to the horn, on the one clock of this machine."""

    incident: str
    message: str
    after_ms: float
    at_us: int


class Horn:
    def __init__(self) -> None:
        self.blasts: list[Blast] = []
        self.heard = asyncio.Event()
        self._seen: set[str] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        """The port it listens on."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            at_us = time.time_ns() // 1000
            fields = {
                k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head.decode().split("\r\n")[1:])
            }
            body = json.loads(await reader.readexactly(int(fields.get("content-length", "0"))))
            self._sound(fields.get("idempotency-key", ""), body, at_us)
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _sound(self, key: str, body: dict[str, object], at_us: int) -> None:
        """A repeated key is the same order again: the horn sounds once (at-least-once delivery, idempotent receiver)."""
        if key in self._seen:
            return
        self._seen.add(key)
        stamp_us = int(str(body.get("at_us", at_us)))
        self.blasts.append(Blast(str(body.get("incident")), str(body.get("message")), (at_us - stamp_us) / 1000, at_us))
        self.heard.set()
