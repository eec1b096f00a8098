"""Keeps one pipeline running: drains, replaces, restarts with back-off. Its siblings never notice (I11)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog

from edge_agent import clock
from edge_agent.host import Given, Outcome, PipelineHost, Services, Shelves
from edge_agent.store import Checkpoint
from pipelines.contract import causes
from pipelines.contract.node_state import Scalar
from pipelines.contract.version import PipelineVersion

BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0  # 1, 2, 4 .. 60 s between restarts
QUICK_S = 30.0  # a runner that lived shorter than this died quickly; one that lives longer has recovered
DEATHS_TO_FAIL = 3  # quick ones in a row, before the pipeline is reported as failed
_DRAIN_TRIES = 3

Params = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Status:
    """What is reported of a pipeline: `phase` is one of `PHASES`; `since` the wall clock when it began, a label."""

    phase: str
    reason: str = ""
    since: str = ""
    code: str = ""  # one of `causes.CODES`; "" when it is as it should be


OnEnd = Callable[["Keeper", Outcome], Awaitable[None]]


class Keeper:
    """`replace`, `update_params`, `stop` change what is wanted; `run` is the task that follows, and ends after `stop`.

    `stop` ends the pipeline for good, its streams drain; `suspend` only ends the process, for the agent's own end.
    """

    def __init__(
        self,
        services: Services,
        version: PipelineVersion,
        params: Params,
        on_change: Callable[[], None],
        on_end: OnEnd | None = None,
    ) -> None:
        """`on_end` hears how a runner ended that nobody had told to, before the next one starts."""
        self._services, self.version, self.params, self._on_change = services, version, dict(params), on_change
        self._on_end = on_end
        self.secrets = services.secrets_digest(version)  # as last given
        self.host: PipelineHost | None = None
        self.status = Status("pending", since=clock.wall_text())
        self.deaths = 0  # quick ones in a row
        self.restarts = 0
        self.shelves: Shelves = {}
        self.tables: Given = {}
        self.tables_in_use: Mapping[str, str] = {}  # as the last runner said: artifact -> digest
        self._wanted: PipelineVersion | None = version
        self._is_suspended = False
        self.trouble = ""  # what keeps its sources from giving rows
        self._lost = ""  # what the change of version cost, for the operator
        self._changed = asyncio.Event()
        self._log = structlog.get_logger("keeper").bind(pipeline=version.pipeline)

    @property
    def pipeline(self) -> str:
        return self.version.pipeline

    @property
    def wanted_digest(self) -> str:
        """What runs or is about to; "" once it was told to stop."""
        return self._wanted.digest if self._wanted else ""

    @property
    def is_ready(self) -> bool:
        return self.host is not None and self.host.is_ready

    @property
    def pid(self) -> int:
        return self.host.pid if self.host else 0

    @property
    def labels(self) -> Mapping[str, str]:
        """The node's labels, as the pipeline knows them."""
        return self._services.node.labels

    async def replace(self, version: PipelineVersion, params: Params, services: Services) -> None:
        self._services, self.secrets = services, services.secrets_digest(version)
        self._wanted, self.params, self.deaths, self._lost = version, dict(params), 0, ""
        await self._interrupt()

    async def stop(self) -> None:
        self._wanted = None
        await self._interrupt()

    async def suspend(self) -> None:
        self._is_suspended = True
        await self.stop()

    async def update_params(self, params: Params) -> None:
        self.params = dict(params)
        if self.host is not None:
            await self.host.set_params(params)
        self._on_change()

    async def set_shelves(self, shelves: Shelves) -> None:
        """See `PipelineHost.set_shelves`; a runner that starts later knows them before its first row."""
        self.shelves = shelves
        if self.host is not None:
            await self.host.set_shelves(shelves)

    async def set_tables(self, tables: Given) -> None:
        """See `PipelineHost.set_tables`; a runner that starts later has them from the start."""
        self.tables = tables
        if self.host is not None and self.version.digest == self.wanted_digest:
            await self.host.set_tables(tables)

    async def tell(self, what: str, incident: str, *, by: str, reason: str, at: str) -> None:
        """See `PipelineHost.tell`."""
        if self.host is not None:
            await self.host.tell(what, incident, by=by, reason=reason, at=at)

    async def run(self) -> None:
        while self._wanted is not None:
            self._changed.clear()
            self.version = self._wanted
            if self.deaths < DEATHS_TO_FAIL:
                self._set("pending", code=causes.STARTING)
            await self.drain_other_version()
            if self._changed.is_set():
                continue
            host = PipelineHost(
                self._services,
                self.version,
                self.params,
                on_ready=self._on_ready,
                on_trouble=self._on_trouble,
                shelves=self.shelves,
                tables=self.tables,
                on_tables=self._on_tables,
            )
            outcome = await self._run_once(host)
            if not self._changed.is_set():
                if self._on_end is not None:
                    await self._on_end(self, outcome)
                await self._back_off(outcome)
        if not self._is_suspended:
            await self._services.store.close_streams(self.pipeline)
            self._set("stopped")

    async def drain_other_version(self) -> None:
        """When another version wrote the state, let it emit what this one does not carry over."""
        store = self._services.store
        checkpoint = await store.checkpoint(self.pipeline)
        if checkpoint.digest in ("", self.version.digest):
            return
        old = await store.artifact(checkpoint.digest)
        reason = await self._drain(PipelineVersion(old[0].data, checkpoint.number), checkpoint) if old else "its bytes are gone"
        if self._changed.is_set():
            return
        if reason:
            self._lost = f"{len(checkpoint.state)} parts of the state of version {checkpoint.number} may be lost: {reason}"
            self._log.error("the former version could not be drained", version=checkpoint.number, reason=reason)
        await store.adopt(self.pipeline, self.version.digest, self.version.number)

    async def _drain(self, old: PipelineVersion, checkpoint: Checkpoint) -> str:
        """Run the old version in drain mode with the parameters it had last. Why it did not work out; "" when it did."""
        params = self._defaults(old) if checkpoint.params is None else checkpoint.params
        outcome = Outcome("died")
        for _ in range(_DRAIN_TRIES):
            outcome = await self._run_once(PipelineHost(self._services, old, params, mode="drain", successor=self.version))
            if outcome.kind == "stopped" or self._changed.is_set():
                return ""
        return outcome.reason

    def _defaults(self, version: PipelineVersion) -> Params:
        """What a version that never committed would have run with, as far as it is known."""
        return {name: self.params.get(name) if value is None else value for name, value in version.spec.defaults().items()}

    async def _run_once(self, host: PipelineHost) -> Outcome:
        self.host = host
        recovered = asyncio.get_running_loop().call_later(QUICK_S, self._on_long_life, host)
        try:
            return await host.run()
        finally:
            recovered.cancel()
            self.host = None

    async def _back_off(self, outcome: Outcome) -> None:
        self.restarts += 1
        self.deaths = 1 if outcome.ran_s >= QUICK_S else self.deaths + 1
        reason = outcome.reason or "the runner stopped by itself"
        if outcome.kind == "failed" or self.deaths >= DEATHS_TO_FAIL:
            self.deaths = max(self.deaths, DEATHS_TO_FAIL)
            self._set("failed", reason + (f" ({outcome.hint})" if outcome.hint else ""), outcome.code or causes.FAILED)
        pause_s = min(BACKOFF_FIRST_S * 2 ** min(self.deaths - 1, 16), BACKOFF_MAX_S)
        self._log.warning("the runner ended", how=outcome.kind, reason=reason, restart_in_s=pause_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._changed.wait()

    async def _interrupt(self) -> None:
        self._changed.set()
        if self.host is not None:
            await self.host.stop()

    def _on_tables(self, in_use: Mapping[str, str]) -> None:
        if in_use != self.tables_in_use:
            self.tables_in_use = in_use
            self._on_change()

    def _on_ready(self) -> None:
        self.trouble = ""
        if self.deaths < DEATHS_TO_FAIL:
            self._set_running()
        self._on_change()

    def _on_trouble(self, trouble: str) -> None:
        """It runs all the same; the centre should know why no rows come."""
        self.trouble = trouble
        if self.status.phase == "running":
            self._set_running()

    def _on_long_life(self, host: PipelineHost) -> None:
        if host is self.host and host.is_ready:
            self.deaths = 0
            self._set_running()

    def _set_running(self) -> None:
        told = "; ".join(text for text in (self._lost, self.trouble) if text)
        self._set("running", told, causes.TROUBLED if self.trouble else "")

    def _set(self, phase: str, reason: str = "", code: str = "") -> None:
        if (phase, reason) != (self.status.phase, self.status.reason):
            self.status = Status(phase, reason, clock.wall_text(), code)
            self._on_change()
