"""A node that is removed: cut off in seconds, refused in the open, goes on by itself; it may come back as a new one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import Identity
from edge_agent.join import join
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.token import JoinToken
from prove.cluster import children, eventually, send
from tests.integration.restore_rig import Rig, Site, deploy
from tests.integration.test_restores_centre import back_up, put_back


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.opened(tmp_path_factory.mktemp("removal")) as site:
        deploy(site.rig)
        yield site


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    yield whole_site
    whole_site.run(whole_site.stop_nodes())


def test_a_removed_node_is_cut_off_told_so_and_goes_on_by_itself(site: Site, tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("stays")
        await rig.join("goes")
        node = rig.node_id("goes")
        rig.write("goes", range(5))
        await rig.arrived(range(5), node)
        await rig.works("goes", "stays")
        stays = (await rig.status("stays"))["link"]["since"]
        plan = await rig.tidewire("nodes", "remove", "goes", "--dry-run")
        assert "is let in no more" in plan and plan.endswith("dry run: nothing changed\n")
        assert (await rig.node("goes"))["id"] == node
        await rig.tidewire("nodes", "remove", "goes", "--reason", "stolen")
        await eventually("the link to be cut and the node told", lambda: is_told(rig, "goes"), 15)
        shown = await rig.agent("goes", "status")
        assert "removed from the control plane" in shown and '"stolen"' in shown and "join --again" in shown
        rig.write("goes", range(5, 10))
        await rig.sealed("goes", 5)
        assert [p["phase"] for p in (await rig.status("goes"))["pipelines"]] == ["running"], "I12"
        for _ in range(2):  # it asks again after a restart
            await rig.stop("goes")
            await rig.start("goes")
            await eventually("the node to know still", lambda: is_told(rig, "goes"), 15)
        events = [row for row in rig.client.get("/v1/audit", security="1")["audit"] if row["subject"] == node]
        assert len(events) == 1 and "tried to come back" in events[0]["detail"], "visible, and no storm"
        assert "tried to come back" in await rig.tidewire("changes", "--security")
        assert set(nodes(rig, "stays", "goes").values()) == {"stays"}
        assert f"goes ({node})" in await rig.tidewire("nodes", "--all")
        with pytest.raises(TidewireError, match="was removed"):
            await rig.tidewire("nodes", "show", "goes")
        await rig.arrived(range(5), node)  # what it had sent stays
        assert (await rig.status("stays"))["link"]["since"] == stays, "nobody else noticed"

    site.run(work(site.rig))


def test_a_node_removed_while_it_was_away_stays_out_over_restarts_of_both(site: Site, tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("away")
        node = rig.node_id("away")
        await rig.works("away")
        rig.link.cut()
        rig.write("away", range(5))
        await rig.sealed("away", 5)
        await rig.tidewire("nodes", "remove", "away")
        assert rig.server is not None
        broker = children(rig.server.pid, "nats-server")[0]
        send(broker)
        await eventually("another broker", lambda: children(rig.server.pid, "nats-server") not in ([], [broker]))
        rig.link.heal()
        await eventually("the node to be told", lambda: is_told(rig, "away"), 20)
        await rig.server.kill()
        await rig.start_server()
        await rig.stop("away")
        await rig.start("away")
        await eventually("the node to be told by the next control plane", lambda: is_told(rig, "away"), 20)
        assert rig.numbers(node) == {} and nodes(rig, "away") == {}

    site.run(work(site.rig))


def test_a_removed_node_joins_again_under_its_name_and_its_old_rows_can_be_had(site: Site, tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("back")
        old = rig.node_id("back")
        rig.write("back", range(5))
        await rig.arrived(range(5), old)
        await rig.works("back")
        rig.link.cut()
        rig.write("back", range(5, 12))
        await rig.sealed("back", 7)
        await rig.tidewire("nodes", "remove", "back")
        rig.link.heal()
        await eventually("the node to be told", lambda: is_told(rig, "back"), 20)
        token = (await rig.tidewire("join-token", "create")).strip().splitlines()[-1]
        assert "Nothing to do" in await rig.agent("back", "join", token, "--name", "back")
        with pytest.raises(TidewireError, match="another agent is running"):
            await rig.agent("back", "join", token, "--name", "back", "--again")
        await rig.stop("back")
        said = await rig.agent("back", "join", token, "--name", "back", "--again")
        new = rig.node_id("back")
        assert new != old and f"This node is now back ({new})" in said, "the name was free"
        assert "never sent: 7 rows of numbers/rows" in said
        place = rig.home / "back" / "agent" / "former" / old
        words = ("--stream", "numbers/rows", "--store", str(place / "agent.db"))
        await rig.agent("back", "buffer", "export", str(tmp_path / "out.csv"), *words)
        assert (tmp_path / "out.csv").read_text().count("\n") == 8
        await rig.start("back")
        await rig.arrived(range(12), new)
        await rig.works("back")
        assert rig.numbers(old) == dict.fromkeys(range(5), 1), "rows of the former identity stay under its id"
        assert list(nodes(rig, "back")) == [new], "no ghost"
        assert [n["id"] for n in rig.client.get("/v1/nodes", all="1")["removed"] if n["name"] == "back"] == [old]

    site.run(work(site.rig))


def test_a_node_that_joined_after_the_backup_is_told_that_nobody_knows_it(site: Site, tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        assert rig.server is not None
        await rig.server.stop()
        back_up(rig, tmp_path / "backup")
        await rig.start_server()
        await rig.join("younger", "request_timeout_s: 1\n")
        old = rig.node_id("younger")
        rig.write("younger", range(5))
        await rig.arrived(range(5), old)
        await rig.works("younger")
        await rig.server.stop()
        put_back(rig, tmp_path / "backup")
        await rig.start_server()

        async def is_told_so() -> bool:
            return bool((await rig.status("younger")).get("link", {}).get("unknown"))

        await eventually("the node to be told", is_told_so)
        said = await rig.agent("younger", "status")
        assert "does not know this node" in said and "join --again" in said
        assert [p["phase"] for p in (await rig.status("younger"))["pipelines"]] == ["running"], "I12"
        assert old in await rig.tidewire("changes", "--security")
        await rig.stop("younger")
        token = (await rig.tidewire("join-token", "create")).strip().splitlines()[-1]
        await rig.agent("younger", "join", token, "--again", "--name", "younger")
        await rig.start("younger")
        await rig.works("younger")
        assert nodes(rig, "younger") == {rig.node_id("younger"): "younger"}

    site.run(work(site.rig))


def test_a_key_that_was_removed_never_joins_again(site: Site, tmp_path: Path) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("ghost")
        seed = json.loads((rig.home / "ghost" / "agent" / "identity.json").read_text())["seed"]
        await rig.tidewire("nodes", "remove", "ghost")
        elsewhere = rig.home / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "joining.key").write_text(seed)
        token = JoinToken.decode(rig.client.post("/v1/join-tokens", {})["token"])
        with pytest.raises(Refused, match=r"this key is that of ghost .*removed"):
            await join(token, elsewhere, "ghost")
        assert nodes(rig, "ghost") == {}
        (elsewhere / "joining.key").unlink()
        assert (await join(token, elsewhere, "ghost"))[0].name == "ghost", "the token was not used up"

    site.run(work(site.rig))


def test_setting_an_identity_aside_goes_on_after_a_crash(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(rig: Rig) -> None:
        await rig.join("torn")
        old = rig.node_id("torn")
        await rig.works("torn")
        rig.link.cut()
        rig.write("torn", range(5))
        await rig.sealed("torn", 5)
        await rig.agents["torn"].kill()
        rig.link.heal()
        data_dir = rig.home / "torn" / "agent"
        token = JoinToken.decode(rig.client.post("/v1/join-tokens", {})["token"])

        def dies(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Identity, "save", lambda self, to: dies() if to == data_dir else None)
            await join(token, data_dir, "torn", again=True)
        assert rig.node_id("torn") == old
        identity, is_new = await join(token, data_dir, "torn", again=True)
        assert is_new and identity.node != old
        with closing(sqlite3.connect(data_dir / "former" / old / "agent.db")) as db:
            assert db.execute("SELECT count(*) FROM outbox").fetchone()[0] > 0, "a killed agent's journal came along"
        assert json.loads((data_dir / "former" / old / "identity.json").read_text())["node"] == old
        assert sorted(nodes(rig, "torn").values()) == ["torn", "torn-2"], "asked twice with one key, it is one node"

    site.run(work(site.rig))


async def is_told(rig: Rig, name: str) -> bool:
    link = (await rig.status(name)).get("link", {})
    return bool(link.get("removed")) and not link["up"]


def nodes(rig: Rig, *names: str) -> dict[str, str]:
    """Those that the centre knows, of the names and those that begin with one: id -> name."""
    found = rig.client.get("/v1/nodes")["nodes"]
    return {n["id"]: n["name"] for n in found if n["name"].startswith(names)}
