"""Faults of disks: full, damaged, without power."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from prove.cluster import descendants, eventually, send
from prove.disks import PoweredDisk, full, power_cycle
from prove.faults import Figures, Size
from prove.plant import NODE, Plant
from prove.truth import settled

_ALARM_EVERY_S = 0.5
_RUNG_WITHIN_S = 20.0  # a full disk is not freed before each alarm was acted on, or this is over


class Bell:
    """Alarms that are written, and what the node did about each."""

    def __init__(self, made: Plant) -> None:
        self._directory = made.directory / "alarms"
        self._rung = made.cluster.home / "rung"
        self._directory.mkdir(exist_ok=True)
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


async def full_agent_disk(made: Plant, size: Size) -> Figures:
    """The agent's disk runs full, with the link up and with the link cut: alarms go on (I15), and what is lost is counted."""
    bell, silent, told = Bell(made), 0, 0
    for is_cut in (False, True):
        if is_cut:
            made.cluster.link.cut()
        async with full(made.data):
            await bell.ring_for(size.full_s)
            told += bool((await made.cluster.status(NODE)).get("store", {}).get("trouble"))
            silent += bell.silent
        made.cluster.link.heal()
        await made.revive()
    if silent:
        made.wrong.append(f"{silent} alarms without action while the disk was full")
    latencies = bell.latencies()
    return {"full disk told": told, "alarms": len(latencies), "slowest alarm s": round(max(latencies, default=-1.0), 2)}


async def full_control_disk(made: Plant, size: Size) -> Figures:
    """The control plane's disk runs full: no receipt without rows, and it heals."""
    async with full(made.cluster.home / "control"):
        await asyncio.sleep(size.full_s)
        lines = made.lines
        before = await asyncio.to_thread(settled, made.cluster.lake)
    await made.revive()
    return {"seconds without room": size.full_s, "lines not stored then": lines - before}


async def power_of_agent(made: Plant, size: Size) -> Figures:
    """Power cuts of the node: its store is on an ext4 image that loses what was not synced."""
    for _ in range(size.power_cuts):
        await made.pause(0.3, 2 * size.kill_every_s)
        await _cut_power(made, made.disks[NODE], made.agent.pid)
        await made.agent.kill()
        await made.agent.start()
        await _must_answer(made)
    return {"power cuts": size.power_cuts}


async def power_of_control(made: Plant, size: Size) -> Figures:
    """Power cuts of the control plane: where there was a receipt there are rows (I3)."""
    for _ in range(size.power_cuts):
        await made.pause(0.3, 2 * size.kill_every_s)
        await _cut_power(made, made.disks["control"], made.control.pid)
        await made.control.kill()
        await made.control.start()
        await eventually("the control plane to answer", made.cluster.is_up)
    return {"power cuts": size.power_cuts}


async def _cut_power(made: Plant, disk: PoweredDisk, pid: int) -> None:
    def kill() -> None:
        for process in [pid, *(child.pid for child in descendants(pid))]:
            send(process)

    await power_cycle(disk, kill, disk_first=made.chance.random() < 0.5)


async def _must_answer(made: Plant) -> None:
    if not await made.agent_up():
        made.wrong.append(f"the agent did not start: {made.agent.why_dead()}")
        await made.revive()


FILES = ("agent.db", "agent.db-wal", "agent.db", "agent.lock", "agent.reserve", "identity.json")
WAYS = ("flip", "flip many", "zero a page", "truncate", "empty")


async def damage(made: Plant, size: Size) -> Figures:
    """Bits flip and files are cut short while the agent is down, with a backlog in its store."""
    done: Counter[str] = Counter()
    await made.retire_posters()
    made.is_damaged = True
    for i in range(size.damages):
        made.cluster.link.cut()
        await made.pause(size.cut_s / 12, size.cut_s / 4)
        await made.agent.kill()
        path, way = made.data / FILES[i % len(FILES)], made.chance.choice(WAYS)
        good = path.read_bytes() if path.exists() else b""
        if good:
            spoil(path, way, made.chance)
            done[f"{path.name}: {way}"] += 1
        made.ends = 0
        await made.agent.start()
        await (_must_say_so(made, path, good) if path.name == "identity.json" else _must_answer(made))
        made.cluster.link.heal()
        await made.pause(0.5, 2.0)
    return dict(done)


async def _must_say_so(made: Plant, path: Path, good: bytes) -> None:
    """Without its identity nobody knows who the node is. A flipped bit may also be one that does not matter."""

    async def answers_or_ended() -> bool:
        return not made.agent.is_running or bool(await made.cluster.status(NODE))

    with suppress(AssertionError):
        await eventually("the agent to answer or to end", answers_or_ended, 60)
    if not made.agent.is_running and "fix:" not in (said := str(made.agent.why_dead())):
        made.wrong.append(f"{path.name}: it does not say what to do: {said}")
    await made.agent.stop()
    path.write_bytes(good)
    await made.agent.start()


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
