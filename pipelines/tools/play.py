"""Plays cases in virtual time through the engine, and says what came otherwise than expected.

Node time and the wall clock both start at the case's `start`. Between instants time passes in timers, as on a node: one a second
for ten minutes of silence, then fewer. What is checked at an `expect` is everything since the one before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipelines.contract.duration import US_PER
from pipelines.contract.errors import Problem, SpecError
from pipelines.contract.interpolate import Unset, Values, resolve
from pipelines.contract.spec import PipelineSpec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.contract.yaml_reader import Path
from pipelines.engine import run as engine
from pipelines.engine.decode import Batch, Lines, parse_header
from pipelines.engine.plan import NodeFacts, Plan, compile_plan
from pipelines.engine.run import Output, run_batch
from pipelines.engine.state import State, entries, restore
from pipelines.engine.trigger import resume
from pipelines.tools import records
from pipelines.tools.cases import (
    Act,
    ActionTaken,
    AlarmState,
    Case,
    CasesFile,
    Expect,
    IncidentStep,
    Instant,
    Quarantined,
    Who,
    instants,
)
from pipelines.tools.matching import Pair, align, fits, misfits, time_of

S = US_PER["s"]
# (silence up to, step): a case may span weeks, and most of its time nothing happens
TICKS = ((600 * S, S), (7_200 * S, 10 * S), (86_400 * S, 60 * S), (None, 600 * S))


@dataclass(frozen=True)
class Failure:
    """Something that came otherwise than expected: `when` the instant, `what` in words, and both lists beside each other."""

    when: str
    what: str
    path: Path
    line: int
    column: int
    pairs: Sequence[Pair] = ()
    places: Sequence[tuple[int, int]] = ()  # line and column of each expected entry
    start_us: int = 0


@dataclass(frozen=True)
class Result:
    """How one case went."""

    name: str
    failures: Sequence[Failure]


class Player:
    """Plays the cases of one file. Plans are kept: cases that start from the same are compiled once."""

    def __init__(self, spec: PipelineSpec, cases: CasesFile) -> None:
        self.spec, self.cases = spec, cases
        self._plans: dict[str, Plan] = {}

    def play(self, index: int) -> Result:
        """One case. Raises `SpecError` when what it says cannot be done at all."""
        case = self.cases.cases[index]
        story = _Story(self, case, index)
        story.play()
        return Result(case.name, story.failures)

    def plan(self, case: Case, params: Mapping[str, Any], path: Path) -> Plan:
        given = self.cases
        values = {**self.spec.defaults(), **given.params, **params}
        node = case.node or given.node
        secrets, lookups = {**given.secrets, **case.secrets}, {**given.lookups, **case.lookups}
        key = json.dumps([values, node.model_dump() if node else None, secrets, lookups], default=str, sort_keys=True)
        if key not in self._plans:
            self._check_params(params, path)
            facts = NodeFacts(node.id, node.name, node.labels, node.facts) if node else NodeFacts("node-1", "node-1")
            tables = {name: _table(rows) for name, rows in lookups.items()}
            self._check_lookups(lookups, path)
            self._plans[key] = compile_plan(self.spec, values, facts, secrets=secrets, lookups=tables)
        return self._plans[key]

    def _check_lookups(self, lookups: Mapping[str, Any], path: Path) -> None:
        files = [name for name, table in self.spec.lookups.items() if table.rows is None]
        for name in lookups:
            if name not in files:
                text = f'there is no lookup table "{name}" from a file{did_you_mean(name, files)}'
                hint = "rows that stand in the pipeline are those of the case" if name in self.spec.lookups else "remove it"
                raise SpecError([self.cases.problem((*path, "lookups", name), text, hint)])
        for name in files:
            if name not in lookups:
                hint = f"add `lookups:` with `{name}:` and a list of rows to the case, or to the head of the file"
                raise SpecError([self.cases.problem(path, f'the rows of lookup table "{name}" are not given', hint)])

    def _check_params(self, params: Mapping[str, Any], path: Path) -> None:
        for name, value in params.items():
            place = (*path, "params", name)
            if name not in self.spec.params:
                known = ", ".join(self.spec.params) or "none"
                raise SpecError(
                    [
                        self.cases.problem(
                            place, f'there is no parameter "{name}"{did_you_mean(name, self.spec.params)}', f"known: {known}"
                        )
                    ]
                )
            try:
                self.spec.params[name].check(value)
            except ValueError as error:
                raise SpecError([self.cases.problem(place, str(error))]) from None


@dataclass(frozen=True)
class _Alarm:
    """The newest incident of a trigger in a group, as its last transition left it."""

    incident: str
    group: Mapping[str, Any]
    state: str
    acked: bool
    flags: tuple[str, ...]

    def as_expected(self) -> dict[str, Any]:
        return {"group": self.group, "state": self.state, "acked": self.acked, "flags": list(self.flags)}


@dataclass
class _Seen:
    """What the pipeline gave since some moment, as plain values."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)

    def add(self, output: Output, raw: str, values: Values) -> None:
        """`raw`: what becomes of the raw bytes; as in the lake, there are none unless they go up."""
        for sink, tables in output.rows.items():
            self.rows.setdefault(sink, []).extend(row for table in tables for row in table.to_pylist())
        self.quarantine += [
            row if raw == "upload" else {**row, "raw": None} for table in output.quarantine for row in table.to_pylist()
        ]
        self.incidents += [_incident(transition) for transition in output.transitions]
        self.actions += [_action(action, values) for action in output.actions]


