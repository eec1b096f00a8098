"""One simulation: its machines and processes, the network between them, what happened, and the truth to compare with."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, suppress
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any, TypeVar

from deltalake import DeltaTable

from control_plane import enrol, fleet
from control_plane.commands import Writer as Who
from control_plane.config import ControlConfig
from control_plane.rollout import Pacing
from control_plane.server import MAIN, ControlPlane
from edge_agent.agent import Agent
from edge_agent.config import MIB, AgentConfig, Identity
from edge_agent.policy import Policy
from edge_agent.store import Store
from pipelines.contract.frames import sha256
from pipelines.contract.keys import Key
from pipelines.contract.messages import Join
from pipelines.contract.node_state import Gate
from pipelines.contract.token import prove
from pipelines.engine import plan
from tests.simulation import patches, pipeline
from tests.simulation.life import LIFE, Crashed, Life, Machine
from tests.simulation.loop import Fiber, SimExecutor, VirtualLoop
from tests.simulation.network import Network
from tests.simulation.pipeline import Writer
from tests.simulation.process import SimProcess, SimSupervisor

T = TypeVar("T")
BASE = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
_real_compile = plan.compile_plan
GATE = Gate(soak_s=8.0)
_plans: dict[str, Any] = {}


class World:
    """`seed` decides everything. `trace` says what happened, in order, without digests: those hold the path of `home`."""

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 2,
        bug: Callable[[], Iterator[tuple[Any, str, Any]]] = lambda: iter(()),
        verbose: bool = False,
    ) -> None:
        self.seed, self.bug, self.verbose = seed, bug, verbose
        self.rng = random.Random(f"world/{seed}")
        self.home = BASE / f"tw-sim-{os.getpid():07d}"  # the same for each seed, so that plans are compiled once
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        self.loop = VirtualLoop()
        self.trace = hashlib.sha256()
        self.lines = 0
        self.faults: Counter[str] = Counter()
        self.network = Network(self.random("network"), self.note)
        self.control = Control(self)
        self.replica: Control | None = None  # a second one on the same store, while there is
        self.nodes = [Node(self, f"n{i}") for i in range(1, nodes + 1)]
        self.actions: list[tuple[str, float, dict[str, Any]]] = []  # (node, virtual time, action)
        self.errors: list[tuple[str, str]] = []  # (machine, what its code logged as an error)
        self.traps: list[Trap] = []
        self.out_of_bounds: set[str] = set()
        self.store_was_restored = False
        self.rows_checked = 0
        self.versions = 1
        self.texts: dict[int, str] = {}  # of each version
        self.crashing: set[int] = set()  # versions whose runner crashes soon after each start
        self.retyped: set[int] = set()  # versions whose column `twice` has another type
        self.limits = {80.0}  # the central limit_c, or what it may be when nobody knows whether a write succeeded
        self.were_steered = False  # somebody paused or pinned a pipeline
        self.tables: dict[str, int] = {}  # digest -> the mark that a lookup table gives every row
        self.requests: set[str] = set()  # what people asked of the nodes
        self.is_over = False

    epoch_s = patches.EPOCH_S  # true time at virtual time 0

    async def attempt(self, work: Coroutine[Any, Any, Any]) -> None:
        """Something that people do; what does not succeed within a while, because the process died, is left."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=30)
        if not task.done():
            task.cancel()
        elif error := task.exception():
            self.note("attempt failed", error=type(error).__name__)

    def stored(self, node: Node, lake: Path) -> set[int]:
        """Numbers of the node's rows in the lake at `lake`."""
        path = lake / "sim_rows"
        if not path.exists():
            return set()
        table = DeltaTable(path).to_pyarrow_table(columns=["_node", "n"])
        return {row["n"] for row in table.to_pylist() if row["_node"] == node.id}

    @property
    def processes(self) -> list[_Process]:
        return [*self.nodes, self.control, *([self.replica] if self.replica else [])]

    def random(self, what: str) -> random.Random:
        return random.Random(f"{what}/{self.seed}")

    def run(self, scenario: Callable[[World], Coroutine[Any, Any, T]]) -> T:
        with patches.virtual(self):
            self.loop._default_executor = SimExecutor()  # type: ignore[assignment]
            try:
                return self.loop.run_until_complete(scenario(self))
            finally:
                self.is_over = True
                for process in self.processes:
                    process.crash()
                self.loop.bury()
                self.loop.close()
                for key in [key for key in _plans if "NodeFacts" in key]:
                    del _plans[key]  # no other seed has nodes with these names
                shutil.rmtree(self.home, ignore_errors=True)

    def note(self, what: str, **facts: Any) -> None:
        """Into the trace."""
        if self.is_over:
            return
        text = f"{self.loop.now:.6f} {what} " + " ".join(f"{name}={value}" for name, value in facts.items())
        self.trace.update(text.encode() + b"\n")
        self.lines += 1
        if self.verbose:
            print(text, flush=True)

    def fault(self, kind: str, **facts: Any) -> None:
        self.faults[kind] += 1
        self.note(f"FAULT {kind}", **facts)

    def hear(self, logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        """What the code logs."""
        life = LIFE.get()
        words = {name: value for name, value in event.items() if name in ("reason", "pipeline", "how", "action", "status")}
        text = str(event.get("event", "")).replace(str(self.home), "")
        if event.get("exc_info"):
            import traceback

            words["exception"] = traceback.format_exc().strip().splitlines()[-1]
        self.note(
            f"{method}: {text}",
            life=life,
            **{name: str(value)[:160].replace(str(self.home), "") for name, value in words.items()},
        )
        if method in ("error", "exception"):
            self.errors.append((life.machine.name if life else "", text))
        return event

    def at(self, point: str, life: Life) -> None:
        """Called at each place where a process may die: spring the traps that are set there."""
        if life.is_dead:
            raise Crashed
        for trap in self.traps:
            if trap.machine is life.machine and point.startswith(trap.point):
                trap.passes -= 1
                if trap.passes < 0:
                    self.traps.remove(trap)
                    self.fault(trap.kind, at=point, life=life)
                    if not trap.stall_s:
                        raise Crashed
                    self.control.replace(trap.stall_s)
                    assert Fiber.current is not None
                    Fiber.current.park(trap.stall_s)

    def is_disk_full(self, machine: Machine) -> bool:
        return any(node.machine is machine and node.is_disk_full for node in self.nodes)

    def performed(self, node: str, action: dict[str, Any]) -> None:
        self.actions.append((node, self.loop.now, dict(action)))
        self.note("action", node=node, incident=action.get("incident"), transition=action.get("transition"))

    def crash_life(self, life: Life) -> None:
        """A process died at a trap: take the rest of it down."""
        for process in self.processes:
            if process.life is life:
                process.crash()
                process.restart_in(self.rng.uniform(1, 8))

    def compile(self, spec: Any, *args: Any, **options: Any) -> Any:
        """Compiled plans hold no state; compiling one takes longer than a minute of simulated work. Each holds a database."""
        key = f"{sha256(spec.canonical_bytes())} {args!r} {options!r}"
        if key not in _plans:
            _plans[key] = _real_compile(spec, *args, **options)
        return _plans[key]


class Trap:
    """The process of `machine` dies the `passes`-th time that it comes by `point`; with `stall_s` it hangs there, another one
    takes over, and then it goes on."""

    def __init__(self, machine: Machine, point: str, passes: int, kind: str, stall_s: float = 0.0) -> None:
        self.machine, self.point, self.passes, self.kind, self.stall_s = machine, point, passes, kind, stall_s


class _Process:
    """What crashes and starts again on a machine."""

    world: World
    machine: Machine
    life: Life | None = None
    holds = 0  # faults that keep it down on purpose: nothing starts it

    def in_life(self, work: Callable[..., T], *args: Any) -> T:
        """`work` as a part of the running process."""

        def call() -> T:
            LIFE.set(self.life)
            return work(*args)

        return copy_context().run(call)

    def _open_life(self, name: str) -> Life:
        self.life = Life(self.machine, name)
        return self.life

    def start(self) -> None:
        raise NotImplementedError

    def restart_in(self, seconds: float) -> None:
        """Start again, unless it was started meanwhile."""
        self.world.loop.call_later(seconds, self.revive)

    def revive(self) -> None:
        """Start, unless it runs or something keeps it down. It may die before it is up."""
        if self.life is None and not self.holds:
            try:
                self.start()
            except Crashed:
                self.crash()
                self.restart_in(self.world.rng.uniform(1, 8))

    def hold(self) -> None:
        """Take it down, and keep it down until `release`. Faults may overlap."""
        self.crash()
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1
        self.revive()

    def crash(self) -> None:
        life, self.life = self.life, None
        if life is None:
            return
        life.is_dead = True
        for fiber in list(life.cleanups):
            if isinstance(fiber, Fiber):
                fiber.kill()
        with suppress(Exception):
            self._cut()
        self.world.note("down", machine=self.machine.name)

    def _cut(self) -> None:
        raise NotImplementedError


class Control(_Process):
    """A control plane. Replicas (`name`) share the first one's directory: the store and the lake."""

    def __init__(self, world: World, name: str = "control") -> None:
        self.world, self.name = world, name
        self.machine = Machine(name, random.Random(f"{name}/{world.seed}"))
        self.directory = world.home / "control"
        self.directory.mkdir(exist_ok=True)
        self.config = ControlConfig(self.directory)
        self.plane: ControlPlane | None = None
        self._stalled: list[Callable[[], None]] = []  # each ends a process that hangs or hung beside this one

    def start(self) -> None:
        life = self._open_life(self.name)
        is_first = self.name == "control"

        def begin() -> None:
            self.plane = ControlPlane(self.config, is_alone=is_first, name=MAIN if is_first else self.name)
            life.cleanups.append(asyncio.get_running_loop().create_task(self._run(life)))

        self.world.note("up", machine=self.name)
        self.in_life(begin)

    async def _run(self, life: Life) -> None:
        try:
            assert self.plane is not None
            await self.plane.run()
        except Exception as error:  # noqa: BLE001 - a checker complains
            self.world.errors.append((self.name, f"the control plane ended: {error!r}"))
            self.world.note("control ended", machine=self.name, error=repr(error))

    def _cut(self) -> None:
        if self.plane is not None:
            self._leave_network(self.plane)
            self.plane._store.close()

    def _leave_network(self, plane: ControlPlane) -> None:
        self.world.network.buses = [bus for bus in self.world.network.buses if bus is not plane._bus]

    async def on_store(self, do: Callable[..., T], *args: Any, **options: Any) -> T:
        """One call on the store's thread of the running control plane, as the HTTP API does it."""
        assert self.plane is not None and self.life is not None
        plane = self.plane

        def begin() -> asyncio.Task[T]:
            return asyncio.get_running_loop().create_task(plane.on_store(do, *args, **options))

        return await self.in_life(begin)

    async def with_db(self, do: Callable[..., T], *args: Any) -> T:
        plane = self.plane
        assert plane is not None

        def call() -> T:
            with plane._store.write() as db:
                return do(db, *args)

        return await self.on_store(call)

    def hold(self) -> None:
        """Whoever stops a service to put files back stops the process that hangs with it."""
        for end in list(self._stalled):
            end()
        super().hold()

    def replace(self, stalled_s: float) -> None:
        """Another process takes over while this one hangs; this one then goes on for a while."""
        life, plane = self.life, self.plane
        assert life is not None and plane is not None

        def end() -> None:
            if end not in self._stalled:
                return
            self._stalled.remove(end)
            life.is_dead = True
            for fiber in list(life.cleanups):
                if isinstance(fiber, Fiber):
                    fiber.kill()
            plane._store.close()

        self._leave_network(plane)
        self._stalled.append(end)
        self.life = self.plane = None
        self.world.loop.call_later(1, self.revive, context=Context())
        self.world.loop.call_later(stalled_s + 15, end, context=Context())

    async def register(self, number: int, *, is_retyped: bool = False) -> None:
        plane = self.plane
        assert plane is not None
        with_table = bool(self.world.tables)
        text = pipeline.text(self.world.home, number, is_retyped=is_retyped, with_table=with_table)
        self.world.texts[number] = text
        await self.register_text(text)

    async def register_text(self, text: str) -> None:
        plane = self.plane
        assert plane is not None
        await self.on_store(plane.commands.apply, [("sim.yaml", text)], Who("ann", "simulation"), plane.contact())

    async def retake(self) -> None:
        """`tidewire refused retry`."""
        plane = self.plane
        assert plane is not None

        def begin() -> asyncio.Task[dict[str, str]]:
            return asyncio.get_running_loop().create_task(plane._ingest.retake(None))

        await self.in_life(begin)

    async def apply(self, number: int, *, is_retyped: bool = False) -> None:
        """Register a version of the pipeline and deploy it everywhere."""
        plane = self.plane
        assert plane is not None
        who = Who("ann", "simulation")
        await self.register(number, is_retyped=is_retyped)
        done = await self.on_store(plane.commands.deploy, "sim", "*", {}, who, plane.contact(), Pacing(gate=GATE))
        await self.poke(done.poke)
        self.world.note("deployed", number=number)

    async def poke(self, nodes: list[str]) -> None:
        assert self.plane is not None
        for node in nodes:
            await self.plane._bus.poke(node)

    async def admit(self, name: str, key: Key) -> Identity:
        plane = self.plane
        assert plane is not None
        options: dict[str, Any] = {
            "url": "nats://sim",
            "ca": "",
            "labels": {"dir": f"{name}/in"},
            "uses": 1,
            "ttl_s": 3600,
            "by": "ann",
        }
        token = await self.with_db(lambda db: enrol.create_token(db, plane.keys, **options))
        request = Join(key.public, "0", name, {})
        data = request.seal(key, [prove(Key(token.seed), request.nonce, key.public)])

        def join(db: Any) -> Any:
            reply = enrol.join(db, plane.keys, token.id, data)
            fleet.issue(db, plane.keys)
            return reply

        reply = await self.with_db(join)
        return Identity(
            node=reply.node, name=name, seed=key.seed, user_jwt=reply.user_jwt, control=plane.keys.control.public,
            author=reply.author, url="nats://sim", labels=reply.labels,
        )  # fmt: skip


class Node(_Process):
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.machine = Machine(name, random.Random(f"{name}/{world.seed}"))
        self.directory = world.home / name
        self.data_dir = self.directory / "agent"
        (self.directory / "in").mkdir(parents=True)
        self.data_dir.mkdir(mode=0o700)
        self.writer = Writer(self.directory / "in", random.Random(f"{name}/rows/{world.seed}"))
        self.key = Key.from_entropy(self.machine.entropy.randbytes(32), 20 << 3)
        self.identity: Identity | None = None
        self.is_disk_full = False
        self.buffer_bytes = 64 * MIB
        self.agent: Agent | None = None
        self.store: Store | None = None
        self.supervisor: SimSupervisor | None = None
        self.read_again: set[int] = set()  # numbers of rows that came after a copy of the card which was put back
        self.lost_with_lake: set[int] = set()
        self.void_lost_with_lake = 0  # rows whose stub a lost lake had
        self.was_restored = False
        self.crashes = 0
        self.limits: set[float] = set()  # what limit_c may be on site
        self.was_shelved = False  # somebody silenced alarms here

    async def join(self) -> None:
        self.identity = await self.world.control.admit(self.name, self.key)

    @property
    def id(self) -> str:
        assert self.identity is not None
        return self.identity.node

    @property
    def path(self) -> Any:
        return self.world.network.path(self.id)

    def start(self) -> None:
        life = self._open_life(self.name)
        self.world.note("up", machine=self.name)
        self.in_life(self._begin, life)

    def _begin(self, life: Life) -> None:
        from tests.simulation.network import SimLink

        assert self.identity is not None
        config = AgentConfig.model_construct(
            data_dir=self.data_dir, heartbeat_s=30.0, exchange_s=15.0, request_timeout_s=10.0, buffer_bytes=self.buffer_bytes,
            quarantine_bytes=MIB, runner_memory_bytes=1 << 31, log_level="info",
        )  # fmt: skip
        self.store = Store.open(self.data_dir, self.identity.node, self.key, self.buffer_bytes)
        self.supervisor = SimSupervisor(self.world.loop, self.machine, self.world.at, self.world.crashing)
        link = SimLink(self.world.network, self.identity.node)
        self.agent = Agent(config, self.identity, self.store, link, supervisor=self.supervisor, policy=Policy())  # type: ignore[arg-type]
        life.cleanups.append(asyncio.get_running_loop().create_task(self._run(self.agent)))

    async def _run(self, agent: Agent) -> None:
        try:
            await agent.run()
        except Exception as error:  # noqa: BLE001 - a checker complains
            self.world.errors.append((self.name, f"the agent ended: {error!r}"))
            self.world.note("agent ended", node=self.name, error=repr(error))

    def _cut(self) -> None:
        self.crashes += 1
        assert self.store is not None and self.supervisor is not None
        self.path.links.clear()
        for process in self.supervisor.running:
            process.kill()
        database = self.store._db
        for connection in (database._connection, database._reader):
            connection.close()
        os.close(self.store._lock)
        self.agent = self.store = None

    def snapshot(self, to: Path) -> None:
        """A copy of the card, taken while the agent is between two transactions."""
        shutil.copytree(self.data_dir, to, ignore=shutil.ignore_patterns("*.reserve", "agent.lock"))

    def runners(self) -> list[SimProcess]:
        return [process for process in self.supervisor.running if not process.life.is_dead] if self.supervisor else []

    def positions(self, database: Path) -> dict[str, int]:
        """Per source file, how far it was read when `database` was last written."""
        rows = _select(database, "SELECT positions FROM pipelines")
        files = json.loads(rows[0][0]).get("lines", {}).get("files", {}) if rows else {}
        return {path: at["offset"] for path, at in files.items()}

    def read_by(self, database: Path) -> set[int]:
        """Numbers of the lines that were read, as `database` has it."""
        at = self.positions(database)
        return {line.n for line in self.writer.lines if line.end <= at.get(line.file, 0)}

    @property
    def has_read_all(self) -> bool:
        return len(self.read_by(self.data_dir / "agent.db")) == len(self.writer.lines)

    def select(self, sql: str) -> list[Any]:
        """Of what is committed in the node's store."""
        return _select(self.data_dir / "agent.db", sql)


def _select(database: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as db:
        return db.execute(sql).fetchall()
