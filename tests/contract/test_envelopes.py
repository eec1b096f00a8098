"""Frames, keys, messages, artifacts, tokens: what was said comes back, and nothing else gets in."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract import messages, subjects
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact
from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, pack, unpack
from pipelines.contract.keys import Key, is_signed_by, seal, unseal
from pipelines.contract.messages import (
    ArtifactReply,
    ArtifactRequest,
    Exchange,
    ExchangeReply,
    Heartbeat,
    Join,
    JoinReply,
    Receipts,
    Standing,
    StandingReply,
    Upload,
)
from pipelines.contract.token import JoinToken, is_proven, prove

KEY, OTHER = (Key.from_entropy(bytes([n]) * 32) for n in (1, 2))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
headers = st.dictionaries(st.text(st.characters(exclude_characters="_", exclude_categories=["Cs"])), json_values, max_size=4)


@given(headers, st.lists(st.binary(max_size=64), max_size=4))
def test_a_frame_comes_back(header: dict[str, Any], blobs: list[bytes]) -> None:
    assert unpack(pack(header, blobs)) == (header, blobs)
    assert unseal(KEY.public, seal(KEY, header, blobs)) == (header, blobs)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    for read in (unpack, lambda d: unpack(b"TWF1" + d), lambda d: unseal(KEY.public, d), Upload.unpack):
        with pytest.raises(Refused):
            read(data)


@given(st.binary(min_size=1, max_size=50), st.data())
def test_i13_one_flipped_bit_breaks_the_signature(blob: bytes, data: st.DataObject) -> None:
    sealed = bytearray(seal(KEY, {"a": 1}, [blob]))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Refused):
        unseal(KEY.public, bytes(sealed))


def test_i13_only_the_owner_of_the_key_signs() -> None:
    assert is_signed_by(KEY.public, b"x", KEY.sign(b"x"))
    for public, data, signature in [
        (OTHER.public, b"x", KEY.sign(b"x")),
        (KEY.public, b"y", KEY.sign(b"x")),
        ("", b"x", KEY.sign(b"x")),
        ("U", b"x", b""),
        (5, b"x", KEY.sign(b"x")),
    ]:
        assert not is_signed_by(public, data, signature)  # type: ignore[arg-type]  # hostile on purpose


def test_a_key_never_shows_its_seed() -> None:
    assert KEY.seed not in f"{KEY!r} {KEY!s}" and KEY.public.startswith("U")


@pytest.mark.parametrize(
    "frame",
    [
        b"TWF1\x00\x00\x00\x02{}",
        b"TWF1\x00\x00\x00\x0d" + b'{"_blobs":[5]}'[:13],
        pack({}, [b"abc"])[:-1],
        pack({}, [b"abc"]) + b"x",
        b"TWF1\xff\xff\xff\xff",
        b"TWF1" + (14).to_bytes(4, "big") + b'{"_blobs":[-1]}'[:14],
        b"TWF1" + (200_000).to_bytes(4, "big") + b"[" * 200_000,
    ],
)
def test_cut_and_hostile_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(Refused):
        unpack(frame)


EXAMPLES = [
    Exchange("n1", "x", 1, 2, "sha256:d", True, "sha256:m", 3),
    ExchangeReply("x", "sha256:d", 5, True, True, "e", "n1", True),
    Upload("n1", "x", [["r", "s"]], [["r", "s", 1, 5]]),
    Receipts("x", [["r", "s", 3, "sha256:d", 9, 7]], [["r", "s", 2, "why"]], "e", "n1", [["r", "s", 1, "sha256:c"]]),
    ArtifactRequest("n1", "x", "sha256:d", 7),
    ArtifactReply("x", "pipeline-version", 9, 4, "e", "n1"),
    Heartbeat("n1", "sha256:d", 1, 2, 3, 4, "synced", "0.1"),
    Join("UABC", "x", "pi", {"arch": "arm64"}, "UXYZ"),
    JoinReply("x", "n1", "pi", "jwt", "UABC", {"site": "lyon"}, "e", "h", "jwt"),
    Standing("n1", "x"),
    StandingReply("x", "n1", "removed", "ana", "stolen", "2026-11-21T14:00:00Z"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_and_one_with_other_types_is_refused(message: Any) -> None:
    assert type(message).unpack(message.pack([b"b"])) == (message, [b"b"])
    assert type(message).unseal(KEY.public, message.seal(KEY)) == (message, [])
    header, _ = unpack(message.pack())
    for name in (f.name for f in fields(message)):
        with pytest.raises(Refused):
            type(message).unpack(pack({**header, name: object.__name__ if not isinstance(header[name], str) else 5}))
    for wrong in ({**header, "format": 2}, {**header, "more": 1}, {"format": 1}):
        with pytest.raises(Refused):
            type(message).unpack(pack(wrong))


def test_a_header_that_could_not_be_written_again_is_refused() -> None:
    surrogate = {"format": 1, "node": "n1", "nonce": "\ud800", "streams": []}
    nan = {"format": 1, "public": "U", "nonce": "x", "name": "pi", "facts": {"x": float("nan")}}
    for kind, header in ((Upload, surrogate), (Join, nan)):
        head = json.dumps({**header, "_blobs": []}).encode()
        with pytest.raises(Refused):
            kind.unpack(b"TWF1" + len(head).to_bytes(4, "big") + head)


def test_only_the_holder_of_the_token_proves_it() -> None:
    proof = prove(KEY, "nonce", "UABC")
    assert is_proven(KEY.public, "nonce", "UABC", proof)
    for public, nonce, joiner in [(OTHER.public, "nonce", "UABC"), (KEY.public, "other", "UABC"), (KEY.public, "nonce", "UXYZ")]:
        assert not is_proven(public, nonce, joiner, proof)


def test_every_message_has_an_example() -> None:
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, messages._Message)}
    assert kinds - {messages._Message} == {type(example) for example in EXAMPLES}


def test_i13_an_artifact_is_its_digest_and_its_authors() -> None:
    artifact = Artifact.sign(PIPELINE_VERSION, b"bytes", KEY)
    artifact.verify(artifact.digest, KEY.public)
    for bad, author in [
        (Artifact(PIPELINE_VERSION, b"other", artifact.signature), KEY),
        (Artifact("model", b"bytes", artifact.signature), KEY),
        (artifact, OTHER),
    ]:
        with pytest.raises(Refused):
            bad.verify(artifact.digest, author.public)


@given(st.builds(JoinToken, *[st.text(st.characters(exclude_categories=["Cs"]))] * 6))
def test_a_token_comes_back_and_hides_its_secret(token: JoinToken) -> None:
    assert JoinToken.decode(f"  {token.encode()}\n") == token
    assert repr(token) == f"JoinToken({token.id}, {token.url})"


@given(st.text() | st.binary(max_size=40).map(lambda b: "tw1." + b.hex()))
def test_any_text_is_a_token_or_refused_with_a_hint(text: str) -> None:
    with pytest.raises(Refused) as caught:
        JoinToken.decode(text)
    assert "join-token create" in caught.value.hint


def test_a_deeply_nested_token_is_refused() -> None:
    import base64

    with pytest.raises(Refused):
        JoinToken.decode("tw1." + base64.urlsafe_b64encode(b"[" * 100_000).decode())


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values))
def test_canonical_json_does_not_depend_on_the_order(value: dict[str, Any]) -> None:
    again = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(again) and json.loads(canonical_json(value)) == value


def test_a_node_has_its_own_subjects_and_no_wildcards() -> None:
    publish, subscribe = subjects.node_permissions("n1")
    assert not any(c in subject for subject in publish for c in "*>") and all(s.endswith(".n1") for s in publish)
    assert subscribe == ["_INBOX_n1.>", "tw.poke.n1"]
    assert {subjects.partition(os.urandom(4).hex()) for _ in range(500)} == set(range(subjects.PARTITIONS))
