"""What the planes say to each other over NATS, format 1. Bulk rides as blobs of the frame.

Requests of a node arrive on a subject that only it may use; exchange and join are signed by the node besides. Every reply is an
envelope signed by the control plane, names the node and repeats the request's nonce: no broker and no replay can free a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipelines.contract.artifact import CHUNK_BYTES_MAX
from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, pack, shallow_dict, unpack
from pipelines.contract.keys import Key, seal, unseal
from pipelines.contract.node_state import SignedManifest

FORMAT = 1


@cache
def _adapters(message: str) -> dict[str, TypeAdapter[Any]]:
    """Field -> what checks its type, of the message class with this name."""
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(globals()[message]).items()}


@dataclass(frozen=True)
class _Message:
    """A dataclass that travels as the header of a frame. Raises `Refused` when read from anything else."""

    def pack(self, blobs: Sequence[bytes] = ()) -> bytes:
        return pack({"format": FORMAT, **shallow_dict(self)}, blobs)

    def seal(self, key: Key, blobs: Sequence[bytes] = ()) -> bytes:
        return seal(key, {"format": FORMAT, **shallow_dict(self)}, blobs)

    @classmethod
    def unpack(cls, data: bytes) -> tuple[Self, list[bytes]]:
        return cls._read(*unpack(data))

    @classmethod
    def unseal(cls, public: str, data: bytes) -> tuple[Self, list[bytes]]:
        return cls._read(*unseal(public, data))

    @classmethod
    def _read(cls, header: dict[str, Any], blobs: list[bytes]) -> tuple[Self, list[bytes]]:
        if header.pop("format", None) != FORMAT:
            raise Refused(f"a {cls.__name__} of another format", op="read message", hint="upgrade the older side")
        try:
            canonical_json(header)
            for name, adapter in _adapters(cls.__name__).items():
                if name in header:
                    adapter.validate_python(header[name], strict=True)
            return cls(**header), blobs
        except ValidationError as error:
            raise Refused(f"not a {cls.__name__}: {name}: {error.errors()[0]['msg']}", op="read message") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(f"not a {cls.__name__}: {type(error).__name__}", op="read message") from None


@dataclass(frozen=True)
class Exchange(_Message):
    """Node -> control: what I hold. Blobs: my document, when `has_document`. Sent first without, then with, if digests differ."""

    node: str
    nonce: str
    term: int
    generation: int
    document: str  # digest
    has_document: bool = False
    manifest: str = ""  # digest of the manifest's body; "" for none
    epoch: int = 0  # of the document


@dataclass(frozen=True)
class ExchangeReply(_Message):
    """Control -> node. Blobs, in this order: manifest body and signature when `has_manifest`; then, as the last one, the document
    when `has_document`, or the proposal of the next epoch when `has_proposal`, which happens only when both hold the same.

    `document` is the digest of the control plane's replica after merging what came.
    """

    nonce: str
    document: str
    server_time_us: int
    has_manifest: bool = False
    has_document: bool = False
    error: str = ""
    node: str = ""  # whom it answers
    has_proposal: bool = False

    def manifest(self, blobs: Sequence[bytes]) -> SignedManifest | None:
        return SignedManifest(blobs[0], blobs[1]) if self.has_manifest and len(blobs) >= 2 else None


@dataclass(frozen=True)
class Upload(_Message):
    """Node -> control: segments (the blobs), or, without any, a question for the marks of `streams` ([run, stream] pairs).

    `digests` asks which segments of a range the lake has, when histories differ: `[run, stream, first, last]`.
    """

    node: str
    nonce: str
    streams: list[list[str]] = field(default_factory=list)
    digests: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Receipts(_Message):
    """Control -> node, after the lake commit (I3): for each stream asked for or sent, how far it is in the lake.

    `marks` are `[run, stream, seq, digest, rows, stored]`: every segment up to `seq` has its verdict; `digest` is the `link` of
    segment `seq` (0 and "" when there is none); of the run's `rows` up to there `stored` are in the table, the others are void or
    refused. `refused` are `[run, stream, seq, reason]`: kept raw by the control plane, not in the table. `digests` answer the
    question for them: `[run, stream, seq, link]`, of segments that the lake has.
    """

    nonce: str
    marks: list[list[Any]] = field(default_factory=list)
    refused: list[list[Any]] = field(default_factory=list)
    error: str = ""
    node: str = ""  # whom it answers
    digests: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ArtifactRequest(_Message):
    """Node -> control: `length` bytes of `digest` from `offset` on, or as many of them as one answer holds."""

    node: str
    nonce: str
    digest: str
    offset: int = 0
    length: int = CHUNK_BYTES_MAX


@dataclass(frozen=True)
class ArtifactReply(_Message):
    """Control -> node. Blobs: one chunk (at most CHUNK_BYTES_MAX) and the author's signature. `size` is that of the whole."""

    nonce: str
    kind: str = ""
    size: int = 0
    number: int = 0  # of a pipeline version
    error: str = ""
    node: str = ""  # whom it answers


@dataclass(frozen=True)
class Heartbeat(_Message):
    """Node -> control: a hint (I7), never queued, the newest wins."""

    node: str
    document: str
    term: int
    generation: int
    backlog_segments: int
    backlog_bytes: int
    clock: str
    agent: str
    backlog_rows: int = 0
    lost_rows: int = 0  # that no longer are in the buffer, nor in the lake
    buffer_lasts_s: int = -1  # with the link cut, at the measured rate; -1: not known


@dataclass(frozen=True)
class Join(_Message):
    """Node -> control, signed by the node's own new key: let the holder of `public` in. Blobs: the proof of `token.prove`."""

    public: str
    nonce: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    standing: str = ""  # the public key of `Key.derived("standing")`: for asking why it is kept out, should it ever be


@dataclass(frozen=True)
class JoinReply(_Message):
    """Control -> node, signed by the key that the token names."""

    nonce: str
    node: str = ""
    name: str = ""
    user_jwt: str = ""
    author: str = ""  # the nkey that signs versions
    labels: dict[str, str] = field(default_factory=dict)
    error: str = ""
    hint: str = ""
    standing_jwt: str = ""


@dataclass(frozen=True)
class Standing(_Message):
    """Node -> control, signed by the node: the broker no longer lets me in. Am I removed?"""

    node: str
    nonce: str


@dataclass(frozen=True)
class StandingReply(_Message):
    """Control -> node. `state` is `member`, `removed` or `unknown` (a control plane restored from a backup)."""

    nonce: str
    node: str
    state: str
    by: str = ""
    reason: str = ""
    at: str = ""
