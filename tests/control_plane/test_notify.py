"""Who is called: each thing once, over restarts and outages, never a flood, never a secret told."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fake_node import FakeNode, incident_rows
from receiver import Receiver, receiving
from server_process import ServerProcess, free_port, until

from control_plane import incident_views, notify, notify_store, silence_store, store
from control_plane.commands import Writer
from control_plane.effects import Contact
from control_plane.incident_commands import IncidentCommands
from control_plane.notify import Notifier
from control_plane.store import Store
from control_plane.times import iso, parse_iso
from pipelines.contract.errors import Refused, TidewireError
from pipelines.contract.node_state import Reported

S = 1_000_000
WHO = Writer("ana", "duty")
_numbers = itertools.count()


class Plane:
    """A control plane without nodes: a real store, a clock that tests set, rows as if from the lake."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.listening = Store(f"sqlite:///{folder / 'control.db'}"), True
        self.now, self.seen, self.rows, self.version = 1_800_000_000 * S, dict[str, int](), list[dict[str, Any]](), 0
        self.monotonic_s = 1000.0
        self.notifier = Notifier(self, folder)
        monkeypatch.setattr(store, "now_us", lambda: self.now)
        monkeypatch.setattr(notify.time, "monotonic", lambda: self.monotonic_s)
        monkeypatch.setattr(notify, "_lake_version", lambda _: self.version)
        monkeypatch.setattr(notify, "_new_rows", lambda _, since: [r for r in self.rows if parse_iso(r["_received_at"]) >= since])

    def restart(self) -> None:
        self.notifier = Notifier(self, Path("/nonexistent"))

    def contact(self) -> Contact:
        return Contact(dict(self.seen), self.now)

    def is_listening(self) -> bool:
        return self.listening

    async def with_db(self, do: Callable[..., Any], *args: Any) -> Any:
        with self.store.write() as db:
            return do(db, *args)

    async def in_background(self, do: Callable[..., Any], *args: Any) -> Any:
        return do(*args)

    def add(self, receiver: Receiver, name: str = "duty", **more: Any) -> None:
        words = {"name": name, "webhook": f"http://127.0.0.1:{receiver.port}/s3cret?token=s3cret", "select": "all"}
        words |= {"severity": ["critical", "warning"], "on": ["raised", "acknowledged", "cleared"], "silent_after_s": 600, **more}
        with self.store.write() as db:
            notify_store.add(db, words, WHO)

    def node(self, name: str, site: str = "lyon", ran: bool = True) -> None:
        values = dict.fromkeys((c.name for c in store.nodes.columns if not c.nullable), "")
        numbers = {c.name: 0 for c in store.nodes.columns if isinstance(c.type, (sa.Integer, sa.BigInteger))}
        blobs = {c.name: None if c.nullable else b"" for c in store.nodes.columns if isinstance(c.type, sa.LargeBinary)}
        labels = {"labels": f'{{"site": "{site}"}}', "local": "{}", "facts": "{}"}
        with self.store.write() as db:
            db.execute(
                store.nodes.insert().values({**values, **numbers, **blobs, **labels, "id": name, "name": name, "public": name})
            )
            if ran:
                db.execute(
                    store.reports.insert().values(
                        node=name, name="pipeline/p", body=Reported("d", 1, "running").to_json(), received_at=0
                    )
                )
        self.seen[name] = self.now

    def happens(self, node: str, incident: str, what: str, ago_s: float = 0, **more: Any) -> None:
        place = {"_node": node, "_run": "r", "_stream": "_incidents", "_seq": next(_numbers), "_row": 0}
        base = {
            "incident": incident,
            "pipeline": "p",
            "trigger": "hot",
            "group": "{}",
            "transition": what,
            "severity": "critical",
        }
        times = {"at": iso(self.now - round(ago_s * S)), "_received_at": iso(self.now)}
        self.rows.append(
            {**place, **base, "state": "active", "message": "hot", "by": "", "reason": "", "flags": "", **times, **more}
        )
        self.version += 1

    async def go_on(self, seconds: float, step_s: float = 5) -> None:
        for _ in range(max(round(seconds / step_s), 1)):
            self.now += round(step_s * S)
            self.monotonic_s += step_s
            await self.notifier.tick()

    def silences(self) -> dict[str, silence_store.Silence]:
        with self.store.write() as db:
            return silence_store.open_ones(db)


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    made = Plane(tmp_path, monkeypatch)
    yield made
    made.store.close()


def test_each_transition_is_told_once_whatever_restarts(plane: Plane) -> None:
    async def story(receiver: Receiver) -> None:
        plane.node("pi")
        plane.happens("pi", "old", "raised")
        await plane.go_on(10)
        plane.add(receiver)
        await plane.go_on(10)
        plane.happens("pi", "i1", "raised")
        plane.happens("pi", "i2", "raised", severity="info")
        plane.happens("pi", "i3", "raised", flags="shelved")
        plane.happens("pi", "i3", "cleared")
        for _ in range(3):
            await plane.go_on(10)
            plane.restart()
        plane.happens("pi", "i1", "reminded")
        plane.happens("pi", "i1", "acknowledged", by="eve")
        plane.happens("pi", "i4", "acknowledged", by="eve")
        await plane.go_on(10)
        assert [(b["incident"], b["transition"], b["by"]) for b in receiver.bodies] == [
            ("i1", "raised", ""), ("i1", "acknowledged", "eve"),
        ]  # fmt: skip
        assert len({key for key, _ in receiver.calls}) == 2

    with receiving() as receiver:
        asyncio.run(story(receiver))


