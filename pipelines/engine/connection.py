"""DuckDB in memory, with every door shut that it has. It is no security boundary: the runner's limits are."""

from __future__ import annotations

import duckdb

ENGINE = f"duckdb-{duckdb.__version__}"  # recorded in lineage: rows are the same per engine build

_AT_OPENING: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,  # row order, and one core per pipeline
    "async_threads": 0,  # for I/O, of which there is none: eight threads, and half the time that opening takes
}
_SETTINGS = {
    "TimeZone": "UTC",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "temp_directory": "",
    "enable_external_access": False,  # after temp_directory, which it locks
    # It lifts a subexpression that two TRY(..) share out of both, and an error in it then fails the whole batch.
    "disabled_optimizers": "common_subexpressions",
}


_shared: duckdb.DuckDBPyConnection | None = None


def open_engine(memory_limit: str = "") -> duckdb.DuckDBPyConnection:
    """A connection; those without a limit of their own share a database, which takes 14 ms and 7 MB to open, and see nothing of
    each other: all they make is temporary."""
    global _shared  # one per process, opened when it is first needed: never before a fork
    if memory_limit:
        return _open(memory_limit)
    found = _shared
    if found is None or not _works(found):
        found = _shared = _open("")
    return found.cursor()


def _works(database: duckdb.DuckDBPyConnection) -> bool:
    """An internal error of DuckDB's leaves a database that refuses everything."""
    try:
        database.execute("SELECT 1").fetchall()
    except duckdb.Error:
        return False
    return True


def _open(memory_limit: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config={**_AT_OPENING, **({"memory_limit": memory_limit} if memory_limit else {})})
    for name, value in _SETTINGS.items():
        text = f"'{value}'" if isinstance(value, str) else str(value).lower()
        connection.execute(f"SET GLOBAL {name} = {text}").fetchall()  # a cursor of it has them too
    connection.execute("SET GLOBAL lock_configuration = true").fetchall()
    return connection


def quote(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def literal(value: object) -> str:
    """A SQL literal of a scalar; text is escaped."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"CAST('{value!r}' AS DOUBLE)"
    if isinstance(value, int):
        return f"CAST({value} AS BIGINT)"
    return "'" + str(value).replace("'", "''") + "'"
