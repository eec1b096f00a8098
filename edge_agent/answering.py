"""The child that answers one request: SQL over what the node holds, rows as they pass, or lines that it is given.

It opens no file, and its limits are its own; whatever it does, the agent and the pipelines go on (I11). It makes the rows of the
answer, the agent seals them.

    agent -> child   start {id, kind, body, first, max_s, max_rows, max_bytes, note}, then by kind
        query   part {table} payload ... | version {} canonical ... | table {name, rows} ... | run {note}
        tap     rows {stream} payload ... | stop {note}
        tell    lines {rows} ... | run {end, note}
    child -> agent   answer {rows, sizes, is_over} payloads
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_agent.wire import Channel
from pipelines.contract.errors import Refused, TidewireError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

NICE = 19  # what people ask comes after all that runs (design, section 8)
DECODED_BYTES_MAX = 128 * 1024 * 1024  # of what the buffer holds: the rest is not looked at, and the answer says so
_ENGINE_MEMORY = "192MB"
_BATCH_ROWS = 1024
_CPU_GRACE_S = 2
_NOTE_CHARS_MAX = 1000


def main(sock: socket.socket) -> None:
    """Until the answer is given, or the agent is gone or has no more use for it."""
    os.nice(NICE)
    channel = Channel(sock)
    threading.Thread(target=_end_with_agent, args=(sock.fileno(),), daemon=True).start()
    start, _ = _next(channel)
    cpu_s = int(start["max_s"]) + _CPU_GRACE_S
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    try:
        serve(channel, start)
    except EOFError:
        os._exit(0)


def serve(channel: Channel, start: Mapping[str, Any]) -> None:
    """Answer the request of the message `start`. Raises `EOFError` when the agent is gone."""
    answer = _Answer(channel, start)
    try:
        {"query": _query, "tap": _tap, "tell": _tell}[start["kind"]](channel, start, answer)
    except EOFError:
        raise
    except TidewireError as error:
        answer.end("failed", f"{error.cause} ({error.hint})" if error.hint else error.cause)
    except MemoryError:
        answer.end("failed", "it needs more memory than a request may have")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        answer.end("failed", f"{type(error).__name__}: {error}".partition("\n")[0])


def _end_with_agent(descriptor: int) -> None:
    """A query may run for minutes without a look at its socket."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP)
    poll.poll()
    os._exit(0)


def _next(channel: Channel) -> tuple[dict[str, Any], list[bytes]]:
    message = channel.receive(None)
    assert message is not None, "a wait without a time-out returns a message"
    return message


