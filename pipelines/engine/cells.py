"""Mappings that never change, and yet are cheap to change: what modules put into `State.cells`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

Key = tuple[Any, ...]
GONE: Final[Any] = object()
SPARE_ROWS = 4_096
_DELTA_MAX = 64  # changes kept beside a mapping before they are merged into a new one


class Overlay(Mapping[Key, Any]):
    """A mapping and some changes to it."""

    __slots__ = ("_base", "_delta", "_flat")

    def __init__(self, base: Mapping[Key, Any], delta: Mapping[Key, Any]) -> None:
        self._base, self._delta = base, delta
        self._flat: dict[Key, Any] | None = None

    def __getitem__(self, key: Key) -> Any:
        found = self._delta.get(key, self)
        if found is self:
            return self._base[key]
        if found is GONE:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[Key]:
        return iter(self.flat())

    def __len__(self) -> int:
        return len(self.flat())

    def __bool__(self) -> bool:
        return len(self._base) > len(self._delta) or bool(self.flat())

    def items(self) -> Any:
        return self.flat().items()

    def flat(self) -> dict[Key, Any]:
        if self._flat is None:
            merged = {**self._base, **self._delta}
            self._flat = (
                {key: value for key, value in merged.items() if value is not GONE} if GONE in self._delta.values() else merged
            )
        return self._flat

    def changed(self, changes: Mapping[Key, Any]) -> Mapping[Key, Any]:
        delta = {**self._delta, **changes}
        return Overlay(self._base, delta) if len(delta) <= _DELTA_MAX else Overlay(self.flat(), changes)


def changed(cells: Mapping[Key, Any], changes: Mapping[Key, Any]) -> Mapping[Key, Any]:
    """The cells with some put, or, with `GONE`, removed."""
    if not changes:
        return cells
    return (cells if isinstance(cells, Overlay) else Overlay(cells, {})).changed(changes)


class Chunks(Mapping[Key, Any]):
    """Rows in the order they came, as one table per commit: a chunk that was stored is not written again. `rest`: other cells."""

    __slots__ = ("_epoch", "_flat", "_open", "_table", "rest", "sealed")

    def __init__(
        self,
        sealed: Mapping[int, pa.Table],
        epoch: int = 0,
        open_: tuple[Any, ...] | None = None,
        rest: Mapping[Key, Any] | None = None,
    ) -> None:
        self.sealed, self._epoch, self._open, self.rest = sealed, epoch, open_, rest or {}
        self._table: pa.Table | None = None
        self._flat: dict[Key, Any] | None = None

    @classmethod
    def of(cls, cells: Mapping[Key, Any]) -> Chunks:
        if isinstance(cells, Chunks):
            return cells
        sealed = {epoch: cells["rows", epoch] for epoch in sorted(key[1] for key in cells if key[0] == "rows")}
        return cls(sealed, 0, None, {key: value for key, value in cells.items() if key[0] != "rows"})

    def with_rows(self, epoch: int, rows: pa.Table) -> Chunks:
        if self._open is None or epoch != self._epoch:
            sealed = self.tables() if self._open is not None else self.sealed
            before = (None, sealed[epoch]) if epoch in sealed else None  # after a restore into the same epoch
            return Chunks({k: t for k, t in sealed.items() if k != epoch}, epoch, (before, rows), self.rest)
        return Chunks(self.sealed, epoch, (self._open, rows), self.rest)

    def without(self, epochs: Sequence[int]) -> Chunks:
        sealed = {epoch: table for epoch, table in self.sealed.items() if epoch not in epochs}
        return Chunks(sealed, self._epoch, self._open, self.rest)

    def compacted(self, epoch: int, numbers: Sequence[int]) -> Chunks:
        """The same with only the rows of these sequence numbers."""
        whole = pa.concat_tables([*self.tables().values()])
        return Chunks({}, epoch, (None, whole.take(places_of(whole, numbers)).combine_chunks()), self.rest)

    def with_rest(self, rest: Mapping[Key, Any]) -> Chunks:
        return Chunks(self.sealed, self._epoch, self._open, rest)

    def tables(self) -> Mapping[int, pa.Table]:
        if self._open is None:
            return self.sealed
        if self._table is None:
            parts, node = [], self._open
            while node is not None:
                node, table = node
                parts.append(table)
            self._table = pa.concat_tables([t for t in reversed(parts) if t is not None]).combine_chunks()
            self._open = (None, self._table)
        return {**self.sealed, self._epoch: self._table}

    def flat(self) -> dict[Key, Any]:
        if self._flat is None:
            self._flat = {**{("rows", epoch): table for epoch, table in self.tables().items()}, **self.rest}
        return self._flat

    def __getitem__(self, key: Key) -> Any:
        return self.flat()[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.flat())

    def __len__(self) -> int:
        return len(self.sealed) + (self._open is not None) + len(self.rest)

    def items(self) -> Any:
        return self.flat().items()


class Census:
    """How many rows of each chunk are stored, and how many of them still count."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.stored: dict[int, int] = {}
        self.total = self.total_stored = 0
        self._empty: set[int] = set()

    def store(self, chunk: int, n: int) -> None:
        self.stored[chunk] = self.stored.get(chunk, 0) + n
        self.alive.setdefault(chunk, 0)
        self.total_stored += n
        self._empty.add(chunk)

    def count(self, chunk: int, n: int) -> None:
        """`n` more rows of it count, or, below 0, less."""
        alive = self.alive[chunk] = self.alive.get(chunk, 0) + n
        self.total += n
        if alive <= 0:
            self._empty.add(chunk)

    def forget_empty(self, current: int) -> list[int]:
        """Chunks no row of which counts any more, but for the current one."""
        if not self._empty:
            return []
        gone = [chunk for chunk in self._empty if chunk != current and self.alive.get(chunk, 1) <= 0]
        self._empty = {current} & self._empty
        for chunk in gone:
            self.total_stored -= self.stored.pop(chunk, 0)
            del self.alive[chunk]
        return gone

    @property
    def is_sparse(self) -> bool:
        """Whether it pays to write what counts again, and to drop the chunks."""
        return self.total_stored > 2 * self.total + SPARE_ROWS


def in_order(chunks: Chunks) -> list[tuple[int, pa.Table]]:
    """The chunks that have rows, oldest rows first."""
    found = [(epoch, table) for epoch, table in chunks.tables().items() if table.num_rows]
    return sorted(found, key=lambda chunk: int(chunk[1]["_seq"][0].as_py()))


def places_of(rows: pa.Table, numbers: Sequence[int]) -> pa.Array:
    """Where the rows with these sequence numbers stand."""
    return pc.index_in(pa.array(numbers, pa.int64()), rows["_seq"].combine_chunks())
