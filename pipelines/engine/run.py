"""run_batch: decode, enforce, transform, windows, triggers and sinks composed, nothing else. Pure: time enters with the batch."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.engine.batch import Batch, Lines, unfit_lines
from pipelines.engine.fate import ALIVE, QUARANTINED_KINDS
from pipelines.engine.ipc import TIMESTAMP
from pipelines.engine.plan import Plan
from pipelines.engine.records.reader import Records
from pipelines.engine.sinks import narrowed
from pipelines.engine.stage import keep_column, owners
from pipelines.engine.state import State, Watermark
from pipelines.engine.triggers import watch as triggers
from pipelines.engine.triggers.arrived import Arrived
from pipelines.engine.triggers.incident import Shelves, Transition, wanted_actions
from pipelines.engine.watermark import NEVER_US, Stretch, advance, reached_us
from pipelines.engine.windows import feed as windows

QUARANTINE_STREAM, INCIDENT_STREAM, LEDGER_STREAM = "_quarantine", "_incidents", "_ledger"  # every pipeline has these
TOLD_MAX, MESSAGE_MAX = 1024, 4096  # characters of a text in the group or value of an incident, and of its message
RAW_BYTES_MAX = 256 * 1024  # of a quarantined record
QUARANTINE_SCHEMA = pa.schema(
    [
        ("_event_time", TIMESTAMP),
        ("pipeline", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("step", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("raw", pa.string()),
    ]
)
INCIDENT_SCHEMA = pa.schema(
    [
        ("_event_time", TIMESTAMP),
        ("at", TIMESTAMP),
        *((name, pa.string()) for name in ("incident", "pipeline", "trigger", "group", "transition", "severity", "message")),
        *((name, pa.string()) for name in ("by", "reason", "value", "state", "flags", "advice")),
    ]
)


@dataclass(frozen=True)
class PlannedAction:
    """An action to perform now. `id` is the same however often a crash repeats it: the receiver's idempotency key."""

    id: str
    incident: str
    pipeline: str
    trigger: str
    transition: str
    kind: str
    config: Mapping[str, Any]
    valid_for_us: int | None
    at_us: int  # node time
    context: Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """What one batch gives besides the new state. `rows` are by sink."""

    rows: Mapping[str, list[pa.Table]] = field(default_factory=dict)
    quarantine: list[pa.Table] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    actions: list[PlannedAction] = field(default_factory=list)

    def __add__(self, other: Output) -> Output:
        names = [*self.rows, *(name for name in other.rows if name not in self.rows)]
        return Output(
            {name: [*self.rows.get(name, []), *other.rows.get(name, [])] for name in names},
            self.quarantine + other.quarantine,
            self.transitions + other.transitions,
            self.actions + other.actions,
        )

    def in_row_order(self) -> Output:
        """As if the rows of the batch had come one by one (I14)."""
        quarantine = [pa.concat_tables(self.quarantine).sort_by("offset")] if len(self.quarantine) > 1 else self.quarantine
        return replace(self, quarantine=quarantine, transitions=sorted(self.transitions, key=lambda t: t.row))

    def with_actions(self, plan: Plan, arrival_us: int) -> Output:
        """What there is to do, and transitions with texts of a length that can be told."""
        told = [_told(t) for t in self.transitions]
        actions = [action for t in told for action in _actions_of(plan, t, arrival_us)]
        return replace(self, transitions=told, actions=actions)


def run_batch(plan: Plan, state: State, batch: Batch) -> tuple[State, Output]:
    """The state after `batch` and what it gave. A batch without lines is a timer: time passes, nothing else; with a source, that
    source has ended, and nobody waits for it."""
    if batch.lines is None:
        state, output = _tick(plan, _ended(plan, state, batch) if batch.source else state, batch)
    elif len(batch.lines):
        state, output = _rows(plan, state, batch)
    else:
        return state, Output()
    return state, output.with_actions(plan, batch.arrival_us)


