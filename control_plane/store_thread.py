"""The store on its one thread, for the loop and for other threads; what never changes in it is remembered.

A commit waits for the disk, and a fleet that comes back asks all at once: `shared` commits for many together.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

import structlog
from sqlalchemy.engine import Connection

from control_plane import fleet, registry
from control_plane.lineage import WindowKey
from control_plane.store import Store

log = structlog.get_logger()
T = TypeVar("T")
_TOGETHER_MAX = 32  # in one transaction: what else has to do with the store waits for them
_Job = tuple[str, Callable[[Connection], Any], "Future[Any]"]


class StoreThread:
    """Owns neither: who made `store` and `thread` closes them."""

    def __init__(self, store: Store, thread: Executor) -> None:
        self._store, self._thread = store, thread
        self._publics: dict[str, str] = {}
        self._tables: dict[tuple[str, str], Mapping[str, WindowKey | None]] = {}
        self._waiting: list[_Job] = []
        self._sharing: asyncio.Task[None] | None = None

    async def run(self, do: Callable[..., T], *args: Any, **options: Any) -> T:
        """`do(*args, **options)` on the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: do(*args, **options))

    async def with_db(self, do: Callable[..., T], *args: Any) -> T:
        """`do(db, *args)` in one transaction."""
        return await self.run(self._in_transaction, do, *args)

    async def shared(self, node: str, do: Callable[[Connection], T]) -> T:
        """`do(db)` in a transaction with others that wait; returns when that is committed. What `do` raises undoes only what it
        wrote itself. Those of one node keep their order."""
        done: Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((node, do, done))
        if self._sharing is None:
            self._sharing = asyncio.create_task(self._share())
        return await done

    async def _share(self) -> None:
        try:
            while self._waiting:
                # By node, so that two processes that lock the same rows never wait for each other.
                jobs = sorted(self._waiting[:_TOGETHER_MAX], key=lambda job: job[0])
                del self._waiting[:_TOGETHER_MAX]
                try:
                    ends = await self.run(self._together, [do for _, do, _ in jobs])
                except Exception as error:  # noqa: BLE001 - nothing was committed: each of them is told
                    ends = [error] * len(jobs)
                for (_, _, done), end in zip(jobs, ends, strict=True):
                    if done.done():  # nobody waits for it any more
                        continue
                    if isinstance(end, Exception):
                        done.set_exception(end)
                    else:
                        done.set_result(end)
        finally:
            self._sharing = None

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

    def _together(self, jobs: Sequence[Callable[[Connection], Any]]) -> list[Any]:
        """What each returned or raised."""
        if len(jobs) == 1:
            return [self._in_transaction(jobs[0])]
        ends = list[Any]()
        with self._store.write() as db:
            for do in jobs:
                try:
                    with db.begin_nested():
                        end = do(db)
                except Exception as error:  # noqa: BLE001 - told to who asked; the others go on
                    end = error
                ends.append(end)
        return ends

    def _in_transaction(self, do: Callable[..., T], *args: Any) -> T:
        with self._store.write() as db:
            return do(db, *args)
