"""Stages: a pipeline's steps as functions over the row table, `stage(state, rows) -> (state, rows)`.

Consecutive stateless steps are ONE DuckDB statement, which reads only what its expressions name and gives only a fate per row and
the new columns; everything else stays where it is. A step that remembers is a fold in Python (steps/fold.py). Renaming, selecting
and dropping cost nothing: columns have a place in the row table (`_c0`, `_c1`.. for new ones), and names are put on at the end.

An expression that errors on a row decides that row's fate only: it runs inside `TRY([..])`, which is NULL by error and `[NULL]`
by NULL. A condition that cannot (total.py) goes without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.language.steps import Step
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.bind import Binder, Bound, Column, Columns
from pipelines.engine.connection import literal, quote
from pipelines.engine.expression import parse
from pipelines.engine.fate import ALIVE, Fates
from pipelines.engine.plain_condition import Condition, Place, plain_condition
from pipelines.engine.state import State
from pipelines.engine.statement import Statement
from pipelines.engine.types import to_arrow

if TYPE_CHECKING:
    from pipelines.engine.steps.lookup import Table

Stage = Callable[[State, pa.Table], tuple[State, pa.Table]]
Extra = tuple[str, str, str]  # hidden column, SQL over the final columns, its SQL type

DERIVED_BYTES_MAX = 16 * 1024  # of a derived value: a row must fit a segment, and texts must not double from step to step
_WHY = "overflow, division by zero, too long a text, or a value that does not convert"
_ALIVE, _UNKNOWN = pa.scalar(ALIVE, pa.int16()), pa.scalar(None, pa.bool_())
_META = re.compile(r"\b_meta_\w+\b|\b_et\b|\b_row\b")


def keep_column(sink: str) -> str:
    """The name of the column that says whether a sink takes a row."""
    return f"_keep_{sink}"


def keep_columns(wheres: Mapping[str, str]) -> str:
    return "".join(f", coalesce(TRY({where}), false) AS {quote(keep_column(sink))}" for sink, where in wheres.items())


class Stages:
    """Builds the stages of one pipeline. Step modules (steps/) call `test`, `derive`, `place` and `then`."""

    def __init__(self, binder: Binder, fates: Fates) -> None:
        self.binder, self.fates = binder, fates
        self.columns: dict[str, Column] = {}
        self.tables: Mapping[str, Table] = {}
        self.warnings: list[Problem] = []
        self.time_place = ""  # of the field that stamps rows
        self.time_is_sensitive = False
        self.step = -1
        self._places: dict[str, str] = {}  # column -> where it stands in the row table
        self._plan: list[_Draft | _Other] = []
        self._owners: dict[str, int] = {}
        self._count = 0

    def add(self, steps: Sequence[Step], columns: Columns) -> dict[str, Column]:
        """The columns after the steps. Problems are collected in the binder."""
        from pipelines.engine.steps import COMPILE
        from pipelines.engine.steps.lookup import load_tables

        self.tables = load_tables(self.binder)
        self.columns = dict(columns)
        self._places = {name: name for name in columns}
        self.time_place = self.binder.spec.event_time or ""
        self.time_is_sensitive = self.time_place in columns and columns[self.time_place].sensitive
        for self.step, step in enumerate(steps):
            COMPILE[step.kind](self, getattr(step, step.kind), f"steps[{self.step}].{step.kind}")
        return self.columns

    def finish(self, extras: Sequence[Extra]) -> list[Stage]:
        """What to run, in order. `extras` are computed by the last statement, in rows that are alive."""
        if extras:
            self._draft().extras(extras, self.columns, self._places, self._plain_extras(extras))
        final = {name: place for name, place in self._places.items() if name != place}
        needed = {*self._places.values(), *(name for name, _, _ in extras)}
        stages: list[Stage] = []
        for part in reversed(self._plan):
            stages.append(part.build(self.binder.engine, needed))
            needed |= part.needs
        stages.reverse()
        return [*stages, _Names(dict(self._places))] if final else stages

    # -- what steps are made of

    @property
    def here(self) -> str:
        return f"steps[{self.step}]"

    def row(self, text: str, path: str, must_be: str = "") -> Bound:
        return self.binder.row(text, path, self.columns, must_be)

    def test(self, bound: Bound, path: str) -> None:
        """Rows for which it is not true are filtered; where it is NULL they are counted apart."""
        failed = self.fates.add("failed", self.step, f"{path}: the expression fails on this row ({_WHY})")
        null, no = self.fates.add("filtered_null", self.step), self.fates.add("filtered", self.step)
        condition = plain_condition(bound.tree, self._as_read(), self.binder.params) if bound.total else None
        draft = self._draft()
        draft.test(bound, self._placed(bound.reads), (failed, null, no))
        if condition is not None:
            draft.plain.append((condition, null, no))

    def derive(self, name: str, bound: Bound, path: str, *, bounded: bool = True, why: str = "", replaces: bool = False) -> None:
        """A column from an expression. A row where it errors or is unfit fails, because of `why`."""
        if not replaces and not self.is_new(name, path):
            return
        failed = self.fates.add("failed", self.step, why or f"{path}: the expression fails on this row ({_WHY})")
        reads = self._placed(bound.reads)
        nullable = any(self.columns[read].nullable for read in bound.reads)
        place = self.place(name, Column(bound.type, bound.sensitive, nullable))
        self._draft().derive(bound.sql, reads, bound.type, place, failed, bounded=bounded)

    def move_time(self, name: str) -> None:
        """From here on rows are stamped by the timestamp `name`."""
        self.time_place, self.time_is_sensitive = self._places[name], self.columns[name].sensitive
        self._draft().move_time(self.time_place)

    def place(self, name: str, column: Column) -> str:
        """Where the new column `name` will stand; whoever asks has to fill it."""
        self.columns[name] = column
        self._places[name] = place = f"_c{self._count}"
        self._count += 1
        return place

    def hidden(self) -> str:
        self._count += 1
        return f"_c{self._count - 1}"

    def place_of(self, name: str) -> str:
        return self._places[name]

    def then(self, stage: Stage, needs: Iterable[str], makes: Iterable[str], *, early: bool = False) -> None:
        """Run `stage` next. It reads the places `needs` and fills the places `makes`. `early`: whatever a row's fate, so it may
        run before the statement under way, unless it needs something of it."""
        other = _Other(stage, frozenset(needs))
        last = self._plan[-1] if self._plan else None
        if early and isinstance(last, _Draft) and not other.needs & last.made.keys():
            self._plan.insert(-1, other)
        else:
            self._plan.append(other)

    def owner(self, kind: str, *meaning: object) -> str:
        """Who keeps the state of this step: it is carried over between versions while `kind` and `meaning` stay the same."""
        digest = sha256(canonical_json([kind, *meaning]))[7:23]
        self._owners[digest] = n = self._owners.get(digest, 0) + 1
        return f"step.{kind}.{digest}" + (f".{n}" if n > 1 else "")

    # -- columns

    def is_new(self, name: str, path: str) -> bool:
        if name.lower() not in (known.lower() for known in self.columns):
            return True
        hint = "choose another name: a step adds columns, it does not replace them"
        self.binder.complain(path, f'there is a column "{name}" already', hint)
        return False

    def known(self, names: Iterable[str], path: str, hint: str = "") -> bool:
        """Whether these are columns; complains of those that are not."""
        unknown = [name for name in names if name not in self.columns]
        for name in unknown:
            self.binder.complain(path, f'column "{name}" is not in the rows{did_you_mean(name, self.columns)}', hint)
        return not unknown

    def keep_only(self, names: Sequence[str]) -> None:
        self.columns = {name: self.columns[name] for name in names}
        self._places = {name: self._places[name] for name in names}

    def rename(self, new_names: Mapping[str, str]) -> None:
        """`new_names`: old -> new."""
        self._places = {new_names.get(name, name): place for name, place in self._places.items()}
        self.columns = {new_names.get(name, name): column for name, column in self.columns.items()}

    def _as_read(self) -> dict[str, Place]:
        """The columns that still are what the schema gave."""
        return {name.lower(): (name, self.columns[name].type) for name, place in self._places.items() if name == place}

    def _plain_extras(self, extras: Sequence[Extra]) -> Mapping[str, Condition]:
        """All extras as conditions that Arrow can decide; none where it cannot for one of them."""
        found: dict[str, Condition] = {}
        for name, sql, type_ in extras:
            condition = None
            if type_ == "BOOLEAN":
                with suppress(SpecError):  # it may be more than an author may write
                    condition = plain_condition(parse(self.binder.engine, sql, name).tree, self._as_read(), {})
            if condition is None:
                return {}
            found[name] = condition
        return found

    def _placed(self, reads: Iterable[str]) -> dict[str, str]:
        return {name: self._places[name] for name in sorted(reads)}

    def _draft(self) -> _Draft:
        if not self._plan or not isinstance(self._plan[-1], _Draft):
            step = max(self.step, 0)
            self._plan.append(_Draft(self.fates.add("failed", step, f"steps[{step}]: the engine fails on this row")))
        return self._plan[-1]  # type: ignore[return-value]  # just made sure


@dataclass
class _Other:
    stage: Stage
    needs: frozenset[str]

    def build(self, engine: duckdb.DuckDBPyConnection, needed: set[str]) -> Stage:
        return self.stage


@dataclass
class _Draft:
    """A statement in the making: every step is a layer over the one before."""

    engine_fails: int
    inputs: dict[str, str] = field(default_factory=dict)  # place in the row table -> name in the statement
    layers: list[str] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)  # place -> SQL type
    hidden: list[Extra] = field(default_factory=list)
    plain_hidden: Mapping[str, Condition] = field(default_factory=dict)  # the same, if Arrow can do them all
    plain: list[tuple[Condition, int, int]] = field(default_factory=list)  # the layers that Arrow can do
    decides: bool = False  # some layer changes fates
    moves_time: bool = False

    @property
    def needs(self) -> set[str]:
        return set(self.inputs)

    def test(self, bound: Bound, reads: Mapping[str, str], codes: tuple[int, int, int]) -> None:
        failed, null, no = codes
        answer = "_t" if bound.total else "_t[1]"
        fails = "" if bound.total else f" WHEN _t IS NULL THEN {failed}"
        fate = f"CASE WHEN _fate <> 0 THEN _fate{fails} WHEN {answer} IS NULL THEN {null} WHEN {answer} THEN 0 ELSE {no} END"
        tried = f"({bound.sql})" if bound.total else f"TRY([{bound.sql}])"
        self._layer(bound.sql, tried, reads, lambda exclude: f"SELECT * EXCLUDE ({exclude}) REPLACE ({fate} AS _fate)")

    def derive(self, sql: str, reads: Mapping[str, str], type_: str, place: str, failed: int, *, bounded: bool) -> None:
        limits = unfit("_t[1]", to_arrow(type_), bounded=bounded)
        fate = f"CASE WHEN _fate = 0 AND (_t IS NULL{limits}) THEN {failed} ELSE _fate END"
        head = f"REPLACE ({fate} AS _fate), _t[1] AS {quote(place)}"
        cast = f"CAST(({sql}) AS {type_})"
        self._layer(cast, f"TRY([{cast}])", reads, lambda exclude: f"SELECT * EXCLUDE ({exclude}) {head}")
        self.made[place] = type_

    def move_time(self, place: str) -> None:
        self.moves_time, self.inputs["_et"] = True, "_et"
        time = f"CASE WHEN _fate = 0 THEN epoch_us({quote(place)}) ELSE _et END"
        self.layers.append(f"SELECT * REPLACE ({time} AS _et) FROM _s{len(self.layers)}")

    def extras(
        self, extras: Sequence[Extra], columns: Columns, places: Mapping[str, str], plain: Mapping[str, Condition]
    ) -> None:
        texts = " ".join(sql for _, sql, _ in extras)
        reads = {name: places[name] for name in columns if re.search(rf"(?i)\b{re.escape(name)}\b", texts)}
        self._use(reads, texts)
        self.hidden, self.plain_hidden = list(extras), plain
        values = "".join(f", CASE WHEN _fate = 0 THEN TRY({sql}) END AS {quote(name)}" for name, sql, _ in extras)
        self.layers.append(f"SELECT *{values} FROM ({self._named(reads)})")

    def build(self, engine: duckdb.DuckDBPyConnection, needed: set[str]) -> Stage:
        if len(self.plain) + bool(self.plain_hidden) == len(self.layers):
            return PlainStage(self.plain, self.plain_hidden)
        made = {place: type_ for place, type_ in self.made.items() if place in needed}
        first = "".join(f", {quote(place)}" + (f" AS {name}" if name != place else "") for place, name in self.inputs.items())
        layers = [f"SELECT CAST(_fate AS INTEGER) AS _fate{first} FROM _in", *self.layers]
        with_ = ",\n".join(f"_s{i} AS ({sql})" for i, sql in enumerate(layers))
        out = [*(["CAST(_fate AS SMALLINT) AS _fate"] if self.decides else []), *map(quote, made)]
        out += ["_et"] if self.moves_time else []
        out += [quote(name) for name, _, _ in self.hidden]
        sql = f"WITH {with_}\nSELECT {', '.join(out)} FROM _s{len(layers) - 1}" if out else ""
        types = {place: to_arrow(type_) for place, type_ in made.items()}
        return SqlStage(Statement(engine, sql, "_in"), ("_fate", *self.inputs), types, self.engine_fails)

    def _layer(self, sql: str, tried: str, reads: Mapping[str, str], head: Callable[[str], str]) -> None:
        self.decides = True
        self._use(reads, sql)
        exclude = ", ".join(["_t", *map(quote, reads)])
        tried = f"SELECT *, CASE WHEN _fate = 0 THEN {tried} END AS _t FROM ({self._named(reads)})"
        self.layers.append(f"{head(exclude)} FROM ({tried})")

    def _named(self, reads: Mapping[str, str]) -> str:
        """The last layer with these columns under the author's names."""
        names = "".join(f", {self._inner(place)} AS {quote(name)}" for name, place in reads.items())
        return f"SELECT *{names} FROM _s{len(self.layers)}"

    def _use(self, reads: Mapping[str, str], sql: str) -> None:
        for place in [*reads.values(), *dict.fromkeys(_META.findall(sql))]:
            if place not in self.made and place not in self.inputs:
                self.inputs[place] = place if place.startswith("_") else f"_i{len(self.inputs)}"

    def _inner(self, place: str) -> str:
        return quote(self.inputs.get(place, place))


