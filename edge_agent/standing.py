"""Why this node is let in no more, or is not answered: asked with another login, which opens nothing else, and kept for `status`.

Refused by the broker, it was removed. Let in and not known, the control plane was restored from a backup older than the node.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from edge_agent.config import Identity
from edge_agent.link import LinkDown, Login, NatsLink, connected
from edge_agent.store import Store
from pipelines.contract import subjects
from pipelines.contract.errors import Refused
from pipelines.contract.messages import Standing, StandingReply

ASK_EVERY_S = 600.0
_META = "standing"
_log = structlog.get_logger("link")


class StandingWatch:
    def __init__(self, identity: Identity, store: Store, link: NatsLink, trouble: Callable[[], str], timeout_s: float) -> None:
        """`trouble` says what is wrong with the exchange; "" for nothing. `timeout_s`: of a request, and between two looks."""
        self._timeout_s = timeout_s
        self._identity, self._store, self._link, self._trouble = identity, store, link, trouble
        self._asked_s = -math.inf
        self.is_unknown = False
        self._changed = asyncio.Event()
        self.removed: dict[str, str] | None = None  # what the control plane said, signed: by, reason, at
        link.on_change(self._changed.set)

    async def run(self) -> None:
        self.removed = await self._store.get(_META) or None
        while True:
            is_well = self._link.is_up and not self._trouble()
            is_kept_out = self._link.is_refused or (self._link.is_up and not is_well)
            if is_well:
                self._asked_s, self.is_unknown = -math.inf, False
            if self._link.is_up and self.removed:
                await self._tell(None)
            elif is_kept_out and time.monotonic() > self._asked_s + ASK_EVERY_S and await self._ask():
                self._asked_s = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await self._changed.wait()
            self._changed.clear()

    async def _ask(self) -> bool:
        """Whether there was an answer."""
        identity = self._identity
        key = identity.key.derived("standing")
        login = Login(identity.url, subjects.inbox(identity.node), identity.standing_jwt, key.seed, identity.ca, identity.name)
        question = Standing(identity.node, secrets.token_hex(8))
        try:
            async with connected(login) as link:
                raw = await link.request(subjects.standing(identity.node), question.seal(identity.key), self._timeout_s)
            reply, _ = StandingReply.unseal(identity.control, raw)
        except (LinkDown, Refused) as error:
            _log.info("not told what becomes of this node", reason=str(error))
            return False
        if (reply.nonce, reply.node) != (question.nonce, identity.node):
            return False
        self.is_unknown = reply.state == "unknown"
        if reply.state == "removed":
            await self._tell({"by": reply.by, "reason": reply.reason, "at": reply.at})
        return True

    async def _tell(self, removed: dict[str, str] | None) -> None:
        if removed == self.removed:
            return
        await self._store.put(_META, removed or {})
        self.removed = removed
        if removed:
            _log.warning("this node was removed; pipelines and alarms go on", **removed)
