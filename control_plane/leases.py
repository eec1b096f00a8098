"""Which ingest process serves which partition of nodes: leases in SQL, without anybody's clock.

Each process counts up a beat; a beat that another process has not seen rise for `TTL_S` of its own time belongs to the dead. The
partitions of the living follow from their names alone (rendezvous hashing), so they agree without talking. Leases keep processes
out of each other's way; that no row is stored twice does not depend on them (see lake_table.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.contract.subjects import PARTITIONS

TTL_S = 6.0  # after a crash its partitions are idle this long; agents ask again meanwhile
BEAT_EVERY_S = 2.0  # one small transaction each

_metadata = sa.MetaData()
processes = sa.Table(
    "ingest_processes",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
)
leases = sa.Table(
    "ingest_leases",
    _metadata,
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.Text, nullable=False),  # written by: who takes it from nobody or from the dead
)


class Leases:
    """Of one process. `name` is its own for as long as it lives, and nobody else's."""

    def __init__(self, db: Connection, name: str) -> None:
        _metadata.create_all(db)
        self._name = name
        self._seen: dict[str, tuple[int, float]] = {}  # process -> its beat, and when we saw it rise
        self.held: frozenset[int] = frozenset()

    def step(self, db: Connection, now_s: float) -> frozenset[int]:
        """Beat, bury the dead, take and give up partitions: what is held now. `now_s` counts seconds, never back.

        To be called every `BEAT_EVERY_S`; a process that could not for `TTL_S` must stop serving until it did."""
        self._beat(db)
        living = self._living(db, now_s)
        holders = {row.partition: row.holder for row in db.execute(sa.select(leases))}
        ours = {p for p in range(PARTITIONS) if chosen(p, living) == self._name}
        for partition in range(PARTITIONS):
            holder = holders.get(partition)
            if partition in ours and holder != self._name and (holder is None or holder not in living):
                self._take(db, partition, holder)
            elif partition not in ours and holder == self._name:
                db.execute(leases.delete().where(leases.c.partition == partition, leases.c.holder == self._name))
        self.held = frozenset(db.scalars(sa.select(leases.c.partition).where(leases.c.holder == self._name)))
        return self.held

    def leave(self, db: Connection) -> None:
        """Give everything up at once."""
        db.execute(leases.delete().where(leases.c.holder == self._name))
        db.execute(processes.delete().where(processes.c.name == self._name))
        self.held = frozenset()

    def _beat(self, db: Connection) -> None:
        here = processes.c.name == self._name
        if db.execute(processes.update().where(here).values(beat=processes.c.beat + 1)).rowcount == 0:
            db.execute(processes.insert().values(name=self._name, beat=1))

    def _living(self, db: Connection, now_s: float) -> set[str]:
        beats = {row.name: row.beat for row in db.execute(sa.select(processes))}
        for name, beat in beats.items():
            if name not in self._seen or self._seen[name][0] != beat:
                self._seen[name] = (beat, now_s)
        self._seen = {name: seen for name, seen in self._seen.items() if name in beats}
        dead = {name for name, (_, since_s) in self._seen.items() if name != self._name and now_s - since_s >= TTL_S}
        for name in dead:
            db.execute(processes.delete().where(processes.c.name == name, processes.c.beat == beats[name]))
        return set(beats) - dead

    def _take(self, db: Connection, partition: int, holder: str | None) -> None:
        """Unless somebody was quicker."""
        if holder is not None:
            db.execute(leases.delete().where(leases.c.partition == partition, leases.c.holder == holder))
        if db.scalar(sa.select(leases.c.holder).where(leases.c.partition == partition)) is None:
            db.execute(leases.insert().values(partition=partition, holder=self._name))


def chosen(partition: int, names: Collection[str]) -> str:
    """Which of `names` serves `partition`: all agree, and one more or less moves only its share (Thaler 1998)."""
    return max(names, key=lambda name: hashlib.sha256(f"{partition} {name}".encode()).digest())