def in_calendar(value: str) -> str:
    """Whether a timestamp lies where every reader of the lake can follow."""
    return f"{value} BETWEEN TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31 23:59:59.999999'"


def unfit(value: str, type_: pa.DataType, *, bounded: bool = True, depth: int = 0) -> str:
    """` OR condition`s under which a value may not be a column's: not finite, outside the calendar, or too long."""
    if pa.types.is_floating(type_):
        return f" OR NOT isfinite({value})"
    if pa.types.is_timestamp(type_):
        return f" OR NOT ({in_calendar(value)})"
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        length = "strlen" if pa.types.is_string(type_) else "octet_length"
        return f" OR {length}({value}) > {DERIVED_BYTES_MAX}" if bounded else ""
    limits = ""
    if pa.types.is_list(type_):
        inner = unfit(f"_e{depth}", type_.value_type, bounded=False, depth=depth + 1).removeprefix(" OR ")
        limits = f" OR len(list_filter({value}, lambda _e{depth}: {inner})) > 0" if inner else ""
    elif pa.types.is_struct(type_):
        for part in type_:
            limits += unfit(f"struct_extract({value}, {literal(part.name)})", part.type, bounded=False, depth=depth)
    nested = pa.types.is_list(type_) or pa.types.is_struct(type_)
    return limits + (f" OR strlen(CAST({value} AS VARCHAR)) > {DERIVED_BYTES_MAX}" if bounded and nested else "")


