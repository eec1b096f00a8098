"""What the files held against what the lake holds, by plain pyarrow and DuckDB: nothing of Tidewire helps counting."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

MADE = ("accepted", "quarantined", "dropped_invalid", "deduplicated", "filtered", "filtered_null")


@dataclass(frozen=True)
class Counted:
    """Lines and rows. `void` are rows that a stub in the lake says are lost; they are missing, and accounted for.

    A line that does not decode counts with its text, as a row of the quarantine.
    """

    lines: int
    rows: int  # of the lake
    missing: int
    twice: int  # within a run
    read_again: int  # twice, in two runs: where the positions themselves were lost with what was committed after them
    void: int
    keys_twice: int  # I2: (node, run, stream, seq, row)
    gaps: int  # in the segments of a run
    ledgers_wrong: int  # I4, in any segment

    @property
    def is_complete(self) -> bool:
        return self.missing <= self.void

    @property
    def wrong(self) -> list[str]:
        """What must be 0 and is not."""
        zero = ("twice", "read_again", "keys_twice", "gaps", "ledgers_wrong")
        bad = {"missing and not accounted for": self.missing - self.void, **{name: getattr(self, name) for name in zero}}
        return [f"{value} {name.replace('_', ' ')}" for name, value in bad.items() if value]

    def figures(self) -> dict[str, int]:
        return asdict(self)


def count(logs: Sequence[Path], lake: Path) -> Counted:
    """`logs` are the directories that writers filled, `lake` that of the tables."""
    with duckdb.connect() as db:
        _load_truth(db, logs)
        db.register("numbers", table(lake, "numbers", {"writer": pa.string(), "n": pa.int64(), **_KEYS}))
        db.register("quarantine", table(lake, "quarantine", {"raw": pa.string(), "_run": pa.string()}))
        segments = table(lake, "segments", _SEGMENTS)
        db.register("segments", segments)
        db.execute(
            "CREATE VIEW found AS SELECT writer || ' ' || n AS key, _run FROM numbers "
            "UNION ALL SELECT raw::VARCHAR AS key, _run FROM quarantine"
        )
        return Counted(
            lines=_one(db, "SELECT count(*) FROM lines"),
            rows=_one(db, "SELECT count(*) FROM found"),
            missing=_one(db, "SELECT count(*) FROM lines ANTI JOIN found USING (key)"),
            twice=_one(db, "SELECT count(*) - count(DISTINCT (key, _run)) FROM found"),
            read_again=_one(db, "SELECT count(DISTINCT (key, _run)) - count(DISTINCT key) FROM found"),
            void=_one(db, f"SELECT coalesce(sum(rows), 0)::BIGINT FROM segments WHERE void <> '' AND {_COMPARED}"),
            keys_twice=_one(db, "SELECT count(*) - count(DISTINCT (_node, _run, _stream, _seq, _row)) FROM numbers"),
            gaps=_one(db, f"SELECT count(*) FROM ({_BEFORE}) WHERE first <> before + 1"),
            ledgers_wrong=ledgers_wrong(segments.column("ledgers").to_pylist()),
        )


def settled(lake: Path) -> int:
    """Rows that the lake holds, and rows that it knows are lost, of what the writers wrote: from the tables' own metadata."""
    stored = sum(_rows_of(lake, name) for name in ("numbers", "quarantine"))
    with duckdb.connect() as db:
        db.register("segments", table(lake, "segments", _SEGMENTS))
        return stored + _one(db, f"SELECT coalesce(sum(rows), 0)::BIGINT FROM segments WHERE void <> '' AND {_COMPARED}")


def ledgers_wrong(ledgers: Sequence[str]) -> int:
    """How many sources' counts, in all the segments that tell them, do not add up; 1 when none tells them."""
    told = [counts for text in ledgers for counts in json.loads(text).get("source", {}).values()]
    return sum(not _adds_up(counts) for counts in told) if told else 1


def _adds_up(source: Mapping[str, int]) -> bool:
    return source["read"] == source["undecodable"] + source["made"] and source["made"] == sum(source.get(k, 0) for k in MADE)


_KEYS = {"_node": pa.string(), "_run": pa.string(), "_stream": pa.string(), "_seq": pa.int64(), "_row": pa.int64()}
_SEGMENTS = {
    **{name: pa.string() for name in ("node", "run", "stream", "kind", "table_name", "void", "ledgers")},
    **{name: pa.int64() for name in ("seq", "first", "rows")},
}
_COMPARED = "(table_name = 'numbers' OR kind = 'quarantine')"
_BEFORE = "SELECT first, lag(seq, 1, 0) OVER (PARTITION BY node, run, stream ORDER BY seq) AS before FROM segments"


def table(lake: Path, name: str, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Some columns of a lake table; one without rows while there is no such table."""
    try:
        return DeltaTable(str(lake / name)).to_pyarrow_table(columns=list(columns))
    except TableNotFoundError:
        return pa.schema(list(columns.items())).empty_table()


def _rows_of(lake: Path, name: str) -> int:
    try:
        actions = pa.table(DeltaTable(str(lake / name)).get_add_actions(flatten=True))
    except TableNotFoundError:
        return 0
    return sum(actions.column("num_records").to_pylist())


def _load_truth(db: duckdb.DuckDBPyConnection, logs: Sequence[Path]) -> None:
    db.execute(
        "CREATE TABLE lines AS SELECT CASE WHEN text LIKE 'broken %' THEN text "
        "ELSE (text->>'$.writer') || ' ' || (text->>'$.n') END AS key "
        "FROM read_csv(?, header=false, auto_detect=false, delim='\x01', quote='', escape='', columns={'text': 'VARCHAR'})",
        [[str(log / "*.jsonl") for log in logs]],
    )


def _one(db: duckdb.DuckDBPyConnection, sql: str) -> int:
    row = db.execute(sql).fetchone()
    assert row is not None
    return int(row[0])
