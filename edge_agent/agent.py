"""The managed agent: the only TaskGroup. It wires the loops and performs what `reconcile` decides.

Stand-alone runs use the same parts without link and identity: `Store`, `Supervisor`, `Actions` in a `Services`, and
`PipelineHost` (host.py); `Store.pending_segments` and `Store.confirm` (with the segments' own digests as marks) drain the outbox.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from edge_agent import clock
from edge_agent.actions import Actions
from edge_agent.config import AgentConfig, Identity
from edge_agent.decisions import Decisions, shelves_of
from edge_agent.fitting import fit, unset
from edge_agent.gate import FAILED, HELD, Verdict
from edge_agent.gatekeeper import Gatekeeper
from edge_agent.host import Given, NodeInfo, Services
from edge_agent.keeper import Keeper, Status
from edge_agent.link import Link, Login, NatsLink
from edge_agent.node_record import NodeRecord
from edge_agent.policy import Policy
from edge_agent.reconcile import Action, FetchArtifact, Replace, Running, Start, Stop, UpdateParams, reconcile
from edge_agent.reporting import Reporter, facts, reported
from edge_agent.requests import Requests
from edge_agent.secret_store import SecretStore
from edge_agent.standing import StandingWatch
from edge_agent.state_sync import StateSync
from edge_agent.store import Store
from edge_agent.supervisor import Supervisor
from edge_agent.supplies import Supplies, Wish
from edge_agent.target import Fit, Target, pinned_version, target_of
from edge_agent.timers import Timers
from edge_agent.uplink import Uplink
from pipelines.contract import causes, subjects
from pipelines.contract.errors import Refused
from pipelines.contract.folds import Effective, Register, decide, effective_params, local_labels
from pipelines.contract.node_state import Assignment, Note, Reported
from pipelines.contract.version import PipelineVersion

_KEEPER_PAUSE_S = 5.0  # after one that failed, before it starts again
_log = structlog.get_logger("agent")


class Agent:
    """Boots from its store with nobody in reach (I12) and keeps what runs equal to what should."""

    def __init__(
        self,
        config: AgentConfig,
        identity: Identity,
        store: Store,
        link: Link,
        *,
        supervisor: Supervisor | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.config, self.identity, self.store, self.link = config, identity, store, link
        self.policy = policy if policy is not None else Policy.load(config.data_dir)
        self.secrets = SecretStore(config.data_dir)
        self.actions = Actions(store, self.policy, self.secrets)
        self.record = NodeRecord(store, identity)
        self.sync = StateSync(config, identity, store, self.record, link)
        self.uplink = Uplink(store, link, identity.node, identity.control, config.request_timeout_s, config.uplink_bytes_per_s)
        self.standing = (
            StandingWatch(identity, store, link, lambda: self.sync.trouble, config.request_timeout_s)
            if isinstance(link, NatsLink) and identity.standing_jwt
            else None
        )
        self.keepers: dict[str, Keeper] = {}
        self._supervisor = supervisor or Supervisor(config.runner_memory_bytes)
        self.requests = Requests(self, self._supervisor)
        self._versions: dict[str, PipelineVersion] = {}
        self._obstacles: dict[str, Status] = {}  # pipelines that cannot be started, and why
        self.supplies = Supplies(config, store, identity, link, self.wake)
        self._keeping: set[asyncio.Task[None]] = set()
        self._wake, self._stopped = asyncio.Event(), asyncio.Event()
        self.timers = Timers(store, self.record, identity.node, self.wake)
        self.gatekeeper = Gatekeeper(store, self.keepers, self.wake)
        self._decisions = Decisions(store, self.record, self.keepers, identity.node)
        self._reporter = Reporter(store, self.record, self.wake)
        self._targets: dict[str, Target] = {}
        self._given: dict[str, Given] = {}
        self._booted = clock.wall_text()
        self.record.on_change(self.wake)
        link.on_change(self.wake)
        store.on_commit(self.uplink.wake)
        store.on_transition(self.wake)
        store.on_damage(self.stop)

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Until `stop`: then runners finish their last commit and everything is closed in order."""
        from edge_agent.local_api import serve  # it needs this module

        await self.record.load()
        await self.supplies.load()
        await self.timers.load()
        await self.gatekeeper.load()
        await self.actions.resume()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                running = [
                    tasks.create_task(loop)
                    for loop in (
                        self._settle_for_ever(),
                        self.link.run(),
                        self.sync.run(),
                        self.sync.run_heartbeats(),
                        self.uplink.run(),
                        self.requests.run(),
                        self.gatekeeper.run(),
                        serve(self),
                        *([self.standing.run()] if self.standing else []),
                    )
                ]
                await self._stopped.wait()
                running[0].cancel()  # nothing is started any more
                await asyncio.gather(*(keeper.suspend() for keeper in self.keepers.values()))
                await asyncio.gather(*self._keeping)
                self.supplies.close()
                for task in running:
                    task.cancel()
        finally:
            self.timers.close()
            await self.actions.close()

    def stop(self) -> None:
        self._stopped.set()

    def effective(self, pipeline: str) -> dict[str, Effective]:
        """The parameters of an assigned pipeline as folded, each with the entries it beat. Raises KeyError, SpecError."""
        version = self._versions[self._targets[pipeline].digest]
        assignment, notes = self.record.manifest.assignments[pipeline], self.record.document.notes()
        return effective_params(version.spec.defaults(), assignment, notes, node=self.identity.node, pipeline=pipeline)

    def version(self, pipeline: str) -> PipelineVersion | None:
        """The one that should run, when its bytes are on the node."""
        target = self._targets.get(pipeline)
        return self._versions.get(target.digest) if target else None

    def target(self, pipeline: str) -> Target | None:
        return self._targets.get(pipeline)

    @property
    def labels(self) -> dict[str, str]:
        """Those of the manifest and those that people put on the node itself."""
        return {**self.record.manifest.labels, **local_labels(self.record.document.notes(), node=self.identity.node)}

    def status_of(self, pipeline: str) -> Status:
        """What runs comes first; why it is not what the manifest wants is then its reason."""
        target, obstacle = self._targets.get(pipeline), self._obstacles.get(pipeline)
        if pipeline not in self.keepers:
            return obstacle or Status("pending", since=self._booted)
        status, version = self.keepers[pipeline].status, self.keepers[pipeline].version
        gate = self.gatekeeper.verdict(pipeline, version.digest)
        is_held = gate.state == HELD and self.gatekeeper.book(pipeline).good is not None  # a first version is held against none
        if (is_held or gate.state == FAILED) and status.phase == "running" and not (target and target.code):
            code = causes.GATE_HELD if is_held else causes.FAILED
            status = replace(status, reason=_joined(gate.why, status.reason), code=code)
        if self.store.waits(pipeline) and status.phase == "running":
            told = "its buffer is full (when_full: block): no rows are read until the lake took some"
            status = replace(status, reason=_joined(told, status.reason), code=causes.STORE_FULL)
        if target is not None and target.code and status.phase == "running":
            why = obstacle or target
            return replace(status, reason=_joined(why.reason, status.reason), code=why.code)
        return replace(status, reason=_joined(obstacle.reason, status.reason), code=obstacle.code) if obstacle else status

    async def _settle_for_ever(self) -> None:
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._settle()

    async def _settle(self) -> None:
        """One level-triggered step (I7): reconcile, hand over what people decided, report what changed."""
        await self.timers.settle()
        self._targets = await self._aim()
        for name in self._obstacles.keys() - self._targets.keys():
            del self._obstacles[name]
        stopping = {name for name, keeper in self.keepers.items() if not keeper.wanted_digest}  # their end wakes us
        kept = {name: keeper for name, keeper in self.keepers.items() if name not in stopping}
        running = {name: Running(k.wanted_digest, k.params, k.labels, k.secrets) for name, k in kept.items()}
        startable = {name: t for name, t in self._targets.items() if name not in stopping and not t.is_paused}
        params = {name: target.params for name, target in startable.items() if target.params is not None}
        secrets = self._secret_digests(startable)
        self._given = await self.supplies.give({name: startable[name].digest for name in params})
        for action in reconcile(startable, params, running, self._versions.keys(), self.labels, secrets):
            await self._perform(action)
        for name, tables in self._given.items():
            if name in self.keepers and self.keepers[name].wanted_digest == startable[name].digest:
                await self.keepers[name].set_tables(tables)
        await self._decisions.hand_over()
        await self._reporter.report_node()
        await self._reporter.report({*self.record.manifest.assignments, *self.keepers}, self._reported)

    async def _aim(self) -> dict[str, Target]:
        """What should run, of what is assigned: as the manifest and people's notes have it."""
        assignments, notes = self.record.manifest.assignments, self.record.document.notes()
        decided = decide(notes, node=self.identity.node)
        pins = {name: decided.get(Register(name, "pin")) for name in assignments}
        pinned = {name: version for name, pin in pins.items() if (version := pinned_version(pin)) is not None}
        await self.gatekeeper.open(assignments, pinned.keys())
        goods = {name: good for name in assignments if (good := self.gatekeeper.book(name).good) is not None}
        wishes: dict[tuple[str, str], tuple[int, Mapping[str, str]]] = {
            (n, good.digest): (good.number, {**good.artifacts, **assignments[n].artifacts}) for n, good in goods.items()
        }
        wishes |= {(name, digest): (number, assignments[name].artifacts) for name, (digest, number) in pinned.items()}
        wishes |= {(name, a.digest): (a.number, a.artifacts) for name, a in assignments.items()}
        await self._load_versions({digest: number for (_, digest), (number, _) in wishes.items()})
        found = [Wish(name, digest, self._versions.get(digest), tables) for (name, digest), (_, tables) in wishes.items()]
        await self.supplies.look(found, self.keepers, self._tasks)
        targets = {}
        for name, assignment in assignments.items():
            book, keeper = self.gatekeeper.book(name), self.keepers.get(name)
            mine = [digest for pipeline, digest in wishes if pipeline == name and digest in self._versions]
            fits = {digest: self._fit(name, digest, assignment, notes) for digest in mine}
            running = keeper.wanted_digest if keeper and not self.gatekeeper.unfit(keeper.wanted_digest) else ""
            targets[name] = target_of(assignment, pins[name], decided.get(Register(name, "pause")), fits, book, running)
            self._note_obstacle(name, targets[name])
        return targets

    def _fit(self, pipeline: str, digest: str, assignment: Assignment, notes: Sequence[Note]) -> Fit:
        version, keeper, good = self._versions[digest], self.keepers.get(pipeline), self.gatekeeper.book(pipeline).good
        found = self.gatekeeper.unfit(digest) or fit(version, pipeline, assignment, notes, node=self.identity.node)
        supplied = self.supplies.provision(pipeline, digest)
        if found.params is not None and not supplied.may_start:
            return Fit(None, supplied.code, supplied.reason, "pending")
        other = keeper.wanted_digest if keeper else good.digest if good else digest
        if found.params is not None and other != digest:
            found = unset(version, found.params, self.labels, self.secrets.all())  # else its start says what is missing
        return found if found.params is None else replace(found, code=supplied.code, reason=supplied.reason)

    def _note_obstacle(self, pipeline: str, target: Target) -> None:
        if target.is_paused or (target.params is None and not target.lacks):
            self._block(pipeline, target.phase, target.reason, target.code)
        elif target.params is not None and not target.lacks:
            self._obstacles.pop(pipeline, None)

    async def _load_versions(self, wanted: Mapping[str, int]) -> None:
        """Read those of the wanted versions (digest -> number) that are on the node and verify (I13)."""
        for digest, number in wanted.items():
            if digest in self._versions or (found := await self.store.artifact(digest)) is None:
                continue
            try:
                found[0].verify(digest, self.identity.author)
            except Refused as error:
                _log.error("a stored version does not verify; fetching it again", reason=str(error))
                continue
            self._versions[digest] = PipelineVersion(found[0].data, number)

    def _secret_digests(self, targets: Mapping[str, Target]) -> dict[str, str]:
        services, versions = self._services(), self._versions
        return {name: services.secrets_digest(versions[t.digest]) for name, t in targets.items() if t.digest in versions}

    async def _perform(self, action: Action) -> None:
        if not isinstance(action, FetchArtifact):
            _log.info("reconcile", action=type(action).__name__, pipeline=action.pipeline)
        match action:
            case FetchArtifact(pipeline, digest):
                code, words = self.supplies.why_not_here(digest)
                self._block(pipeline, "pending", words, code)
            case Start(pipeline, digest, params):
                await self.actions.prepare(self._versions[digest].spec)
                services, version = self._services(), self._versions[digest]
                keeper = self.keepers[pipeline] = Keeper(services, version, params, self.wake, self.gatekeeper.note_end)
                keeper.tables = self._given[pipeline]
                keeper.shelves = shelves_of(self.record.document.notes(), self.identity.node, pipeline)
                self._track(self._keeping, self._keep(keeper))
            case Replace(pipeline, digest, params):
                await self.actions.prepare(self._versions[digest].spec)
                self.keepers[pipeline].tables = self._given[pipeline]
                await self.keepers[pipeline].replace(self._versions[digest], params, self._services())
            case UpdateParams(pipeline, params):
                await self.keepers[pipeline].update_params(params)
            case Stop(pipeline):
                await self.keepers[pipeline].stop()

    async def _keep(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        except Exception as error:  # noqa: BLE001 - its siblings go on (I11)
            _log.exception("a pipeline's keeper failed; it starts again", pipeline=keeper.pipeline)
            self._block(keeper.pipeline, "failed", f"the agent failed to keep it: {error}", causes.FAILED)
            await asyncio.sleep(_KEEPER_PAUSE_S)
        finally:
            del self.keepers[keeper.pipeline]
            self.wake()

    def _services(self) -> Services:
        node = NodeInfo(self.identity.node, self.identity.name, self.labels, facts())
        config = self.config
        return Services(
            self.store, self._supervisor, self.actions, self.policy, node, config.data_dir, self.secrets, config.commit_s
        )

    def _track(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _block(self, pipeline: str, phase: str, reason: str, code: str) -> None:
        now = self._obstacles.get(pipeline)
        if now is None or (now.phase, now.reason, now.code) != (phase, reason, code):
            self._obstacles[pipeline] = Status(phase, reason, clock.wall_text(), code)

    def _reported(self, name: str, before: Reported | None) -> Reported | None:
        target, keeper = self._targets.get(name), self.keepers.get(name)
        gate = self.gatekeeper.verdict(name, keeper.version.digest) if keeper else Verdict("")
        bans, generation = self.gatekeeper.book(name).bans, self.record.manifest.generation
        return reported(before, keeper, target, self.status_of(name), gate.state, bans, generation)


def _joined(*reasons: str) -> str:
    """Each once."""
    return "; ".join(dict.fromkeys(filter(None, reasons)))


async def run_managed(config: AgentConfig, identity: Identity) -> None:
    """The agent of a node that joined, until SIGTERM or SIGINT."""
    store = Store.open(config.data_dir, identity.node, identity.key, config.buffer_bytes, config.quarantine_bytes)
    inbox = subjects.inbox(identity.node)
    login = Login(identity.url, inbox, identity.user_jwt, identity.seed, identity.ca, identity.name)
    try:
        agent = Agent(config, identity, store, NatsLink(login))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        with store.telling_damage():
            await agent.run()
    finally:
        store.close()
