"""`tidewire audit`: whether every row is accounted for (I4) and in its table once (I2), by SQL over the lake.

What must hold are `EQUATIONS`: statements that return nothing, or a row for each difference. docs/audit.md shows the same text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
from deltalake import DeltaTable

from control_plane.lake_views import LEDGERS, NodeName, dataset, table_names
from control_plane.times import iso
from pipelines.engine.answers import TABLE as ANSWERS

NODES_SHOWN = 10  # beyond, figures are those of all nodes together
LISTED_MAX = 100  # gaps, refused segments, differences, reasons: the newest, and how many more there are
_WORDS = {"void": "unfit", "evicted": "", "damaged": "", "sealed": "", "pending": ""}  # told better by the segments themselves
_SETTINGS = (
    "SET memory_limit = '1GB'",
    "SET temp_directory = ''",
    "SET TimeZone = 'UTC'",
    "SET autoinstall_known_extensions = false",
)
_Key = tuple[str, str, str, str]  # node, pipeline, source | stream | window, name

SOURCE = """
WITH told AS (
    SELECT node, pipeline, lineage, "commit", name, run, stream, seq, received_at,
        coalesce(sum(rows) FILTER (word = 'read'), 0) AS read,
        coalesce(sum(rows) FILTER (word IN ('undecodable', 'made')), 0) AS framed,
        coalesce(sum(rows) FILTER (word = 'made'), 0) AS made,
        coalesce(sum(rows) FILTER (word IN
            ('quarantined', 'dropped_invalid', 'deduplicated', 'filtered', 'filtered_null', 'accepted')), 0) AS fates
    FROM ledgers WHERE of = 'source' GROUP BY ALL
)
SELECT node, pipeline, 'source ' || name AS place,
    if(read <> framed, read, made) AS told, if(read <> framed, framed, fates) AS found, received_at
FROM told
WHERE read <> framed OR made <> fates
QUALIFY row_number() OVER (PARTITION BY node, pipeline, lineage, name ORDER BY "commit" DESC) = 1
"""

STREAM = """
WITH told AS (
    SELECT node, pipeline, lineage, "commit", name, run, stream, seq, received_at,
        coalesce(sum(rows) FILTER (word = 'offered'), 0) AS offered,
        coalesce(sum(rows) FILTER (word IN ('not_selected', 'written')), 0) AS fates
    FROM ledgers WHERE of = 'stream' GROUP BY ALL
)
SELECT node, pipeline, 'stream ' || name AS place, offered AS told, fates AS found, received_at
FROM told
WHERE offered <> fates
QUALIFY row_number() OVER (PARTITION BY node, pipeline, lineage, name ORDER BY "commit" DESC) = 1
"""

WINDOW = """
WITH told AS (
    SELECT node, pipeline, lineage, "commit", name, run, stream, seq, received_at,
        coalesce(sum(rows) FILTER (word = 'contributed'), 0) AS contributed,
        coalesce(sum(rows) FILTER (word IN ('emitted', 'open', 'too_late', 'over_limit')), 0) AS fates
    FROM ledgers WHERE of = 'window' GROUP BY ALL
)
SELECT node, pipeline, 'window ' || name AS place, contributed AS told, fates AS found, received_at
FROM told
WHERE contributed <> fates
QUALIFY row_number() OVER (PARTITION BY node, pipeline, lineage, name ORDER BY "commit" DESC) = 1
"""

ARRIVED = """
WITH told AS (
    SELECT node, pipeline, lineage, name AS stream, "commit",
        max(rows) FILTER (word = 'written') AS written,
        coalesce(max(rows) FILTER (word = 'void'), 0) AS unfit,
        max(rows) FILTER (word = 'pending') AS pending,
        max(received_at) AS received_at
    FROM ledgers WHERE of = 'stream' GROUP BY node, pipeline, lineage, name, "commit"
    HAVING written IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY node, pipeline, lineage, name ORDER BY "commit" DESC) = 1
), arrived AS (
    SELECT node, pipeline, lineage, stream, sum(rows) AS rows, max(received_at) AS received_at,
        coalesce(sum(rows) FILTER (void = 'damaged'), 0) AS damaged
    FROM segments WHERE rows > 0 AND NOT starts_with(reason, 'retaken') GROUP BY ALL
), both_sides AS (
    SELECT node, pipeline, lineage, stream, coalesce(written, 0) AS written,
        coalesce(unfit, 0) + coalesce(rows, 0) AS known, coalesce(pending, 0) AS pending,
        coalesce(damaged, 0) AS damaged, greatest(told.received_at, arrived.received_at) AS received_at
    FROM told FULL JOIN arrived USING (node, pipeline, lineage, stream)
)
SELECT node, pipeline, 'stream ' || stream AS place, written AS told,
    known + least(greatest(written - known, -damaged), pending) AS found, received_at
