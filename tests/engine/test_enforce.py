"""The schema contract: what is accepted, as what value, and every reason of what is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from engine_support import Run, batch, compiled, ledgers_balance, pipeline

from pipelines.engine.batch import Batch
from pipelines.engine.records.framing import frame_lines


def json_run(field: str, *values: object, body: str = "") -> Run:
    """Rows `{"x": value}`; a value of Ellipsis is left out."""
    rows = [json.dumps({} if value is ... else {"x": value}) for value in values]
    return Run(compiled(pipeline(body, schema=f"  x: {{{field}}}"))).feed(batch(rows))


def csv_run(field: str, *texts: str) -> Run:
    plan = compiled(pipeline(schema=f"  x: {{{field}}}\n  y: {{type: string, nullable: true}}", decode="csv"))
    return Run(plan).feed(Batch("s", 0, 0, frame_lines("".join(f"{t},z\n" for t in texts).encode()), "f", ("x", "y")))


def got(run: Run) -> list[Any]:
    """Per record, in order of the input: its value, or its reasons as a list."""
    ledgers_balance(run.state)
    assert run.state.sources["s"]["undecodable"] == 0
    rejected = {r["offset"]: r["reasons"] for r in run.quarantine()}
    return [r["x"] for r in run.rows()] + [rejected[offset] for offset in sorted(rejected)]


@pytest.mark.parametrize(
    ("type_", "accepted", "values", "rejected"),
    [
        ("boolean", [True, False, "true", "FALSE"], [True, False, True, False], ["maybe", 7, ""]),
        ("integer", [1, -5, "12", " 3 ", "+4", 2**62], [1, -5, 12, 3, 4, 2**62], [1.5, "1.0", "1e3", "x", "", True, 2**63, [1]]),
        ("double", [1, -2.5, "1e3", "-0.5"], [1.0, -2.5, 1000.0, -0.5], ["x", "", "1,5", True, [1], {"a": 1}]),
        ("string", ["a", "", 5, True, "é"], ["a", "", "5", "true", "é"], []),
        ("timestamp", ["2026-01-01T00:00:00Z"], [datetime(2026, 1, 1, tzinfo=UTC)], ["x", "", "2026-13-01", 5, "12:00"]),
    ],
)
def test_each_type_takes_what_converts_exactly_and_says_what_does_not(
    type_: str, accepted: list[object], values: list[object], rejected: list[object]
) -> None:
    found = got(json_run(f"type: {type_}", *accepted))
    assert found == values
    assert all(type(a) is type(b) for a, b in zip(found, values, strict=True) if type_ != "timestamp")
    article = "an" if type_ == "integer" else "a"
    for value in rejected:
        ((reason,),) = got(json_run(f"type: {type_}", value))
        assert reason.endswith(f'" is not {article} {type_}'), (value, reason)


def test_absent_null_and_unconvertible_are_told_apart() -> None:
    assert got(json_run("type: double", 1, ..., None, "x")) == [1.0, ["x: missing"], ["x: missing"], ['x: "x" is not a double']]
    assert got(json_run("type: double, nullable: true", 1, ..., None, "x")) == [1.0, None, None, ['x: "x" is not a double']]
    assert got(csv_run("type: double", "1", "", "x")) == [1.0, ["x: missing"], ['x: "x" is not a double']]
    assert got(csv_run("type: integer, nullable: true", "1", "", "1.5")) == [1, None, ['x: "1.5" is not an integer']]


def test_a_default_stands_for_what_is_absent_not_for_what_does_not_convert() -> None:
    assert got(json_run("type: integer, default: 7", 1, ..., None, "x")) == [1, 7, 7, ['x: "x" is not an integer']]
    assert got(json_run("type: string, default: ok, one_of: [ok, bad]", ..., "bad", "no")) == [
        "ok",
        "bad",
        ["x: no is not one of ok, bad"],
    ]
    assert got(csv_run("type: double, default: 1.5", "", "2")) == [1.5, 2.0]


def test_limits() -> None:
    limits = "type: double, min: -1.5, max: 2"
    assert got(json_run(limits, -1.5, 2, -1.6, 2.1)) == [
        -1.5,
        2.0,
        ["x: -1.6 is below the minimum -1.5"],
        ["x: 2.1 is above the maximum 2"],
    ]
    assert got(json_run("type: integer, min: 0", 0, -1)) == [0, ["x: -1 is below the minimum 0"]]
    assert got(json_run("type: integer, one_of: [1, 2]", 1, 3)) == [1, ["x: 3 is not one of 1, 2"]]


@pytest.mark.parametrize("text", ["NaN", "nan", "inf", "-inf", "Infinity", "1e999"])
def test_what_is_not_finite_is_no_number(text: str) -> None:
    ((reason,),) = got(csv_run("type: double", text))
    assert "is not" in reason
    assert len(got(json_run("type: double, nullable: true", text))[0]) == 1


def test_all_reasons_of_a_record_are_told_at_once() -> None:
    schema = """
  a: {type: double, min: 0, max: 1}
  b: {type: string}
  c: {type: integer}
  d: {type: string, one_of: [x]}
