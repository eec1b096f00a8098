"""Incidents at the centre: which are listed, what is written for nodes that are away, the figures."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fake_node import FakeNode, incident_rows
from hypothesis import given
from hypothesis import strategies as st
from server_process import ServerProcess, until

from control_plane.cli.incidents import since_us
from control_plane.incident_stats import stats
from control_plane.incidents import fold
from control_plane.times import iso, parse_iso
from pipelines.contract.errors import WrongUsage
from pipelines.contract.folds import decide
from pipelines.contract.node_state import CONTROL, Note

HOT = """
tidewire: 1
pipeline: press
sources:
  log:
    file: {path: /var/log/press.jsonl}
    decode: json
schema:
  ts: {type: timestamp, event_time: true}
  v: {type: double}
triggers:
  hot:
    over: latest
    when: v > 10
sinks:
  rows: {lake: {table: press_rows}}
"""


def now_us() -> int:
    return time.time_ns() // 1000


def ids(server: ServerProcess, *words: str) -> list[str]:
    return sorted(row["id"] for row in server.json("incidents", *words)["incidents"])


def test_incidents_are_listed_by_what_they_are_and_one_line_says_it_all(server: ServerProcess) -> None:
    async def story() -> None:
        token = server.token("--uses", "2", "--label", "site=lyon")
        one, two = await FakeNode.join(token, "one"), await FakeNode.join(token, "two")
        s1, s2, at = one.incidents(), two.incidents(), now_us() - 7_200_000_000
        await one.upload(s1.seal(incident_rows("i1", "raised", at_us=at, state="active", severity="warning")))
        await one.upload(s1.seal(incident_rows("i1", "acknowledged", at_us=at + 90_000_000, state="active", by="m.durand")))
        await one.upload(s1.seal(incident_rows("i1", "cleared", at_us=at + 600_000_000, state="closed")))
        await one.upload(s1.seal(incident_rows("i2", "raised", at_us=at, state="active", flags="shelved")))
        await two.upload(s2.seal(incident_rows("i3", "raised", at_us=at, state="active", flags="chattering")))
        await two.upload(s2.seal(incident_rows("i3", "cleared", at_us=at + 1_000_000, state="cleared")))
        await two.upload(s2.seal(incident_rows("i3", "raised_again", at_us=at + 2_000_000, state="active")))
        assert ids(server) == ["i2", "i3"]
        assert ids(server, "--all") == ids(server, "--since", "1h") == ["i1", "i2", "i3"]
        assert ids(server, "--node", "two") == ["i3"]
        assert ids(server, "--severity", "warning", "--all") == ids(server, "--state", "closed") == ["i1"]
        assert ids(server, "--state", "shelved") == ["i2"]
        assert ids(server, "--select", "site=oslo", "--all") == ids(server, "--pipeline", "x", "--all") == []
        [header, line] = server.cli("incidents", "--state", "closed").stdout.splitlines()
        assert header.split("  ")[0] == "INCIDENT"
        for word in ("i1", "one", "press/hot", "cleared, acknowledged", "m.durand", "10 min", "both", "Press 1 is hot"):
            assert word in line, word
        assert server.json("incidents", "show", "i3")["repeats"] == 1
        told = server.json("incidents", "stats")
        assert (told["raised"], told["acknowledged"], told["acknowledge_median_s"]) == (4, 1, 90.0)
        assert told["top"][0] == {"node": "one", "pipeline": "press", "trigger": "hot", "raised": 2, "share": 0.5}
        assert [i["id"] for i in told["shelved"]] == ["i2"]
        text = server.cli("incidents", "stats", "--since", "3h").stdout
        assert "4 since" in text and "half of them within 90 s" in text and "standing" in text
        await one.close()
        await two.close()

    asyncio.run(story())


def test_all_of_a_selection_are_acknowledged_with_a_preview(server: ServerProcess) -> None:
    async def story() -> None:
        token = server.token("--uses", "2", "--label", "site=lyon")
        one, two = await FakeNode.join(token, "one"), await FakeNode.join(token, "two")
        for node, names in ((one, "ab"), (two, "c")):
            stream = node.incidents()
            for name in names:
                await node.upload(stream.seal(incident_rows(name * 3, "raised", state="active")))
        plan = server.cli("incidents", "ack", "--select", "site=lyon", "--dry-run").stdout
        assert plan.startswith("acknowledge 3 incidents on 2 nodes:") and plan.endswith("dry run: nothing changed\n")
        assert ids(server, "--state", "acknowledged") == []
        assert server.cli("incidents", "ack", "aaa", "--reason", "seen").returncode == 0
        assert "1 is acknowledged already" in server.cli("incidents", "ack", "aaa", "bbb", "--dry-run").stdout
        assert server.cli("incidents", "ack", "--all", "--reason", "morning round").returncode == 0
        assert ids(server, "--state", "acknowledged") == ["aaa", "bbb", "ccc"]
        await one.exchange()
        assert sorted((n.subject, n.reason) for n in one.document.notes()) == [("aaa", "seen"), ("bbb", "morning round")]
        wrong = server.cli("incidents", "ack")
        assert wrong.returncode == 2 and "fix:" in wrong.stderr
        assert server.cli("incidents", "ack", "aaa", "nope").returncode == 1
        await one.close()
        await two.close()

    asyncio.run(story())


def test_shelving_from_the_centre_is_a_note_that_waits_for_the_node(server: ServerProcess) -> None:
    server.apply(HOT)
    assert server.cli("deploy", "press", "-s", "all", "--allow-empty").returncode == 0

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        await node.exchange()
        await node.upload(node.incidents().seal(incident_rows("abc1", "raised", state="active")))
        for words, said in (
            (("abc", "--for", "8h"), "it is not said why"),
            (("abc", "--for", "0s", "--reason", "x"), "for how long"),
            (("abc", "--for", "90d", "--reason", "x"), "longer than 30 days"),
            (("press/hot", "--for", "1h", "--reason", "x"), "on which nodes"),
            (("press/cold", "--for", "1h", "--reason", "x", "-s", "all"), "it has no trigger 'cold'"),
            (("press/hot", "--for", "1h", "--reason", "x", "-s", "name=nobody"), "no node matches"),
        ):
            refused = server.cli("incidents", "shelve", *words)
            assert refused.returncode == 1 and said in refused.stderr, refused.stderr
        assert server.cli("incidents", "shelve", "abc", "--for", "8h", "--reason", "being mended").returncode == 0
        [row] = server.json("incidents")["incidents"]
        assert (row["waits"], "shelved" in row["words"]) == (["shelve"], False), "only the node's word makes it so"
        assert "shelve waits for the node" in server.cli("incidents").stdout
        done = server.cli("incidents", "shelve", "press/hot", "-s", "all", "--for", "2h", "--reason", "all of them")
        assert done.stdout.startswith("shelve press/hot for 2h of node time on 1 node:\n  pi")
        assert server.cli("incidents", "comment", "abc", "the fan is on order").returncode == 0
        await node.exchange()
        notes = {(n.kind, n.subject): n for n in node.document.notes()}
        assert notes["shelve", "abc1"].body == {"for_s": 28_800} and notes["shelve", "abc1"].reason == "being mended"
        assert notes["shelve", "press/hot"].body == {"for_s": 7_200}
        node.document.add_note(Note(node.id, 1, "ended", "abc1", {"note": notes["shelve", "abc1"].name}))
        await node.exchange()
        done = server.cli("incidents", "unshelve", "press/hot", "-s", "all")
        assert "on 1 node" in done.stdout
        assert "on 0 nodes" in server.cli("incidents", "unshelve", "press/hot", "-s", "all").stdout
        await node.exchange()
        assert not any(d.is_set for d in decide(node.document.notes(), node=node.id).values())
        await until(lambda: server.json("incidents")["incidents"][0]["waits"] == [])
        shown = server.cli("incidents", "show", "abc").stdout
        for word in ("shelved by ana for 8 h 00 min being mended", "comment by ana the fan is on order", "unshelved by ana"):
            assert word in shown, (word, shown)
        await node.close()

    asyncio.run(story())


def test_out_of_contact_and_out_of_service_are_said(server: ServerProcess) -> None:
    server.apply(HOT)
    server.cli("deploy", "press", "-s", "all", "--allow-empty")

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        await node.exchange()
        await node.upload(node.incidents().seal(incident_rows("abc1", "raised", state="active")))
        await node.obey("paused")
        assert server.json("incidents")["incidents"][0]["state"] == "active, unacknowledged, out of service"
        assert ids(server, "--state", "out of service") == ["abc1"]
        await node.close()

    asyncio.run(story())
    said = fake_contact_words()
    assert said == "state as of 02:52; out of contact since 02:52; may already be acknowledged on site"


def fake_contact_words() -> str:
    from types import SimpleNamespace

    from control_plane.effects import Contact
    from control_plane.incident_views import _as_of

    at = parse_iso("2026-11-21T02:52:10Z")
    names = ("group", "severity", "message", "by", "reason")
    row = {"incident": "i", "node": "n", "transition": "raised", "state": "active", "pipeline": "p", "trigger": "t"}
    [found] = fold([{**row, **dict.fromkeys(names, ""), "at": iso(at), "received_at": iso(at)}], {}, {})
    node: Any = SimpleNamespace(id="n", last_seen=at)
    assert _as_of(found, node, Contact({}, at + 60_000_000)) == ""
    return _as_of(found, node, Contact({}, at + 4 * 3_600_000_000))


def test_acknowledged_on_both_sides_at_once_both_are_seen_and_the_next_occurrence_is_untouched() -> None:
    def row(n: int, what: str, incident: str = "i1", **more: str) -> dict[str, Any]:
        at = f"2026-01-01T03:00:{n:02}Z"
        base = {"incident": incident, "node": "n1", "pipeline": "p", "trigger": "t", "group": "{}", "severity": "critical"}
        return {**base, "transition": what, "message": "hot", "by": "", "reason": "", "at": at, "received_at": at, **more}

    rows = [row(1, "raised", state="active"), row(5, "acknowledged", state="active", by="eve", reason="on site")]
    rows += [row(7, "cleared", state="closed"), row(9, "raised", "i2", state="active")]
    notes = [Note("n1", 1, "acknowledge", "i1", {}, "eve", "on site", at="2026-01-01T03:00:05Z")]
    notes += [Note(CONTROL, 1, "acknowledge", "i1", {}, "bob", "from home", at="2026-01-01T03:00:06Z")]
    first, second = sorted(fold(rows[::-1], {"n1": notes}, {"n1": True}), key=lambda i: i.id)
    assert [(s.by, s.reason) for s in first.steps if s.transition == "acknowledged"] == [("eve", "on site"), ("bob", "from home")]
    assert first.is_acknowledged and first.is_closed
    assert not second.is_acknowledged and [s.transition for s in second.steps] == ["raised"]


def test_since_is_a_time_on_the_wall_a_duration_or_a_date() -> None:
    now = now_us()
    assert now - since_us("8h", now) == 8 * 3_600_000_000
    assert 0 <= now - since_us("22:00", now) < 86_400_000_000
    assert since_us("2026-01-01T00:00", now) == parse_iso("2026-01-01T00:00:00Z")
    with pytest.raises(WrongUsage):
        since_us("25:00", now)


words = st.sampled_from(["active", "cleared", "shelved", "chattering", "suppressed", "unacknowledged"])
found_ = st.builds(
    dict,
    id=st.sampled_from("abc"),
    node=st.sampled_from(["n", "m"]),
    pipeline=st.just("p"),
    trigger=st.sampled_from("tu"),
    severity=st.sampled_from(["critical", "info"]),
    raises=st.lists(st.integers(0, 10).map(lambda h: iso(1_800_000_000_000_000 + h * 3_600_000_000)), min_size=1, max_size=3),
    raised_at=st.just(iso(1_800_000_000_000_000)),
    acked_at=st.sampled_from(["", iso(1_800_000_000_000_000 + 3_600_000_000)]),
    acknowledged=st.booleans(),
    closed=st.booleans(),
    words=st.sets(words),
    message=st.just(""),
)


@given(st.lists(found_, max_size=30), st.integers(0, 10))
def test_figures_add_up(found: list[dict[str, Any]], hour: int) -> None:
    since, now = 1_800_000_000_000_000 + hour * 3_600_000_000, 1_800_000_000_000_000 + 36 * 3_600_000_000
    told = stats(found, since, now)
    assert told["raised"] == sum(since <= parse_iso(at) for i in found for at in i["raises"]) == sum(told["by_severity"].values())
    assert sum(top["raised"] for top in told["top"]) == told["raised"]  # there are four kinds at most
    assert told["open"] == sum(not i["closed"] for i in found) >= told["unacknowledged"]
    assert {i["id"] for i in told["shelved"]} == {i["id"] for i in found if "shelved" in i["words"] and not i["closed"]}
