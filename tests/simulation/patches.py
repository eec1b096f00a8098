"""What the simulated code finds in place of clocks, randomness, threads, processes and disks: for the time of one simulation."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import structlog

import control_plane.declare
import control_plane.ingest
import control_plane.lake
import control_plane.server
import edge_agent.actions
import edge_agent.clock
import edge_agent.database
import edge_agent.local_api
import edge_agent.reserve
import edge_agent.runner
import edge_agent.store
import pipelines.contract.yaml_reader
import pipelines.engine.plan
from edge_agent.actions.outcome import Done
from edge_agent.database import Database
from tests.simulation import loop as loops
from tests.simulation.life import LIFE, Machine
from tests.simulation.loop import Fiber, SimEvent, SimExecutor
from tests.simulation.network import SimBus

if TYPE_CHECKING:
    from tests.simulation.world import World

EPOCH_S = 1_770_000_000  # true time at virtual time 0
_read = lru_cache(64)(pipelines.contract.yaml_reader.read)  # pure, and each seed asks the same of them
_format_text = lru_cache(64)(control_plane.declare.format_text)
_GROWING = ("INSERT INTO outbox", "INSERT INTO state", "INSERT INTO quarantine")


@contextmanager
def virtual(world: World) -> Iterator[None]:
    """Everything below is undone at the end."""
    with ExitStack() as stack:
        for source in (_replacements(world), world.bug(), _lake_points(world)):
            for target, name, value in source:
                stack.enter_context(patch.object(target, name, value))
        before = structlog.get_config()
        structlog.configure(processors=[world.hear, _drop], wrapper_class=structlog.make_filtering_bound_logger(20))
        stack.callback(structlog.configure, **before)
        yield


def _drop(logger: Any, name: str, event: Any) -> Any:
    raise structlog.DropEvent


def _replacements(world: World) -> Iterator[tuple[Any, str, Any]]:
    yield from _time_and_chance(world)
    delay = world.random("executor")
    yield loops, "the_loop", world.loop
    yield SimExecutor, "delay", staticmethod(lambda: delay.uniform(0.0005, 0.02))
    yield SimExecutor, "on_crash", staticmethod(world.crash_life)
    executor = SimExecutor
    yield edge_agent.database, "ThreadPoolExecutor", executor
    yield control_plane.ingest, "ThreadPoolExecutor", executor
    yield control_plane.server, "ThreadPoolExecutor", executor
    yield edge_agent.database, "connect", _connecting(world)
    yield edge_agent.store, "connect", _connecting(world)
    yield edge_agent.store, "Database", _SimDatabase
    yield edge_agent.store, "_read_text", lambda path: _machine().hardware
    yield edge_agent.reserve, "RESERVE_BYTES", 64 * 1024
    yield edge_agent.local_api, "serve", _idle
    yield edge_agent.actions, "KINDS", {"log": _recording(world)}
    yield control_plane.server, "NatsServer", _NoNats
    yield control_plane.server, "Bus", lambda *_: SimBus(world.network)
    yield control_plane.server, "bind", lambda *_: SimpleNamespace(getsockname=lambda: ("127.0.0.1", 1))
    yield control_plane.server, "Api", lambda *_: SimpleNamespace(app=lambda: None)
    yield control_plane.server, "_http_server", lambda app: _NoHttp()
    yield control_plane.lake, "sync_filesystem", lambda directory: None
    # slower rhythms: a lake commit, a tick and a look at a file cost what they cost, and time is free
    yield control_plane.ingest, "GROUP_WAIT_S", 3.0
    yield control_plane.server, "FOLLOW_S", 15.0  # nobody requests anything here
    yield edge_agent.runner, "TICK_S", 4.0
    yield edge_agent.runner, "TICK_ALARMS_S", 4.0
    yield edge_agent.runner, "COMMIT_S", 5.0
    yield edge_agent.runner, "POLLS_S", ((float("inf"), 2.0),)
    yield pipelines.engine.plan, "compile_plan", world.compile
    yield pipelines.contract.yaml_reader, "read", _read
    yield control_plane.declare, "format_text", _format_text


def _machine() -> Machine:
    life = LIFE.get()
    assert life is not None
    return life.machine


def _time_and_chance(world: World) -> Iterator[tuple[Any, str, Any]]:
    """Of the node whose code asks; code outside the simulation gets the real ones."""
    real = SimpleNamespace(**{name: getattr(time, name) for name in ("monotonic", "time_ns", "gmtime", "clock_gettime_ns")})
    loop = world.loop

    def true_s() -> float:
        return EPOCH_S + loop.now

    def monotonic() -> float:
        life = LIFE.get()
        return real.monotonic() if life is None else loop.now - life.machine.booted_s

    def time_ns() -> int:
        life = LIFE.get()
        return real.time_ns() if life is None else int((true_s() + life.machine.wall_offset_s) * 1e6) * 1000

    def gmtime(seconds: float | None = None) -> time.struct_time:
        life = LIFE.get()
        return real.gmtime(true_s() + life.machine.wall_offset_s if seconds is None and life is not None else seconds)

    def clock_gettime_ns(which: int) -> int:
        life = LIFE.get()
        return real.clock_gettime_ns(which) if life is None else int((loop.now - life.machine.booted_s) * 1e6) * 1000

    def sleep(seconds: float) -> None:
        if Fiber.current is not None and Fiber.current.is_here:
            Fiber.current.park(seconds)

    yield time, "monotonic", monotonic
    yield time, "time_ns", time_ns
    yield time, "time", lambda: time_ns() / 1e9
    yield time, "gmtime", gmtime
    yield time, "clock_gettime_ns", clock_gettime_ns
    yield time, "sleep", sleep
    yield edge_agent.clock, "boot_id", lambda: _machine().boot_id
    yield edge_agent.clock, "quality", lambda: "synced" if _machine().is_synced else "unsynced"
    real_bytes = os.urandom

    def entropy(size: int | None = 32) -> bytes:
        life = LIFE.get()
        return real_bytes(size or 32) if life is None else life.machine.entropy.randbytes(size or 32)

    yield os, "urandom", entropy
    yield secrets, "token_bytes", entropy
    yield secrets, "token_hex", lambda size=32: entropy(size).hex()
    yield secrets, "token_urlsafe", lambda size=32: entropy(size).hex()
    yield random, "uniform", lambda low, high: _chance().uniform(low, high)
    yield random, "random", lambda: _chance().random()


def _chance() -> random.Random:
    life = LIFE.get()
    return random.Random() if life is None else life.machine.entropy


async def _idle(*_: Any) -> None:
    await asyncio.get_running_loop().create_future()


class _NoNats:
    local_url, port = "", 0

    def __init__(self, *_: Any) -> None:
        self.is_ready = asyncio.Event()
        self.is_ready.set()

    def prepare(self) -> None: ...

    def revoke(self, *_: Any) -> None: ...

    async def run(self) -> None:
        await _idle()


class _NoHttp:
    started, should_exit = True, False

    async def serve(self, **_: Any) -> None:
        while not self.should_exit:
            await asyncio.sleep(5)


def _recording(world: World) -> Callable[..., Any]:
    async def perform(action: Any, policy: Any) -> Done:
        world.performed(_machine().name, action)
        return Done()

    return perform


def _lake_points(world: World) -> Iterator[tuple[Any, str, Any]]:
    """Lake commits, with the places where the control plane may die or hang."""
    real = control_plane.lake.LakeTable.append

    def append(table: Any, rows: Any, marks: Any) -> None:
        life = LIFE.get()
        assert life is not None
        world.at("before the lake commit", life)
        real(table, rows, marks)
        world.at("after the lake commit", life)

    yield control_plane.lake.LakeTable, "append", append


class _SimDatabase(Database):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._closing = SimEvent()  # type: ignore[assignment]


class SimConnection(sqlite3.Connection):
    """Where the agent may die between any two statements, and where the disk may be full."""

    world: World

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        life = LIFE.get()
        if life is None:
            return super().execute(sql, *args)
        self.world.at(f"before {sql.split(maxsplit=1)[0]}", life)
        if sql.startswith(_GROWING) and self.world.is_disk_full(life.machine):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
            raise error
        cursor = super().execute(sql, *args)
        if sql == "COMMIT":
            self.world.at("after COMMIT", life)
        return cursor


def _connecting(world: World) -> Callable[[Path], sqlite3.Connection]:
    kind = type("Connection", (SimConnection,), {"world": world})

    def connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=kind)
        for pragma in edge_agent.database._PRAGMAS:
            sqlite3.Connection.execute(connection, pragma)
        sqlite3.Connection.execute(connection, "PRAGMA synchronous=OFF")
        return connection

    return connect
