"""A fleet in one process: the control plane's real commands, exchange, SQL and signatures, the nodes' real records and exchanges.

Left out are the broker, the nodes' disks and their runners: what is measured is what both sides compute, on one core, and what
the control plane writes on its store thread. All nodes ask at once, as when they were poked. FLEETS: other sizes, separated by
commas.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.engine import Connection

from benchmarks.report import Figure
from control_plane import fleet, store
from control_plane.commands import Commands, Writer
from control_plane.effects import Contact
from control_plane.exchange import exchange
from control_plane.keys import KeyRing
from control_plane.server import AT_ONCE, heard
from control_plane.store import Store, now_us
from control_plane.store_thread import StoreThread
from edge_agent.clock import NodeClock
from edge_agent.config import AgentConfig, Identity
from edge_agent.node_record import NodeRecord
from edge_agent.state_sync import StateSync
from pipelines.contract.document import NodeDocument
from pipelines.contract.keys import Key
from pipelines.contract.messages import Heartbeat
from pipelines.contract.node_state import Reported, SignedManifest, params_digest

SIZES = tuple(int(size) for size in os.environ.get("FLEETS", "10,100,300,1000,3000").split(","))
PIPELINES = ("press", "oven", "line")
NOTES = 12
DEPLOY_S, RECONNECT_S = 10.0, 20.0  # at a thousand nodes
_WHO = Writer("bench", "measured")
_SPEC = """
tidewire: 1
pipeline: {name}
description: {description}
params:
  limit_c: {{type: double, default: 85}}
  min_sensors: {{type: integer, default: 4}}
sources:
  sensors:
    file: {{path: "rows/*.jsonl"}}
    decode: json
schema:
  ts: {{type: timestamp, event_time: true}}
  sensor: {{type: string}}
  temp_c: {{type: double}}
sinks:
  readings: {{lake: {{table: {name}_readings}}}}