@dataclass(frozen=True)
class PlainStage:
    """Filters that need no statement, with what becomes of rows where they are NULL, or not true; and hidden conditions over the
    rows that are alive then."""

    filters: Sequence[tuple[Condition, int, int]]
    hidden: Mapping[str, Condition]

    def __call__(self, state: State, rows: pa.Table) -> tuple[State, pa.Table]:
        fate = rows["_fate"].combine_chunks()
        for condition, null, no in self.filters:
            found = pc.if_else(condition(rows), _ALIVE, pa.scalar(no, pa.int16()))
            fate = pc.if_else(pc.equal(fate, _ALIVE), pc.fill_null(found, pa.scalar(null, pa.int16())), fate)
        is_alive = pc.equal(fate, _ALIVE)
        made = {name: pc.if_else(is_alive, condition(rows), _UNKNOWN) for name, condition in self.hidden.items()}
        return state, attach(rows, {"_fate": fate, **made})


@dataclass(frozen=True)
class SqlStage:
    """One statement over `inputs`. A row on which the engine itself fails, whatever TRY holds, fails alone."""

    statement: Statement
    inputs: tuple[str, ...]
    types: Mapping[str, pa.DataType]
    engine_fails: int

    def __call__(self, state: State, rows: pa.Table) -> tuple[State, pa.Table]:
        if rows.num_rows and not any_alive(rows):
            empty = self.statement(rows.select(self.inputs).slice(0, 0))
            return state, attach(rows, {f.name: pa.nulls(rows.num_rows, f.type) for f in empty.schema if f.name != "_fate"})
        made = self._run(rows.select(self.inputs))
        return state, attach(rows, {name: self._typed(name, made[name]) for name in made.column_names})

    def _typed(self, name: str, values: pa.ChunkedArray) -> pa.Array:
        type_ = self.types.get(name, values.type)
        return (values if values.type == type_ else values.cast(type_)).combine_chunks()

    def _run(self, rows: pa.Table) -> pa.Table:
        try:
            return self.statement(rows)
        except duckdb.Error:
            if rows.num_rows == 0:
                raise
            if rows.num_rows == 1:
                return self._failed(rows)
        middle = rows.num_rows // 2
        return pa.concat_tables([self._run(rows.slice(0, middle)), self._run(rows.slice(middle))])

    def _failed(self, row: pa.Table) -> pa.Table:
        empty = self.statement(row.slice(0, 0))
        code = row["_fate"][0].as_py() or self.engine_fails
        values = [pa.array([code if f.name == "_fate" else None], f.type) for f in empty.schema]
        return pa.Table.from_arrays(values, schema=empty.schema)


@dataclass(frozen=True)
class _Names:
    """The columns under their names, and what the engine itself keeps beside them."""

    places: Mapping[str, str]  # column -> place

    def __call__(self, state: State, rows: pa.Table) -> tuple[State, pa.Table]:
        own = [name for name in rows.column_names if name.startswith("_") and not re.fullmatch(r"_c[0-9]+", name)]
        arrays = [rows[name] for name in [*own, *self.places.values()]]
        return state, pa.Table.from_arrays(arrays, names=[*own, *self.places])


def owners(stages: Iterable[Stage]) -> set[str]:
    """Who of these stages keeps something between batches."""
    return {stage.owner for stage in stages if hasattr(stage, "owner")}


def any_alive(rows: pa.Table) -> bool:
    return bool(pc.min(rows["_fate"]).as_py() == ALIVE)


def attach(rows: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The row table with columns added, or replaced where they are there."""
    if not columns:
        return rows
    all_ = {name: rows.column(i) for i, name in enumerate(rows.column_names)} | dict(columns)
    return pa.Table.from_arrays(list(all_.values()), names=list(all_))
