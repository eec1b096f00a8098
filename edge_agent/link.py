"""The connection to the control plane. Every foreign error becomes `LinkDown` or `Refused` here; nobody else sees one."""

from __future__ import annotations

import asyncio
import fcntl
import random
import socket
import ssl
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg

from edge_agent import clock
from pipelines.contract.errors import OutOfReach, Refused

CONNECT_TIMEOUT_S = 10.0
BACKOFF_REFUSED_S = 30.0  # a login that is refused is tried this often
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 5.0  # 0.5, 1, 2, 4, 5, 5 s, each with jitter: a link that is back is used within seconds
TIMEOUTS_MAX = 2  # in a row: then the connection is taken for dead, long before TCP notices
PAYLOAD_BYTES_MAX = 1 << 20  # of one message, until a broker says what it takes
_PING_S, _PINGS_MAX = 10, 12  # over 5 kB/s a ping waits 100 s behind a segment: a dead line is found by the next one, sooner
_UNACKED_MS_MAX = 30_000  # that bytes are on the line and none is acknowledged
_CLOSE_S = 1.0
_REFUSED = "the broker refused this node's credentials"
_X509_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME; Python has no name for it
_log = structlog.get_logger("link")


class LinkDown(OutOfReach):
    """Not connected, or no answer: whether the request arrived is unknown."""


