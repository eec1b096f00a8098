"""Alarm logic: rows to conditions by one DuckDB statement, conditions to incident transitions by a small state machine.

Each row is evaluated at its own event time over the rows of its group that came before it within `over`, so the split into
batches is invisible (I14). Event time within a group never goes back, and keeps within an hour of the watermark. A timer
evaluates every group again at the time it would be now, without counting as a row.

    normal --when--> pending --held for `for`--> active (raised) --clear_when and not when--> normal (cleared)

NULL is neither true nor false: it ends `pending` and clears nothing. No rows in the span: nothing changes (hold), but what held
before does not count for `for` in node time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.triggers import Trigger
from pipelines.engine.connection import quote
from pipelines.engine.state import Alarm, Group, State, Watermark
from pipelines.engine.statement import Statement
from pipelines.engine.watermark import FAR_US

SPAN = "_span"  # the window over which a trigger's aggregates are taken
RAISED, ACKNOWLEDGED, CLEARED = "raised", "acknowledged", "cleared"
NO_WATERMARK = Watermark()
_HOLD, _TRUE, _NOT_TRUE = 0, 1, 2


@dataclass(frozen=True)
class Transition:
    """One step in the life of an incident: a row of the `incidents` table, and what actions are told."""

    incident: str
    pipeline: str
    trigger: str
    group: str  # JSON of the values of `by`
    transition: str
    severity: str
    message: str
    at_us: int  # event time
    by: str = ""
    reason: str = ""
    value: str = "{}"  # JSON: the aggregates of `when` at that row, and `count`
    row: int = -1


@dataclass(frozen=True)
class TriggerPlan:
    """A trigger, bound. `columns` are what it keeps of a row besides `by`; `aggregates` are (label, SQL over the frame `SPAN`);
    `when` and `clear` are SQL over the aggregates `_a0`..., `by` and literals."""

    engine: duckdb.DuckDBPyConnection
    name: str
    pipeline: str
    node: str
    spec: Trigger
    definition: str
    columns: tuple[str, ...]
    aggregates: tuple[tuple[str, str], ...]
    when: str
    clear: str
    params: Mapping[str, Any]

    @property
    def kept(self) -> list[str]:
        return list(dict.fromkeys([*self.spec.by, *self.columns]))

    @cached_property
    def statement(self) -> Statement:
        """Over `_seen`: the span's rows in arrival order (`_i`), those to evaluate marked `_new`. Out: the same rows by `_group`
        (the first `_i` of the group) and arrival, with `_t` their time, the aggregates, `_when`, `_clear`, and `_alone`: no other
        row in sight."""
        by = ", ".join(quote(name) for name in self.spec.by)
        part = f"PARTITION BY {by} " if by else ""
        ordered = (
            f"SELECT *, max(_te) OVER ({part}ORDER BY _i ROWS UNBOUNDED PRECEDING) AS _t, "
            f"row_number() OVER ({part}ORDER BY _i) AS _n, min(_i) OVER ({part}) AS _group FROM _seen"
        )
        before = f"RANGE BETWEEN UNBOUNDED PRECEDING AND {self.spec.over} PRECEDING"
        framed = f"SELECT *, _n - 1 - count(*) OVER ({part}ORDER BY _t {before}) AS _k FROM ({ordered})"
        aggregates = "".join(f", {sql} AS _a{i}" for i, (_, sql) in enumerate(self.aggregates))
        frame = "ROWS BETWEEN greatest(_k, 0) PRECEDING AND CASE WHEN _probe THEN 1 ELSE 0 END PRECEDING"
        evaluated = (
            f"SELECT *, count(*) OVER {SPAN} AS _count, max(_t) OVER ({part}) AS _newest{aggregates} "
            f"FROM ({framed}) WINDOW {SPAN} AS ({part}ORDER BY _n {frame})"
        )
        when, clear = (
            f"CASE WHEN _count = 0 THEN {_HOLD} WHEN TRY({c}) THEN {_TRUE} ELSE {_NOT_TRUE} END" for c in (self.when, self.clear)
        )
        return Statement(
            self.engine,
            f"SELECT *, {when} AS _when, {clear} AS _clear, (_k <= 0) AS _alone FROM ({evaluated}) ORDER BY _group, _n",
            "_seen",
        )


def watch(
    plan: TriggerPlan, state: State, rows: pa.Table | None, arrival_us: int, *, evaluate_empty: bool = False
) -> tuple[State, list[Transition]]:
    """Evaluate accepted rows (with `_et`, `_row`, `_at`), or, with None, a timer. `evaluate_empty`: bind the statement anyway."""
    key = (plan.name, plan.definition)
    span = state.spans.get(key)
    fresh = _new_rows(plan, rows, state.epoch, arrival_us) if rows is not None else _probes(plan, span, arrival_us)
    if fresh is None or (not fresh.num_rows and not evaluate_empty):
        return state, []
    seen = pa.concat_tables([span, fresh]) if span is not None and span.num_rows else fresh
    result = plan.statement(seen.append_column("_i", pa.array(range(seen.num_rows), pa.int64())))
    if not fresh.num_rows:
        return state, []
    if rows is not None:
        state = replace(state, spans={**state.spans, key: _still_seen(plan, result, fresh.schema, pc.max(rows["_at"]).as_py())})
    return _fold(plan, state, result.filter(result["_new"]), arrival_us)


def _new_rows(plan: TriggerPlan, rows: pa.Table, epoch: int, arrival_us: int) -> pa.Table:
    n = rows.num_rows
    own = {
        # never further behind the watermark than a silent group is remembered; see `_still_seen`
        "_te": pc.max_element_wise(pc.min_element_wise(rows["_et"], rows["_at"]), pc.subtract(rows["_at"], FAR_US)),
        "_arrival": pa.repeat(pa.scalar(arrival_us, pa.int64()), n),
        "_chunk": pa.repeat(pa.scalar(epoch, pa.int64()), n),
        "_row": rows["_row"],
        "_new": pa.repeat(True, n),
        "_probe": pa.repeat(False, n),
    }
    return pa.table({**{name: rows[name] for name in plan.kept}, **own})


def _probes(plan: TriggerPlan, span: pa.Table | None, arrival_us: int) -> pa.Table | None:
    """For each group one row that counts as none, at the time it would be there now."""
    if span is None or not span.num_rows:
        return None
    by = plan.spec.by
    newest = span.group_by(by).aggregate([("_te", "max"), ("_arrival", "max")])
    n = newest.num_rows
    elapsed = pc.max_element_wise(pc.subtract(arrival_us, newest["_arrival_max"]), 0)
    own = {
        "_te": pc.add(newest["_te_max"], elapsed),
        "_arrival": pa.repeat(pa.scalar(arrival_us, pa.int64()), n),
        "_chunk": pa.repeat(pa.scalar(0, pa.int64()), n),
        "_row": pa.repeat(pa.scalar(-1, pa.int32()), n),
        "_new": pa.repeat(True, n),
        "_probe": pa.repeat(True, n),
    }
    kept = {name: newest[name] if name in by else pa.nulls(n, span.schema.field(name).type) for name in plan.kept}
    return pa.table({**kept, **own})


def _still_seen(plan: TriggerPlan, result: pa.Table, schema: pa.Schema, watermark_us: int) -> pa.Table:
    """The rows that a later row of their group can still see, in arrival order; groups long silent are forgotten."""
    floor_us = pc.max_element_wise(result["_newest"], watermark_us - FAR_US)
    kept = result.filter(pc.greater(result["_t"], pc.subtract(floor_us, plan.spec.over)))
    kept = kept.take(pc.sort_indices(kept["_i"]))
    columns = {name: kept[name] for name in schema.names} | {"_te": kept["_t"], "_new": pa.repeat(False, kept.num_rows)}
    return pa.table(columns).select(schema.names).combine_chunks()


def _fold(plan: TriggerPlan, state: State, rows: pa.Table, arrival_us: int) -> tuple[State, list[Transition]]:
    """Run the state machine of each group over its stretches of equal condition."""
    alarms = dict(state.alarms)
    transitions: list[Transition] = []
    for group, start, stop in _groups(plan, rows):
        key = (plan.name, group)
        part = rows.slice(start, stop - start)
        old = alarms.get(key, Alarm())
        new = old
        for first, last in _stretches(part):
            new, steps = _step(plan, state.lineage, group, new, part, first, last, arrival_us)
            transitions += steps
        if new != old:
            alarms[key] = new
            if new == Alarm():
                del alarms[key]
    transitions.sort(key=lambda t: (t.row, t.group))
    return replace(state, alarms=alarms), transitions


def _groups(plan: TriggerPlan, rows: pa.Table) -> Iterator[tuple[Group, int, int]]:
    """(values of by, start, stop) of each group in a table sorted by group."""
    start = 0
    for end in pc.run_end_encode(rows["_group"].combine_chunks()).run_ends.to_pylist():
        yield tuple(rows[name][start].as_py() for name in plan.spec.by), start, end
        start = end


def _stretches(part: pa.Table) -> Iterator[tuple[int, int]]:
    """(first, last) index of each run of rows whose condition is the same; a row that sees no other starts a run."""
    code = pc.add(pc.multiply(pc.cast(part["_when"], pa.int64()), 3), pc.cast(part["_clear"], pa.int64()))
    code = pc.if_else(part["_alone"], pc.add(code, pc.multiply(pc.add(part["_n"], 1), 9)), code)
    start = 0
    for end in pc.run_end_encode(code.combine_chunks()).run_ends.to_pylist():
        yield start, end - 1
        start = end


def _step(
    plan: TriggerPlan, lineage: str, group: Group, alarm: Alarm, part: pa.Table, first: int, last: int, arrival_us: int
) -> tuple[Alarm, list[Transition]]:
    """One stretch of rows with one condition: at most one transition, however the stretch is cut (I14)."""
    when, clear = part["_when"][first].as_py(), part["_clear"][first].as_py()
    if when == _HOLD:
        return (replace(alarm, since_arrival_us=arrival_us) if alarm.phase == "pending" else alarm), []
    if alarm.phase == "active":
        if when == _TRUE or clear != _TRUE:
            return alarm, []
        return Alarm(occurrence=alarm.occurrence), [_transition(plan, group, alarm.incident, CLEARED, part, first)]
    if when != _TRUE:
        return Alarm(occurrence=alarm.occurrence), []
    if alarm.phase == "normal" or part["_alone"][first].as_py():
        since_us, since_arrival_us = part["_t"][first].as_py(), part["_arrival"][first].as_py()
        alarm = replace(alarm, phase="pending", since_us=since_us, since_arrival_us=since_arrival_us)
    at = _held(plan, alarm, part, first, last, arrival_us)
    if at is None:
        return alarm, []
    occurrence = alarm.occurrence + 1
    incident = _incident_id(plan, lineage, group, occurrence)
    raised = replace(alarm, phase="active", occurrence=occurrence, incident=incident, acknowledged=False)
    return raised, [_transition(plan, group, incident, RAISED, part, at)]


def _held(plan: TriggerPlan, alarm: Alarm, part: pa.Table, first: int, last: int, arrival_us: int) -> int | None:
    """The first row of the stretch at which the condition has held for `for`, in node time or in event time."""
    if arrival_us - alarm.since_arrival_us >= plan.spec.for_:
        return first
    due_us = alarm.since_us + plan.spec.for_
    if part["_t"][last].as_py() < due_us:
        return None
    low, high = first, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if part["_t"][middle].as_py() >= due_us else (middle + 1, high)
    return low


def _incident_id(plan: TriggerPlan, lineage: str, group: Group, occurrence: int) -> str:
    words = json.dumps([lineage, plan.pipeline, plan.name, list(group), occurrence], default=str)
    return "i" + hashlib.sha256(words.encode()).hexdigest()[:15]


def _transition(plan: TriggerPlan, group: Group, incident: str, what: str, part: pa.Table, at: int) -> Transition:
    value = {label: part[f"_a{i}"][at].as_py() for i, (label, _) in enumerate(plan.aggregates)}
    value["count"] = part["_count"][at].as_py()
    words = dict(zip(plan.spec.by, group, strict=True))
    return Transition(
        incident=incident,
        pipeline=plan.pipeline,
        trigger=plan.name,
        group=json.dumps(words, default=str, ensure_ascii=False),
        transition=what,
        severity=plan.spec.severity,
        message=render(plan, {**words, "count": value["count"]}),
        at_us=part["_t"][at].as_py(),
        value=json.dumps(value, default=str, ensure_ascii=False),
        row=part["_row"][at].as_py(),
    )


def acknowledged(plan: TriggerPlan, group: Group, incident: str, by: str, reason: str, at_us: int) -> Transition:
    return _by_hand(plan, group, incident, ACKNOWLEDGED, at_us, by, reason)


def retire(plan: TriggerPlan, state: State, at_us: int) -> tuple[State, list[Transition]]:
    """Close the incidents of a trigger that is no more, and forget its alarms."""
    mine = {key: alarm for key, alarm in state.alarms.items() if key[0] == plan.name}
    closed = [
        _by_hand(plan, group, alarm.incident, CLEARED, at_us, "", "retired: the trigger was removed")
        for (_, group), alarm in mine.items()
        if alarm.phase == "active"
    ]
    return replace(state, alarms={key: alarm for key, alarm in state.alarms.items() if key not in mine}), closed


def _by_hand(plan: TriggerPlan, group: Group, incident: str, what: str, at_us: int, by: str, reason: str) -> Transition:
    words = dict(zip(plan.spec.by, group, strict=True))
    text = json.dumps(words, default=str, ensure_ascii=False)
    return Transition(
        incident, plan.pipeline, plan.name, text, what, plan.spec.severity, render(plan, words), at_us, by=by, reason=reason
    )


def render(plan: TriggerPlan, words: Mapping[str, Any]) -> str:
    """The trigger's message with `{name}` of its group, parameters, `count` and `node` filled in."""
    text = plan.spec.message or plan.name
    for name, value in {**plan.params, "node": plan.node, **words}.items():
        text = text.replace("{" + name + "}", f"{value:g}" if isinstance(value, float) else str(value))
    return text


def resume(state: State, arrival_us: int) -> State:
    """The state after a pause of the runner: what held before it has not held through it in node time."""
    pending = {key: replace(a, since_arrival_us=arrival_us) for key, a in state.alarms.items() if a.phase == "pending"}
    return replace(state, alarms={**state.alarms, **pending})


def forget_time_line(state: State, trigger: str) -> State:
    """Drop the span and what is pending: event time started again, and durations across it mean nothing."""
    spans = {key: rows for key, rows in state.spans.items() if key[0] != trigger}
    alarms = {
        key: Alarm(occurrence=a.occurrence) if key[0] == trigger and a.phase == "pending" else a
        for key, a in state.alarms.items()
    }
    return replace(state, spans=spans, alarms={key: a for key, a in alarms.items() if a != Alarm()})
