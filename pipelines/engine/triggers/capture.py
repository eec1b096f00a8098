"""The rows around an incident: those of its group from `before` the raise until `after` it, each once.

The rows of the last `before` are state, so a crash between raise and capture loses none; they are bounded, oldest go first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.triggers import Capture
from pipelines.engine.cells import Census, Chunks, in_order, places_of
from pipelines.engine.state import Group, State
from pipelines.engine.triggers.arrived import Arrived

BYTES_MAX = 32 * 1024 * 1024  # kept per trigger
_ROW_BYTES = 32  # besides its texts and fixed values

_Kept = tuple[int, int, int, int]  # event time, sequence number, bytes, chunk
Taken = tuple[int, str]  # sequence number, incident


class Keeper:
    """The kept rows of one trigger. A cache: all of it follows from the cells it was made of."""

    def __init__(self, spec: Capture, owner: str, by: tuple[str, ...], columns: tuple[str, ...], state: State) -> None:
        self.spec, self.owner, self.by, self.columns = spec, owner, by, columns
        self.cells = state.of(owner)
        self.chunks = Chunks.of(self.cells)
        self.rest: dict[Any, Any] = dict(self.chunks.rest)  # ("floor",): the newest that left early; ("group", ..): see _done
        self.groups: dict[Group, deque[_Kept]] = {}
        self.until: dict[Group, tuple[int, str]] = {}  # captures under way or done: their end, their incident
        self.order: deque[tuple[Group, _Kept]] = deque()
        self.census = Census()
        self.first: dict[int, int] = {}  # the least sequence number of each chunk
        self.bytes = self.next = 0
        self.taken: list[Taken] = []
        self._restore()

    def is_of(self, state: State) -> bool:
        return self.cells is state.of(self.owner) and (bool(self.cells) or not self.next)

    def _restore(self) -> None:
        floor = self.rest.get(("floor",), -1)
        done: dict[Group, int] = {}
        for key, value in self.rest.items():
            if key[0] == "group":
                done[key[1:]], self.until[key[1:]] = value[0], (value[1], value[2])
        self.next = max([floor, *done.values()], default=-1) + 1
        for epoch, table in in_order(self.chunks):
            groups = list(zip(*(table[name].to_pylist() for name in self.by), strict=True)) if self.by else [()] * table.num_rows
            numbers = table["_seq"].to_pylist()
            self.first[epoch] = numbers[0]
            self.census.store(epoch, table.num_rows)
            for group, t, size, seq in zip(groups, table["_t"].to_pylist(), table["_bytes"].to_pylist(), numbers, strict=True):
                if seq > max(floor, done.get(group, -1)):
                    self._keep(group, (t, seq, size, epoch))
                self.next = max(self.next, seq + 1)

    # -- rows

    def row(self, group: Group, t_us: int, size: int, epoch: int) -> None:
        """A row of the group, at its time."""
        seq, self.next = self.next, self.next + 1
        until = self.until.get(group)
        if until is not None and t_us <= until[0]:
            self.taken.append((seq, until[1]))
            self._done(group, seq)
            return
        self._keep(group, (t_us, seq, size, epoch))
        while self.bytes > BYTES_MAX:
            self._drop_oldest()

    def _keep(self, group: Group, kept: _Kept) -> None:
        rows = self.groups.setdefault(group, deque())
        floor_us = kept[0] - self.spec.before
        while rows and rows[0][0] < floor_us:
            self._leave(rows.popleft())
        rows.append(kept)
        self.order.append((group, kept))
        self.bytes += kept[2]
        self.census.count(kept[3], 1)
        while self.order and not self._is_kept(*self.order[0]):
            self.order.popleft()

    def _is_kept(self, group: Group, kept: _Kept) -> bool:
        rows = self.groups.get(group)
        return rows is not None and len(rows) > 0 and rows[0][1] <= kept[1]

    def _leave(self, kept: _Kept) -> None:
        self.bytes -= kept[2]
        self.census.count(kept[3], -1)

    def _drop_oldest(self) -> None:
        group, kept = self.order.popleft()
        if self._is_kept(group, kept):
            self._leave(self.groups[group].popleft())
            self.rest["floor",] = kept[1]

    def raised(self, group: Group, incident: str, t_us: int) -> None:
        """Take what is kept of the group, and go on until `after`."""
        last = self.rest.get(("group", *group), (-1,))[0]
        for kept in self.groups.pop(group, deque()):
            self._leave(kept)
            if kept[0] >= t_us - self.spec.before:
                self.taken.append((kept[1], incident))
            last = kept[1]
        self.until[group] = (t_us + self.spec.after, incident)
        self._done(group, last)

    def _done(self, group: Group, seq: int) -> None:
        """Rows of the group up to `seq` are taken."""
        self.rest["group", *group] = (seq, *self.until[group])

    # -- a batch

    def commit(
        self, state: State, rows: pa.Table | None, sizes: Sequence[int], times: Sequence[int]
    ) -> tuple[State, pa.Table | None]:
        """The state with what is kept now, and the rows that were taken. `rows` are those seen in this batch."""
        chunks, epoch = self.chunks, state.epoch
        if rows is not None and rows.num_rows:
            numbers = range(self.next - rows.num_rows, self.next)
            own = {
                "_t": pa.array(times, pa.int64()),
                "_seq": pa.array(numbers, pa.int64()),
                "_bytes": pa.array(sizes, pa.int64()),
            }
            chunks = chunks.with_rows(epoch, pa.table({**{name: rows[name] for name in ("_et", *self.columns)}, **own}))
            self.first.setdefault(epoch, numbers[0])
            self.census.store(epoch, rows.num_rows)
        taken = self._take(chunks) if self.taken else None
        if gone := self.census.forget_empty(epoch):
            chunks = chunks.without(gone)
            self.first = {chunk: first for chunk, first in self.first.items() if chunk not in gone}
        self._forget(min(self.first.values(), default=self.next))
        if self.rest != chunks.rest:
            chunks = chunks.with_rest(dict(self.rest))
        sparse = self.census.is_sparse
        if sparse:
            chunks = chunks.compacted(epoch, sorted(kept[1] for rows in self.groups.values() for kept in rows))
        state = state.put(self.owner, chunks) if chunks is not self.chunks else state
        self.chunks, self.cells, self.taken = chunks, state.of(self.owner), []
        if sparse:
            self.__init__(self.spec, self.owner, self.by, self.columns, state)  # type: ignore[misc]
        return state, taken

    def _forget(self, first: int) -> None:
        """Groups without rows, and captures whose end no stored row can lie before."""
        for group in [g for g, rows in self.groups.items() if not rows]:
            del self.groups[group]
        for group, (until_us, _) in list(self.until.items()):
            rows = self.groups.get(group)
            if self.rest[("group", *group)][0] < first and rows and rows[-1][0] > until_us:
                del self.until[group], self.rest[("group", *group)]

    def _take(self, chunks: Chunks) -> pa.Table:
        whole = pa.concat_tables([*chunks.tables().values()])
        rows = whole.take(places_of(whole, [seq for seq, _ in self.taken]))
        return rows.append_column("_incident", pa.array([incident for _, incident in self.taken], pa.string()))


def row_bytes(rows: Arrived, columns: Sequence[str]) -> list[int]:
    """What each row counts, however the batch was cut."""
    size = pa.repeat(pa.scalar(_ROW_BYTES + 8 * len(columns), pa.int64()), rows.n)
    for name in columns:
        values = rows.table[name]
        if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
            size = pc.add(size, pc.fill_null(pc.cast(pc.binary_length(values), pa.int64()), 0))
    sizes: list[int] = size.to_pylist()
    return sizes
