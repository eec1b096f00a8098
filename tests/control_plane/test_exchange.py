"""Epochs of a node's document are begun by agreement, whatever is lost on the way (I5, I6, I7, I9)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from exchange_rig import NODE, Site, rig

from control_plane import exchange as exchanges
from control_plane import fleet, store
from pipelines.contract.document import NodeDocument
from pipelines.contract.node_state import CONTROL, Note

ROUNDS = exchanges.CHANGES_MAX


@pytest.fixture
def pair(tmp_path: Path) -> SimpleNamespace:
    return rig(tmp_path)


def flap(site: Site, times: int = ROUNDS) -> None:
    for n in range(times):
        site.report("press", reason=f"{n}")


def test_i9_a_document_that_grew_starts_again_and_means_the_same(pair: SimpleNamespace) -> None:
    cloud, site = pair.cloud, pair.site
    site.note("pause", reason="first")
    site.note("resume", reason="second")
    site.note("label", "", name="local.line", value="4")
    cloud.note("acknowledge", "i1", reason="third")
    flap(site)
    before = len(site.document.save())
    site.settle()
    site.settle()
    assert site.document.epoch == cloud.node().epoch == 1 and len(site.document.save()) < before / 3
    assert NodeDocument(site.disk.document or b"").digest() == site.document.digest(), "stored, then believed"
    assert [note.name for note in site.document.notes()] == ["control/1", "n1/3"]
    assert site.document.reported()["press"].reason == f"{ROUNDS - 1}"
    assert [note.name for note in cloud.node().notes] == ["control/1", "n1/3"], "what is current"
    assert [note.reason for note in cloud.ask(lambda db: fleet.notes(db, NODE))] == ["third", "first", "second", ""], "for ever"
    assert site.note("pause").seq == 4 and cloud.note("comment").seq == 2
    site.settle()
    assert cloud.security() == []


def test_no_contact_no_compaction(pair: SimpleNamespace) -> None:
    flap(pair.site, 3 * ROUNDS)
    assert pair.site.document.epoch == pair.cloud.node().epoch == 0
    pair.site.settle()
    pair.site.settle()
    assert pair.site.document.epoch == 1 and pair.site.document.changes == 2, "genesis and one"


@pytest.mark.parametrize("lost", ["request", "reply", "twice"])
@pytest.mark.parametrize("at", range(4))
def test_i7_an_epoch_begins_whatever_message_is_lost(pair: SimpleNamespace, lost: str, at: int) -> None:
    cloud, site = pair.cloud, pair.site
    site.note("pause", reason="stands")
    flap(site)
    for step in range(4):
        site.exchange(lost if step == at else "")
        if step == at:
            cloud.note("comment", reason="meanwhile")
            site.start()  # and the node loses power
    site.settle()
    site.settle()
    assert site.document.epoch == cloud.node().epoch >= 1
    assert [note.reason for note in site.document.notes()] == ["meanwhile", "stands"]
    assert cloud.security() == []


def test_i6_a_node_that_wrote_meanwhile_lets_the_proposal_be(pair: SimpleNamespace) -> None:
    """The proposal is on its way when somebody writes on site: the next one has that, too."""
    cloud, site = pair.cloud, pair.site
    flap(site)

    async def write_once() -> None:
        if cloud.node().proposal is not None:
            site.line.meanwhile = None
            await site.record.add_note("pause", "press", {}, by="ana", reason="meanwhile")

    site.line.meanwhile = write_once
    for _ in range(3):
        site.exchange()
        if site.line.meanwhile is None:
            break
    assert site.document.epoch == 0 and site.line.meanwhile is None
    site.settle()
    site.settle()
    assert site.document.epoch == cloud.node().epoch == 1
    assert [note.reason for note in site.document.notes()] == ["meanwhile"] and cloud.security() == []


def test_i6_what_the_centre_noted_before_it_knew_of_the_switch_is_written_again(pair: SimpleNamespace) -> None:
    cloud, site = pair.cloud, pair.site
    flap(site)
    _until_switched(site)
    assert cloud.node().epoch == 0, "its word is lost so far"
    cloud.note("pause", reason="meanwhile")
    site.note("comment", reason="after the switch")
    site.settle()
    assert cloud.node().epoch == 1
    assert [note.reason for note in site.document.notes()] == ["meanwhile", "after the switch"]


def _until_switched(site: Site) -> None:
    """Exchange until the node takes a proposal, and lose all that it says then."""
    request = site.line.request

    async def lossy(subject: str, data: bytes, timeout_s: float) -> bytes:
        if site.document.epoch > 0:
            site.line.fault = "request"
        return await request(subject, data, timeout_s)

    site.line.request = lossy  # type: ignore[method-assign]
    for _ in range(4):
        site.exchange()
    del site.line.request
    assert site.document.epoch == 1


def test_a_node_away_across_three_epochs_comes_back_whole(pair: SimpleNamespace) -> None:
    """The card was taken out in epoch 0; its twin went on through three epochs. Now it is put back, with notes of its own."""
    cloud, site = pair.cloud, pair.site
    site.note("pause", reason="before")
    site.settle()
    away = Site(cloud)
    away.disk.document = site.disk.document
    away.start()
    for n in range(3):
        site.note("comment", f"{n}", reason=f"epoch {n}")
        flap(site)
        site.settle()
        site.settle()
    assert cloud.node().epoch == 3
    away.note("comment", "away", reason="noted while away")
    away.note("acknowledge", "i7", reason="also away")
    away.report("press", number=9)
    away.settle()
    assert away.document.epoch == 3
    reasons = [note.reason for note in away.document.notes()]
    assert reasons == ["before", "epoch 0", "epoch 1", "epoch 2", "noted while away", "also away"]
    assert "was its card restored?" in cloud.security()[0] and len(cloud.security()) == 1
    assert away.document.next_seq(NODE) == 7 and len({n.seq for n in away.document.notes()}) == 6
    site.settle()  # and the twin as well


def test_i7_no_contact_across_three_proposals(pair: SimpleNamespace) -> None:
    """The centre proposes again and again; the node hears nothing of it, writes, and comes back whole."""
    cloud, site = pair.cloud, pair.site
    flap(site)
    for n in range(3):
        site.note("comment", f"{n}", reason=f"{n}")
        for fault in ("", "reply", "reply"):
            site.exchange(fault)
        cloud.note("comment", f"{n}", reason=f"centre {n}")
    site.settle()
    site.settle()
    assert site.document.epoch >= 1
    assert sorted(note.reason for note in site.document.notes()) == ["0", "1", "2", "centre 0", "centre 1", "centre 2"]


def test_a_restored_card_that_gave_a_collected_number_again_keeps_its_note(pair: SimpleNamespace) -> None:
    cloud, site = pair.cloud, pair.site
    site.settle()
    saved = site.disk.document
    site.note("pause", reason="collected")
    site.note("resume", reason="collected too")
    flap(site)
    site.settle()
    site.settle()
    assert cloud.node().epoch == 1 and site.document.notes() == []
    site.disk.document = saved
    site.start()
    assert site.note("comment", reason="on the old card").seq == 1
    site.exchange("reply")
    site.exchange("reply")
    site.settle()
    assert [(note.seq, note.reason) for note in site.document.notes()] == [(3, "on the old card")]
    site.disk.document = saved  # the very same card again, without that note: nothing comes back that was over
    site.start()
    site.settle()
    assert [(note.seq, note.reason) for note in site.document.notes()] == [(3, "on the old card")]


def test_a_node_in_an_epoch_that_was_not_agreed_is_refused_until_recover(pair: SimpleNamespace) -> None:
    cloud, site = pair.cloud, pair.site
    backup = cloud.backup()
    cloud.note("pause", reason="known to the node")
    flap(site)
    site.settle()
    site.settle()
    site.note("comment", reason="on site")
    site.settle()
    cloud.restore(backup)
    for n in range(2):
        cloud.note("comment", f"after {n}", reason=f"after the restore {n}")
    site.exchange()
    assert "restored from a backup" in site.sync.trouble and cloud.node().epoch == 0
    assert len(cloud.security()) == 2 and all("epoch 1" in event for event in cloud.security())
    site.exchange()
    assert len(cloud.security()) == 2, "told once"
    cloud.ask(fleet.raise_term)
    site.settle()
    assert cloud.node().epoch == 1
    reasons = {note.reason: note.seq for note in site.document.notes()}
    assert reasons == {"known to the node": 1, "on site": 1, "after the restore 1": 2}
    [told] = cloud.ask(lambda db: list(db.scalars(sa.select(store.audit.c.detail).where(store.audit.c.action == "recover"))))
    assert told.endswith("kept of ours: comment after 1; in doubt, to be noted again: comment after 0")


def test_a_lost_store_gets_the_agreed_epoch_without_alarm(pair: SimpleNamespace) -> None:
    cloud, site = pair.cloud, pair.site
    site.note("pause", reason="stands")
    flap(site)
    site.settle()
    site.settle()
    fresh = Site(cloud)
    fresh.settle()
    assert fresh.document.epoch == 1 and [n.reason for n in fresh.document.notes()] == ["stands"] and cloud.security() == []


def test_a_forged_epoch_is_refused_and_changes_nothing(pair: SimpleNamespace) -> None:
    cloud, site = pair.cloud, pair.site
    site.note("pause", reason="stands")
    site.settle()
    before = cloud.node()
    forged = site.document.next_epoch(NODE)
    forged.add_note(Note(CONTROL, forged.next_seq(CONTROL), "pause", "oven"))
    site.disk.document = forged.save()
    site.start()
    site.exchange()
    assert "not agreed here" in site.sync.trouble
    after = cloud.node()
    assert (after.document_digest, after.epoch, list(after.notes)) == (before.document_digest, 0, list(before.notes))


def test_a_proposal_that_is_not_what_ours_comes_to_is_refused(pair: SimpleNamespace) -> None:
    cloud, site = pair.cloud, pair.site
    site.note("pause", reason="stands")
    site.settle()
    wrong = site.document.next_epoch(NODE)
    wrong.write({"note/n1/00000009": Note(NODE, 9, "resume", "press").to_json()})
    cloud.ask(
        lambda db: fleet.update(
            db, NODE, proposal=wrong.save(), proposal_digest=wrong.digest(), proposal_of=site.document.digest()
        )
    )
    site.exchange()
    assert "not what our document comes to" in site.sync.trouble and site.document.epoch == 0
    assert NodeDocument(site.disk.document or b"").epoch == 0


def test_what_the_node_knows_that_we_lack_takes_one_exchange_and_what_it_cannot_know_two(pair: SimpleNamespace) -> None:
    site, asked = pair.site, list[bytes]()
    site.settle()
    request = site.line.request

    async def counting(subject: str, data: bytes, timeout_s: float) -> bytes:
        asked.append(data)
        return await request(subject, data, timeout_s)

    site.line.request = counting
    site.note("comment", reason="one")
    site.exchange()
    assert len(asked) == 1
    assert pair.cloud.node(NODE).document_digest == site.document.digest()
    site.note("comment", reason="two")
    site.start()  # it no longer knows what we said
    asked.clear()
    site.exchange()
    assert len(asked) == 2
    assert pair.cloud.node(NODE).document_digest == site.document.digest()
