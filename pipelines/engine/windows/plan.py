"""A window, bound: where its bounds lie, which parts it keeps, what its rows look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.duration import US_PER
from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.language.windows import Window
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.bind import Binder, Column, Columns
from pipelines.engine.connection import quote
from pipelines.engine.expression import Span
from pipelines.engine.functions import WINDOW_AGGREGATES
from pipelines.engine.stage import keep_columns
from pipelines.engine.statement import Statement
from pipelines.engine.types import stored, to_arrow
from pipelines.engine.windows.aggregates import Aggregate, Aggregates, value_column
from pipelines.engine.windows.index import Index
from pipelines.engine.windows.parts import Held, Part
from pipelines.engine.windows.shifts import Shifts

CORRECT_US_MIN = US_PER["m"]  # corrections of one window come no closer together, unless the window is shorter
PATIENCE_US_MAX = US_PER["h"]  # besides the window's lateness
CELLS_PER_GROUP = 20  # of max_groups: open cells of one window, all bounds together
OWN: Mapping[str, str] = {"_event_time": "TIMESTAMP", "_window_start": "TIMESTAMP", "_window_end": "TIMESTAMP"}
OWN_AFTER: Mapping[str, str] = {"_rows": "BIGINT", "_revision": "BIGINT", "_partial": "BOOLEAN"}
_FAR_US = 10**17  # makes times positive, whatever the year: Arrow divides towards zero


@dataclass(frozen=True)
class Every:
    """Panes of `slide` from 1970 on; `every` of them in a row are a window."""

    every: int
    slide: int

    def around(self, time_us: int) -> tuple[int, int]:
        start = time_us // self.slide * self.slide
        return start, start + self.every

    def assign(self, times: pa.Array) -> tuple[pa.Array, pa.Array]:
        far = _FAR_US // self.slide * self.slide
        starts = pc.subtract(pc.multiply(pc.divide(pc.add(times, far), self.slide), self.slide), far)
        return starts, pc.add(starts, self.every)


@dataclass(frozen=True)
class Session:
    gap: int
    max: int | None

    def end(self, start_us: int, last_us: int) -> int:
        return last_us + self.gap if self.max is None else min(last_us + self.gap, start_us + self.max)


@dataclass(frozen=True)
class WindowPlan:
    """`where` is the hidden column that says which rows it takes, "" for all. `select` are (column, aggregate or SQL over
    `value_column`s, type). `columns` are those of its rows with their SQL types, `schema` the same as they leave the engine."""

    engine: duckdb.DuckDBPyConnection
    name: str
    spec: Window
    definition: str
    kind: Every | Shifts | Session
    lateness_us: int  # its own, and what the windows it takes from need
    keep_us: int
    where: str
    parts: tuple[Part, ...]
    aggregates: tuple[Aggregate, ...]
    select: tuple[tuple[str, int | str, str], ...]
    columns: Columns
    wheres: Mapping[str, str]
    source: WindowPlan | None = None
    hidden: Mapping[str, str] = field(default_factory=dict)  # over the rows of `source`
    index: Index = field(default_factory=Index, compare=False)

    @property
    def by(self) -> Sequence[str]:
        return self.spec.by

    @property
    def session(self) -> Session:
        assert isinstance(self.kind, Session)
        return self.kind

    @property
    def panes(self) -> Every | Shifts:
        assert not isinstance(self.kind, Session)
        return self.kind

    @cached_property
    def owner(self) -> str:
        return f"window.{self.name}.{self.definition}"

    @cached_property
    def hold_us(self) -> int:
        """How long after its end a window can still change."""
        return max(self.lateness_us, self.keep_us)

    @property
    def overlaps(self) -> bool:
        return isinstance(self.kind, Every) and self.kind.slide < self.kind.every

    @property
    def corrects(self) -> bool:
        return self.keep_us > self.lateness_us

    @cached_property
    def grid_us(self) -> int:
        """Corrections come out when the watermark passes a multiple of this."""
        slide = self.kind.slide if isinstance(self.kind, Every) else US_PER["d"]
        return min(slide, max(self.lateness_us, CORRECT_US_MIN))

    @property
    def is_keyed(self) -> bool:
        """Whether rows are kept one by one, because a later revision may replace them."""
        return self.source is not None and self.source.changes

    @property
    def changes(self) -> bool:
        """Whether its rows may come again, revised."""
        return self.corrects or self.is_keyed

    @property
    def length_us(self) -> int:
        if isinstance(self.kind, Session):
            return self.kind.gap
        return self.kind.every if isinstance(self.kind, Every) else US_PER["d"] + US_PER["h"]

    @property
    def patience_us(self) -> int:
        """How long a source may be silent before time goes on without it."""
        own = min(self.length_us, PATIENCE_US_MAX) + self.lateness_us
        return max(own, self.source.patience_us) if self.source else own

    @property
    def cells_max(self) -> int:
        return CELLS_PER_GROUP * self.spec.max_groups

    @cached_property
    def held(self) -> tuple[int, ...]:
        return tuple(i for i, part in enumerate(self.parts) if isinstance(part, Held)) if self.spec.gap is None else ()

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The columns that its parts are of."""
        return tuple(dict.fromkeys(part.column for part in self.parts))

    @cached_property
    def inputs(self) -> Statement | None:
        """Over rows of `source`: its hidden columns."""
        hidden = ", ".join(f"TRY({sql}) AS {name}" for name, sql in self.hidden.items())
        return Statement(self.engine, f"SELECT {hidden} FROM _rows", "_rows") if hidden else None

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema([(name, stored(to_arrow(column.type))) for name, column in self.columns.items()])

    @cached_property
    def emission(self) -> Statement | None:
        """Over `_closed`, the keys and the values of aggregates: the rows, and the `keep_column`s of sinks. None where the values
        are the rows."""
        if not self.wheres and all(isinstance(value, int) for _, value, _ in self.select):
            return None
        values = {column: _finite(sql, type_) for column, sql, type_ in self.select}
        columns = ", ".join(f"{values[name]} AS {quote(name)}" if name in values else quote(name) for name in self.columns)
        rows = f"SELECT {columns}, _due FROM _closed"
        return Statement(self.engine, f"SELECT *{keep_columns(self.wheres)} FROM ({rows})", "_closed")


