"""SQL that people write: one SELECT and nothing else, and its values as JSON."""

from __future__ import annotations

import datetime as dt
import decimal
import re
from collections.abc import Sequence
from typing import Any

import duckdb

from pipelines.contract.errors import Refused


def check_one_select(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raises `Refused` for anything but one SELECT. What it names is looked up only when it runs."""
    try:
        statements = db.extract_statements(sql)
    except (duckdb.Error, ValueError) as error:  # ValueError: half a character, or a NUL
        raise refused(error, ()) from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise Refused("only one SELECT is run", op="query", hint='write it like: tidewire query "select * from segments limit 5"')


def refused(error: Exception, names: Sequence[str], where: str = "the lake") -> Refused:
    """DuckDB's error in one line; `names` are the tables that `where` has."""
    text = str(error).partition("\n")[0]
    unknown = re.search(r"Table with name (\S+) does not exist", text)
    if unknown:
        known = f"tables in {where}: {', '.join(names)}" if names else f"{where} is empty so far"
        return Refused(f"there is no table {unknown[1]}", op="query", hint=known)
    return Refused(text, op="query")


def words(sql: str) -> frozenset[str]:
    """Every word in it, among them the tables it can mean."""
    return frozenset(re.findall(r"\w+", sql.lower()))


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
