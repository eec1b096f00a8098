"""One control plane in one process: the only TaskGroup, which wires the loops; and the only owner of the data directory."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
import uvicorn
from nats.aio.msg import Msg
from sqlalchemy.exc import SQLAlchemyError

from control_plane import artifacts, enrol, fleet, removal, requests, rollouts
from control_plane.api import Api
from control_plane.bus import Bus, Handler
from control_plane.commands import Commands, Done, Writer
from control_plane.config import LOOPBACK, ApiAddress, ControlConfig, make_private_dir
from control_plane.effects import Contact
from control_plane.exchange import exchange
from control_plane.incident_commands import IncidentCommands
from control_plane.ingest import Ingest
from control_plane.keys import KeyRing
from control_plane.lake import Lake
from control_plane.lake_lock import LakeLock
from control_plane.nats_server import NatsServer, bind
from control_plane.notes_commands import NoteCommands
from control_plane.notify import Notifier
from control_plane.serving import Serving
from control_plane.settle import Settler
from control_plane.store import Store, now_us
from control_plane.store_thread import StoreThread
from control_plane.tls import open_tls
from control_plane.upkeep import Upkeep
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.messages import Heartbeat, JoinReply

log = structlog.get_logger()
T = TypeVar("T")

FLUSH_SEEN_S = 10.0
AT_ONCE = 64  # exchanges that wait for one commit of the store
ROLL_S, REST_S = 5.0, 0.2  # between two looks at the rollouts: at most, at least
FOLLOW_S = 0.5
MAIN = "main"  # of the ingest processes of a data directory the one in the control plane itself


class ControlPlane:
    """Everything of one running control plane. `run` returns after SIGTERM or SIGINT, or when `stop` is set."""

    def __init__(self, config: ControlConfig, *, is_alone: bool = True, name: str = MAIN) -> None:
        """`is_alone`: no other process has the lake open. `name` tells replicas on one store apart."""
        self.config = config
        self.stop = asyncio.Event()
        self.is_ready = asyncio.Event()
        self.keys = KeyRing.open(config.keys_dir)
        self.api_token = secrets.token_urlsafe(32)
        self._store = Store(config.database_url)
        self._store_thread = ThreadPoolExecutor(1, "store")
        self._db = StoreThread(self._store, self._store_thread)
        self._readers = ThreadPoolExecutor(4, "reader")
        self.notes = NoteCommands(self._store)
        self.incidents, self.notifier = IncidentCommands(self._store), Notifier(self, config.lake_dir)
        self.commands = Commands(self._store, self.keys)
        self._tls = open_tls(config.data_dir / "tls", config.public_host) if config.uses_tls else None
        with self._store.write() as db:
            revoked = removal.revoked_keys(db)
        self.nats = NatsServer(config, self.keys, self._tls, revoked)
        self.nats.prepare()
        self._api_socket = bind(LOOPBACK, config.api_port, "HTTP API", "--api-port")
        context = self._tls.client_context() if self._tls else None
        self._bus = Bus(self.nats.local_url, self.keys.server_creds(int(time.time())), context)
        settler = Settler(Lake(config.lake_dir, is_alone=is_alone), config.refused_dir, self._db.tables_of)
        upkeep = Upkeep(config.lake_dir)
        self._ingest = Ingest(settler, self._bus, self.keys.control, self._db.public_key, self._db.report_security, upkeep)
        self._serving = Serving(name, self._bus, self.with_db, self._on_data)
        self._chunks = artifacts.Chunks(lambda digest: self.with_db(artifacts.whole, digest))
        self._seen: dict[str, int] = {}
        self._heartbeats: dict[str, Heartbeat] = {}
        self._news = asyncio.Event()

    @property
    def nats_url(self) -> str:
        return self.config.dialled_url(self.nats.port)

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self._api_socket.getsockname()[1]}"

    async def run(self) -> None:
        for name, (handler, at_once) in self._handlers().items():
            self._bus.on(name, handler, at_once)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)
        http = _http_server(Api(self, self.config.lake_dir, self.nats_url, self._tls.ca_pem if self._tls else "").app())
        try:
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self.nats.run()),
                    group.create_task(self._run_bus()),
                    group.create_task(self._ingest.run()),
                    group.create_task(self._serving.run()),
                    group.create_task(self._flush_seen()),
                    group.create_task(self.notifier.run()),
                    group.create_task(self._roll()),
                    group.create_task(self._follow_requests()),
                ]
                api = group.create_task(http.serve(sockets=[self._api_socket]))
                announce = group.create_task(self._announce(http))
                await self.stop.wait()
                http.should_exit = True
                await api
                for task in (announce, *reversed(loops)):
                    task.cancel()
        finally:
            self._close()

    def contact(self) -> Contact:
        return Contact(dict(self._seen), now_us(), dict(self._heartbeats), self.config.in_contact_s)

    def is_listening(self) -> bool:
        return self._bus.is_connected.is_set()

    async def on_store(self, do: Callable[..., T], *args: Any, **options: Any) -> T:
        return await self._db.run(do, *args, **options)

    async def with_db(self, do: Callable[..., T], *args: Any) -> T:
        return await self._db.with_db(do, *args)

    async def in_background(self, do: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, do, *args)

    async def refused(self) -> list[dict[str, Any]]:
        return await self._ingest.refused()

    async def retake(self, digests: Collection[str]) -> dict[str, str]:
        return await self._ingest.retake(digests)

    async def revoke(self) -> None:
        """Have the broker let in no removed node: what the store says, so doing it late or again is no harm (I7)."""
        self.nats.revoke(await self.with_db(removal.revoked_keys))

    async def remove_node(self, name: str, who: Writer) -> Done:
        def remove() -> dict[str, Any]:
            with self._store.rehearse() if who.dry_run else self._store.write() as db:
                return removal.remove(db, name, who.by, who.reason, self.contact())

        removed = await self.on_store(remove)
        self._db.forget(removed["id"])
        await self.revoke()
        return Done({**removed, "dry_run": who.dry_run})

    async def poke(self, nodes: list[str]) -> None:
        for node in nodes:
            await self._bus.poke(node)

    def _handlers(self) -> dict[str, tuple[Handler, int]]:
        return {
            "tw.state.*": (self._on_exchange, AT_ONCE),
            "tw.artifact.*": (self._on_artifact, 1),
            "tw.heartbeat.*": (self._on_heartbeat, AT_ONCE),
            "tw.join.*": (self._on_join, 1),
            "tw.standing.*": (self._on_standing, 1),
        }

    async def _on_data(self, node: str, message: Msg) -> None:
        self._seen[node] = now_us()
        await self._ingest.handle(node, message)

    async def _on_exchange(self, node: str, message: Msg) -> None:
        def answer(db: Any) -> bytes:
            reply, blobs = exchange(db, self.keys, node, message.data)
            return reply.seal(self.keys.control, blobs)

        await self._bus.answer(message, node, await self._checked("exchange", node, answer))
        self._seen[node] = now_us()
        self._news.set()

    async def _on_artifact(self, node: str, message: Msg) -> None:
        reply, blobs = await self._chunks.answer(node, message.data)
        await self._bus.answer(message, node, await self.in_background(reply.seal, self.keys.control, blobs))

    async def _on_join(self, token: str, message: Msg) -> None:
        def answer(db: Any) -> JoinReply:
            reply = enrol.join(db, self.keys, token, message.data)
            rollouts.issue(db, self.keys, self.contact())
            return reply

        try:
            reply = await self.with_db(answer)
        except Refused as error:
            await self._db.report_security(f"token {token}", f"refused: {error}")
            return
        log.info("join", token=token, node=reply.node, name=reply.name, error=reply.error)
        await self._bus.answer(message, token, reply.seal(self.keys.control))

    async def _on_standing(self, node: str, message: Msg) -> None:
        def answer(db: Any) -> bytes:
            return removal.standing(db, node, message.data).seal(self.keys.control)

        await self._bus.answer(message, node, await self._checked("standing", node, answer))

    async def _on_heartbeat(self, node: str, message: Msg) -> None:
        heartbeat, _ = Heartbeat.unpack(message.data)
        self._seen[node] = now_us()
        is_late, is_behind = await self._db.shared(node, lambda db: heard(db, node, heartbeat))
        if not is_late:
            self._heartbeats[node] = heartbeat
        if is_behind:
            await self._bus.poke(node)

    async def _checked(self, what: str, node: str, answer: Callable[[Any], bytes]) -> bytes:
        """The answer; what is refused is logged by the bus and not answered: the sender is not who it says."""
        try:
            return await self._db.shared(node, answer)
        except Refused as error:
            await self._db.report_security(node, f"{what} refused: {error}")
            raise

    async def _flush_seen(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SEEN_S)
            await self._db.try_note(fleet.flush_last_seen, dict(self._seen))
            with contextlib.suppress(SQLAlchemyError):
                await self.revoke()  # what another process removed

    async def _roll(self) -> None:
        """Rollouts and what else waits for news or time (I7). It rests, so that many nodes coming back at once are one pass."""
        for count in itertools.count():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROLL_S):  # `wait_for` may swallow our cancellation in Python 3.11
                    await self._news.wait()
            has_news = self._news.is_set() or count % 12 == 0
            self._news.clear()
            began = time.monotonic()
            tick = partial(rollouts.tick, keys=self.keys, contact=self.contact(), has_news=has_news)
            try:
                await self.poke(await self.with_db(tick))
            except Exception as error:  # noqa: BLE001 - a full disk or a locked database must not end the process
                log.error("rollouts wait", reason=str(error).partition("\n")[0])
            await asyncio.sleep(max(REST_S, 5 * (time.monotonic() - began)))

    async def _follow_requests(self) -> None:
        """Nodes whose answer is in the lake are asked no more; nor is anybody once a request's time is over (I7)."""
        known: set[tuple[str, str]] = set()
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                until = await self.with_db(requests.open_until)
                found = await self.in_background(requests.ends, self.config.lake_dir, until) if until else []
                fresh = [answer for answer in found if (answer.request, answer.node) not in known]
                if fresh or any(at <= now_us() for at in until.values()):
                    await self.poke(await self.on_store(self.commands.settle_requests, fresh))
                known = {(answer.request, answer.node) for answer in found}
            except Exception as error:  # noqa: BLE001 - a full disk among them: looked at again
                log.error("requests: not followed", reason=f"{type(error).__name__}: {error}".partition("\n")[0])
                await asyncio.sleep(FLUSH_SEEN_S)

    async def _run_bus(self) -> None:
        await self.nats.is_ready.wait()
        await self._bus.run()

    async def _announce(self, http: uvicorn.Server) -> None:
        await self._bus.is_connected.wait()
        await self._serving.has_begun.wait()
        while not http.started:  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.01)
        ApiAddress(self.api_url, self.api_token, os.getpid(), self.nats.local_url).write(self.config.api_file)
        self.is_ready.set()
        log.info("control plane is up", api=self.api_url, nodes_dial=self.nats_url, data=str(self.config.data_dir))

    def _close(self) -> None:
        self.config.api_file.unlink(missing_ok=True)
        self._store_thread.shutdown()
        self._readers.shutdown(cancel_futures=True)
        try:
            with self._store.write() as db:
                fleet.flush_last_seen(db, self._seen)
        except Exception as error:  # noqa: BLE001 - it ends anyway
            log.error("not noted", what="flush_last_seen", reason=str(error).partition("\n")[0])
        self._store.close()


