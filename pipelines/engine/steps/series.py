"""counter and previous: what a row is beside the group's row before it, in the order in which rows come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from pipelines.contract.language.steps import Counter, Previous
from pipelines.engine.bind import Column
from pipelines.engine.fate import ALIVE
from pipelines.engine.stage import DERIVED_BYTES_MAX, Stages
from pipelines.engine.steps.fold import Live, Memory, compile_fold

LATE_MAX_US = 3_600_000_000  # a lower reading that is older by less is late, by more the counter and its clock started anew

Number = int | float | Decimal
Folded = tuple[Sequence[int] | None, Sequence[Sequence[Any]]]


def compile_counter(stages: Stages, spec: Counter, path: str) -> None:
    """A cell is (writes, reading, its time, whether the reading before it was too far below to be trusted)."""
    if not stages.known([spec.of], f"{path}.of") or not stages.is_new(spec.into, f"{path}.into"):
        return
    column = stages.columns[spec.of]
    as_number = _number_of(column.type)
    if as_number is None:
        stages.binder.complain(f"{path}.of", f'"{spec.of}" is {column.type}, a counter is a number', "cast it in a derive before")
        return
    for word in ("wraps_at", "max_step"):
        value = getattr(spec, word)
        if column.type == "BIGINT" and value is not None and value != int(value):
            stages.binder.complain(f"{path}.{word}", f'"{spec.of}" is an integer, {value} is not', "write a whole number")
            return
    made = Column("DOUBLE" if spec.per else column.type, column.sensitive, nullable=True)
    fold = _counting(stages, spec, as_number, _fits(made.type))
    compile_fold(stages, spec, path, fold, reads=[spec.of], makes={spec.into: made})


def _number_of(type_: str) -> Callable[[float], Number] | None:
    if type_.startswith("DECIMAL") and not type_.endswith("[]"):
        return lambda value: Decimal(repr(value))
    return {"BIGINT": int, "DOUBLE": float}.get(type_)


def _fits(type_: str) -> Callable[[Any], bool]:
    """Whether a difference can be a value of the column."""
    if type_ == "BIGINT":
        return lambda value: -(2**63) <= value < 2**63
    if type_ == "DOUBLE":
        return math.isfinite
    precision, scale = map(int, type_.removeprefix("DECIMAL(").rstrip(")").split(","))
    limit = Decimal(10) ** (precision - scale)
    return lambda value: abs(value) < limit


def _counting(
    stages: Stages, spec: Counter, as_number: Callable[[float], Number], fits: Callable[[Any], bool]
) -> Callable[[Memory, Live], Folded]:
    skipped = stages.fates.add("filtered", stages.step) if spec.on_reset == "skip" else ALIVE
    growth = _growth(spec, as_number)

    def fold(memory: Memory, rows: Live) -> Folded:
        cells, n, per = memory.cells, memory.writes, spec.per
        fates, made = [ALIVE] * len(rows), [None] * len(rows)
        for i, (key, time, reading) in enumerate(zip(rows.keys, rows.times, rows.values[0], strict=True)):
            if reading is None:
                continue
            cell = cells[key]
            if cell is None:
                n += 1
                cells[key] = (n, reading, time, False)
                memory.added()
                continue
            _, last, last_time, doubted = cell
            if reading < last and 0 < last_time - time < LATE_MAX_US:
                continue  # late: the readings after it have counted what it tells
            grown, is_reset, doubt = growth(last, reading, doubted)
            if is_reset and skipped:
                fates[i] = skipped
            if grown is not None and per:
                grown = float(grown) * per / (time - last_time) if time > last_time else None
            if grown is not None and fits(grown):
                made[i] = grown
            n += 1
            cells[key] = (n, reading, time, doubt)
        memory.writes = n
        return fates if skipped else None, [made]

    return fold


def _growth(spec: Counter, as_number: Callable[[float], Number]) -> Callable[[Any, Any, bool], tuple[Any, bool, bool]]:
    """(last reading, reading, whether the last one is in doubt) -> (growth or None, whether the counter was reset, whether this
    reading is in doubt). In doubt is one that grew by more than `max_step`: when the next is lower, it was a wrong reading."""
    wraps_at = None if spec.wraps_at is None else as_number(spec.wraps_at)
    max_step = None if spec.max_step is None else as_number(spec.max_step)
    from_zero = spec.on_reset == "from_zero"

    def growth(last: Any, reading: Any, doubted: bool) -> tuple[Any, bool, bool]:
        if reading >= last:
            grown = reading - last
            return (grown, False, False) if max_step is None or grown <= max_step else (None, False, True)
        if doubted:
            return None, False, False
        if wraps_at is not None:
            grown = reading + wraps_at - last
            if grown >= 0 and (grown <= max_step if max_step is not None else grown + grown < wraps_at):
                return grown, False, False
        if from_zero and reading >= 0 and (max_step is None or reading <= max_step):
            return reading, True, False
        return None, True, False

    return growth


def compile_previous(stages: Stages, spec: Previous, path: str) -> None:
    """A cell is (writes, the values of the row before)."""
    taken = list(spec.take.values())
    if not stages.known(taken, f"{path}.take", "the new name stands on the left: `take: {new: column}`"):
        return
    if not all(stages.is_new(name, f"{path}.take.{name}") for name in spec.take):
        return
    reads = list(dict.fromkeys(taken))
    at = [reads.index(column) for column in taken]
    long = [i for i, name in enumerate(reads) if not _is_short(stages.columns[name].type)]
    too_long = stages.fates.add("failed", stages.step, f"{path}: a value has more than {DERIVED_BYTES_MAX} bytes to remember")

    def fold(memory: Memory, rows: Live) -> Folded:
        cells, n = memory.cells, memory.writes
        fates: list[int] = [ALIVE] * len(rows)
        made: list[list[Any]] = [[None] * len(rows) for _ in at]
        for i, (key, values) in enumerate(zip(rows.keys, zip(*rows.values, strict=True), strict=True)):
            cell = cells[key]
            if cell is not None:
                for column, place in zip(made, at, strict=True):
                    column[i] = cell[1][place]
            if long and any(_size(values[j]) > DERIVED_BYTES_MAX for j in long):
                fates[i] = too_long
                continue
            n += 1
            cells[key] = (n, values)
            if cell is None:
                memory.added()
        memory.writes = n
        return fates if long else None, made

    makes = {name: replace(stages.columns[column], nullable=True) for name, column in spec.take.items()}
    compile_fold(stages, spec, path, fold, reads=reads, makes=makes)


def _is_short(type_: str) -> bool:
    return type_.startswith(("BOOLEAN", "BIGINT", "DOUBLE", "DECIMAL(", "TIMESTAMP")) and not type_.endswith("[]")


def _size(value: Any) -> int:
    """Bytes of a value, about."""
    if value is None:
        return 0
    return len(value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else repr(value))
