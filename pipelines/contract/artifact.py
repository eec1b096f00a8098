"""Immutable bytes that come down, pulled by digest: pipeline versions today; tables, models and releases the same way."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.keys import Key, is_signed_by

PIPELINE_VERSION = "pipeline-version"
CHUNK_BYTES_MAX = 512 * 1024  # stays below NATS's default payload limit of 1 MiB


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
            raise Refused(f"the bytes have digest {self.digest}", op="verify artifact", place=digest)
        if not is_signed_by(author, _claim(self.kind, digest), self.signature):
            raise Refused("the author's signature does not match", op="verify artifact", place=digest)


def _claim(kind: str, digest: str) -> bytes:
    return canonical_json({"artifact": kind, "digest": digest, "format": 1})