FROM both_sides
WHERE written - known NOT BETWEEN -damaged AND pending
"""

TWICE = """
WITH sealed AS (
    SELECT s.node, s.pipeline, s.lineage, s.stream, s.received_at, l.rows AS until_row, l.rows - s.rows AS from_row
    FROM segments s
    JOIN ledgers l ON l.word = 'sealed' AND l.of = 'stream' AND l.name = s.stream
        AND (l.node, l.run, l.stream, l.seq) = (s.node, s.run, s.stream, s.seq)
    WHERE s.rows > 0
), before AS (
    SELECT *, max(until_row) OVER (
        PARTITION BY node, pipeline, lineage, stream ORDER BY from_row, until_row
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
    FROM sealed
)
SELECT node, pipeline, 'stream ' || stream AS place, 0 AS told, sum(least(until_row, reached) - from_row) AS found,
    max(received_at) AS received_at
FROM before WHERE from_row < reached GROUP BY ALL
"""

CHAIN = """
WITH linked AS (
    SELECT *, coalesce(lag(seq) OVER run, 0) AS seq_before, coalesce(lag(run_rows) OVER run, 0) AS rows_before
    FROM segments
    WINDOW run AS (PARTITION BY node, run, stream ORDER BY seq)
)
SELECT node, pipeline, 'run ' || run || ' of ' || stream || ' at ' || seq AS place,
    seq_before + 1 AS told, first AS found, received_at
FROM linked WHERE first <> seq_before + 1 OR run_rows <> rows_before + rows
"""

TABLE = """
WITH found AS (
    SELECT _node AS node, _run AS run, _stream AS stream, _seq AS seq, count(*) AS rows,
        min(_row) = 0 AND max(_row) = count(*) - 1 AND sum(_row) = count(*) * (count(*) - 1) // 2
            AND sum(_row * _row) = count(*) * (count(*) - 1) * (2 * count(*) - 1) // 6 AS is_each_once
    FROM "TABLE" GROUP BY ALL
), settled AS (
    SELECT node, run, stream, seq, pipeline, received_at,
        run_stored - coalesce(lag(run_stored) OVER (PARTITION BY node, run, stream ORDER BY seq), 0) AS stored
    FROM segments WHERE table_name = 'TABLE'
), placed AS (
    SELECT s.node, s.run, s.stream, s.seq, sum(f.rows) AS rows, bool_and(f.is_each_once) AS is_each_once
    FROM found f ASOF JOIN settled s ON f.node = s.node AND f.run = s.run AND f.stream = s.stream AND f.seq <= s.seq
    GROUP BY ALL
)
SELECT node, pipeline, 'table TABLE, run ' || run || ' at ' || seq AS place,
    stored AS told, coalesce(rows, 0) AS found, received_at
FROM settled LEFT JOIN placed USING (node, run, stream, seq)
WHERE stored <> coalesce(rows, 0) OR NOT is_each_once
"""

EQUATIONS = {
    "source": SOURCE,
    "stream": STREAM,
    "window": WINDOW,
    "arrived": ARRIVED,
    "twice": TWICE,
    "chain": CHAIN,
    "table": TABLE,  # for each table, its name in place of TABLE
}
SAYS = {
    "source": "read is not undecodable + made, or made is not what became of the records",
    "stream": "offered is not not_selected + written",
    "window": "contributed is not emitted + open + too_late + over_limit",
    "arrived": "written is not stored + void + refused + pending",
    "twice": "rows of one place in the stream arrived twice: the card was restored or cloned, or a run was sealed anew",
    "chain": "the segments of a run do not follow each other",
    "table": "the rows in the table are not those of the segment, each once",
}

_FIGURES = """
SELECT node, pipeline, of, name, word, step, sum(rows)::BIGINT AS rows FROM (
    SELECT node, pipeline, lineage, of, name, word, step, arg_max(rows, "commit") AS rows FROM ledgers GROUP BY ALL
) GROUP BY ALL
"""
_VERDICTS = """
WITH settled AS (
    SELECT *, run_stored - coalesce(lag(run_stored) OVER (PARTITION BY node, run, stream ORDER BY seq), 0) AS stored
    FROM segments
), words AS (
    SELECT node, pipeline, stream, table_name, 'stored' AS word, stored AS rows FROM settled
  UNION ALL
    SELECT node, pipeline, stream, table_name, if(void <> '', void, 'refused'),
        if(starts_with(reason, 'retaken'), 0, rows) - stored
    FROM settled
)
SELECT node, pipeline, stream, max(table_name) AS table_name, word, sum(rows)::BIGINT AS rows
FROM words WHERE rows <> 0 GROUP BY ALL
"""
_LINEAGES = """
WITH told AS (
    SELECT node, pipeline, lineage, name AS stream, "commit",
        max(rows) FILTER (word = 'written') - coalesce(max(rows) FILTER (word = 'void'), 0) AS sealed
    FROM ledgers WHERE of = 'stream' GROUP BY node, pipeline, lineage, name, "commit"
    HAVING sealed IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY node, pipeline, lineage, name ORDER BY "commit" DESC) = 1
), arrived AS (
    SELECT node, pipeline, lineage, stream, sum(rows) AS rows
    FROM segments WHERE NOT starts_with(reason, 'retaken') GROUP BY ALL
), times AS (
    SELECT node, pipeline, lineage, epoch_us(min(received_at)) AS begun, epoch_us(max(received_at)) AS heard
    FROM segments GROUP BY ALL
)
SELECT node, pipeline, lineage, begun, heard, stream, greatest(coalesce(sealed, 0) - coalesce(rows, 0), 0)::BIGINT AS pending
FROM times LEFT JOIN told USING (node, pipeline, lineage) LEFT JOIN arrived USING (node, pipeline, lineage, stream)
ORDER BY node, pipeline, begun, heard
"""
_GAPS = """
SELECT node, pipeline, stream, run, first, seq, rows, void AS reason, epoch_us(received_at) AS at
FROM segments WHERE void <> '' ORDER BY received_at DESC
"""
_REFUSED = """
SELECT node, pipeline, stream, run, seq, rows, reason, epoch_us(received_at) AS at
FROM segments WHERE verdict = 'refused' ORDER BY received_at DESC
"""
_REASONS = """
SELECT pipeline, step, regexp_replace(reason, '"[^"]*"|-?\\d[\\d.]*', '...', 'g') AS reason, count(*) AS rows
FROM (SELECT pipeline, step, unnest(reasons) AS reason FROM quarantine WHERE epoch_us(_received_at) >= $from)
GROUP BY ALL ORDER BY rows DESC
"""


@dataclass(frozen=True)
class Scope:
    """What is asked for: one pipeline or "" for all, one node's id or "", by when it was received (microseconds since 1970)."""

    pipeline: str = ""
    node: str = ""
    from_us: int = 0
    to_us: int = 2**62


