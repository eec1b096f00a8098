"""The managed agent: the only TaskGroup. It wires the loops and performs what `reconcile` decides.

Stand-alone runs use the same parts without link and identity: `Store`, `Supervisor`, `Actions` in a `Services`, and
`PipelineHost` (host.py); `Store.pending_segments` and `Store.confirm` (with the segments' own digests as marks) drain the outbox.
"""

from __future__ import annotations

import asyncio
import platform
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from edge_agent import clock
from edge_agent.actions import Actions
from edge_agent.config import AgentConfig, Identity
from edge_agent.flapping import Flapping
from edge_agent.host import NodeInfo, Services, Shelves
from edge_agent.keeper import Keeper, Params, Status
from edge_agent.link import Link, LinkDown, Login, NatsLink
from edge_agent.node_record import NodeRecord
from edge_agent.policy import Policy
from edge_agent.reconcile import Action, FetchArtifact, Replace, Running, Start, Stop, UpdateParams, reconcile
from edge_agent.requests import Requests
from edge_agent.secret_store import SecretStore
from edge_agent.standing import StandingWatch
from edge_agent.state_sync import AGENT, StateSync
from edge_agent.store import Store
from edge_agent.supervisor import Supervisor
from edge_agent.uplink import Uplink
from pipelines.contract import subjects
from pipelines.contract.errors import Refused, SpecError
from pipelines.contract.folds import Effective, decide, effective_params
from pipelines.contract.node_state import Assignment, Note, Reported, params_digest
from pipelines.contract.version import LANGUAGES, PipelineVersion

