"""Immutable bytes that come down, pulled by digest: pipeline versions and lookup tables; models and releases the same way."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.contract import causes
from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.keys import Key, is_signed_by

PIPELINE_VERSION = "pipeline-version"
LOOKUP_TABLE = "lookup-table"  # CSV in UTF-8 with a header line
ARTIFACT_BYTES_MAX = 64 * 1024 * 1024
CHUNK_BYTES_MAX = 512 * 1024  # stays below NATS's default payload limit of 1 MiB

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_REFERENCE = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,62})(?:@([1-9][0-9]{0,8}))?\Z")


@dataclass(frozen=True)
class Artifact:
    """Content-addressed bytes with the author's signature over kind and digest (I13)."""

    kind: str
    data: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        return sha256(self.data)

    @classmethod
    def sign(cls, kind: str, data: bytes, author: Key) -> Artifact:
        return cls(kind, data, author.sign(_claim(kind, sha256(data))))

    def verify(self, digest: str, author: str) -> None:
        """Raise `Refused` unless these are the bytes named `digest`, released by the holder of the nkey `author`."""
        if self.digest != digest:
            raise Refused(f"the bytes have digest {self.digest}", op="verify artifact", place=digest, code=causes.SIGNATURE)
        check_released(self.kind, digest, self.signature, author)


def check_released(kind: str, digest: str, signature: bytes, author: str) -> None:
    """Raise `Refused` unless the holder of the nkey `author` released the bytes named `digest` as a `kind` (I13)."""
    if not is_signed_by(author, _claim(kind, digest), signature):
        raise Refused("the author's signature does not match", op="verify artifact", place=digest, code=causes.SIGNATURE)


def is_digest(text: str) -> bool:
    return _DIGEST.match(text) is not None


def parse_reference(text: str) -> tuple[str, int | None]:
    """`NAME` (the newest) or `NAME@N` of an artifact. Raises `ValueError`."""
    found = _REFERENCE.match(text)
    if found is None:
        raise ValueError("an artifact is NAME, or NAME@N for one that stays: letters, digits, _ and -, at most 63 of them")
    return found[1], int(found[2]) if found[2] else None


def _claim(kind: str, digest: str) -> bytes:
    return canonical_json({"artifact": kind, "digest": digest, "format": 1})
