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

    def after(self, segment: Segment, stored: int) -> Mark:
        """The mark once `segment` is in the lake, `stored` of its rows in the table."""
        return Mark(segment.header.seq, segment.link, segment.header.run_rows, self.stored + stored)


@dataclass(frozen=True, slots=True)
class Continuation:
    """`segments` follow the mark without a gap; `fork` says why the history is not the one we know ("" when it is)."""

    segments: tuple[Segment, ...] = ()
    fork: str = ""


def continue_from(mark: Mark, arrived: Iterable[Segment]) -> Continuation:
    """Of one stream: duplicates, what lies behind a gap and stubs that begin elsewhere than the mark ends are left out; the mark
    is their answer. It ends with a stub: what follows may be stored once the stub's verdict is, or a table's mark would say that
    the rows behind the stub went into it."""
    accepted: list[Segment] = []
    seq, link = mark.seq, mark.digest
    for segment in sorted(arrived, key=lambda s: (s.header.seq, s.header.first)):
        header = segment.header
        if header.seq == seq and segment.link != link:
            return Continuation(tuple(accepted), f"segment {header.seq} is not the one in the lake: {_FORK}")
        if header.first != seq + 1:
            continue
        if header.previous != link:
            return Continuation(tuple(accepted), f"segment {header.first} does not follow segment {seq} of the lake: {_FORK}")
        accepted.append(segment)
        seq, link = header.seq, segment.link
        if header.is_stub:
            break
    return Continuation(tuple(accepted))


_FORK = "the node's card was restored or cloned"
