"""The real exchange with what is around it at hand: a control plane's SQL, a node's record, a link that fails on request."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from control_plane import fleet, store
from control_plane.exchange import exchange
from control_plane.keys import KeyRing
from control_plane.store import Store
from edge_agent.clock import NodeClock
from edge_agent.config import AgentConfig, Identity
from edge_agent.link import LinkDown
from edge_agent.node_record import NodeRecord
from edge_agent.state_sync import StateSync
from pipelines.contract.document import NodeDocument
from pipelines.contract.keys import Key
from pipelines.contract.node_state import Note, Reported, SignedManifest

NODE = "n1"
T = TypeVar("T")


class Cloud:
    """A control plane's store, exchanged with in one transaction per request as in the server."""

    def __init__(self, keys: KeyRing, directory: Path) -> None:
        self.keys, self.store = keys, Store(f"sqlite:///{directory / 'control.db'}")
        self._directory = directory
        self.heard: list[tuple[str, bytes]] = []

    def enrol(self, node: str, public: str) -> None:
        document = NodeDocument()
        row = {"id": node, "name": node, "public": public, "labels": "{}", "facts": "{}", "token": "", "joined_at": 1}
        row |= {"last_seen": 1, "document": document.save(), "document_digest": document.digest(), "seen_digest": ""}
        row |= {"seen_generation": 0, "seen_term": 0, "settled_term": 1, "replaced_by": ""}
        with self.store.write() as db:
            db.execute(store.nodes.insert().values(row))

    def answer(self, node: str, data: bytes) -> bytes:
        self.heard.append((node, data))
        with self.store.write() as db:
            reply, blobs = exchange(db, self.keys, node, data)
        return reply.seal(self.keys.control, blobs)

    def ask(self, question: Callable[[Connection], T]) -> T:
        with self.store.write() as db:
            return question(db)

    def node(self, node: str = NODE) -> fleet.Node:
        return self.ask(lambda db: fleet.find_node(db, node))

    def note(self, kind: str, subject: str = "press", reason: str = "", node: str = NODE, **body: Any) -> Note:
        at = "10:00"
        return self.ask(lambda db: fleet.add_note(db, fleet.find_node(db, node), kind, subject, "ann", reason, at, body))

    def security(self) -> list[str]:
        wanted = sa.select(store.audit.c.detail).where(store.audit.c.action == store.SECURITY).order_by(store.audit.c.id)
        return self.ask(lambda db: list(db.scalars(wanted)))

    def backup(self) -> Path:
        saved = self._directory / f"backup-{len(list(self._directory.glob('backup-*')))}.db"
        with closing(self.store._engine.raw_connection()) as raw, closing(sqlite3.connect(saved)) as copy:
            raw.driver_connection.backup(copy)  # type: ignore[union-attr]
        return saved

    def restore(self, saved: Path) -> None:
        with closing(self.store._engine.raw_connection()) as raw, closing(sqlite3.connect(saved)) as copy:
            copy.backup(raw.driver_connection)  # type: ignore[arg-type]


class Disk:
    """What `NodeRecord` and `StateSync` need of a store: it survives a crash."""

    def __init__(self) -> None:
        self.document: bytes | None = None
        self.manifest: SignedManifest | None = None
        self.clock = NodeClock("boot")

    async def load_state(self) -> tuple[bytes | None, SignedManifest | None]:
        return self.document, self.manifest

    async def save_state(self, document: bytes | None, manifest: SignedManifest | None) -> None:
        self.document, self.manifest = document or self.document, manifest or self.manifest

    async def anchor(self, _: Any) -> None: ...


class Line:
    """A link to `cloud`. `fault`: what becomes of the next request: "" answered, `request` or `reply` lost, `twice` delivered."""

    def __init__(self, cloud: Cloud, node: str) -> None:
        self.cloud, self.node, self.fault, self.is_up, self.payload_bytes_max = cloud, node, "", True, 1 << 20
        self.meanwhile: Callable[[], Awaitable[Any]] | None = None  # while an answer is on its way

    def on_change(self, _: Callable[[], None]) -> None: ...
    def on_message(self, _: str, __: Callable[[], None]) -> None: ...
    async def publish(self, _: str, __: bytes) -> None: ...
    async def run(self) -> None: ...

    async def request(self, _: str, data: bytes, __: float) -> bytes:
        fault, self.fault = self.fault, ""
        if fault == "request":
            raise LinkDown("lost")
        reply = self.cloud.answer(self.node, data)
        if self.meanwhile is not None:
            await self.meanwhile()
        if fault == "reply":
            raise LinkDown("lost")
        return self.cloud.answer(self.node, data) if fault == "twice" else reply


class Site:
    """A node's record and its exchange, started from its disk."""

    def __init__(self, cloud: Cloud, node: str = NODE, key: Key | None = None) -> None:
        self.key = key or Key.from_entropy(node.encode().ljust(32, b"."))
        self.id, self.cloud, self.disk, self.line = node, cloud, Disk(), Line(cloud, node)
        control = cloud.keys.control.public
        self.identity = Identity(
            node=node, name=node, seed=self.key.seed, user_jwt="", control=control, author=cloud.keys.author.public, url=""
        )
        self.start()

    def start(self) -> None:
        """As after a crash: only what was stored is still known."""
        self.record = NodeRecord(self.disk, self.identity)  # type: ignore[arg-type]
        config = AgentConfig(data_dir=Path("/nowhere"))
        self.sync = StateSync(config, self.identity, self.disk, self.record, self.line)  # type: ignore[arg-type]
        asyncio.run(self.record.load())

    @property
    def document(self) -> NodeDocument:
        return self.record.document

    def exchange(self, fault: str = "") -> None:
        self.line.fault = fault
        asyncio.run(self.sync._exchange_once())

    def settle(self, rounds: int = 12) -> None:
        """Quiet exchanges, as many as it takes; one more shows that nothing is left to say."""
        for _ in range(rounds):
            self.exchange()
            if self.cloud.node(self.id).document_digest == self.document.digest() and not self.sync.trouble:
                return
        raise AssertionError(f"{self.sync.trouble or 'both sides differ'} after {rounds} quiet exchanges")

    def note(self, kind: str, subject: str = "press", reason: str = "", **body: Any) -> Note:
        return asyncio.run(self.record.add_note(kind, subject, body, by="ana", reason=reason))

    def report(self, pipeline: str, **fields: Any) -> None:
        said: Mapping[str, Any] = {"digest": "sha256:a", "number": 1, "phase": "running", **fields}
        asyncio.run(self.record.report(pipeline, Reported(**said)))


def rig(directory: Path) -> SimpleNamespace:
    """A control plane and one node that joined it and has exchanged once."""
    cloud = Cloud(KeyRing.open(directory / "keys"), directory)
    site = Site(cloud)
    cloud.enrol(NODE, site.key.public)
    site.settle()
    return SimpleNamespace(cloud=cloud, site=site)