def test_a_target_that_is_down_is_tried_again_over_restarts_and_gets_many_as_one(plane: Plane) -> None:
    async def story() -> None:
        port = free_port()
        with receiving(port) as gone:
            plane.add(gone)
        plane.node("pi")
        plane.happens("pi", "first", "raised")
        await plane.go_on(30)
        for n in range(30):
            plane.happens("pi", f"i{n}", "raised")
            await plane.go_on(5)
        plane.restart()
        plane.listening = False  # the node says nothing meanwhile; that is another test
        with receiving(port) as receiver:
            receiver.statuses = [503]
            await plane.go_on(700, step_s=10)
            bodies = receiver.bodies
            assert receiver.calls[0] == receiver.calls[1], "the same key for the same thing"
            assert (bodies[0]["incident"], bodies[2]["digest"], bodies[2]["count"]) == ("first", True, 30)
            assert [i["incident"] for i in bodies[2]["incidents"]] == [f"i{n}" for n in range(30)]
            await plane.go_on(60)
            assert len(receiver.calls) == 3

    asyncio.run(story())


def test_nobody_is_called_for_what_nobody_took_in_half_a_day(plane: Plane) -> None:
    async def story() -> None:
        port = free_port()
        with receiving(port) as gone:
            plane.add(gone)
        plane.node("pi")
        plane.happens("pi", "first", "raised")
        await plane.go_on(13 * 3600, step_s=600)
        with receiving(port) as receiver:
            await plane.go_on(600)
            assert receiver.calls == []
        with plane.store.write() as db:
            assert notify_store.listed(db)[0]["last"].startswith("expired")

    asyncio.run(story())


def test_a_node_that_returns_after_a_month_brings_one_digest(plane: Plane) -> None:
    async def story(receiver: Receiver) -> None:
        plane.add(receiver)
        plane.node("pi")
        for n in range(450):
            plane.happens("pi", f"i{n}", "raised", ago_s=86_400 * 30 - n * 60)
            plane.happens("pi", f"i{n}", "cleared", ago_s=86_400 * 30 - n * 60 - 30, state="closed")
            if n % 50 == 0:
                await plane.go_on(5)
        plane.happens("pi", "now", "raised")
        await plane.go_on(60)
        singles = [b["incident"] for b in receiver.bodies if "digest" not in b]
        [digest] = [b for b in receiver.bodies if "digest" in b]
        assert singles == ["now"], "what happens now is told now"
        assert digest["count"] == 900 and len(digest["incidents"]) == 450
        assert [t["transition"] for t in digest["incidents"][0]["transitions"]] == ["raised", "cleared"]

    with receiving() as receiver:
        asyncio.run(story(receiver))


def test_what_was_acknowledged_on_site_before_we_learned_of_it_pages_nobody(plane: Plane) -> None:
    async def story(receiver: Receiver) -> None:
        plane.add(receiver)
        plane.node("pi")
        plane.happens("pi", "i1", "raised", ago_s=1800)
        plane.happens("pi", "i1", "acknowledged", ago_s=1700, by="eve")
        plane.happens("pi", "still there", "raised", ago_s=7200)
        await plane.go_on(60)
        assert [(b.get("digest"), b.get("count")) for b in receiver.bodies] == [(True, 3)]

    with receiving() as receiver:
        asyncio.run(story(receiver))


def test_nodes_that_fall_silent_together_are_one_message_per_site_and_one_when_they_are_back(plane: Plane) -> None:
    async def story(receiver: Receiver) -> None:
        plane.add(receiver)
        for n in range(40):
            plane.node(f"l{n}", "lyon")
        for n in range(3):
            plane.node(f"o{n}", "oslo")
        plane.node("idle", ran=False)
        for _ in range(120):
            plane.seen |= {f"o{n}": plane.now for n in range(1, 3)}
            await plane.go_on(5)
        assert not receiver.calls
        for _ in range(20):
            plane.seen |= {f"o{n}": plane.now for n in range(1, 3)}
            await plane.go_on(5)
        assert sorted(plane.silences()) == sorted(["o0", *(f"l{n}" for n in range(40))])
        told = {b["sites"][0]: b for b in receiver.bodies}
        assert {site: b["count"] for site, b in told.items()} == {"lyon": 40, "oslo": 1} and len(receiver.calls) == 2
        assert told["lyon"]["message"].startswith("40 nodes of site lyon silent: ")
        plane.restart()
        await plane.go_on(60)
        assert len(receiver.calls) == 2 and len(plane.silences()) == 41
        plane.seen = dict.fromkeys(plane.seen, plane.now)
        await plane.go_on(60)
        assert not plane.silences()
        back = [b for b in receiver.bodies[2:] if b["transition"] == "cleared"]
        assert sorted(b["count"] for b in back) == [1, 40]
        assert all("back after" in node["message"] for b in back for node in b["nodes"])

    with receiving() as receiver:
        asyncio.run(story(receiver))


