"""The node's replica of its state: what the store holds is obeyed as far as it verifies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support import NODE, new_key, open_store

from edge_agent.config import Identity
from edge_agent.node_record import NodeRecord
from edge_agent.store import Store
from pipelines.contract.document import NodeDocument
from pipelines.contract.frames import sha256
from pipelines.contract.node_state import Assignment, Manifest, Reported, SignedManifest

CONTROL = new_key()


def load(tmp_path: Path, document: bytes, signed: SignedManifest) -> NodeRecord:
    async def go(store: Store) -> NodeRecord:
        identity = Identity(
            node=NODE, name="x", seed=new_key().seed, user_jwt="", control=CONTROL.public, author=CONTROL.public, url=""
        )
        await store.save_state(document, signed)
        record = NodeRecord(store, identity)
        await record.load()
        return record

    with open_store(tmp_path) as store:
        return asyncio.run(go(store))


def manifest() -> SignedManifest:
    return SignedManifest.sign(Manifest(NODE, 1, 5, {"press": Assignment("sha256:a", 1)}), CONTROL)


@pytest.mark.parametrize("document", [b"garbage", b""])
def test_i12_a_document_that_does_not_load_leaves_the_manifest_in_force(tmp_path: Path, document: bytes) -> None:
    record = load(tmp_path, document, manifest())
    assert (record.manifest.generation, set(record.manifest.assignments)) == (5, {"press"})
    assert record.document.digest() == NodeDocument().digest()


def test_i13_a_manifest_that_does_not_verify_leaves_the_document(tmp_path: Path) -> None:
    document = NodeDocument()
    document.report("press", Reported("sha256:a", 1, "running"))
    record = load(tmp_path, document.save(), SignedManifest(manifest().body, b"x" * 64))
    assert record.manifest.generation == 0
    assert set(record.document.reported()) == {"press"}


def test_a_second_manifest_of_one_number_is_told_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = load(tmp_path, NodeDocument().save(), manifest())
    assert record.manifest_digest == sha256(manifest().body)
    other = SignedManifest.sign(Manifest(NODE, 1, 5, {"oven": Assignment("sha256:b", 2)}), CONTROL)
    assert asyncio.run(record.accept_manifest(manifest())) is False
    assert "security" not in capsys.readouterr().out
    assert asyncio.run(record.accept_manifest(other)) is False
    assert set(record.manifest.assignments) == {"press"}
    assert "two manifests of one number" in capsys.readouterr().out
