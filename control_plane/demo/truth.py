"""The lake compared with what the sensors wrote. Reads the Delta tables as any other program would; asks no ledger of ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from control_plane.demo.factory import Written

READINGS, QUARANTINE = "press_readings", "quarantine"
_NUMBER = re.compile(r'"n": (\d+)|line noise (\d+)')


@dataclass(frozen=True)
class Comparison:
    """Rows by what the sensors wrote. `misplaced` are rows in a table where they should not be."""

    written: int
    in_lake: int
    quarantined: int
    lost: int
    duplicated: int
    misplaced: int

    @property
    def is_exact(self) -> bool:
        return self.lost == self.duplicated == self.misplaced == 0


def compare(lake: Path, written: Mapping[str, Written]) -> Comparison:
    """`written` is by node id. A row counts as lost when the table it belongs in does not have it."""
    readings, quarantine = _numbers(lake, READINGS), _numbers(lake, QUARANTINE)
    lost = duplicated = misplaced = 0
    for node, truth in written.items():
        for found, expected in (
            (readings.get(node, Counter()), truth.good),
            (quarantine.get(node, Counter()), truth.quarantined),
        ):
            lost += len(expected - found.keys())
            duplicated += sum(count - 1 for count in found.values())
            misplaced += len(found.keys() - expected)
    return Comparison(
        sum(truth.lines for truth in written.values()),
        sum(counts.total() for counts in readings.values()),
        sum(counts.total() for counts in quarantine.values()),
        lost,
        duplicated,
        misplaced,
    )


def _numbers(lake: Path, table: str) -> dict[str, Counter[int]]:
    """node id -> how often each reading's number stands in the table."""
    try:
        files = DeltaTable(str(lake / table)).file_uris()
    except TableNotFoundError:
        return {}
    column = "n" if table == READINGS else "raw"
    found: dict[str, Counter[int]] = {}
    for file in files:
        rows = pq.read_table(file, columns=["_node", column], use_threads=False)
        for node, value in zip(rows["_node"].to_pylist(), rows[column].to_pylist(), strict=True):
            found.setdefault(node, Counter())[value if column == "n" else _number_in(value)] += 1
    return found


def _number_in(raw: str) -> int:
    match = _NUMBER.search(raw)
    return int(match[1] or match[2]) if match else -1
