"""The scenarios on disks: full, damaged, without power."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from prove.cluster import descendants, eventually, send
from prove.disks import MIB, PoweredDisk, full, power_cycle, powered_disk, small_disk, why_not
from prove.plant import NODE, Plant, plant
from prove.scenarios import Result, Size, result
from prove.truth import settled

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
_ALARM_EVERY_S = 0.5
_RUNG_WITHIN_S = 20.0  # a full disk is not freed before each alarm was acted on, or this is over


class Bell:
    """Alarms that are written, and what the node did about each."""

    def __init__(self, made: Plant) -> None:
        self._directory = made.directory / "alarms"
        self._rung = made.cluster.home / "rung"
        self._directory.mkdir()
        self._written: dict[int, float] = {}  # wall clock, as the file times it is compared with

    def ring(self) -> None:
        number = len(self._written) + 1
        self._written[number] = time.time()
        with (self._directory / "a.jsonl").open("a") as file:
            file.write(json.dumps({"alarm": number}) + "\n")

    def latencies(self) -> list[float]:
        """Seconds from line to action, of each alarm that was acted on."""
        rung = {int(path.name): path.stat().st_mtime for path in self._rung.iterdir()}
        return [rung[number] - at for number, at in self._written.items() if number in rung]

    @property
    def silent(self) -> int:
        return len(self._written) - len(self.latencies())

    async def ring_for(self, span_s: float) -> None:
        until = time.monotonic() + span_s
        while time.monotonic() < until:
            self.ring()
            await asyncio.sleep(_ALARM_EVERY_S)
        with suppress(AssertionError):
            await eventually("every alarm to be acted on", lambda: not self.silent, _RUNG_WITHIN_S)


async def full_agent_disk(home: Path, chance: random.Random, size: Size) -> Result:
    """The agent's disk runs full, with the link up and with the link cut: alarms go on (I15), and what is lost is counted."""
    if why := why_not():
        return Result(skipped=why)
    (home / "rung").mkdir(parents=True)
    (home / "ring").write_text(RING.replace("PLACE", str(home)))
    (home / "ring").chmod(0o755)
    with small_disk(home / NODE / "agent", 96 * MIB):
        async with plant(home, chance, pipelines=ALARMS.replace("PLACE", str(home)), policy=f"exec: [{home}/ring]\n") as made:
            bell, silent, trouble = Bell(made), 0, list[bool]()
            for is_cut in (False, True):
                if is_cut:
                    made.cluster.link.cut()
                async with full(made.data):
                    await bell.ring_for(size.full_s)
                    trouble.append(bool((await made.cluster.status(NODE)).get("store", {}).get("trouble")))
                    silent += bell.silent
                made.cluster.link.heal()
                await made.revive()
            counted = await made.finish()
            latencies = sorted(bell.latencies())
            if silent:
                made.wrong.append(f"{silent} alarms without action while the disk was full")
    told = {"alarms": len(latencies), "slowest alarm_s": round(latencies[-1], 2) if latencies else -1}
    return result(made, counted, full_s=size.full_s, told_full=sum(trouble), silent=silent, **told)


async def full_control_disk(home: Path, chance: random.Random, size: Size) -> Result:
    """The control plane's disk runs full: no receipt without rows, and it heals."""
    if why := why_not():
        return Result(skipped=why)
    with small_disk(home / "control", 96 * MIB):
        async with plant(home, chance) as made:
            async with full(home / "control"):
                await asyncio.sleep(size.full_s)
                before = await asyncio.to_thread(settled, made.cluster.lake)
            await made.revive()
            counted = await made.finish()
    return result(made, counted, full_s=size.full_s, settled_before_room=before)