def _finite(value: int | str, type_: str) -> str:
    if isinstance(value, int):
        return value_column(value)
    result = f"TRY(CAST(({value}) AS {type_}))"
    return f"CASE WHEN isfinite({result}) THEN {result} END" if type_ == "DOUBLE" else result


# -- compiling


@dataclass
class _RowInputs:
    """The rows of the pipeline: hidden columns are made by its last SQL stage."""

    binder: Binder
    columns: Columns
    path: str

    def hidden(self, sql: str) -> str:
        return self.binder.hidden(sql, self.columns, self.path)


@dataclass
class _WindowInputs:
    """The rows of another window."""

    binder: Binder
    columns: Columns
    found: dict[str, str] = field(default_factory=dict)

    def hidden(self, sql: str) -> str:
        name = next((name for name, known in self.found.items() if known == sql), f"_y{len(self.found)}")
        self.found[name] = sql
        return name


def compile_window(
    binder: Binder, name: str, window: Window, columns: Columns, windows: Mapping[str, WindowPlan]
) -> WindowPlan | None:
    """Bind a window over the rows, or over one of `windows`, those that stand above it. None when it has a problem."""
    path, before = f"windows.{name}", len(binder.problems)
    source = windows.get(window.from_) if window.from_ else None
    if window.from_ and source is None:
        _complain_of_source(binder, name, window, windows)
        return None
    rows = source.columns if source else columns
    inputs: _RowInputs | _WindowInputs = _WindowInputs(binder, rows) if source else _RowInputs(binder, rows, path)
    binder.check_by(window.by, f"{path}.by", rows)
    _check_names(binder, window, path)
    if source:
        _check_source(binder, window, source, path)
    where = _where(binder, window, inputs, f"{path}.where")
    aggregates = Aggregates(inputs, path)
    values: list[Aggregate] = []
    select = [_entry(aggregates, values, window, column, text) for column, text in window.select.items()]
    if len(binder.problems) > before:
        return None
    typed = _typed(binder, window, rows, values, select, path)
    out = _columns(window, rows, typed, _sensitive(binder, window, rows, path))
    wheres = _sink_wheres(binder, name, out)
    wait = _wait(window, source) if source else 0
    if len(binder.problems) > before:
        return None
    return WindowPlan(
        binder.engine,
        name,
        window,
        _definition(binder, name, source),
        _kind(window),
        window.lateness + wait,
        max(window.keep or 0, source.hold_us + source.grid_us + wait if source and source.changes else 0),
        where,
        tuple(aggregates.parts),
        tuple(values),
        tuple(typed),
        out,
        wheres,
        source,
        inputs.found if isinstance(inputs, _WindowInputs) else {},
    )


