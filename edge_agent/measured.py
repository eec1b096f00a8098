"""What a runner did with rows since it started: what the gate judges its version by (gate.py)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_agent.gate import REASONS_MAX, size_class

if TYPE_CHECKING:
    import pyarrow as pa

KINDS_MAX = 64  # of reasons that are told apart
REASON_MAX = 100  # characters
REASONS_READ = 1_000  # of one batch: a flood of them is of few kinds
_VALUE = re.compile(r'("(?:[^"\\]|\\.)*"|the value|-?\d\S*) ')
_REJECTS = ("undecodable", "quarantined", "dropped_invalid")


class Measured:
    def __init__(self, totals: Mapping[str, Any]) -> None:
        """`totals` are the cumulative counts of the pipeline as this life begins."""
        self._read, self._rejected = _counts(totals)
        self._pace: dict[int, tuple[int, int]] = {}
        self._reasons: Counter[str] = Counter()

    def evaluated(self, rows: int, busy_us: int, rejected: Sequence[pa.Table]) -> None:
        """One batch: how long it took, in CPU time of all threads, and what was quarantined of it."""
        size = size_class(rows)
        before = self._pace.get(size, (0, 0))
        self._pace[size] = (before[0] + rows, before[1] + busy_us)
        for table in rejected:
            for found in table["reasons"].combine_chunks().flatten()[:REASONS_READ].value_counts():
                why = _kind(found["values"].as_py() or "")
                if why in self._reasons or len(self._reasons) < KINDS_MAX:
                    self._reasons[why] += found["counts"].as_py()

    def told(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """As JSON: see `gate.Measure.of`."""
        read, rejected = _counts(totals)
        pace = {str(size): list(spent) for size, spent in self._pace.items()}
        reasons = dict(self._reasons.most_common(REASONS_MAX))
        return {"rows": read - self._read, "rejected": rejected - self._rejected, "pace": pace, "reasons": reasons}


def _counts(totals: Mapping[str, Any]) -> tuple[int, int]:
    return int(totals.get("read", 0)), sum(int(totals.get(word, 0)) for word in _REJECTS)


def _kind(reason: str) -> str:
    """A reason without the value: `temp_c: "x" is not a double` -> `temp_c is not a double`."""
    name, colon, rest = reason.partition(": ")
    found = _VALUE.match(rest) if colon else None
    return (f"{name} {rest[found.end() :]}" if found else reason)[:REASON_MAX]
