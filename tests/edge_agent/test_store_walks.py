"""Random walks of a store and a lake: sealing, sending, lost requests and answers, eviction, damage, restarts."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from fake_control import FakeLake
from support import new_key, open_store

from edge_agent.outbox import Mark, Sealed
from edge_agent.shares import DROP_NEWEST, Buffer, reserve_bytes
from edge_agent.store import Commit, Store
from pipelines.contract.segment import Segment, decode

BUDGET = 1 << 20
STEPS, LIVES = 60, 3
KEY = new_key()


class Lake(FakeLake):
    """One that refuses some segments: they have their verdict, but are not in the table."""

    def __init__(self, chance: random.Random, share: float) -> None:
        super().__init__()
        self._chance, self._share = chance, share
        self.refused: set[str] = set()

    def put(self, segment: Segment) -> tuple[str, str]:
        before = self.mark((segment.header.run, segment.header.stream))[0]
        key = super().put(segment)
        if self.mark(key)[0] > before and segment.payload and self._chance.random() < self._share:
            self.refused.add(segment.digest)
        return key

    def mark(self, key: tuple[str, str]) -> tuple[int, str, int, int]:
        seq, link, rows, stored = super().mark(key)
        refused = sum(segment.header.rows for segment in self.runs.get(key, ()) if segment.digest in self.refused)
        return seq, link, rows, stored - refused

    def stored(self) -> list[int]:
        held = [segment for run in self.runs.values() for segment in run if segment.payload]
        return [n for segment in held if segment.digest not in self.refused for n in json.loads(segment.payload)]


class Walk:
    """One seed: what was written, and what is under way between the two."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lake = Lake(self.chance, self.chance.choice([0.0, 0.0, 0.1]))
        self.written = 0
        self.flying: list[bytes] = []  # requests that are somewhere in the network
        self.sent: dict[tuple[str, str], int] = {}

    async def live(self, store: Store, steps: int) -> None:
        self.sent = {}
        moves = [self.seal] * 4 + [self.send] * 2 + [self.arrive] * 3 + [self.lose, self.ask, self.receipt, self.damage]
        for _ in range(steps):
            await self.chance.choice(moves)(store)
            await self.check(store)

    async def check(self, store: Store) -> None:
        b = await store.backlog()
        assert b.stored_rows + b.refused_rows + b.evicted_rows + b.damaged_rows + b.rows == self.written, "I4"
        assert b.bytes <= BUDGET - reserve_bytes(BUDGET), "I9"
        assert b.forgotten_rows == 0
        assert b.stored_rows <= len(self.lake.stored()), "I3"

    async def seal(self, store: Store) -> None:
        sealed = []
        for _ in range(self.chance.randint(1, 4)):
            count = self.chance.randint(1, 5)
            payload = json.dumps([*range(self.written, self.written + count)]).encode()
            self.written += count
            padding = b" " * self.chance.choice([10, 20_000, 100_000])
            sealed.append(Sealed(self.chance.choice(["a", "b"]), "rows", "t", count, payload + padding))
        await store.commit("p", "sha256:v", 1, Commit({}, {}, sealed=sealed))

    async def send(self, store: Store) -> None:
        for pending in await store.pending_segments(self.chance.choice([1, 200_000]), self.sent):
            self.flying.append(pending.data)
            self.sent[pending.run, pending.stream] = pending.seq

    async def arrive(self, store: Store) -> None:
        """Some request, perhaps an old one, perhaps not for the last time, perhaps without an answer."""
        if not self.flying:
            return
        place = 0 if self.chance.random() < 0.7 else self.chance.randrange(len(self.flying))
        key = self.lake.put(decode(self.flying[place], KEY.public))
        if self.chance.random() < 0.8:
            del self.flying[place]
        if self.chance.random() < 0.7:
            assert not await store.confirm([Mark(*key, *self.lake.mark(key))])

    async def lose(self, store: Store) -> None:
        """A time-out: what was under way may be lost, or late."""
        self.flying = [data for data in self.flying if self.chance.random() < 0.5]
        self.sent = {}

    async def ask(self, store: Store) -> None:
        marks = [Mark(*key, *self.lake.mark(key)) for key in await store.open_positions()]
        assert not await store.confirm(marks, asked=True), "no history forks here"
        assert not await store.doubtful()
        self.sent = {}

    async def receipt(self, store: Store) -> None:
        """One that was delayed."""
        if self.lake.runs:
            key = self.chance.choice(sorted(self.lake.runs))
            held = self.lake.runs[key]
            of_then = held[: self.chance.randint(0, len(held))]
            self.lake.runs[key] = of_then
            mark = Mark(*key, *self.lake.mark(key))
            self.lake.runs[key] = held
            assert not await store.confirm([mark])

    async def damage(self, store: Store) -> None:
        newest = "SELECT id FROM outbox WHERE void = '' ORDER BY id DESC LIMIT 1"
        await store._write(lambda db: db.execute(f"UPDATE outbox SET data = zeroblob(bytes) WHERE id = ({newest})"))

    async def heal(self, store: Store) -> None:
        await self.ask(store)
        while batch := await store.pending_segments(1):
            key = self.lake.put(decode(batch[0].data, KEY.public))
            mark = Mark(*key, *self.lake.mark(key))
            assert mark.seq >= batch[0].seq, "no gap blocks"
            await store.confirm([mark])
            await self.check(store)

    async def settle(self, store: Store) -> None:
        """Each (run, stream, seq) has one verdict; both sides count alike, and nothing that is stored is called lost."""
        await self.heal(store)
        lost: Counter[str] = Counter()
        for held in self.lake.runs.values():
            covered = [seq for segment in held for seq in range(segment.header.first, segment.header.seq + 1)]
            assert covered == list(range(1, len(covered) + 1)), "I2"
            for stub in (segment.header for segment in held if segment.header.is_stub):
                lost[stub.void] += stub.rows
        stored = self.lake.stored()
        refused = sum(s.header.rows for held in self.lake.runs.values() for s in held if s.digest in self.lake.refused)
        assert len(stored) == len(set(stored))
        assert len(stored) + refused + sum(lost.values()) == self.written
        b = await store.backlog()
        assert (b.segments, b.rows, b.bytes) == (0, 0, 0)
        assert (b.stored_rows, b.refused_rows + b.evicted_rows + b.damaged_rows) == (len(stored), self.written - len(stored))
        if not refused:  # else a receipt over both does not tell which is which
            assert (b.evicted_rows, b.damaged_rows) == (lost["evicted"], lost["damaged"])


@pytest.mark.parametrize("seed", range(10))
def test_i2_i3_i4_i9_a_random_walk(seed: int) -> None:
    walk = Walk(seed)
    with tempfile.TemporaryDirectory() as place:
        for life in range(LIVES):
            with open_store(Path(place), KEY, buffer_bytes=BUDGET) as store:
                asyncio.run(_life(walk, store, is_last=life == LIVES - 1))


async def _life(walk: Walk, store: Store, *, is_last: bool) -> None:
    async with asyncio.timeout(60):
        await store.checkpoint("p")
        await store.set_buffer("p", Buffer(when_full=walk.chance.choice(["drop_oldest", DROP_NEWEST])))
        await walk.live(store, STEPS)
        if is_last:
            await walk.settle(store)