"""


def measure(directory: Path) -> Iterator[Figure]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        for size in SIZES:
            yield from _figures(directory / f"fleet-{size}", size)
    finally:
        structlog.reset_defaults()


def _figures(home: Path, size: int) -> Iterator[Figure]:
    made = Fleet(home, size)
    made.equip()
    is_promised = size == 1000
    blocked_s, took_s = made.deploy("press", "second")
    yield _figure(size, "a version is on all of them, and they reported it", took_s, "s", DEPLOY_S if is_promised else None)
    yield _figure(size, "of that, the command itself, which nothing else may interrupt", blocked_s, "s")
    yield _figure(size, "of that, CPU of the control plane's exchanges", made.central_s, "s")
    made.part()
    took_s = made.settle()
    yield _figure(size, "all come back with other documents and settle", took_s, "s", RECONNECT_S if is_promised else None)
    yield _figure(size, "of that, CPU of the control plane's exchanges", made.central_s, "s")
    idle = made.idle()
    for name, value, unit in idle:
        yield _figure(size, name, value, unit)
    made.store.close()


def _figure(size: int, name: str, value: float, unit: str, budget: float | None = None) -> Figure:
    return Figure(f"{size:,} nodes: {name}", value, unit, budget, "lower")


class Fleet:
    def __init__(self, home: Path, size: int) -> None:
        home.mkdir(parents=True)
        self.keys, self.store = KeyRing.open(home / "keys"), Store(f"sqlite:///{home / 'control.db'}")
        self.commands = Commands(self.store, self.keys)
        self.store_thread = StoreThread(self.store, ThreadPoolExecutor(1, "store"))
        self.central_s = 0.0
        self.sites = [Site(self, f"n{number:012d}") for number in range(size)]
        document = NodeDocument()
        same = {"labels": '{"site":"lyon"}', "facts": "{}", "token": "", "joined_at": 1, "last_seen": now_us(), "seen_digest": ""}
        same |= {"document": document.save(), "document_digest": document.digest(), "seen_generation": 0, "seen_term": 0}  # type: ignore[dict-item]
        same |= {"settled_term": 1, "replaced_by": ""}  # type: ignore[dict-item]
        rows = [{"id": site.id, "name": site.id, "public": site.key.public, **same} for site in self.sites]
        with self.store.write() as db:
            db.execute(store.nodes.insert(), rows)

    def contact(self) -> Contact:
        now = now_us()
        return Contact({site.id: now for site in self.sites}, now)

    async def answer(self, node: str, data: bytes) -> bytes:
        """As the server does."""

        def answer(db: Connection) -> bytes:
            began = time.thread_time()
            reply, blobs = exchange(db, self.keys, node, data)
            sealed = reply.seal(self.keys.control, blobs)
            self.central_s += time.thread_time() - began
            return sealed

        return await self.store_thread.shared(node, answer)

    def equip(self) -> None:
        """Pipelines that run, facts, a dozen notes of both sides on each node: what a fleet holds after a while."""
        for name in PIPELINES:
            self.commands.apply([(f"{name}.yaml", _SPEC.format(name=name, description="first"))], _WHO, self.contact())
            self.commands.deploy(name, "all", {}, _WHO, self.contact())
        asyncio.run(self._each(Site.begin))
        for site in self.sites:
            with self.store.write() as db:
                node = fleet.find_node(db, site.id)
                for number in range(NOTES // 4):
                    fleet.add_note(db, node, "acknowledge", f"i{number:015x}", "ann", "on my way", "2026-11-21T10:00:00Z")
        asyncio.run(self._each(Site.settle))

    def deploy(self, name: str, description: str) -> tuple[float, float]:
        """Seconds of the command alone, and until every node has obeyed and said so."""
        self.commands.apply([(f"{name}.yaml", _SPEC.format(name=name, description=description))], _WHO, self.contact())
        self.central_s, began = 0.0, time.perf_counter()
        done = self.commands.deploy(name, "all", {}, _WHO, self.contact())
        blocked_s = time.perf_counter() - began
        assert len(done.poke) == len(self.sites)
        asyncio.run(self._each(Site.obey))
        took_s = time.perf_counter() - began
        with self.store.write() as db:
            told = fleet.reports(db)
        assert all(told[site.id][name].number == 2 for site in self.sites), "all have reported the new version"
        return blocked_s, took_s

    def part(self) -> None:
        """While apart, both sides write."""
        asyncio.run(self._each(Site.write_alone))
        for site in self.sites:
            with self.store.write() as db:
                fleet.add_note(db, fleet.find_node(db, site.id), "comment", "press", "ann", "seen", "2026-11-21T10:00:00Z")

    def settle(self) -> float:
        self.central_s, began = 0.0, time.perf_counter()
        asyncio.run(self._each(Site.settle))
        took_s = time.perf_counter() - began
        with self.store.write() as db:
            held = {node.id: node.document_digest for node in fleet.all_nodes(db)}
        assert all(held[site.id] == site.record.document.digest() for site in self.sites), "both sides hold the same"
        return took_s

    def idle(self) -> list[tuple[str, float, str]]:
        """What one heartbeat and one exchange with nothing new cost."""
        sites = self.sites[:300]
        began = time.process_time()
        with self.store.write() as db:
            for site in sites:
                assert heard(db, site.id, site.heartbeat()) == (False, False)
        beat_us = (time.process_time() - began) / len(sites) * 1e6
        self.central_s, began = 0.0, time.process_time()
        asyncio.run(self._each(Site.exchange, sites))
        both_us = (time.process_time() - began) / len(sites) * 1e6
        line = sites[0].line
        return [
            ("idle: a heartbeat costs the control plane", beat_us, "us"),
            ("idle: an exchange costs both sides", both_us, "us CPU"),
            ("idle: of that, the control plane without its commit", self.central_s / len(sites) * 1e6, "us"),
            ("idle: bytes of a heartbeat", len(sites[0].heartbeat().pack()), "bytes"),
            ("idle: bytes of an exchange, both ways", line.sent_bytes + line.received_bytes, "bytes"),
        ]

    async def _each(self, do: Callable[[Site], Awaitable[None]], sites: list[Site] | None = None) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(site: Site) -> None:
            async with room:
                await do(site)

        await asyncio.gather(*(one(site) for site in (sites if sites is not None else self.sites)))


class Site:
    """One node: its record and its exchange, without a disk."""

    def __init__(self, made: Fleet, node: str) -> None:
        self.id, self.key = node, Key.from_entropy(node.encode().ljust(32, b"."))
        control, author = made.keys.control.public, made.keys.author.public
        identity = Identity(
            node=node, name=node, seed=self.key.seed, user_jwt="", control=control, author=author, url="", labels={"site": "lyon"}
        )
        disk, self.line = _Disk(), _Line(made, node)
        self.record = NodeRecord(disk, identity)  # type: ignore[arg-type]
        self.sync = StateSync(AgentConfig(data_dir=Path("/nowhere")), identity, disk, self.record, self.line)  # type: ignore[arg-type]

    async def exchange(self) -> None:
        await self.sync._exchange_once()
        assert not self.sync.trouble, self.sync.trouble

    async def settle(self) -> None:
        """Until the control plane's replica is ours and there is nothing left to say."""
        while True:
            await self.exchange()
            if self.line.agreed == self.record.document.digest():
                return

    async def begin(self) -> None:
        await self.settle()
        facts = {"agent": "0.1", "arch": "aarch64", "clock": "synced", "host": self.id, "languages": [1], "os": "Linux 6.6"}
        await self.record.report_node("facts", facts)
        for number in range(NOTES - NOTES // 4):
            body: dict[str, object] = {"name": f"local.place-{number}", "value": f"hall {number}"}
            await self.record.add_note("label", "", body, by="ana", reason="where it hangs")
        await self.obey()

    async def obey(self) -> None:
        """Take the manifest, run it (in no time), and say so."""
        await self.exchange()
        for name, assignment in self.record.manifest.assignments.items():
            params = {"limit_c": 85.0, "min_sensors": 4}
            said = Reported(assignment.digest, assignment.number, "running", params, params_digest(params))
            said = replace(said, gate="soaking", since="2026-11-21T10:00:00Z", generation=self.record.manifest.generation)
            await self.record.report(name, said)
        await self.settle()

    async def write_alone(self) -> None:
        for number in range(3):
            await self.record.add_note("comment", "press", {}, by="ana", reason=f"with the link down, {number}")
        before = self.record.document.reported()["oven"]
        await self.record.report("oven", replace(before, phase="failed", reason="its source is away", code="source_down"))

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(self.id, self.record.document.digest(), *self.record.manifest.order, 3, 120_000, "synced", "0.1")


class _Disk:
    def __init__(self) -> None:
        self.clock = NodeClock("boot")

    async def load_state(self) -> tuple[bytes | None, SignedManifest | None]:
        return None, None

    async def save_state(self, document: bytes | None, manifest: SignedManifest | None) -> None: ...
    async def anchor(self, _: Any) -> None: ...


class _Line:
    is_up, payload_bytes_max = True, 1 << 20

    def __init__(self, made: Fleet, node: str) -> None:
        self._made, self._node = made, node
        self.sent_bytes = self.received_bytes = 0  # of the last exchange
        self.agreed = ""

    def on_change(self, _: Callable[[], None]) -> None: ...
    def on_message(self, _: str, __: Callable[[], None]) -> None: ...
    async def publish(self, _: str, __: bytes) -> None: ...
    async def run(self) -> None: ...

    async def request(self, _: str, data: bytes, __: float) -> bytes:
        reply = await self._made.answer(self._node, data)
        self.sent_bytes, self.received_bytes = len(data), len(reply)
        self.agreed = _document_of(reply)
        return reply


def _document_of(reply: bytes) -> str:
    """The digest that a reply names, without checking it a second time."""
    start = reply.index(b'"document":"') + 12
    return reply[start : reply.index(b'"', start)].decode()
