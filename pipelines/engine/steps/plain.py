"""filter, derive, select, drop, rename, enrich: nothing is remembered, nothing is looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.contract.errors import Problem
from pipelines.engine.bind import Column
from pipelines.engine.stage import Stages, attach
from pipelines.engine.state import State

_HANDLES_NULL = re.compile(r"(?i)\bis\s+(not\s+)?(null|true|false|distinct)\b|\b(coalesce|ifnull)\b")
_FACT_WORD = re.compile(r"[A-Za-z0-9_-]+\Z")


def compile_filter(stages: Stages, text: str, path: str) -> None:
    bound = stages.row(text, path, "BOOLEAN")
    _warn_of_null(stages, text, bound.reads, path)
    stages.test(bound, path)


def _warn_of_null(stages: Stages, text: str, reads: Iterable[str], path: str) -> None:
    nullable = sorted(name for name in reads if stages.columns[name].nullable)
    if nullable and not _HANDLES_NULL.search(text):
        message = f'rows in which "{nullable[0]}" is NULL are dropped too, and counted as filtered_null'
        hint = f"to keep them: ({text}) is not false; to drop them knowingly: {nullable[0]} is not null and .."
        stages.warnings.append(Problem(message, path, hint))


def compile_derive(stages: Stages, derived: Mapping[str, str], path: str) -> None:
    for name, text in derived.items():
        stages.derive(name, stages.row(text, f"{path}.{name}"), f"{path}.{name}")


def compile_select(stages: Stages, names: Sequence[str], path: str) -> None:
    if stages.known(names, path, "to make a column, derive it in a step before"):
        stages.keep_only(list(dict.fromkeys(names)))


def compile_drop(stages: Stages, names: Sequence[str], path: str) -> None:
    if not stages.known(names, path):
        return
    kept = [name for name in stages.columns if name not in names]
    if not kept:
        stages.binder.complain(path, "no column is left", "keep at least one")
        return
    stages.keep_only(kept)


def compile_rename(stages: Stages, renamed: Mapping[str, str], path: str) -> None:
    """`renamed`: new -> old, as everywhere in the language."""
    hint = "the new name stands on the left: `rename: {new: old}`"
    if not stages.known(renamed.values(), path, hint):
        return
    if twice := {old for old in renamed.values() if list(renamed.values()).count(old) > 1}:
        stages.binder.complain(path, f'"{sorted(twice)[0]}" gets two names', "derive a second column instead")
        return
    left = [name.lower() for name in stages.columns if name not in renamed.values()]
    for new in renamed:
        if new.lower() in left or [n.lower() for n in renamed].count(new.lower()) > 1:
            stages.binder.complain(f"{path}.{new}", f'there is a column "{new}" already', hint)
            return
    stages.rename({old: new for new, old in renamed.items()})


def compile_enrich(stages: Stages, facts: Mapping[str, str], path: str) -> None:
    for name, text in facts.items():
        value = _fact(stages, text, f"{path}.{name}")
        if stages.is_new(name, f"{path}.{name}"):
            place = stages.place(name, Column("VARCHAR", nullable=value is None))
            stages.then(_Constant(place, value), needs=(), makes=(place,), early=True)


def _fact(stages: Stages, text: str, path: str) -> str | None:
    words = text.split(".")
    if words[0] == "node" and len(words) > 1 and all(map(_FACT_WORD.match, words)):
        return stages.binder.node.look_up(words[1:])
    stages.binder.complain(path, f'"{text}" is no fact of the node', "write node.name, node.<label> or node.facts.<fact>")
    return None


@dataclass(frozen=True)
class _Constant:
    place: str
    value: str | None

    def __call__(self, state: State, rows: pa.Table) -> tuple[State, pa.Table]:
        return state, attach(rows, {self.place: pa.repeat(pa.scalar(self.value, pa.string()), rows.num_rows)})