class Link(Protocol):
    """Request/reply that comes and goes. `on_change` callbacks run on the event loop whenever `is_up` changed."""

    @property
    def is_up(self) -> bool: ...
    @property
    def payload_bytes_max(self) -> int:
        """Of one request, as the broker on the other end says."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None: ...
    def on_message(self, subject: str, callback: Callable[[], None]) -> None: ...
    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes: ...
    async def publish(self, subject: str, data: bytes) -> None: ...
    async def run(self) -> None: ...


@dataclass(frozen=True)
class Login:
    """How to reach and convince a broker. `jwt` and `seed` are secrets; `ca` is PEM, "" for no TLS."""

    url: str
    inbox: str
    jwt: str = ""
    seed: str = ""
    ca: str = ""
    name: str = ""

    def __repr__(self) -> str:
        return f"Login({self.url})"


class NatsLink:
    """Its own supervision over nats-py, whose reconnecting gives up in some states and hides the others."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._client: Client | None = None
        self._closed: asyncio.Future[None] | None = None  # of the connection in use; done when it is lost
        self._callbacks: list[Callable[[], None]] = []
        self._subscriptions: dict[str, Callable[[], None]] = {}
        self._denied: dict[str, asyncio.Future[bytes]] = {}
        self._last_error: Exception | None = None  # nats-py tells the cause of a failed connect only to its callback
        self._timeouts = 0
        self.trouble = "not tried yet"  # why it is down; "" when it is up
        self.since = clock.wall_text()  # of the present state: a label

    @property
    def is_up(self) -> bool:
        return self._closed is not None

    @property
    def is_refused(self) -> bool:
        """Whether the broker is there and does not take this login."""
        return self.trouble == _REFUSED

    @property
    def payload_bytes_max(self) -> int:
        return self._client.max_payload if self._client is not None else PAYLOAD_BYTES_MAX

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def on_message(self, subject: str, callback: Callable[[], None]) -> None:
        """Before `run`: have `callback` called for each message on `subject`; the messages carry nothing."""
        self._subscriptions[subject] = callback

    async def run(self) -> None:
        """Connect, and connect again, for ever."""
        pause_s = BACKOFF_FIRST_S
        try:
            while True:
                if closed := await self._connect():
                    pause_s = BACKOFF_FIRST_S
                    await closed
                    await self._drop("the connection was lost")
                pause_s = BACKOFF_REFUSED_S if self.is_refused else min(pause_s, BACKOFF_MAX_S)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads a fleet; no secret
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        finally:
            await self._drop("closed")

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """The reply. Raises `LinkDown`, or `Refused` when the broker does not let this node ask that."""
        client, closed = self._client, self._closed
        if client is None or closed is None:
            raise LinkDown(self.trouble, op="request", place=self._login.url, hint="it is tried again by itself")
        halfway = asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_later(timeout_s / 2, lambda: halfway.set_result(_delivered_bytes(client)))
        denied = self._denied.setdefault(subject.lower(), asyncio.get_running_loop().create_future())
        asking = asyncio.create_task(client.request(subject, data, timeout=timeout_s))
        try:
            async with asyncio.timeout(timeout_s + 1):  # a full socket blocks before nats-py's own time-out starts
                waited_for: set[asyncio.Future[Any]] = {asking, closed, denied}
                await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if denied.done():
                raise Refused("the broker does not allow it", op="request", place=subject, hint="was this node removed?")
            if not asking.done():
                raise LinkDown("the connection was lost", op="request", place=self._login.url)
            reply: Msg = asking.result()
        except (TimeoutError, nats_errors.TimeoutError):
            if not (_queued_bytes(client) and halfway.done() and _delivered_bytes(client) > halfway.result()):
                self._count_timeout(closed)  # else the line is slow: what was before it is still under way
            raise LinkDown(f"no answer within {timeout_s:g} s", op="request", place=subject) from None
        except nats_errors.NoRespondersError:
            raise LinkDown("the broker is there, the control plane is not", op="request", place=subject) from None
        except (nats_errors.Error, OSError) as error:
            raise LinkDown(str(error), op="request", place=subject) from error
        finally:
            timer.cancel()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            if not denied.done():
                self._denied.pop(subject.lower(), None)
        self._timeouts = 0
        return bytes(reply.data)

    async def publish(self, subject: str, data: bytes) -> None:
        """Fire and forget. Raises `LinkDown` when there is no connection."""
        if self._client is None:
            raise LinkDown(self.trouble, op="publish", place=self._login.url)
        try:
            await _within(CONNECT_TIMEOUT_S, self._client.publish(subject, data))
        except (TimeoutError, nats_errors.Error, OSError) as error:
            raise LinkDown(str(error), op="publish", place=subject) from error

    def _count_timeout(self, closed: asyncio.Future[None]) -> None:
        self._timeouts += 1
        if self._timeouts >= TIMEOUTS_MAX and not closed.done():
            _log.warning("no answer twice in a row; connecting anew")
            closed.set_result(None)

    async def _connect(self) -> asyncio.Future[None] | None:
        """A future that ends with the connection; None, with the reason in `trouble`, when there is none."""
        client, closed = Client(), asyncio.get_running_loop().create_future()

        async def on_closed() -> None:
            if not closed.done():
                closed.set_result(None)

        try:
            self._last_error = None
            await _within(CONNECT_TIMEOUT_S, self._open(client, on_closed))
        except (TimeoutError, nats_errors.Error, OSError, ValueError) as error:
            self._set_trouble(_in_words(self._last_error or error))
            await _abandon(client)
            return None
        self._client, self._closed, self._timeouts = client, closed, 0
        self._set_trouble("")
        return closed

    async def _open(self, client: Client, on_closed: Callable[[], Awaitable[None]]) -> None:
        await client.connect(**self._options(on_closed))
        if self._login.ca and not _is_encrypted(client):
            raise ssl.SSLError("the broker does not encrypt")
        if line := _socket(client):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKED_MS_MAX)
        for subject, callback in self._subscriptions.items():
            await client.subscribe(subject, cb=_ignoring_content(callback))

    def _options(self, on_closed: Callable[[], Awaitable[None]]) -> dict[str, Any]:
        login = self._login
        options: dict[str, Any] = {
            "servers": [login.url],
            "name": login.name,
            "inbox_prefix": login.inbox,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,  # even so it would try the first connection sixty times, two seconds apart
            "reconnect_time_wait": 0,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "ping_interval": _PING_S,
            "max_outstanding_pings": _PINGS_MAX,
            "closed_cb": on_closed,
            "error_cb": self._on_error,
        }
        if login.jwt:
            options["user_credentials"] = RawCredentials(_credentials(login))
        if login.ca:
            options["tls"] = _tls_context(login.ca)
            options["tls_handshake_first"] = True  # or whoever is in between could say that there is no TLS, and read all
        return options

    async def _on_error(self, error: Exception) -> None:
        """Permission denials arrive only here: hand each to the request that waits for an answer."""
        text = str(error)
        for subject, denied in list(self._denied.items()):
            if "permissions violation" in text.lower() and f'"{subject}"' in text.lower() and not denied.done():
                denied.set_result(b"")
                del self._denied[subject]
        self._last_error = error
        _log.debug("broker", said=text)

    async def _drop(self, reason: str) -> None:
        client, closed, self._client, self._closed = self._client, self._closed, None, None
        if closed is not None and not closed.done():
            closed.set_result(None)
        if client is not None:
            self._set_trouble(reason)
            await _abandon(client)

    def _set_trouble(self, trouble: str) -> None:
        if trouble == self.trouble:
            return
        was_up, self.trouble = not self.trouble, trouble
        if was_up or not trouble:
            self.since = clock.wall_text()
        _log.info("link up" if not trouble else "link down", url=self._login.url, **({"reason": trouble} if trouble else {}))
        for callback in self._callbacks:
            callback()