def _kind(window: Window) -> Every | Shifts | Session:
    if window.gap is not None:
        return Session(window.gap, window.max)
    if window.times:
        return Shifts(tuple(_minutes(at) for at in window.times), window.timezone or "UTC")
    assert window.every is not None
    return Every(window.every, window.slide or window.every)


def _minutes(time: str) -> int:
    return int(time[:2]) * 60 + int(time[3:])


def _where(binder: Binder, window: Window, inputs: _RowInputs | _WindowInputs, path: str) -> str:
    if not window.where:
        return ""
    meta = isinstance(inputs, _RowInputs)
    before = len(binder.problems)
    bound = binder.row(window.where, path, inputs.columns, "BOOLEAN", meta=meta)
    return inputs.hidden(bound.sql) if len(binder.problems) == before else ""


def _entry(aggregates: Aggregates, values: list[Aggregate], window: Window, column: str, text: str) -> int | str:
    """One `select` entry: the place of its aggregate in `values`, or SQL over several of them."""
    binder, columns = aggregates.inputs.binder, aggregates.inputs.columns
    path = aggregates.path = f"{aggregates.path.split('.select.')[0]}.select.{column}"
    hint = f"write one of {', '.join(sorted(WINDOW_AGGREGATES - {'count_star', 'mean'}))}"
    what = "a window's column is an aggregate"
    expression = binder.aggregate_expression(text, path, columns, window.by, WINDOW_AGGREGATES, what, hint)
    if expression is None:
        return "NULL"
    replacements = binder.replacements(expression, columns)
    final: dict[Span, str] = {}
    for call in expression.aggregates(replacements):
        bound = aggregates.bind(call)
        if bound is None:
            return "NULL"
        final[call.span] = value_column(len(values))
        values.append(bound)
    sql = expression.replace_calls(final, replacements).strip()
    return len(values) - 1 if sql == value_column(len(values) - 1) else sql


def _typed(
    binder: Binder, window: Window, rows: Columns, values: Sequence[Aggregate], select: Sequence[int | str], path: str
) -> list[tuple[str, int | str, str]]:
    known = {f"_v{i}": Column(value.type) for i, value in enumerate(values)} | {name: rows[name] for name in window.by}
    found: list[tuple[str, int | str, str]] = []
    for column, value in zip(window.select, select, strict=True):
        type_ = values[value].type if isinstance(value, int) else binder.type_of(value, known, f"{path}.select.{column}")
        found.append((column, value, type_))
    return found


def _sensitive(binder: Binder, window: Window, rows: Columns, path: str) -> set[str]:
    """The select entries that tell of a sensitive column; a mere count does not."""
    found = set()
    for column, text in window.select.items():
        expression = binder.parse(text, path, WINDOW_AGGREGATES)
        if expression is None:
            continue
        counts = [call.span for call in expression.aggregates() if call.name in ("count", "count_star", "distinct")]
        named = {words[0].lower() for words, span in expression.columns if not any(span in call for call in counts)}
        if any(name.lower() in named and known.sensitive for name, known in rows.items()):
            found.add(column)
    return found


