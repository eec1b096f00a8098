"""Frames between agent and runner."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import pytest

from edge_agent.wire import AsyncChannel, Channel, to_frame
from pipelines.contract.errors import Refused


def test_blocking_ends_exchange_messages_in_order() -> None:
    left, right = socket.socketpair()
    a, b = Channel(left), Channel(right)
    a.send({"type": "one"}, [b"x" * 1000, b""])
    a.send({"type": "two", "n": 2})
    assert b.receive(1) == ({"type": "one"}, [b"x" * 1000, b""])
    assert b.receive(1) == ({"type": "two", "n": 2}, [])
    assert b.receive(0) is None


def test_a_message_cut_in_pieces_is_kept_until_it_is_whole() -> None:
    left, right = socket.socketpair()
    channel, frame = Channel(right), to_frame({"type": "late"}, [b"payload"])
    left.sendall(frame[:3])
    assert channel.receive(0.01) is None
    left.sendall(frame[3:-1])
    assert channel.receive(0.01) is None
    left.sendall(frame[-1:])
    assert channel.receive(1) == ({"type": "late"}, [b"payload"])


def test_a_dead_peer_is_end_of_file() -> None:
    left, right = socket.socketpair()
    left.close()
    with pytest.raises(EOFError):
        Channel(right).receive(1)


def test_a_frame_too_long_is_refused_before_it_is_read() -> None:
    left, right = socket.socketpair()
    left.sendall(struct.pack(">I", 1 << 31))
    with pytest.raises(Refused, match="a frame of"):
        Channel(right).receive(1)


def test_the_agents_end_speaks_with_the_runners() -> None:
    left, right = socket.socketpair()
    runner = Channel(right)
    big = b"z" * 3_000_000

    def echo() -> None:
        got = runner.receive(5)
        assert got is not None
        runner.send({"type": "echo"}, got[1])

    async def agent() -> None:
        channel = await AsyncChannel.open(left)
        await channel.send({"type": "hello"}, [big])
        assert await channel.receive() == ({"type": "echo"}, [big])
        right.shutdown(socket.SHUT_RDWR)
        with pytest.raises(EOFError):
            await channel.receive()
        channel.close()

    thread = threading.Thread(target=echo)
    thread.start()
    asyncio.run(agent())
    thread.join()
