"""One node under load: what a scenario breaks, and what it counts afterwards."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from control_plane.demo import processes
from control_plane.demo.processes import CONTROL, Program
from control_plane.demo.proxy import free_port
from prove.cluster import Cluster, cluster, descendants, eventually
from prove.disks import PoweredDisk, powered_disk
from prove.truth import Counted, count, settled
from prove.writer import Poster, Writer

NODE = "node-1"
DRAINED_WITHIN_S = 90.0
DAMAGED, ENDS_MAX = "the store is damaged", 3  # what the agent says of it; so often after each damage it may end to salvage
_AGAIN = frozenset({"arrived", "twice"})  # what the audit says where a store fell back and its sources were read again from there
WRITERS, RATE = 2, 800  # lines a second, of each
NUMBERS = """
tidewire: 1
pipeline: numbers
sources:
  log:
    file: {path: "log/*.jsonl"}
  posted:
    http: {listen: "127.0.0.1:PORT"}
schema:
  writer: {type: string}
  n: {type: integer}
  value: {type: double}
windows:
  per_second:
    every: 1s
    by: [writer]
    select:
      readings: count(*)
sinks:
  rows: {lake: {table: numbers}}
  summary: {lake: {table: numbers_per_second}, from: per_second}
"""

ALARMS = """
tidewire: 1
pipeline: alarms
sources:
  log:
    file: {path: "alarms/*.jsonl"}
schema:
  alarm: {type: integer}
triggers:
  rung:
    over: 1h
    by: [alarm]
    when: count(*) >= 1
    message: "{alarm}"
    actions:
      on_raise:
        - exec: {program: "PLACE/ring"}
sinks:
  rows: {lake: {table: alarms}}
"""
RING = """#!/bin/sh
echo > "PLACE/rung/$TIDEWIRE_MESSAGE"
"""
_DISK_BYTES = 160 * 1024 * 1024


@dataclass
class Plant:
    """`wrong` collects what must not be, such as a program that ended by itself; `disks` are those of node-1 and control."""

    cluster: Cluster
    directory: Path
    chance: random.Random
    writers: list[Writer | Poster]
    disks: dict[str, PoweredDisk]
    wrong: list[str] = field(default_factory=list)
    is_damaged: bool = False  # whether a file of the agent was spoiled
    ends: int = 0  # so often the agent ended since then, for a store that is damaged

    @property
    def agent(self) -> Program:
        return self.cluster.agents[NODE]

    @property
    def control(self) -> Program:
        assert self.cluster.server is not None
        return self.cluster.server

    @property
    def data(self) -> Path:
        """The agent's."""
        return self.directory / "agent"

    @property
    def lines(self) -> int:
        return sum(writer.n for writer in self.writers)

    async def pause(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.chance.uniform(least_s, most_s))

    async def stop_writing(self) -> None:
        for writer in self.writers:
            await writer.stop()

    async def retire_posters(self) -> None:
        """Before damage: what was committed and never left the node cannot be read again where no file holds it."""
        await self.stop_writing()
        await self.drain()
        for writer in self.writers:
            if isinstance(writer, Writer):
                writer.start()

    async def drain(self, within_s: float = DRAINED_WITHIN_S) -> None:
        """Wait until the lake has settled every line, or time is up: the count will tell."""
        lines = self.lines

        async def is_drained() -> bool:
            await self.revive()
            if await asyncio.to_thread(settled, self.cluster.lake) < lines or not await self.cluster.has_converged():
                return False
            return (await self.count()).is_complete

        try:
            await eventually("every line in the lake", is_drained, within_s)
        except AssertionError as error:
            self.wrong.append(str(error))

    async def count(self) -> Counted:
        return await asyncio.to_thread(count, [self.directory / "log", self.directory / "posted"], self.cluster.lake)

    async def finish(self, may_read_again: bool = False) -> Counted:
        """Stop writing, drain, count, and ask Tidewire whether its own accounts agree."""
        await self.stop_writing()
        await self.drain()
        counted = await self.count()
        forgiven = replace(counted, read_again=0, void=min(counted.void, counted.missing)) if may_read_again else counted
        self.wrong += forgiven.wrong
        self._look_for_tracebacks()
        await self._audit(_AGAIN if may_read_again and counted.read_again else frozenset())
        return counted

    async def revive(self) -> None:
        """Start what ended by itself, as a service manager would. Only a damaged store may end the agent, and not for ever."""
        for program in (self.control, self.agent):
            if not program.is_running:
                reason = str(program.why_dead())
                self.ends += DAMAGED in reason
                if not (self.is_damaged and DAMAGED in reason and self.ends <= ENDS_MAX):
                    self.wrong.append(f"{program.name} ended: {reason}")
                await program.start()

    async def agent_up(self, within_s: float = 60.0) -> bool:
        """Whether the agent answers within the time."""

        async def answers() -> bool:
            if not self.agent.is_running and not self.is_damaged:
                return False
            await self.revive()
            return bool(await self.cluster.status(NODE))

        try:
            await eventually("the agent to answer", answers, within_s)
        except AssertionError:
            return False
        return True

    async def _audit(self, expected: frozenset[str]) -> None:
        """Rows that came again are a difference, and the audit has to say so; but nothing else than `expected`."""
        words = processes.module_command(CONTROL, "audit", "numbers", "--json")
        run = subprocess.run
        done = await asyncio.to_thread(run, words, cwd=self.cluster.home, env=self.cluster.env, capture_output=True, text=True)
        try:
            told = [(one["equation"], one["says"]) for one in json.loads(done.stdout)["differences"]]
        except (ValueError, KeyError, TypeError):
            self.wrong.append(f"audit: {(done.stdout or done.stderr).strip()[-1000:]}")
            return
        self.wrong += [f"audit: {says}" for equation, says in told if equation not in expected]
        if bool(done.returncode) != bool(told):
            self.wrong.append(f"audit: {len(told)} differences, and it exits with {done.returncode}")

    def _look_for_tracebacks(self) -> None:
        for log in (self.cluster.home / "control.log", self.directory / "agent.log"):
            first, *others = log.read_text(errors="replace").split("Traceback (most recent call last)")
            if others:
                ends = [line for line in others[0].splitlines()[1:] if line and not line.startswith(" ")]
                said = f"{first.splitlines()[-1:]} ... {ends[:1]}"
                self.wrong.append(f"{len(others)} tracebacks in {log.name}, the first: {said}")


