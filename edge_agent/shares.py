"""Who loses when the buffer is full, and who waits. Pure.

The node has one budget. A part of it is reserved for incidents and ledgers, and for the state beside them; rows and quarantine
share the rest. Nobody loses while there is room. When there is none, the stream that is farthest above its share does: the one
with the most bytes by weight, so that streams that fill up end in proportion to their weights. A pipeline may have its own limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.contract.language.sinks import PRIORITY_DEFAULT, PRIORITY_LAST
from pipelines.contract.segment import LEDGER, QUARANTINE, ROWS
from pipelines.contract.size import parse_size

DROP_OLDEST, DROP_NEWEST, BLOCK = "drop_oldest", "drop_newest", "block"
RESERVE_SHARE, RESERVE_BYTES_MIN = 20, 16 << 20  # a twentieth of the budget, but not less than this ...
_RESERVE_SHARE_MAX = 4  # ... and of a small budget not more than a quarter
_LOSABLE = (ROWS, QUARANTINE)


@dataclass(frozen=True, slots=True)
class Buffer:
    """What a pipeline says: a limit for its streams together (0: only the node's), and who loses; priorities of its sinks."""

    max_bytes: int = 0
    when_full: str = DROP_OLDEST
    priorities: Mapping[str, int] = field(default_factory=dict)

    def priority(self, stream: str) -> int:
        return self.priorities.get(stream, PRIORITY_DEFAULT)

    def weight(self, stream: str) -> int:
        return PRIORITY_LAST + 1 - self.priority(stream)


def declared(canonical: bytes) -> Buffer:
    """What a version (its canonical bytes) says of its buffer."""
    pipeline = json.loads(canonical)
    buffer, sinks = pipeline.get("buffer", {}), pipeline.get("sinks", {})
    priorities = {name: sink["priority"] for name, sink in sinks.items() if "priority" in sink}
    max_bytes = parse_size(buffer["max_size"]) if "max_size" in buffer else 0
    return Buffer(max_bytes, buffer.get("when_full", DROP_OLDEST), priorities)


@dataclass(frozen=True, slots=True)
class Usage:
    """The bytes that a stream holds, over all its runs."""

    pipeline: str
    stream: str
    kind: str
    bytes: int


def reserve_bytes(budget: int) -> int:
    return min(max(budget // RESERVE_SHARE, RESERVE_BYTES_MIN), budget // _RESERVE_SHARE_MAX)


def losers(usages: Sequence[Usage], buffers: Mapping[str, Buffer], budget: int) -> list[Usage]:
    """The streams that must give up a segment now, first the one that is to; empty while there is room.

    A ledger that is not the newest of its stream goes when ledgers and incidents outgrow the reserve: the newest says all that
    it said. Incidents never do; they take from the rows' part.
    """
    kept = sum(usage.bytes for usage in usages if usage.kind not in _LOSABLE)
    if kept > reserve_bytes(budget) and (ledgers := [usage for usage in usages if usage.kind == LEDGER]):
        return sorted(ledgers, key=lambda usage: -usage.bytes) + _by_share(_over_budget(usages, buffers, budget), buffers)
    over = _over_own_limit(usages, buffers) or _over_budget(usages, buffers, budget)
    return _by_share(over, buffers)


def must_wait(pipeline: str, added: int, usages: Sequence[Usage], buffers: Mapping[str, Buffer], budget: int) -> bool:
    """Whether a commit of `added` bytes has to wait until the lake took some (`block`): over the pipeline's own limit, or
    over the node's budget while nobody else is farther above its share. What is larger than any limit goes when all is gone."""
    buffer = buffers.get(pipeline, Buffer())
    own = [usage for usage in usages if usage.pipeline == pipeline and usage.kind in _LOSABLE]
    held = sum(usage.bytes for usage in own)
    if buffer.when_full != BLOCK or not held:
        return False
    if buffer.max_bytes and held + added > buffer.max_bytes:
        return True
    if _losable_bytes(usages) + added <= _rows_limit(usages, budget):
        return False
    others = [usage for usage in usages if usage.kind in _LOSABLE and _may_lose(usage, buffers)]
    return max(_load(usage, buffers) for usage in own) >= max((_load(usage, buffers) for usage in others), default=0.0)


def _over_own_limit(usages: Sequence[Usage], buffers: Mapping[str, Buffer]) -> list[Usage]:
    held: dict[str, int] = {}
    for usage in usages:
        if usage.kind in _LOSABLE:
            held[usage.pipeline] = held.get(usage.pipeline, 0) + usage.bytes
    full = {name for name, size in held.items() if 0 < buffers.get(name, Buffer()).max_bytes < size}
    return [usage for usage in usages if usage.pipeline in full and usage.kind in _LOSABLE and _may_lose(usage, buffers)]


def _over_budget(usages: Sequence[Usage], buffers: Mapping[str, Buffer], budget: int) -> list[Usage]:
    if _losable_bytes(usages) <= _rows_limit(usages, budget):
        return []
    return [usage for usage in usages if usage.kind in _LOSABLE and _may_lose(usage, buffers)]


def _rows_limit(usages: Sequence[Usage], budget: int) -> int:
    kept = sum(usage.bytes for usage in usages if usage.kind not in _LOSABLE)
    return budget - max(reserve_bytes(budget), kept)


def _losable_bytes(usages: Sequence[Usage]) -> int:
    return sum(usage.bytes for usage in usages if usage.kind in _LOSABLE)


def _may_lose(usage: Usage, buffers: Mapping[str, Buffer]) -> bool:
    return buffers.get(usage.pipeline, Buffer()).when_full != BLOCK


def _load(usage: Usage, buffers: Mapping[str, Buffer]) -> float:
    return usage.bytes / buffers.get(usage.pipeline, Buffer()).weight(usage.stream)


def _by_share(usages: Sequence[Usage], buffers: Mapping[str, Buffer]) -> list[Usage]:
    return sorted(usages, key=lambda usage: (-_load(usage, buffers), usage.pipeline, usage.stream))
