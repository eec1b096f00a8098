"""Local actions: performed the moment an incident changes, retried, expired in the open, never twice at a time.

Actions are stored with the references of their settings (`${secret:x}`); these are resolved for each try, in memory only.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

import structlog

from edge_agent.actions import backlog
from edge_agent.actions import exec as exec_action
from edge_agent.actions import log as log_action
from edge_agent.actions import webhook as webhook_action
from edge_agent.actions.outcome import Failed, Outcome, Refusal, Retry
from edge_agent.policy import Policy
from edge_agent.secret_store import SecretStore
from edge_agent.store import Store
from pipelines.contract.errors import TidewireError
from pipelines.contract.interpolate import Values, masked, resolve, secrets_in
from pipelines.contract.spec import PipelineSpec

Perform = Callable[[Mapping[str, Any], Policy], Awaitable[Outcome]]
KINDS: dict[str, Perform] = {"log": log_action.perform, "webhook": webhook_action.perform, "exec": exec_action.perform}

PROGRAMS_AT_ONCE = 4  # more incidents wait their turn, so that a storm of them does not exhaust the machine
_FINISHED_IDS_KEPT = 1000
_log = structlog.get_logger("actions")


class Actions:
    """Performs actions by id: each at most once at a time, and not again when it is known to be done.

    Actions on one target for one incident keep their order, those that wait for it all do. What a commit made durable survives a
    restart (`resume`).
    """

    def __init__(self, store: Store, policy: Policy, secrets: SecretStore | None = None) -> None:
        self._store, self._policy, self._secrets = store, policy, secrets
        self._programs = asyncio.Semaphore(PROGRAMS_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._finished: dict[str, None] = {}
        self._targets: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._backlogs: dict[str, backlog.Backlog] = {}
        self._offered = itertools.count()

    async def resume(self) -> None:
        """Take up what a former life of the agent left undone. Call before the first `offer`."""
        self._finished = dict.fromkeys(await self._store.finished_actions())
        pending = await self._store.pending_actions()
        counts = Counter(_target(action) for action in pending)
        for action in pending:
            if _may_wait(action) and (action["tries"] or counts[_target(action)] > backlog.DIGEST_OVER):
                self._backlog(action).is_down = True
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
        await asyncio.gather(*tasks, *(found.close() for found in self._backlogs.values()), return_exceptions=True)

    async def _see_through(self, action: dict[str, Any]) -> None:
        order, tries = next(self._offered), int(action.pop("tries", 0))
        lock = self._targets.setdefault(f"{action.get('incident')} {_target(action)}", asyncio.Lock())
        if not _may_wait(action):
            async with lock:
                await self._finish(action, *await self._insist(action, tries))
            return
        async with lock:
            outcome = None if self._must_wait(action) else await self._try(action)
            if outcome is not None and not outcome.is_final:
                tries, self._backlog(action).is_down = tries + 1, not outcome.was_reached
                await self._store.settle_action(action, "pending", tries, outcome.text)
            waiting = None if outcome is not None and outcome.is_final else self._backlog(action).enter(order, action, tries)
        if waiting is not None:
            outcome, tries = await waiting.ended, waiting.tries
        assert outcome is not None
        await self._finish(action, outcome, tries)

    async def _insist(self, action: dict[str, Any], tries: int) -> tuple[Outcome, int]:
        while not (outcome := await self._try(action)).is_final:
            tries += 1
            if tries >= backlog.TRIES and action.get("valid_for_us") is None:
                return Failed(f"{outcome.text} ({tries} tries)"), tries
            await self._store.settle_action(action, "pending", tries, outcome.text)
            await self._pause(action, tries)
        return outcome, tries

    def _must_wait(self, action: Mapping[str, Any]) -> bool:
        found = self._backlogs.get(_target(action))
        return found is not None and (found.is_down or found.holds(str(action.get("incident"))))

    def _backlog(self, action: Mapping[str, Any]) -> backlog.Backlog:
        name = _target(action)
        if name not in self._backlogs:
            self._backlogs[name] = backlog.Backlog(self._try, self._left_s, self._store.hold_actions)
        return self._backlogs[name]

    async def _try(self, action: Mapping[str, Any]) -> Outcome:
        """One try, once there is room for it: the wait counts against its `valid_for`."""
        kind = str(action.get("kind"))
        perform = KINDS.get(kind)
        if perform is None:
            return Refusal(f"this agent has no action {kind!r}")
        async with self._room_for(kind):
            if self._left_s(action) <= 0:
                return backlog.EXPIRED
            return await self._perform(perform, action)

    def _room_for(self, kind: str) -> AbstractAsyncContextManager[None]:
        return self._programs if kind == "exec" else nullcontext()

    async def _perform(self, perform: Perform, action: Mapping[str, Any]) -> Outcome:
        config = action.get("config", {})
        try:
            secrets = self._secrets.values(secrets_in(config)) if self._secrets else {}
            resolved = resolve(config, Values(**action.get("values", {}), secrets=secrets))
        except TidewireError as error:  # it may be set before it is too late
            return Retry(f"{error} ({error.hint})")
        try:
            outcome = await perform({**action, "config": resolved}, self._policy)
        except Exception as error:  # noqa: BLE001 - an action must harm neither the agent nor another action (I11)
            outcome = Failed(f"{type(error).__name__}: {error}")
        return Outcome(outcome.status, masked(outcome.text, secrets))

    async def _pause(self, action: Mapping[str, Any], tries: int) -> None:
        pause_s = min(backlog.BACKOFF_FIRST_S * 2 ** min(tries - 1, 16), backlog.BACKOFF_MAX_S)
        await asyncio.sleep(max(0.0, min(pause_s, self._left_s(action))))

    def _left_s(self, action: Mapping[str, Any]) -> float:
        """Seconds of node time until it is too late (I10)."""
        valid_for_us = action.get("valid_for_us")
        if valid_for_us is None:
            return float("inf")
        return float(action["at_us"] + valid_for_us - self._store.clock.now_us()) / 1e6

    async def _finish(self, action: Mapping[str, Any], outcome: Outcome, tries: int) -> None:
        log = _log.info if outcome.status == "done" else _log.warning
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
    """What it is sent to; with the headers, which may say for whom."""
    config = action.get("config", {})
    return f"{action.get('kind')} {config.get('url') or config.get('program') or ''} {config.get('headers') or ''}"


def _may_wait(action: Mapping[str, Any]) -> bool:
    """Whether many of them can be told in one message."""
    return action.get("kind") == "webhook"
