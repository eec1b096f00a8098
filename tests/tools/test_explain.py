"""explain: what a pipeline means, and the rows after every step, by the engine that runs them."""

from __future__ import annotations

import json

import pytest

from pipelines.contract.errors import TidewireError
from pipelines.contract.spec import load_spec
from pipelines.tools.explain import Part, explain, open_input, walk
from tests.tools.support import PRESS

SPEC = load_spec(
    PRESS.replace(
        "steps:\n", "steps:\n  - derive:\n      temp_f: temp_c * 9 / 5 + 32\n      inverse: CAST(1000 / temp_c AS INTEGER) % 7\n"
    )
)
T = 1_767_225_600_000
RECORDS = [
    {"ts": T, "sensor": "a", "temp_c": 20},
    {"ts": T, "sensor": "test", "temp_c": 20},
    {"ts": T, "sensor": "b", "temp_c": 500},
    {"ts": T + 1000, "sensor": "c", "temp_c": 90},
    {"ts": T + 7000, "sensor": "c", "temp_c": 91},
]
DATA = "".join(f"{json.dumps(record)}\n" for record in RECORDS).encode() + b"not json\n"


def parts_of(limit: int = 100) -> dict[str, Part]:
    return {part.title: part for part in walk(SPEC, open_input(SPEC, "sensors", DATA, limit))}


def words(part: Part) -> str:
    return "\n".join(f"{label}: {text}" for label, text in part.facts)


def test_every_part_is_told() -> None:
    parts = {part.title: part for part in explain(SPEC)}
    assert list(parts) == [
        *("pipeline press", "source sensors", "schema", "steps[0]", "steps[1]"),
        *("window minute", "trigger hot", "sink readings", "sink minutes"),
    ]
    assert "$limit_c: double, default 85, max 400" in words(parts["pipeline press"])
    assert "after a restart" in words(parts["source sensors"])
    assert parts["steps[0]"].rows == [("temp_f", "DOUBLE"), ("inverse", "BIGINT")]
    assert ("columns", "as before") in parts["steps[1]"].facts
    assert "not the rows" in words(parts["window minute"])
    assert ("mean_c", "DOUBLE") in parts["window minute"].rows
    assert "when max(temp_c) > $limit_c, held for 5s" in words(parts["trigger hot"])
    assert "the rows of the last 10s of event time" in words(parts["trigger hot"])
    assert "/usr/bin/horn" in words(parts["trigger hot"])
    assert ("temp_f", "DOUBLE") in parts["sink readings"].rows


def test_rows_after_every_step_and_why_the_others_fell_out() -> None:
    parts = parts_of()
    decoded, derived, filtered = (
        parts["decoded and checked against the schema"],
        parts["after steps[0] derive"],
        parts["after steps[1] filter"],
    )
    fell = {row[0]: row[-1] for row in decoded.rows if row[-1]}
    assert set(fell) == {"2", "5"}
    assert "above the maximum" in fell["2"] and fell["2"].startswith("invalid")
    assert fell["5"].startswith("undecodable")
    assert [row[0] for row in derived.rows] == ["0", "1", "3", "4"]
    assert derived.columns == ("ROW", "ts", "sensor", "machine", "temp_c", "temp_f", "inverse", "FELL OUT")
    assert derived.rows[0][5] == "68.0"
    assert [(row[0], row[-1]) for row in filtered.rows] == [("0", ""), ("1", "filtered"), ("3", ""), ("4", "")]
    assert filtered.note == "3 rows go on, 1 filtered"


def test_what_comes_of_the_rows() -> None:
    parts = parts_of()
    assert parts["sink readings"].note == "3 rows"
    assert parts["sink minutes (window minute)"].note == "1 row"
    assert [row[:2] for row in parts["incidents"].rows] == [("hot", "raised")]
    assert ("read", "6") in parts["ledger"].facts


def test_input_is_bounded() -> None:
    parts = parts_of(2)
    assert parts["input of source sensors"].note == "the first 2 of 6 records"
    assert len(parts["decoded and checked against the schema"].rows) == 2


def test_csv_with_its_header() -> None:
    spec = load_spec(PRESS.replace("file: {path: x}", "file: {path: x}\n    decode: csv"))
    given = open_input(spec, "sensors", f"ts,sensor,temp_c\n{T},a,20\n".encode(), 10)
    parts = list(walk(spec, given))
    assert parts[1].rows[0][:5] == ("0", "2026-01-01T00:00:00Z", "a", "m1", "20.0")


@pytest.mark.parametrize(("source", "data"), [("sensor", DATA), ("sensors", b""), ("sensors", b"\n\n")])
def test_what_cannot_be_walked(source: str, data: bytes) -> None:
    with pytest.raises(TidewireError) as caught:
        open_input(SPEC, source, data, 10)
    assert caught.value.hint


def test_parts_as_json() -> None:
    made = [part.as_json() for part in walk(SPEC, open_input(SPEC, "sensors", DATA, 10))]
    assert json.loads(json.dumps(made))[1]["rows"][0]["sensor"] == "a"
