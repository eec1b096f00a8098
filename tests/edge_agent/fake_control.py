"""A control plane made of the contract and a plain nats-server: one node, a lake in memory, faults on request."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from typing import Any

import nats
from nats.aio.msg import Msg

from pipelines.contract import messages, subjects
from pipelines.contract.artifact import CHUNK_BYTES_MAX, LOOKUP_TABLE, PIPELINE_VERSION, Artifact
from pipelines.contract.document import NodeDocument
from pipelines.contract.keys import Key
from pipelines.contract.node_state import CONTROL, Assignment, Gate, Manifest, Note, Setting, SignedManifest
from pipelines.contract.segment import Segment, decode
from pipelines.contract.version import PipelineVersion
from tests.nats_broker import Broker


class FakeLake:
    """Runs as the real one takes them: what follows the mark, stubs included; all else is answered with the mark."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], list[Segment]] = {}

    def put(self, segment: Segment) -> tuple[str, str]:
        key = (segment.header.run, segment.header.stream)
        seq, link, _, _ = self.mark(key)
        if segment.header.first == seq + 1 and segment.header.previous == link:
            self.runs.setdefault(key, []).append(segment)
        return key

    def mark(self, key: tuple[str, str]) -> tuple[int, str, int, int]:
        """Seq, link, rows of the run, rows stored."""
        held = self.runs.get(key)
        if not held:
            return 0, "", 0, 0
        stored = sum(segment.header.rows for segment in held if not segment.header.is_stub)
        return held[-1].header.seq, held[-1].link, held[-1].header.run_rows, stored

    def answer(
        self, request: messages.Upload, touched: Iterable[tuple[str, str]], node: str, error: str = ""
    ) -> messages.Receipts:
        keys = dict.fromkeys([*((run, stream) for run, stream in request.streams), *touched])
        digests = [
            [run, stream, segment.header.seq, segment.link]
            for run, stream, first, last in request.digests
            for segment in self.runs.get((run, stream), ())
            if first <= segment.header.seq <= last
        ]
        return messages.Receipts(request.nonce, [[*key, *self.mark(key)] for key in keys], [], error, node, digests)

    def numbers(self, stream: str = "") -> list[int]:
        """Every number stored, in order of arrival per run."""
        runs = [held for (_, name), held in self.runs.items() if stream in ("", name)]
        return [n for held in runs for segment in held if segment.payload for n in json.loads(segment.payload)]