@asynccontextmanager
async def connected(login: Login, within_s: float = CONNECT_TIMEOUT_S + 5) -> AsyncIterator[NatsLink]:
    """A connection for one question. Raises `LinkDown` with the cause when the first try does not succeed."""
    link, tried = NatsLink(login), asyncio.Event()
    link.on_change(tried.set)
    running = asyncio.create_task(link.run())
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(tried.wait(), within_s)
        if not link.is_up:
            raise LinkDown(link.trouble or "no connection", op="connect", place=login.url)
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """`work` in a task of its own: nats-py awaits with `wait_for`, which in Python 3.11 may swallow our cancellation."""
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError
        task.result()
    finally:
        task.cancel()


def _writer(client: Client) -> asyncio.StreamWriter | None:
    return getattr(getattr(client, "_transport", None), "_io_writer", None)  # nats-py offers no way to ask


def _is_encrypted(client: Client) -> bool:
    writer = _writer(client)
    return writer is not None and writer.get_extra_info("ssl_object") is not None


def _socket(client: Client) -> socket.socket | None:
    writer = _writer(client)
    return writer.get_extra_info("socket") if writer is not None else None


def _queued_bytes(client: Client) -> int:
    """What was handed over and the other end of the connection has not acknowledged."""
    writer, line = _writer(client), _socket(client)
    if writer is None or line is None or line.fileno() < 0:
        return 0
    (unacknowledged,) = struct.unpack("i", fcntl.ioctl(line, termios.TIOCOUTQ, b"\0" * 4))
    return int(unacknowledged) + writer.transport.get_write_buffer_size() + client.pending_data_size


def _delivered_bytes(client: Client) -> int:
    return client.stats["out_bytes"] - _queued_bytes(client)


async def _abandon(client: Client) -> None:
    """Close it, and if the other side takes nothing any more, cut it."""
    with suppress(Exception):
        await _within(_CLOSE_S, client.close())
    writer = _writer(client)
    if writer is not None:
        writer.transport.abort()


def _ignoring_content(callback: Callable[[], None]) -> Callable[[Msg], Awaitable[None]]:
    async def on_message(message: Msg) -> None:
        callback()

    return on_message


def _credentials(login: Login) -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{login.jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{login.seed}\n------END USER NKEY SEED------\n"
    )


def _tls_context(ca: str) -> ssl.SSLContext:
    """Trust exactly this authority. It vouches for one control plane only, so the host name adds nothing and may change."""
    context = ssl.create_default_context(cadata=ca)
    context.check_hostname = False
    if clock.quality() != "synced":
        context.verify_flags |= _X509_NO_CHECK_TIME  # I10: a wrong clock keeps nobody out
    return context


def _in_words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    text = str(error) or type(error).__name__
    if "authorization" in text.lower():
        return _REFUSED
    return text