"""
    run = Run(compiled(pipeline(schema=schema))).feed(batch(['{"a": 5, "c": "z", "d": "y"}']))
    assert run.reasons() == [["a: 5.0 is above the maximum 1", "b: missing", 'c: "z" is not an integer', "d: y is not one of x"]]
    assert run.quarantine()[0]["step"] == "invalid"


def test_a_reason_shows_at_most_eighty_characters_of_the_value() -> None:
    ((reason,),) = got(json_run("type: integer", "y" * 10_000))
    assert len(reason) < 120


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00"),
        ("2026-03-01T10:00:00+02:00", "2026-03-01T08:00:00"),
        ("2026-03-01 10:00:00.123456-0530", "2026-03-01T15:30:00.123456"),
        ("2026-03-01 10:00:00", "2026-03-01T10:00:00"),
        ("2026-03-01", "2026-03-01T00:00:00"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500000"),
    ],
)
def test_iso_timestamps_are_utc_unless_they_say_otherwise(text: str, iso: str) -> None:
    (found,) = got(json_run("type: timestamp", text))
    assert found.isoformat() == iso + "+00:00"
    assert got(csv_run("type: timestamp", text)) == [found]


@pytest.mark.parametrize(
    ("unit", "value", "us"),
    [
        ("s", 1_767_225_600, 1_767_225_600_000_000),
        ("s", 1_767_225_600.25, 1_767_225_600_250_000),
        ("s", "1767225600", 1_767_225_600_000_000),
        ("s", -1, -1_000_000),
        ("ms", 1_767_225_600_123, 1_767_225_600_123_000),
        ("us", 1_767_225_600_123_456, 1_767_225_600_123_456),
        ("ns", 1_767_225_600_123_456_000, 1_767_225_600_123_456),
    ],
)
def test_epoch_timestamps(unit: str, value: object, us: int) -> None:
    (found,) = got(json_run(f"type: timestamp, unit: {unit}", value))
    assert round(found.timestamp() * 1e6) == us


@pytest.mark.parametrize("value", ["infinity", "-infinity", "9" * 30, "-" + "9" * 18, "9223372036854775807", "x", "NaN"])
@pytest.mark.parametrize(
    "field", ["type: timestamp", "type: timestamp, unit: us", "type: timestamp, unit: s", "type: timestamp, format: '%Y'"]
)
def test_no_timestamp_is_too_odd_to_be_quarantined(field: str, value: str) -> None:
    for run in (json_run(field, value), csv_run(field, value)):
        (found,) = got(run)
        assert isinstance(found, list) or found.year > 1, found


def test_timestamps_by_format() -> None:
    (found, wrong) = got(csv_run("type: timestamp, format: '%d/%m/%Y %H:%M'", "31/12/2025 23:59", "2025-12-31"))
    assert found == datetime(2025, 12, 31, 23, 59, tzinfo=UTC)
    assert wrong == ['x: "2025-12-31" is not a timestamp']


def test_fields_from_meta() -> None:
    schema = """
  x: {type: string, nullable: true}
  where: {type: string, from: meta.source}
  file: {type: string, from: meta.file}
  at: {type: integer, from: meta.offset}
  came: {type: timestamp, from: meta.received_at}
"""
    run = Run(compiled(pipeline(schema=schema))).feed(batch(["{}", "{}"]))
    assert [(r["where"], r["file"], r["at"]) for r in run.rows()] == [("s", "f", 0), ("s", "f", 3)]
    assert run.rows()[0]["came"] == datetime(2026, 1, 1, tzinfo=UTC)


def test_on_invalid_drop_counts_and_keeps_nothing() -> None:
    run = Run(compiled(pipeline("on_invalid: drop", schema="  x: {type: integer}"))).feed(
        batch(['{"x": 1}', '{"x": "a"}', "junk"])
    )
    counts = run.state.sources["s"]
    assert (counts["accepted"], counts["dropped_invalid"], counts["undecodable"], counts["quarantined"]) == (1, 1, 1, 0)
    assert run.quarantine() == []
    ledgers_balance(run.state)
