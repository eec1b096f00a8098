"""SQL over the lake: one SELECT, in a DuckDB of its own that can reach nothing but the tables and views registered in it."""

from __future__ import annotations

import datetime as dt
import decimal
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from control_plane.lake_views import NodeName, register, table_names
from pipelines.contract.errors import Refused

ROWS_MAX = 10_000
TIMEOUT_S = 60.0
_BATCH_ROWS = 1024
_MEMORY = "1GB"
_LOCKS = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET temp_directory = ''",
    f"SET memory_limit = '{_MEMORY}'",
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True)
class Result:
    """`truncated`: there were more rows than the limit."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    truncated: bool = False


def run_query(
    lake_dir: Path, sql: str, *, limit: int = ROWS_MAX, timeout_s: float = TIMEOUT_S, nodes: Sequence[NodeName] = ()
) -> Result:
    """The first `limit` rows. Raises `Refused` for anything but one SELECT that works and ends in time."""
    with duckdb.connect(":memory:") as db:
        names = table_names(lake_dir)
        words = set(re.findall(r"\w+", sql.lower()))
        register(db, lake_dir, [name for name in names if name in words], nodes)
        for lock in _LOCKS:
            db.execute(lock)
        _check_one_select(db, sql)
        alarm = threading.Timer(timeout_s, db.interrupt)
        alarm.start()
        try:
            return _first_rows(db.sql(sql).to_arrow_reader(_BATCH_ROWS), limit)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            if "INTERRUPT" in str(error).upper():
                hint = "ask for less: fewer rows, a narrower WHERE"
                raise Refused(f"stopped after {timeout_s:g} s", op="query", hint=hint) from None
            raise _refused(error, names) from None
        finally:
            alarm.cancel()


def _first_rows(reader: pa.RecordBatchReader, limit: int) -> Result:
    rows: list[tuple[Any, ...]] = []
    for batch in reader:
        rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
        if len(rows) > limit:
            break
    return Result(reader.schema.names, rows[:limit], len(rows) > limit)


def as_json(value: Any) -> Any:
    """A DuckDB value as JSON: times in ISO 8601, decimal fractions as text."""
    if isinstance(value, dt.datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, decimal.Decimal) and value.as_tuple().exponent == 0:
        return int(value)  # sums of integers
    if not isinstance(value, (str, int, float, bool, type(None))):
        return str(value)
    return value


def _check_one_select(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    try:
        statements = db.extract_statements(sql)
    except duckdb.Error as error:
        raise _refused(error, ()) from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise Refused("only one SELECT is run", op="query", hint='write it like: tidewire query "select * from segments limit 5"')


def _refused(error: Exception, names: Sequence[str]) -> Refused:
    text = str(error).partition("\n")[0]
    unknown = re.search(r"Table with name (\S+) does not exist", text)
    if unknown:
        known = f"tables in the lake: {', '.join(names)}" if names else "the lake is empty so far"
        return Refused(f"there is no table {unknown[1]}", op="query", hint=known)
    return Refused(text, op="query")