class FakeControl:
    def __init__(self, node: str, node_public: str) -> None:
        self.node, self._node_public = node, node_public
        self.key = Key.from_entropy(os.urandom(32))
        self.author = Key.from_entropy(os.urandom(32))
        self.document = NodeDocument()
        self.artifacts: dict[str, tuple[Artifact, int]] = {}
        self.stored = FakeLake()
        self.heartbeats: list[messages.Heartbeat] = []
        self.requests: list[str] = []
        self.fetches: list[tuple[str, int]] = []  # digest and offset
        self.busy = 0  # this many uploads are answered `busy`
        self.mute = 0  # this many uploads are stored, but never answered
        self.delay_s = 0.0  # of an upload's answer
        self.manifest: SignedManifest | None = None
        self.labels: dict[str, str] = {}
        self.tables: dict[str, str] = {}  # in every assignment: what a version calls an artifact -> digest
        self.gate, self.lift = Gate(), 0
        self._order = (1, 0)

    async def serve(self, broker: Broker) -> None:
        self._client = await nats.connect(broker.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        for subject, answer in (
            (subjects.data(self.node), self._on_data),
            (subjects.state(self.node), self._on_state),
            (subjects.artifact(self.node), self._on_artifact),
            (subjects.heartbeat(self.node), self._on_heartbeat),
        ):
            await self._client.subscribe(subject, cb=answer)
        await self._client.flush()

    async def close(self) -> None:
        await self._client.close()

    async def assign(self, *versions: PipelineVersion, poke: bool = True, **params: Setting) -> None:
        """The next manifest: exactly these versions."""
        for version in versions:
            artifact = Artifact.sign(PIPELINE_VERSION, version.canonical, self.author)
            self.artifacts[version.digest] = (artifact, version.number)
        self._order = (self._order[0], self._order[1] + 1)
        more: dict[str, Any] = {"gate": self.gate, "lift": self.lift, "artifacts": self.tables}
        assignments = {v.pipeline: Assignment(v.digest, v.number, params, "ann", "because", **more) for v in versions}
        self.manifest = SignedManifest.sign(Manifest(self.node, *self._order, assignments, self.labels), self.key)
        if poke:
            await self.poke()

    def put_table(self, name: str, data: bytes, *, is_here: bool = True) -> str:
        """From the next `assign` on; one that is not here is named, and nobody has it."""
        table = Artifact.sign(LOOKUP_TABLE, data, self.author)
        self.tables = {**self.tables, name: table.digest}
        if is_here:
            self.artifacts[table.digest] = (table, 1)
        return table.digest

    async def acknowledge(self, incident: str) -> None:
        await self.note("acknowledge", incident)

    async def note(self, kind: str, subject: str, **body: Any) -> None:
        seq, seen = self.document.next_seq(CONTROL), self.document.seen_by(CONTROL)
        self.document.add_note(Note(CONTROL, seq, kind, subject, body, "bob", "seen", self._order[1], seen))
        await self.poke()

    async def poke(self) -> None:
        await self._client.publish(subjects.poke(self.node), b"")

    @property
    def lake(self) -> dict[tuple[str, str], list[Segment]]:
        return self.stored.runs

    def numbers(self) -> list[int]:
        """Every number in the lake, in order of arrival per run."""
        return self.stored.numbers()

    async def _on_data(self, message: Msg) -> None:
        request, blobs = messages.Upload.unpack(message.data)
        self.requests.append(f"send {len(blobs)}" if blobs else "ask")
        if blobs and self.busy:
            self.busy -= 1
            await message.respond(messages.Receipts(request.nonce, error="busy", node=self.node).seal(self.key))
            return
        touched = [self.stored.put(decode(blob, self._node_public)) for blob in blobs]
        if blobs and self.mute:
            self.mute -= 1
            return
        receipts = self.stored.answer(request, touched, self.node).seal(self.key)
        if blobs and self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, lambda: asyncio.ensure_future(message.respond(receipts)))
        else:
            await message.respond(receipts)

    async def _on_state(self, message: Msg) -> None:
        request, blobs = messages.Exchange.unseal(self._node_public, message.data)
        if request.has_document:
            self.document = self.document.merged(blobs[0], author=self.node)
        newer = self.manifest is not None and self._order > (request.term, request.generation)
        differs = self.document.digest() != request.document
        reply = messages.ExchangeReply(request.nonce, self.document.digest(), 0, newer, differs, node=self.node)
        out = [self.manifest.body, self.manifest.signature] if newer and self.manifest else []
        await message.respond(reply.seal(self.key, [*out, *([self.document.save()] if differs else [])]))

    async def _on_artifact(self, message: Msg) -> None:
        request, _ = messages.ArtifactRequest.unpack(message.data)
        self.fetches.append((request.digest, request.offset))
        if request.digest not in self.artifacts:
            reply = messages.ArtifactReply(request.nonce, error="there is no such artifact", node=self.node)
            await message.respond(reply.seal(self.key))
            return
        artifact, number = self.artifacts[request.digest]
        chunk = artifact.data[request.offset : request.offset + min(request.length, CHUNK_BYTES_MAX)]
        reply = messages.ArtifactReply(request.nonce, artifact.kind, len(artifact.data), number, node=self.node)
        await message.respond(reply.seal(self.key, [chunk, artifact.signature]))

    async def _on_heartbeat(self, message: Msg) -> None:
        self.heartbeats.append(messages.Heartbeat.unpack(message.data)[0])
