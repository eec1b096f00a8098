"""Faults of processes and of their link. Each breaks a plant under load, so much as its `Size` says, and returns what it did."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from prove.cluster import children, eventually, send
from prove.link import OPEN, SHUT, Way
from prove.plant import Plant
from prove.truth import settled

Figures = dict[str, int | float]
Fault = Callable[[Plant, "Size"], Awaitable[Figures]]


@dataclass(frozen=True)
class Size:
    """How much of each: `FULL` is `make prove`, `SHORT` is for `make test`."""

    kills: int
    kill_every_s: float  # at most
    cuts: tuple[str, ...]
    cut_s: float
    pauses: int  # of each process
    pause_s: float
    full_s: float
    damages: int
    power_cuts: int  # of each plane


FULL = Size(
    kills=100,
    kill_every_s=2,
    cuts=("cut", "node to centre", "centre to node", "black hole", "slow", "flapping"),
    cut_s=12,
    pauses=3,
    pause_s=12,
    full_s=15,
    damages=18,
    power_cuts=10,
)
SHORT = Size(
    kills=10,
    kill_every_s=0.6,
    cuts=("cut", "node to centre", "flapping"),
    cut_s=1,
    pauses=1,
    pause_s=1,
    full_s=2,
    damages=2,
    power_cuts=1,
)


async def kills(made: Plant, size: Size) -> Figures:
    """SIGKILL of each process at random moments, also while it is still starting."""
    done: Counter[str] = Counter()
    for i in range(size.kills):
        await made.pause(0.05, size.kill_every_s)
        await made.revive()
        victim = list(KILLS)[i % len(KILLS)]
        if await KILLS[victim](made):
            done[f"{victim} kills"] += 1
    return dict(done)


async def _kill_program(made: Plant, name: str) -> bool:
    program = made.agent if name == "agent" else made.control
    await program.kill()
    await made.pause(0, 0.3)
    await program.start()
    return True


async def _kill_child(made: Plant, name: str) -> bool:
    """Whether there was one within some seconds: nobody has children right after its own death."""
    with suppress(AssertionError):
        await eventually(f"a {name}", lambda: process_of(made, name), 15)
    if pid := process_of(made, name):
        send(pid)
    return bool(pid)


def process_of(made: Plant, name: str) -> int:
    """0 when there is none just now."""
    if name in ("agent", "control"):
        return made.agent.pid if name == "agent" else made.control.pid
    parent, mark, at = {
        "runner": (made.agent.pid, "multiprocessing.forkserver", -1),
        "fork server": (made.agent.pid, "multiprocessing.forkserver", 0),
        "broker": (made.control.pid, "nats-server", 0),
    }[name]
    found = children(parent, mark)
    return found[at] if found and not (name == "runner" and len(found) < 2) else 0


KILLS: dict[str, Callable[[Plant], Awaitable[bool]]] = {
    "agent": lambda made: _kill_program(made, "agent"),
    "runner": lambda made: _kill_child(made, "runner"),
    "control": lambda made: _kill_program(made, "control"),
    "fork server": lambda made: _kill_child(made, "fork server"),
    "broker": lambda made: _kill_child(made, "broker"),
}

SLOW = Way(delay_s=0.15, bytes_per_s=32 * 1024)
BAD_LINKS: dict[str, tuple[Way, Way]] = {"node to centre": (SHUT, OPEN), "centre to node": (OPEN, SHUT), "slow": (SLOW, SLOW)}


async def cuts(made: Plant, size: Size) -> Figures:
    """The link cut, cut in one direction, black, slow and flapping. Nobody is frozen: everything runs on."""
    took: Figures = {}
    link = made.cluster.link
    for name in size.cuts:
        if name == "cut":
            link.cut()
        elif name == "black hole":
            link.forget()
            link.set(SHUT, SHUT)
        elif name in BAD_LINKS:
            link.set(*BAD_LINKS[name])
        await (_flap(made, size.cut_s) if name == "flapping" else asyncio.sleep(size.cut_s))
        link.heal()
        took[f"{name}: seconds until used again"] = await _seconds_until_news(made)
    return took


async def _flap(made: Plant, span_s: float) -> None:
    until = time.monotonic() + span_s
    while time.monotonic() < until:
        made.cluster.link.cut()
        await made.pause(0.2, 1.0)
        made.cluster.link.heal()
        await made.pause(0.2, 1.0)


async def _seconds_until_news(made: Plant) -> float:
    """From now until what is written now is in the lake."""
    started, lines = time.monotonic(), made.lines

    async def is_there() -> bool:
        return await asyncio.to_thread(settled, made.cluster.lake) >= lines

    try:
        await eventually("the link to be used again", is_there, 90)
    except AssertionError as error:
        made.wrong.append(str(error))
    return round(time.monotonic() - started, 1)


async def pauses(made: Plant, size: Size) -> Figures:
    """SIGSTOP, later SIGCONT: a machine that swaps, a virtual machine that migrates."""
    done: Counter[str] = Counter()
    for victim in ("control", "agent", "broker", "runner") * size.pauses:
        await made.pause(0.1, size.pause_s / 4)
        if not (pid := process_of(made, victim)):
            continue
        send(pid, signal.SIGSTOP)
        try:
            await made.pause(size.pause_s / 4, size.pause_s)
        finally:
            send(pid, signal.SIGCONT)
        done[f"{victim} pauses"] += 1
        await made.revive()
    return dict(done)
