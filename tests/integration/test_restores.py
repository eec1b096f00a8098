"""Cards restored, cloned, moved, imaged, replaced: what an operator does to nodes at 3 am (design, sections 7 and 14)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from edge_agent.join import join
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.token import JoinToken
from tests.integration.restore_rig import RHYTHM, Rig, Site, deploy

TWICE = "the card was restored or cloned"


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.opened(tmp_path_factory.mktemp("restores")) as site:
        deploy(site.rig)
        yield site


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    yield whole_site
    whole_site.run(whole_site.stop_nodes())


def test_i2_a_restored_card_doubles_nothing_of_what_arrived_since_and_loses_nothing(site: Site) -> None:
    """The image has segments that the lake got meanwhile; the card goes on with other rows."""

    async def work(rig: Rig) -> None:
        await rig.join("restored")
        node = rig.node_id("restored")
        rig.write("restored", range(10))
        await rig.arrived(range(10), node)
        await rig.works("restored")
        rig.link.cut()
        rig.write("restored", range(10, 20))
        await rig.sealed("restored", 10)
        await rig.stop("restored")
        rig.image("restored", "image")
        rig.link.heal()
        await rig.start("restored")
        rig.write("restored", range(20, 25))
        await rig.arrived(range(25), node)
        await rig.stop("restored")
        rig.put_back("image", "restored")
        rig.write("restored", range(100, 105))
        await rig.start("restored")
        await rig.arrived([*range(25), *range(100, 105)], node)
        await rig.told("restored", "went on under new runs: the lake")
        await rig.works("restored")
        rig.write("restored", range(105, 110))
        await rig.arrived([*range(25), *range(100, 110)], node)
        status, text = await rig.audit("--node", "restored")
        assert status == 1 and TWICE in text

    site.run(work(site.rig))


def test_i2_a_restored_card_that_goes_on_offline_numbers_nothing_twice(site: Site) -> None:
    """The image has nothing that waits; what the card seals before it is in contact takes numbers that the lake has given."""

    async def work(rig: Rig) -> None:
        await rig.join("older")
        node = rig.node_id("older")
        rig.write("older", range(10))
        await rig.arrived(range(10), node)
        await rig.works("older")
        await rig.stop("older")
        rig.image("older", "older-image")
        await rig.start("older")
        await rig.agent("older", "set", "numbers", "most=900", "--reason", "lost with the card")
        rig.write("older", range(10, 15))
        await rig.arrived(range(15), node)
        await rig.works("older")
        await rig.stop("older")
        rig.link.cut()
        rig.put_back("older-image", "older")
        await rig.start("older")
        rig.write("older", range(100, 105))
        await rig.sealed("older", 5)
        await rig.agent("older", "set", "numbers", "least=-1", "--reason", "on site, with the old card")
        rig.link.heal()
        await rig.arrived([*range(15), *range(100, 105)], node)
        await rig.told("older", "went on under new runs: the lake")
        await rig.works("older")
        why = await rig.tidewire("why", "older", "numbers")
        assert "lost with the card" in why and "on site, with the old card" in why, "both notes, under one number before"
        rig.write("older", range(105, 110))
        await rig.arrived([*range(15), *range(100, 110)], node)
        status, text = await rig.audit("--node", "older")
        assert status == 1 and TWICE in text

    site.run(work(site.rig))


def test_i2_two_cards_at_once_as_one_node_lose_and_double_nothing(site: Site) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("twin")
        node = rig.node_id("twin")
        rig.write("twin", range(10))
        await rig.arrived(range(10), node)
        await rig.works("twin")
        await rig.stop("twin")
        rig.link.cut()
        twins = ("twin-1", "twin-2")
        for i, name in enumerate(twins, 1):
            rig.clone("twin", name)
            rig.write(name, range(i * 100, i * 100 + 10))
            await rig.start(name)
        for name in twins:
            await rig.sealed(name, 10)
            await rig.agent(name, "set", "numbers", "least=-1", "--reason", f"on {name}")
        rig.link.heal()
        rows = [*range(10), *range(100, 110), *range(200, 210)]
        await rig.arrived(rows, node)
        await rig.told("twin", "went on under new runs: the lake")
        for i, name in enumerate(twins, 1):
            rig.write(name, range(i * 100 + 10, i * 100 + 15))
        await rig.arrived([*rows, *range(110, 115), *range(210, 215)], node)
        await rig.works(*twins)
        notes = (await rig.node("twin"))["notes"]
        assert sorted(note["reason"] for note in notes) == ["on twin-1", "on twin-2"], "both, under one number before"
        status, text = await rig.audit("--node", "twin")
        assert status == 1 and TWICE in text

    site.run(work(site.rig))


def test_i2_an_image_of_a_joined_node_in_three_machines_mints_runs_before_the_first_row(site: Site) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("golden")
        node = rig.node_id("golden")
        rig.write("golden", range(5))
        await rig.arrived(range(5), node)
        await rig.works("golden")
        (first,) = rig.runs(node)
        await rig.stop("golden")
        rig.edit("golden", "UPDATE meta SET value = '[\"of the machine that made the image\"]' WHERE key = 'hardware'")
        names = ("golden-1", "golden-2", "golden-3")
        for i, name in enumerate(names, 1):
            rig.clone("golden", name)
            rig.write(name, range(i * 100, i * 100 + 5))
            await rig.start(name)
        rows = [*range(5), *range(100, 105), *range(200, 205), *range(300, 305)]
        await rig.arrived(rows, node)
        runs = rig.runs(node)
        assert runs.pop(first) == set(range(5))
        assert sorted(map(min, runs.values())) == [100, 200, 300], "a run for each machine"
        await rig.told("golden", "this store was on other hardware before")
        rig.write("golden-2", range(205, 210))
        await rig.arrived([*rows, *range(205, 210)], node)

    site.run(work(site.rig))


def test_fifty_cards_of_an_image_that_has_not_joined_are_fifty_nodes(site: Site) -> None:
    async def work(rig: Rig) -> None:
        words = await rig.tidewire("join-token", "create", "--uses", "50", "--label", "site=hall-7")
        token = JoinToken.decode(words.strip().splitlines()[-1])
        joined = await asyncio.gather(*(join(token, rig.home / f"hall-{i}", "pi") for i in range(50)))
        assert len({identity.node for identity, is_new in joined if is_new}) == 50
        assert {identity.name for identity, _ in joined} == {"pi", *(f"pi-{n}" for n in range(2, 51))}
        with pytest.raises(Refused, match="used up"):
            await join(token, rig.home / "hall-50", "pi")

    site.run(work(site.rig))


def test_a_card_that_is_replaced_keeps_the_name_and_the_old_one_may_send_what_it_has(site: Site) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("line-4")
        old = rig.node_id("line-4")
        rig.client.post("/v1/nodes/line-4/labels", {"labels": {"site": "lyon"}})
        rig.write("line-4", range(5))
        await rig.arrived(range(5), old)
        await rig.works("line-4")
        rig.link.cut()
        rig.write("line-4", range(5, 10))
        await rig.sealed("line-4", 5)
        await rig.stop("line-4")
        rig.link.heal()
        plan = await rig.tidewire("nodes", "replace", "line-4", "--dry-run")
        assert plan.endswith("dry run: nothing changed\n")
        words = await rig.tidewire("nodes", "replace", "line-4", "--reason", "the card is broken")
        await join(JoinToken.decode(words.strip().splitlines()[-1]), rig.home / "card" / "agent", "whatever")
        (rig.home / "card" / "agent" / "agent.yaml").write_text(RHYTHM)
        new = rig.node_id("card")
        shown = await rig.node("line-4")
        assert (shown["id"], shown["name"], shown["labels"]) == (new, "line-4", {"site": "lyon"})
        assert {"nodes replace", "join"} <= {row["action"] for row in shown["audit"]}
        rig.run_agent("card")
        rig.write("card", range(100, 105))
        await rig.start("card")
        await rig.arrived(range(100, 105), new)
        await rig.start("line-4")  # the old card is found to work after all
        await rig.arrived(range(10), old)
        await rig.works("card", "line-4")
        gone = await rig.node("line-4.old")
        assert (gone["id"], gone["replaced_by"], gone["pipelines"]) == (old, new, [])
        why = await rig.tidewire("why", "line-4.old")
        assert f"another card has its name now ({new})" in why
        with pytest.raises(TidewireError, match="was replaced already"):
            await rig.tidewire("nodes", "replace", "line-4.old")
        for name, rows_of in (("line-4", 5), ("line-4.old", 10)):
            status, text = await rig.audit("--node", name)
            assert status == 0 and f"{rows_of} rows in 1 tables, each once" in text

    site.run(work(site.rig))


def test_a_lost_store_is_a_new_lineage_and_its_files_are_read_again(site: Site) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("wiped")
        node = rig.node_id("wiped")
        rig.write("wiped", range(10))
        await rig.arrived(range(10), node)
        await rig.works("wiped")
        await rig.stop("wiped")
        for file in (rig.home / "wiped" / "agent").glob("agent.db*"):
            file.unlink()
        await rig.start("wiped")
        await rig.arrived([*range(10), *range(10)], node)
        assert list(rig.runs(node).values()) == [set(range(10))] * 2, "each run once"
        rig.write("wiped", range(10, 15))
        await rig.arrived([*range(10), *range(15)], node)
        await rig.works("wiped")
        status, text = await rig.audit("--node", "wiped")
        assert status == 0 and "ledgers that began anew" in text

    site.run(work(site.rig))
