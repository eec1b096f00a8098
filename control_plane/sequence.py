"""Which of the segments that arrived continue what the lake has. Pure; never waits for a gap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.contract.segment import Segment


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a stream is in the lake, and the `link` of its last segment there. Of the run's `rows` so far `stored` are in the
    table."""

    seq: int = 0
    digest: str = ""
    rows: int = 0
    stored: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """`segments` follow the mark without a gap; `fork` says why the history is not the one we know ("" when it is)."""

    segments: tuple[Segment, ...] = ()
    fork: str = ""


def continue_from(mark: Mark, arrived: Iterable[Segment]) -> Continuation:
    """Of one stream: duplicates and what lies behind a gap are left out, the mark is their answer."""
    accepted: list[Segment] = []
    for segment in sorted(arrived, key=lambda s: s.header.seq):
        header = segment.header
        if header.seq == mark.seq and segment.digest != mark.digest:
            return Continuation(tuple(accepted), f"segment {header.seq} is not the one in the lake: {_FORK}")
        if header.seq <= mark.seq:
            continue
        if header.seq > mark.seq + 1:
            break
        if header.previous != mark.digest:
            return Continuation(tuple(accepted), f"segment {header.seq} does not follow segment {mark.seq} of the lake: {_FORK}")
        accepted.append(segment)
        mark = Mark(header.seq, segment.digest)
    return Continuation(tuple(accepted))


_FORK = "the node's card was restored or cloned"
