"""What one seed does: nodes at work, faults one over another, then healing, quiet and the checks."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

from tests.simulation import people
from tests.simulation.canaries import CANARIES
from tests.simulation.checks import (
    complaints,
    i6_replicas_agree,
    i6_requests_end,
    i6_rollouts_end,
    i12_no_node_stays_with_what_crashes,
)
from tests.simulation.faults import FAULTS
from tests.simulation.life import Crashed
from tests.simulation.world import Node, World

BUSY_S = 50.0  # while rows come and faults happen
WINDOWS_END_S = 35.0  # after the last row, or the runner's start
QUIET_MAX_S = 330.0  # then all must have arrived; what flapped is reported up to five minutes later
SMALL_BUFFER = 24 * 1024


@dataclass(frozen=True)
class Result:
    """`complaints` is empty when every invariant held."""

    seed: int
    complaints: list[str]
    trace: str
    hours: float
    rows: int
    faults: Counter[str] = field(default_factory=Counter)


def simulate(
    seed: int, faults: Sequence[str] | None = None, *, buffer_bytes: int = 0, bug: str = "", verbose: bool = False
) -> Result:
    """Run one seed; `faults` names those to have, instead of some that the seed draws; `buffer_bytes` is each node's; `bug` is
    a canary to let in."""
    with _on_one_core(), _collected():
        return _simulate(seed, faults, buffer_bytes, bug, verbose)


@contextmanager
def _collected() -> Iterator[None]:
    """No search for garbage meanwhile, and all of it freed at the end: a world is full of cycles, which hold databases."""
    gc.freeze()  # what was there before is not searched
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.unfreeze()


@contextmanager
def _on_one_core() -> Iterator[None]:
    """Threads that take turns hand over faster there. Simulations in several processes get different ones."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or sum(multiprocessing.current_process()._identity))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[number % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _simulate(seed: int, faults: Sequence[str] | None, buffer_bytes: int, bug: str, verbose: bool) -> Result:
    world = World(
        seed,
        nodes=1 if faults is None and seed % 2 else 2,
        bug=CANARIES[bug].patches if bug else lambda: iter(()),
        verbose=verbose,
    )
    try:
        found = world.run(lambda world: _scenario(world, faults, buffer_bytes))
    except AssertionError as error:
        found = [f"I12: {error}"]
    hours = (world.loop.now - 1000) / 3600
    return Result(seed, found, world.trace.hexdigest(), hours, world.rows_checked, world.faults)


def simulate_or_say(seed: int) -> Result:
    """`simulate`, where a defect of the simulator itself is a complaint: other seeds may not have it."""
    try:
        return simulate(seed)
    except (Exception, Crashed) as error:  # noqa: BLE001 - see above
        return Result(seed, [f"the simulation itself failed: {error!r}"], "", 0, 0)


async def _scenario(world: World, names: Sequence[str] | None, buffer_bytes: int) -> list[str]:
    rng = world.random("scenario")
    world.control.start()
    for node in world.nodes:
        if buffer_bytes or (names is None and rng.random() < 0.15):
            node.buffer_bytes = buffer_bytes or SMALL_BUFFER
        await node.join()
        node.start()
    await world.control.apply(1)
    drawn = _drawn(rng) if names is None else list(names)
    world.note("faults", drawn=drawn)
    troubles = [
        asyncio.create_task(_later(world, name, rng.uniform(1, BUSY_S * 0.7), random.Random(f"{world.seed}/{i}")))
        for i, name in enumerate(drawn)
    ]
    await asyncio.gather(*(_work(world, node) for node in world.nodes))
    await asyncio.gather(*troubles)
    _heal(world)
    await people.go_home(world)
    await _become_quiet(world)
    return complaints(world)


def _drawn(rng: random.Random) -> list[str]:
    return rng.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()], k=rng.randrange(2, 6))


async def _later(world: World, name: str, at_s: float, rng: random.Random) -> None:
    await asyncio.sleep(at_s)
    await FAULTS[name][1](world, rng)


async def _work(world: World, node: Node) -> None:
    """Write the node's source files; look whether bounds are kept."""
    rng = random.Random(f"{node.name}/work/{world.seed}")
    end = world.loop.now + BUSY_S
    while world.loop.now < end:
        node.writer.write(int((world.epoch_s + world.loop.now) * 1e6), rng.randrange(0, 6))
        if node.store is not None:
            used = node.select("SELECT coalesce(sum(pending_bytes), 0) FROM streams")[0][0]
            if used > node.buffer_bytes + 512 * 1024:
                world.out_of_bounds.add(f"I9: {node.name}: the buffer holds {used} of {node.buffer_bytes} bytes")
        await asyncio.sleep(rng.uniform(0.3, 1.5))


def _heal(world: World) -> None:
    world.note("healed")
    world.traps.clear()
    world.network.is_up = True
    for node in world.nodes:
        node.is_disk_full = False
        path = node.path
        path.up = path.down = True
        path.loss = path.duplicates = 0.0
        path.delay_s = (0.001, 0.02)
    for process in world.processes:
        process.revive()


async def _become_quiet(world: World) -> None:
    """Until nothing is left to do, or it takes too long: then the checks tell what is wrong."""
    end = world.loop.now + QUIET_MAX_S
    await asyncio.sleep(WINDOWS_END_S)
    while world.loop.now < end and not all(_is_done(world, node) for node in world.nodes):
        await asyncio.sleep(5)
    await asyncio.sleep(1)
    world.note("quiet")


_AT_REST = (i6_rollouts_end, i6_requests_end, i12_no_node_stays_with_what_crashes)


def _is_done(world: World, node: Node) -> bool:
    pending = node.select("SELECT count(*) FROM outbox")[0][0]
    waits = (i6_replicas_agree(world, [node]), *(check(world, None) for check in _AT_REST))
    agrees = not any(chain(*waits))
    has_had_time = all(world.loop.now - runner.started_s >= WINDOWS_END_S for runner in node.runners())
    return not pending and node.has_read_all and has_had_time and agrees
