"""What came and what was expected beside each other, in lines of styled text; a terminal knows how to show a style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pipelines.tools.cases import ActionTaken, IncidentStep, Quarantined
from pipelines.tools.checks import Failure
from pipelines.tools.matching import Pair, show

Style = Literal["", "bold", "dim", "missing", "unexpected", "wrong_expected", "wrong_got"]
Line = list[tuple[Style, str]]

SAME_SHOWN = 2  # entries around a difference that are as expected
PAIRS_MAX = 40
CELL_MAX = 60
COLUMNS_MAX = 10
_SIGN = {"missing": "-", "unexpected": "+", "same": " "}


def failure_lines(failure: Failure, file: str) -> Iterator[Line]:
    """One failure: where, what, and both lists beside each other: `-` was expected, `+` came."""
    yield [("bold", f"  {file}:{failure.line}:{failure.column}"), ("", f": {failure.when}: {failure.what}")]
    yield from _pair_lines(failure)


def failure_json(failure: Failure, file: str) -> dict[str, Any]:
    differences = [
        {
            "kind": pair.kind,
            "expected": None if pair.expected is None else _plain(pair.expected, failure.start_us),
            "got": None if pair.got is None else _plain(pair.got, failure.start_us),
            "misfits": list(pair.misfits),
        }
        for pair in failure.pairs
        if pair.kind != "same"
    ]
    place = {"file": file, "line": failure.line, "column": failure.column}
    return {**place, "at": failure.when, "message": failure.what, "differences": differences}


def _pair_lines(failure: Failure) -> Iterator[Line]:
    pairs = failure.pairs
    if not pairs:
        return
    rows = [row for pair in _near_differences(pairs) for row in _rows(pair, failure)]
    shown = rows[:PAIRS_MAX]
    columns = _columns(pairs)
    cells = [[_cell(values, column, failure.start_us) for column in columns] for _, values, _, _ in shown]
    widths = [max(len(column), *(len(row[i]) for row in cells), 0) for i, column in enumerate(columns)]
    yield [("dim", "      " + "  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip())]
    for (sign, values, misfits, note), row in zip(shown, cells, strict=True):
        if values is None:
            yield [("dim", f"      {note}")]
            continue
        style: Style = "missing" if sign == "-" else "unexpected" if sign == "+" else "dim"
        line: Line = [(style, f"    {sign} ")]
        for column, text, width in zip(columns, row, widths, strict=True):
            wrong = any(misfit == column or misfit.startswith(f"{column}.") for misfit in misfits)
            emphasis: Style = style if not wrong else "wrong_expected" if sign == "-" else "wrong_got"
            line += [(emphasis, text), ("", " " * (width - len(text) + 2))]
        yield [*line, ("dim", note)]
    if len(rows) > PAIRS_MAX:
        yield [("dim", f"      ... and {len(rows) - PAIRS_MAX} lines more")]


_Row = tuple[str, Mapping[str, Any] | None, Sequence[str], str]


def _rows(pair: Pair | int, failure: Failure) -> Iterator[_Row]:
    """(sign, values, misfits, note) of the lines that show a pair; a number stands for so many that are as expected."""
    if isinstance(pair, int):
        yield " ", None, (), f"... {pair} as expected"
        return
    place = failure.places[pair.place] if 0 <= pair.place < len(failure.places) else None
    note = f"expected at {place[0]}:{place[1]}" if place and pair.kind != "same" else ""
    if pair.kind == "changed":
        yield "-", _flat(pair.expected), pair.misfits, note
        yield "+", _flat(pair.got), pair.misfits, "came instead"
    elif pair.kind == "unexpected":
        yield "+", _flat(pair.got), (), ""
    else:
        yield _SIGN[pair.kind], _flat(pair.expected), (), note or ""


def _near_differences(pairs: Sequence[Pair]) -> Iterator[Pair | int]:
    """The pairs, with long stretches of the same left out."""
    differing = [i for i, pair in enumerate(pairs) if pair.kind != "same"]
    near = {i + k for i in differing for k in range(-SAME_SHOWN, SAME_SHOWN + 1)}
    left_out = 0
    for i, pair in enumerate(pairs):
        if pair.kind == "same" and i not in near:
            left_out += 1
            continue
        if left_out:
            yield left_out
            left_out = 0
        yield pair
    if left_out:
        yield left_out


def _columns(pairs: Sequence[Pair]) -> list[str]:
    """What is expected of the entries; of those that nobody expected, what they have."""
    wanted = list(dict.fromkeys(key for pair in pairs if pair.expected is not None for key in _flat(pair.expected)))
    if not wanted:
        wanted = list(dict.fromkeys(key for pair in pairs if pair.got is not None for key in _flat(pair.got)))
        plain = [key for key in wanted if not key.startswith("_")]
        wanted = (plain or wanted)[:COLUMNS_MAX]
    return wanted


def _flat(value: Any) -> dict[str, Any]:
    """An entry as columns."""
    if isinstance(value, Quarantined):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, IncidentStep):
        return value.model_dump(exclude_none=True)
    if isinstance(value, ActionTaken):
        like = {"kind": value.like} if value.like is not None else {}
        return {**like, **value.model_dump(exclude_none=True, exclude={"like", "kinds"}), **value.kinds}
    return dict(value) if isinstance(value, Mapping) else {"value": value}


def _cell(values: Mapping[str, Any] | None, column: str, start_us: int) -> str:
    if values is None:
        return ""
    value = values.get(column)
    if column not in values:
        for nearest in _stand_ins(values, column):
            value = nearest
            break
        else:
            return "-"
    text = show(value, start_us).replace("\n", "\\n")
    return text if len(text) <= CELL_MAX else text[: CELL_MAX - 1] + "…"


def _stand_ins(values: Mapping[str, Any], column: str) -> Iterator[Any]:
    """What stands for a column that has another name among what came: a reason, the settings of an action's kind."""
    if column == "reason" and "reasons" in values:
        yield "; ".join(values["reasons"] or [])
    if values.get("kind") == column and "config" in values:
        yield values["config"]


def _plain(value: Any, start_us: int) -> Any:
    flat = _flat(value)
    return {
        key: one if isinstance(one, (str, int, float, bool, type(None))) else show(one, start_us) for key, one in flat.items()
    }