def _rows(plan: Plan, state: State, batch: Batch) -> tuple[State, Output]:
    records = plan.records[batch.source].read(batch)
    if not records.count:
        return state, Output()
    origin, reasons = Origin(batch, records.line), records.reasons
    state, rows = run_steps(plan, state, batch, records)
    del records  # memory, as the rows that are not accepted
    state, quarantined = _account(plan, state, origin, reasons, rows)
    rows = rows.filter(pc.equal(rows["_fate"], ALIVE)) if _any_dead(rows) else rows
    state, output = _evaluate(plan, state, origin, rows)
    return state, (Output(quarantine=quarantined) + output).in_row_order()


def run_steps(plan: Plan, state: State, batch: Batch, records: Records) -> tuple[State, pa.Table]:
    """The row table after all steps, dead rows and all."""
    rows = _row_table(plan, batch, records)
    for stage in plan.stages:
        state, rows = stage(state, rows)
    return state, rows


@dataclass(frozen=True)
class Origin:
    """Where the rows of a batch came from: row i is line i, or line `line[i]`."""

    batch: Batch
    line: pa.Array | None

    def offsets(self, rows: pa.Array) -> pa.Array:
        return self._lines.offsets.take(self._of(rows))

    def raw(self, rows: pa.Array) -> pa.Array:
        return self._lines.text.take(self._of(rows))

    @property
    def _lines(self) -> Lines:
        assert self.batch.lines is not None, "rows have lines"
        return self.batch.lines

    def _of(self, rows: pa.Array) -> pa.Array:
        return rows if self.line is None else self.line.take(rows)


def _row_table(plan: Plan, batch: Batch, records: Records) -> pa.Table:
    """The row table: `_row`, `_fate`, `_et` (microseconds since 1970: the field that stamps the row, or its arrival; NULL in rows
    without one, which are dead), then the fields and `_meta_*`; `_unfit` only when some row is."""
    n = records.count
    fate = records.fate if records.fate is not None else pa.repeat(pa.scalar(ALIVE, pa.int16()), n)
    columns = {name: _naive(values) for name, values in records.columns.items()}
    stamp = plan.spec.event_time
    times = columns[stamp].cast(pa.int64()) if stamp else pa.repeat(pa.scalar(batch.arrival_us, pa.int64()), n)
    unfit = unfit_lines(batch)
    if unfit is not None:
        columns["_unfit"] = unfit if records.line is None else unfit.take(records.line)
    return pa.table({"_row": pa.arange(0, n).cast(pa.int32()), "_fate": fate, "_et": times, **columns})


def _naive(values: pa.Array) -> pa.Array:
    return values.cast(pa.timestamp("us")) if pa.types.is_timestamp(values.type) else values


def finish(plan: Plan, state: State) -> tuple[State, Output]:
    """The end of bounded input: every open window is emitted."""
    fed = windows.feed(plan.windows, state, None, lambda _: _newest(state), early=True)
    state, output = _emitted(plan, fed)
    now_us = max((mark.arrival_us for mark in state.watermarks.values()), default=0)
    state, made = _watch(plan, state, None, Batch("", now_us, _newest(state) or 0), _arrived(fed, None, now_us))
    return state, (output + made).with_actions(plan, now_us)


def drain(plan: Plan, state: State, successor: Plan | None, arrival_us: int) -> tuple[State, Output]:
    """What the successor does not carry over: windows of changed definitions are emitted as partial, alarms of vanished triggers
    are cleared as retired. None: everything goes (the pipeline was removed)."""
    output = Output()
    goes_on = {w.owner for w in successor.windows.values()} if successor else set()
    kept = {name for name, window in plan.windows.items() if window.owner in goes_on}
    state, made = _emitted(plan, windows.drain(plan.windows, state, kept, _newest(state)))
    output += made
    state, transitions = triggers.hand_over(state, plan.triggers, successor.triggers if successor else {}, arrival_us)
    output += Output(transitions=transitions)
    kept_steps = owners(successor.stages) if successor else set()
    for owner in [name for name in state.cells if name.startswith("step.") and name not in kept_steps]:
        state = state.put(owner, {})
    return state, output.with_actions(plan, arrival_us)


def acknowledge(
    plan: Plan, state: State, incident: str, by: str, reason: str, at_us: int, arrival_us: int
) -> tuple[State, Output]:
    """Mark an open incident acknowledged. Without effect on one that is closed, unknown or acknowledged already (I5)."""
    return _by_hand(plan, state, "acknowledge", incident, by, reason, at_us, arrival_us)


