"""What versions need before they start on a managed agent: their tables, and room on the disk."""

from __future__ import annotations

from support import until
from world import READY, World, phase, version, with_control

from edge_agent import reserve, supplies
from pipelines.contract import causes
from pipelines.contract.node_state import Reported
from pipelines.contract.version import PipelineVersion

TABLE = """lookups:
  assets: {artifact: assets, key: [sensor]}
"""
BUFFER = "buffer: {max_size: SIZE}\n"


def looking_up(number: int = 1, more: str = "") -> PipelineVersion:
    return version(READY, {"stats": {"n": number}}, number=number, more=TABLE + more)


def told(world: World, pipeline: str = "press") -> Reported:
    return world.control.document.reported()[pipeline]


def state(world: World, pipeline: str = "press") -> tuple[str, str]:
    """Phase and code, as the control plane sees it."""
    found = world.control.document.reported().get(pipeline)
    return (found.phase, found.code) if found else ("", "")


@with_control
async def test_a_pipeline_waits_for_its_table_and_takes_the_next_without_a_restart(world: World) -> None:
    first = world.control.put_table("assets", b"sensor,line\na,1\n", is_here=False)
    await world.control.assign(looking_up(), version(READY, pipeline="sibling"))
    async with world.agent() as agent:
        await until(lambda: state(world) == ("pending", causes.ARTIFACT_MISSING))
        await until(lambda: "there is no such artifact" in told(world).reason)
        assert await until(lambda: phase(world, "sibling") == "1 running"), "its siblings do not wait"
        assert first == world.control.put_table("assets", b"sensor,line\na,1\n")
        await until(lambda: state(world) == ("running", "") and told(world).artifacts == {"assets": first})
        pid = agent.keepers["press"].pid
        second = world.control.put_table("assets", b"sensor,line\na,2\n", is_here=False)
        await world.control.assign(looking_up(), version(READY, pipeline="sibling"))
        await until(lambda: state(world) == ("running", causes.ARTIFACT_MISSING))
        assert told(world).artifacts == {"assets": first} and "the former one is in use" in told(world).reason
        world.control.put_table("assets", b"sensor,line\na,2\n")
        await until(lambda: state(world) == ("running", "") and told(world).artifacts == {"assets": second})
        assert agent.keepers["press"].pid == pid, "the runner goes on"
        assert first in agent.supplies.artifacts.held, "what was in use stays while there is room"


@with_control
async def test_i12_a_node_boots_with_the_table_it_had(world: World) -> None:
    first = world.control.put_table("assets", b"sensor,line\na,1\n")
    await world.control.assign(looking_up())
    async with world.agent():
        await until(lambda: told(world).artifacts == {"assets": first} if phase(world) == "1 running" else False)
        world.control.put_table("assets", b"sensor,line\na,2\n", is_here=False)
        await world.control.assign(looking_up())
        await until(lambda: state(world) == ("running", causes.ARTIFACT_MISSING))
    await world.control.close()  # nobody is in reach
    async with world.agent() as agent:
        await until(lambda: "press" in agent.keepers and agent.keepers["press"].tables_in_use == {"assets": first})
        assert agent.status_of("press").phase == "running"
    await world.control.serve(world.broker)


@with_control
async def test_another_version_does_not_replace_what_runs_before_its_table_is_here(world: World) -> None:
    world.control.put_table("assets", b"sensor,line\na,1\n")
    await world.control.assign(looking_up(1))
    async with world.agent() as agent:
        await until(lambda: phase(world) == "1 running")
        second = world.control.put_table("assets", b"sensor,line,zone\na,1,z\n", is_here=False)
        await world.control.assign(looking_up(2))
        await until(lambda: state(world) == ("running", causes.ARTIFACT_MISSING))
        assert told(world).number == 1, "version 2 may need what only the new table has"
        world.control.put_table("assets", b"sensor,line,zone\na,1,z\n")
        await until(lambda: phase(world) == "2 running" and told(world).artifacts == {"assets": second})
        assert agent.supplies.under_way == []


@with_control
async def test_a_table_that_rots_is_fetched_again_and_the_pipeline_goes_on(world: World) -> None:
    digest = world.control.put_table("assets", b"sensor,line\na,1\n")
    await world.control.assign(looking_up())
    async with world.agent() as agent:
        await until(lambda: phase(world) == "1 running")
        path = agent.supplies.artifacts.path(digest)
    path.write_bytes(b"sensor,line\na,9\n")
    async with world.agent() as agent:
        await until(lambda: agent.keepers and agent.keepers["press"].tables_in_use == {"assets": digest})
        assert path.read_bytes() == b"sensor,line\na,1\n"


@with_control
async def test_a_manifest_that_asks_for_more_disk_than_there_is_changes_nothing(world: World) -> None:
    large = {"more": BUFFER.replace("SIZE", "100GiB")}
    await world.control.assign(version(READY), version(READY, pipeline="new", **large))
    async with world.agent() as agent:
        await until(lambda: phase(world) == "1 running" and state(world, "new") == ("pending", causes.DISK))
        assert told(world, "new").reason == "needs 100 GiB for its buffer, 2 GiB free"
        pid = agent.keepers["press"].pid
        await world.control.assign(version(READY, number=2, **large), version(READY, pipeline="other"))
        await until(lambda: state(world) == ("running", causes.DISK) and phase(world, "other") == "1 running")
        assert told(world).number == 1 and agent.keepers["press"].pid == pid, "what runs goes on"
        assert told(world).reason == "needs 100 GiB for its buffer, 2 GiB free"
        absurd = version(READY, number=3, more=BUFFER.replace("SIZE", "999999999999999GiB"))
        await world.control.assign(absurd)
        await until(lambda: told(world).generation == 3 and "needs 999999999999999 GiB" in told(world).reason)
        assert agent.keepers["press"].pid == pid


@with_control
async def test_what_had_room_once_starts_again_without_and_what_had_none_when_there_is(world: World) -> None:
    fits, waits = (
        version(READY, more=BUFFER.replace("SIZE", "1GiB")),
        version(READY, pipeline="new", more=BUFFER.replace("SIZE", "1GiB")),
    )
    await world.control.assign(fits)
    async with world.agent():
        await until(lambda: phase(world) == "1 running")
    room, supplies.LOOK_AGAIN_S = reserve.room_bytes, 0.05
    try:
        reserve.room_bytes = lambda path: 1 << 20  # type: ignore[assignment]
        async with world.agent() as agent:
            await world.control.assign(fits, waits)
            await until(lambda: state(world, "new") == ("pending", causes.DISK))
            await until(lambda: agent.status_of("press").phase == "running")
            reserve.room_bytes = room
            await until(lambda: phase(world, "new") == "1 running"), "nobody wakes it but the look itself"
    finally:
        reserve.room_bytes, supplies.LOOK_AGAIN_S = room, 30.0


@with_control
async def test_a_table_over_the_budget_is_refused_with_the_code_disk(world: World) -> None:
    world.control.put_table("assets", b"sensor,line\n" + b"x,1\n" * 600_000)
    await world.control.assign(looking_up(), version(READY, pipeline="sibling"))
    async with world.agent(artifacts_bytes=1 << 20):
        await until(lambda: state(world) == ("pending", causes.DISK) and phase(world, "sibling") == "1 running")
        assert "needs 2.3 MiB for a table, 1 MiB left for tables" in told(world).reason
    async with world.agent():
        await until(lambda: phase(world) == "1 running")