@dataclass(frozen=True)
class Difference:
    """`found` where `told` should be. `equation` is a key of `SAYS`; `at` when the segment that shows it was received."""

    equation: str
    node: str
    pipeline: str
    place: str
    told: int
    found: int
    at: int

    @property
    def says(self) -> str:
        return f"{self.pipeline} on {self.node}: {self.place}: {self.found} where {self.told} should be: {SAYS[self.equation]}"


@dataclass
class Figures:
    """Of one source, stream or window: word -> rows. `steps` of a source: which step did what to how many."""

    rows: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    table: str = ""


@dataclass(frozen=True)
class Audit:
    """What the API answers. Lists have at most `LISTED_MAX`; `more` says how many each leaves out. Figures are those since
    `Scope.from_us`; `tables` are the rows counted in each."""

    holds: bool = True
    figures: Sequence[Mapping[str, Any]] = ()
    differences: Sequence[Mapping[str, Any]] = ()
    reasons: Sequence[Mapping[str, Any]] = ()
    gaps: Sequence[Mapping[str, Any]] = ()
    refused: Sequence[Mapping[str, Any]] = ()
    restarts: Sequence[Mapping[str, Any]] = ()
    heard: Sequence[Mapping[str, Any]] = ()
    tables: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, int] = field(default_factory=dict)


