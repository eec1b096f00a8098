"""Seeded sensors: row `n` is a function of the specification and `n` alone, so a restart goes on as if nothing had been."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from edge_agent.sources import Block, SourceContext
from pipelines.contract.errors import TidewireError
from pipelines.contract.language.sources import SimulatedFault
from pipelines.contract.language.sources import SimulateSource as SimulateSpec
from pipelines.engine.records.framing import frame_lines

ROWS_PER_BLOCK = 5_000


class SimulateSource:
    """Paced by node time; with `until_eof` as fast as it can, which needs `rows`."""

    def __init__(self, spec: SimulateSpec, position: Mapping[str, Any], context: SourceContext) -> None:
        if context.until_eof and spec.rows is None:
            raise TidewireError(
                "a simulate source without `rows` never ends",
                op="open source",
                hint="add `rows: 1000`, or run without --until-eof",
            )
        self._spec, self._context = spec, context
        self._n = int(position.get("n", 0))
        self._start_us = int(position["start_us"]) if "start_us" in position else _start_us(spec, context)
        self._paced_from = (context.node_time_us(), self._n)

    @property
    def position(self) -> dict[str, Any]:
        return {"n": self._n, "start_us": self._start_us}

    @property
    def exhausted(self) -> bool:
        return self._spec.rows is not None and self._n >= self._spec.rows

    def trouble(self) -> str:
        return ""

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self) -> Block | None:
        end = min(self._due(), self._n + ROWS_PER_BLOCK, self._spec.rows or self._n + ROWS_PER_BLOCK)
        if end <= self._n:
            return None
        data = "\n".join(row(self._spec, n, self._start_us) for n in range(self._n, end)).encode() + b"\n"
        self._n = end
        return Block(frame_lines(data))

    def _due(self) -> int:
        """The row number up to which rows should exist by now."""
        if self._context.until_eof:
            return self._n + ROWS_PER_BLOCK
        since_us, first = self._paced_from
        return first + (self._context.node_time_us() - since_us) * self._spec.sensors // self._spec.every


def row(spec: SimulateSpec, n: int, start_us: int) -> str:
    """The text of row `n`: JSON, unless a `garbage` fault spoils it."""
    tick, sensor = divmod(n, spec.sensors)
    elapsed_us = tick * spec.every + sensor * spec.every // spec.sensors
    chance = random.Random(f"{spec.seed}/{n}")  # noqa: S311 - simulation, not secrets
    phase = 2 * math.pi * (elapsed_us / spec.value.period + sensor / spec.sensors)
    value: object = round(
        spec.value.base
        + spec.value.swing * math.sin(phase)
        + chance.gauss(0, 1) * spec.value.noise
        + _offset(spec, elapsed_us, sensor),
        4,
    )
    for fault in spec.faults:
        if fault.kind != "offset" and chance.random() < fault.share:
            if fault.kind == "garbage":
                return f'{{"ts": "{_stamp(start_us + elapsed_us)}", "sens'
            value = None if fault.kind == "missing" else "n/a"
    return json.dumps({"ts": _stamp(start_us + elapsed_us), "sensor": f"s{sensor + 1}", "value": value, "n": n})


def _offset(spec: SimulateSpec, elapsed_us: int, sensor: int) -> float:
    return sum(
        fault.by for fault in spec.faults if fault.kind == "offset" and sensor < fault.sensors and _is_on(fault, elapsed_us)
    )


def _is_on(fault: SimulatedFault, elapsed_us: int) -> bool:
    since_us = elapsed_us - fault.at
    return since_us >= 0 and (since_us % fault.every if fault.every else since_us) < fault.lasts


def _start_us(spec: SimulateSpec, context: SourceContext) -> int:
    if spec.start is None:
        return context.wall_us()
    try:
        start = datetime.fromisoformat(spec.start)
    except ValueError:
        raise TidewireError(
            f"start {spec.start!r} is not an ISO 8601 time", op="open source", hint="write 2026-01-31T06:00:00"
        ) from None
    return round((start if start.tzinfo else start.replace(tzinfo=UTC)).timestamp() * 1e6)


def _stamp(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds")
