"""Exchange the NodeState with the control plane, send heartbeats. Level-triggered: hints only hurry it (I7)."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from importlib import metadata

import structlog

from edge_agent import clock
from edge_agent.clock import Anchor
from edge_agent.config import AgentConfig, Identity
from edge_agent.link import Link, LinkDown
from edge_agent.node_record import NodeRecord
from edge_agent.store import Store
from pipelines.contract import subjects
from pipelines.contract.errors import Refused
from pipelines.contract.messages import Exchange, ExchangeReply, Heartbeat

AGENT = metadata.version("tidewire")
_log = structlog.get_logger("state")


class StateSync:
    def __init__(self, config: AgentConfig, identity: Identity, store: Store, record: NodeRecord, link: Link) -> None:
        self._config, self._identity, self._store, self._record, self._link = config, identity, store, record, link
        self._wake = asyncio.Event()
        self.last_exchange = ""  # the node's wall clock at the last one that went well: a label
        self.trouble = ""
        self._theirs = ""  # digest of the document that the control plane named last
        link.on_message(subjects.poke(identity.node), self.wake)
        link.on_change(self.wake)
        record.on_change(self.wake)

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """On connect, on a poke, on a change of ours, and on a timer, whichever comes first."""
        while True:
            try:
                async with asyncio.timeout(self._config.exchange_s * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads a fleet
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._link.is_up:
                await self._exchange_once()

    async def run_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._config.heartbeat_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads a fleet
            if self._link.is_up:
                await self._beat()

    async def _exchange_once(self) -> None:
        try:
            lacks_ours = self._theirs not in ("", self._record.document.digest())
            if lacks_ours or not await self._agrees():
                await self._exchange(with_document=True)
        except (LinkDown, Refused) as error:
            if str(error) != self.trouble:
                _log.warning("exchange did not succeed", reason=str(error))
            self.trouble = str(error)
        else:
            self.trouble, self.last_exchange = "", clock.wall_text()

    async def _agrees(self) -> bool:
        """Whether both have the same document now. One that we may not merge may be one that we can, once it has ours."""
        try:
            reply = await self._exchange(with_document=False)
        except Refused as error:
            _log.warning("what the control plane holds cannot be merged; sending ours first", reason=str(error))
            return False
        return reply.document == self._record.document.digest()

    async def _exchange(self, *, with_document: bool) -> ExchangeReply:
        identity, record = self._identity, self._record
        document = record.document
        request = Exchange(
            identity.node,
            secrets.token_hex(8),
            *record.manifest.order,
            document.digest(),
            manifest=record.manifest_digest,
            has_document=with_document,
            epoch=document.epoch,
        )
        data = request.seal(identity.key, [document.save()] if with_document else [])
        node_clock = self._store.clock
        asked_us = node_clock.now_us()
        raw = await self._link.request(subjects.state(identity.node), data, self._config.request_timeout_s)
        answered_us = node_clock.now_us()
        reply, blobs = ExchangeReply.unseal(identity.control, raw)
        if (reply.nonce, reply.node) != (request.nonce, identity.node) or reply.error:
            self._theirs = ""
            raise Refused(reply.error or "the answer belongs to another question", op="exchange", place=identity.node)
        self._theirs = reply.document
        await self._store.anchor(Anchor.told(node_clock.time_line, asked_us, answered_us, reply.server_time_us))
        await self._take_over(reply, blobs, document.digest() if with_document else "")
        return reply

    async def _take_over(self, reply: ExchangeReply, blobs: Sequence[bytes], sent: str) -> None:
        if reply.has_document and blobs:
            await self._record.merge(blobs[-1], sent=sent)
        elif reply.has_proposal and blobs:
            await self._record.begin_epoch(blobs[-1])
        await self._record.agree(reply.document)
        if signed := reply.manifest(blobs):
            await self._record.accept_manifest(signed)

    async def _beat(self) -> None:
        backlog, lasts_s, record = await self._store.backlog(), await self._store.buffer_lasts_s(), self._record
        heartbeat = Heartbeat(
            node=self._identity.node,
            document=record.document.digest(),
            term=record.manifest.term,
            generation=record.manifest.generation,
            backlog_segments=backlog.segments,
            backlog_bytes=backlog.bytes,
            clock=clock.quality(),
            agent=AGENT,
            backlog_rows=backlog.rows,
            lost_rows=backlog.evicted_rows + backlog.damaged_rows,
            buffer_lasts_s=-1 if lasts_s is None else int(lasts_s),
        )
        try:
            await self._link.publish(subjects.heartbeat(self._identity.node), heartbeat.pack())
        except LinkDown as error:
            _log.debug("no heartbeat", reason=str(error))
