"""The child: source -> run_batch, one pipeline. It owns no file but its sources; what must last, it sends to the agent to commit.

Evaluation does not wait for commits: up to `IN_FLIGHT_MAX` are under way while the next batch is evaluated, and an action is sent
the moment its transition happens (design, section 6).
"""

from __future__ import annotations

import fnmatch
import os
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from edge_agent.wire import Channel
from pipelines.contract.errors import TidewireError

if TYPE_CHECKING:
    from edge_agent.lookups import LookupFiles
    from edge_agent.sources import SourceContext
    from pipelines.contract.interpolate import Values
    from pipelines.contract.language.sources import Source
    from pipelines.engine.plan import Plan

TICK_S, TICK_ALARMS_S = 1.0, 0.25  # how often time alone is looked at: windows that end; conditions that have held
POLLS_S = ((1.0, 0.005), (10.0, 0.02), (float("inf"), 0.05))  # (this long without rows, between two looks at the sources)
COMMIT_S = 5.0  # unless the agent says otherwise
WORTH_BYTES, PAUSE_COMMIT_S = 64 * 1024, 0.5  # that many are not kept waiting when the rows pause
AWAITED_COMMIT_S = 0.05  # while more rows come; at once when none do
STATS_S = 1.0
QUIET_S = 5.0  # without rows, after which memory is given back
IN_FLIGHT_MAX = 4
ACTIONS_AT_ONCE = 1_000  # in one message
FULL_BYTES = 4 * 1024 * 1024  # of uncommitted rows: beyond, a source is not read while commits get through
STALL_S = 5.0  # without a commit answered the agent's disk is full or dead, and evaluation goes on regardless (I15)


def main(sock: socket.socket) -> None:
    """Run until told to stop, the input ends, or the agent is gone."""
    sys.modules.setdefault("dateutil", None)  # type: ignore[arg-type]  # pyarrow looks for it at each call: 0.6 ms a batch
    try:
        serve(Channel(sock))
    except EOFError:
        os._exit(0)  # nobody to report to; what was not committed is read again


def serve(channel: Channel) -> None:
    """One runner's whole life on its end of the channel. Raises EOFError when the agent is gone."""
    try:
        started = channel.receive(None)
        assert started is not None, "a wait without a time-out returns a message"
        header, blobs = started
        runner = _Runner(channel, header, blobs, _stored(channel, header))
        try:
            runner.run()
        finally:
            runner.close()
    except EOFError:
        raise
    except TidewireError as error:
        _fail(channel, str(error), error.hint, error.code)
    except Exception as error:  # noqa: BLE001 - the last line: the agent reports it as state (I11)
        traceback.print_tb(error.__traceback__, file=sys.stderr)  # not its message: it may quote SQL, keys and all
        _fail(channel, f"{type(error).__name__}: {_one_line(error)}", "this is a defect: please report it")


def _stored(channel: Channel, start: dict[str, Any]) -> list[tuple[str, bytes]]:
    """The entries of the last commits' state."""
    entries: list[tuple[str, bytes]] = []
    for _ in range(start["state_parts"]):
        message = channel.receive(None)
        assert message is not None, "a wait without a time-out returns a message"
        entries += zip(message[0]["keys"], message[1], strict=True)
    return entries


def _fail(channel: Channel, reason: str, hint: str, code: str = "") -> None:
    with suppress(EOFError):  # the agent may be gone as well
        channel.send({"type": "failed", "reason": reason, "hint": hint, "code": code})