async def power_of_agent(home: Path, chance: random.Random, size: Size) -> Result:
    """Power cuts of the node: its store is on an ext4 image that loses what was not synced."""
    if why := why_not():
        return Result(skipped=why)
    home.mkdir(parents=True)
    with powered_disk(home / "node.img", home / NODE / "agent", 256 * MIB) as disk:
        async with plant(home, chance) as made:
            for _ in range(size.power_cuts):
                await made.pause(0.3, 4.0)
                await _cut_power(made, disk, made.agent.pid)
                await made.agent.kill()
                await made.agent.start()
                await _must_answer(made)
            counted = await made.finish()
    return result(made, counted, cuts=size.power_cuts)


async def power_of_control(home: Path, chance: random.Random, size: Size) -> Result:
    """Power cuts of the control plane: where there was a receipt there are rows (I3)."""
    if why := why_not():
        return Result(skipped=why)
    home.mkdir(parents=True)
    with powered_disk(home / "control.img", home / "control", 256 * MIB) as disk:
        async with plant(home, chance) as made:
            for _ in range(size.power_cuts):
                await made.pause(0.3, 4.0)
                await _cut_power(made, disk, made.control.pid)
                await made.control.kill()
                await made.control.start()
                await eventually("the control plane to answer", made.cluster.is_up)
            counted = await made.finish()
    return result(made, counted, cuts=size.power_cuts)


async def _cut_power(made: Plant, disk: PoweredDisk, pid: int) -> None:
    def kill() -> None:
        for process in [pid, *(child.pid for child in descendants(pid))]:
            send(process)

    await power_cycle(disk, kill, disk_first=made.chance.random() < 0.5)


async def _must_answer(made: Plant) -> None:
    if not await made.agent_up():
        made.wrong.append(f"the agent did not start: {made.agent.why_dead()}")
        await made.revive()


FILES = ("agent.db", "agent.db-wal", "agent.db", "agent.lock", "reserve", "identity.json")
WAYS = ("flip", "flip many", "zero a page", "truncate", "empty")
_IS_TOLD = ("identity.json",)  # without it nobody knows who the node is: the agent says so and ends


async def damage(home: Path, chance: random.Random, size: Size) -> Result:
    """Bits flip and files are cut short while the agent is down, with a backlog in its store."""
    done: Counter[str] = Counter()
    async with plant(home, chance) as made:
        for i in range(size.damages):
            made.cluster.link.cut()
            await made.pause(1.0, 3.0)
            await made.agent.kill()
            path, way = made.data / FILES[i % len(FILES)], chance.choice(WAYS)
            if path.exists() and path.stat().st_size:
                good = path.read_bytes()
                spoil(path, way, chance)
                done[f"{path.name}: {way}"] += 1
                await made.agent.start()
                await _see_how_it_goes(made, path, way, good)
            else:
                await made.agent.start()
            made.cluster.link.heal()
            await made.pause(0.5, 2.0)
        counted = await made.finish(may_read_again=True)
    return result(made, counted, damages=sum(done.values()), **done)


async def _see_how_it_goes(made: Plant, path: Path, way: str, good: bytes) -> None:
    if path.name in _IS_TOLD:
        with suppress(AssertionError):
            await eventually("the agent to answer or to end", lambda: _answers_or_ended(made), 30)
        if made.agent.is_running:
            return
        said = str(made.agent.why_dead())
        if "fix:" not in said:
            made.wrong.append(f"{path.name}, {way}: it does not say what to do: {said}")
        path.write_bytes(good)
        await made.agent.start()
    elif not await made.agent_up():
        made.wrong.append(f"{path.name}, {way}: the agent does not start: {made.agent.why_dead()}")
        path.write_bytes(good)
        await made.agent.kill()
        await made.agent.start()


async def _answers_or_ended(made: Plant) -> bool:
    return not made.agent.is_running or bool(await made.cluster.status(NODE))


def spoil(path: Path, way: str, chance: random.Random) -> None:
    """Damage one file in place. A file shorter than a page has one page."""
    data = bytearray(path.read_bytes())
    if way == "empty":
        data.clear()
    elif way == "truncate":
        del data[chance.randrange(len(data)) :]
    elif way == "zero a page":
        at = chance.randrange(0, len(data), 4096)
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    else:
        for _ in range(1 if way == "flip" else 64):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