class _Story:
    """One case under way."""

    def __init__(self, player: Player, case: Case, index: int) -> None:
        self.player, self.case, self.index = player, case, index
        self.start_us = case.start_us
        self.params = dict(case.params)
        self.plan = player.plan(case, self.params, ("cases", index))
        self.state = State(f"case-{index}")
        self.now_us = self.last_act_us = self.start_us
        self.running = True
        self.recent, self.whole = _Seen(), _Seen()
        self.alarms: dict[tuple[str, str], _Alarm] = {}
        self.failures: list[Failure] = []
        self.headers: dict[str, tuple[str, ...]] = {}

    def play(self) -> None:
        for instant in _repeated(instants(self.player.cases, self.index)):
            self._pass_time(self.start_us + instant.at_us)
            self._act(instant)
        if self.case.finish and self.running:
            self._take(*engine.finish(self.plan, self.state))
        if self.case.expect:
            self._check(self.case.expect, self.whole, "at the end", ("cases", self.index, "expect"))

    # -- time and acts

    def _pass_time(self, until_us: int) -> None:
        """Timers after the last instant, and the one of this moment unless rows come with it: theirs is after them."""
        while self.running and (next_us := _next_tick(self.last_act_us, self.now_us)) < until_us:
            self._timer(next_us)
        self.now_us = self.last_act_us = max(until_us, self.now_us)

    def _timer(self, at_us: int) -> None:
        self.now_us = at_us
        self._take(*run_batch(self.plan, self.state, Batch("", at_us, at_us)))

    def _act(self, instant: Instant) -> None:
        act = instant.act
        if act.params:
            self.params |= act.params
            self.plan = self.player.plan(self.case, self.params, instant.path)
        if act.stop or act.restart:
            self.running = act.restart
            self.state = _restarted(self.plan, self.state, self.now_us)
        if act.rows or act.lines:
            self._feed(instant)
        if self.running:
            self._timer(self.now_us)
        for verb in ("ack", "reset"):
            who = getattr(act, verb)
            if who is not None:
                self._touch(verb, who, instant)
        if act.expect is not None:
            self._check(act.expect, self.recent, instant.key, (*instant.path, "expect"))
            self.recent = _Seen()

    def _feed(self, instant: Instant) -> None:
        name = self._source_name(instant)
        source, act = self.player.spec.sources[name], instant.act
        try:
            lines, header = records.encode(self.player.spec, source, act, self.start_us, self.now_us)
        except ValueError as error:
            raise self._impossible((*instant.path, "rows"), str(error)) from None
        if lines is not None and source.decode.csv and not header:
            header, lines = self._header(name, lines, act.file)
        self._take(*run_batch(self.plan, self.state, _batch(name, self.now_us, lines, header, act)))

    def _header(self, name: str, lines: Lines, file: str) -> tuple[tuple[str, ...], Lines]:
        """The column names of a CSV file: declared, or its first line, which then is no record."""
        csv, key = self.player.spec.sources[name].decode.csv, f"{name}/{file}"
        assert csv is not None
        if csv.columns:
            return tuple(csv.columns), lines
        if key not in self.headers:
            self.headers[key] = parse_header(lines.text[0].as_py().encode(), csv.delimiter)
            bad = {i - 1: why for i, why in lines.bad.items() if i}
            lines = Lines(lines.text[1:], lines.offsets[1:], bad)
        return self.headers[key], lines

    def _source_name(self, instant: Instant) -> str:
        names, name = list(self.player.spec.sources), instant.act.source
        if name is None and len(names) == 1:
            return names[0]
        if name in names:
            return str(name)
        if name is None:
            raise self._impossible(instant.path, "which source gives these?", f"add `source:` with one of {', '.join(names)}")
        place = (*instant.path, "source")
        raise self._impossible(place, f'there is no source "{name}"{did_you_mean(name, names)}', f"known: {', '.join(names)}")

    def _touch(self, verb: str, who: Who, instant: Instant) -> None:
        """Acknowledge or reset what a person would find open."""
        self._check_trigger(who.trigger, (*instant.path, verb))
        found = [
            alarm
            for (trigger, _), alarm in self.alarms.items()
            if trigger == who.trigger and (who.group is None or not misfits(who.group, alarm.group, self.start_us))
            if ("latched" in alarm.flags if verb == "reset" else alarm.state != "closed" and not alarm.acked)
        ]
        if not found:
            text = f"there is no incident of {who.trigger} to {'acknowledge' if verb == 'ack' else 'reset'}"
            self._fail(instant.key, text, (*instant.path, verb))
        do = engine.acknowledge if verb == "ack" else engine.reset
        for alarm in found:
            self._take(*do(self.plan, self.state, alarm.incident, who.by, who.reason, self.now_us, self.now_us))

    def _take(self, state: State, output: Output) -> None:
        self.state = state
        for seen in (self.recent, self.whole):
            seen.add(output, self.player.spec.raw_policy, self._values())
        for transition in output.transitions:
            self.alarms[transition.trigger, transition.group] = _alarm_after(transition)

    def _values(self) -> Values:
        """What references in settings mean in this case."""
        node = self.case.node or self.player.cases.node
        return Values(self.plan.params, node.labels if node else {}, {**self.player.cases.secrets, **self.case.secrets})

    # -- expectations

    def _check(self, expect: Expect, seen: _Seen, when: str, path: Path) -> None:
        if expect.nothing:
            self._check_nothing(seen, when, (*path, "nothing"))
        for part in ("rows", "windows"):
            for name, several in (getattr(expect, part) or {}).items():
                sink = self._sink(part, name, (*path, part))
                what = f"rows of sink {sink}" if part == "rows" else f"rows of window {name or sink}"
                place = (*path, part, name) if name else (*path, part)
                self._check_list(several, seen.rows.get(sink, []), what, when, place, self._row_misfits)
        for part, differs in (
            ("quarantine", self._quarantine_misfits),
            ("incidents", self._incident_misfits),
            ("actions", self._action_misfits),
        ):
            if (several := getattr(expect, part)) is not None:
                self._check_list(several, getattr(seen, part), part, when, (*path, part), differs)
        for trigger, states in expect.alarms.items():
            self._check_trigger(trigger, (*path, "alarms", trigger))
            for i, state in enumerate(states):
                self._check_alarm(trigger, state, when, (*path, "alarms", trigger, i))
        self._check_ledger(expect.ledger, when, (*path, "ledger"))

    def _check_nothing(self, seen: _Seen, when: str, path: Path) -> None:
        parts = {**{f"rows of sink {name}": rows for name, rows in seen.rows.items()}}
        parts |= {"quarantine": seen.quarantine, "incidents": seen.incidents, "actions": seen.actions}
        for what, got in parts.items():
            if got:
                pairs = [Pair("unexpected", got=one) for one in got]
                self._fail(when, f"{what}: nothing was expected, {len(got)} came", path, pairs)

    def _check_list(
        self,
        several: Any,
        got: Sequence[Any],
        what: str,
        when: str,
        path: Path,
        differs: Callable[[Any, Any], Sequence[str]],
    ) -> None:
        if several.count is not None and several.count != len(got):
            pairs = [Pair("unexpected", got=one) for one in got]
            self._fail(when, f"{what}: {several.count} were expected, {len(got)} came", path, pairs)
        wanted = several.expected()
        if wanted is None:
            return
        mode, expected = wanted
        fine, pairs = align(mode, expected, got, differs)
        if fine:
            return
        if mode == "contains":
            pairs = [pair for pair in pairs if pair.kind != "unexpected"] + [p for p in pairs if p.kind == "unexpected"][:5]
        same = sum(pair.kind == "same" for pair in pairs)
        self._fail(
            when,
            f"{what}: {same} of {len(expected)} as expected, {len(got)} came",
            path,
            pairs,
            [self._place(path, mode, i) for i in range(len(expected))],
        )

    def _place(self, path: Path, mode: str, index: int) -> tuple[int, int]:
        source = self.player.cases.source
        for candidate in ((*path, mode, index), (*path, index)):
            if candidate in source.places:
                return source.places[candidate]
        return source.place(path)

    def _row_misfits(self, expected: Any, got: Any) -> Sequence[str]:
        return misfits(expected, got, self.start_us)

    def _quarantine_misfits(self, expected: Quarantined, got: Mapping[str, Any]) -> Sequence[str]:
        wrong = [] if expected.reason is None or any(_says(expected.reason, r) for r in got["reasons"] or []) else ["reason"]
        if expected.reasons is not None:
            pairs = align("any_order", expected.reasons, got["reasons"] or [], lambda e, g: [] if _says(e, g) else ["reasons"])
            wrong += [] if pairs[0] else ["reasons"]
        for name in sorted(expected.model_fields_set & {"step", "raw", "source"}):
            wanted, came = getattr(expected, name), got.get(name)
            fine = came is None if wanted is None else came is not None and _says(wanted, came)
            wrong += [] if fine else [name]
        return wrong

    def _incident_misfits(self, expected: IncidentStep, got: Mapping[str, Any]) -> Sequence[str]:
        return misfits(expected.model_dump(exclude_none=True), got, self.start_us)

    def _action_misfits(self, expected: ActionTaken, got: Mapping[str, Any]) -> Sequence[str]:
        wrong = misfits(expected.model_dump(exclude_none=True, include={"trigger", "transition"}), got, self.start_us)
        if expected.like is not None and not any(_says(expected.like, text) for text in _texts([got["kind"], got["config"]])):
            wrong.append("like")
        for kind, config in expected.kinds.items():
            if kind != got["kind"]:
                wrong.append(kind)
            else:
                wrong += misfits(config or {}, got["config"], self.start_us, kind)
        return wrong

    def _check_alarm(self, trigger: str, expected: AlarmState, when: str, path: Path) -> None:
        groups = [a for (name, _), a in self.alarms.items() if name == trigger]
        if expected.group is not None:
            groups = [a for a in groups if not misfits(expected.group, a.group, self.start_us)]
        got = [alarm.as_expected() for alarm in groups]
        if not groups and expected.state != "none":
            got = [{"group": {}, "state": "none", "acked": False, "flags": []}]
        wanted = expected.model_dump(exclude_none=True)
        wrong = [one for one in got if misfits(wanted, one, self.start_us)]
        if wrong:
            pairs = [Pair("changed", wanted, one, 0, tuple(misfits(wanted, one, self.start_us))) for one in wrong]
            source = self.player.cases.source
            self._fail(when, f"alarm {trigger} stands otherwise", path, pairs, [source.place(path)])

    def _check_ledger(self, expected: Mapping[str, Any], when: str, path: Path) -> None:
        if not expected:
            return
        ledgers = self.state.ledger()
        sources = list(ledgers["sources"].values())
        got: dict[str, Any] = {**ledgers["sources"], **ledgers["streams"]}
        for name, wanted in expected.items():
            if isinstance(wanted, Mapping):
                self._check_figures(wanted, [got.get(name, {})], f"ledger of {name}", when, (*path, name))
            else:
                self._check_figures({name: wanted}, sources, "ledger", when, path)

    def _check_figures(
        self, wanted: Mapping[str, Any], ledgers: Sequence[Mapping[str, int]], what: str, when: str, path: Path
    ) -> None:
        for name, figure in wanted.items():
            got = sum(n for counts in ledgers for key, n in counts.items() if key == name or key.startswith(f"{name}."))
            if not fits(figure, got, self.start_us):
                self._fail(when, f"{what}: {name} is {got}, expected {figure}", (*path, name))

    # -- names, and what is wrong

    def _sink(self, part: str, name: str, path: Path) -> str:
        """The sink whose rows are meant: by its name, by that of its window, or the only one of its kind."""
        sinks = self.player.spec.sinks
        of_kind = [n for n, s in sinks.items() if bool(s.from_) == (part == "windows")]
        if not name:
            if len(of_kind) == 1:
                return of_kind[0]
            text = f"which sink's {part}? There are {len(of_kind)}"
            raise self._impossible(path, text, f"write a name below `{part}:`, one of {', '.join(of_kind) or 'sinks: first'}")
        known = {n: n for n in sinks}
        if part == "windows":
            known = {str(sinks[n].from_): n for n in reversed(of_kind)} | {n: n for n in of_kind}
        if name in known:
            return known[name]
        text = f'no sink takes the rows of "{name}"' if part == "windows" else f'there is no sink "{name}"'
        raise self._impossible((*path, name), text + did_you_mean(name, known), f"known: {', '.join(known) or 'none'}")

    def _check_trigger(self, name: str, path: Path) -> None:
        known = self.player.spec.triggers
        if name.removesuffix(".degraded") not in known:
            raise self._impossible(
                path, f'there is no trigger "{name}"{did_you_mean(name, known)}', f"known: {', '.join(known) or 'none'}"
            )

    def _impossible(self, path: Path, message: str, hint: str = "") -> SpecError:
        problem: Problem = self.player.cases.problem(path, message, hint)
        return SpecError([problem])

    def _fail(
        self,
        when: str,
        what: str,
        path: Path,
        pairs: Sequence[Pair] = (),
        places: Sequence[tuple[int, int]] = (),
    ) -> None:
        line, column = self.player.cases.source.place(path)
        self.failures.append(Failure(when, what, path, line, column, pairs, places, self.start_us))