def reset(plan: Plan, state: State, incident: str, by: str, reason: str, at_us: int, arrival_us: int) -> tuple[State, Output]:
    """Let go of an incident that a latch holds. Without effect while its cause is there."""
    return _by_hand(plan, state, "reset", incident, by, reason, at_us, arrival_us)


def shelve(plan: Plan, state: State, shelves: Shelves, at_us: int, arrival_us: int) -> tuple[State, Output]:
    """Follow what people shelved, which is all of `shelves` and nothing else. The same again changes nothing (I7)."""
    state, transitions = triggers.shelve(plan.triggers, state, shelves, at_us, arrival_us)
    return state, Output(transitions=transitions).with_actions(plan, arrival_us)


def _by_hand(
    plan: Plan, state: State, verb: str, incident: str, by: str, reason: str, at_us: int, arrival_us: int
) -> tuple[State, Output]:
    state, transitions = triggers.by_hand(plan.triggers, state, verb, incident, by, reason, at_us)
    return state, Output(transitions=transitions).with_actions(plan, arrival_us)


def dry_run(plan: Plan) -> None:
    """Run every statement of the plan over no rows, so that what cannot run is found before it ships."""
    none = pa.array([], pa.int64())
    for name, records in plan.records.items():
        batch = Batch(name, 0, 0, Lines(pa.array([], pa.string()), none))
        rows, state = _row_table(plan, batch, records.read(batch)), State("")
        for stage in plan.stages:
            state, rows = stage(state, rows)
        rows = _timed(rows, none, none)
        windows.dry_run(plan.windows, rows)
    triggers.dry_run(plan.triggers)


# -- the steps of a batch


def _any_dead(rows: pa.Table) -> bool:
    return bool(pc.max(rows["_fate"]).as_py() != ALIVE)


def _account(
    plan: Plan, state: State, origin: Origin, reasons: Mapping[int, Sequence[str]], rows: pa.Table
) -> tuple[State, list[pa.Table]]:
    """The source ledger of the batch (I4), and its quarantined records."""
    counts = {"read": rows.num_rows, "undecodable": 0, "made": 0, "quarantined": 0, "dropped_invalid": 0, "accepted": 0}
    drop = plan.spec.on_invalid == "drop"
    for code, n in _count_fates(rows).items():
        fate = plan.fates[code]
        if fate.kind == "undecodable":
            counts["undecodable"] += n
        elif fate.kind == "alive":
            counts["accepted"] += n
        elif fate.kind in QUARANTINED_KINDS:
            counts["dropped_invalid" if drop else "quarantined"] += n
        else:
            counts[f"{fate.kind}.{fate.step}"] = counts.get(f"{fate.kind}.{fate.step}", 0) + n
    counts["made"] = counts["read"] - counts["undecodable"]
    state = state.with_counts("sources", origin.batch.source, counts)
    if drop or counts["undecodable"] + counts["quarantined"] == 0:
        return state, []
    table = _quarantine(plan, origin, reasons, rows)
    return offer(state, QUARANTINE_STREAM, table.num_rows, table.num_rows), [table]


def _count_fates(rows: pa.Table) -> dict[int, int]:
    counts = np.bincount(rows["_fate"].to_numpy())
    return {code: int(counts[code]) for code in np.flatnonzero(counts).tolist()}


def _quarantine(plan: Plan, origin: Origin, reasons: Mapping[int, Sequence[str]], rows: pa.Table) -> pa.Table:
    rejected = rows.filter(pc.is_in(rows["_fate"], pa.array(plan.fates.codes(QUARANTINED_KINDS), pa.int16())))
    at = rejected["_row"].combine_chunks()
    fates = [plan.fates[code] for code in rejected["_fate"].to_pylist()]
    steps = [f"steps[{fate.step}]" if fate.step >= 0 else fate.kind for fate in fates]
    why = [[f.reason] if f.step >= 0 else list(reasons[row]) for f, row in zip(fates, at.to_pylist(), strict=True)]
    return _quarantine_table(plan, origin, at, steps, why)


