"""What a pipeline gave in a case, as plain values that expectations can be compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.contract.interpolate import Unset, Values, resolve
from pipelines.engine.run import Output
from pipelines.tools.matching import time_of


@dataclass(frozen=True)
class Alarm:
    """The newest incident of a trigger in a group, as its last transition left it."""

    incident: str
    group: Mapping[str, Any]
    state: str
    acked: bool
    flags: tuple[str, ...]

    def as_expected(self) -> dict[str, Any]:
        return {"group": self.group, "state": self.state, "acked": self.acked, "flags": list(self.flags)}


@dataclass
class Seen:
    """What the pipeline gave since some moment, as plain values."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)

    def add(self, more: Seen) -> None:
        for sink, rows in more.rows.items():
            self.rows.setdefault(sink, []).extend(rows)
        self.quarantine += more.quarantine
        self.incidents += more.incidents
        self.actions += more.actions


def seen_in(output: Output, raw: str, values: Values) -> Seen:
    """What a batch gave. `raw`: what becomes of the raw bytes; as in the lake, there are none unless they go up."""
    rejected = [row for table in output.quarantine for row in table.to_pylist()]
    return Seen(
        {sink: [row for table in tables for row in table.to_pylist()] for sink, tables in output.rows.items()},
        rejected if raw == "upload" else [{**row, "raw": None} for row in rejected],
        [_incident(transition) for transition in output.transitions],
        [_action(action, values) for action in output.actions],
    )


def alarm_after(transition: Any) -> Alarm:
    flags = tuple(flag for flag in transition.flags.split(",") if flag)
    group = json.loads(transition.group)
    return Alarm(transition.incident, group, transition.state, transition.acknowledged, flags)


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
