"""The agent's half of the runner protocol: one version of one pipeline in one process, from start to end.

For others (see `Services` for what they need first):

    host = PipelineHost(services, version, params, mode="until_eof")
    outcome = await host.run()          # returns when the runner stopped, failed or died
    await host.stop()                   # from another task: finish, last commit, end
    await host.set_params({...}); await host.tell("acknowledge", "incident", by="ann", reason="seen", at="...")
    host.stats                          # the runner's last `stats`
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from edge_agent import shares
from edge_agent.actions import Actions
from edge_agent.outbox import Sealed
from edge_agent.policy import Policy
from edge_agent.quarantine import Chunk
from edge_agent.secret_store import SecretStore
from edge_agent.store import Checkpoint, Commit, Store
from edge_agent.supervisor import RunnerProcess, Supervisor
from edge_agent.wire import parts
from pipelines.contract import causes, interpolate
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.interpolate import SECRET, Values
from pipelines.contract.node_state import Scalar, params_digest
from pipelines.contract.version import PipelineVersion

STOP_S = 20.0  # a runner that was asked to stop and did not is killed after this
HUNG_LOOKS = 12  # a runner says something each second; one that was silent at so many looks in a row hangs: a minute
LOOK_S = 5.0
_NOTES_KEPT = 20

Given = Mapping[str, tuple[str, str]]  # what a pipeline calls an artifact -> path and digest of its bytes
Shelves = Mapping[str, tuple[bool, str, str]]  # incident id or name of a trigger -> (is it shelved, by, reason)


@dataclass(frozen=True)
class NodeInfo:
    """What a pipeline may know of its node."""

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Services:
    """What hosts share. `data_dir` is the agent's own directory, which no source may read."""

    store: Store
    supervisor: Supervisor
    actions: Actions
    policy: Policy
    node: NodeInfo
    data_dir: Path
    secrets: SecretStore
    commit_s: float = 5.0

    def secrets_digest(self, version: PipelineVersion) -> str:
        """Changes when a runner of `version` should start anew: another secret for its steps, one that was missing."""
        if b"${secret:" not in version.canonical:
            return ""
        pipeline = json.loads(version.canonical)
        try:
            given = self.secrets.values(interpolate.secrets_of_runner(pipeline))
            missing = {r.name for r in interpolate.needs(pipeline) if r.kind == SECRET} - self.secrets.all().keys()
        except TidewireError:
            return "unreadable"  # the start says so
        return sha256(canonical_json([given, sorted(missing)]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a runner ended: `stopped` (as asked, at the end of its input, or drained), `failed` (it said why) or `died`."""

    kind: str
    reason: str = ""
    hint: str = ""
    ran_s: float = 0.0  # since it was ready; 0: it never was
    code: str = ""  # one of `causes.CODES`, when it failed for a known cause


class PipelineHost:
    """Runs once. Every commit of the runner is in the store, or known not to be, before `run` returns."""

    def __init__(
        self,
        services: Services,
        version: PipelineVersion,
        params: Mapping[str, Scalar],
        *,
        mode: str = "follow",
        successor: PipelineVersion | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_trouble: Callable[[str], None] = lambda trouble: None,
        shelves: Shelves | None = None,
        tables: Given | None = None,
        on_tables: Callable[[Mapping[str, str]], None] = lambda in_use: None,
    ) -> None:
        """`on_trouble` hears what keeps its sources from giving rows, "" when nothing does any more. `shelves`: see
        `set_shelves`; None: what the state says holds. `tables` are the bytes of artifacts; `on_tables` hears which are in use,
        as digests."""
        self._services, self.version, self.params = services, version, dict(params)
        self._given = {params_digest(params): self.params}  # every set of parameters the runner got, by digest
        self._mode, self._successor, self._shelves = mode, successor, shelves
        self._on_ready, self._on_trouble = on_ready, on_trouble
        self._tables, self._on_tables = dict(tables or {}), on_tables
        self._troubles: dict[str, str] = {}  # `source x` or `lookup y` -> what keeps it from giving rows
        self._runner: RunnerProcess | None = None
        self._outcome: Outcome | None = None
        self._commits: asyncio.Queue[tuple[int, asyncio.Task[None]]] = asyncio.Queue()
        self._storing: set[asyncio.Task[None]] = set()
        self._ready_at = 0.0
        self._stopping = False
        self._silent_looks = 0
        self.stats: dict[str, Any] = {}
        self.notes: deque[dict[str, Any]] = deque(maxlen=_NOTES_KEPT)
        self._log = structlog.get_logger("runner").bind(pipeline=version.pipeline, version=version.number)

    @property
    def is_ready(self) -> bool:
        return self._ready_at > 0

    @property
    def pid(self) -> int:
        return self._runner.pid if self._runner else 0

    async def run(self) -> Outcome:
        try:
            return await self._run()
        except TidewireError as error:
            return Outcome("failed", str(error), error.hint, self._ran_s(), error.code)
        except Exception as error:  # noqa: BLE001 - whatever it is, only this pipeline fails
            self._log.exception("this pipeline cannot be hosted")  # its siblings go on (I11)
            return Outcome("failed", str(error) or repr(error), ran_s=self._ran_s())

    async def _run(self) -> Outcome:
        start = self._start(await self._services.store.checkpoint(self.version.pipeline))
        await self._services.store.set_buffer(self.version.pipeline, shares.declared(self.version.canonical))
        try:
            self._runner = await self._services.supervisor.start(self.version.pipeline)
        except (OSError, EOFError) as error:  # the fork server itself was killed; the next start brings up another
            return Outcome("died", f"no runner could be started: {error}", code=causes.STARTING)
        answering = asyncio.create_task(self._answer_commits())
        watching = asyncio.create_task(self._kill_when_hung())
        try:
            for header, blobs in start:
                await self._send(header, blobs)
            if self._stopping:
                await self.stop()
            await self._listen(self._runner)
        finally:
            watching.cancel()
            self._runner.kill()
            await self._finish_commits(answering)
            status = await self._runner.wait()
        return self._outcome or Outcome("died", _how_it_ended(status), ran_s=self._ran_s())

    async def stop(self) -> None:
        """Ask for an orderly end, and force it after STOP_S. Returns at once; `run` returns later."""
        self._stopping = True
        if self._services.store.waits(self.version.pipeline):  # until the lake is back; what it waits with is read again
            self._outcome = Outcome("stopped", ran_s=self._ran_s())
            self.kill()
        elif self._runner is not None:
            asyncio.get_running_loop().call_later(STOP_S, self.kill)
            await self._send({"type": "stop"})

    def kill(self) -> None:
        """End it as a crash would."""
        if self._runner is not None:
            self._runner.kill()

    async def set_params(self, params: Mapping[str, Scalar]) -> None:
        self.params = dict(params)
        self._given[params_digest(params)] = self.params
        await self._send({"type": "params", "params": self.params, "params_digest": params_digest(self.params)})

    async def tell(self, what: str, incident: str, *, by: str, reason: str, at: str) -> None:
        """What somebody decided about an open incident: `acknowledge` or `reset`."""
        await self._send({"type": what, "incident": incident, "by": by, "reason": reason, "at": at})

    async def set_shelves(self, shelves: Shelves) -> None:
        """All that people decided about shelving here: what is not in it is not shelved (I7). Call it again once it is ready."""
        if self.is_ready and shelves != self._shelves:
            self._shelves = shelves
            await self._send({"type": "shelves", "shelves": shelves})

    async def set_tables(self, tables: Given) -> None:
        """Other bytes of artifacts. Call it again once it is ready."""
        if self.is_ready and dict(tables) != self._tables:
            self._tables = dict(tables)
            await self._send({"type": "tables", "tables": self._tables})

    def _secrets(self) -> dict[str, str]:
        """Those that the runner takes, once everything that the pipeline refers to is set. Raises `interpolate.Unset`."""
        pipeline, secrets = json.loads(self.version.canonical), self._services.secrets
        if self._mode != "drain":  # it reads no source and no row
            wanted = interpolate.needs(pipeline)
            known = secrets.values(found.name for found in wanted if found.kind == SECRET)
            interpolate.check_set(wanted, Values(self.params, self._services.node.labels, known))
        return secrets.values(interpolate.secrets_of_runner(pipeline))

    def _start(self, checkpoint: Checkpoint) -> list[tuple[dict[str, Any], list[bytes]]]:
        """The messages of a start: `start` itself, then the state."""
        services = self._services
        state = list(parts(checkpoint.state))
        header = {
            "type": "start",
            "pipeline": self.version.pipeline,
            "number": self.version.number,
            "digest": self.version.digest,
            "mode": self._mode,
            "params": self.params,
            "params_digest": params_digest(self.params),
            "node": {
                "id": services.node.id,
                "name": services.node.name,
                "labels": dict(services.node.labels),
                "facts": dict(services.node.facts),
            },
            "node_time_offset_us": services.store.clock.offset_us,
            "lineage": checkpoint.lineage,
            "positions": checkpoint.positions,
            "ledger": checkpoint.ledger,
            "state_parts": len(state),
            "policy": {"files": list(services.policy.files), "listen": services.policy.listen},
            "private": str(services.data_dir),
            "commit_s": services.commit_s,
            "shelves": self._shelves,
            "tables": self._tables,
            "secrets": self._secrets(),
        }
        successor = self._successor.canonical if self._successor else b""
        told = [({"type": "state", "keys": list(part)}, list(part.values())) for part in state]
        return [(header, [self.version.canonical, successor]), *told]

    async def _send(self, header: dict[str, Any], blobs: list[bytes] | None = None) -> None:
        if self._runner is None:
            return
        try:
            await self._runner.channel.send(header, blobs or [])
        except EOFError:
            self._log.debug("the runner is gone; not sent", type=header["type"])

    async def _listen(self, runner: RunnerProcess) -> None:
        """Until the runner said that it ended, or did."""
        handlers: dict[str, Callable[[dict[str, Any], list[bytes]], None]] = {
            "ready": self._on_runner_ready,
            "act": self._on_act,
            "commit": self._on_commit,
            "stats": self._on_stats,
            "note": self._on_note,
            "tables": self._on_runner_tables,
        }
        while self._outcome is None:
            try:
                header, blobs = await runner.channel.receive()
                self._silent_looks = 0
                kind = header.get("type", "")
                if kind == "stopped":
                    self._outcome = Outcome("stopped", ran_s=self._ran_s())
                elif kind == "failed":
                    self._outcome = _failed(header, self._ran_s())
                else:
                    handlers[kind](header, blobs)
            except EOFError:
                return
            except (Refused, KeyError, TypeError, ValueError) as error:
                self._outcome = Outcome("failed", f"the runner broke the protocol: {error!r}", ran_s=self._ran_s())

    def _on_runner_ready(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        self._ready_at = time.monotonic()
        self._on_runner_tables(header, blobs)
        self._on_ready()

    def _on_runner_tables(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        self._on_tables(dict(header.get("tables", {})))

    def _on_act(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        for action in header["actions"]:
            self._services.actions.offer(self.version.pipeline, self._with_values(action, header.get("params_digest", "")))

    def _with_values(self, action: dict[str, Any], params: str) -> dict[str, Any]:
        """With the parameters and labels that its settings refer to; secrets are looked up when it is performed."""
        values = Values(self._given.get(params, self.params), self._services.node.labels)
        return {**action, "values": interpolate.taken(action.get("config", {}), values)}

    def _on_commit(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        params = header["params_digest"]
        actions = [self._with_values(action, params) for action in header["actions"]]
        commit = replace(_to_commit(header, blobs), params=self._given.get(params), actions=actions)
        storing = self._services.store.commit(self.version.pipeline, self.version.digest, self.version.number, commit)
        task = asyncio.create_task(storing)
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        self._commits.put_nowait((header["n"], task))

    def _on_stats(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        self.stats = {name: value for name, value in header.items() if name != "type"}

    def _on_note(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        self.notes.append({name: value for name, value in header.items() if name != "type"})
        level = header.get("level", "info")
        self._log.log(_LEVELS.get(level, 20), header.get("text", ""))
        if about := header.get("about", ""):
            self._troubles[about] = f"{about}: {header.get('text', '')}" if level == "warning" else ""
            self._on_trouble("; ".join(text for text in self._troubles.values() if text))

    async def _kill_when_hung(self) -> None:
        """Counts looks, not time: after a pause of the agent what the runner said meanwhile is heard before the next look."""
        while self._silent_looks < HUNG_LOOKS:
            await asyncio.sleep(LOOK_S)
            self._silent_looks += self.is_ready
        said = f"the runner gave no sign of life for {HUNG_LOOKS * LOOK_S:g} s and was killed"
        self._outcome = Outcome("failed", said, "does an expression or a pattern take for ever on some row?", self._ran_s())
        self.kill()

    async def _answer_commits(self) -> None:
        """`committed` in order, each only when its commit is on disk."""
        while True:
            n, storing = await self._commits.get()
            try:
                await asyncio.shield(storing)
            except Exception as error:  # noqa: BLE001 - whatever it was, this runner's work cannot be kept
                self._outcome = Outcome("failed", f"its commit was refused: {error}", ran_s=self._ran_s())
                self.kill()
                return
            await self._send({"type": "committed", "n": n})

    async def _finish_commits(self, answering: asyncio.Task[None]) -> None:
        """Wait for what was handed to the store: a restart must see it (I1)."""
        answering.cancel()
        self._services.store.stop_waiting(self.version.pipeline)
        await asyncio.gather(answering, *self._storing, return_exceptions=True)

    def _ran_s(self) -> float:
        return time.monotonic() - self._ready_at if self._ready_at else 0.0


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def _to_commit(header: dict[str, Any], blobs: list[bytes]) -> Commit:
    keys, kept = header["state_set"], header.get("quarantined", [])
    payloads = blobs[len(keys) : len(blobs) - len(kept)]
    return Commit(
        positions=header["positions"],
        ledger=header["ledger"],
        state_set=dict(zip(keys, blobs[: len(keys)], strict=True)),
        state_delete=header["state_delete"],
        sealed=[
            Sealed(payload=payload, **{"params": header["params_digest"], **entry})
            for entry, payload in zip(header["sealed"], payloads, strict=True)
        ],
        transitions=header["transitions"],
        actions=header["actions"],
        quarantined=[Chunk(rows, data) for rows, data in zip(kept, blobs[len(blobs) - len(kept) :], strict=True)],
    )


def _failed(header: Mapping[str, Any], ran_s: float) -> Outcome:
    reason, hint, code = (str(header.get(word, "")) for word in ("reason", "hint", "code"))
    return Outcome("failed", reason, hint, ran_s, code if code in causes.CODES else "")


def _how_it_ended(status: int) -> str:
    if status == -9:
        return "the runner was killed (out of memory?)"
    return f"the runner was ended by signal {-status}" if status < 0 else f"the runner exited with status {status}"