def serve(config: ControlConfig, ready: Callable[[ControlPlane], None] | None = None) -> None:
    """Run a control plane until SIGTERM. Raises `TidewireError` when it cannot start. `ready` is called once it answers."""
    make_private_dir(config.data_dir)
    with only_server(config.data_dir), LakeLock(config.data_dir) as lock:
        plane = ControlPlane(config, is_alone=lock.is_alone)
        lock.share()
        asyncio.run(_serve(plane, ready))


async def _serve(plane: ControlPlane, ready: Callable[[ControlPlane], None] | None) -> None:
    running = asyncio.create_task(plane.run())
    waiting = asyncio.create_task(plane.is_ready.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if plane.is_ready.is_set() and ready:
        ready(plane)
    waiting.cancel()
    try:
        await running
    except* TidewireError as group:
        raise group.exceptions[0] from None


@contextlib.contextmanager
def only_server(data_dir: Path) -> Iterator[None]:
    """Hold the data directory's lock. The kernel drops it with the process, however that ends."""
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            hint = "use that one, stop it first, or start another with --data-dir"
            raise TidewireError("a control plane is running on it already", op="up", place=str(data_dir), hint=hint) from None
        yield


def configure_logs(level: int) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class _Http(uvicorn.Server):
    """Signals are the TaskGroup's business, not uvicorn's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_server(app: Any) -> uvicorn.Server:
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=5)
    return _Http(config)


def heard(db: Any, node: str, heartbeat: Heartbeat) -> tuple[bool, bool]:
    """Note what the node says it holds; whether it said so before something newer, and whether it should ask for news (I7).

    A heartbeat may have waited on a line that stood still: it takes back nothing. A node that really fell back, because its card
    was restored, says so in its next exchange.
    """
    found, held = fleet.state_of(db, node), (heartbeat.term, heartbeat.generation)
    if found is None:
        return True, False
    is_late = held < fleet.seen_order(db, node)
    if not is_late:
        fleet.saw(db, node, heartbeat.document, held)
    return is_late, found[0] != heartbeat.document or found[1:] > held
