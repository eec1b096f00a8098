"""Local actions: performed the moment an incident changes, retried, expired in the open, never twice at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import structlog

from edge_agent.actions import exec as exec_action
from edge_agent.actions import log as log_action
from edge_agent.actions import webhook as webhook_action
from edge_agent.actions.outcome import Done, Failed, Outcome, Refusal
from edge_agent.policy import Policy
from edge_agent.store import Store
from pipelines.contract.spec import PipelineSpec

Perform = Callable[[Mapping[str, Any], Policy], Awaitable[Outcome]]
KINDS: dict[str, Perform] = {"log": log_action.perform, "webhook": webhook_action.perform, "exec": exec_action.perform}

TRIES = 5  # without a valid_for; with one, tries go on until it is over
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 300.0  # 1, 2, 4 .. 300 s
_FINISHED_IDS_KEPT = 1000
_log = structlog.get_logger("actions")


class Actions:
    """Performs actions by id: each at most once at a time, and not again when it is known to be done.

    Actions on one target for one incident keep their order. What a commit made durable survives a restart (`resume`).
    """

    def __init__(self, store: Store, policy: Policy) -> None:
        self._store, self._policy = store, policy
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._finished: dict[str, None] = {}
        self._targets: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def resume(self) -> None:
        """Take up what a former life of the agent left undone. Call before the first `offer`."""
        self._finished = dict.fromkeys(await self._store.finished_actions())
        for action in await self._store.pending_actions():
            self.offer(action["pipeline"], action)

    async def prepare(self, spec: PipelineSpec) -> None:
        """Have at hand what the actions of a pipeline need, so that the first is as fast as the next."""
        kinds = {action.kind for trigger in spec.triggers.values() for action in trigger.actions.every()}
        if "webhook" in kinds:
            await asyncio.to_thread(webhook_action.warm)

    def offer(self, pipeline: str, action: Mapping[str, Any]) -> None:
        """Start it now, unless it is under way or finished. Never blocks."""
        name = str(action["id"])
        if name not in self._tasks and name not in self._finished:
            self._tasks[name] = asyncio.create_task(self._see_through({**action, "pipeline": pipeline}))
            self._tasks[name].add_done_callback(lambda _: self._tasks.pop(name, None))

    async def idle(self, within_s: float = 10.0) -> None:
        """Wait until nothing is under way, but not for retries that take longer."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=within_s)

    async def close(self) -> None:
        """Leave what is undone to the next life."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _see_through(self, action: dict[str, Any]) -> None:
        target = f"{action.get('incident')} {action.get('kind')} {_target(action)}"
        lock = self._targets.setdefault(target, asyncio.Lock())
        async with lock:
            tries = int(action.pop("tries", 0))
            while not (outcome := await self._try(action)).is_final:
                tries += 1
                if tries >= TRIES and action.get("valid_for_us") is None:
                    outcome = Failed(f"{outcome.text} ({tries} tries)")
                    break
                await self._store.settle_action(action, "pending", tries, outcome.text)
                await self._pause(action, tries)
            await self._finish(action, outcome, tries)

    async def _try(self, action: Mapping[str, Any]) -> Outcome:
        if self._left_s(action) <= 0:
            return Outcome("expired", "its valid_for was over")
        perform = KINDS.get(str(action.get("kind")))
        if perform is None:
            return Refusal(f"this agent has no action {action.get('kind')!r}")
        try:
            return await perform(action, self._policy)
        except Exception as error:  # noqa: BLE001 - an action must harm neither the agent nor another action (I11)
            return Failed(f"{type(error).__name__}: {error}")

    async def _pause(self, action: Mapping[str, Any], tries: int) -> None:
        pause_s = min(BACKOFF_FIRST_S * 2 ** min(tries - 1, 16), BACKOFF_MAX_S)
        await asyncio.sleep(max(0.0, min(pause_s, self._left_s(action))))

    def _left_s(self, action: Mapping[str, Any]) -> float:
        """Seconds of node time until it is too late (I10)."""
        valid_for_us = action.get("valid_for_us")
        if valid_for_us is None:
            return float("inf")
        return float(action["at_us"] + valid_for_us - self._store.clock.now_us()) / 1e6

    async def _finish(self, action: Mapping[str, Any], outcome: Outcome, tries: int) -> None:
        log = _log.info if isinstance(outcome, Done) else _log.warning
        log(
            "action " + outcome.status,
            id=action["id"],
            kind=action.get("kind"),
            pipeline=action["pipeline"],
            outcome=outcome.text,
        )
        self._finished[str(action["id"])] = None
        while len(self._finished) > _FINISHED_IDS_KEPT:
            del self._finished[next(iter(self._finished))]
        await self._store.settle_action(action, outcome.status, tries + 1, outcome.text)


def _target(action: Mapping[str, Any]) -> str:
    config = action.get("config", {})
    return str(config.get("url") or config.get("program") or "")