def _columns(window: Window, rows: Columns, typed: Sequence[tuple[str, int | str, str]], sensitive: set[str]) -> Columns:
    own, after = ({name: Column(type_) for name, type_ in part.items()} for part in (OWN, OWN_AFTER))
    by = {name: rows[name] for name in window.by}
    return {**own, **by, **{name: Column(type_, name in sensitive) for name, _, type_ in typed}, **after}


def _sink_wheres(binder: Binder, name: str, columns: Columns) -> Mapping[str, str]:
    sinks = {n: s for n, s in binder.spec.sinks.items() if s.from_ == name and s.where}
    return {n: binder.row(s.where, f"sinks.{n}.where", columns, "BOOLEAN", meta=False).sql for n, s in sinks.items() if s.where}


def _definition(binder: Binder, name: str, source: WindowPlan | None) -> str:
    """Identity of state: it is carried over between versions while this stays the same (design, section 6)."""
    below = canonical_json([source.definition]) if source else b""
    return sha256(binder.spec.definition("windows", name) + below)[7:23]


# -- windows over windows


def _complain_of_source(binder: Binder, name: str, window: Window, windows: Mapping[str, WindowPlan]) -> None:
    assert window.from_ is not None
    path = f"windows.{name}.from"
    if window.from_ not in binder.spec.windows:
        message = f'there is no window "{window.from_}"{did_you_mean(window.from_, windows)}'
        binder.complain(path, message, "without `from:` a window takes the accepted rows")
    elif list(binder.spec.windows).index(window.from_) >= list(binder.spec.windows).index(name):
        binder.complain(path, f'"{window.from_}" stands below', "a window takes from one that stands above it")
    elif not binder.problems:
        binder.complain(path, f'the window "{window.from_}" has a problem')


def _check_source(binder: Binder, window: Window, source: WindowPlan, path: str) -> None:
    if source.spec.slide is not None and source.spec.slide != source.spec.every:
        message = f'"{source.name}" slides: its rows overlap and would count twice'
        binder.complain(f"{path}.from", message, "take from a window without slide")
    if isinstance(source.kind, Session) and source.kind.max is None:
        binder.complain(f"{path}.from", f'a session of "{source.name}" has no longest time to wait for', "give it a max:")
    if source.changes and (other := set(window.by) - set(source.by)):
        message = f'"{sorted(other)[0]}" is no group of "{source.name}", whose rows may be corrected'
        binder.complain(f"{path}.by", message, f"group by some of {', '.join(source.by) or 'nothing'}")
    if source.changes and window.gap is not None:
        binder.complain(f"{path}.from", f'a session cannot follow the corrections of "{source.name}"', "use every: or at:")


def _check_names(binder: Binder, window: Window, path: str) -> None:
    seen: set[str] = set()
    for name in [*window.by, *window.select]:
        if name.lower() in seen:
            binder.complain(f"{path}.select.{name}", f'"{name}" stands twice, but for upper and lower case', "rename one")
        seen.add(name.lower())


def _wait(window: Window, source: WindowPlan) -> int:
    """How long after its end a window must wait for the rows of another that start within it."""
    kind, extra = source.kind, source.length_us
    if isinstance(kind, Session):
        extra = (kind.max or 0) + kind.gap
    elif isinstance(kind, Every):
        extra = 0 if _nests(window, kind.every) else extra
    elif window.timezone == source.spec.timezone and set(window.times) <= set(source.spec.times):
        extra = 0
    return source.lateness_us + extra


def _nests(window: Window, every: int) -> bool:
    """Whether no window of `every` reaches beyond the end of this one. Zones differ from UTC by quarters of an hour."""
    if window.gap is not None:
        return False
    if window.times:
        quarter = 15 * US_PER["m"]
        return quarter % every == 0 and all(_minutes(at) * US_PER["m"] % every == 0 for at in window.times)
    return ((window.slide or window.every) or 1) % every == 0
