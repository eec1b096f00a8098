"""The store on its one thread, for the loop and for other threads; what never changes in it is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

import structlog

from control_plane import fleet, registry
from control_plane.lineage import WindowKey
from control_plane.store import Store

log = structlog.get_logger()
T = TypeVar("T")


class StoreThread:
    """Owns neither: who made `store` and `thread` closes them."""

    def __init__(self, store: Store, thread: Executor) -> None:
        self._store, self._thread = store, thread
        self._publics: dict[str, str] = {}
        self._tables: dict[tuple[str, str], Mapping[str, WindowKey | None]] = {}

    async def run(self, do: Callable[..., T], *args: Any, **options: Any) -> T:
        """`do(*args, **options)` on the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: do(*args, **options))

    async def with_db(self, do: Callable[..., T], *args: Any) -> T:
        """`do(db, *args)` in one transaction."""
        return await self.run(self._in_transaction, do, *args)

    async def try_note(self, do: Callable[..., None], *args: Any) -> None:
        """Write what nothing depends on: a full disk or a locked database must not end the process."""
        try:
            await self.with_db(do, *args)
        except Exception as error:  # noqa: BLE001 - as the docstring says
            log.error("not noted", what=do.__name__, reason=str(error).partition("\n")[0])

    async def report_security(self, node: str, event: str) -> None:
        log.warning("security", node=node, security_event=event)
        await self.try_note(fleet.record_security, node, event)

    async def public_key(self, node: str) -> str | None:
        """Of an enrolled node; None for others."""
        if node not in self._publics:
            public = await self.with_db(fleet.public_key, node)
            if public is None:
                return None
            self._publics[node] = public
        return self._publics[node]

    def forget(self, node: str) -> None:
        """It was removed."""
        self._publics.pop(node, None)

    def tables_of(self, pipeline: str, digest: str) -> Mapping[str, WindowKey | None]:
        """For another thread. Versions are append-only: what was found once stays."""
        key = (pipeline, digest)
        if key not in self._tables:
            found = self._thread.submit(self._in_transaction, registry.tables_of, pipeline, digest).result()
            if not found:
                return found
            self._tables[key] = found
        return self._tables[key]

    def _in_transaction(self, do: Callable[..., T], *args: Any) -> T:
        with self._store.write() as db:
            return do(db, *args)