def run_audit(lake_dir: Path, scope: Scope, nodes: Sequence[NodeName] = ()) -> Audit:
    """Slow: one pass over the lineage columns of every table in scope. Reads the lake as it is while others write."""
    names = {node.id: node.name for node in nodes}
    if "segments" not in table_names(lake_dir):
        return Audit(heard=_heard([], nodes, scope))
    with duckdb.connect(":memory:") as db:
        tables = _open(db, lake_dir, scope)
        before = _figures(db, scope.from_us) if scope.from_us else {}
        _limit(db, scope.to_us)
        differences = _differences(db, tables, scope, names)
        lineages = _rows(db, _LINEAGES)
        figures = _since(_figures(db, scope.to_us), before)
        _add_pending(figures, lineages)
        since = {"from": scope.from_us}
        lists: dict[str, Sequence[Any]] = {
            "differences": differences,
            "gaps": [row for row in _rows(db, _GAPS) if row["at"] >= scope.from_us],
            "refused": [row for row in _rows(db, _REFUSED) if row["at"] >= scope.from_us],
            "reasons": _rows(db, _REASONS, since) if "quarantine" in tables else [],
            "restarts": [row for row in _restarts(lineages) if row["at"] >= scope.from_us],
        }
        return Audit(
            not differences,
            _shown(figures, names),
            heard=_heard(lineages, nodes, scope),
            tables={table: _counted(db, table) for table in tables if table != ANSWERS},
            more={what: len(rows) - LISTED_MAX for what, rows in lists.items() if len(rows) > LISTED_MAX},
            **{what: [_named(row, names) for row in rows[:LISTED_MAX]] for what, rows in lists.items()},
        )


def _open(db: duckdb.DuckDBPyConnection, lake_dir: Path, scope: Scope) -> list[str]:
    """Views of what is in scope; the tables that rows went into."""
    for setting in _SETTINGS:
        db.execute(setting)
    db.register("segments__stored", dataset(lake_dir, "segments"))  # first: what tables have beyond it is only newer
    db.execute(f"CREATE VIEW segments__asked AS SELECT * FROM segments__stored WHERE {_where(scope, '')}")
    _limit(db, scope.to_us)
    db.execute(LEDGERS)
    found = {row["name"] for row in _rows(db, "SELECT DISTINCT table_name AS name FROM segments WHERE rows > 0")}
    tables = sorted(found & set(table_names(lake_dir)))
    for table in tables:
        files = ", ".join(_text(uri.removeprefix("file://")) for uri in DeltaTable(lake_dir / table).file_uris())
        stored = f"read_parquet([{files}], union_by_name = true)"  # ten times faster than through pyarrow
        if not files:  # a table that never took a row
            db.register(stored := f"{table}__stored", dataset(lake_dir, table))
        db.execute(f'CREATE VIEW "{table}" AS SELECT * FROM {stored} WHERE {_where(scope, "_")}')
    return tables


def _where(scope: Scope, prefix: str) -> str:
    wanted = {"pipeline": scope.pipeline, "node": scope.node}
    tests = [f"{prefix}{name} = {_text(value)}" for name, value in wanted.items() if value]
    return " AND ".join(tests) or "true"


def _text(value: str) -> str:
    """As SQL."""
    return "'" + value.replace("'", "''") + "'"


def _limit(db: duckdb.DuckDBPyConnection, until_us: int) -> None:
    """What was received before `until_us`, from now on."""
    db.execute(f"CREATE OR REPLACE VIEW segments AS SELECT * FROM segments__asked WHERE epoch_us(received_at) < {until_us:d}")


