"""Segments and the golden files of format 1: what this build wrote once it must read for ever."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.contract.document import _GENESIS, NodeDocument
from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256
from pipelines.contract.keys import Key, seal
from pipelines.contract.messages import Exchange, Heartbeat, Join, Receipts, Upload
from pipelines.contract.node_state import Assignment, Ban, Manifest, Note, Reported, Request, Setting, SignedManifest
from pipelines.contract.segment import SEGMENT_BYTES_MAX, Segment, SegmentHeader, decode, encode

KEY = Key.from_entropy(bytes([7]) * 32)
GOLDEN = Path(__file__).parent.parent / "golden"
HEADER = SegmentHeader(
    node="nabc", run="r1", stream="rows", seq=2, previous="sha256:before", kind="rows", table="press_rows", rows=1,
    payload_digest=sha256(b"payload"), pipeline="press", version="sha256:v", number=3, params="sha256:p",
    sealed_at_us=1_700_000_000_000_000, node_time_us=12, clock="unsynced", engine="tidewire/0",
    positions={"sim": {"from": 1, "to": 2}}, ledgers={"source": {"sim": {"read": 2}}, "stream": {"offered": 1}},
    lookups={"assets": "sha256:a"}, lineage="l1", boot="b1", utc_offset_us=5, run_rows=3, first=2,
)  # fmt: skip


def test_a_segment_comes_back() -> None:
    segment = encode(HEADER, b"payload", KEY)
    assert decode(segment.data, KEY.public) == segment
    assert segment.header.key.app_id == "nabc/r1/rows" and segment.digest == sha256(segment.data)


def test_i3_a_stub_stands_for_what_was_lost() -> None:
    lost = encode(HEADER, b"payload", KEY)
    header = replace(HEADER, first=1, rows=2, void="evicted", stands_for=lost.digest, payload_digest=sha256(b""))
    stub = encode(header, b"", KEY)
    assert decode(stub.data, KEY.public) == stub
    assert (stub.link, lost.link) == (lost.digest, lost.digest) and stub.header.is_stub and not lost.header.is_stub


def test_i13_segments_are_read_only_with_the_nodes_own_key() -> None:
    with pytest.raises(Refused):
        decode(encode(HEADER, b"payload", KEY).data, Key.from_entropy(bytes(32)).public)


def sealed(payload: bytes = b"payload", **changes: Any) -> bytes:
    return seal(KEY, {**asdict(HEADER), **changes}, [payload])


@pytest.mark.parametrize(
    "data",
    [
        sealed(format=2),
        sealed(seq=0),
        sealed(seq="2"),
        sealed(seq=True),
        sealed(first=1),
        sealed(first=3),
        sealed(run_rows=0),
        sealed(void="evicted"),
        sealed(b"", void="evicted", payload_digest=sha256(b"")),
        sealed(b"", void="eaten", stands_for="sha256:d", payload_digest=sha256(b"")),
        sealed(b"", void="evicted", stands_for="sha256:d", payload_digest=sha256(b""), first=3),
        sealed(stands_for="sha256:d"),
        sealed(rows=-1),
        sealed(rows=0),
        sealed(payload=b""),
        sealed(payload=b"other"),
        sealed(kind="gossip"),
        sealed(node=5),
        sealed(more=1),
        sealed(number=2**63),
        sealed(sealed_at_us=-(2**63) - 1),
        sealed(stream="\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), table=None),
        sealed(positions=[1]),
        sealed(ledgers={"a": float("nan")}),
        seal(KEY, asdict(HEADER), []),
        seal(KEY, asdict(HEADER), [b"payload", b"payload"]),
        b"",
        b"x" * (SEGMENT_BYTES_MAX + 5000),
    ],
)
def test_segments_that_do_not_fit_together_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        decode(data, KEY.public)


def test_a_lone_surrogate_is_refused() -> None:
    data = encode(replace(HEADER, stream="MARK"), b"payload", KEY).data[64:].replace(b'"MARK"', b'"\\ud8"')
    body = bytearray(data.replace(b'"\\ud8"', b'"\\ud800"'))
    body[4:8] = (int.from_bytes(body[4:8], "big") + 2).to_bytes(4, "big")
    with pytest.raises(Refused):
        decode(KEY.sign(bytes(body)) + bytes(body), KEY.public)


def a_manifest() -> SignedManifest:
    setting = Setting(90.0, "rule:1", "ana", "hot", 4, force=True)
    assignment = Assignment("sha256:v", 3, {"limit_c": setting}, "ana", "first", "2026-01-01T00:00:00Z")
    requests = {"q1": Request("query", {"sql": "select 1"}, "ana", "look", "2026-01-01T00:00:00Z")}
    return SignedManifest.sign(Manifest("nabc", 1, 5, {"press": assignment}, {"site": "lyon"}, requests=requests), KEY)


def a_document() -> NodeDocument:
    document = NodeDocument()
    bans = (Ban("sha256:w", 4, "sha256:p", "31 % rejected", 0, "09:58"),)
    reported = Reported(
        "sha256:v", 3, "running", {"limit_c": 90.0}, "sha256:p", gate="passed", bans=bans, since="10:00", generation=5
    )
    document.report("press", reported)
    document.add_note(Note("nabc", 1, "param", "press", {"name": "limit_c", "value": 60.0}, "m.durand", "hot", 5, 2, "10:01"))
    return document


MESSAGES = {
    "exchange": Exchange("nabc", "x", 1, 5, "sha256:d", True).seal(KEY, [b"document"]),
    "upload": Upload("nabc", "x", [["r1", "rows"]]).pack([b"segment"]),
    "receipts": Receipts("x", [["r1", "rows", 2, "sha256:d", 3, 2]], [["r1", "rows", 1, "why"]]).seal(KEY),
    "heartbeat": Heartbeat("nabc", "sha256:d", 1, 5, 3, 4, "synced", "0").pack(),
    "join": Join(KEY.public, "x", "pi", {"arch": "arm64"}).seal(KEY),
}


def write_golden() -> None:
    """Run by hand, once per format: `TIDEWIRE_WRITE_GOLDEN=1 pytest tests/contract/test_segment.py`."""
    files = {
        "segment-1.bin": encode(HEADER, b"payload", KEY).data,
        "genesis-1.bin": _GENESIS,
        "document-1.bin": a_document().save(),
    }
    files |= {"manifest-1.json": a_manifest().body, "manifest-1.sig": a_manifest().signature}
    files |= {f"message-{name}-1.bin": data for name, data in MESSAGES.items()}
    for name, data in files.items():
        (GOLDEN / name).write_bytes(data)


if os.environ.get("TIDEWIRE_WRITE_GOLDEN"):
    write_golden()


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def test_golden_segment_of_format_1() -> None:
    assert decode(golden("segment-1.bin"), KEY.public) == Segment(HEADER, b"payload", golden("segment-1.bin"))
    assert encode(HEADER, b"payload", KEY).data == golden("segment-1.bin"), "the bytes of a format never change"


def test_golden_manifest_of_format_1() -> None:
    stored = SignedManifest(golden("manifest-1.json"), golden("manifest-1.sig"))
    assert stored == a_manifest() and stored.open("nabc", KEY.public) == a_manifest().open("nabc", KEY.public)
    assert json.loads(stored.body)["format"] == 1


def test_golden_document_of_format_1() -> None:
    assert golden("genesis-1.bin") == _GENESIS, "another genesis would split every node's document in two"
    assert NodeDocument(golden("genesis-1.bin")).values() == {"tidewire": "1"}
    stored = NodeDocument(golden("document-1.bin"))
    assert stored.values() == a_document().values() and stored.notes() == a_document().notes()
    assert stored.merged(_GENESIS, author="nabc").digest() == stored.digest()


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_messages_of_format_1(name: str) -> None:
    assert MESSAGES[name] == golden(f"message-{name}-1.bin")
