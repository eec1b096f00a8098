"""What waits for one target that could not be reached, or did not take it: in order, and as one digest once it is much.

After a night without a link nobody is called five hundred times: more than `DIGEST_OVER` waiting actions go as one message, and
each is recorded as done in it. A receiver that refuses the digest gets them one by one.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from edge_agent.actions.outcome import Failed, Outcome
from pipelines.contract.frames import sha256

DIGEST_OVER = 10
DIGEST_MAX = 500  # actions in one: about 250 KB
TRIES = 5  # without a valid_for; with one, tries go on until it is over
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 300.0  # 1, 2, 4 .. 300 s
EXPIRED = Outcome("expired", "its valid_for was over")

Action = Mapping[str, Any]
Try = Callable[[Action], Awaitable[Outcome]]
Keep = Callable[[Sequence[tuple[Action, int, str]]], Awaitable[None]]  # (action, tries, what the last one said)


@dataclass(order=True)
class Waiting:
    order: int
    action: Action = field(compare=False)
    tries: int = field(compare=False)
    ended: asyncio.Future[Outcome] = field(compare=False, repr=False)

    def end(self, outcome: Outcome) -> None:
        if not self.ended.done():
            self.ended.set_result(outcome)


class Backlog:
    """One per target. What entered has `ended` when it is done, failed for good or expired; a new one has all looked at soon."""

    def __init__(self, try_once: Try, left_s: Callable[[Action], float], keep: Keep) -> None:
        self._try, self._left_s, self._keep = try_once, left_s, keep
        self._waiting: list[Waiting] = []
        self._takes_digest = True
        self._news = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self.is_down = False  # it could not be reached: a new action need not try before it waits

    def enter(self, order: int, action: Action, tries: int) -> Waiting:
        """`order` is its place among those that wait."""
        one = Waiting(order, action, tries, asyncio.get_running_loop().create_future())
        insort(self._waiting, one)
        self._news.set()
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return one

    def holds(self, incident: str) -> bool:
        return any(one.action.get("incident") == incident for one in self._open())

    async def close(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
            with suppress(asyncio.CancelledError):
                await self._draining

    async def _drain(self) -> None:
        pause_s = BACKOFF_FIRST_S
        self._news.clear()
        while self._open():
            before, is_scheduled = len(self._open()), await self._pause(pause_s)
            self._news.clear()
            for one in self._open():
                if self._left_s(one.action) <= 0:
                    one.end(EXPIRED)
            await self._round(is_scheduled=is_scheduled)
            delivered = len(self._open()) < before
            pause_s = BACKOFF_FIRST_S if delivered else min(pause_s * 2, BACKOFF_MAX_S) if is_scheduled else pause_s
        self.is_down = False

    def _open(self) -> list[Waiting]:
        self._waiting = [one for one in self._waiting if not one.ended.done()]
        return self._waiting

    async def _pause(self, pause_s: float) -> bool:
        """Whether it passed, which counts as a try; or something new came, which is a reason to look earlier."""
        soonest_s = min((self._left_s(one.action) for one in self._open()), default=pause_s)
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(pause_s, soonest_s))):
                await self._news.wait()
        except TimeoutError:
            return True
        await asyncio.sleep(max(0.0, min(BACKOFF_FIRST_S, pause_s) - (time.monotonic() - began_s)))
        return False

    async def _round(self, *, is_scheduled: bool) -> None:
        waiting = self._open()
        if len(waiting) > DIGEST_OVER and self._takes_digest:
            return await self._send_digest(waiting[:DIGEST_MAX], is_scheduled=is_scheduled)
        failed: set[Any] = set()
        for one in waiting:
            incident = one.action.get("incident")
            if incident in failed:
                continue  # in order: its earlier action is not taken yet
            outcome = await self._try(one.action)
            self.is_down = not outcome.was_reached
            if outcome.is_final:
                one.end(outcome)
                continue
            failed.add(incident)
            if self.is_down:  # a try for all that wait for this target
                return await self._count(self._open(), outcome, is_scheduled=is_scheduled)
            await self._count([one], outcome, is_scheduled=is_scheduled)
        return None

    async def _send_digest(self, batch: Sequence[Waiting], *, is_scheduled: bool) -> None:
        outcome = await self._try(digest([one.action for one in batch]))
        self.is_down = not outcome.was_reached
        if outcome.status == "done":
            for one in batch:
                one.end(Outcome("done", f"in a digest of {len(batch)}: {outcome.text}"))
        elif outcome.is_final:
            self._takes_digest = False
        else:
            await self._count(batch if outcome.was_reached else self._open(), outcome, is_scheduled=is_scheduled)

    async def _count(self, those: Sequence[Waiting], outcome: Outcome, *, is_scheduled: bool) -> None:
        kept = []
        for one in those:
            one.tries += is_scheduled
            if one.tries >= TRIES and one.action.get("valid_for_us") is None:
                one.end(Failed(f"{outcome.text} ({one.tries} tries)"))
            else:
                kept.append((one.action, one.tries, outcome.text))
        if is_scheduled and kept:
            await self._keep(kept)


def digest(actions: Sequence[Action]) -> dict[str, Any]:
    """One action in place of `actions`, in their order: what became of each incident, its last word on top."""
    incidents: dict[str, dict[str, Any]] = {}
    for action in actions:
        context = action.get("context", {})
        known = incidents.pop(str(action.get("incident")), {"transitions": []})
        at = _time(context.get("at_us"))
        step = {"id": action["id"], "transition": action.get("transition"), "at": at, "by": context.get("by", "")}
        names = {name: action.get(name) for name in ("incident", "pipeline", "trigger")}
        kept = {name: value for name, value in context.items() if name not in ("transition", "by", "reason", "at_us", "n")}
        incidents[str(action.get("incident"))] = {**kept, **names, "transitions": [*known["transitions"], step]}
    times = [str(step["at"]) for one in incidents.values() for step in one["transitions"] if step["at"]]
    body = {"digest": True, "count": len(actions), "since": min(times, default=""), "incidents": list(incidents.values())}
    name = sha256("/".join(str(action["id"]) for action in actions).encode())[-32:]
    return {**actions[0], "id": name, "valid_for_us": None, "digest": body}


def _time(us: Any) -> str:
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(us))).isoformat(timespec="seconds")
    except (TypeError, ValueError, OverflowError):
        return ""
