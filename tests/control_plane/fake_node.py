"""A node made of nats-py and the contract alone: joins, exchanges, uploads. It keeps what it sealed until a receipt (I3)."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace
from typing import Any

import nats
import pyarrow as pa
from nats.aio.client import Client, RawCredentials
from server_process import PRESS

from pipelines.contract import messages, subjects
from pipelines.contract.artifact import Artifact
from pipelines.contract.document import NodeDocument
from pipelines.contract.folds import effective_params
from pipelines.contract.frames import sha256
from pipelines.contract.keys import Key
from pipelines.contract.node_state import CONTROL, Manifest, Reported, params_digest
from pipelines.contract.segment import INCIDENTS, ROWS, Segment, SegmentHeader, encode
from pipelines.contract.spec import load_spec
from pipelines.contract.token import JoinToken, prove
from pipelines.engine.ipc import encode_rows

PRESS_DIGEST = sha256(load_spec(PRESS).canonical_bytes())
STAMP = pa.timestamp("us", tz="UTC")


def creds(jwt: str, seed: str) -> RawCredentials:
    return RawCredentials(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def trust(ca: str) -> ssl.SSLContext | None:
    return ssl.create_default_context(cadata=ca) if ca else None


def rows(*values: float) -> pa.Table:
    stamps = pa.array(range(len(values)), STAMP)
    return pa.table({"ts": stamps, "value": pa.array(values, pa.float64()), "_event_time": stamps})


def incident_rows(incident: str, transition: str, at_us: int = 1_700_000_000_000_000, **more: str) -> pa.Table:
    names = ["incident", "pipeline", "trigger", "group", "transition", "severity", "message", "by", "reason", "value", *more]
    names = list(dict.fromkeys(names))
    row = {"incident": incident, "transition": transition, "pipeline": "press", "trigger": "hot", "group": "{}", "value": "{}"}
    row |= {"severity": "critical", "message": "Press 1 is hot", "by": "", "reason": "", **more}
    columns = {name: pa.array([row[name]], pa.string()) for name in names}
    return pa.table({**columns, "at": pa.array([at_us], STAMP)})


class Stream:
    """Seals one run of one stream."""

    def __init__(
        self, node: str, key: Key, name: str, table: str, run: str | None = None, kind: str = ROWS, version: str = "sha256:v"
    ) -> None:
        self.node, self.key, self.name, self.table, self.kind, self.version = node, key, name, table, kind, version
        self.run = run or os.urandom(8).hex()
        self.sealed: list[Segment] = []

    def seal(self, table: pa.Table | None, **overrides: Any) -> Segment:
        payload = encode_rows(table) if table is not None and table.num_rows else b""
        fields: dict[str, Any] = {
            "node": self.node, "run": self.run, "stream": self.name, "seq": self.next_seq,
            "previous": self.sealed[-1].link if self.sealed else "", "kind": self.kind, "table": self.table,
            "rows": table.num_rows if table is not None else 0, "payload_digest": sha256(payload),
            "pipeline": "press", "version": self.version, "number": 1, "params": "sha256:p", "sealed_at_us": 1, "node_time_us": 1,
            "clock": "synced", "engine": "test", "positions": {"sim": {"to": 1}}, "ledgers": {"source": {"sim": {"read": 1}}},
            "lineage": "l1", "boot": "b1", "utc_offset_us": 0,
            "run_rows": (self.sealed[-1].header.run_rows if self.sealed else 0) + (table.num_rows if table is not None else 0),
            "first": overrides.get("seq", self.next_seq),
        }  # fmt: skip
        segment = encode(SegmentHeader(**{**fields, **overrides}), payload, self.key)
        self.sealed.append(segment)
        return segment

    @property
    def next_seq(self) -> int:
        return self.sealed[-1].header.seq + 1 if self.sealed else 1

    def stub(self, seq: int, rows: int, void: str = "evicted") -> Segment:
        """In place of the segments from the next one to `seq`, which are never seen."""
        first, before = self.next_seq, self.sealed[-1].header.run_rows if self.sealed else 0
        more = {"rows": rows, "run_rows": before + rows, "void": void, "stands_for": sha256(f"{self.run} {seq}".encode())}
        return self.seal(None, seq=seq, first=first, **more)

    def instead(self, *seqs: int, void: str = "evicted") -> Segment:
        """A stub in place of sealed segments."""
        lost = [segment for segment in self.sealed if segment.header.seq in seqs]
        header = replace(
            lost[-1].header,
            first=lost[0].header.first,
            previous=lost[0].header.previous,
            rows=sum(segment.header.rows for segment in lost),
            payload_digest=sha256(b""),
            void=void,
            stands_for=lost[-1].link,
        )
        return encode(header, b"", self.key)


class FakeNode:
    def __init__(self, client: Client, key: Key, token: JoinToken, reply: messages.JoinReply) -> None:
        self.client, self.key, self.token = client, key, token
        self.id, self.name, self.author, self.labels = reply.node, reply.name, reply.author, reply.labels
        self.jwt = reply.user_jwt
        self.document = NodeDocument()
        self.manifest, self.manifest_digest = Manifest(self.id, 0, 0), ""
        self.pokes = 0
        self.errors: list[str] = []

    @classmethod
    async def join(cls, text: str, name: str = "pi", key: Key | None = None) -> FakeNode:
        token, key = JoinToken.decode(text), key or Key.from_entropy(os.urandom(32))
        reply = await ask_to_join(token, key, name)
        assert not reply.error, reply.error
        node = cls(Client(), key, token, reply)
        await node.connect()
        return node

    async def connect(self) -> None:
        async def on_error(error: Exception) -> None:
            self.errors.append(str(error))

        async def on_poke(_: Any) -> None:
            self.pokes += 1

        self.client = await nats.connect(
            self.token.url,
            user_credentials=creds(self.jwt, self.key.seed),
            inbox_prefix=subjects.inbox(self.id),
            tls=trust(self.token.ca),
            tls_handshake_first=bool(self.token.ca),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
            error_cb=on_error,
        )
        await self.client.subscribe(subjects.poke(self.id), cb=on_poke)
        await self.client.flush()

    async def close(self) -> None:
        await self.client.close()

    async def request(self, subject: str, data: bytes, timeout: float = 10) -> bytes:
        return (await self.client.request(subject, data, timeout=timeout)).data

    async def exchange(self) -> messages.ExchangeReply:
        """Until both sides hold the same."""
        reply = await self._exchange(with_document=False)
        if reply.document != self.document.digest():
            reply = await self._exchange(with_document=True)
        return reply

    async def _exchange(self, *, with_document: bool) -> messages.ExchangeReply:
        nonce = os.urandom(8).hex()
        request = messages.Exchange(
            self.id, nonce, *self.manifest.order, self.document.digest(), with_document, self.manifest_digest, self.document.epoch
        )
        sealed = request.seal(self.key, [self.document.save()] if with_document else [])
        raw = await self.request(subjects.state(self.id), sealed)
        reply, blobs = messages.ExchangeReply.unseal(self.token.control, raw)
        assert (reply.node, reply.nonce) == (self.id, nonce)
        if signed := reply.manifest(blobs):
            self.manifest = signed.open(self.id, self.token.control)
            self.manifest_digest = sha256(signed.body)
        if reply.has_document:
            self.document = self.document.merged(blobs[-1], author=CONTROL)
        elif reply.has_proposal:
            self.document = NodeDocument(blobs[-1])
        return reply

    async def upload(self, *segments: Segment, ask: list[list[str]] | None = None, timeout: float = 10) -> messages.Receipts:
        nonce = os.urandom(8).hex()
        request = messages.Upload(self.id, nonce, ask or [])
        raw = await self.request(subjects.data(self.id), request.pack([s.data for s in segments]), timeout)
        receipts, _ = messages.Receipts.unseal(self.token.control, raw)
        assert (receipts.node, receipts.nonce) == (self.id, nonce)
        return receipts

    async def fetch(self, digest: str) -> bytes:
        request = messages.ArtifactRequest(self.id, os.urandom(8).hex(), digest)
        raw = await self.request(subjects.artifact(self.id), request.pack())
        reply, blobs = messages.ArtifactReply.unseal(self.token.control, raw)
        assert reply.node == self.id and not reply.error, reply.error
        Artifact(reply.kind, blobs[0], blobs[1]).verify(digest, self.author)
        return blobs[0]

    async def obey(self, phase: str = "running", reason: str = "") -> None:
        """Report everything in the manifest as run with the effective parameters."""
        for name, assignment in self.manifest.assignments.items():
            spec = load_spec((await self.fetch(assignment.digest)).decode())
            effective = effective_params(spec.defaults(), assignment, self.document.notes(), node=self.id, pipeline=name)
            values = {key: entry.value for key, entry in effective.items()}
            reported = Reported(
                assignment.digest, assignment.number, phase, values, params_digest(values), reason, artifacts=assignment.artifacts
            )
            self.document.report(name, reported)
        for name, now in self.document.reported().items():
            if name not in self.manifest.assignments:
                self.document.report(name, Reported(now.digest, now.number, "stopped"))
        await self.exchange()

    async def beat(self) -> None:
        beat = messages.Heartbeat(self.id, self.document.digest(), *self.manifest.order, 0, 0, "synced", "0")
        await self.client.publish(subjects.heartbeat(self.id), beat.pack())
        await self.client.flush()

    def stream(self, name: str = "rows", table: str = "press_rows", **options: Any) -> Stream:
        return Stream(self.id, self.key, name, table, **{"version": PRESS_DIGEST, **options})

    def incidents(self) -> Stream:
        return self.stream("incidents", "incidents", kind=INCIDENTS)


async def ask_to_join(
    token: JoinToken, key: Key, name: str, proof: bytes | None = None, timeout: float = 10
) -> messages.JoinReply:
    client = await nats.connect(
        token.url,
        user_credentials=creds(token.jwt, token.seed),
        inbox_prefix=subjects.inbox(token.id),
        tls=trust(token.ca),
        tls_handshake_first=bool(token.ca),
        max_reconnect_attempts=2,
        reconnect_time_wait=0.1,
    )
    try:
        request = messages.Join(key.public, os.urandom(8).hex(), name, {"agent": "0", "arch": "test"})
        proof = prove(Key(token.seed), request.nonce, key.public) if proof is None else proof
        message = await client.request(subjects.join(token.id), request.seal(key, [proof]), timeout=timeout)
    finally:
        await client.close()
    reply, _ = messages.JoinReply.unseal(token.control, message.data)
    assert reply.nonce == request.nonce
    return reply