# -- the engine's values as plain ones


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """As read from a file: texts."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in names})


def _text(value: Any) -> str | None:
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _batch(source: str, now_us: int, lines: Lines | None, header: tuple[str, ...], act: Act) -> Batch:
    return Batch(source, now_us, now_us, lines, act.file, header, _facts(act.meta))


def _facts(meta: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`{topic: {machine: m1}}` and `{topic.machine: m1}` are the same fact."""
    found: dict[str, Any] = {}
    for word, value in meta.items():
        found |= _facts(value, f"{before}{word}.") if isinstance(value, Mapping) else {f"{before}{word}": value}
    return found


def _restarted(plan: Plan, state: State, now_us: int) -> State:
    """The state as a new process finds it in the store (I1)."""
    put, _ = entries(state, None)
    return resume(restore(state.lineage, put.items(), state.ledger(), state.epoch + 1), now_us)


def _incident(transition: Any) -> dict[str, Any]:
    at = time_of(transition.at_us)
    words = ("trigger", "transition", "severity", "message", "by", "reason", "advice", "state")
    got = {name: getattr(transition, name) for name in words}
    more = {"acked": transition.acknowledged, "flags": [flag for flag in transition.flags.split(",") if flag]}
    return {**got, **more, "group": json.loads(transition.group), "value": json.loads(transition.value), "at": at}