def test_a_hundred_sites_at_once_are_one_message(plane: Plane) -> None:
    async def story(receiver: Receiver) -> None:
        plane.add(receiver)
        for n in range(100):
            plane.node(f"n{n}", f"site{n}")
        await plane.go_on(700)
        assert [b["count"] for b in receiver.bodies] == [100]

    with receiving() as receiver:
        asyncio.run(story(receiver))


def test_the_control_planes_own_silence_is_not_the_nodes(plane: Plane) -> None:
    async def story(receiver: Receiver) -> None:
        plane.add(receiver)
        plane.node("pi")
        await plane.go_on(500)
        plane.listening = False
        await plane.go_on(3600)
        plane.listening = True
        plane.now, plane.monotonic_s = plane.now + 8 * 3600 * S, plane.monotonic_s + 8 * 3600
        await plane.go_on(60)
        assert not plane.silences() and not receiver.calls
        await plane.go_on(100)
        assert list(plane.silences()) == ["pi"]

    with receiving() as receiver:
        asyncio.run(story(receiver))


def test_bad_words_are_refused_and_change_nothing(plane: Plane) -> None:
    with receiving() as receiver:
        plane.add(receiver)
        for more, said in (
            ({"on": ["maybe"]}, "'maybe' is no on"),
            ({}, "there is one of this name"),
            ({"select": "a=="}, "no requirement"),
        ):
            with pytest.raises(TidewireError, match=said):
                plane.add(receiver, **({"name": "other"} | more if more else {}))
        with plane.store.write() as db:
            assert len(notify_store.targets(db)) == 1
            with pytest.raises(Refused, match="no target 'nobody'"):
                notify_store.remove(db, "nobody", WHO)


def test_from_a_node_to_a_receiver_and_no_secret_is_told(server: ServerProcess) -> None:
    async def story(receiver: Receiver) -> None:
        url = f"http://127.0.0.1:{receiver.port}/hook/s3cret?key=s3cret"
        add = server.cli("notify", "add", "duty", "--webhook", url, "--select", "site=lyon", "--reason", "on call")
        assert add.returncode == 0 and "s3cret" not in add.stdout and "critical,warning incidents of site=lyon" in add.stdout
        assert server.cli("notify", "test", "duty").returncode == 0
        assert receiver.bodies[0]["test"] is True
        node = await FakeNode.join(server.token("--label", "site=lyon"), "pi")
        stream = node.incidents()
        await node.upload(stream.seal(incident_rows("abc1", "raised", at_us=time.time_ns() // 1000, state="active")))
        await until(lambda: len(receiver.calls) == 2)
        assert {k: receiver.bodies[1][k] for k in ("incident", "node", "transition")} == {
            "incident": "abc1", "node": "pi", "transition": "raised",
        }  # fmt: skip
        server.stop()
        server.start()
        await until(lambda: server.json("notify", "list")["targets"][0]["last"] == "done: HTTP 200")
        listed = server.cli("notify", "list").stdout
        assert "s3cret" not in listed + server.said() + str(server.client.get("/v1/audit"))
        assert len(receiver.calls) == 2
        removed = server.cli("notify", "remove", "duty")
        assert removed.returncode == 0 and server.json("notify", "list") == {"targets": []}
        await node.close()

    with receiving() as receiver:
        asyncio.run(story(receiver))


def test_a_silence_is_an_incident_like_others_and_says_what_happened_meanwhile(plane: Plane) -> None:
    commands = IncidentCommands(plane.store)

    def shown() -> dict[str, Any]:
        with plane.store.write() as db:
            [row] = [r for r in incident_views.all_incidents(db, plane.rows, plane.contact()) if r["origin"] == "control"]
        return row

    async def story() -> None:
        plane.node("pi")
        await plane.go_on(700)
        assert (shown()["state"], shown()["trigger"], shown()["node"]) == ("active, unacknowledged", "node silent", "pi")
        done = commands.by_hand("acknowledge", [shown()["id"][:6]], None, [], WHO, plane.contact())
        assert done.result["changed"] and done.poke == [], "there is no node to tell"
        assert not commands.by_hand("acknowledge", [shown()["id"]], None, [], WHO, plane.contact()).result["changed"]
        assert (shown()["acked_by"], shown()["acknowledged"]) == ("ana", True)
        plane.happens("pi", "i1", "raised", ago_s=60)
        plane.rows = [{**row, "node": row["_node"], "received_at": row["_received_at"]} for row in plane.rows]
        plane.seen["pi"] = plane.now
        await plane.go_on(30)
        assert shown()["state"] == "cleared, acknowledged"
        assert "back after" in shown()["message"] and shown()["message"].endswith("; 1 incident raised there meanwhile")

    asyncio.run(story())
