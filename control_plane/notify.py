"""The loop that watches for silent nodes and notifies people: webhooks, at least once, retried over restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import structlog
from sqlalchemy.engine import Connection

from control_plane import notify_store, silence_store, store
from control_plane.commands import Writer
from control_plane.effects import Contact
from control_plane.lake_views import table_names
from control_plane.notify_store import Notification, Target
from control_plane.query import run_query
from control_plane.silence import Ears, judge
from control_plane.times import clock, iso
from pipelines.contract.duration import format_duration
from pipelines.contract.messages import Heartbeat
from pipelines.engine.sql import as_json

TICK_S = 3.0
LISTEN_S = 10.0  # 50 ms of the store's thread with 10,000 nodes
TIMEOUT_S = 10.0
BACKOFF_MAX_S = 300.0
_WORTH_A_RETRY = {408, 425, 429}
_ROWS_AT_ONCE = 5_000
log = structlog.get_logger()
T = TypeVar("T")


class Plane(Protocol):
    """What the control plane offers."""

    def contact(self) -> Contact: ...
    def is_listening(self) -> bool:
        """Whether nodes can be heard now."""

    async def with_db(self, do: Callable[..., T], *args: Any) -> T: ...
    async def in_background(self, do: Callable[..., T], *args: Any) -> T: ...


class Notifier:
    """`run` until cancelled. One per control plane; all that must last is in SQL."""

    def __init__(self, plane: Plane, lake_dir: Path) -> None:
        self._plane, self._lake_dir = plane, lake_dir
        self._ears, self._looked_s, self._lake_version = Ears(), 0.0, -1
        self._client: httpx.AsyncClient | None = None

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self.tick()
                except Exception as error:  # noqa: BLE001 - a full disk or a locked database must not end the process
                    log.error("notifications wait", reason=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
                await asyncio.sleep(TICK_S)
        finally:
            if self._client is not None:
                await self._client.aclose()

    async def tick(self) -> None:
        """One level-triggered step (I7): who is silent, what came, what is due."""
        now_s = time.monotonic()
        if not self._looked_s or now_s - self._looked_s >= LISTEN_S:
            was_s, self._looked_s = self._looked_s, now_s
            elapsed_us = round((now_s - was_s) * 1e6) if was_s and self._plane.is_listening() else 0
            await self._plane.with_db(self._listen, elapsed_us, self._plane.contact())
        targets = await self._plane.with_db(notify_store.targets)
        if targets:
            await self._look_into_the_lake(targets)
        for target, one in await self._plane.with_db(_due) if targets else ():
            await self._send(target, one)

    def _listen(self, db: Connection, elapsed_us: int, contact: Contact) -> None:
        """Raise and end incidents of silent nodes. What fails here is looked at again at the next tick."""
        targets, nodes = notify_store.targets(db), silence_store.watched(db)
        ears = self._ears.after(elapsed_us, {node: max(at, contact.seen.get(node, 0)) for node, at in nodes.items()})
        open_ = silence_store.open_ones(db)
        after_us = notify_store.shortest_silence_us(targets)
        silent, back = judge(ears, {name: one.since for name, one in open_.items()}, after_us)
        for name in silent:
            one = open_[name] = silence_store.begin(db, name, ears.heard[name].last_seen_us, contact.now)
            log.info("a node is silent", node=name, incident=one.id, since=iso(one.since))
        ended = []
        for name in back:
            one = open_.pop(name)
            told = _told(one.since, contact, contact.heartbeats.get(name)) if name in nodes else "it is no longer a node here"
            silence_store.end(db, one, told, contact.now)
            ended.append((one, told))
        if targets and (open_ or ended):
            waits = [(one, (ears.silent_us(name) or 0) / 1e6) for name, one in open_.items()]
            notify_store.take_silences(db, waits, ended)
        self._ears = ears

    async def _look_into_the_lake(self, targets: list[Target]) -> None:
        version = _lake_version(self._lake_dir)
        if version == self._lake_version:
            return
        since = await self._plane.with_db(notify_store.cursor, targets)
        rows = await self._plane.in_background(_new_rows, self._lake_dir, since)
        await self._plane.with_db(notify_store.take, rows)
        self._lake_version = version if len(rows) < _ROWS_AT_ONCE else -1

    async def test(self, target: Target, who: Writer) -> dict[str, Any]:
        """Post one message now, which says that it is a test."""
        item = {"test": True, "message": f"a test by {who.by}", "reason": who.reason, "at": iso(store.now_us())}
        one = Notification(f"test-{time.time_ns():x}", target.name, (item,), "", 0, 0)
        status, text = await self._post(target, one)
        await self._plane.with_db(
            lambda db: store.record(db, who.by, "notify test", target.name, f"{status}: {text}", who.reason)
        )
        return {"status": status, "outcome": text, "summary": [f"{target.place}: {status}, {text}"], "dry_run": False}

    async def _send(self, target: Target, one: Notification) -> None:
        status, text = await self._post(target, one)
        pause_s = min(2.0**one.tries, BACKOFF_MAX_S) if status == notify_store.PENDING else 0.0
        if status != "done":
            log.warning("a notification was not taken", target=target.name, id=one.id, outcome=text, tries=one.tries + 1)
        next_at = store.now_us() + round(pause_s * 1e6)
        await self._plane.with_db(notify_store.settle, one.id, status, text, next_at)

    async def _post(self, target: Target, one: Notification) -> tuple[str, str]:
        """(done | failed | pending, why), without a word of the webhook's address: it may be a secret."""
        self._client = self._client or httpx.AsyncClient(follow_redirects=False, timeout=TIMEOUT_S)
        try:
            headers = {"Idempotency-Key": one.id}
            reply = await self._client.post(target.webhook, json=notify_store.payload(one), headers=headers)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            return "failed", type(error).__name__
        except httpx.HTTPError as error:
            return notify_store.PENDING, f"not reached: {type(error).__name__}"
        text = f"HTTP {reply.status_code}"
        if reply.is_success:
            return "done", text
        passes = reply.is_server_error or reply.status_code in _WORTH_A_RETRY
        return (notify_store.PENDING if passes else "failed"), text


def _due(db: Connection) -> list[tuple[Target, Notification]]:
    now = store.now_us()
    notify_store.release(db, now)
    return notify_store.due(db, now)


def _told(since: int, contact: Contact, heartbeat: Heartbeat | None) -> str:
    rows = heartbeat.backlog_rows if heartbeat else 0
    waits = f"; {rows:,} rows wait there to be sent" if rows else ""
    silent = format_duration(max((contact.now - since) // 1_000_000, 1) * 1_000_000)
    return f"back after {silent}, not heard of since {clock(since, contact.now)}{waits}"


def _lake_version(lake_dir: Path) -> int:
    """Changes with each commit to the table of incidents."""
    try:
        return (lake_dir / "incidents" / "_delta_log").stat().st_mtime_ns
    except OSError:
        return -1


def _new_rows(lake_dir: Path, since_us: int) -> list[dict[str, Any]]:
    if "incidents" not in table_names(lake_dir):
        return []
    sql = f"select * from incidents where _received_at >= make_timestamptz({int(since_us)}) order by _received_at, _seq, _row"
    result = run_query(lake_dir, f"{sql} limit {_ROWS_AT_ONCE}", limit=_ROWS_AT_ONCE)
    return [dict(zip(result.columns, map(as_json, row), strict=True)) for row in result.rows]
