"""The control plane's connection to a real nats-server: what is served is served whatever comes first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

import control_plane.bus
from control_plane.bus import Bus, several_at_once
from control_plane.keys import KeyRing
from pipelines.contract import subjects
from tests.nats_broker import Broker

WAIT_S = 20


def test_what_is_asked_to_be_served_while_the_connection_is_made_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(tmp_path)
    flush = Client.flush
    served: list[asyncio.Task[None]] = []

    async def story() -> None:
        bus = Bus(broker.url, KeyRing.open(tmp_path / "keys").server_creds(int(time.time())), None)

        async def answers(_: str, message: Msg) -> None:
            await message.respond(b"here")

        async def as_it_is_flushed(client: Client, timeout: float = 10) -> None:
            if not served:
                served.append(asyncio.create_task(bus.serve({subjects.data_of(3)}, answers)))
                await asyncio.sleep(0.05)
            await flush(client, timeout)

        monkeypatch.setattr(Client, "flush", as_it_is_flushed)
        running = asyncio.create_task(bus.run())
        try:
            await asyncio.wait_for(bus.is_connected.wait(), WAIT_S)
            await asyncio.wait_for(served[0], WAIT_S)
            node = await nats.connect(broker.url)
            subject = subjects.data_of(3).replace("*", "n1")
            assert (await node.request(subject, b"", timeout=WAIT_S)).data == b"here"
            await node.close()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    try:
        asyncio.run(story())
    finally:
        broker.kill()


def test_what_a_broker_that_stood_still_did_not_confirm_is_served_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control_plane.bus, "_FLUSH_S", 1)
    broker = Broker(tmp_path)

    async def story() -> None:
        bus = Bus(broker.url, KeyRing.open(tmp_path / "keys").server_creds(int(time.time())), None)

        async def answers(_: str, message: Msg) -> None:
            await message.respond(b"here")

        running = asyncio.create_task(bus.run())
        try:
            await asyncio.wait_for(bus.is_connected.wait(), WAIT_S)
            broker.process.send_signal(signal.SIGSTOP)
            os.waitpid(broker.process.pid, os.WUNTRACED)
            try:
                await asyncio.wait_for(bus.serve({subjects.data_of(3)}, answers), WAIT_S)
            finally:
                broker.process.send_signal(signal.SIGCONT)
            node = await nats.connect(broker.url)
            subject = subjects.data_of(3).replace("*", "n1")
            async with asyncio.timeout(WAIT_S):
                while True:
                    with contextlib.suppress(nats.errors.NoRespondersError):
                        assert (await node.request(subject, b"", timeout=WAIT_S)).data == b"here"
                        break
                    await asyncio.sleep(0.1)
            await asyncio.wait_for(bus.is_connected.wait(), WAIT_S)
            await node.close()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    try:
        asyncio.run(story())
    finally:
        broker.kill()
    assert "encountered error" not in caplog.text


def test_a_stop_ends_it_whatever_the_client_swallows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(tmp_path)

    async def story() -> None:
        bus = Bus(broker.url, KeyRing.open(tmp_path / "keys").server_creds(int(time.time())), None)

        async def nobody(_: str, message: Msg) -> None: ...

        async def swallows(client: Client, timeout: float = 10) -> None:
            with contextlib.suppress(asyncio.CancelledError):  # as `wait_for`, when what it waits for comes at that moment
                flushing.set()
                await asyncio.sleep(WAIT_S)

        running, flushing = asyncio.create_task(bus.run()), asyncio.Event()
        await asyncio.wait_for(bus.is_connected.wait(), WAIT_S)
        monkeypatch.setattr(Client, "flush", swallows)
        serving = asyncio.create_task(bus.serve({subjects.data_of(3)}, nobody))
        await asyncio.wait_for(flushing.wait(), WAIT_S)
        serving.cancel()
        running.cancel()
        await asyncio.wait({serving, running}, timeout=WAIT_S)
        assert serving.cancelled() and running.cancelled()

    try:
        asyncio.run(story())
    finally:
        broker.kill()


def test_so_many_messages_are_handled_at_once_and_no_more() -> None:
    running, most = 0, 0

    async def handle(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if number == 3:
            raise ValueError(number)

    async def story() -> None:
        begin = several_at_once(handle, 4)
        for number in range(20):
            await begin(number)
        while running:
            await asyncio.sleep(0)

    asyncio.run(story())
    assert most == 4


def test_what_a_broker_that_goes_does_not_take_is_a_line_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = Broker(tmp_path)

    async def closed(client: Client, subject: str, payload: bytes = b"") -> None:
        raise nats.errors.ConnectionClosedError

    async def story() -> None:
        bus = Bus(broker.url, KeyRing.open(tmp_path / "keys").server_creds(int(time.time())), None)
        running = asyncio.create_task(bus.run())
        await asyncio.wait_for(bus.is_connected.wait(), WAIT_S)
        monkeypatch.setattr(Client, "publish", closed)
        await bus.poke("n1")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    try:
        asyncio.run(story())
    finally:
        broker.kill()
    said = capsys.readouterr().out
    assert "bus: not sent" in said
    assert "Traceback" not in said