class _Runner:
    def __init__(self, channel: Channel, start: dict[str, Any], blobs: list[bytes], stored: Sequence[tuple[str, bytes]]) -> None:
        from edge_agent.measured import Measured
        from edge_agent.uncommitted import Uncommitted
        from pipelines.contract.spec import load_spec
        from pipelines.engine.plan import NodeFacts
        from pipelines.engine.state import restore
        from pipelines.engine.triggers.watch import resume

        self.channel, self.mode = channel, start["mode"]
        self.node_offset_us = int(start["node_time_offset_us"])
        self.secrets = dict(start.get("secrets", {}))
        self.spec = load_spec(blobs[0].decode())
        self.commit_s = float(start.get("commit_s", COMMIT_S))
        self.shelves = start.get("shelves")
        self.tick_s = TICK_ALARMS_S if self.spec.triggers else TICK_S
        self.successor = load_spec(blobs[1].decode()) if self.mode == "drain" and blobs[1] else None
        node = start["node"]
        self.node = NodeFacts(node["id"], node["name"], node.get("labels", {}), node.get("facts", {}))
        self.params_digest = start["params_digest"]
        self.context = self._context(start)
        self.given = {name: tuple(given) for name, given in start.get("tables", {}).items()}
        self.lookups = self._open_lookups(start["params"])
        self.plan = self._compile(start["params"])
        ledger = start["ledger"] or {}
        epoch = int(ledger.get("epoch", 0)) + 1
        self.state = restore(start["lineage"], stored, ledger, epoch)
        self.begun_us = max((mark.arrival_us for mark in self.state.watermarks.values()), default=self.node_time_us())
        if self.mode == "follow":
            self.state = resume(self.state, self.node_time_us())
        positions = start["positions"] or {}
        self.settings = {} if self.mode == "drain" else self._settings(start["params"])
        self.confirmed, self.unconfirmed = dict(positions), deque[dict[str, Any]]()
        self.sources = {name: self._open(name, positions.get(name, {})) for name in self.settings}
        stored_bytes = sum(len(key) + len(value) for key, value in stored)
        self.uncommitted = Uncommitted(self.spec, dict(positions), self.state, self.lookups.digests, stored_bytes)
        self.measured = Measured(self.uncommitted.stats(self.state))
        self.in_flight = self.sent = 0
        self.stopping = self.is_awaited = False
        self.last_tick_s = self.last_commit_s = self.last_answer_s = time.monotonic()
        self.last_rows_s = self.last_stats_s = self.last_tick_s
        self.may_hold_memory = True  # that malloc keeps for the next rows
        self.is_fresh = True  # whether something was evaluated since it was last asked what there is to commit
        self.trouble: dict[str, str] = {}
        self.ended: set[str] = set()

    def run(self) -> None:
        self.channel.send({"type": "ready", "tables": self.lookups.in_use})
        if self.shelves is not None and self.mode == "follow":
            self._shelve(self.shelves)  # before the first row: what is shelved must not sound once more
        if self.mode == "drain":
            self._drain()
        while not self.stopping:
            must_wait = self._must_wait()
            had_rows = not must_wait and self._read_sources()
            if not must_wait:  # an unread source is not a silent one
                self._pass_time()
            if self._is_commit_due(had_rows):
                self._commit()
            if time.monotonic() - self.last_stats_s >= STATS_S:
                self._send_stats()
                self._look_at_lookups()
                self._give_memory_back()
            if self.mode == "until_eof" and all(source.exhausted for source in self.sources.values()):
                self._finish()
            self._listen(0 if had_rows else self._pause_s())
        self._commit(final=True)
        while self.in_flight:
            self._wait()
        self.close()
        self._send_stats()
        self.channel.send({"type": "stopped"})

    def close(self) -> None:
        for source in self.sources.values():
            source.close()

    # -- rows and time

    def _read_sources(self) -> bool:
        from pipelines.engine.batch import Batch

        had_rows = False
        for name, source in self.sources.items():
            block = source.read()
            self._note_trouble(f"source {name}", source.trouble())
            if block is None:
                self._note_end(name, source)
                continue
            had_rows = True
            self.is_awaited |= block.is_awaited
            self._evaluate(Batch(name, self._arrival_us(), _wall_us(), block.lines, block.file, block.header))
        if had_rows:
            self.last_rows_s, self.may_hold_memory = time.monotonic(), True
        return had_rows

    def _give_memory_back(self) -> None:
        """Once there were no rows for a while; not after each batch, whose memory the next one takes."""
        if self.may_hold_memory and time.monotonic() - self.last_rows_s >= QUIET_S:
            import pyarrow as pa

            self.may_hold_memory = False
            pa.default_memory_pool().release_unused()

    def _note_end(self, name: str, source: Any) -> None:
        """In a replay no time passes: the engine must be told that nothing more comes."""
        if self.mode == "until_eof" and source.exhausted and name not in self.ended:
            from pipelines.engine.batch import Batch

            self.ended.add(name)
            self._evaluate(Batch(name, self._arrival_us(), _wall_us()))

    def _evaluate(self, batch: Any) -> None:
        from pipelines.engine.run import run_batch

        begun_ns = time.process_time_ns()
        state, output = run_batch(self.plan, self.state, batch)
        if batch.lines is not None and len(batch.lines):
            self.measured.evaluated(len(batch.lines), (time.process_time_ns() - begun_ns) // 1000, output.quarantine)
        self._take(state, output)

    def _take(self, state: Any, output: Any) -> None:
        """Act at once, keep the rest for the next commit; at once too when an incident changed."""
        if output.actions:
            now_us = self.node_time_us()
            output = replace(output, actions=[replace(action, at_us=now_us) for action in output.actions])
            actions = [vars(action) for action in output.actions]
            for start in range(0, len(actions), ACTIONS_AT_ONCE):
                some = actions[start : start + ACTIONS_AT_ONCE]
                self.channel.send({"type": "act", "actions": some, "params_digest": self.params_digest})
        self.state, self.is_fresh = self.uncommitted.add(state, output, self.params_digest), True
        if output.transitions:
            self._commit()

    def _pass_time(self) -> None:
        from pipelines.engine.batch import Batch
        from pipelines.engine.triggers.watch import resume

        now_s = time.monotonic()
        if self.mode != "until_eof" and now_s - self.last_tick_s >= self.tick_s:
            if now_s - self.last_tick_s >= STALL_S:
                self.state = resume(self.state, self.node_time_us())  # sources were not read: what held is not known to have
            self.last_tick_s = now_s
            self._evaluate(Batch("", self.node_time_us(), _wall_us()))

    def _finish(self) -> None:
        from pipelines.engine.run import finish

        self._take(*finish(self.plan, self.state))
        self.stopping = True

    def _drain(self) -> None:
        from pipelines.engine.plan import compile_plan, example_params
        from pipelines.engine.run import drain

        after = self.successor
        successor = compile_plan(after, example_params(after), self.node) if after else None
        self._take(*drain(self.plan, self.state, successor, self.node_time_us()))
        self.stopping = True

    # -- commits

    def _must_wait(self) -> bool:
        """Whether commits do not keep up: then the sources keep what they have, unless that would mute the alarms for long."""
        if self.in_flight < IN_FLIGHT_MAX or self.uncommitted.bytes < FULL_BYTES:
            return False
        may_wait_for_ever = self.mode == "until_eof" or self.spec.buffer.when_full == "block"
        return may_wait_for_ever or time.monotonic() - self.last_answer_s < STALL_S

    def _is_commit_due(self, had_rows: bool) -> bool:
        if self.in_flight >= IN_FLIGHT_MAX or not self.is_fresh:
            return False
        if self.uncommitted.is_full:
            return True
        now_s = time.monotonic()
        rhythm_s = self.commit_s if not self.is_awaited else AWAITED_COMMIT_S if had_rows else 0.0
        has_paused = self.uncommitted.bytes >= WORTH_BYTES and now_s - self.last_rows_s >= PAUSE_COMMIT_S
        if now_s - self.last_commit_s < rhythm_s and not has_paused:
            return False
        self.is_fresh = self.uncommitted.has_changes(self.state)
        return self.is_fresh

    def _commit(self, *, final: bool = False) -> None:
        """Send what there is. With the agent's disk full (I15) nothing is sent and evaluation goes on; see Uncommitted."""
        while final and self.in_flight >= IN_FLIGHT_MAX:
            self._wait()
        if self.in_flight >= IN_FLIGHT_MAX:
            return
        positions = {name: source.position for name, source in self.sources.items()} or self.uncommitted.positions
        header, blobs, self.state = self.uncommitted.seal(self.state, positions, self.params_digest, final=final)
        self.last_commit_s, self.is_awaited = time.monotonic(), False
        if header is None:
            return
        if not self.in_flight:
            self.last_answer_s = self.last_commit_s
        self.sent += 1
        self.in_flight += 1
        self.unconfirmed.append(positions)
        self.channel.send({"type": "commit", "n": self.sent, **header}, blobs)

    # -- the agent's words

    def _wait(self) -> None:
        """For the agent, which should see meanwhile that this runner is well."""
        self._send_stats()
        self._listen(STATS_S)

    def _listen(self, timeout_s: float | None) -> None:
        message = self.channel.receive(timeout_s)
        while message is not None:
            self._obey(*message)
            message = self.channel.receive(0)

    def _obey(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        kind = header["type"]
        if kind == "committed":
            self.in_flight -= 1
            self.last_answer_s = time.monotonic()
            self.confirmed = self.unconfirmed.popleft()
            for name, source in self.sources.items():
                source.acknowledge(self.confirmed.get(name, {}))
        elif kind == "stop":
            self.stopping = True
        elif kind == "tables":
            self.given = {name: tuple(given) for name, given in header["tables"].items()}
            self._take_tables(self.lookups.changed(self.given))
            self.channel.send({"type": "tables", "tables": self.lookups.in_use})
        elif kind == "params":
            self._set_params(header["params"], header["params_digest"])
        elif kind in ("acknowledge", "reset"):
            from pipelines.engine import run

            words = (header["incident"], header.get("by", ""), header.get("reason", ""))
            self._take(*getattr(run, kind)(self.plan, self.state, *words, _wall_us(), self.node_time_us()))
        elif kind == "shelves":
            self._shelve(header["shelves"])

    def _shelve(self, shelves: Mapping[str, Sequence[Any]]) -> None:
        from pipelines.engine import run
        from pipelines.engine.triggers.incident import Shelf

        found = {subject: Shelf(*words) for subject, words in shelves.items()}
        self._take(*run.shelve(self.plan, self.state, found, _wall_us(), self.node_time_us()))

    # -- small things

    def _compile(self, params: dict[str, Any]) -> Plan:
        from pipelines.engine.plan import compile_plan

        self.params = params
        tables = None if self.mode == "drain" else self.lookups.tables
        return compile_plan(self.spec, params, self.node, secrets=self.secrets, lookups=tables)

    def _look_at_lookups(self) -> None:
        self._take_tables(self.lookups.look().items())

    def _take_tables(self, changed: Iterable[tuple[str, Any]]) -> None:
        """Use the tables as they are now. One that does not fit leaves the former in use, and is told."""
        from pipelines.engine.plan import compile_plan

        for name, found in changed:
            try:
                if isinstance(found, TidewireError):
                    raise found
                tables = {**self.lookups.tables, name: found[0]}
                plan = compile_plan(self.spec, self.params, self.node, secrets=self.secrets, lookups=tables)
            except TidewireError as error:
                self._note_trouble(f"lookup {name}", f"{_one_line(error)}; the former table stays in use")
                continue
            self.plan = plan
            self.lookups.take(name, *found)
            self.uncommitted.lookups = self.lookups.digests
            self._note_trouble(f"lookup {name}", "")

    def _set_params(self, params: dict[str, Any], digest: str) -> None:
        """From the next batch on. A source whose settings they change is opened anew where it stands."""
        if self._lookup_paths(params) != self.lookups.paths:
            self.lookups = self._open_lookups(params)
            self.uncommitted.lookups = self.lookups.digests
        self.plan, self.params_digest = self._compile(params), digest
        for name, settings in self._settings(params).items():
            if settings != self.settings[name]:
                self.settings[name], former = settings, self.sources[name]
                position = former.position
                former.close()
                self.sources[name] = self._open(name, position)

    def _open(self, name: str, position: Mapping[str, Any]) -> Any:
        from edge_agent.sources import open_source

        source = open_source(self.settings[name], position, self.context)
        source.acknowledge(self.confirmed.get(name, {}))
        return source

    def _settings(self, params: dict[str, Any]) -> dict[str, Source]:
        """The sources' settings as they are on this node. Raises `interpolate.Unset`."""
        from pipelines.contract.interpolate import resolved_source

        return {name: resolved_source(source, self._values(params)) for name, source in self.spec.sources.items()}

    def _lookup_paths(self, params: dict[str, Any]) -> dict[str, str]:
        from pipelines.contract.interpolate import resolve

        files = {name: table.file for name, table in self.spec.lookups.items() if table.file and self.mode != "drain"}
        paths: dict[str, str] = resolve(files, self._values(params))
        return paths

    def _open_lookups(self, params: dict[str, Any]) -> LookupFiles:
        from edge_agent.lookups import LookupFiles

        named = {name: table.artifact for name, table in self.spec.lookups.items() if table.artifact and self.mode != "drain"}
        return LookupFiles(self._lookup_paths(params), self.context.may_read, named, self.given)

    def _values(self, params: dict[str, Any]) -> Values:
        from pipelines.contract.interpolate import Values

        return Values(params, self.node.labels, self.secrets)

    def _context(self, start: dict[str, Any]) -> SourceContext:
        from edge_agent.policy import may_listen
        from edge_agent.sources import SourceContext

        private, allowed = os.path.realpath(start["private"]), start["policy"]["files"]

        def may_read(path: str) -> bool:
            return not path.startswith(private + os.sep) and any(fnmatch.fnmatch(path, pattern) for pattern in allowed)

        listens = partial(may_listen, start["policy"].get("listen"))
        small = bool(self.spec.windows)
        return SourceContext(self.mode == "until_eof", may_read, self.node_time_us, _wall_us, listens, small)

    def node_time_us(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 + self.node_offset_us

    def _arrival_us(self) -> int:
        """Node time; for bounded input that has its own time, the moment it was begun: only event time passes in a replay."""
        if self.mode == "until_eof" and self.spec.event_time:
            return self.begun_us
        return self.node_time_us()

    def _pause_s(self) -> float:
        idle_s = time.monotonic() - self.last_rows_s
        return next(pause_s for within_s, pause_s in POLLS_S if idle_s < within_s)

    def _note_trouble(self, about: str, text: str) -> None:
        if self.trouble.get(about, "") != text:
            self.trouble[about] = text
            level, text = ("warning", text) if text else ("info", "reads again")
            self.channel.send({"type": "note", "level": level, "text": text, "about": about})

    def _send_stats(self) -> None:
        self.last_stats_s = time.monotonic()
        stats = self.uncommitted.stats(self.state)
        self.channel.send({"type": "stats", **stats, "life": self.measured.told(stats)})


def _one_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]


def _wall_us() -> int:
    return time.time_ns() // 1000
