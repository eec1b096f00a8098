"""Judges the versions that run here by what their runners did, and remembers it on disk before anything follows from it (I12)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from edge_agent import clock, gate
from edge_agent.gate import Book, Measure, Verdict
from edge_agent.host import Outcome
from edge_agent.keeper import Keeper
from edge_agent.store import Store
from edge_agent.target import Fit
from pipelines.contract import causes
from pipelines.contract.node_state import Assignment

LOOK_S = 1.0
LOOK_MAX_US = 5_000_000  # between two looks; a longer pause is one of the agent's or the machine's, which proves nothing
SAVE_US = 15_000_000  # of soaking that a power cut may cost
SAVE_GOOD_US = 600_000_000  # of what the good version does, and while the gate is held: then nothing is counted
UNASSIGNED_MAX = 16  # books of pipelines that are not assigned here any more
_PAGE_BYTES = 4096
_log = structlog.get_logger("gate")


class Gatekeeper:
    """`open` whenever what is wanted may have changed; `note_end` is told by keepers; `run` looks at what runs."""

    def __init__(self, store: Store, keepers: Mapping[str, Keeper], wake: Callable[[], None]) -> None:
        self._store, self._keepers, self._wake = store, keepers, wake
        self._books: dict[str, Book] = {}
        self._assignments: Mapping[str, Assignment] = {}
        self._exempt: Collection[str] = ()
        self._verdicts: dict[str, tuple[str, Verdict]] = {}  # pipeline -> (version, how it stood at the last look)
        self._seen: dict[str, tuple[int, Measure]] = {}  # pipeline -> (runner, what it had told)
        self._looked_us = store.clock.now_us()
        self._saved_us: dict[str, int] = {}
        self._unfit: dict[str, Fit] = {}  # versions that this life of the agent found it cannot run

    async def load(self) -> None:
        self._books = await self._store.gates()

    def book(self, pipeline: str) -> Book:
        return self._books.get(pipeline, Book())

    def verdict(self, pipeline: str, digest: str) -> Verdict:
        """How the version that runs stands."""
        book = self.book(pipeline)
        if book.trial is None or book.trial.digest != digest:
            return Verdict(gate.PASSED if book.good is not None and book.good.digest == digest else "")
        if book.trial.failed:
            return Verdict(gate.FAILED, book.trial.failed)
        of, verdict = self._verdicts.get(pipeline, ("", Verdict("")))
        return verdict if of == digest else Verdict(gate.SOAKING)

    def unfit(self, digest: str) -> Fit | None:
        return self._unfit.get(digest)

    async def open(self, assignments: Mapping[str, Assignment], exempt: Collection[str]) -> None:
        """What is wanted now: others may be on trial, bans lifted. Nobody's trial are those `exempt`, which are pinned."""
        self._assignments, self._exempt = assignments, exempt
        for name, assignment in assignments.items():
            if (book := gate.opened(self.book(name), assignment)) != self.book(name):
                await self._write(name, book)
        for name in sorted(self._books.keys() - assignments.keys())[UNASSIGNED_MAX:]:
            del self._books[name]
            await self._store.put_gate(name, None)

    async def note_end(self, keeper: Keeper, outcome: Outcome) -> None:
        """A runner ended that nobody had told to."""
        if not self._is_on_trial(keeper):
            return
        name, book = keeper.pipeline, self.book(keeper.pipeline)
        if outcome.code == causes.POLICY and book.good is not None:
            self._unfit[keeper.version.digest] = Fit(None, causes.POLICY, outcome.reason)
            self._wake()
        elif outcome.code in ("", causes.FAILED):  # else something is missing here, which is not the version's fault
            await self._write(name, gate.crashed(book, outcome.reason or "the runner stopped by itself"))
            await self._judge(keeper, is_running=False)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        now_us = self._store.clock.now_us()
        ran_us = min(max(0, now_us - self._looked_us), LOOK_MAX_US)
        self._looked_us = now_us
        for name, keeper in list(self._keepers.items()):
            done, book = self._done(name, keeper), self.book(name)
            if done is None:
                continue
            if self._is_on_trial(keeper):
                if not keeper.trouble:
                    self._books[name] = gate.grown(book, done, ran_us)
                await self._judge(keeper, is_running=True)
            elif book.good is not None and book.good.digest == keeper.version.digest and not keeper.deaths:
                good = replace(book.good, params=dict(keeper.params), measure=book.good.measure.plus(done).recent())
                self._books[name] = replace(book, good=good)
                await self._save(name, SAVE_GOOD_US)

    def _is_on_trial(self, keeper: Keeper) -> bool:
        """Whether it runs what the manifest wants, which has not passed yet, nor failed just now."""
        name, book = keeper.pipeline, self.book(keeper.pipeline)
        if book.trial is None or name in self._exempt or name not in self._assignments:
            return False
        is_banned = book.good is not None and book.bans_it(book.trial.digest, keeper.params, self._assignments[name].lift)
        return book.trial.digest == keeper.version.digest and not is_banned

    def _done(self, name: str, keeper: Keeper) -> Measure | None:
        """What its runner did since the last look; None when none runs."""
        host = keeper.host
        if host is None or not host.is_ready or host.version.digest != keeper.version.digest:
            return None
        try:
            now = Measure.of(host.stats["life"])
        except (KeyError, TypeError, ValueError, AttributeError):
            now = Measure()
        pid, before = self._seen.get(name, (0, Measure()))
        self._seen[name] = (host.pid, now)
        return now.since(before) if pid == host.pid else now

    async def _judge(self, keeper: Keeper, *, is_running: bool) -> None:
        """Judge the trial, and write down what follows."""
        name, assignment = keeper.pipeline, self._assignments[keeper.pipeline]
        book, log = self.book(name), _log.bind(pipeline=name, version=keeper.version.number)
        memory = resident_bytes(keeper.pid) if is_running else 0
        found = gate.judge(assignment.gate, book, memory_bytes=memory, trouble=keeper.trouble, is_running=is_running)
        if found.state == gate.FAILED:
            log.error("the version failed its gate", reason=found.why)
            await self._write(name, gate.failed(book, found.why, keeper.params, assignment.lift, clock.wall_text()))
        elif found.state == gate.PASSED:
            log.info("the version passed its gate")
            await self._write(name, gate.passed(book, keeper.params, assignment.artifacts))
        else:
            await self._save(name, SAVE_US if found.state == gate.SOAKING else SAVE_GOOD_US)
        now = (keeper.version.digest, found)
        if now != self._verdicts.get(name) or found.state in (gate.FAILED, gate.PASSED):  # the same again is news all the same
            self._verdicts[name] = now
            self._wake()

    async def _save(self, name: str, rhythm_us: int) -> None:
        if self._store.clock.now_us() - self._saved_us.setdefault(name, self._store.clock.now_us()) >= rhythm_us:
            await self._write(name, self._books[name])

    async def _write(self, name: str, book: Book) -> None:
        """On disk before anything follows from it: a power cut here goes on with the one or the other."""
        await self._store.put_gate(name, book)
        self._books[name], self._saved_us[name] = book, self._store.clock.now_us()


def resident_bytes(pid: int) -> int:
    """What a process holds in memory; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
