"""Who said it: Ed25519 keys (RFC 8032) in NATS's nkey notation, and envelopes: a signature (64 bytes), then the signed frame."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from pipelines.contract.errors import Refused
from pipelines.contract.frames import pack, unpack

SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Key:
    """An Ed25519 key pair in NATS's nkey notation. `seed` is a secret: it never enters a log or a message."""

    seed: str

    @classmethod
    def from_entropy(cls, entropy: bytes, kind: int = nkeys.PREFIX_BYTE_USER) -> Key:
        """A key from 32 random bytes that the caller drew; `kind` is an nkeys prefix byte."""
        return cls(nkeys.encode_seed(entropy, kind).decode())

    def derived(self, purpose: str) -> Key:
        """Another key that whoever has this one can make again: for a login of its own."""
        return Key.from_entropy(hashlib.sha256(f"{purpose} {self.seed}".encode()).digest())

    @cached_property
    def public(self) -> str:
        pair = nkeys.from_seed(bytearray(self.seed.encode()))
        return str(pair.public_key.decode().rstrip("="))

    def sign(self, data: bytes) -> bytes:
        return bytes(self._signing_key.sign(data).signature)

    @cached_property
    def _signing_key(self) -> SigningKey:
        padded = self.seed + "=" * (-len(self.seed) % 8)
        return SigningKey(base64.b32decode(padded)[2:34])

    def __repr__(self) -> str:
        return f"Key({self.public})"


def is_signed_by(public: str, data: bytes, signature: bytes) -> bool:
    """Whether `signature` over `data` was made with the private half of the nkey `public`."""
    try:
        raw = base64.b32decode(public + "=" * (-len(public) % 8))
        VerifyKey(raw[1:33]).verify(data, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def seal(key: Key, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """A signed frame: the only form in which either plane speaks to the other."""
    body = pack(header, blobs)
    return key.sign(body) + body


def unseal(public: str, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The frame within an envelope. Raises `Refused` unless the owner of `public` signed exactly these bytes (I13)."""
    signature, body = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    if not is_signed_by(public, body, signature):
        raise Refused("the signature does not match", op="unseal", hint="the sender's key changed or the bytes were altered")
    return unpack(body)
