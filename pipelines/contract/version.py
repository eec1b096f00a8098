"""A pipeline as it ships: canonical bytes and their digest. Two versions are equal when their digests are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

from pipelines.contract.frames import sha256
from pipelines.contract.spec import PipelineSpec, load_spec

LANGUAGES = (1, 1)  # oldest and newest language version this build runs


@dataclass(frozen=True)
class PipelineVersion:
    """`number` counts the versions of one pipeline as the control plane registered them; 0: not registered anywhere."""

    canonical: bytes
    number: int = 0

    @classmethod
    def of(cls, spec: PipelineSpec, number: int = 0) -> PipelineVersion:
        return cls(spec.canonical_bytes(), number)

    @cached_property
    def digest(self) -> str:
        return sha256(self.canonical)

    @cached_property
    def spec(self) -> PipelineSpec:
        return load_spec(self.canonical.decode())

    @cached_property
    def pipeline(self) -> str:
        return str(json.loads(self.canonical)["pipeline"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PipelineVersion) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
