"""One more ingest process beside a control plane on the same machine: the same lake and store, a share of the nodes."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nats.aio.msg import Msg

from control_plane import fleet
from control_plane.bus import Bus
from control_plane.config import ApiAddress, ControlConfig
from control_plane.ingest import Ingest
from control_plane.keys import KeyRing
from control_plane.lake import Lake
from control_plane.lake_lock import LakeLock
from control_plane.serving import Serving
from control_plane.settle import Settler
from control_plane.store import Store, now_us
from control_plane.store_thread import StoreThread
from control_plane.tls import trusting
from pipelines.contract.errors import OutOfReach

_FLUSH_SEEN_S = 10.0


class IngestProcess:
    """`run` returns after SIGTERM or SIGINT, or when `stop` is set."""

    def __init__(self, config: ControlConfig, broker: str) -> None:
        self.name = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop = asyncio.Event()
        self.is_ready = asyncio.Event()
        self._store, self._store_thread = Store(config.database_url), ThreadPoolExecutor(1, "store")
        self._db = StoreThread(self._store, self._store_thread)
        keys = KeyRing.open(config.keys_dir)
        self._bus = Bus(broker, keys.server_creds(int(time.time())), trusting(config.data_dir / "tls"))
        settler = Settler(Lake(config.lake_dir, is_alone=False), config.refused_dir, self._db.tables_of)
        self._ingest = Ingest(settler, self._bus, keys.control, self._db.public_key, self._db.report_security)
        self._serving = Serving(self.name, self._bus, self._db.with_db, self._on_data)
        self._seen: dict[str, int] = {}

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)
        try:
            async with asyncio.TaskGroup() as group:
                work = (self._bus.run(), self._ingest.run(), self._flush_seen(), self._serving.run(), self._announce())
                tasks = [group.create_task(one) for one in work]
                await self.stop.wait()
                for task in reversed(tasks):
                    task.cancel()
        finally:
            self._store_thread.shutdown()
            self._store.close()

    async def _announce(self) -> None:
        await self._bus.is_connected.wait()
        self.is_ready.set()

    async def _on_data(self, node: str, message: Msg) -> None:
        self._seen[node] = now_us()
        await self._ingest.handle(node, message)

    async def _flush_seen(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SEEN_S)
            await self._db.try_note(fleet.flush_last_seen, dict(self._seen))


def serve(config: ControlConfig, ready: Callable[[IngestProcess], None]) -> None:
    """Run until SIGTERM. `ready` is called once it is connected. Raises `OutOfReach` when no control plane runs there."""
    address = ApiAddress.find(config.data_dir)
    if address is None or not address.broker:
        raise OutOfReach("no control plane runs here", op="ingest", place=str(config.data_dir), hint="start it with: tidewire up")
    with LakeLock(config.data_dir) as lock:
        lock.share()
        asyncio.run(_serve(IngestProcess(config, address.broker), ready))


async def _serve(process: IngestProcess, ready: Callable[[IngestProcess], None]) -> None:
    running = asyncio.create_task(process.run())
    waiting = asyncio.create_task(process.is_ready.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if process.is_ready.is_set():
        ready(process)
    waiting.cancel()
    await running