def _rows(db: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    found = db.execute(sql, values or {})
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _differences(
    db: duckdb.DuckDBPyConnection, tables: Iterable[str], scope: Scope, names: Mapping[str, str]
) -> list[Difference]:
    asked = [(name, sql) for name, sql in EQUATIONS.items() if name != "table"]
    asked += [("table", TABLE.replace("TABLE", table)) for table in tables if table != ANSWERS]  # upkeep drops old ones
    found = [Difference(name, **row) for name, sql in asked for row in _rows(db, _LISTED.format(sql=sql))]
    return [replace(d, node=names.get(d.node, d.node)) for d in found if d.at >= scope.from_us]


_LISTED = "SELECT node, pipeline, place, told::BIGINT AS told, found::BIGINT AS found, epoch_us(received_at) AS at FROM ({sql})"


def _figures(db: duckdb.DuckDBPyConnection, until_us: int) -> dict[_Key, Figures]:
    """As of `until_us`: what the ledgers say, and of streams what became of the segments here."""
    _limit(db, until_us)
    found: dict[_Key, Figures] = {}
    for row in _rows(db, _FIGURES):
        figures = found.setdefault((row["node"], row["pipeline"], row["of"], row["name"]), Figures())
        word = _WORDS.get(row["word"], row["word"])
        if word:
            figures.rows[word] += row["rows"] or 0
        if row["step"] is not None:
            figures.steps[f"{row['word']} by steps[{row['step']}]"] += row["rows"] or 0
    for row in _rows(db, _VERDICTS):
        figures = found.setdefault((row["node"], row["pipeline"], "stream", row["stream"]), Figures())
        figures.rows[row["word"]] += row["rows"]
        figures.table = row["table_name"] or figures.table
    return {key: figures for key, figures in found.items() if figures.rows}


def _since(now: dict[_Key, Figures], before: Mapping[_Key, Figures]) -> dict[_Key, Figures]:
    """What was added; `open` is as it stands."""
    for key, figures in now.items():
        if (old := before.get(key)) is not None:
            figures.rows.subtract({word: n for word, n in old.rows.items() if word != "open"})
            figures.steps.subtract(old.steps)
    return now


def _add_pending(figures: dict[_Key, Figures], lineages: Sequence[Mapping[str, Any]]) -> None:
    """Of the newest lineage: what an older one did not deliver is told as its restart."""
    newest = {(row["node"], row["pipeline"]): row["lineage"] for row in lineages}
    for row in lineages:
        node, pipeline, stream = row["node"], row["pipeline"], row["stream"]
        if row["lineage"] == newest[node, pipeline] and (key := (node, pipeline, "stream", stream)) in figures:
            figures[key].rows["pending"] += row["pending"]


def _counted(db: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(_rows(db, f'SELECT count(*) AS rows FROM "{table}"')[0]["rows"])


def _restarts(lineages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where a node's ledgers began anew: another card, or a store that could not be read. `rows` never came of the former."""
    begun: dict[tuple[str, str], dict[str, int]] = {}
    missing: Counter[tuple[str, str, str]] = Counter()
    for row in lineages:
        node, pipeline, lineage = row["node"], row["pipeline"], row["lineage"]
        begun.setdefault((node, pipeline), {}).setdefault(lineage, row["begun"])
        missing[node, pipeline, lineage] += row["pending"]
    return [
        {
            "node": node,
            "pipeline": pipeline,
            "lineage": new,
            "former": old,
            "rows": missing[node, pipeline, old],
            "at": found[new],
        }
        for (node, pipeline), found in begun.items()
        for old, new in pairwise(found)
    ]


def _shown(figures: Mapping[_Key, Figures], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each with its names; those of many nodes summed up."""
    several = len({node for node, *_ in figures}) > NODES_SHOWN
    nodes: dict[tuple[str, str, str], set[str]] = {}
    summed: dict[_Key, Figures] = {}
    for (node, pipeline, of, name), one in figures.items():
        nodes.setdefault((pipeline, of, name), set()).add(node)
        total = summed.setdefault(("" if several else names.get(node, node), pipeline, of, name), Figures())
        total.rows.update(one.rows)
        total.steps.update(one.steps)
        total.table = one.table or total.table
    return [
        {
            "node": node or f"{len(nodes[pipeline, of, name])} nodes",
            "pipeline": pipeline,
            "of": of,
            "name": name,
            "table": one.table,
            "rows": dict(one.rows),
            "steps": dict(one.steps),
        }
        for (node, pipeline, of, name), one in sorted(summed.items())
    ]


def _heard(lineages: Sequence[Mapping[str, Any]], nodes: Sequence[NodeName], scope: Scope) -> list[dict[str, Any]]:
    """Each node in scope, and as of when its figures are; None: there are none, which is not zero."""
    as_of: dict[str, int] = {}
    for row in lineages:
        as_of[row["node"]] = max(as_of.get(row["node"], 0), row["heard"])
    known = {node.id: node for node in nodes if scope.node in ("", node.id) and scope.pipeline in ("", *node.pipelines)}
    return [
        {
            "node": known[node].name if node in known else node,
            "in_contact": node in known and known[node].in_contact,
            "last_seen": (known[node].last_seen or None) if node in known else None,
            "as_of": as_of.get(node),
        }
        for node in sorted(as_of.keys() | known.keys())
    ]


def _named(row: Mapping[str, Any] | Difference, names: Mapping[str, str]) -> dict[str, Any]:
    """With the node's name and the times as text."""
    if isinstance(row, Difference):
        return {**asdict(row), "at": iso(row.at), "says": row.says}
    changed = {"node": names.get(row["node"], row["node"])} if "node" in row else {}
    return {**row, **changed, **({"at": iso(row["at"])} if "at" in row else {})}