class _Answer:
    """Rows as JSON texts within the request's limits."""

    def __init__(self, channel: Channel, header: Mapping[str, Any]) -> None:
        self._channel, self._id, self._first = channel, header["id"], header["first"]
        self._rows: list[str] = []
        self._left_rows, self._left_bytes = header["max_rows"] - header["first"] + 1, header["max_bytes"]
        self.full = ""  # which limit is reached

    def add(self, row: str) -> bool:
        """Whether there was room for it."""
        size = len(row.encode(errors="replace"))
        if self._left_rows <= 0:
            self.full = "only the first rows: there are more than the request allows"
        elif size > self._left_bytes:
            self.full = "only the first rows: all are more bytes than the request allows"
        if self.full:
            return False
        self._rows.append(row)
        self._left_rows, self._left_bytes = self._left_rows - 1, self._left_bytes - size
        return True

    @property
    def has_room(self) -> bool:
        return bool(self._left_rows > 0)

    def flush(self) -> None:
        """Have what there is so far sealed: somebody watches."""
        if self._rows:
            self._send("", "")

    def end(self, how: str, note: str = "") -> None:
        if how != "done":
            self._rows = []  # of an answer that failed, nothing is shown
        self._send(how, note[:_NOTE_CHARS_MAX])

    def _send(self, end: str, note: str) -> None:
        from edge_agent.uncommitted import fit
        from pipelines.engine.answers import answer

        table = answer(self._id, self._first, self._rows, time.time_ns() // 1000, end, note)
        made = fit(table)
        self._first += len(self._rows)
        header = {"type": "answer", "rows": self._first - 1, "sizes": [rows for rows, _ in made], "is_over": bool(end)}
        self._channel.send(header, [payload for _, payload in made])
        self._rows = []


def _tell(channel: Channel, start: Mapping[str, Any], answer: _Answer) -> None:
    while True:
        header, _ = _next(channel)
        if header["type"] == "run":
            answer.end(header["end"], "; ".join(filter(None, (header["note"], answer.full))))
            return
        for row in header["rows"]:
            answer.add(json.dumps(row, ensure_ascii=False, default=str))


def _query(channel: Channel, start: Mapping[str, Any], answer: _Answer) -> None:
    import duckdb

    from pipelines.engine.connection import open_engine
    from pipelines.engine.sql import as_json, check_one_select, refused

    sql, tables, note = start["body"]["sql"], *_tables(channel)
    db = open_engine(_ENGINE_MEMORY)
    for name, rows in tables.items():
        db.register(name, rows)
    check_one_select(db, sql)
    alarm = threading.Timer(start["max_s"], db.interrupt)
    alarm.daemon = True
    alarm.start()
    try:
        for row in _rows(db.sql(sql).to_arrow_reader(_BATCH_ROWS)):
            if not answer.add(json.dumps({name: as_json(value) for name, value in row}, ensure_ascii=False)):
                break
    except duckdb.OutOfMemoryException:
        raise MemoryError from None
    except (duckdb.Error, OSError, ValueError) as error:
        if "INTERRUPT" in str(error).upper():
            raise Refused(f"stopped after {start['max_s']:g} s", hint="ask for less: a narrower WHERE") from None
        raise refused(error, sorted(tables), "this node") from None
    finally:
        alarm.cancel()
    answer.end("done", "; ".join(filter(None, (note, answer.full))))


def _rows(reader: pa.RecordBatchReader) -> Iterator[list[tuple[str, Any]]]:
    names: list[str] = []
    for name in reader.schema.names:
        twin = sum(known == name or known.startswith(f"{name}_") for known in names)
        names.append(f"{name}_{twin}" if name in names else name)
    for batch in reader:
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield list(zip(names, values, strict=True))


def _tables(channel: Channel) -> tuple[dict[str, pa.Table], str]:
    """What the agent offers, and what it says of it. Segments come newest first."""
    import pyarrow as pa

    from pipelines.contract.language.base import LOG
    from pipelines.engine.ipc import decode_rows

    parts: dict[str, list[pa.Table]] = {}
    tables: dict[str, pa.Table] = {}
    size = skipped = 0
    while True:
        header, blobs = _next(channel)
        if header["type"] == "run":
            break
        if header["type"] == "table":
            tables[header["name"]] = _told(header["name"], header["rows"])
        elif header["type"] == "version":
            for name, schema in _schemas(blobs[0]):
                parts.setdefault(name, []).append(schema.empty_table())
        elif size < DECODED_BYTES_MAX:
            rows = decode_rows(blobs[0])
            size += rows.nbytes
            parts.setdefault(header["table"], []).append(rows)
        else:
            skipped += header["rows"]
    for name, found in parts.items():
        tables[name] = pa.concat_tables(found[::-1], promote_options="permissive")
        if name.endswith(LOG):
            tables[name.removesuffix(LOG)] = tables[name]
    note = header["note"]
    if left := header["skipped"] + skipped:
        note = f"{left} older rows of the buffer were not looked at" + (f"; {note}" if note else "")
    return tables, note


def _schemas(canonical: bytes) -> Iterator[tuple[str, pa.Schema]]:
    """Of the tables that a version writes: those of which nothing waits are there, too, without rows."""
    from pipelines.contract.spec import load_spec
    from pipelines.engine.plan import compile_plan, example_params
    from pipelines.engine.sinks import narrowed

    spec = load_spec(canonical.decode())
    plan = compile_plan(spec, example_params(spec))
    tables = spec.lake_tables()
    for name, sink in spec.sinks.items():
        if sink.from_ is None:
            yield tables[name], narrowed(sink, plan.row_schema.empty_table()).schema
        elif sink.from_ in plan.windows:
            yield tables[name], narrowed(sink, plan.windows[sink.from_].schema.empty_table()).schema


_COLUMNS = {
    "incidents": ("incident", "pipeline", "trigger", "group", "severity", "message", "state", "transition", "flags", "at"),
    "pipelines": ("pipeline", "phase", "reason", "since", "digest", "params"),
    "quarantine": ("pipeline", "at", "source", "file", "step"),
}


def _told(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One of the node's own tables; values of other types as JSON."""
    import pyarrow as pa

    columns = {column: pa.array([_text(row.get(column)) for row in rows], pa.string()) for column in _COLUMNS[name]}
    if name == "incidents":
        columns["acknowledged"] = pa.array([bool(row.get("acknowledged")) for row in rows], pa.bool_())
    elif name == "pipelines":
        columns["version"] = pa.array([row.get("version") for row in rows], pa.int64())
    else:
        columns["offset"] = pa.array([row.get("offset") for row in rows], pa.int64())
        columns["reasons"] = pa.array([row.get("reasons") for row in rows], pa.list_(pa.string()))
    return pa.table(columns)


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _tap(channel: Channel, start: Mapping[str, Any], answer: _Answer) -> None:
    from pipelines.engine.connection import open_engine
    from pipelines.engine.ipc import decode_rows
    from pipelines.engine.sql import as_json

    where, db = start["body"].get("where", ""), open_engine(_ENGINE_MEMORY)
    blind: dict[str, str] = {}  # streams to which the condition does not apply, and why
    seen: set[str] = set()
    while answer.has_room:
        header, blobs = _next(channel)
        if header["type"] == "stop":
            answer.end(*_tapped(blind, seen, header["note"]))
            return
        stream = header["stream"]
        seen.add(stream)
        try:
            rows = _matching(db, decode_rows(blobs[0]), where)
        except TidewireError as error:
            blind[stream] = error.cause
            continue
        for row in rows:
            if not answer.add(json.dumps({"_stream": stream, **{n: as_json(v) for n, v in row.items()}}, ensure_ascii=False)):
                answer.flush()
                answer.end("done", answer.full)
                return
        answer.flush()
    answer.end("done", "as many rows as were asked for")


def _tapped(blind: Mapping[str, str], seen: set[str], note: str) -> tuple[str, str]:
    words = [f"{stream}: {why}" for stream, why in blind.items()]
    return ("failed" if blind and seen == blind.keys() else "done"), "; ".join(filter(None, (note, *words)))


def _matching(db: duckdb.DuckDBPyConnection, rows: pa.Table, where: str) -> list[dict[str, Any]]:
    import duckdb

    from pipelines.engine.sql import check_one_select

    if not where:
        return list(rows.to_pylist())
    sql = f"SELECT * FROM passing WHERE ({where}\n)"
    check_one_select(db, sql)
    db.register("passing", rows)
    try:
        return list(db.sql(sql).to_arrow_table().to_pylist())
    except duckdb.Error as error:
        raise Refused(str(error).partition("\n")[0]) from None
    finally:
        db.unregister("passing")
