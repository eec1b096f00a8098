"""A trigger, compiled: which columns it reads, which aggregates it keeps, which conditions it judges."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipelines.contract.frames import canonical_json, sha256
from pipelines.contract.language.triggers import ExpectLookup, ExpectSeen, Trigger
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.batch import META
from pipelines.engine.bind import Binder, Column, Columns
from pipelines.engine.connection import quote
from pipelines.engine.expression import Call, Expression, Span
from pipelines.engine.functions import SPAN_AGGREGATES
from pipelines.engine.statement import Statement
from pipelines.engine.triggers.alarm import Rules
from pipelines.engine.triggers.condition import Evaluate, compile_expressions
from pipelines.engine.triggers.incident import Identity
from pipelines.engine.triggers.row_loop import Loop, write_loop
from pipelines.engine.triggers.tally import ABSENT, PAIRS, QUANTILES, SUMS, WITH_NULLS, Tally, make_tally, on_grid, plain_name
from pipelines.engine.types import storable, to_arrow

_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_WORD = re.compile(r"\{([^{}]*)\}")
_HINT = "use an aggregate: max(temp_c) > 80, or count(*) filter (where ...) >= 4"
_UNGROUPABLE = ("TIMESTAMP", "BLOB", "STRUCT")


@dataclass(frozen=True)
class Aggregate:
    """`value` and `other` are places among the arguments; `other` is the second of a pair, or says whether the row counts."""

    label: str
    make: Callable[[], Tally]
    type: str  # of its result, in SQL; COUNT for counts
    value: int
    other: int = -1
    is_pair: bool = False
    on_grid: bool = False  # it sums doubles
    is_count: bool = False  # only whether a row brings something matters
    has_order: bool = False  # it matters when a row came
    is_secret: bool = False  # it reads a sensitive column: it is judged, not told

    def inputs(self, arguments: Sequence[list[Any]]) -> list[Any]:
        """What each row brings to it."""
        values = arguments[self.value]
        if self.on_grid:
            return on_grid(values)
        if self.other < 0:
            return values
        pairs = zip(values, arguments[self.other], strict=True)
        if self.is_pair:
            return [None if a is None or b is None else (a, b) for a, b in pairs]
        return [a if b else ABSENT for a, b in pairs]


@dataclass(frozen=True)
class TriggerPlan:
    """A trigger over rows, or over the rows of the window `input`. `kept` are the columns that are stored of a row, `arguments`
    the columns of the row table that hold what the aggregates take; `argument_values` computes those from the kept ones."""

    identity: Identity
    degraded: Identity | None
    spec: Trigger
    definition: str
    each: tuple[str, ...]
    kept: Mapping[str, pa.DataType]
    arguments: tuple[str, ...]
    argument_values: Statement
    aggregates: tuple[Aggregate, ...]
    outputs: tuple[str, ...]  # of `evaluate`: when, clear, only, degraded, for, clear_for; those that there are
    evaluate: Evaluate | None  # None: only DuckDB can
    values: Mapping[str, pa.DataType]
    evaluation: Statement
    columns: tuple[str, ...]  # of a row, for a capture
    capture_owner: str
    loop: Loop | None = None  # over many rows at once; None: as `evaluate`
    memory: list[Any] = field(default_factory=list, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def by(self) -> tuple[str, ...]:
        return self.identity.by

    @property
    def identities(self) -> list[Identity]:
        """One for each kind of incident."""
        return [self.identity] if self.degraded is None else [self.identity, self.degraded]

    @cached_property
    def owner(self) -> str:
        """Whose cells the rows in sight are."""
        return f"{'latest' if self.spec.is_latest else 'span'}.{self.name}.{self.definition}"

    @cached_property
    def bad_owner(self) -> str:
        """Whose cells the unfit rows are."""
        return f"bad.{self.name}.{self.definition}"

    @cached_property
    def emptied_owner(self) -> str:
        """Whose cells the groups without rows are that have an alarm still."""
        return f"emptied.{self.name}.{self.definition}"

    @cached_property
    def owners(self) -> tuple[str, ...]:
        return (self.owner, self.bad_owner, self.emptied_owner, self.capture_owner)


@dataclass(frozen=True)
class AbsentPlan:
    """A trigger on silence. `expected`: the groups there should be; None: those that were seen."""

    identity: Identity
    spec: Trigger
    definition: str
    expected: tuple[tuple[Any, ...], ...] | None
    seen_us: int | None
    sources: tuple[str, ...]
    memory: list[Any] = field(default_factory=list, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def by(self) -> tuple[str, ...]:
        return self.identity.by

    @property
    def identities(self) -> list[Identity]:
        """One for silent groups, one for silent sources."""
        rules = replace(self.identity.rules, flapping_raises=0)
        return [self.identity, replace(self.identity, kind=SOURCE_DOWN, by=("source",), rules=rules)]

    @property
    def owner(self) -> str:
        return f"heard.{self.name}.{self.definition}"

    @property
    def source_owner(self) -> str:
        """Whose cells say when each source spoke."""
        return f"sources.{self.name}.{self.definition}"

    @property
    def owners(self) -> tuple[str, ...]:
        return (self.owner, self.source_owner)


AnyPlan = TriggerPlan | AbsentPlan
SOURCE_DOWN = "source_down"
SEEN_US = 7 * 86_400_000_000  # without `expect`


def compile_triggers(binder: Binder, columns: Columns, windows: Mapping[str, Columns]) -> dict[str, AnyPlan]:
    """The triggers of a pipeline; those that suppress others before them. Problems are collected in the binder."""
    plans: dict[str, AnyPlan] = {}
    for name in _in_order(binder):
        plan = compile_trigger(binder, name, binder.spec.triggers[name], columns, windows)
        if plan is not None:
            plans[name] = plan
    return plans


def compile_trigger(
    binder: Binder, name: str, trigger: Trigger, columns: Columns, windows: Mapping[str, Columns]
) -> AnyPlan | None:
    before = len(binder.problems)
    path = f"triggers.{name}"
    if trigger.from_ is not None:
        if trigger.from_ not in binder.spec.windows:
            binder.complain(
                f"{path}.from", f'there is no window "{trigger.from_}"{did_you_mean(trigger.from_, binder.spec.windows)}'
            )
            return None
        columns = windows.get(trigger.from_, {})
    for word in ("by", "each"):
        binder.check_by(getattr(trigger, word), f"{path}.{word}", columns)
        for column in getattr(trigger, word):
            if column in columns and (columns[column].type.startswith(_UNGROUPABLE[1:]) or columns[column].type.endswith("]")):
                binder.complain(
                    f"{path}.{word}", f'"{column}" cannot tell groups apart', "group by a text, a number or a boolean"
                )
    if len(binder.problems) > before:
        return None
    compiler = _Compiler(binder, name, trigger, columns)
    plan = compiler.absent() if trigger.absent is not None else compiler.condition()
    return plan if len(binder.problems) == before else None


def _in_order(binder: Binder) -> list[str]:
    triggers = binder.spec.triggers
    order: list[str] = []
    under_way: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in under_way:
            circle = " -> ".join([*under_way[under_way.index(name) :], name])
            binder.complain(f"triggers.{name}.suppressed_by", f"triggers suppress each other: {circle}", "remove one of them")
            return
        under_way.append(name)
        for i, other in enumerate(triggers[name].suppressed_by):
            if other in triggers:
                visit(other)
            else:
                message = f'there is no trigger "{other}"{did_you_mean(other, triggers)}'
                binder.complain(f"triggers.{name}.suppressed_by[{i}]", message)
        under_way.pop()
        order.append(name)

    for name in triggers:
        visit(name)
    return order


class _Compiler:
    def __init__(self, binder: Binder, name: str, trigger: Trigger, columns: Columns) -> None:
        self.binder, self.name, self.trigger, self.columns = binder, name, trigger, columns
        self.path = f"triggers.{name}"
        self.aggregates: list[Aggregate] = []
        self.arguments: dict[str, str] = {}  # SQL over a row -> its type
        self.reads: set[str] = set()

    # -- absent

    def absent(self) -> AbsentPlan:
        expect, expected = self.trigger.expect, None
        seen_us = expect.seen if isinstance(expect, ExpectSeen) else SEEN_US if expect is None else None
        if isinstance(expect, list):
            expected = tuple((value,) for value in dict.fromkeys(expect))
        elif isinstance(expect, ExpectLookup):
            expected = self._looked_up(expect)
        self._check_message(("silent_s",))
        identity = self._identity("", Rules(**self._common_rules()))
        sources = tuple(self.binder.spec.sources)
        return AbsentPlan(identity, self.trigger, self._digest(), expected, seen_us, sources)

    def _looked_up(self, expect: ExpectLookup) -> tuple[tuple[Any, ...], ...]:
        spec = getattr(self.binder.spec, "lookups", {})
        path = f"{self.path}.expect"
        if expect.lookup not in spec:
            self.binder.complain(
                f"{path}.lookup", f'there is no lookup table "{expect.lookup}"{did_you_mean(expect.lookup, spec)}'
            )
            return ()
        rows = spec[expect.lookup].rows
        table = (self.binder.lookups or {}).get(expect.lookup)
        if table is not None and rows is None:
            rows = table.to_pylist()
        if rows is None:
            return ()  # a file of the node: known there
        if rows and expect.key not in rows[0]:
            self.binder.complain(f"{path}.key", f'"{expect.key}" is no column of it{did_you_mean(expect.key, list(rows[0]))}')
        return tuple((value,) for value in dict.fromkeys(row.get(expect.key) for row in rows) if value is not None)

    # -- conditions

    def condition(self) -> TriggerPlan | None:
        t = self.trigger
        texts = {"when": t.when, "clear": t.clear_when, "only": t.only_when, "degraded": t.degraded_when}
        places = {"when": "when", "clear": "clear_when", "only": "only_when", "degraded": "degraded_when"}
        conditions = {w: self._expression(str(text), f"{self.path}.{places[w]}") for w, text in texts.items() if text}
        delays = {"for": t.for_, "clear_for": t.clear_for}
        seconds = {w: self._expression(text, f"{self.path}.{w}") for w, text in delays.items() if isinstance(text, str)}
        if any(sql is None for sql in [*conditions.values(), *seconds.values()]):
            return None
        over = {f"_a{i}": Column(_sql_type(a.type)) for i, a in enumerate(self.aggregates)}
        over |= {name: self.columns[name] for name in t.by}
        for word, sql in conditions.items():
            self.binder.type_of(str(sql), over, f"{self.path}.{places[word]}", must_be="BOOLEAN")
        for word, sql in seconds.items():
            type_ = self.binder.type_of(str(sql), over, f"{self.path}.{word}")
            if type_ not in ("BIGINT", "DOUBLE") and not type_.startswith("DECIMAL"):
                message = f"this is a {type_.lower()}, not a number of seconds"
                self.binder.complain(f"{self.path}.{word}", message, "write a duration such as 5s, or an expression in seconds")
        self._check_message(("value", "count", *(a.label for a in self.aggregates if not a.is_secret)))
        if self.binder.problems:
            return None
        return self._plan({**conditions, **seconds}, over)

    def _plan(self, sqls: Mapping[str, str | None], over: Mapping[str, Column]) -> TriggerPlan:
        t, binder = self.trigger, self.binder
        types = {**{f"_meta_{w}": type_ for w, type_ in META.items()}, **{n: c.type for n, c in self.columns.items()}}
        kept = {n: to_arrow(types[n]) for n in types if n in {*t.by, *t.each} or n.lower() in self.reads}
        names = [self._argument_column(sql) for sql in self.arguments]
        texts = [str(sql) for sql in sqls.values()]
        evaluated = {f"_a{i}": a.type for i, a in enumerate(self.aggregates)} | {n: self.columns[n].type for n in t.by}
        evaluation = ", ".join(f"TRY({sql}) AS _o{i}" for i, sql in enumerate(texts))
        selected = ", ".join(f"TRY({sql}) AS _v{i}" for i, sql in enumerate(self.arguments)) or "NULL AS _v"
        limit_us = t.over_us if t.over_us is not None else t.stale_after
        rules = self._common_rules() | {
            "on_no_data": t.on_no_data,
            "has_only_when": t.only_when is not None,
            "only_delay_us": t.only_delay,
        }
        degraded = None
        if t.degraded_when:
            degraded = self._identity("degraded", Rules(on_no_data="raise"))
        evaluate = compile_expressions(binder.engine, texts, evaluated)
        return TriggerPlan(
            identity=self._identity("", Rules(**rules)),
            degraded=degraded,
            spec=t,
            definition=self._digest(list(kept), limit_us if t.over_us else None),
            each=tuple(t.each),
            kept=kept,
            arguments=tuple(names),
            argument_values=Statement(binder.engine, f"SELECT {selected} FROM _kept", "_kept"),
            aggregates=tuple(self.aggregates),
            outputs=tuple(sqls),
            evaluate=evaluate,
            loop=write_loop(evaluate, self.aggregates, t.is_latest, len(t.by)) if evaluate else None,
            values={name: to_arrow(column.type) for name, column in over.items()},
            evaluation=Statement(binder.engine, f"SELECT {evaluation} FROM _values", "_values"),
            columns=(*self.columns, *self._wheres()),
            capture_owner=f"capture.{self.name}.{self._digest([[n, c.type] for n, c in self.columns.items()])}",
        )

    def _wheres(self) -> list[str]:
        """Hidden columns that sinks of the capture choose by."""
        stream = self.trigger.capture.to if self.trigger.capture else None
        found = []
        for name, sink in self.binder.spec.sinks.items():
            if sink.where and stream and sink.from_ == stream:
                sql = self.binder.row(sink.where, f"sinks.{name}.where", self.columns, "BOOLEAN").sql
                found.append(self.binder.hidden(sql, self.columns, f"sinks.{name}.where"))
        return list(dict.fromkeys(found))

    def _expression(self, text: str, path: str) -> str | None:
        """The SQL over `_a<i>`; its aggregates are appended. With `over: latest` a bare column is that of the newest row."""
        t, binder, before = self.trigger, self.binder, len(self.binder.problems)
        expression = binder.parse(text, path, SPAN_AGGREGATES)
        meta = t.from_ is None
        if expression is None or not binder.known_columns(expression, self.columns, meta=meta):
            return None
        replacements = binder.replacements(expression, self.columns, meta=meta)
        calls = expression.aggregates(replacements)
        final: dict[Span, str] = {}
        for call in calls:
            final[call.span] = self._aggregate(call, path)
        final |= self._alone(expression, calls, path)
        if not final:
            binder.complain(path, "a condition looks at the rows of the span", _HINT)
        self.reads |= {("_meta_" + w[1] if w[0] == "meta" and meta else w[0]).lower() for w, _ in expression.columns}
        return expression.replace_calls(final, replacements) if len(binder.problems) == before else None

    def _alone(self, expression: Expression, calls: Sequence[Call], path: str) -> dict[Span, str]:
        """Columns outside of aggregates that are not those of `by`."""
        by = {name.lower() for name in self.trigger.by}
        known = {name.lower() for name in self.columns}
        found: dict[Span, str] = {}
        for words, span in expression.columns:
            if words[0].lower() in by or words[0].lower() not in known or any(span in call.span for call in calls):
                continue
            if not self.trigger.is_latest or len(words) > 1:
                self.binder.complain(
                    path, f'"{words[0]}" stands outside an aggregate', "aggregate it, as in max(..), or add it to by:"
                )
                return {}
            found[span] = self._aggregate(Call(words[0], "last", span, "", "", False, (quote(words[0]),)), path)
        return found

    def _aggregate(self, call: Call, path: str) -> str:
        name = plain_name({"distinct": "approx_count_distinct", "quantile": "quantile_cont"}.get(call.name, call.name))
        arguments = [argument for argument in call.arguments if argument and argument != "*"]
        value = arguments[0] if arguments else "true"
        type_ = self._type(value, path)
        whole = type_.startswith(_WHOLE)
        if name in SUMS and type_.startswith(("DECIMAL", "FLOAT")):
            value, type_ = f"CAST(({value}) AS DOUBLE)", "DOUBLE"
        if (name in SUMS or name == "quantile_cont") and not whole and type_ != "DOUBLE":
            self.binder.complain(path, f"{call.name}() is for numbers, this is a {type_.lower()}", "cast it: CAST(x AS DOUBLE)")
            return "NULL"
        if (problem := self._unordered(name, call, type_, arguments, path)) is not None:
            self.binder.complain(
                path, problem, "use a part of it that is a text, a number, a boolean or a time, such as x[1] or s.part"
            )
            return "NULL"
        quantile = self._quantile(call, arguments, path) if name in QUANTILES else 0.5
        make = make_tally(name, distinct=call.distinct, whole=whole, replacing=self.trigger.is_latest, quantile=quantile)
        if make is None:
            what = f"{call.name}(distinct ..)" if call.distinct else f"{call.name}()"
            self.binder.complain(path, f"{what} is not kept by triggers", "derive the value in a step before")
            return "NULL"
        condition, other = call.condition, ""
        if name in WITH_NULLS:
            other = condition
        elif condition:
            value = f"CASE WHEN ({condition}) THEN ({value}) END"
        if name in PAIRS:
            other = f"CASE WHEN ({condition}) THEN ({arguments[1]}) END" if condition else arguments[1]
        secret = any(c.sensitive and re.search(rf"(?i)\b{re.escape(n)}\b", call.label) for n, c in self.columns.items())
        places = self._argument(value, path), self._argument(other, path) if other else -1
        kind: dict[str, Any] = {
            "on_grid": name in SUMS and not whole,
            "is_count": name == "count" and not call.distinct,
            "has_order": name in WITH_NULLS | PAIRS | {"any_value"},
        }
        aggregate = Aggregate(call.label, make, _result_type(name, type_, whole=whole, distinct=call.distinct), *places)
        aggregate = Aggregate(**{**vars(aggregate), "is_pair": name in PAIRS, "is_secret": secret and name != "count", **kind})
        for i, known in enumerate(self.aggregates):
            if known.label == aggregate.label and (known.value, known.other) == places:
                return f"_a{i}"
        self.aggregates.append(aggregate)
        return f"_a{len(self.aggregates) - 1}"

    def _unordered(self, name: str, call: Call, type_: str, arguments: Sequence[str], path: str) -> str | None:
        """What is wrong with an aggregate that compares or counts different values of a list or struct."""
        if name in PAIRS:
            type_ = self._type(arguments[1], path)
        elif not (name in ("min", "max", "approx_count_distinct", *QUANTILES) or call.distinct):
            return None
        is_nested = type_.startswith("STRUCT") or type_.endswith("]")
        return f"{call.name}() compares values, this is a {type_.lower()}" if is_nested else None

    def _quantile(self, call: Call, arguments: Sequence[str], path: str) -> float:
        if call.name == "median":
            return 0.5
        if len(arguments) == 2:
            try:
                ((q,),) = self.binder.engine.execute(f"SELECT CAST(({arguments[1]}) AS DOUBLE)").fetchall()
            except Exception:  # noqa: BLE001 - whatever DuckDB says: it is no constant
                q = None
            if q is not None and 0 <= q <= 1:
                return float(q)
        self.binder.complain(path, f"{call.name}() takes a column and a number from 0 to 1", f"as in {call.name}(temp_c, 0.95)")
        return 0.5

    def _argument(self, sql: str, path: str) -> int:
        if sql not in self.arguments:
            self.arguments[sql] = self._type(sql, path)
        return list(self.arguments).index(sql)

    def _type(self, sql: str, path: str) -> str:
        return self.binder.type_of(sql, self.columns, path, raw=True)

    def _argument_column(self, sql: str) -> str:
        """Where the row table has it: a column, or a hidden one. Window rows have it only in `argument_values`."""
        plain = sql.strip().strip('"').lower()
        for name in self.columns:
            if name.lower() == plain:
                return name
        if self.trigger.from_ is not None:
            return ""
        return self.binder.hidden(sql, self.columns, self.path)

    # -- what both have

    def _common_rules(self) -> dict[str, Any]:
        t = self.trigger
        steps = sorted(((e.after, e.unless == "acknowledged") for e in t.escalate), key=lambda step: step[0])
        return {
            "latch": t.latch,
            "ack": t.ack,
            "remind_us": t.remind,
            "has_max_age": t.max_age is not None,
            "escalate": tuple(steps),
            "flapping_raises": t.flapping.raises if t.flapping else 0,
            "flapping_us": t.flapping.within if t.flapping else 0,
        }

    def _identity(self, kind: str, rules: Rules) -> Identity:
        b = self.binder
        node = b.node.name or b.node.id
        return Identity(self.name, b.spec.pipeline, node, self.trigger, b.params, tuple(self.trigger.by), rules, kind)

    def _digest(self, *meaning: Any) -> str:
        """Identity of the rows in sight: they are carried over between versions while this stays the same (design, section 6)."""
        t, spec = self.trigger, self.binder.spec
        whole = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        window = spec.definition("windows", t.from_).decode() if t.from_ else None
        own = [self.name, t.from_, window, t.by, t.each, t.is_latest, t.absent is not None, *meaning]
        return sha256(canonical_json([whole["schema"], whole.get("steps"), own]))[7:23]

    def _check_message(self, more: Sequence[str]) -> None:
        known = [*self.trigger.by, *self.binder.spec.params, "node", "node.name", *more]
        for word in _WORD.findall(self.trigger.message):
            if word not in known:
                message = f"there is nothing to fill {{{word}}} with{did_you_mean(word, known)}"
                self.binder.complain(f"{self.path}.message", message, f"known here: {', '.join(sorted(known))}")


def _result_type(name: str, type_: str, *, whole: bool, distinct: bool) -> str:
    if name in ("count", "count_if", "approx_count_distinct"):
        return "COUNT"
    if name in ("bool_and", "bool_or"):
        return "BOOLEAN"
    if name == "sum":
        return "HUGEINT" if whole else "DOUBLE"
    if name in SUMS or name == "quantile_cont":
        return "DOUBLE"
    return type_


def _sql_type(type_: str) -> str:
    """As a column of `evaluation`."""
    return storable({"COUNT": "BIGINT", "HUGEINT": "BIGINT"}.get(type_, type_)) or "VARCHAR"