_FETCH_PAUSE_S = 5.0  # after a fetch that did not succeed
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
        self.standing = StandingWatch(identity, store, link) if isinstance(link, NatsLink) and identity.standing_jwt else None
        self.keepers: dict[str, Keeper] = {}
        self._supervisor = supervisor or Supervisor(config.runner_memory_bytes)
        self.requests = Requests(self, self._supervisor)
        self._versions: dict[str, PipelineVersion] = {}
        self._obstacles: dict[str, Status] = {}  # pipelines that cannot be started, and why
        self._fetching: set[str] = set()
        self._fetches: set[asyncio.Task[None]] = set()
        self._keeping: set[asyncio.Task[None]] = set()
        self._handed: set[tuple[int, str]] = set()  # (runner, note): what a runner was told
        self._wake, self._stopped = asyncio.Event(), asyncio.Event()
        self._flapping, self._later = Flapping(), dict[str, asyncio.TimerHandle]()  # reports that wait
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
                        serve(self),
                        *([self.standing.run()] if self.standing else []),
                    )
                ]
                await self._stopped.wait()
                running[0].cancel()  # nothing is started any more
                await asyncio.gather(*(keeper.suspend() for keeper in self.keepers.values()))
                await asyncio.gather(*self._keeping)
                for task in (*running, *self._fetches):
                    task.cancel()
        finally:
            await self.actions.close()

    def stop(self) -> None:
        self._stopped.set()

    def effective(self, pipeline: str) -> dict[str, Effective]:
        """The parameters of an assigned pipeline as folded, each with the entries it beat. Raises KeyError, SpecError."""
        assignment = self.record.manifest.assignments[pipeline]
        defaults = self._versions[assignment.digest].spec.defaults()
        return effective_params(defaults, assignment, self.record.document.notes(), node=self.identity.node, pipeline=pipeline)

    def version(self, pipeline: str) -> PipelineVersion | None:
        """The assigned version, when its bytes are on the node."""
        assignment = self.record.manifest.assignments.get(pipeline)
        return self._versions.get(assignment.digest) if assignment else None

    def status_of(self, pipeline: str) -> Status:
        """What runs comes first; what keeps the wanted version from starting is then its reason."""
        obstacle = self._obstacles.get(pipeline)
        if pipeline not in self.keepers:
            return obstacle or Status("pending", since=self._booted)
        status = self.keepers[pipeline].status
        return replace(status, reason=status.reason or obstacle.reason) if obstacle else status

    async def _settle_for_ever(self) -> None:
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._settle()

    async def _settle(self) -> None:
        """One level-triggered step (I7): reconcile, hand over what people decided, report what changed."""
        assignments = self.record.manifest.assignments
        self._obstacles = {name: status for name, status in self._obstacles.items() if name in assignments}
        stored = await self._load_versions(assignments)
        stopping = {name for name, keeper in self.keepers.items() if not keeper.wanted_digest}  # their end wakes us
        kept = {name: keeper for name, keeper in self.keepers.items() if name not in stopping}
        running = {name: Running(k.wanted_digest, k.params, k.labels, k.secrets) for name, k in kept.items()}
        startable = {name: assignment for name, assignment in assignments.items() if name not in stopping}
        labels, secrets = self.record.manifest.labels, self._secret_digests(startable)
        for action in reconcile(startable, self._fold(startable), running, stored, labels, secrets):
            await self._perform(action)
        await self._hand_over_notes()
        await self._report()

    async def _load_versions(self, assignments: Mapping[str, Assignment]) -> set[str]:
        """Digests of the assigned versions that are on the node and verify (I13)."""
        for assignment in assignments.values():
            if assignment.digest in self._versions or (found := await self.store.artifact(assignment.digest)) is None:
                continue
            try:
                found[0].verify(assignment.digest, self.identity.author)
            except Refused as error:
                _log.error("a stored version does not verify; fetching it again", reason=str(error))
                continue
            self._versions[assignment.digest] = PipelineVersion(found[0].data, assignment.number)
        return {assignment.digest for assignment in assignments.values()} & self._versions.keys()

    def _secret_digests(self, assignments: Mapping[str, Assignment]) -> dict[str, str]:
        services, versions = self._services(), self._versions
        return {n: services.secrets_digest(versions[a.digest]) for n, a in assignments.items() if a.digest in versions}

    def _fold(self, assignments: Mapping[str, Assignment]) -> dict[str, Params]:
        """The parameters of every pipeline that can run; why another cannot goes to its status."""
        folded: dict[str, Params] = {}
        for name, assignment in assignments.items():
            if assignment.digest not in self._versions:
                continue
            try:
                folded[name] = self._checked_params(name)
                self._obstacles.pop(name, None)
            except (SpecError, ValueError) as error:
                self._block(name, "failed", str(error))
        return folded

    def _checked_params(self, pipeline: str) -> Params:
        version = self.version(pipeline)
        assert version is not None
        if version.pipeline != pipeline:
            raise ValueError(f"the version is one of {version.pipeline}")
        values = {name: entry.value for name, entry in self.effective(pipeline).items()}
        for name, value in values.items():
            try:
                version.spec.params[name].check(value)
            except ValueError as error:
                raise ValueError(f"parameter {name}: {'no value is set' if value is None else error}") from None
        return values

    async def _perform(self, action: Action) -> None:
        if not isinstance(action, FetchArtifact):
            _log.info("reconcile", action=type(action).__name__, pipeline=action.pipeline)
        match action:
            case FetchArtifact(pipeline, digest):
                self._start_fetching(pipeline, digest)
            case Start(pipeline, digest, params):
                await self.actions.prepare(self._versions[digest].spec)
                keeper = self.keepers[pipeline] = Keeper(self._services(), self._versions[digest], params, self.wake)
                keeper.shelves = shelves_of(self.record.document.notes(), self.identity.node, pipeline)
                self._track(self._keeping, self._keep(keeper))
            case Replace(pipeline, digest, params):
                await self.actions.prepare(self._versions[digest].spec)
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
            self._block(keeper.pipeline, "failed", f"the agent failed to keep it: {error}")
            await asyncio.sleep(_KEEPER_PAUSE_S)
        finally:
            del self.keepers[keeper.pipeline]
            self.wake()

    def _services(self) -> Services:
        labels = dict(self.record.manifest.labels)
        node = NodeInfo(self.identity.node, self.identity.name, labels, facts())
        config = self.config
        return Services(
            self.store, self._supervisor, self.actions, self.policy, node, config.data_dir, self.secrets, config.commit_s
        )

    def _start_fetching(self, pipeline: str, digest: str) -> None:
        if digest in self._fetching:
            return
        if not self.link.is_up:
            self._block(pipeline, "pending", "its version is not on the node yet and the control plane is out of reach")
            return
        _log.info("reconcile", action="FetchArtifact", pipeline=pipeline, digest=digest)
        self._fetching.add(digest)
        self._track(self._fetches, self._fetch(pipeline, digest))

    def _track(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _fetch(self, pipeline: str, digest: str) -> None:
        try:
            await self.sync.fetch(digest)
            keep = {assignment.digest for assignment in self.record.manifest.assignments.values()}
            await self.store.drop_artifacts(keep | {keeper.version.digest for keeper in self.keepers.values()})
        except (LinkDown, Refused) as error:
            self._block(pipeline, "pending", f"its version could not be fetched: {error}")
            await asyncio.sleep(_FETCH_PAUSE_S)
        finally:
            self._fetching.discard(digest)
            self.wake()

    def _block(self, pipeline: str, phase: str, reason: str) -> None:
        now = self._obstacles.get(pipeline)
        if now is None or (now.phase, now.reason) != (phase, reason):
            self._obstacles[pipeline] = Status(phase, reason, clock.wall_text())

    async def _hand_over_notes(self) -> None:
        """Give each runner what people shelved, and once what they decided about its open incidents; only its commit makes that
        count (I7)."""
        notes: dict[str, list[Note]] = {}
        written = self.record.document.notes()
        for pipeline, keeper in self.keepers.items():
            await keeper.set_shelves(shelves_of(written, self.identity.node, pipeline))
        for note in written:
            if note.kind in ("acknowledge", "reset"):
                notes.setdefault(note.subject, []).append(note)
        for incident in await self.store.incidents() if notes else ():
            for note in notes.get(incident["incident"], ()):
                await self._hand_over(note, incident)

    async def _hand_over(self, note: Note, incident: Mapping[str, Any]) -> None:
        """A note has its effect once: an incident that is raised again is not acknowledged by what was said before."""
        name, mark = incident["incident"], f"{note.kind} {note.author}/{note.seq}"
        keeper = self.keepers.get(incident["pipeline"])
        if incident.get("notes", {}).get(mark) == "done":
            return
        if _is_moot(note, incident):
            await self.store.mark_note(name, mark, "done")
        elif keeper is not None and keeper.is_ready and (keeper.pid, mark) not in self._handed:
            self._handed.add((keeper.pid, mark))
            await self.store.mark_note(name, mark, "handed")
            await keeper.tell(note.kind, name, by=note.by or note.author, reason=note.reason, at=note.at)

    async def _report(self) -> None:
        """Write what changed of what runs: transitions only, so that the document stays small (I9)."""
        self.store.clock_quality = clock.quality()
        history = await self.store.history()
        for name, told in {"facts": facts(), **({"history": history} if history else {})}.items():
            if self.record.differs(name, told) and not self._must_wait(f"reported/{name}"):
                await self.record.report_node(name, told)
        before = self.record.document.reported()
        for name in {*self.record.manifest.assignments, *self.keepers, *before}:
            now = self._reported(name, before.get(name))
            if now is not None and now != before.get(name) and self._may_report(name, before.get(name), now):
                await self.record.report(name, now)

    def _may_report(self, name: str, before: Reported | None, now: Reported) -> bool:
        """Whether to write it now; what only flaps is written later, as it then is."""
        is_other = before is None or (before.digest, before.params_digest) != (now.digest, now.params_digest)
        if is_other or now.phase == "stopped":
            self._flapping.forget(name)
            return True
        return not self._must_wait(name)

    def _must_wait(self, name: str) -> bool:
        if wait_s := self._flapping.wait_s(name, time.monotonic()):
            self._later[name] = self._later.get(name) or asyncio.get_running_loop().call_later(wait_s, self._report_late, name)
        return bool(wait_s)

    def _report_late(self, name: str) -> None:
        del self._later[name]
        self.wake()

    def _reported(self, name: str, before: Reported | None) -> Reported | None:
        generation, keeper = self.record.manifest.generation, self.keepers.get(name)
        assignment = self.record.manifest.assignments.get(name)
        if keeper is not None:
            version, params = keeper.version, dict(keeper.params)
            now = Reported(version.digest, version.number, "", params, params_digest(params))
        elif assignment is not None:
            now = Reported(assignment.digest, assignment.number, "")
        elif before is not None and before.phase != "stopped":
            return replace(before, phase="stopped", reason="", since=clock.wall_text(), generation=generation)
        else:
            return None
        status = self.status_of(name)
        now = replace(now, phase=status.phase, reason=status.reason, since=status.since, generation=generation)
        is_same = before is not None and replace(before, generation=generation) == now
        return before if is_same else now


def shelves_of(notes: Sequence[Note], node: str, pipeline: str) -> Shelves:
    """What people decided about shelving triggers of this pipeline, and incidents: whose they are its runner knows."""
    found: dict[str, tuple[bool, str, str]] = {}
    for register, decision in decide(notes, node=node).items():
        of, _, trigger = register.subject.partition("/")
        if register.kind == "shelve" and (not trigger or of == pipeline):
            note, is_over = decision.note, decision.note.kind == "shelve" and not decision.is_set
            words = ("", "its time was over") if is_over else (note.by or note.author, note.reason)
            found[trigger or register.subject] = (decision.is_set, *words)
    return found


def _is_moot(note: Note, incident: Mapping[str, Any]) -> bool:
    if note.kind == "acknowledge":
        return bool(incident["acknowledged"])
    return incident.get("flags") is not None and "latched" not in incident["flags"]


def facts() -> dict[str, object]:
    """What the node says of itself: slow to change."""
    return {
        "agent": AGENT,
        "arch": platform.machine(),
        "clock": clock.quality(),
        "host": platform.node(),
        "languages": list(LANGUAGES),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


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
