"""What becomes of a record: a small code per row, and what each code means."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["alive", "undecodable", "invalid", "filtered", "filtered_null", "deduplicated", "failed"]

ALIVE, UNDECODABLE, INVALID = 0, 1, 2
QUARANTINED_KINDS: frozenset[Kind] = frozenset({"undecodable", "invalid", "failed"})


@dataclass(frozen=True)
class Fate:
    """`step` is the index of the step that decided, -1 before the first; `reason` is what quarantine tells of a failed row."""

    kind: Kind
    step: int = -1
    reason: str = ""


class Fates:
    """The fates of one pipeline: a code is an index. Steps add theirs while the pipeline is compiled."""

    def __init__(self) -> None:
        self._all = [Fate("alive"), Fate("undecodable"), Fate("invalid")]

    def add(self, kind: Kind, step: int, reason: str = "") -> int:
        self._all.append(Fate(kind, step, reason))
        return len(self._all) - 1

    def __getitem__(self, code: int) -> Fate:
        return self._all[code]

    def __iter__(self) -> Iterator[Fate]:
        return iter(self._all)

    def codes(self, kinds: Collection[Kind]) -> list[int]:
        return [code for code, fate in enumerate(self._all) if fate.kind in kinds]
