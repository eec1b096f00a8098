"""Why the broker refuses this node's login: asked with another login, which opens nothing else, and kept for `status`."""

from __future__ import annotations

import asyncio
import json
import secrets

import structlog

from edge_agent.config import Identity
from edge_agent.link import LinkDown, Login, NatsLink, connected
from edge_agent.store import Store
from pipelines.contract import subjects
from pipelines.contract.errors import Refused
from pipelines.contract.messages import Standing, StandingReply

ASK_EVERY_S = 600.0
_REPLY_S = 10.0
_META = "standing"
_log = structlog.get_logger("link")


class StandingWatch:
    def __init__(self, identity: Identity, store: Store, link: NatsLink) -> None:
        self._identity, self._store, self._link = identity, store, link
        self._changed = asyncio.Event()
        self.removed: dict[str, str] | None = None  # what the control plane said, signed: by, reason, at
        link.on_change(self._changed.set)

    async def run(self) -> None:
        self.removed = json.loads(await self._store.get(_META) or "null")
        while True:
            if self._link.is_up and self.removed:
                await self._tell(None)
            elif self._link.is_refused:
                await self._ask()
            try:
                async with asyncio.timeout(ASK_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def _ask(self) -> None:
        identity = self._identity
        key = identity.key.derived("standing")
        login = Login(identity.url, subjects.inbox(identity.node), identity.standing_jwt, key.seed, identity.ca, identity.name)
        question = Standing(identity.node, secrets.token_hex(8))
        try:
            async with connected(login) as link:
                raw = await link.request(subjects.standing(identity.node), question.seal(identity.key), _REPLY_S)
            reply, _ = StandingReply.unseal(identity.control, raw)
        except (LinkDown, Refused) as error:
            _log.info("not told why the login is refused", reason=str(error))
            return
        if (reply.nonce, reply.node, reply.state) == (question.nonce, identity.node, "removed"):
            await self._tell({"by": reply.by, "reason": reply.reason, "at": reply.at})

    async def _tell(self, removed: dict[str, str] | None) -> None:
        if removed == self.removed:
            return
        await self._store.put(_META, json.dumps(removed))
        self.removed = removed
        if removed:
            _log.warning("this node was removed; pipelines and alarms go on", **removed)
