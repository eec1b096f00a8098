"""Plays cases in virtual time through the engine, and says what came otherwise than expected.

Node time and the wall clock both start at the case's `start`. Between instants time passes in timers, as on a node: one a second
for ten minutes of silence, then fewer. What is checked at an `expect` is everything since the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipelines.contract.duration import US_PER
from pipelines.contract.interpolate import Values
from pipelines.contract.spec import PipelineSpec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.contract.yaml_reader import Path
from pipelines.engine import run as engine
from pipelines.engine.batch import Batch, Lines, parse_header
from pipelines.engine.plan import NodeFacts, Plan, compile_plan
from pipelines.engine.run import Output, run_batch
from pipelines.engine.state import State, entries, restore
from pipelines.engine.triggers.incident import Shelf
from pipelines.engine.triggers.watch import resume
from pipelines.tools import records
from pipelines.tools.cases import Act, Case, CasesFile, Instant, Who, instants
from pipelines.tools.checks import Checker, Failure, Now, impossible
from pipelines.tools.matching import misfits
from pipelines.tools.seen import Alarm, Seen, alarm_after, seen_in

S = US_PER["s"]
# (silence up to, step): a case may span weeks, and most of its time nothing happens
TICKS = ((600 * S, S), (7_200 * S, 10 * S), (86_400 * S, 60 * S), (None, 600 * S))


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
        return Result(case.name, story.checker.failures)

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
                text = f'there is no lookup table "{name}" from a CSV{did_you_mean(name, files)}'
                hint = "rows that stand in the pipeline are those of the case" if name in self.spec.lookups else "remove it"
                raise impossible(self.cases, (*path, "lookups", name), text, hint)
        for name in files:
            if name not in lookups:
                hint = f"add `lookups:` with `{name}:` and a list of rows to the case, or to the head of the file"
                raise impossible(self.cases, path, f'the rows of lookup table "{name}" are not given', hint)

    def _check_params(self, params: Mapping[str, Any], path: Path) -> None:
        for name, value in params.items():
            place = (*path, "params", name)
            if name not in self.spec.params:
                text = f'there is no parameter "{name}"{did_you_mean(name, self.spec.params)}'
                raise impossible(self.cases, place, text, f"known: {', '.join(self.spec.params) or 'none'}")
            try:
                self.spec.params[name].check(value)
            except ValueError as error:
                raise impossible(self.cases, place, str(error)) from None


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
        self.recent, self.whole = Seen(), Seen()
        self.alarms: dict[tuple[str, str], Alarm] = {}
        self.shelves: dict[str, Shelf] = {}
        self.checker = Checker(player.spec, player.cases, self.start_us)
        self.headers: dict[str, tuple[str, ...]] = {}

    def play(self) -> None:
        for instant in _repeated(instants(self.player.cases, self.index)):
            self._pass_time(self.start_us + instant.at_us)
            self._act(instant)
        if self.case.finish and self.running:
            self._take(*engine.finish(self.plan, self.state))
        if self.case.expect:
            self.checker.check(self.case.expect, self.whole, self._now(), "at the end", ("cases", self.index, "expect"))

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
        if act.stop:
            self.running = False
        if act.restart:
            self.running = True
            self.state = _restarted(self.plan, self.state, self.now_us)
        if act.rows or act.lines:
            self._feed(instant)
        if self.running:
            self._timer(self.now_us)
        for verb in ("ack", "reset"):
            who = getattr(act, verb)
            if who is not None:
                self._touch(verb, who, instant)
        for is_on, who in ((True, act.shelve), (False, act.unshelve)):
            if who is not None:
                self._shelve(who, instant, is_on=is_on)
        if act.expect is not None:
            self.checker.check(act.expect, self.recent, self._now(), instant.key, (*instant.path, "expect"))
            self.recent = Seen()

    def _feed(self, instant: Instant) -> None:
        name = self._source_name(instant)
        source, act = self.player.spec.sources[name], instant.act
        try:
            lines, header = records.encode(self.player.spec, source, act, self.start_us, self.now_us)
        except ValueError as error:
            raise impossible(self.player.cases, (*instant.path, "rows"), str(error)) from None
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
        known = ", ".join(names)
        if name is None:
            raise impossible(self.player.cases, instant.path, "which source gives these?", f"add `source:` with one of {known}")
        text = f'there is no source "{name}"{did_you_mean(name, names)}'
        raise impossible(self.player.cases, (*instant.path, "source"), text, f"known: {known}")

    def _touch(self, verb: str, who: Who, instant: Instant) -> None:
        """Acknowledge or reset what a person would find open."""
        self.checker.check_trigger(who.trigger, (*instant.path, verb))
        found = [
            alarm
            for (trigger, _), alarm in self.alarms.items()
            if trigger == who.trigger and (who.group is None or not misfits(who.group, alarm.group, self.start_us))
            if ("latched" in alarm.flags if verb == "reset" else alarm.state != "closed" and not alarm.acked)
        ]
        if not found:
            text = f"there is no incident of {who.trigger} to {'acknowledge' if verb == 'ack' else 'reset'}"
            self.checker.fail(instant.key, text, (*instant.path, verb))
        do = engine.acknowledge if verb == "ack" else engine.reset
        for alarm in found:
            self._take(*do(self.plan, self.state, alarm.incident, who.by, who.reason, self.now_us, self.now_us))

    def _shelve(self, who: Who, instant: Instant, *, is_on: bool) -> None:
        """A trigger, or, with a group, its open incidents."""
        self.checker.check_trigger(who.trigger, (*instant.path, "shelve" if is_on else "unshelve"))
        alarms = [alarm for (trigger, _), alarm in self.alarms.items() if trigger == who.trigger]
        group = who.group
        mine = [who.trigger] if group is None else [a.incident for a in alarms if not misfits(group, a.group, self.start_us)]
        for subject in mine:
            self.shelves[subject] = Shelf(is_on, who.by, who.reason)
        self._take(*engine.shelve(self.plan, self.state, self.shelves, self.now_us, self.now_us))

    def _take(self, state: State, output: Output) -> None:
        self.state = state
        if not (output.rows or output.quarantine or output.transitions or output.actions):
            return  # as at nearly every timer
        came = seen_in(output, self.player.spec.raw_policy, self._values())
        self.recent.add(came)
        self.whole.add(came)
        for transition in output.transitions:
            self.alarms[transition.trigger, transition.group] = alarm_after(transition)

    def _now(self) -> Now:
        return Now(self.alarms, self.state.ledger())

    def _values(self) -> Values:
        """What references in settings mean in this case."""
        node = self.case.node or self.player.cases.node
        return Values(self.plan.params, node.labels if node else {}, {**self.player.cases.secrets, **self.case.secrets})


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


# -- time


def _next_tick(since_us: int, now_us: int) -> int:
    """When the next timer comes, `since_us` after which nothing but timers came."""
    silent_us = now_us - since_us
    step = next(step for until, step in TICKS if until is None or silent_us < until)
    return now_us + step


_BEFORE_ROWS: dict[str, Any] = {"params": {}, "stop": False, "restart": False, "link": None}
_AFTER_ROWS: dict[str, Any] = {"expect": None, "ack": None, "reset": None, "shelve": None, "unshelve": None}


def _repeated(acts: Sequence[Instant]) -> list[Instant]:
    """Acts with `repeat` as that many of their rows or lines, `every` apart. What comes before rows happens once, with the first;
    what comes after them once, with the last."""
    made: list[Instant] = []
    for one in acts:
        if one.act.repeat == 1:
            made.append(one)
            continue
        first = one.act.model_copy(update=_AFTER_ROWS)
        last = one.act.model_copy(update=_BEFORE_ROWS)
        between = last.model_copy(update=_AFTER_ROWS)
        for i, act in enumerate([first, *[between] * (one.act.repeat - 2), last]):
            made.append(replace(one, at_us=one.at_us + i * one.act.every, act=act))
    return sorted(made, key=lambda instant: instant.at_us)
