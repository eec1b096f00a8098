"""Whether what came is what a case expects, and which of the one belongs to which of the other."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from pipelines.contract.duration import format_duration, parse_duration
from pipelines.tools.cases import to_us

ALIGN_CELLS_MAX = 400_000  # of the table that aligns two lists; beyond, the n-th belongs to the n-th
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pair:
    """An expected entry and the one that came for it. `misfits` are the paths within that do not fit."""

    kind: Literal["same", "changed", "missing", "unexpected"]
    expected: Any = None
    got: Any = None
    place: int = -1  # index among the expected
    misfits: tuple[str, ...] = ()


def misfits(expected: Any, got: Any, start_us: int, path: str = "") -> list[str]:
    """Paths within `expected` that `got` does not have so. Keys that are not expected do not matter."""
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            return [path]
        return [
            wrong
            for key, value in expected.items()
            for wrong in (
                misfits(value, got[key], start_us, _join(path, key))
                if key in got
                else []
                if value is None
                else [_join(path, key)]
            )
        ]
    if isinstance(expected, list):
        fits_all = isinstance(got, (list, tuple)) and len(got) == len(expected)
        return [] if fits_all and not any(misfits(e, g, start_us) for e, g in zip(expected, got, strict=True)) else [path]
    return [] if fits(expected, got, start_us) else [path]


def fits(expected: Any, got: Any, start_us: int) -> bool:
    """Whether one value is as expected: a number with a decimal point when it rounds to it, text also by `/regex/`, a time also
    by how long after the start of the case it is."""
    if expected is None or got is None or isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    if isinstance(got, datetime):
        return isinstance(expected, str) and _time_fits(expected, instant_us(got), start_us)
    if isinstance(got, (int, float, Decimal)):
        return _number_fits(expected, got)
    text = got.decode(errors="replace") if isinstance(got, bytes) else str(got)
    if isinstance(expected, str) and len(expected) > 2 and expected.startswith("/") and expected.endswith("/"):
        return re.search(expected[1:-1], text) is not None
    return str(expected) == text


def _number_fits(expected: Any, got: int | float | Decimal) -> bool:
    try:
        wanted, value = Decimal(str(expected)), Decimal(str(got))
    except InvalidOperation:
        return False
    if not wanted.is_finite() or not value.is_finite():
        return str(expected) == str(got)
    if not isinstance(expected, float):
        return math.isclose(wanted, value, rel_tol=1e-12)
    step = Decimal(1).scaleb(int(wanted.as_tuple().exponent))
    return abs(wanted - value) <= step / 2 or math.isclose(wanted, value, rel_tol=1e-12)


def _time_fits(expected: str, got_us: int, start_us: int) -> bool:
    try:
        return got_us == start_us + parse_duration(expected)
    except ValueError:
        pass
    try:
        return got_us == to_us(expected)
    except ValueError:
        return False


def instant_us(value: datetime) -> int:
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def time_of(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def show(value: Any, start_us: int | None = None) -> str:
    """A value as its author would write it; a time as `start_us` and how long after."""
    if isinstance(value, datetime):
        if start_us is not None and instant_us(value) >= start_us:
            return format_duration(instant_us(value) - start_us)
        return value.replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.1f}"
    if value is None or isinstance(value, (bool, int, float, list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=lambda one: _in_json(one, start_us))
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _in_json(value: Any, start_us: int | None) -> Any:
    return float(value) if isinstance(value, Decimal) else show(value, start_us)


def align(
    mode: str, expected: Sequence[Any], got: Sequence[Any], differs: Callable[[Any, Any], Sequence[str]]
) -> tuple[bool, list[Pair]]:
    """Whether `got` is as expected, and both lists beside each other. `mode` as in `cases.Several`."""
    if mode == "any_order":
        pairs = _align_unordered(expected, got, differs)
    else:
        pairs = _align_ordered(expected, got, differs, may_skip=mode == "contains")
    if mode == "contains":
        fine = all(pair.kind in ("same", "unexpected") for pair in pairs)
        return fine, pairs
    return all(pair.kind == "same" for pair in pairs), pairs


_Differs = Callable[[Any, Any], Sequence[str]]


def _align_ordered(expected: Sequence[Any], got: Sequence[Any], differs: _Differs, *, may_skip: bool) -> list[Pair]:
    head = 0
    while not may_skip and head < min(len(expected), len(got)) and not differs(expected[head], got[head]):
        head += 1
    same = [Pair("same", e, g, i) for i, (e, g) in enumerate(zip(expected[:head], got[:head], strict=True))]
    return same + _pair_gaps(_common(expected[head:], got[head:], differs), expected, got, head, differs)


def _common(expected: Sequence[Any], got: Sequence[Any], differs: _Differs) -> list[tuple[int, int]]:
    """The longest common subsequence, as pairs of indices."""
    n, m = len(expected), len(got)
    if n * m > ALIGN_CELLS_MAX:
        return [(i, i) for i in range(min(n, m)) if not differs(expected[i], got[i])]
    like = [[not differs(e, g) for g in got] for e in expected]
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            best[i][j] = best[i + 1][j + 1] + 1 if like[i][j] else max(best[i + 1][j], best[i][j + 1])
    found, i, j = [], 0, 0
    while i < n and j < m:
        if like[i][j] and best[i][j] == best[i + 1][j + 1] + 1:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return found


def _pair_gaps(
    common: Sequence[tuple[int, int]], expected: Sequence[Any], got: Sequence[Any], head: int, differs: _Differs
) -> list[Pair]:
    """What lies between the common entries: the nearest belong together."""
    pairs: list[Pair] = []
    i = j = head
    for ci, cj in [(ci + head, cj + head) for ci, cj in common] + [(len(expected), len(got))]:
        pairs += _nearest(range(i, ci), range(j, cj), expected, got, differs)
        if ci < len(expected):
            pairs.append(Pair("same", expected[ci], got[cj], ci))
        i, j = ci + 1, cj + 1
    return pairs


def _nearest(left: range, right: range, expected: Sequence[Any], got: Sequence[Any], differs: _Differs) -> list[Pair]:
    pairs, free = [], list(right)
    for i in left:
        scored = sorted((len(differs(expected[i], got[j])), n) for n, j in enumerate(free[:50]))
        if scored and scored[0][0] < max(2, _size(expected[i])):
            pairs += [Pair("unexpected", got=got[j]) for j in free[: scored[0][1]]]
            j = free[scored[0][1]]
            del free[: scored[0][1] + 1]
            pairs.append(Pair("changed", expected[i], got[j], i, tuple(differs(expected[i], got[j]))))
        else:
            pairs.append(Pair("missing", expected[i], place=i))
    return pairs + [Pair("unexpected", got=got[j]) for j in free]


def _align_unordered(expected: Sequence[Any], got: Sequence[Any], differs: _Differs) -> list[Pair]:
    """Each expected entry takes what fits it; an augmenting path moves earlier ones where two fit the same."""
    taken: dict[int, int] = {}
    fitting = [[j for j, g in enumerate(got) if not differs(e, g)] for e in expected]

    def place(i: int, tried: set[int]) -> bool:
        for j in fitting[i]:
            if j not in tried:
                tried.add(j)
                if j not in taken or place(taken[j], tried):
                    taken[j] = i
                    return True
        return False

    for i in range(len(expected)):
        place(i, set())
    by_place = {i: j for j, i in taken.items()}
    same = [Pair("same", e, got[by_place[i]], i) for i, e in enumerate(expected) if i in by_place]
    missing = [i for i in range(len(expected)) if i not in by_place]
    free = [j for j in range(len(got)) if j not in taken]
    for i in missing:
        scored = sorted((len(differs(expected[i], got[j])), j) for j in free)
        if scored and scored[0][0] < max(2, _size(expected[i])):
            free.remove(scored[0][1])
            same.append(Pair("changed", expected[i], got[scored[0][1]], i, tuple(differs(expected[i], got[scored[0][1]]))))
        else:
            same.append(Pair("missing", expected[i], place=i))
    return same + [Pair("unexpected", got=got[j]) for j in free]


def _size(expected: Any) -> int:
    return len(expected) if isinstance(expected, Mapping) else 1


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