def _quarantine_table(
    plan: Plan, origin: Origin, rows: pa.Array, steps: Sequence[str], reasons: Sequence[Sequence[str]]
) -> pa.Table:
    n, batch = len(rows), origin.batch
    return pa.table(
        {
            "_event_time": pa.repeat(pa.scalar(batch.received_at_us, TIMESTAMP), n),
            "pipeline": pa.repeat(plan.spec.pipeline, n),
            "source": pa.repeat(batch.source, n),
            "file": pa.repeat(batch.file, n),
            "offset": origin.offsets(rows),
            "step": pa.array(steps, pa.string()),
            "reasons": pa.array(reasons, pa.list_(pa.string())),
            "raw": _cut(origin.raw(rows)),
        },
        schema=QUARANTINE_SCHEMA,
    )


def _cut(raw: pa.Array) -> pa.Array:
    """What is kept of records: no more than a segment can hold."""
    longest = pc.max(pc.binary_length(raw)).as_py() or 0
    if longest <= RAW_BYTES_MAX:
        return raw
    return pa.array([text.encode()[:RAW_BYTES_MAX].decode(errors="ignore") for text in raw.to_pylist()], pa.string())


def _evaluate(plan: Plan, state: State, origin: Origin, accepted: pa.Table) -> tuple[State, Output]:
    """Accepted rows through watermark, triggers, windows and sinks."""
    if not accepted.num_rows:
        return state, Output()
    batch, times = origin.batch, accepted["_et"].combine_chunks()
    state, output = _to_sinks(plan, state, accepted, None)
    if not plan.windows and not plan.triggers:
        return state, output
    state = _listening(plan, state, batch.arrival_us)
    others = {name: mark for name, mark in state.watermarks.items() if name != batch.source}
    others_us = _least_reached(others, batch.arrival_us, max((w.patience_us for w in plan.windows.values()), default=0))
    mark = state.watermarks.get(batch.source)
    new_mark, stretches = advance(mark or Watermark(), times, batch.arrival_us, _keys(plan, accepted))
    for stretch in stretches:
        if stretch.stepped_back:
            state, made = _new_time_line(plan, state)
            output += made
        state, made = _stretch(plan, state, origin, accepted, stretch, others_us)
        output += made
    return replace(state, watermarks={**state.watermarks, batch.source: new_mark}), output


def _keys(plan: Plan, rows: pa.Table) -> pa.Array | None:
    """Who sent each row, as far as the watermark cares."""
    return pc.fill_null(rows[plan.key].cast(pa.string()), "").combine_chunks() if plan.key else None


def _stretch(
    plan: Plan, state: State, origin: Origin, accepted: pa.Table, stretch: Stretch, others_us: int | None
) -> tuple[State, Output]:
    length = stretch.stop - stretch.start
    before, at = stretch.before_us, stretch.at_us
    if others_us is not None:
        before = pc.min_element_wise(before, pa.scalar(others_us, pa.int64()))
    rows = _timed(accepted.slice(stretch.start, length), before, at)
    output = Output()
    reached = at if others_us is None else pc.min_element_wise(at, pa.scalar(others_us, pa.int64()))
    fed = windows.feed(plan.windows, state, rows, lambda _: reached[-1].as_py())
    state, made = _emitted(plan, fed)
    output += made
    if plan.triggers:
        arrived = Arrived(rows, origin.batch.arrival_us, origin.batch.source)
        emitted = _arrived(fed, (reached, arrived.row), origin.batch.arrival_us) if fed.tables else {}
        state, made = _watch(plan, state, arrived, origin.batch, emitted)
        output += made
    if fed.refused:
        state, table = _refused(plan, state, origin, sorted(fed.refused, key=lambda refused: refused[1]))
        output += Output(quarantine=[table])
    return state, output


def _watch(
    plan: Plan, state: State, rows: Arrived | None, batch: Batch, emitted: Mapping[str, Arrived] | None
) -> tuple[State, Output]:
    """Rows and those of windows through the triggers; captured ones to their sinks. Neither: a timer."""
    state, watched = triggers.watch(plan.triggers, state, rows, batch.arrival_us, batch.received_at_us, emitted)
    output = Output(transitions=watched.transitions)
    for stream, table in watched.captured.items():
        state, made = _to_sinks(plan, state, table, stream)
        output += made
    return state, output


