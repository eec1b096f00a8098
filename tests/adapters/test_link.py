"""NatsLink against a real nats-server: what comes, goes, hangs and refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from cryptography.hazmat.primitives import serialization

from control_plane.tls import _authority, open_tls
from edge_agent import link as link_module
from edge_agent.link import LinkDown, Login, NatsLink
from pipelines.contract.errors import Refused
from pipelines.contract.keys import Key
from tests.nats_broker import Broker

USERS = """
authorization { users = [
  {user: control, password: c},
  {user: node, password: n, permissions: {publish: ["ask.>"], subscribe: ["_INBOX_n.>", "poke"]}}
] }
"""


class Proxy:
    """TCP in front of the broker, to be cut (connections reset) or black-holed (open, but nothing moves); or a slow one."""

    def __init__(self, target: int, bytes_per_s: int = 0) -> None:
        self._target, self._bytes_per_s = target, bytes_per_s
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def start(self) -> int:
        line = socket.socket()
        if self._bytes_per_s:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)  # what waits, waits at the sender
        line.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._serve, sock=line)
        return int(self._server.sockets[0].getsockname()[1])

    def black_hole(self) -> None:
        self._flows.clear()

    def heal(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1], self._bytes_per_s), self._pump(there[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: int = 0) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(16384):
                await self._flows.wait()
                writer.write(data)
                await asyncio.sleep(len(data) / bytes_per_s if bytes_per_s else 0)
        writer.close()


def in_a_loop(test: Callable[[Broker], Coroutine[Any, Any, None]]) -> Callable[[Broker], None]:
    """Run a coroutine test; a hung one fails."""

    def run(broker: Broker) -> None:
        asyncio.run(asyncio.wait_for(test(broker), 60))

    run.__name__ = test.__name__
    return run


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path, USERS)
    yield broker
    broker.kill()


@contextlib.asynccontextmanager
async def echo(broker: Broker) -> AsyncIterator[nats.NATS]:
    """Something on the other side that answers `ask.echo`."""
    client = await nats.connect(
        f"nats://control:c@127.0.0.1:{broker.port}", max_reconnect_attempts=-1, reconnect_time_wait=0.1, inbox_prefix="_INBOX_c"
    )

    async def answer(message: nats.aio.msg.Msg) -> None:
        await message.respond(b"echo " + message.data)

    await client.subscribe("ask.echo", cb=answer)
    await client.subscribe("ask.silence")
    await client.flush()
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def linked(port: int, **login: str) -> AsyncIterator[NatsLink]:
    link = NatsLink(Login(login.pop("url", f"nats://node:n@127.0.0.1:{port}"), "_INBOX_n", **login))
    link.pokes = 0  # type: ignore[attr-defined]

    def count() -> None:
        link.pokes += 1  # type: ignore[attr-defined]

    link.on_message("poke", count)
    running = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def up(link: NatsLink, state: bool = True, within_s: float = 15) -> None:
    changed = asyncio.Event()
    link.on_change(changed.set)
    async with asyncio.timeout(within_s):
        while link.is_up is not state:
            await changed.wait()
            changed.clear()


@in_a_loop
async def test_request_is_answered_and_a_poke_arrives(broker: Broker) -> None:
    async with echo(broker) as control, linked(broker.port) as link:
        await up(link)
        assert await link.request("ask.echo", b"hi", 2) == b"echo hi"
        await control.publish("poke")
        async with asyncio.timeout(5):
            while not link.pokes:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)


@in_a_loop
async def test_a_killed_broker_fails_the_pending_request_at_once_and_the_link_returns(broker: Broker) -> None:
    async with echo(broker), linked(broker.port) as link:
        await up(link)
        asking = asyncio.create_task(link.request("ask.silence", b"", 30))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        broker.kill()
        with pytest.raises(LinkDown):
            await asking
        assert time.monotonic() - started < 5
        await up(link, False)
        with pytest.raises(LinkDown):
            await link.request("ask.echo", b"", 1)
        broker.start()
        await up(link)
        assert await _eventually_echo(link) == b"echo again"


@in_a_loop
async def test_a_cut_connection_is_made_anew(broker: Broker) -> None:
    proxy = Proxy(broker.port)
    port = await proxy.start()
    async with echo(broker), linked(port) as link:
        await up(link)
        proxy.cut()
        await up(link, False)
        await up(link)
        assert await link.request("ask.echo", b"hi", 2) == b"echo hi"


@in_a_loop
async def test_two_timeouts_in_a_row_replace_a_black_holed_connection(broker: Broker) -> None:
    proxy = Proxy(broker.port)
    port = await proxy.start()
    async with echo(broker), linked(port) as link:
        await up(link)
        proxy.black_hole()
        for _ in range(link_module.TIMEOUTS_MAX + 2):  # bytes may move for a while, from buffer to buffer
            with pytest.raises(LinkDown):
                await link.request("ask.echo", b"x" * 500_000, 0.3)
        await up(link, False, within_s=5)
        proxy.heal()
        await up(link)
        assert await link.request("ask.echo", b"hi", 2) == b"echo hi"


@in_a_loop
async def test_a_slow_line_is_not_taken_for_a_dead_one(broker: Broker) -> None:
    proxy = Proxy(broker.port, bytes_per_s=200_000)
    port = await proxy.start()
    async with echo(broker), linked(port) as link:
        await up(link)
        long = asyncio.create_task(link.request("ask.echo", b"x" * 1_000_000, 30))
        await asyncio.sleep(0.1)  # it goes first
        for _ in range(link_module.TIMEOUTS_MAX + 1):
            with pytest.raises(LinkDown, match="no answer"):
                await link.request("ask.echo", b"behind it", 1)
        assert len(await long) == 1_000_005, "the connection was not given up"


@in_a_loop
async def test_what_the_broker_denies_is_refused_and_not_a_timeout(broker: Broker) -> None:
    async with echo(broker), linked(broker.port) as link:
        await up(link)
        started = time.monotonic()
        with pytest.raises(Refused):
            await link.request("Other.subject", b"", 10)
        assert time.monotonic() - started < 5
        assert await link.request("ask.echo", b"still up", 2) == b"echo still up"


@in_a_loop
async def test_nobody_behind_the_broker_is_link_down(broker: Broker) -> None:
    async with linked(broker.port) as link:
        await up(link)
        with pytest.raises(LinkDown, match="control plane is not"):
            await link.request("ask.echo", b"", 2)
        assert link.is_up


@in_a_loop
async def test_wrong_credentials_are_told_and_tried_again(broker: Broker) -> None:
    async with linked(broker.port, url=f"nats://node:wrong@127.0.0.1:{broker.port}") as link:
        async with asyncio.timeout(10):
            while "refused" not in link.trouble:
                await asyncio.sleep(0.02)
        assert not link.is_up


async def _eventually_echo(link: NatsLink) -> bytes:
    async with asyncio.timeout(10):
        while True:
            try:
                return await link.request("ask.echo", b"again", 2)
            except LinkDown:
                await asyncio.sleep(0.05)


TLS = 'tls { cert_file: "CERTIFICATE", key_file: "KEY", handshake_first: true }\n'


@pytest.fixture
def tls_broker(tmp_path: Path) -> Iterator[tuple[Broker, str]]:
    files = open_tls(tmp_path / "tls", "127.0.0.1")
    text = TLS.replace("CERTIFICATE", str(files.certificate)).replace("KEY", str(files.key))
    broker = Broker(tmp_path, text)
    yield broker, files.ca_pem
    broker.kill()


def test_with_an_authority_the_link_is_encrypted(tls_broker: tuple[Broker, str]) -> None:
    broker, authority = tls_broker

    async def go() -> None:
        async with linked(broker.port, url=f"nats://127.0.0.1:{broker.port}", ca=authority) as link:
            await up(link)
            assert link._client is not None
            assert link_module._is_encrypted(link._client)

    asyncio.run(go())


def test_i13_a_broker_that_says_it_has_no_tls_gets_not_one_word() -> None:
    heard = bytearray()
    was_here = asyncio.Event()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"headers":true,"nonce":"abc"}\r\n')
        heard.extend(await reader.read(65536))
        was_here.set()
        writer.close()

    async def go() -> None:
        server = await asyncio.start_server(pretend, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        key = Key.from_entropy(b"k" * 32)
        authority = _authority()[1].public_bytes(serialization.Encoding.PEM).decode()
        async with linked(port, url=f"nats://127.0.0.1:{port}", ca=authority, jwt="the-jwt", seed=key.seed) as link:
            async with asyncio.timeout(15):
                await was_here.wait()
            assert not link.is_up
        server.close()

    asyncio.run(go())
    assert heard[:1] == b"\x16", "a TLS handshake, before anything else"
    assert b"the-jwt" not in heard
