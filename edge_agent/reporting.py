"""What the node reports of itself: transitions only, so that the document stays small (I9)."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from edge_agent import clock
from edge_agent.flapping import Flapping
from edge_agent.keeper import Keeper, Status
from edge_agent.node_record import NodeRecord
from edge_agent.state_sync import AGENT
from edge_agent.store import Store
from edge_agent.target import Target
from pipelines.contract import causes
from pipelines.contract.node_state import Ban, Reported, params_digest
from pipelines.contract.version import LANGUAGES

REASON_MAX = 2_000  # characters: a report has room for 16 KiB


class Reporter:
    """Writes what changed; what only flaps is written later, as it then is."""

    def __init__(self, store: Store, record: NodeRecord, wake: Callable[[], None]) -> None:
        self._store, self._record, self._wake = store, record, wake
        self._flapping, self._later = Flapping(), dict[str, asyncio.TimerHandle]()  # reports that wait

    async def report_node(self) -> None:
        self._store.clock_quality = clock.quality()
        history = await self._store.history()
        for name, told in {"facts": facts(), **({"history": history} if history else {})}.items():
            if self._record.differs(name, told) and not self._must_wait(f"reported/{name}"):
                await self._record.report_node(name, told)

    async def report(self, names: Iterable[str], now_of: Callable[[str, Reported | None], Reported | None]) -> None:
        """`now_of` says what a pipeline does, given what was said of it last; None for nothing to say."""
        before = self._record.document.reported()
        for name in {*names, *before}:
            now = now_of(name, before.get(name))
            if now is not None and now != before.get(name) and self._may_report(name, before.get(name), now):
                await self._record.report(name, now)

    def _may_report(self, name: str, before: Reported | None, now: Reported) -> bool:
        """Whether to write it now."""
        is_other = before is None or _what_runs(before) != _what_runs(now)
        if is_other or now.phase in ("stopped", "paused"):
            self._flapping.forget(name)
            return True
        return not self._must_wait(name)

    def _must_wait(self, name: str) -> bool:
        if wait_s := self._flapping.wait_s(name, time.monotonic()):
            self._later[name] = self._later.get(name) or asyncio.get_running_loop().call_later(wait_s, self._report_late, name)
        return bool(wait_s)

    def _report_late(self, name: str) -> None:
        del self._later[name]
        self._wake()


def _what_runs(reported: Reported) -> tuple[object, ...]:
    """What changes because somebody wanted it, or for good: not what flaps by itself."""
    code = reported.code if reported.code in (causes.PINNED, causes.PAUSED, causes.BANNED) else ""
    return reported.digest, reported.params_digest, reported.bans, code, reported.artifacts, reported.generation


def reported(
    before: Reported | None,
    keeper: Keeper | None,
    target: Target | None,
    status: Status,
    gate: str,
    bans: tuple[Ban, ...],
    generation: int,
) -> Reported | None:
    """What to say of one pipeline now; `before` itself when nothing changed but the generation."""
    if keeper is not None:
        version, params = keeper.version, dict(keeper.params)
        tables = dict(keeper.tables_in_use)
        now = Reported(version.digest, version.number, "", params, params_digest(params), artifacts=tables)
    elif target is not None:
        now = Reported(target.digest, target.number, "")
    elif before is not None and before.phase != "stopped":
        return replace(before, phase="stopped", reason="", code="", since=clock.wall_text(), generation=generation)
    else:
        return None
    now = replace(
        now,
        phase=status.phase,
        reason=status.reason[:REASON_MAX],
        code=status.code,
        gate=gate,
        bans=bans,
        since=status.since,
        generation=generation,
    )
    is_same = before is not None and replace(before, generation=generation) == now
    return before if is_same else now


def facts() -> dict[str, object]:
    """What the node says of itself: slow to change."""
    return {
        "agent": AGENT,
        "arch": platform.machine(),
        "clock": clock.quality(),
        "host": platform.node(),
        "languages": list(LANGUAGES),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