def _arrived(fed: windows.Fed, moved: tuple[pa.Array, Sequence[int]] | None, arrival_us: int) -> dict[str, Arrived]:
    """The rows of windows that closed. `moved`: how far event time had come after each row of the batch, and their numbers."""
    found: dict[str, Arrived] = {}
    for name, tables in fed.tables.items():
        table = pa.concat_tables(tables) if tables else None
        if table is None or not table.num_rows:
            continue
        times = table["_window_end"].cast(pa.int64())
        table = table.append_column("_et", times).append_column("_at", pc.cumulative_max(times))
        if moved is None:
            numbers = [-1] * table.num_rows
        else:
            reached, rows = moved[0].to_pylist(), moved[1]
            numbers = [rows[min(bisect_left(reached, due), len(rows) - 1)] for due in table["_due"].to_pylist()]
        found[name] = Arrived(table.append_column("_row", pa.array(numbers, pa.int32())), arrival_us)
    return found


def _refused(plan: Plan, state: State, origin: Origin, rows: Sequence[tuple[str, int, str]]) -> tuple[State, pa.Table]:
    """Quarantine accepted rows that a window could not count."""
    numbers = pa.array([number for _, number, _ in rows], pa.int32())
    steps = [f"windows.{window}" for window, _, _ in rows]
    table = _quarantine_table(plan, origin, numbers, steps, [[reason] for _, _, reason in rows])
    return offer(state, QUARANTINE_STREAM, len(rows), len(rows)), table


def _emitted(plan: Plan, fed: windows.Fed) -> tuple[State, Output]:
    """Rows of windows that closed, to their sinks."""
    state, output = fed.state, Output()
    for name, tables in fed.tables.items():
        for table in tables:
            state, made = _to_sinks(plan, state, table, name)
            output += made
    return state, output


def _timed(rows: pa.Table, before: pa.Array, at: pa.Array) -> pa.Table:
    """Rows with `_before` the watermark they met, `_at` their source's watermark after them."""
    return rows.append_column("_before", before).append_column("_at", at)


def _tick(plan: Plan, state: State, batch: Batch) -> tuple[State, Output]:
    """Time passes: windows of idle sources close, triggers look again."""
    fed = windows.feed(
        plan.windows, state, None, lambda window: _least_reached(state.watermarks, batch.arrival_us, window.patience_us)
    )
    state, output = _emitted(plan, fed)
    if emitted := _arrived(fed, None, batch.arrival_us):
        state, made = _watch(plan, state, None, batch, emitted)
        output += made
    state, made = _watch(plan, state, None, batch, None)
    return state, output + made


def _listening(plan: Plan, state: State, arrival_us: int) -> State:
    """Sources not heard yet are waited for from now on."""
    unheard = [name for name in plan.spec.sources if name not in state.watermarks] if plan.windows else []
    waited_for = {name: Watermark(arrival_us=arrival_us) for name in unheard}
    return replace(state, watermarks={**state.watermarks, **waited_for}) if unheard else state


def _ended(plan: Plan, state: State, batch: Batch) -> State:
    state = _listening(plan, state, batch.arrival_us)
    if batch.source not in state.watermarks:
        return state
    mark = replace(state.watermarks[batch.source], arrival_us=NEVER_US)
    return replace(state, watermarks={**state.watermarks, batch.source: mark})


def _least_reached(marks: Mapping[str, Watermark], arrival_us: int, idle_after_us: int) -> int | None:
    """How far event time has come in all of these sources; None: there is none to wait for."""
    reached = [us for mark in marks.values() if (us := reached_us(mark, arrival_us, idle_after_us)) is not None]
    return min(reached, default=None)


def _newest(state: State) -> int | None:
    return max((mark.us for mark in state.watermarks.values() if mark.us is not None), default=None)


def _new_time_line(plan: Plan, state: State) -> tuple[State, Output]:
    """Event time was set back: windows are closed as they are, spans and pending alarms forgotten."""
    state, output = _emitted(plan, windows.feed(plan.windows, state, None, lambda _: None, early=True, partial=True))
    state = triggers.forget_time_line(state, plan.triggers)
    return windows.forget_time_line(plan.windows, state), output


