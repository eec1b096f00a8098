"""Selectors: which nodes a deployment or a rule is for. Pure.

`site=lyon,line in (a,b),!spare`: every requirement holds. `a=b` `a!=b` `a in (x,y)` `a notin (x,y)` `a` (has it) `!a`
(has it not). Empty, `*` and `all` are every node. `name` is the node's name. A label that people set on the node itself lives
under `local.`: it can satisfy only a requirement that spells `local.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.contract.errors import WrongUsage

_KEY = r"[A-Za-z][A-Za-z0-9_.-]*"
_VALUE = r"[A-Za-z0-9_.:/@+-]+"
_FORMS = (
    (re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)"), "set"),
    (re.compile(rf"({_KEY})\s*(!=|==|=)\s*({_VALUE})"), "equals"),
    (re.compile(rf"(!?)\s*({_KEY})"), "has"),
)
_HINT = "write it like site=lyon,line in (a,b),!spare or all"
_LABEL_KEY, _LABEL_VALUE = re.compile(_KEY), re.compile(_VALUE)


@dataclass(frozen=True, slots=True)
class Requirement:
    """`key` is wanted (or not, when `negated`) among `values`; no values: wanted at all."""

    key: str
    values: tuple[str, ...] = ()
    negated: bool = False

    def holds(self, labels: Mapping[str, str]) -> bool:
        found = self.key in labels and (not self.values or labels[self.key] in self.values)
        return found != self.negated

    def __str__(self) -> str:
        if not self.values:
            return f"{'!' if self.negated else ''}{self.key}"
        if len(self.values) == 1:
            return f"{self.key}{'!=' if self.negated else '='}{self.values[0]}"
        return f"{self.key} {'notin' if self.negated else 'in'} ({','.join(self.values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    requirements: tuple[Requirement, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        known = {**labels, "name": name}
        return all(requirement.holds(known) for requirement in self.requirements)

    @property
    def is_everything(self) -> bool:
        return not self.requirements

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements)) or "all"


def parse_selector(text: str) -> Selector:
    """Raises `WrongUsage` saying where the text stops making sense."""
    if text.strip() in ("", "*", "all"):
        return Selector()
    return Selector(tuple(sorted({_requirement(part, text) for part in _split(text)}, key=str)))


def check_label(key: str, value: str) -> tuple[str, str]:
    """The two as they are. Raises `WrongUsage` for what a selector cannot spell."""
    if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value) or len(key) > 63 or len(value) > 255:
        raise WrongUsage(
            f"{key}={value} is not a label",
            hint="write key=value; letters, digits and . _ - (in values also : / @ +), key first a letter",
        )
    if key == "name" or key.startswith("local."):
        raise WrongUsage(f"the label {key} is taken", hint="`name` is the node's name; labels under `local.` are set on the node")
    return key, value


def _split(text: str) -> list[str]:
    """The parts between commas that stand outside brackets."""
    return re.split(r",(?![^()]*\))", text)


def _requirement(part: str, text: str) -> Requirement:
    stripped = part.strip()
    for form, kind in _FORMS:
        match = form.fullmatch(stripped)
        if match is None:
            continue
        if kind == "has":
            return Requirement(match[2], (), match[1] == "!")
        values = match[3].split(",") if kind == "set" else [match[3]]
        return Requirement(match[1], _values(values, stripped), match[2] in ("!=", "notin"))
    what = "an empty requirement" if not stripped else f'"{stripped}" is no requirement'
    raise WrongUsage(f"{what} in the selector {text!r}", op="select", hint=_HINT)


def _values(words: list[str], part: str) -> tuple[str, ...]:
    values = tuple(sorted({word.strip() for word in words}))
    wrong = next((value for value in values if not _LABEL_VALUE.fullmatch(value)), None)
    if wrong is not None:
        raise WrongUsage(f"{wrong!r} is not a value in {part!r}", op="select", hint=_HINT)
    return values
