"""dedupe, deadband, changes, sample, rate_limit: steps that let fewer rows through.

Times are those of the rows. One that goes backward is a time like any other: what matters is how far two rows are apart, so a row
from 2036 or a clock set back holds nobody up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.contract.language.steps import Changes, Deadband, Dedupe, RateLimit, Sample
from pipelines.engine.bind import Bound, Column
from pipelines.engine.connection import quote
from pipelines.engine.stage import Stages
from pipelines.engine.steps.fold import Live, Memory, check_keys, compile_fold

Folded = tuple[Sequence[int] | None, Sequence[Sequence[Any]]]
_ANY = -1.0
_NUMBERS = ("BIGINT", "DOUBLE", "DECIMAL")


def compile_dedupe(stages: Stages, spec: Dedupe, path: str) -> None:
    """A cell is (writes, time of the row passed on, how many were dropped since)."""
    by = spec.by or list(stages.columns)
    if spec.count_into and not stages.is_new(spec.count_into, f"{path}.count_into"):
        return
    dropped, within, counts = stages.fates.add("deduplicated", stages.step), spec.within, spec.count_into is not None

    def fold(memory: Memory, rows: Live) -> Folded:
        cells, n = memory.cells, memory.writes
        fates, before = [0] * len(rows), [0] * len(rows)
        for i, (key, time) in enumerate(zip(rows.keys, rows.times, strict=True)):
            cell = cells[key]
            if cell is not None and -within < time - cell[1] < within:
                fates[i] = dropped
                if counts:
                    n += 1
                    cells[key] = (n, cell[1], cell[2] + 1)
                continue
            n += 1
            cells[key] = (n, time, 0)
            if cell is None:
                memory.added()
            else:
                before[i] = cell[2]
        memory.writes = n
        return fates, [before] if counts else []

    made = {spec.count_into: Column("BIGINT")} if spec.count_into else {}
    compile_fold(stages, spec, path, fold, makes=made, by=by)


def compile_deadband(stages: Stages, spec: Deadband, path: str) -> None:
    """A cell is (writes, time of the row passed on, its values)."""
    if not stages.known(spec.of, f"{path}.of") or not check_keys(stages, list(spec.of), f"{path}.of"):
        return
    bands = []
    for name, threshold in spec.of.items():
        if threshold != "any" and not stages.columns[name].type.startswith(_NUMBERS):
            message = f'"{name}" is {stages.columns[name].type}, which has no deadband'
            stages.binder.complain(f"{path}.of.{name}", message, "write `any`: every change passes")
            return
        bands.append(_band(threshold))
    filtered, every = stages.fates.add("filtered", stages.step), spec.at_least_every

    def fold(memory: Memory, rows: Live) -> Folded:
        cells, n = memory.cells, memory.writes
        fates = [0] * len(rows)
        for i, (key, time, values) in enumerate(zip(rows.keys, rows.times, zip(*rows.values, strict=True), strict=True)):
            cell = cells[key]
            if cell is not None and not _moved(cell[2], values, bands) and (every is None or abs(time - cell[1]) < every):
                fates[i] = filtered
                continue
            n += 1
            cells[key] = (n, time, values)
            if cell is None:
                memory.added()
        memory.writes = n
        return fates, []

    compile_fold(stages, spec, path, fold, reads=list(spec.of), compact=True)


def _band(threshold: float | str) -> tuple[float, float]:
    """(absolute, share of the last value)."""
    if threshold == "any":
        return _ANY, 0.0
    return (0.0, float(threshold[:-1]) / 100) if isinstance(threshold, str) else (threshold, 0.0)


def _moved(old: Sequence[Any], new: Sequence[Any], bands: Sequence[tuple[float, float]]) -> bool:
    """Whether one value differs by more than its band; NULL differs from every value."""
    for a, b, (absolute, share) in zip(old, new, bands, strict=True):
        if a == b:
            continue
        if a is None or b is None or absolute == _ANY:
            return True
        if abs(float(b) - float(a)) > absolute + share * abs(float(a)):
            return True
    return False


def compile_changes(stages: Stages, spec: Changes, path: str) -> None:
    """A cell is (writes, the values of the row before)."""
    if not stages.known(spec.of, f"{path}.of") or not check_keys(stages, spec.of, f"{path}.of"):
        return
    filtered = stages.fates.add("filtered", stages.step)

    def fold(memory: Memory, rows: Live) -> Folded:
        cells, n = memory.cells, memory.writes
        fates = [0] * len(rows)
        for i, (key, values) in enumerate(zip(rows.keys, zip(*rows.values, strict=True), strict=True)):
            cell = cells[key]
            if cell is not None and cell[1] == values:
                fates[i] = filtered
                continue
            n += 1
            cells[key] = (n, values)
            if cell is None:
                memory.added()
        memory.writes = n
        return fates, []

    compile_fold(stages, spec, path, fold, reads=spec.of, compact=True)


def compile_sample(stages: Stages, spec: Sample, path: str) -> None:
    if spec.share is not None:
        _compile_share(stages, spec, spec.share, path)
        return
    assert spec.every is not None, "a sample has every or share"
    filtered, every = stages.fates.add("filtered", stages.step), spec.every

    def fold(memory: Memory, rows: Live) -> Folded:
        """A cell is (writes, rows since the one that was kept)."""
        cells, n = memory.cells, memory.writes
        fates = [0] * len(rows)
        for i, key in enumerate(rows.keys):
            cell = cells[key]
            since = 0 if cell is None else (cell[1] + 1) % every
            if since:
                fates[i] = filtered
            n += 1
            cells[key] = (n, since)
            if cell is None:
                memory.added()
        memory.writes = n
        return fates, []

    compile_fold(stages, spec, path, fold, meaning=[every])


def _compile_share(stages: Stages, spec: Sample, share: float, path: str) -> None:
    """By hash of the values as texts: the same rows are kept on every node and in every run."""
    by = spec.by or list(stages.columns)
    if not stages.known(by, f"{path}.by"):
        return
    texts = ", chr(31), ".join(f"coalesce(CAST({quote(name)} AS VARCHAR), chr(30))" for name in by)
    sql = f"md5_number_lower(concat({texts})) < {min(round(share * 2**64), 2**64 - 1)}"
    bound = Bound(sql, "BOOLEAN", frozenset(by))
    stages.test(bound, path)


def compile_rate_limit(stages: Stages, spec: RateLimit, path: str) -> None:
    """A cell is (writes, start of the group's span of `per`, rows passed on in it)."""
    filtered, limit, per = stages.fates.add("filtered", stages.step), spec.rows, spec.per

    def fold(memory: Memory, rows: Live) -> Folded:
        cells, n = memory.cells, memory.writes
        fates = [0] * len(rows)
        for i, (key, time) in enumerate(zip(rows.keys, rows.times, strict=True)):
            cell = cells[key]
            start, passed = (time, 0) if cell is None or not -per < time - cell[1] < per else (cell[1], cell[2])
            if passed >= limit:
                fates[i] = filtered
                continue
            n += 1
            cells[key] = (n, start, passed + 1)
            if cell is None:
                memory.added()
        memory.writes = n
        return fates, []

    compile_fold(stages, spec, path, fold, meaning=[per])
