"""What people do while the faults go on, on site and in the centre: registered like faults, and undone when all heals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from control_plane import fleet
from control_plane.commands import Commands
from control_plane.commands import Writer as Who
from control_plane.notes_commands import NoteCommands
from control_plane.rollout import Pacing, parse_steps
from edge_agent.agent import Agent
from edge_agent.onsite import incidents, labels, pipelines
from pipelines.contract.errors import TidewireError
from pipelines.contract.node_state import Request
from tests.simulation.faults import fault
from tests.simulation.pipeline import PIPELINE, table
from tests.simulation.world import GATE, Control, Node

if TYPE_CHECKING:
    from control_plane.commands import Done
    from control_plane.effects import Contact
    from tests.simulation.world import World

Do = Callable[[Commands, NoteCommands, "Contact"], "Done"]
ANN = Who("ann", "simulation")
BOB: dict[str, Any] = {"by": "bob", "reason": "simulation", "dry_run": False}


async def on_site(world: World, node: Node, what: str, do: Callable[[Agent], Awaitable[object]]) -> None:
    """If somebody can: the node must run, and hold a document that the centre knows."""
    agent = node.agent
    if node.life is None or agent is None or not agent.record.is_agreed:
        return
    world.fault(what, node=node.name)

    async def write() -> None:
        try:
            await do(agent)
        except TidewireError as error:
            world.note("refused on site", write=what, why=str(error))

    def begin() -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(write())

    await asyncio.wait({node.in_life(begin)}, timeout=10)


def note(kind: str, reference: str = PIPELINE, *, force: bool) -> Do:
    """A central note for every node."""
    return lambda _, notes, contact: notes.decide(kind, reference, "all", ANN, contact, force=force)


def put_table(world: World, mark: int) -> Do:
    def put(commands: Commands, _: NoteCommands, contact: Contact) -> Done:
        done = commands.put_artifact("sim_marks", table(mark), [], ANN, contact)
        world.tables[done.result["digest"]] = mark
        return done

    return put


async def centrally(world: World, what: str, do: Do) -> None:
    control = world.control
    if control.life is None or control.plane is None:
        return
    world.fault(what)
    plane = control.plane

    async def write() -> None:
        try:
            done = await control.on_store(do, plane.commands, NoteCommands(plane._store), plane.contact())
        except TidewireError as error:
            world.note("refused centrally", write=what, why=str(error))
        else:
            await control.poke(done.poke)

    await world.attempt(write())


@fault(2)
async def on_site_pause(world: World, rng: random.Random) -> None:
    """Until it is resumed, or for a time that the node counts; the node may be off meanwhile."""
    node, for_s = rng.choice(world.nodes), rng.choice((None, 5.0, 30.0))
    world.were_steered = True
    await on_site(world, node, "on_site_pause", lambda agent: pipelines.pause(agent, PIPELINE, for_s, **BOB))


@fault(1)
async def central_pause(world: World, rng: random.Random) -> None:
    world.were_steered = True
    force = rng.random() < 0.5
    kind = rng.choice(("pause", "pause", "resume"))
    await centrally(world, "central_pause", note(kind, force=force))


@fault(2)
async def on_site_pin(world: World, rng: random.Random) -> None:
    node, for_s = rng.choice(world.nodes), rng.choice((None, 20.0))
    world.were_steered = True
    await on_site(world, node, "on_site_pin", lambda agent: pipelines.pin(agent, PIPELINE, None, for_s, **BOB))


@fault(1)
async def central_pin(world: World, rng: random.Random) -> None:
    number, force = rng.randrange(1, world.versions + 1), rng.random() < 0.5
    if number not in world.retyped | world.crashing:
        world.were_steered = True
        await centrally(world, "central_pin", note("pin", f"{PIPELINE}@{number}", force=force))


@fault(1)
async def on_site_label(world: World, rng: random.Random) -> None:
    """It starts the runner anew."""
    node, value = rng.choice(world.nodes), rng.choice(("4", "5", None))
    await on_site(world, node, "on_site_label", lambda agent: labels.label(agent, {"line": value}, **BOB))


@fault(2)
async def acknowledged_on_both_sides(world: World, rng: random.Random) -> None:
    """An open incident, by the centre and by somebody on site, who may not know of each other."""
    for _ in range(40):
        node = rng.choice(world.nodes)
        if open_ := node.select("SELECT incident FROM incidents WHERE acknowledged = 0 ORDER BY incident"):
            break
        await asyncio.sleep(1)
    else:
        return
    (incident,) = rng.choice(open_)

    async def centrally() -> None:
        def write(db: Any) -> None:
            fleet.add_note(db, fleet.find_node(db, node.id), "acknowledge", incident, "ann", "simulation", "")

        if world.control.life is not None:
            await world.attempt(world.control.with_db(write))

    await asyncio.gather(
        centrally(),
        on_site(world, node, "acknowledged_on_site", lambda agent: incidents.acknowledge(agent, incident, **BOB)),
    )


@fault(2)
async def canary_rollout(world: World, rng: random.Random) -> None:
    """A new version, first on one node; undone in the middle, or not."""
    if world.control.life is None:
        return
    world.versions += 1
    await world.attempt(world.control.register(world.versions))
    pacing = Pacing(parse_steps(["1", "100%"]), soak_us=rng.choice((0, 8_000_000)), gate=GATE)

    def deploy(commands: Commands, _: NoteCommands, contact: Contact) -> Done:
        return commands.deploy(PIPELINE, "*", {}, ANN, contact, pacing)

    await centrally(world, "canary_rollout", deploy)
    if rng.random() < 0.4:
        await asyncio.sleep(rng.uniform(1, 15))
        await centrally(world, "rollout_undone", lambda commands, _, contact: commands.undo(PIPELINE, ANN, contact))


@fault(2)
async def version_that_crashes(world: World, rng: random.Random) -> None:
    """Where a version passed its gate before, the node goes back to it by itself, whatever else happens meanwhile (I12)."""

    def has_passed(node: Node) -> bool:
        now = node.agent.record.document.reported().get(PIPELINE) if node.agent else None
        return now is not None and now.gate == "passed"

    for _ in range(25):
        if all(map(has_passed, world.nodes)) and world.control.life is not None:
            break
        await asyncio.sleep(1)
    else:
        return
    world.fault("version_that_crashes")
    world.versions += 1
    world.crashing.add(world.versions)
    await world.attempt(world.control.apply(world.versions))


@fault(2)
async def new_table(world: World, rng: random.Random) -> None:
    """A lookup table, which the newest version takes a column from; now and then another one, without a new version."""
    for _ in range(rng.randrange(1, 4)):
        is_first = not world.tables
        await centrally(world, "new_table", put_table(world, len(world.tables) + 1))
        if is_first and world.tables:
            world.versions += 1
            await world.attempt(world.control.apply(world.versions))
        await asyncio.sleep(rng.uniform(2, 15))


@fault(3)
async def asked_of_all(world: World, rng: random.Random) -> None:
    """Some time is too short for a node that is away; now and then somebody does not wait for the end."""
    kind, body = rng.choice(
        (
            ("query", {"sql": "SELECT count(*) AS held FROM sim_rows"}),
            ("query", {"sql": "SELECT n FROM no_such_table"}),
            ("logs", {"pipeline": ""}),
            ("tap", {"pipeline": PIPELINE, "where": "n % 2 = 0"}),
        )
    )
    select = f"name={rng.choice(world.nodes).name}" if kind == "tap" else "all"
    request, until_s = Request(kind, body, max_s=10.0, max_rows=20), rng.choice((15.0, 600.0))

    def ask(commands: Commands, _: NoteCommands, contact: Contact) -> Done:
        done = commands.ask(request, select, until_s, ANN, contact)
        world.requests.add(done.result["id"])
        return done

    before = set(world.requests)
    await centrally(world, "asked_of_all", ask)
    await asyncio.sleep(rng.uniform(0, 20))
    for name in world.requests - before if rng.random() < 0.3 else ():
        await centrally(world, "request_cancelled", lambda commands, _, __, name=name: commands.cancel_request(name, ANN))


@fault(1)
async def shelved_on_site(world: World, rng: random.Random) -> None:
    """The trigger is silent for a while: incidents are raised, nothing sounds."""
    node, for_s = rng.choice(world.nodes), rng.choice((5.0, 30.0))
    node.was_shelved = True
    await on_site(world, node, "shelved_on_site", lambda agent: incidents.shelve(agent, f"{PIPELINE}/hot", for_s, **BOB))


@fault(1)
async def comment(world: World, rng: random.Random) -> None:
    """Of both sides, about the same."""
    node, text = rng.choice(world.nodes), "It smells."
    subject = f"{PIPELINE}/{node.name}"
    await asyncio.gather(
        on_site(world, node, "comment_on_site", lambda agent: incidents.comment(agent, PIPELINE, text, **BOB)),
        centrally(world, "comment", lambda _, notes, contact: notes.comment(subject, text, (), ANN, contact)),
    )


@fault(2)
async def second_control_plane(world: World, rng: random.Random) -> None:
    """Two on one store and one lake, each hearing and answering all that is asked; then one dies."""
    if world.replica is not None:
        return
    world.fault("second_control_plane")
    world.replica = Control(world, "second")
    world.replica.start()
    await asyncio.sleep(rng.uniform(10, 30))
    world.replica.crash()
    world.replica = None


async def go_home(world: World) -> None:
    """Undo what keeps pipelines from running as the centre wants: everybody who paused or pinned something takes it back. After
    a restore of the centre's store, do what docs/restores.md says."""
    if world.store_was_restored:
        if world.tables:
            await centrally(world, "new_table", put_table(world, max(world.tables.values())))
        for text in world.texts.values():
            await world.attempt(world.control.register_text(text))
        await world.attempt(world.control.retake())
        await centrally(world, "recover", lambda commands, _, contact: commands.recover(ANN, contact))
    if world.crashing and any(node.was_restored for node in world.nodes):  # what had passed may be gone with the card
        world.versions += 1
        await world.attempt(world.control.apply(world.versions))
    if not world.were_steered:
        return
    for kind in ("resume", "unpin"):
        await centrally(world, f"central_{kind}", note(kind, force=True))
    await asyncio.sleep(20)
    for node in world.nodes:
        await on_site(world, node, "on_site_resume", lambda agent: pipelines.resume(agent, PIPELINE, **BOB))
        await on_site(world, node, "on_site_unpin", lambda agent: pipelines.unpin(agent, PIPELINE, **BOB))
