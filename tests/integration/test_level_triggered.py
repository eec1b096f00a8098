"""What goes wrong elsewhere when the link is bad, with real processes: docs/level-triggered.md lists it all (I7, I8)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prove.cluster import eventually
from tests.integration.restore_rig import NUMBERS, Rig, Site, deploy

IMPATIENT = "request_timeout_s: 1\n"


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.opened(tmp_path_factory.mktemp("level")) as site:
        yield site


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    yield whole_site
    whole_site.run(whole_site.stop_nodes())


def test_i7_a_deploy_while_nobody_knows_that_the_link_is_dead_arrives_and_blocks_no_later_one(site: Site) -> None:
    """A router that lost its table: both ends believe in the connection, and nothing passes."""

    async def work(rig: Rig) -> None:
        deploy(rig)
        await rig.join("hole", IMPATIENT)
        await rig.works("hole")
        rig.link.forget()
        assert rig.client.get("/v1/nodes/hole")["in_contact"] and (await rig.status("hole"))["link"]["up"]
        into_the_hole = put(rig, version(2))
        await eventually("the node to run what was deployed into the hole", lambda: runs(rig, "hole", into_the_hole))
        rig.link.forget()
        put(rig, version(3))
        last = put(rig, version(4))
        await eventually("the node to run the last of those after it", lambda: runs(rig, "hole", last))
        await rig.works("hole")

    site.run(work(site.rig))


def test_i8_i12_lost_is_not_failed_and_a_reboot_while_cut_off_keeps_everything(site: Site) -> None:
    async def work(rig: Rig) -> None:
        deploy(rig)
        await rig.join("cut", IMPATIENT)
        node = rig.node_id("cut")
        rig.write("cut", range(5))
        await rig.arrived(range(5), node)
        await rig.works("cut")
        rig.link.cut()
        for first in (5, 10):  # two power cuts
            rig.write("cut", range(first, first + 5))
            await rig.sealed("cut", first)
            await rig.agents["cut"].kill()
            await rig.start("cut")
            await eventually("the pipeline to run with nobody in reach", lambda: is_running(rig, "cut"))
        await an_hour_passes(rig)
        seen = await rig.node("cut")
        assert seen["contact"].startswith("unknown since ") and seen["contact"].endswith("assumed running")
        assert [p["phase"] for p in seen["pipelines"]] == ["running"] and seen["converged"], "not failed, not lost"
        rig.link.heal()
        await rig.arrived(range(15), node)
        await rig.works("cut")
        assert (await rig.node("cut"))["in_contact"]

    site.run(work(site.rig))


def test_i12_an_agent_boots_while_the_control_plane_is_down_and_finds_it_later(site: Site) -> None:
    async def work(rig: Rig) -> None:
        deploy(rig)
        await rig.join("first", IMPATIENT)
        node = rig.node_id("first")
        await rig.works("first")
        assert rig.server is not None
        await rig.stop("first")
        await rig.server.kill()
        rig.write("first", range(5))
        await rig.start("first")
        await rig.sealed("first", 5)
        assert await is_running(rig, "first")
        await rig.start_server()
        await rig.arrived(range(5), node)
        await rig.works("first")

    site.run(work(site.rig))


def test_a_pipeline_that_was_removed_while_a_node_was_away_never_comes_back(site: Site) -> None:
    """Removal is absence from the manifest: no tombstone that could expire, however long the node was away."""

    async def work(rig: Rig) -> None:
        deploy(rig)
        await rig.join("away", IMPATIENT)
        node = rig.node_id("away")
        await rig.works("away")
        rig.link.cut()
        rig.write("away", range(5))
        await rig.sealed("away", 5)
        await rig.agents["away"].kill()
        rig.client.post("/v1/deployments", {"reference": "numbers", "select": "all", "remove": True})
        for n in range(3):  # history goes on meanwhile
            text = version(10 + n).replace("pipeline: numbers", "pipeline: others").replace("table: numbers", "table: others")
            rig.client.post("/v1/apply", {"files": [{"name": "others.yaml", "text": text}]})
            for remove in (False, True):
                rig.client.post("/v1/deployments", {"reference": "others", "select": "all", "remove": remove})
        assert rig.server is not None
        await rig.server.stop()
        await rig.start_server()
        await rig.start("away")
        await eventually("it to run on while it cannot know", lambda: is_running(rig, "away"))
        rig.link.heal()
        await eventually("the pipeline to go", lambda: runs(rig, "away", None))
        await rig.arrived(range(5), node)  # its backlog drains
        for _ in range(2):
            await rig.stop("away")
            await rig.start("away")
            await rig.works("away")
            assert [p["pipeline"] for p in (await rig.status("away"))["pipelines"]] == []

    site.run(work(site.rig))


def test_every_test_that_the_page_names_is_there() -> None:
    """The page says which test covers which failure."""
    root = Path(__file__).parents[2]
    for line in (root / "docs" / "level-triggered.md").read_text().splitlines():
        for link, name in ((part.split("]")[1], part.split("]")[0]) for part in line.split("[`")[1:]):
            file = root / "docs" / link[link.index("(") + 1 : link.index(")")]
            assert f"def {name.strip('`')}(" in file.read_text(), (name, file)


def version(number: int) -> str:
    return NUMBERS.replace("default: 1000}", f"default: {1000 + number}}}")


def put(rig: Rig, text: str = NUMBERS) -> int:
    """Have all nodes run it; its number."""
    number = rig.client.post("/v1/apply", {"files": [{"name": "numbers.yaml", "text": text}]})["versions"][0]["number"]
    rig.client.post("/v1/deployments", {"reference": "numbers", "select": "all"})
    return int(number)


async def an_hour_passes(rig: Rig) -> None:
    """For the control plane, since it last heard of any node."""
    assert rig.server is not None
    await rig.server.stop()
    with closing(sqlite3.connect(rig.home / "control" / "control.db")) as db, db:
        db.execute("UPDATE nodes SET last_seen = last_seen - 3600000000")
    await rig.start_server()


async def runs(rig: Rig, name: str, number: int | None) -> bool:
    reported = (await rig.node(name)).get("pipelines", [])
    return [p["running"] for p in reported if p["pipeline"] == "numbers"] == ([] if number is None else [number])


async def is_running(rig: Rig, name: str) -> bool:
    return [p["phase"] for p in (await rig.status(name)).get("pipelines", [])] == ["running"]
