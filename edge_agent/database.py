"""One SQLite file with one writing thread and group commit. Knows nothing of what is stored."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from edge_agent.reserve import Reserve

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_RETRY_S = 1.0  # a full disk is looked at again after this
_PAGE_BYTES, _LOG_PAGES_MAX = 4096, 1000  # the log is folded into the file at 4 MiB, sooner on a small disk
_PAGES_A_STEP = 256  # given back at once: a larger step would fill the log
_FREE_PAGES_KEPT = 4096  # 16 MiB of free pages stay in the file for the next outage
_WAITABLE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY}
_PRAGMAS = (
    "PRAGMA auto_vacuum=INCREMENTAL",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA journal_size_limit=16777216",
    "PRAGMA secure_delete=OFF",  # Debian's SQLite turns it on: freeing would write every freed page once more
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=5000",
)
_log = structlog.get_logger("store")


class Damaged(Exception):
    """The file does not hold what was written to it."""


def parsed(read: Callable[[Any], T], text: object) -> T:
    """What `read` makes of a stored JSON text. Raises `Damaged` when it is not what was written."""
    try:
        return read(json.loads(str(text)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"a stored text is not what was written: {error}") from None


@dataclass
class _Request:
    work: Work[Any]
    lane: str
    future: Future[Any] = field(default_factory=Future)


class Database:
    """`write` queues; everything queued while a commit runs goes into the next transaction.

    When the disk is full or fails, requests wait and are tried again, each lane (say, a pipeline) in its own order, so that a
    receipt that frees space is not held up by a commit that needs some: the reserve is given up for it, and until it is held
    again only requests without a lane are tried. `trouble` then says why. Work may run more than once, so it must touch nothing
    but the connection.
    """

    def __init__(self, path: Path, at_commit: Work[None] | None = None) -> None:
        self.path = path
        self._at_commit = at_commit
        self._reserve = Reserve(path.with_suffix(".reserve"))
        self._connection = self._connect()
        self._reader = connect(path)
        self._reader.execute("PRAGMA query_only=ON")
        self._writing = ThreadPoolExecutor(1, "store-writer")
        self._reading = ThreadPoolExecutor(1, "store-reader")
        self._lock = threading.Lock()
        self._queue: deque[_Request] = deque()
        self._draining = False
        self._is_suspect = False  # the writing connection failed in a way that it may not recover from
        self._closing = threading.Event()
        self.trouble = ""

    def write(self, work: Work[T], lane: str = "") -> Future[T]:
        """The result of `work`, once it is on disk. An exception of `work` undoes its own changes only."""
        request = _Request(work, lane)
        with self._lock:
            self._queue.append(request)
            if not self._draining:
                self._draining = True
                self._writing.submit(self._drain)
        return request.future

    def read(self, work: Work[T]) -> Future[T]:
        """The result of a short read of what is committed; it must have fetched all it wants."""
        return self._reading.submit(work, self._reader)

    def close(self) -> None:
        """Write what is queued (or fail it, when the disk does not take it), then close."""
        self._closing.set()
        self._writing.shutdown()
        self._reading.shutdown()
        self._reader.close()
        self._connection.close()

    def _drain(self) -> None:
        while requests := self._take():
            try:
                if error := self._commit(requests):
                    self._retry(requests, error)
            except Exception as error:  # noqa: BLE001 - those who wait get it; the store must go on
                _log.exception("the store's writer failed; it goes on with the next requests")
                _resolve(requests, [(None, error)] * len(requests))
        self._vacuum()

    def _take(self) -> list[_Request]:
        with self._lock:
            requests = self._claim_queued()
            self._draining = bool(requests)
        return requests

    def _claim_queued(self) -> list[_Request]:
        """What is queued and was not cancelled; from now on it cannot be."""
        requests = [request for request in self._queue if request.future.set_running_or_notify_cancel()]
        self._queue.clear()
        return requests

    def _commit(self, requests: list[_Request]) -> sqlite3.Error | None:
        """Commit them together and resolve their futures; or change nothing and return why the disk refused."""
        if self._is_suspect and (error := self._reopen()):
            return error
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [_attempt(self._connection, request.work) for request in requests]
            if self._at_commit is not None:
                self._at_commit(self._connection)
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whoever asked gets it; the writer goes on
            self._roll_back(error)
            if isinstance(error, sqlite3.Error) and _is_waitable(error):
                return error
            _resolve(requests, [(None, error)] * len(requests))
            return None
        self.trouble = ""
        _resolve(requests, outcomes)
        return None

    def _roll_back(self, error: Exception) -> None:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            self._is_suspect = True  # an fsync that failed once is fatal for that descriptor
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._is_suspect = True

    def _retry(self, requests: list[_Request], error: sqlite3.Error) -> None:
        """Try each request alone until all are through; within a lane never past one that failed. Newer ones join `requests`."""
        while requests:
            self._note_trouble(error)
            has_room = self._make_room()
            blocked: set[str] = set() if has_room else {request.lane for request in requests if request.lane}
            left: list[_Request] = []
            for request in requests:
                failure = None if request.lane in blocked else self._commit([request])
                if failure is not None or request.lane in blocked:
                    blocked.add(request.lane)
                    left.append(request)
                    error = failure or error
            if left and self._closing.wait(_RETRY_S):
                _resolve(left, [(None, error)] * len(left))
                return
            with self._lock:
                requests[:] = left + self._claim_queued()

    def _make_room(self) -> bool:
        """Fold the log into the file and shorten both, with the reserve's room if need be. Whether the reserve is held after."""
        try:
            is_folded = _fold_log(self._connection)
            for _ in range(0, _free_pages(self._connection) if is_folded else 0, _PAGES_A_STEP):
                _give_pages_back(self._connection, _PAGES_A_STEP)
                is_folded = _fold_log(self._connection)
        except sqlite3.Error:
            is_folded = False
        if not is_folded:
            self._reserve.give_up()
        return self._reserve.hold()

    def _note_trouble(self, error: sqlite3.Error) -> None:
        if self.trouble != str(error):
            _log.error("the store does not take writes; commits wait, evaluation goes on", reason=str(error), path=str(self.path))
        self.trouble = str(error)

    def _reopen(self) -> sqlite3.Error | None:
        """A new writing connection in place of the suspect one, or why there is none yet."""
        try:
            self._connection.close()
            self._connection = self._connect()
        except sqlite3.Error as error:
            return error
        self._is_suspect = False
        return None

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.path)
        pages = min(_LOG_PAGES_MAX, self._reserve.log_bytes_max // _PAGE_BYTES)
        connection.execute(f"PRAGMA wal_autocheckpoint={max(pages, 16)}")
        return connection

    def _vacuum(self) -> None:
        try:
            if _free_pages(self._connection) > _FREE_PAGES_KEPT and not self._closing.is_set():
                _give_pages_back(self._connection, _PAGES_A_STEP)
        except sqlite3.Error as error:
            _log.warning("could not give free pages back", reason=str(error))


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    return connection


def _fold_log(connection: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the file and empty it. Whether that was done whole."""
    ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not busy


def _free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def free_bytes(connection: sqlite3.Connection) -> int:
    """What the file has room for without growing."""
    return _free_pages(connection) * _PAGE_BYTES


def _give_pages_back(connection: sqlite3.Connection, pages: int) -> None:
    """Shorten the file by so many free pages. The pragma works by steps: `execute` would take one of them, a script takes all."""
    connection.executescript(f"PRAGMA incremental_vacuum({pages})")


def _attempt(connection: sqlite3.Connection, work: Work[T]) -> tuple[T | None, Exception | None]:
    connection.execute("SAVEPOINT request")
    try:
        result = work(connection)
    except Exception as error:  # it belongs to whoever asked: their future carries it
        if isinstance(error, sqlite3.Error) and _is_waitable(error):
            raise
        connection.execute("ROLLBACK TO request")
        connection.execute("RELEASE request")
        return None, error
    connection.execute("RELEASE request")
    return result, None


def _is_waitable(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _WAITABLE


def _resolve(requests: list[_Request], outcomes: list[tuple[Any, Exception | None]]) -> None:
    for request, (result, error) in zip(requests, outcomes, strict=True):
        if request.future.done():
            continue
        if error is not None:
            request.future.set_exception(error)
        else:
            request.future.set_result(result)
