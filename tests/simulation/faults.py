"""Faults, one function each: `await fault(world, rng)` does it and heals it. Registered with how often a seed draws it."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from control_plane.commands import Writer as Who
from tests.simulation.checks import Lake
from tests.simulation.world import Node, Trap

if TYPE_CHECKING:
    from tests.simulation.world import World

Fault = Callable[["World", random.Random], Awaitable[None]]
FAULTS: dict[str, tuple[int, Fault]] = {}  # name -> (weight, what it does)


def fault(weight: int) -> Callable[[Fault], Fault]:
    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (weight, function)
        return function

    return register


def _node(world: World, rng: random.Random) -> Node:
    return rng.choice(world.nodes)


# -- the link


@fault(4)
async def cut(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    world.fault("cut", node=node.name)
    node.path.up = node.path.down = False
    await asyncio.sleep(rng.choice((3, 15, 40)))
    node.path.up = node.path.down = True


@fault(3)
async def one_way_cut(world: World, rng: random.Random) -> None:
    """Requests arrive and answers do not, or the other way."""
    node = _node(world, rng)
    way = rng.choice(("up", "down"))
    world.fault("one_way_cut", node=node.name, way=way)
    setattr(node.path, way, False)
    await asyncio.sleep(rng.choice((5, 25)))
    setattr(node.path, way, True)


@fault(3)
async def loss(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    world.fault("loss", node=node.name)
    node.path.loss = rng.choice((0.2, 0.5))
    await asyncio.sleep(30)
    node.path.loss = 0.0


@fault(2)
async def duplicates(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    world.fault("duplicates", node=node.name)
    node.path.duplicates = 0.7
    await asyncio.sleep(30)
    node.path.duplicates = 0.0


@fault(3)
async def delay_and_reorder(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    world.fault("delay_and_reorder", node=node.name)
    node.path.delay_s = (0.01, rng.choice((2.0, 8.0)))
    await asyncio.sleep(30)
    node.path.delay_s = (0.001, 0.02)


@fault(2)
async def broker_wiped(world: World, rng: random.Random) -> None:
    """It holds nothing: being wiped or restored is no more than losing every connection and message."""
    world.fault("broker_wiped")
    world.network.is_up = False
    world.network.reset()
    await asyncio.sleep(rng.uniform(1, 10))
    world.network.is_up = True


# -- crashes


@fault(3)
async def agent_killed(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    if node.life is not None:
        world.fault("agent_killed", node=node.name)
        node.crash()
        node.restart_in(rng.uniform(0.5, 10))


@fault(4)
async def agent_killed_in_commit(world: World, rng: random.Random) -> None:
    """Before any statement of a transaction, or right after its COMMIT, before anybody is told."""
    node = _node(world, rng)
    points = ("before INSERT", "before UPDATE", "before DELETE", "before COMMIT", "after COMMIT", "before SAVEPOINT")
    world.traps.append(Trap(node.machine, rng.choice(points), rng.randrange(0, 12), "agent_killed_in_commit"))


@fault(3)
async def runner_killed(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    for process in node.runners():
        world.fault("runner_killed", node=node.name)
        process.kill()


@fault(3)
async def runner_killed_sending(world: World, rng: random.Random) -> None:
    """Between what it did and what it says: an action without its commit, a commit without its answer."""
    point = rng.choice(("runner sends act", "runner sends commit", "runner sends stats"))
    world.traps.append(Trap(_node(world, rng).machine, point, rng.randrange(0, 3), "runner_killed_sending"))


@fault(2)
async def control_killed(world: World, rng: random.Random) -> None:
    world.fault("control_killed")
    world.control.crash()
    world.control.restart_in(rng.uniform(0.5, 10))


@fault(4)
async def control_killed_in_commit(world: World, rng: random.Random) -> None:
    """Before a lake commit, between those of two tables, or after one and before its receipt."""
    point = rng.choice(("before the lake commit", "after the lake commit"))
    world.traps.append(Trap(world.control.machine, point, rng.randrange(0, 4), "control_killed_in_commit"))


@fault(2)
async def control_stalled(world: World, rng: random.Random) -> None:
    """It hangs right before a lake commit, another process takes over, and then it goes on: two writers."""
    world.traps.append(Trap(world.control.machine, "before the lake commit", rng.randrange(0, 3), "control_stalled", stall_s=25))


@fault(2)
async def reboot(world: World, rng: random.Random) -> None:
    """The machine is off for a while; its BOOTTIME begins anew, and its wall clock where it stood, or in 1970."""
    node = _node(world, rng)
    world.fault("reboot", node=node.name)
    node.hold()
    off_s = rng.uniform(2, 20)
    await asyncio.sleep(off_s)
    node.machine.boot += 1
    node.machine.booted_s = world.loop.now - rng.uniform(5, 30)
    node.machine.is_synced = False
    node.machine.wall_offset_s = rng.choice((-off_s, -world.epoch_s))
    node.release()
    await asyncio.sleep(20)
    node.machine.wall_offset_s, node.machine.is_synced = 0.0, True


# -- disk and clock


@fault(3)
async def disk_full(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    world.fault("disk_full", node=node.name)
    node.is_disk_full = True
    await asyncio.sleep(rng.choice((5, 20)))
    node.is_disk_full = False


@fault(3)
async def clock_jump(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    years = 365 * 86400
    node.machine.wall_offset_s = rng.choice((-world.epoch_s, 10 * years, 3600, -3600, -90))
    node.machine.is_synced = rng.random() < 0.5
    world.fault("clock_jump", node=node.name, by_s=int(node.machine.wall_offset_s))


# -- what people do meanwhile


@fault(2)
async def new_version(world: World, rng: random.Random) -> None:
    if world.control.life is not None:
        world.fault("new_version")
        world.versions += 1
        await world.attempt(world.control.apply(world.versions))


@fault(2)
async def central_param(world: World, rng: random.Random) -> None:
    control = world.control
    if control.life is None or control.plane is None:
        return
    world.fault("central_param")
    value, plane = str(rng.randrange(70, 90)), control.plane

    async def write() -> None:
        world.limits.add(float(value))
        done = await control.on_store(
            plane.commands.set_param, "sim", {"limit_c": value}, "*", Who("ann"), plane.contact(), force=False, lock=False
        )
        world.limits = {float(value)}
        await control.poke(done.poke)

    await world.attempt(write())


@fault(2)
async def on_site_param(world: World, rng: random.Random) -> None:
    await _set_on_site(world, _node(world, rng), float(rng.randrange(70, 90)))


@fault(1)
async def on_site_params_by_a_wrong_clock(world: World, rng: random.Random) -> None:
    """The first one written seems to be the later one: what its writer had seen decides, not the clock (I5, I10)."""
    node = _node(world, rng)
    node.machine.wall_offset_s = 10 * 365 * 86400
    await _set_on_site(world, node, 71.0)
    node.machine.wall_offset_s = 0.0
    await _set_on_site(world, node, 89.0)


async def _set_on_site(world: World, node: Node, value: float) -> None:
    agent = node.agent
    if node.life is None or agent is None or not agent.record.is_agreed:
        return
    world.fault("on_site_param", node=node.name, value=value)
    body: dict[str, object] = {"name": "limit_c", "value": value}
    node.limits = (node.limits or {0.0}) | {value}  # until it is known to be written; 0: nothing is

    async def write() -> None:
        await agent.record.add_note("param", "sim", body, by="bob", reason="")
        node.limits = {value}

    def begin() -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(write())

    await asyncio.wait({node.in_life(begin)}, timeout=10)


@fault(0)
async def retyped_column(world: World, rng: random.Random) -> None:
    """A version whose rows do not fit the table: the lake refuses them in the open, and rounds nothing."""
    world.fault("retyped_column")
    world.versions += 1
    world.retyped.add(world.versions)
    await world.attempt(world.control.apply(world.versions, is_retyped=True))


@fault(2)
async def new_file(world: World, rng: random.Random) -> None:
    node = _node(world, rng)
    world.fault("new_file", node=node.name)
    node.writer.next_file()


# -- restores


@fault(2)
async def card_restored(world: World, rng: random.Random) -> None:
    """An image of the card is put back: the node reads again what came after it, under a new run. Where the lake was put
    back too, what waited then may have come under the run that took its place, which the card knows nothing of."""
    node = _node(world, rng)
    copy = world.home / f"{node.name}-card"
    if node.life is None or copy.exists():
        return
    node.snapshot(copy)
    known = node.read_by(copy / "agent.db")
    await asyncio.sleep(rng.uniform(5, 25))
    world.fault("card_restored", node=node.name)
    node.hold()
    node.was_restored = True
    if world.faults["lake_restored"]:
        known = set()
    node.read_again |= node.read_by(node.data_dir / "agent.db") - known
    await asyncio.sleep(1)
    shutil.rmtree(node.data_dir)
    shutil.copytree(copy, node.data_dir)
    if rng.random() < 0.5:
        node.machine.hardware = "second"  # put into another machine
    node.release()


@fault(1)
async def lake_restored(world: World, rng: random.Random) -> None:
    """The lake as it was some time ago: what the nodes freed since then is gone, nothing else."""
    control = world.control
    copy = world.home / "lake-copy"
    if not control.config.lake_dir.exists() or copy.exists() or control.life is None:
        return
    shutil.copytree(control.config.lake_dir, copy)
    await asyncio.sleep(rng.uniform(5, 25))
    world.fault("lake_restored")
    control.hold()
    for node in world.nodes:
        node.lost_with_lake |= world.stored(node, control.config.lake_dir) - world.stored(node, copy)
        voids = [Lake(directory).void_rows(node.id, "readings") for directory in (control.config.lake_dir, copy)]
        node.void_lost_with_lake += voids[0] - voids[1]
    shutil.rmtree(control.config.lake_dir)
    shutil.copytree(copy, control.config.lake_dir)
    await asyncio.sleep(1)
    control.release()


@fault(1)
async def control_store_restored(world: World, rng: random.Random) -> None:
    """The control plane's SQL store as it was some time ago, without the lake."""
    control = world.control
    names = ("control.db", "control.db-wal")
    copy = world.home / "store-copy"
    if control.life is None or copy.exists():
        return
    copy.mkdir()
    for name in names:
        if (control.directory / name).exists():
            shutil.copy(control.directory / name, copy / name)
    await asyncio.sleep(rng.uniform(5, 25))
    world.fault("control_store_restored")
    world.store_was_restored = True
    control.hold()
    await asyncio.sleep(1)
    for name in (*names, "control.db-shm"):
        (control.directory / name).unlink(missing_ok=True)
    for path in copy.iterdir():
        shutil.copy(path, control.directory / path.name)
    control.release()