def _to_sinks(plan: Plan, state: State, rows: pa.Table | None, window: str | None) -> tuple[State, Output]:
    """Offer rows to the sinks of the row stream, of one window or of one capture."""
    if rows is None or not rows.num_rows:
        return state, Output()
    if window is not None and window in plan.windows:
        stream = rows.select(plan.windows[window].schema.names).cast(plan.windows[window].schema)
    else:
        stream = _row_stream(plan, rows)
    taken: dict[str, list[pa.Table]] = {}
    for name, sink in plan.spec.sinks.items():
        if sink.from_ != window:
            continue
        part = narrowed(sink, stream)
        chosen = part.filter(rows[_keep_column(plan, name)]) if sink.where else part
        state = offer(state, name, stream.num_rows, chosen.num_rows)
        if chosen.num_rows:
            taken[name] = [chosen]
    return state, Output(rows=taken)


def _keep_column(plan: Plan, sink: str) -> str:
    """The column that says whether a sink takes a row."""
    return plan.row_wheres.get(sink) or keep_column(sink)


def _row_stream(plan: Plan, accepted: pa.Table) -> pa.Table:
    columns = list(plan.row_schema)[1:]
    values = [accepted["_et"].cast(TIMESTAMP), *(accepted[column.name].cast(column.type) for column in columns)]
    stream = pa.Table.from_arrays(values, schema=plan.row_schema)
    return stream.append_column("_incident", accepted["_incident"]) if "_incident" in accepted.column_names else stream


def offer(state: State, stream: str, offered: int, written: int) -> State:
    """The state with a stream's ledger entry (I4)."""
    return state.with_counts("streams", stream, {"offered": offered, "not_selected": offered - written, "written": written})


def _actions_of(plan: Plan, transition: Transition, arrival_us: int) -> Iterator[PlannedAction]:
    wanted = wanted_actions(plan.triggers[transition.trigger.split(".")[0]].spec, transition)
    context = {k: v for k, v in asdict(transition).items() if k not in ("row", "sounds", "escalation")}
    context |= {"group": json.loads(transition.group), "value": json.loads(transition.value)}
    for i, action in enumerate(wanted):
        config = getattr(action, action.kind).model_dump(mode="json")
        if "timeout" in config:
            config["timeout_s"] = getattr(action, action.kind).timeout / 1e6
            del config["timeout"]
        words = f"{transition.incident}/{transition.transition}/{transition.n}/{i}"
        yield PlannedAction(
            id=hashlib.sha256(words.encode()).hexdigest()[:32],
            incident=transition.incident,
            pipeline=transition.pipeline,
            trigger=transition.trigger,
            transition=transition.transition,
            kind=action.kind,
            config=config,
            valid_for_us=action.valid_for,
            at_us=arrival_us,
            context=context,
        )


def _told(transition: Transition) -> Transition:
    """With its texts cut: records may have texts of megabytes, and an incident is told in every copy of a message."""
    if len(transition.group) + len(transition.message) + len(transition.value) <= TOLD_MAX:
        return transition
    group, value = (_shortened(getattr(transition, name)) for name in ("group", "value"))
    return replace(transition, group=group, value=value, message=_cut_text(transition.message, MESSAGE_MAX))


def _shortened(told: str) -> str:
    """A JSON map with its texts cut."""
    if len(told) <= TOLD_MAX:
        return told
    words = {name: _cut_text(value, TOLD_MAX) if isinstance(value, str) else value for name, value in json.loads(told).items()}
    return json.dumps(words, ensure_ascii=False)


def _cut_text(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def incident_rows(transitions: Sequence[Transition]) -> pa.Table:
    """Transitions as rows of the `incidents` table."""
    at = pa.array([t.at_us for t in transitions], TIMESTAMP)
    columns: dict[str, Any] = {"_event_time": at, "at": at}
    for name in INCIDENT_SCHEMA.names[2:]:
        columns[name] = [getattr(t, name) for t in transitions]
    return pa.table(columns, schema=INCIDENT_SCHEMA)


def open_window_rows(state: State) -> Mapping[str, int]:
    """Rows in windows still open, by window (I4)."""
    return windows.open_rows(state)
