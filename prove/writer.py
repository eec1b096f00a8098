"""What the nodes read while everything around them breaks, in files that grow and bodies that are posted: the truth that the lake
is compared with."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import httpx

LINES_PER_FILE = 5000
BROKEN_EVERY = 97  # one line in so many does not decode
LINES_PER_BODY = 20
LAST_BODY_S = 30.0
_PAUSE_S = 0.05


class Writer:
    """Appends `{"writer", "n", "value"}` lines, `rate` a second, now and then only half of one; `stop` ends with a whole line."""

    def __init__(self, name: str, directory: Path, rate: int, chance: random.Random) -> None:
        self.name, self._directory, self._rate, self._chance = name, directory, rate, chance
        self.n, self._torn = 0, b""
        self._file = self._name()
        self._task: asyncio.Task[None] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._append(b"")

    async def _run(self) -> None:
        while True:
            lines = b"".join(self._line() for _ in range(int(self._rate * _PAUSE_S)))
            self._append(lines, keep=self._chance.choice((0, 0, 5)))
            await asyncio.sleep(_PAUSE_S)

    def _line(self) -> bytes:
        self.n += 1
        if self.n % BROKEN_EVERY == 0:
            return f"broken {self.name} {self.n}\n".encode()
        return f'{{"writer":"{self.name}","n":{self.n},"value":{self.n / 8}}}\n'.encode()

    def _append(self, lines: bytes, keep: int = 0) -> None:
        """`keep`: how many bytes of the end come with the next call."""
        with self._file.open("ab") as file:
            file.write(self._torn + lines[: len(lines) - keep])
        self._torn = lines[len(lines) - keep :]
        if not self._torn:
            self._file = self._name()

    def _name(self) -> Path:
        return self._directory / f"{self.name}-{self.n // LINES_PER_FILE:05d}.jsonl"


class Poster:
    """Posts bodies of numbered lines to `url`, each under a key of its own and again until it is answered 200. What was answered
    so is in `directory`; only that is promised."""

    def __init__(self, name: str, url: str, directory: Path) -> None:
        self.name, self._url, self._file = name, url, directory / f"{name}.jsonl"
        self.n = 0  # lines that were acknowledged
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        directory.mkdir(parents=True, exist_ok=True)
        self._file.touch()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """What is not acknowledged within `LAST_BODY_S` is given up."""
        self._is_stopping = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST_BODY_S)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while not self._is_stopping:
                numbers = range(self.n + 1, self.n + 1 + LINES_PER_BODY)
                lines = b"".join(f'{{"writer":"{self.name}","n":{n},"value":{n / 8}}}\n'.encode() for n in numbers)
                while not await self._is_stored(client, lines):
                    await asyncio.sleep(_PAUSE_S)
                with self._file.open("ab") as file:
                    file.write(lines)
                self.n += LINES_PER_BODY
                await asyncio.sleep(_PAUSE_S)

    async def _is_stored(self, client: httpx.AsyncClient, lines: bytes) -> bool:
        try:
            answer = await client.post(self._url, content=lines, headers={"Idempotency-Key": f"{self.name}/{self.n}"})
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK
