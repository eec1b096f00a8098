"""Decimals, bytes, lists and structs through ingest into Delta and out by SQL; what a table's column takes."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_node import STAMP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_settle import Rig, stream

from control_plane import output
from control_plane.columns import Misfit, conform, merged_schema
from control_plane.query import run_query
from pipelines.engine.sql import as_json

STRUCT = pa.struct([("a", pa.int64()), ("inner", pa.struct([("text", pa.string()), ("raw", pa.binary())]))])
PARTS = pa.list_(pa.struct([("x", pa.decimal128(5, 1)), ("at", STAMP)]))
NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "price": (pa.decimal128(12, 3), [Decimal("1.250"), None, Decimal("-1234567.001")]),
    "frame": (pa.binary(), [b"\x00\xff", None, b""]),
    "axes": (pa.list_(pa.int64()), [[1, None, 3], [], None]),
    "parts": (PARTS, [[{"x": Decimal("1.5"), "at": NOON}, None], [], None]),
    "box": (STRUCT, [{"a": 1, "inner": {"text": "é", "raw": b"x"}}, {"a": None, "inner": None}, None]),
    "_revision": (pa.int64(), [0, 1, 2]),
}


def rows(**types: pa.DataType) -> pa.Table:
    stamps = {"_event_time": pa.array(range(3), STAMP)}
    return pa.table(stamps | {name: pa.array(values, types.get(name, kind)) for name, (kind, values) in VALUES.items()})


def asked(rig: Rig, sql: str) -> list[list[Any]]:
    """As the API answers and the command prints."""
    result = run_query(rig.directory / "lake", sql)
    return json.loads(json.dumps([[as_json(value) for value in row] for row in result.rows]))  # type: ignore[no-any-return]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_every_type_comes_back(rig: Rig) -> None:
    source = stream()
    for _ in range(2):  # the second meets the table
        assert not rig.send(source.seal(rows())).refused
    found = asked(rig, f"select {', '.join(VALUES)} from t where _seq = 2 order by _row")
    assert found[0] == [
        "1.250",
        "00ff",
        [1, None, 3],
        [{"x": "1.5", "at": "2026-01-01T12:00:00Z"}, None],
        {"a": 1, "inner": {"text": "é", "raw": "78"}},
        0,
    ]
    assert found[1] == [None, None, [], [], {"a": None, "inner": None}, 1]
    assert found[2] == ["-1234567.001", "", None, None, None, 2]
    assert {name: [r[name] for r in rig.table("t") if r["_seq"] == 1] for name in VALUES} == {
        n: v for n, (_, v) in VALUES.items()
    }


def test_sql_reaches_into_them(rig: Rig) -> None:
    rig.send(stream().seal(rows()))
    assert asked(rig, 'select price * 2, axes[1], box."inner".text, parts[1].x, octet_length(frame) from t limit 1') == [
        ["2.500", 1, "é", "1.5", 2]
    ]
    assert asked(rig, "select sum(price), max(_revision) from t") == [["-1234565.751", 2]]


def test_they_print_as_tables_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["1.250", [1, None], {"a": "é"}, None]
    output.print_table(["d", "l", "s", "n"], [row])
    output.print_csv(["d", "l", "s", "n"], [row])
    table, csv = capsys.readouterr().out.split("d,l,s,n\n")
    assert '1.250  [1, null]  {"a": "é"}' in table
    assert csv == '1.250,"[1, null]","{""a"": ""é""}",\n'


@pytest.mark.parametrize(
    ("table", "batch", "fits"),
    [
        (pa.decimal128(12, 3), pa.decimal128(10, 3), True),
        (pa.decimal128(12, 3), pa.decimal128(10, 2), True),
        (pa.decimal128(12, 3), pa.decimal128(12, 2), False),  # one more before the point
        (pa.decimal128(12, 3), pa.decimal128(14, 3), False),
        (pa.list_(pa.decimal128(12, 3)), pa.list_(pa.decimal128(9, 0)), True),
        (STRUCT, pa.struct([("a", pa.int64())]), False),
        (pa.int64(), pa.decimal128(10, 0), False),
        (pa.decimal128(20, 0), pa.int64(), False),
        (pa.float64(), pa.decimal128(10, 2), False),
        (pa.string(), pa.binary(), False),
    ],
)
def test_a_column_takes_what_it_can_hold_exactly(table: pa.DataType, batch: pa.DataType, fits: bool) -> None:
    def merge() -> pa.Schema:
        return merged_schema(pa.schema([("c", table)]), pa.schema([("c", batch)]))

    if fits:
        assert merge() == pa.schema([("c", table)])
    else:
        with pytest.raises(Misfit, match="column c is"):
            merge()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 18), st.integers(0, 9)).filter(lambda p: p[1] <= p[0]),
    st.tuples(st.integers(1, 18), st.integers(0, 9)).filter(lambda p: p[1] <= p[0]),
    st.data(),
)
def test_a_decimal_that_fits_keeps_its_value(table: tuple[int, int], batch: tuple[int, int], data: st.DataObject) -> None:
    units = data.draw(st.integers(-(10 ** batch[0]) + 1, 10 ** batch[0] - 1))
    value = Decimal(units).scaleb(-batch[1])
    rows = pa.table({"c": pa.array([value], pa.decimal128(*batch))})
    try:
        schema = merged_schema(pa.schema([("c", pa.decimal128(*table))]), rows.schema)
    except Misfit:
        assert table[1] < batch[1] or table[0] - table[1] < batch[0] - batch[1]
        return
    assert conform(rows, schema)["c"].to_pylist() == [value]


def test_a_segment_with_wider_decimals_is_refused_and_the_flow_goes_on(rig: Rig) -> None:
    source = stream()
    for kind in (12, 14, 10):
        outcome = rig.send(source.seal(rows(price=pa.decimal128(kind, 3))))
    assert not outcome.refused
    assert [verdict for verdict, _ in rig.verdicts().values()] == ["stored", "refused", "stored"]
    assert "column price is decimal128(12, 3) in the table, decimal128(14, 3) in the segment" in rig.verdicts()[2][1]
