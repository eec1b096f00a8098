"""Folds: steps that remember something of each group, row by row in the order of the rows.

A group's memory is one cell, a small tuple whose first item counts the writes of the step: the higher, the later. A fold of any
split of the same rows gives the same rows and the same cells (I14); restored cells go on the same (I1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.frames import sha256
from pipelines.contract.language.steps import Grouped
from pipelines.engine.bind import Column
from pipelines.engine.cells import GONE, changed
from pipelines.engine.fate import ALIVE
from pipelines.engine.stage import Stages, any_alive, attach
from pipelines.engine.state import Cells, Key, State
from pipelines.engine.types import to_arrow

KEY_TEXT_MAX = 64  # characters; a longer text in a key is kept as its digest
_FORGET_SHARE = 10  # one in so many groups goes when there are too many


class Working(dict[Key, Any]):
    """The cells that a batch writes; reading another gives what was there before the batch, or None."""

    __slots__ = ("before", "gone")

    def __init__(self, before: Cells) -> None:
        super().__init__()
        self.before, self.gone = before, set[Key]()

    def __missing__(self, key: Key) -> Any:
        return None if key in self.gone else self.before.get(key)

    def changes(self) -> dict[Key, Any]:
        return {**dict.fromkeys(self.gone, GONE), **self}


@dataclass
class Memory:
    """The cells of one step during a batch. A fold reads `cells[key]`, None for a new group, and writes `cells[key] = (writes,
    ...)` with `writes` one higher each time; after a new group it calls `added`."""

    cells: Working
    writes: int
    groups: int
    max_groups: int

    def added(self) -> None:
        """Count a new group. Beyond `max_groups`, those written longest ago are forgotten, a tenth at once."""
        self.groups += 1
        if self.groups <= self.max_groups:
            return
        kept = {key: cell for key, cell in self.cells.before.items() if key not in self.cells.gone} | self.cells
        eldest = sorted(kept, key=lambda key: kept[key][0])[: self.max_groups // _FORGET_SHARE]
        for key in eldest:
            self.cells.pop(key, None)
        self.cells.gone.update(eldest)
        self.groups -= len(eldest)


@dataclass(frozen=True)
class Live:
    """The rows that a fold sees: those alive. `keys` are their groups, `times` their event times in microseconds."""

    keys: Sequence[Key]
    times: Sequence[int]
    values: Sequence[Sequence[Any]]  # the columns it reads

    def __len__(self) -> int:
        return len(self.keys)


# (memory, rows) -> fate of each row or None when all stay, and the columns it makes
Step = Callable[[Memory, Live], tuple[Sequence[int] | None, Sequence[Sequence[Any]]]]


@dataclass(frozen=True)
class FoldStage:
    owner: str
    by: tuple[str, ...]
    reads: tuple[str, ...]
    made: Mapping[str, pa.DataType]
    max_groups: int
    step: Step
    compact: bool = False  # values it reads come as `scalars`
    # the last cells, their highest count of writes, how many they are: what would else be counted anew for each batch
    _known: list[tuple[Cells, int, int]] = field(default_factory=list, compare=False)

    def __call__(self, state: State, rows: pa.Table) -> tuple[State, pa.Table]:
        if not any_alive(rows):
            return state, attach(rows, {place: pa.nulls(rows.num_rows, type_) for place, type_ in self.made.items()})
        alive = pc.equal(rows["_fate"].combine_chunks(), ALIVE)
        some_dead = alive.true_count < len(alive)
        live = rows.select([*dict.fromkeys(["_et", *self.by, *self.reads])])
        live = live.filter(alive) if some_dead else live
        memory = self._memory(state)
        before = memory.writes
        values = [self._values(live[place]) for place in self.reads]
        fates, columns = self.step(memory, Live(group_keys(live, self.by), live["_et"].to_pylist(), values))
        made = {p: pa.array(column, type_) for (p, type_), column in zip(self.made.items(), columns, strict=True)}
        if fates is not None:
            made["_fate"] = pa.array(fates, pa.int16())
        if some_dead:
            others = {"_fate": rows["_fate"].combine_chunks()}
            made = {place: spread(column, alive, others.get(place)) for place, column in made.items()}
        return self._remember(state, memory) if memory.writes > before else state, attach(rows, made)

    def _values(self, column: pa.ChunkedArray) -> list[Any]:
        return scalars(column.combine_chunks()) if self.compact else list(column.to_pylist())

    def _memory(self, state: State) -> Memory:
        cells = state.of(self.owner)
        if not self._known or self._known[0][0] is not cells:
            self._known[:] = [(cells, max((cell[0] for cell in cells.values()), default=0), len(cells))]
        _, writes, groups = self._known[0]
        return Memory(Working(cells), writes, groups, self.max_groups)

    def _remember(self, state: State, memory: Memory) -> State:
        state = state.put(self.owner, changed(state.of(self.owner), memory.cells.changes()))
        self._known[:] = [(state.of(self.owner), memory.writes, memory.groups)]
        return state


def spread(column: pa.Array, alive: pa.BooleanArray, others: pa.Array | None) -> pa.Array:
    """Values of the rows that are `alive` as a column of all rows, which have those of `others` elsewhere, or NULL."""
    positions = pc.if_else(alive, pc.subtract(pc.cumulative_sum(alive.cast(pa.int32())), 1), None)
    found = column.take(positions)
    return found if others is None else pc.if_else(alive, found, others)


def compile_fold(
    stages: Stages,
    spec: Grouped,
    path: str,
    step: Step,
    reads: Sequence[str] = (),
    makes: Mapping[str, Column] | None = None,
    meaning: Sequence[object] = (),
    by: Sequence[str] | None = None,
    *,
    compact: bool = False,
) -> None:
    """Add the fold `step`. Versions hand its state on while the kind, `by`, `reads`, their types and `meaning` stay."""
    by = spec.by if by is None else by
    if not check_keys(stages, by, f"{path}.by"):
        return
    types = [stages.columns[name].type for name in [*by, *reads]]
    owner = stages.owner(path.rpartition(".")[2], list(by), list(reads), types, *meaning)
    read, keys = tuple(map(stages.place_of, reads)), tuple(map(stages.place_of, by))
    made = {stages.place(name, column): to_arrow(column.type) for name, column in (makes or {}).items()}
    stages.then(FoldStage(owner, keys, read, made, spec.max_groups, step, compact), [*keys, *read], made)


def check_keys(stages: Stages, names: Sequence[str], path: str) -> bool:
    """Whether rows can be told apart by these columns."""
    if not stages.known(names, path):
        return False
    for name in names:
        type_ = stages.columns[name].type
        if type_.endswith("[]") or type_.startswith("STRUCT("):
            stages.binder.complain(
                path, f'"{name}" is a {type_}: rows are not compared by it', "derive a text or number of it before"
            )
            return False
    return True


def group_keys(rows: pa.Table, by: Sequence[str]) -> list[Key]:
    """The key of each row: its values as JSON scalars. Equal values have equal keys."""
    if not by:
        return [()] * rows.num_rows
    return list(zip(*(scalars(rows[name].combine_chunks()) for name in by), strict=True))


def scalars(values: pa.Array) -> list[Any]:
    """Values as JSON scalars: times in microseconds, decimals as texts, bytes in hexadecimal, long texts as digests."""
    type_ = values.type
    if pa.types.is_timestamp(type_):
        return list(values.cast(pa.timestamp("us", type_.tz)).cast(pa.int64()).to_pylist())
    if pa.types.is_decimal(type_):
        return list(values.cast(pa.string()).to_pylist())
    if pa.types.is_binary(type_):
        return [None if value is None else value.hex() for value in values.to_pylist()]
    if pa.types.is_string(type_) and (pc.max(pc.utf8_length(values)).as_py() or 0) > KEY_TEXT_MAX:
        return _short(values)
    return list(values.to_pylist())


def _short(values: pa.StringArray) -> list[str | None]:
    distinct = values.dictionary_encode()
    short = [t if len(t) <= KEY_TEXT_MAX else sha256(t.encode())[:39] for t in distinct.dictionary.to_pylist()]
    return [None if i is None else short[i] for i in distinct.indices.to_pylist()]
