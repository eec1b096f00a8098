"""Serve the nodes of the partitions that this process holds, and tell SQL that it lives. Several processes share the nodes so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from control_plane.bus import Bus, Handler
from control_plane.leases import BEAT_EVERY_S, TTL_S, Leases
from pipelines.contract import subjects

log = structlog.get_logger()


class Serving:
    """`name` is this process's own; one that is used again after a crash takes its partitions back at once.

    `with_db` runs a function in one transaction of the store.
    """

    def __init__(self, name: str, bus: Bus, with_db: Callable[..., Awaitable[Any]], handler: Handler) -> None:
        self._name, self._bus, self._with_db, self._handler = name, bus, with_db, handler
        self.held: frozenset[int] = frozenset()
        self.has_begun = asyncio.Event()  # what this process holds now is served

    async def run(self) -> None:
        leases: Leases | None = None
        renewed_s = time.monotonic()
        try:
            while True:
                try:
                    leases = leases or await self._with_db(Leases, self._name)
                    held = await self._with_db(leases.step, time.monotonic())
                    renewed_s = time.monotonic()
                except Exception as error:  # noqa: BLE001 - a full disk, a locked database, somebody who was quicker
                    log.warning("ingest: the leases could not be renewed", reason=str(error).partition("\n")[0])
                    held = self.held if time.monotonic() - renewed_s < TTL_S else frozenset()
                await self._take(held)
                self.has_begun.set()
                await asyncio.sleep(BEAT_EVERY_S)
        finally:
            if leases is not None:
                await self._leave(leases)

    async def _leave(self, leases: Leases) -> None:
        try:
            await self._with_db(leases.leave)
        except Exception as error:  # noqa: BLE001 - the others find out by themselves
            log.warning("ingest: the leases could not be given up", reason=str(error).partition("\n")[0])

    async def _take(self, held: frozenset[int]) -> None:
        if held != self.held:
            log.info("ingest: serves", process=self._name, partitions=sorted(held))
        self.held = held
        await self._bus.serve({subjects.data_of(partition) for partition in held}, self._handler)
