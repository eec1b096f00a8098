"""What people decide centrally, as notes: who gets them, what they beat, what beats them (I5)."""

from __future__ import annotations

import asyncio

import pytest
from fake_node import FakeNode, incident_rows
from server_process import ServerProcess

from pipelines.contract.folds import Register, decide
from pipelines.contract.node_state import Note

PRESS_PAUSE = Register("press", "pause")


@pytest.fixture
def deployed(server: ServerProcess) -> ServerProcess:
    server.apply()
    assert server.cli("deploy", "press", "-s", "all").returncode == 0
    return server


async def joined(server: ServerProcess, name: str, **labels: str) -> FakeNode:
    words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    node = await FakeNode.join(server.token(*words), name)
    await node.exchange()
    await node.obey()
    return node


def holds(node: FakeNode, register: Register = PRESS_PAUSE) -> bool:
    decision = decide(node.document.notes(), node=node.id).get(register)
    return decision is not None and decision.is_set


def noted(node: FakeNode, kind: str, reason: str, **body: object) -> None:
    """On site, as the agent does."""
    document = node.document
    seq, seen = document.next_seq(node.id), document.seen_by(node.id)
    document.add_note(Note(node.id, seq, kind, "press", body, "m.durand", reason, node.manifest.generation, seen, "10:00"))


def test_a_pause_reaches_the_selected_nodes_and_those_that_are_away_when_they_return(deployed: ServerProcess) -> None:
    async def story() -> None:
        near, away, other = [await joined(deployed, n, line=line) for n, line in (("near", "4"), ("away", "4"), ("other", "5"))]
        await away.close()
        dry = deployed.cli("pause", "press", "-s", "line=4", "--dry-run")
        assert dry.stdout == "pause press on 2 nodes:\n  away: stops\n  near: stops\ndry run: nothing changed\n", dry.stderr
        await near.exchange()
        assert near.document.notes() == []
        done = deployed.json("pause", "press", "-s", "line=4", "--for", "8h", "--reason", "cleaning")
        assert [row["name"] for row in done["nodes"]] == ["away", "near"]
        await near.exchange()
        await other.exchange()
        assert holds(near) and not holds(other)
        (note,) = near.document.notes()
        assert (note.by, note.reason, note.body, note.seen) == ("ana", "cleaning", {"for_s": 28800}, 0)
        await away.connect()
        await away.exchange()
        assert holds(away)
        actions = [(row["by"], row["action"], row["subject"], row["detail"]) for row in deployed.json("changes")["audit"]]
        assert ("ana", "pause", "press", "near") in actions and ("ana", "pause", "press", "away") in actions
        assert "nothing" not in deployed.cli("resume", "press", "-s", "all", "--reason", "clean").stdout
        await near.exchange()
        assert not holds(near)
        again = deployed.cli("resume", "press", "-s", "name=near").stdout
        assert again.startswith("resume press on 0 nodes\n  1 with no pause to take back\n")
        for node in (near, away, other):
            await node.close()

    asyncio.run(story())


def test_i5_the_later_in_the_know_wins_and_force_beats_what_did_not_know(deployed: ServerProcess) -> None:
    async def story() -> None:
        node = await joined(deployed, "pi")
        noted(node, "pause", "hands in the press")
        await node.exchange()
        shown = deployed.cli("resume", "press", "-s", "all").stdout
        assert "this comes after the on-site pause by m.durand 'hands in the press'" in shown
        noted(node, "pause", "again")  # without having heard of the resume
        await node.exchange()
        assert holds(node), "nearer, and neither knew of the other"
        deployed.cli("resume", "press", "-s", "all", "--force")
        noted(node, "pause", "still")
        await node.exchange()
        assert not holds(node), "forced"
        noted(node, "pause", "I have read that, and no")
        await node.exchange()
        assert holds(node), "who knows of it decides, also against force"
        await node.close()

    asyncio.run(story())


def test_a_pin_names_the_version_or_keeps_what_runs(deployed: ServerProcess) -> None:
    async def story() -> None:
        node = await joined(deployed, "pi")
        first = node.manifest.assignments["press"].digest
        second = deployed.apply((deployed.data_dir.parent / "press.yaml").read_text().replace("default: 85", "default: 80"))
        assert "pi: takes version 2 and stays there" in deployed.cli("pin", "press@2", "-s", "all", "--dry-run").stdout
        deployed.cli("pin", "press", "-s", "all", "--reason", "audit")
        await node.exchange()
        assert node.document.notes()[-1].body == {"digest": first, "number": 1}
        deployed.cli("pin", "press@2", "-s", "all")
        await node.exchange()
        assert node.document.notes()[-1].body == {"digest": second, "number": 2}
        deployed.cli("unpin", "press", "-s", "all")
        await node.exchange()
        assert not holds(node, Register("press", "pin"))
        await node.close()

    asyncio.run(story())


def test_what_cannot_be_decided_is_refused_and_nothing_changes(deployed: ServerProcess) -> None:
    async def story() -> None:
        node = await joined(deployed, "pi")
        for words, status, text in [
            (("pause", "press", "-s", "site=x"), 1, "no node matches site=x"),
            (("pause", "pres", "-s", "all"), 1, "known pipelines: press"),
            (("pause", "press@1", "-s", "all"), 1, "write press"),
            (("pin", "press@9", "-s", "all"), 1, "its versions are 1 to 1"),
            (("pause", "press", "-s", "all", "--for", "soon"), 2, "soon"),
            (("comment", "nobody", "hello"), 1, "PIPELINE/NODE"),
            (("comment", "pi", " "), 1, "1 to 2000 characters"),
        ]:
            done = deployed.cli(*words)
            assert done.returncode == status and text in done.stderr, (words, done)
        deployed.cli("deploy", "press", "-s", "all", "--remove")
        await node.exchange()
        await node.obey()
        assert "no node of all has press" in deployed.cli("pause", "press", "-s", "all").stderr
        assert node.document.notes() == []
        await node.close()

    asyncio.run(story())


def test_comments_are_about_a_node_a_pipeline_on_it_or_an_incident(deployed: ServerProcess) -> None:
    async def story() -> None:
        node = await joined(deployed, "pi")
        await node.upload(node.incidents().seal(incident_rows("abc1", "raised")))
        for subject in ("pi", "press/pi", "abc"):
            done = deployed.cli("comment", subject, f"about {subject}")
            assert done.returncode == 0 and done.stdout.startswith("comment on "), done
        await node.exchange()
        told = [(note.kind, note.subject, note.body["text"]) for note in node.document.notes()]
        assert told == [("comment", "", "about pi"), ("comment", "press", "about press/pi"), ("comment", "abc1", "about abc")]
        await node.close()

    asyncio.run(story())
