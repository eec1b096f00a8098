"""The control plane's own NATS connection: kept for ever, rebuilt when the client gives up, subscriptions with it."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import nats
import structlog
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from sqlalchemy.exc import SQLAlchemyError

from pipelines.contract import subjects
from pipelines.contract.errors import TidewireError

log = structlog.get_logger()

Handler = Callable[[str, Msg], Awaitable[None]]  # (node or token id, message)
_PENDING_BYTES_MAX = 128 * 1024 * 1024
_FLUSH_S = 10  # until the broker has answered
_CLOSE_S = 2.0
_QUEUE = "ingest"  # while a subject passes from one process to another, one of them gets each message


class Bus:
    """Subscribes handlers to subjects whose last token names the sender; publishes pokes."""

    def __init__(self, url: str, creds: str, tls: ssl.SSLContext | None) -> None:
        self._url, self._creds, self._tls = url, creds, tls
        self._handlers: dict[str, tuple[Handler, int]] = {}
        self._served: dict[str, Handler] = {}
        self._subscriptions: dict[str, Subscription] = {}  # of `_served`, on this connection
        self._serving = asyncio.Lock()  # held from a change of `_served` until the broker knows of it
        self._client: Client | None = None
        self.is_connected = asyncio.Event()

    def on(self, subject: str, handler: Handler, at_once: int = 1) -> None:
        """Before `run`: have `handler` called for every message on `subject`, for so many at once."""
        self._handlers[subject] = handler, at_once

    async def serve(self, subjects: Collection[str], handler: Handler) -> None:
        """From now on, have `handler` called for exactly these subjects, besides those of `on`."""
        async with self._serving:
            self._served = dict.fromkeys(subjects, handler)
            if self.is_connected.is_set():
                try:
                    await _apart(self._subscribe_served())
                except (nats.errors.Error, OSError, TimeoutError) as error:
                    log.warning("bus: not subscribed", cause=str(error) or type(error).__name__)
                    await self._close()  # a connection anew: nats-py reads no more once the answer to a flush comes too late

    async def poke(self, node: str) -> None:
        """A hint that something changed (I7)."""
        await self._send(subjects.poke(node), b"")

    async def answer(self, message: Msg, sender: str, data: bytes) -> None:
        """Reply, but only into the sender's own inbox: no node can have us write to another."""
        if message.reply.startswith(f"{subjects.inbox(sender)}."):
            await self._send(message.reply, data)

    async def _send(self, subject: str, data: bytes) -> None:
        """Lost without harm: a node asks by itself, and again (I7)."""
        client = self._client
        if client is None or not client.is_connected:
            return
        try:
            await client.publish(subject, data)
        except (nats.errors.Error, OSError, TimeoutError) as error:  # the broker stands still, or goes at this moment
            log.warning("bus: not sent", subject=subject, cause=str(error) or type(error).__name__)

    async def run(self) -> None:
        while True:
            closed = asyncio.Event()
            try:
                await _apart(self._connect(closed))
                await closed.wait()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                log.warning("bus: not connected", cause=str(error))
            finally:
                self.is_connected.clear()
                await self._close()
            await asyncio.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - spreads load, guards nothing

    async def _connect(self, closed: asyncio.Event) -> None:
        async def on_closed() -> None:
            closed.set()

        async def on_error(error: Exception) -> None:
            log.warning("bus: error", cause=str(error))

        async def on_change() -> None:
            (self.is_connected.set if client.is_connected else self.is_connected.clear)()

        client = self._client = Client()
        await client.connect(
            self._url,
            name="control",
            user_credentials=RawCredentials(self._creds),
            inbox_prefix=subjects.inbox("control"),
            tls=self._tls,
            tls_handshake_first=self._tls is not None,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=5,
            ping_interval=10,
            max_outstanding_pings=2,
            closed_cb=on_closed,
            error_cb=on_error,
            disconnected_cb=on_change,
            reconnected_cb=on_change,
        )
        for subject, (handler, at_once) in self._handlers.items():
            callback = several_at_once(_guarded(handler), at_once)
            await client.subscribe(subject, cb=callback, pending_bytes_limit=_PENDING_BYTES_MAX)
        async with self._serving:
            self._subscriptions.clear()
            await self._subscribe_served()
            self.is_connected.set()

    async def _subscribe_served(self) -> None:
        """Under `_serving`. Returns when the broker knows."""
        client = self._client
        assert client is not None, "connected"
        for subject in self._subscriptions.keys() - self._served.keys():
            await self._subscriptions.pop(subject).unsubscribe()
        for subject in self._served.keys() - self._subscriptions.keys():
            self._subscriptions[subject] = await client.subscribe(
                subject, _QUEUE, cb=_guarded(self._served[subject]), pending_bytes_limit=_PENDING_BYTES_MAX
            )
        await client.flush(_FLUSH_S)

    async def _close(self) -> None:
        if self._client is not None and not self._client.is_closed:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await _apart(self._client.close())
            except (nats.errors.Error, OSError, TimeoutError):
                log.debug("bus: closed in disorder")


def several_at_once(handle: Callable[[Any], Awaitable[None]], most: int) -> Callable[[Any], Awaitable[None]]:
    """`handle` for a client that awaits it before it hands over the next message: returns while fewer than `most` run."""
    room, running = asyncio.Semaphore(most), set[asyncio.Future[None]]()

    def end(task: asyncio.Future[None]) -> None:
        running.discard(task)
        room.release()

    async def begin(message: Any) -> None:
        await room.acquire()
        task = asyncio.ensure_future(handle(message))
        running.add(task)
        task.add_done_callback(end)

    return begin if most > 1 else handle


async def _apart(work: Coroutine[Any, Any, None]) -> None:
    """`work` in a task of its own: nats-py awaits with `wait_for`, which in Python 3.11 may swallow our cancellation."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
        task.result()
    finally:
        task.cancel()


def _guarded(handler: Handler) -> Callable[[Msg], Awaitable[None]]:
    """One bad message must not end the subscription."""

    async def guarded(message: Msg) -> None:
        try:
            await handler(message.subject.rpartition(".")[2], message)
        except TidewireError as error:
            log.warning("bus: message refused", subject=message.subject, cause=str(error))
        except SQLAlchemyError as error:  # a full disk, a locked database: the node asks again
            log.error("bus: message not answered", subject=message.subject, reason=str(error).partition("\n")[0])
        except Exception:
            log.exception("bus: handler failed", subject=message.subject)

    return guarded
