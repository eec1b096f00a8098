"""What `tidewire query` offers beside the tables as they are stored: ledgers, times of segments, repaired event times. Plain SQL.

Time (I10). A segment says where UTC was from node time when it was sealed, and how well that was known. Rows that a clock of the
node stamped (`stamps`) get the offset of the nearest segment of their boot that knew it: their own or a later one, else an
earlier one. Node time does not count while a node is off, so offsets only grow: of a boot in which nobody told the time, the
offset lies between those of the boots before and after. Its rows get the former and are called `unsynced`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from control_plane.window_tables import latest_sql, shown
from pipelines.contract.language.base import LOG

LEDGERS = """
CREATE VIEW ledgers AS
WITH parts AS (
    SELECT s.*, 'source' AS of, p.key AS name, p.value AS counts
    FROM segments s, json_each(s.ledgers, '$.source') p
  UNION ALL
    SELECT s.*, 'stream', stream, json_extract(s.ledgers, '$.stream')
    FROM segments s WHERE json_exists(s.ledgers, '$.stream')
  UNION ALL
    SELECT s.*, 'stream', stream, json_object('sealed', json_extract(s.ledgers, '$.sealed'))
    FROM segments s WHERE json_exists(s.ledgers, '$.sealed')
  UNION ALL
    SELECT s.*, 'stream', p.key, p.value
    FROM segments s, json_each(s.ledgers, '$.streams') p
  UNION ALL
    SELECT s.*, 'stream', p.key, json_object('pending', p.value)
    FROM segments s, json_each(s.ledgers, '$.pending') p
  UNION ALL
    SELECT s.*, 'stream', concat('windows.', p.key), json_object('open', p.value)
    FROM segments s, json_each(s.ledgers, '$.open') p
)
SELECT
    node, pipeline, lineage, coalesce(TRY_CAST(json_extract_string(ledgers, '$.commit') AS BIGINT), 0) AS "commit",
    CASE WHEN starts_with(name, 'windows.') THEN 'window' ELSE of END AS of,
    CASE WHEN starts_with(name, 'windows.') THEN substr(name, 9) ELSE name END AS name,
    split_part(c.key, '.', 1) AS word, TRY_CAST(split_part(c.key, '.', 2) AS INTEGER) AS step,
    TRY_CAST(json_extract_string(c.value, '$') AS BIGINT) AS rows,
    run, stream, seq, received_at
FROM parts, json_each(counts) c
"""

TIMES = """
CREATE VIEW segment_times AS
WITH known AS (
    SELECT *, CASE WHEN clock IN ('synced', 'anchored') THEN utc_offset_us END AS known_us FROM segments
), near AS (
    SELECT
        *,
        coalesce(
            first_value(known_us IGNORE NULLS) OVER (boot ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING),
            last_value(known_us IGNORE NULLS) OVER (boot ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
        ) AS boot_us,
        last_value(known_us IGNORE NULLS) OVER (line ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS earliest_us,
        first_value(known_us IGNORE NULLS) OVER (line ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS latest_us
    FROM known
    WINDOW
        boot AS (PARTITION BY node, boot ORDER BY node_time_us),
        line AS (PARTITION BY node, lineage ORDER BY node_time_us)
)
SELECT
    node, run, stream, seq, table_name, boot, node_time_us,
    CASE WHEN known_us IS NOT NULL THEN clock WHEN boot_us IS NOT NULL THEN 'anchored' ELSE 'unsynced' END AS clock,
    coalesce(boot_us, earliest_us, latest_us, 0) AS utc_offset_us,
    coalesce(boot_us, earliest_us) AS earliest_offset_us, coalesce(boot_us, latest_us) AS latest_offset_us,
    CASE stamps
        WHEN 'node' THEN coalesce(boot_us, earliest_us, latest_us, 0)
        WHEN 'wall' THEN coalesce(boot_us - (sealed_at_us - node_time_us), 0)
        ELSE 0
    END AS shift_us
FROM near
"""

_REPAIRED = """
CREATE VIEW "{name}" AS
SELECT r.* REPLACE ({columns}, coalesce(t.clock, r._clock) AS _clock)
FROM "{stored}" r
LEFT JOIN (SELECT * FROM segment_times WHERE table_name = '{table}') t
    ON t.node = r._node AND t.run = r._run AND t.stream = r._stream AND t.seq = r._seq
"""
_SHIFTED = 'make_timestamptz(epoch_us(r."{column}") + coalesce(t.shift_us, 0)) AS "{column}"'
_STAMPS = ("_event_time", "_window_start", "_window_end", "at")  # those of a table are shifted together
NODES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("name", pa.string()),
        ("labels", pa.map_(pa.string(), pa.string())),
        ("last_seen", pa.timestamp("us", tz="UTC")),
        ("in_contact", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class NodeName:
    """What a query may know of a node. `last_seen` in microseconds since 1970, 0 for never."""

    id: str
    name: str
    labels: dict[str, str]
    last_seen: int
    in_contact: bool = False
    pipelines: tuple[str, ...] = ()  # that it is to run


def table_names(lake_dir: Path) -> list[str]:
    """Those of a window are views over its log, see window_tables.py."""
    logs = lake_dir.glob("*/_delta_log")
    names = {path.parent.name for path in logs if any(path.glob("*.json"))}  # before its first commit there is no table
    return sorted(names | {shown(name) for name in names if name.endswith(LOG)})


def register(db: duckdb.DuckDBPyConnection, lake_dir: Path, tables: Iterable[str], nodes: Sequence[NodeName] = ()) -> None:
    """Offer `tables` as they are read, with the views over them."""
    db.execute("SET TimeZone = 'UTC'")
    db.register("nodes", _nodes(nodes))
    names, repaired = set(tables), set[str]()
    if "segments" in table_names(lake_dir):  # of the very first rows it is written after their own table
        db.register("segments", dataset(lake_dir, "segments"))
        db.execute(LEDGERS)
        db.execute(TIMES)
        repaired = {row[0] for row in db.execute("SELECT DISTINCT table_name FROM segments WHERE stamps <> ''").fetchall()}
    logs = {name for name in table_names(lake_dir) if name.endswith(LOG) and names & {name, shown(name)}}
    for name in sorted((names | logs) - {"segments"} - {shown(log) for log in logs}):
        rows = dataset(lake_dir, name)
        columns = [column for column in _STAMPS if _is_stamp(rows.schema, column, name)]
        if name not in repaired or not columns:
            db.register(name, rows)
            continue
        db.register(f"{name}__stored", rows)
        shifted = ", ".join(_SHIFTED.format(column=column) for column in columns)
        db.execute(_REPAIRED.format(name=name, stored=f"{name}__stored", table=name, columns=shifted))
    for log in sorted(logs):
        db.execute(f'CREATE VIEW "{shown(log)}" AS {latest_sql(log, dataset(lake_dir, log).schema.names)}')


def _is_stamp(schema: pa.Schema, column: str, table: str) -> bool:
    """`at` is a stamp of ours in our own tables only."""
    return column in schema.names and (column != "at" or table in ("incidents", "requests"))


def dataset(lake_dir: Path, name: str) -> pa.dataset.Dataset:
    return DeltaTable(lake_dir / name).to_pyarrow_dataset()


def _nodes(nodes: Sequence[NodeName]) -> pa.Table:
    rows = [
        {
            "id": n.id,
            "name": n.name,
            "labels": list(n.labels.items()),
            "last_seen": n.last_seen or None,
            "in_contact": n.in_contact,
        }
        for n in nodes
    ]
    return pa.Table.from_pylist(rows, schema=NODES_SCHEMA)