@asynccontextmanager
async def plant(home: Path, chance: random.Random, *, on_disks: bool) -> AsyncIterator[Plant]:
    """Opened with the first rows in the lake; `on_disks` with its data on small disks. It leaves no process behind."""
    (home / "rung").mkdir(parents=True)
    ring = home / "ring"
    ring.write_text(RING.replace("PLACE", str(home)))
    ring.chmod(0o755)
    with ExitStack() as stack:
        places = {NODE: home / NODE / "agent", "control": home / "control"} if on_disks else {}
        disks = {n: stack.enter_context(powered_disk(home / f"{n}.img", at, _DISK_BYTES)) for n, at in places.items()}
        async with cluster(home) as parts:
            directory = await parts.add_node(NODE, policy=f"exec: [{ring}]\n")
            port = free_port()
            writers = [Writer(f"w{i}", directory / "log", RATE, chance) for i in range(WRITERS)]
            poster = Poster("p0", f"http://127.0.0.1:{port}/", directory / "posted")
            made = Plant(parts, directory, chance, [*writers, poster], disks)
            await _deploy(parts, port)
            for writer in made.writers:
                writer.start()
            try:
                await eventually("the first rows in the lake", lambda: settled(parts.lake))
                yield made
            finally:
                await made.stop_writing()
                family = [p for program in (made.agent, made.control) for p in descendants(program.pid)]
        _, left = await asyncio.to_thread(psutil.wait_procs, family, 5)
    if left:
        made.wrong.append(f"{len(left)} processes outlived their parents")


async def _deploy(parts: Cluster, port: int) -> None:
    texts = {"numbers": NUMBERS.replace("PORT", str(port)), "alarms": ALARMS.replace("PLACE", str(parts.home))}
    for name, text in texts.items():
        (parts.home / f"{name}.yaml").write_text(text)
        await parts.tidewire("apply", f"{name}.yaml")
        await parts.tidewire("deploy", name, "--select", "all")
