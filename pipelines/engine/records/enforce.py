"""The schema contract on whole columns: what may be absent, which values are allowed, and every reason of what is not.

A clean column costs a look at its null count and its bounds; rows are looked at only where something is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.schema import FieldSpec
from pipelines.contract.spec import PipelineSpec
from pipelines.engine.records.convert import TEXT_SHOWN_MAX, Unfit

FIRST_EVENT, LAST_EVENT = datetime(1000, 1, 1), datetime(9000, 1, 1)  # noqa: DTZ001 - naive, as in the row table
Reasons = dict[int, list[str]]  # by record


@dataclass(frozen=True)
class Limit:
    """`broken`: which rows are beyond it, None: none is. Rows without a value are not."""

    broken: Callable[[pa.Array], pa.Array | None]
    why: str


def has_sensitive(spec: PipelineSpec) -> bool:
    return any(field.sensitive for field in spec.schema_.values())


class Contract:
    """What one field promises. `hides`: reasons show no value, because some field of the record is sensitive: columns that are
    shifted or swapped would bring its value here."""

    def __init__(self, name: str, spec: FieldSpec, type_: pa.DataType, *, hides: bool) -> None:
        self._name, self._nullable, self._sensitive = name, spec.nullable, spec.sensitive or hides
        self._default = None if spec.default is None else pa.scalar(_plain(spec.default, type_), type_)
        self._limits = list(_limits(spec, type_))

    def enforce(self, values: pa.Array, unfit: Mapping[int, Unfit], dead: Collection[int], reasons: Reasons) -> pa.Array:
        """The column with its defaults; `reasons` gains what is wrong. `unfit` rows had a value that is none of the type;
        nothing is said of `dead` ones."""
        for row, why in unfit.items():
            if row not in dead:
                reasons.setdefault(row, []).append(why.reason(self._name, sensitive=self._sensitive))
        if values.null_count:
            if self._default is not None:
                values = pc.fill_null(values, self._default)
            elif not self._nullable:
                for row in pc.indices_nonzero(pc.is_null(values)).to_pylist():
                    if row not in unfit and row not in dead:
                        reasons.setdefault(row, []).append(f"{self._name}: missing")
        for limit in self._limits:
            broken = limit.broken(values)
            if broken is not None:
                self._tell(values, pc.indices_nonzero(broken), limit.why, unfit, dead, reasons)
        return values

    def _tell(
        self, values: pa.Array, rows: pa.Array, why: str, unfit: Collection[int], dead: Collection[int], reasons: Reasons
    ) -> None:
        for row, value in zip(rows.to_pylist(), values.take(rows).to_pylist(), strict=True):
            if row not in unfit and row not in dead:
                shown = "the value" if self._sensitive else _shown(value)
                reasons.setdefault(row, []).append(f"{self._name}: {shown} {why}")


def _limits(spec: FieldSpec, type_: pa.DataType) -> Iterator[Limit]:
    if spec.min is not None:
        yield Limit(_beyond("min", _plain(spec.bound("min"), type_), type_), f"is below the minimum {_bound(spec.min)}")
    if spec.max is not None:
        yield Limit(_beyond("max", _plain(spec.bound("max"), type_), type_), f"is above the maximum {_bound(spec.max)}")
    if spec.event_time:
        yield Limit(_no_event, "is no event time: it is not between the years 1000 and 9000")
    if spec.one_of is not None:
        allowed = pa.array([_plain(value, type_) for value in spec.one_of], type_)
        yield Limit(
            lambda values: _false(pc.is_in(values, allowed), values), f"is not one of {', '.join(map(_shown, spec.one_of))}"
        )
    if spec.matches is not None:
        pattern = matching(spec.matches)
        yield Limit(lambda values: _false(pc.match_substring_regex(values, pattern), values), f"does not match {spec.matches}")


def matching(pattern: str) -> str:
    """The RE2 pattern of a whole text."""
    return rf"\A(?:{pattern})\z"


def _beyond(which: str, bound: Any, type_: pa.DataType) -> Callable[[pa.Array], pa.Array | None]:
    limit = pa.scalar(bound, pa.float64() if isinstance(bound, float) else type_)

    def broken(values: pa.Array) -> pa.Array | None:
        found = pc.min_max(values)[which].as_py()
        if found is None or (found >= bound if which == "min" else found <= bound):
            return None
        return pc.less(values, limit) if which == "min" else pc.greater(values, limit)

    return broken


def _no_event(values: pa.Array) -> pa.Array | None:
    """Times around which a window could reach beyond the calendar."""
    bounds = pc.min_max(values).as_py()
    if bounds["min"] is None or (_naive(bounds["min"]) >= FIRST_EVENT and _naive(bounds["max"]) < LAST_EVENT):
        return None
    first, last = (pa.scalar(bound, pa.timestamp("us")).cast(pa.int64()) for bound in (FIRST_EVENT, LAST_EVENT))
    micros = values.cast(pa.int64())
    return pc.or_(pc.less(micros, first), pc.greater_equal(micros, last))


def _naive(time: datetime) -> datetime:
    return time.replace(tzinfo=None)


def _false(keeps: pa.Array, values: pa.Array) -> pa.Array | None:
    """The rows that have a value and do not keep the rule."""
    if pc.all(keeps).as_py() is not False and not values.null_count:
        return None
    return pc.and_(pc.invert(pc.fill_null(keeps, False)), pc.is_valid(values))


def _plain(value: Any, type_: pa.DataType) -> Any:
    """A value of the schema as one of the column's type."""
    if pa.types.is_decimal(type_):
        return value if isinstance(value, Decimal) else Decimal(str(value))
    return value.replace(tzinfo=None) if pa.types.is_timestamp(type_) else value


def _bound(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text[:TEXT_SHOWN_MAX]


def in_calendar(column: str) -> str:
    """SQL: whether a timestamp lies where every reader of the lake can follow."""
    return f"{column} BETWEEN TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31 23:59:59.999999'"
