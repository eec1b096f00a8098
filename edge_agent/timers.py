"""How long what people set goes on: counted in node time from when the node first holds the note, on its disk (I10)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from edge_agent.node_record import NodeRecord
from edge_agent.store import Store
from pipelines.contract.folds import Register, ended, register_of
from pipelines.contract.node_state import Note

LONGEST_S = 10 * 365 * 86_400.0  # what is meant to last longer needs no end
_LOOK_S = 60.0  # at the latest, since a suspended machine stops other clocks than node time


@dataclass(frozen=True, slots=True)
class Due:
    """What to do about timers at one moment."""

    begin: Mapping[str, int]  # note -> node time when it ends
    over: tuple[Note, ...]  # their time has come, and nobody wrote so yet
    forget: frozenset[str]  # timers of notes that ended, gave way to a newer one, or are gone
    next_us: int | None  # when to look again


def duration_s(note: Note) -> float | None:
    """How long it is to hold; None for until it is taken back."""
    given = note.body.get("for_s")
    if not isinstance(given, int | float) or isinstance(given, bool) or not math.isfinite(given) or given <= 0:
        return None
    return min(float(given), LONGEST_S)


def due(notes: Iterable[Note], timers: Mapping[str, int], now_us: int, *, node: str) -> Due:
    """Pure. A note that a newer one of its author replaced has no time to count."""
    notes = list(notes)
    over = ended(notes, node=node)
    newest: dict[tuple[Register, str], Note] = {}
    for note in sorted(notes, key=lambda n: n.seq):
        if (register := register_of(note)) is not None:
            newest[register, note.author] = note
    live = {n.name: n for n in newest.values() if duration_s(n) is not None and n.name not in over}
    begin = {name: now_us + round((duration_s(n) or 0) * 1e6) for name, n in live.items() if name not in timers}
    ends = {**begin, **{name: at_us for name, at_us in timers.items() if name in live}}
    waiting = [at_us for at_us in ends.values() if at_us > now_us]
    return Due(
        begin,
        tuple(sorted((live[name] for name, at_us in ends.items() if at_us <= now_us), key=lambda n: n.name)),
        frozenset(timers.keys() - live.keys()),
        min(waiting, default=None),
    )


class Timers:
    """Begins and ends them; `settle` whenever notes may have changed. A power cut between two of its steps repeats the second."""

    def __init__(self, store: Store, record: NodeRecord, node: str, wake: Callable[[], None]) -> None:
        self._store, self._record, self._node, self._wake = store, record, node, wake
        self._later: asyncio.TimerHandle | None = None
        self.ends: dict[str, int] = {}  # note -> node time when it ends

    async def load(self) -> None:
        self.ends = await self._store.timers()

    def left_s(self, note: Note) -> float | None:
        """How long it still holds; None when it has no end."""
        at_us = self.ends.get(note.name)
        return None if at_us is None else max(0.0, (at_us - self._store.clock.now_us()) / 1e6)

    async def settle(self) -> None:
        now_us = self._store.clock.now_us()
        found = due(self._record.document.notes(), self.ends, now_us, node=self._node)
        if found.begin or found.forget:
            await self._store.set_timers(found.begin, found.forget)
            kept = {name: at_us for name, at_us in self.ends.items() if name not in found.forget}
            self.ends = {**kept, **found.begin}
        if self._record.is_agreed:
            for note in found.over:
                await self._record.add_note("ended", note.subject, {"note": note.name}, by="", reason="its time is over")
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if found.next_us is not None:
            wait_s = min((found.next_us - now_us) / 1e6, _LOOK_S)
            self._later = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