def _action(action: Any, values: Values) -> dict[str, Any]:
    config = {name: _resolved(one, values) for name, one in action.config.items()}
    return {"kind": action.kind, "trigger": action.trigger, "transition": action.transition, "config": config}


def _resolved(setting: Any, values: Values) -> Any:
    """With its references filled in, as the node does when it acts; as it stands where the case does not say what one means."""
    try:
        return resolve(setting, values)
    except Unset:
        return setting


def _alarm_after(transition: Any) -> _Alarm:
    flags = tuple(flag for flag in transition.flags.split(",") if flag)
    group = json.loads(transition.group)
    return _Alarm(transition.incident, group, transition.state, transition.acknowledged, flags)


def _says(expected: str, text: str) -> bool:
    """Whether a text contains the expected one, or matches it as `/regex/`."""
    return fits(expected, text, 0) if len(expected) > 2 and expected[0] == expected[-1] == "/" else expected in text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield str(value)


# -- time


def _next_tick(since_us: int, now_us: int) -> int:
    """When the next timer comes, `since_us` after which nothing but timers came."""
    silent_us = now_us - since_us
    step = next(step for until, step in TICKS if until is None or silent_us < until)
    return now_us + step


def _repeated(acts: Sequence[Instant]) -> list[Instant]:
    """Acts with `repeat` as that many, `every` apart; what is expected is checked after the last."""
    made: list[Instant] = []
    for one in acts:
        if one.act.repeat == 1:
            made.append(one)
            continue
        once = one.act.model_copy(update={"repeat": 1})
        quiet = once.model_copy(update={"expect": None, "ack": None, "reset": None})
        made += [replace(one, at_us=one.at_us + i * one.act.every, act=quiet) for i in range(one.act.repeat - 1)]
        made.append(replace(one, at_us=one.at_us + (one.act.repeat - 1) * one.act.every, act=once))
    return sorted(made, key=lambda instant: instant.at_us)
