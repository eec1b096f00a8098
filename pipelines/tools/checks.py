"""Whether what came is what a case expects, and what to tell when it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.contract.errors import SpecError
from pipelines.contract.spec import PipelineSpec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.contract.yaml_reader import Path
from pipelines.tools.cases import ActionTaken, AlarmState, CasesFile, Expect, IncidentStep, Quarantined
from pipelines.tools.matching import Pair, align, fits, misfits
from pipelines.tools.seen import Alarm, Seen


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
class Now:
    """How things stand when an expectation is checked: alarms by trigger and group, ledgers since the case began."""

    alarms: Mapping[tuple[str, str], Alarm]
    ledger: Mapping[str, Any]


class Checker:
    """Compares expectations of one case with what came, and collects the failures. Raises `SpecError` for names there are not."""

    def __init__(self, spec: PipelineSpec, cases: CasesFile, start_us: int) -> None:
        self.spec, self.cases, self.start_us = spec, cases, start_us
        self.failures: list[Failure] = []

    def check(self, expect: Expect, seen: Seen, now: Now, when: str, path: Path) -> None:
        """`seen`: what the expectation covers; `now`: how things stand."""
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
            self.check_trigger(trigger, (*path, "alarms", trigger))
            for i, state in enumerate(states):
                self._check_alarm(trigger, state, now, when, (*path, "alarms", trigger, i))
        self._check_ledger(expect.ledger, now, when, (*path, "ledger"))

    def _check_nothing(self, seen: Seen, when: str, path: Path) -> None:
        parts = {**{f"rows of sink {name}": rows for name, rows in seen.rows.items()}}
        parts |= {"quarantine": seen.quarantine, "incidents": seen.incidents, "actions": seen.actions}
        for what, got in parts.items():
            if got:
                pairs = [Pair("unexpected", got=one) for one in got]
                self.fail(when, f"{what}: nothing was expected, {len(got)} came", path, pairs)

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
            self.fail(when, f"{what}: {several.count} were expected, {len(got)} came", path, pairs)
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
        self.fail(
            when,
            f"{what}: {same} of {len(expected)} as expected, {len(got)} came",
            path,
            pairs,
            [self._place(path, mode, i) for i in range(len(expected))],
        )

    def _place(self, path: Path, mode: str, index: int) -> tuple[int, int]:
        source = self.cases.source
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

    def _check_alarm(self, trigger: str, expected: AlarmState, now: Now, when: str, path: Path) -> None:
        groups = [a for (name, _), a in now.alarms.items() if name == trigger]
        if expected.group is not None:
            groups = [a for a in groups if not misfits(expected.group, a.group, self.start_us)]
        got = [alarm.as_expected() for alarm in groups]
        if not groups and expected.state != "none":
            got = [{"group": {}, "state": "none", "acked": False, "flags": []}]
        wanted = expected.model_dump(exclude_none=True)
        wrong = [one for one in got if misfits(wanted, one, self.start_us)]
        if wrong:
            pairs = [Pair("changed", wanted, one, 0, tuple(misfits(wanted, one, self.start_us))) for one in wrong]
            source = self.cases.source
            self.fail(when, f"alarm {trigger} stands otherwise", path, pairs, [source.place(path)])

    def _check_ledger(self, expected: Mapping[str, Any], now: Now, when: str, path: Path) -> None:
        if not expected:
            return
        ledgers = now.ledger
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
                self.fail(when, f"{what}: {name} is {got}, expected {figure}", (*path, name))

    def _sink(self, part: str, name: str, path: Path) -> str:
        """The sink whose rows are meant: by its name, by that of its window, or the only one of its kind."""
        sinks = self.spec.sinks
        of_kind = [n for n, s in sinks.items() if bool(s.from_) == (part == "windows")]
        if not name:
            if len(of_kind) == 1:
                return of_kind[0]
            text = f"which sink's {part}? There are {len(of_kind)}"
            raise impossible(
                self.cases, path, text, f"write a name below `{part}:`, one of {', '.join(of_kind) or 'sinks: first'}"
            )
        known = {n: n for n in sinks}
        if part == "windows":
            known = {str(sinks[n].from_): n for n in reversed(of_kind)} | {n: n for n in of_kind}
        if name in known:
            return known[name]
        text = f'no sink takes the rows of "{name}"' if part == "windows" else f'there is no sink "{name}"'
        raise impossible(self.cases, (*path, name), text + did_you_mean(name, known), f"known: {', '.join(known) or 'none'}")

    def check_trigger(self, name: str, path: Path) -> None:
        known = self.spec.triggers
        if name.removesuffix(".degraded") not in known:
            raise impossible(
                self.cases,
                path,
                f'there is no trigger "{name}"{did_you_mean(name, known)}',
                f"known: {', '.join(known) or 'none'}",
            )

    def fail(
        self,
        when: str,
        what: str,
        path: Path,
        pairs: Sequence[Pair] = (),
        places: Sequence[tuple[int, int]] = (),
    ) -> None:
        line, column = self.cases.source.place(path)
        self.failures.append(Failure(when, what, path, line, column, pairs, places, self.start_us))


def impossible(cases: CasesFile, path: Path, message: str, hint: str = "") -> SpecError:
    """What a case says cannot be done at all."""
    return SpecError([cases.problem(path, message, hint)])


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
