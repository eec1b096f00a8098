"""Records: every decoder's output held against one contract, with all reasons; what a source knows of its lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from engine_support import Run, batch, compiled, ledgers_balance, pipeline
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import SpecError
from pipelines.contract.language.schema import FieldSpec
from pipelines.contract.spec import load_spec
from pipelines.engine.batch import Batch, Lines, parse_header
from pipelines.engine.bind import Binder, NodeFacts
from pipelines.engine.plan import compile_plan
from pipelines.engine.records import timestamps
from pipelines.engine.records.convert import Unfit, converter
from pipelines.engine.records.framing import RECORD_BYTES_MAX, frame_lines
from pipelines.engine.records.reader import Records, compile_records

NOW_US = 1_767_225_600_000_000


def read(
    schema: str,
    lines: Sequence[str],
    *,
    decode: str = "json",
    header: Sequence[str] = (),
    head: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Records:
    """Records straight from the plan, before any step."""
    text = pipeline(schema=schema, decode=decode, head=head)
    plan = compiled(text)
    framed = Lines(pa.array(lines, pa.string()), pa.array(range(len(lines)), pa.int64()))
    return plan.records["s"].read(Batch("s", 0, NOW_US, framed, "f", tuple(header), dict(facts or {})))


def values(records: Records, name: str = "x") -> list[Any]:
    """Of each record its value, or its reasons as a list."""
    column = records.columns[name].to_pylist()
    return [list(records.reasons[i]) if i in records.reasons else column[i] for i in range(records.count)]


def one(field: str, *raw: object) -> list[Any]:
    return values(read(f"  x: {{{field}}}", [json.dumps({"x": value}) for value in raw]))


def problem(schema: str, *, head: str = "", decode: str = "json") -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        compile_plan(load_spec(pipeline(schema=schema, head=head, decode=decode)))
    return caught.value.problems[0].path, caught.value.problems[0].message


# -- types


def test_decimals_are_exact_or_refused() -> None:
    found = one("type: decimal, precision: 6, scale: 2", 1.5, "12.30", -7, "1e2", 0.005, "12345.6", "x", True)
    assert [str(v) for v in found[:4]] == ["1.50", "12.30", "-7.00", "100.00"]
    assert found[4:] == [
        ['x: "0.005" has more than 2 digits after the point'],
        ['x: "12345.6" has more than 4 digits before the point'],
        ['x: "x" is not a decimal'],
        ['x: "true" is not a decimal'],
    ]
    assert str(one("type: decimal", "0.0001")[0]) == "0.0001"
    assert one("type: decimal, precision: 4, scale: 1, min: 1.5, max: 9", "1.4", "9.1") == [
        ["x: 1.4 is below the minimum 1.5"],
        ["x: 9.1 is above the maximum 9"],
    ]


def test_a_decimal_comma() -> None:
    found = one("type: double, decimal: ','", "21,5", "-3", "1.234,5", "1,2,3", "1.5", 2.5)
    assert found[:2] == [21.5, -3.0]
    assert all("thousands" in reason[0] for reason in found[2:4])
    assert found[4:] == [['x: "1.5" is not a double'], 2.5]
    assert [str(v) for v in one("type: decimal, scale: 2, decimal: ','", "21,5")] == ["21.50"]


def test_binary() -> None:
    assert one("type: binary", "aGk=", "aGk", "a b=", "") == [
        b"hi",
        ['x: "aGk" is not base64 text'],
        ['x: "a b=" is not base64 text'],
        b"",
    ]
    assert one("type: binary, encoding: hex", "00fF", "0", "zz") == [
        b"\x00\xff",
        ['x: "0" is not hex text'],
        ['x: "zz" is not hex text'],
    ]


def test_lists_and_structs() -> None:
    assert one("type: list, of: double", [1, 2.5], [], ["3"], [1, "x"], [1, None], 5, "[4]") == [
        [1.0, 2.5], [], [3.0], ['x[1]: "x" is not a double'], ["x[1]: missing"], ['x: "5" is not a list'], [4.0]
    ]  # fmt: skip
    assert one("type: list, of: {type: integer, nullable: true}", [1, None]) == [[1, None]]
    struct = "type: struct, fields: {a: integer, b: {type: timestamp, nullable: true}}"
    assert one(struct, {"a": 1, "b": "2026-01-01T00:00:00Z", "c": 9}, {"a": 1}, {"b": None}, {"a": 1, "b": "x"}, []) == [
        {"a": 1, "b": datetime(2026, 1, 1)},  # noqa: DTZ001  within the engine it is UTC
        {"a": 1, "b": None},
        ["x.a: missing"],
        ['x.b: "x" is not a timestamp'],
        ['x: "[]" is not an object'],
    ]


def test_lists_and_structs_reach_the_sink() -> None:
    schema = """
  l: {type: list, of: integer}
  s: {type: struct, fields: {a: string, t: timestamp}}
  b: {type: binary}
  d: {type: decimal}
"""
    run = Run(compiled(pipeline(schema=schema, body="steps:\n  - filter: s.a = 'k' and l[1] = 1")))
    run.feed(
        batch([json.dumps({"l": [i, 2], "s": {"a": "k", "t": "2026-01-01T00:00:00Z"}, "b": "aGk=", "d": 1.5}) for i in range(3)])
    )
    (found,) = run.rows()
    assert found["l"] == [1, 2]
    assert found["s"] == {"a": "k", "t": datetime(2026, 1, 1, tzinfo=UTC)}
    assert (found["b"], str(found["d"])) == (b"hi", "1.5000")


def test_a_code_table() -> None:
    assert one("type: string, map: {0: ok, 1: low_battery}", 0, "1", 2, 0.0, "ok") == [
        "ok", "low_battery", ['x: "2" is not one of 0, 1'], ['x: "0.0" is not one of 0, 1'], ['x: "ok" is not one of 0, 1']
    ]  # fmt: skip
    assert one("type: boolean, map: {on: true, off: false}", "on", "off") == [True, False]
    assert one("type: double, map: {lo: 1, hi: 2.5}, default: 1", "hi", None) == [2.5, 1.0]


def test_patterns_match_the_whole_text_in_linear_time() -> None:
    assert one("type: string, matches: '[A-Z]{2}[0-9]+'", "AB12", "xAB12", "AB12\n") == [
        "AB12", ["x: xAB12 does not match [A-Z]{2}[0-9]+"], ["x: AB12\n does not match [A-Z]{2}[0-9]+"]
    ]  # fmt: skip
    assert one("type: string, matches: 'a|b'", "a", "ab") == ["a", ["x: ab does not match a|b"]]
    assert len(one("type: string, matches: '(a+)+b'", "a" * 100_000)[0]) == 1


def test_limits_of_timestamps() -> None:
    assert one(
        "type: timestamp, min: 2020-01-01, max: 2030-01-01T00:00:00Z", "2019-12-31", "2030-01-01T01:00:00+01:00", "2030-01-02"
    )[::2] == [
        ["x: 2019-12-31 00:00:00 is below the minimum 2020-01-01"],
        ["x: 2030-01-02 00:00:00 is above the maximum 2030-01-01T00:00:00Z"],
    ]


# -- times


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-07-01 12:00:00", "2026-07-01T10:00:00"),
        ("2026-12-01 12:00:00", "2026-12-01T11:00:00"),
        ("2026-10-25 02:30:00", "2026-10-25T00:30:00"),  # twice: the first one
        ("2026-10-25 03:00:00", "2026-10-25T02:00:00"),
        ("2026-07-01T12:00:00Z", "2026-07-01T12:00:00"),
        ("2026-07-01T12:00:00-01:00", "2026-07-01T13:00:00"),
    ],
)
def test_local_times(text: str, utc: str) -> None:
    (found,) = one("type: timestamp, timezone: Europe/Paris", text)
    assert found.isoformat() == utc


def test_a_local_time_that_the_clocks_left_out_is_quarantined() -> None:
    for n in (1, 50):
        found = one("type: timestamp, timezone: Europe/Paris", *["2026-03-29 01:59:59", "2026-03-29 02:30:00"] * n)
        assert found[1::2] == [['x: "2026-03-29 02:30:00" does not exist in Europe/Paris: the clocks went forward']] * n
        assert found[0].isoformat() == "2026-03-29T00:59:59"


FORMATS = [
    "%d/%m/%Y %H:%M:%S",
    "%Y%m%d%H%M",
    "%d/%b/%Y:%H:%M:%S",
    "%d/%b/%Y:%H:%M:%S %z",
    "%b %d %H:%M:%S",
    "%Y-%j",
    "%I:%M %p %d.%m.%y",
    "%s",
]


@pytest.mark.parametrize(
    ("form", "text", "utc"),
    [
        ("%d/%b/%Y:%H:%M:%S %z", "10/Oct/2000:13:55:36 -0700", "2000-10-10T20:55:36+00:00"),
        ("%b %d %H:%M:%S", "Jun 14 15:16:01", "2025-06-14T15:16:01+00:00"),  # no year: before it was received
        ("%b %d %H:%M:%S", "Jan  1 02:00:00", "2026-01-01T02:00:00+00:00"),
        ("%Y-%j", "2024-366", "2024-12-31T00:00:00+00:00"),
        ("%I:%M %p %d.%m.%y", "12:30 am 01.02.26", "2026-02-01T00:30:00+00:00"),
        ("%A, %d %B %Y %T.%f", "Thursday, 01 January 2026 00:00:00.25", "2026-01-01T00:00:00.250000+00:00"),
    ],
)
def test_formats(form: str, text: str, utc: str) -> None:
    assert timestamps.as_text(timestamps.from_text(text, timestamps.compile_format(form), None, NOW_US)) == utc


@settings(max_examples=150)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from([None, "Europe/Paris"]),
    st.lists(st.datetimes(datetime(1950, 1, 1), datetime(2050, 1, 1)), min_size=1, max_size=4),  # noqa: DTZ001
    st.lists(
        st.sampled_from(
            ["", "x", "29/02/2025 00:00:00", "31/12/2025 24:00:00", "1/2/2026 1:2:3", "2026-366", "31/xxx/2025:00:00:00"]
        ),
        max_size=2,
    ),
)
@example("%d/%m/%Y %H:%M:%S", "Europe/Paris", [datetime(2026, 3, 29, 2, 30)], [])  # noqa: DTZ001
def test_columns_of_times_are_those_of_single_times(form: str, zone: str | None, moments: list[datetime], odd: list[str]) -> None:
    spec = {"type": "timestamp", "format": form} | ({"timezone": zone} if zone else {})
    made = converter(FieldSpec.model_validate(spec))
    texts = [moment.strftime(form.replace("%z", "+0200").replace("%s", "86400")) for moment in moments] + odd
    found, unfit = made.texts(pa.array(texts, pa.string()), NOW_US)
    for i, text in enumerate(texts):
        try:
            expected = made.value(text, NOW_US)
        except Unfit as why:
            assert unfit[i].why == why.why
        else:
            assert found[i].cast(pa.int64()).as_py() == expected, text


_WORDS = """
0 -0 1.5 +1 .5 5. 007 1e5 1e400 1e-400 inf nan 0x1F 1,5 1.234,5 true TRUE yes x [1] - 1_0 ٣ 2.5e-309
1767225600 1767225600.5 2026-01-01 2026-01-01T00:00:00Z 999999999999999999999999999999
"""
TEXTS = st.one_of(
    st.sampled_from([*_WORDS.split(), "", " ", "\t7"]), st.floats().map(str), st.integers().map(str), st.text(max_size=4)
)
SPECS = [
    *({"type": name} for name in ("boolean", "integer", "double", "decimal", "string", "timestamp", "binary")),
    *({"type": "timestamp", "unit": unit} for unit in ("s", "ms", "us", "ns")),
    {"type": "double", "decimal": ","},
    {"type": "decimal", "decimal": ","},
    {"type": "decimal", "precision": 5, "scale": 0},
    {"type": "timestamp", "timezone": "America/New_York"},
    {"type": "list", "of": "integer"},
    {"type": "string", "map": {"1": "a"}},
]


@settings(max_examples=200)
@given(st.sampled_from(SPECS), st.lists(st.one_of(st.none(), TEXTS), min_size=1, max_size=6))
def test_columns_of_text_are_those_of_single_texts(spec: dict[str, Any], texts: list[str | None]) -> None:
    columns_are_single_texts(spec, texts)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_odd_text_alone_and_beside_another(spec: dict[str, Any]) -> None:
    for text in [*_WORDS.split(), "", " ", "\t7"]:
        columns_are_single_texts(spec, [text])
        columns_are_single_texts(spec, [text, None, "1", text])


def columns_are_single_texts(spec: dict[str, Any], texts: list[str | None]) -> None:
    made = converter(FieldSpec.model_validate(spec))
    found, unfit = made.texts(pa.array(texts, pa.string()), NOW_US)
    assert found.type == made.type
    expected: list[Any] = []
    for i, text in enumerate(texts):
        try:
            expected.append(None if text is None else made.value(text, NOW_US))
        except Unfit as why:
            assert (unfit[i].why, unfit[i].text) == (why.why, why.text)
            expected.append(None)
    assert repr(found.to_pylist()) == repr(pa.array(expected, made.type).to_pylist())
    assert all(expected[i] is None for i in unfit)


# -- the row


def test_checks_over_the_row() -> None:
    schema = """
  low: {type: double, nullable: true}
  high: {type: double, check: high >= low}
  n: {type: integer, check: 10 % n >= 0}
"""
    found = read(
        schema,
        [
            '{"low": 1, "high": 2, "n": 1}',
            '{"low": 3, "high": 2, "n": 1}',
            '{"high": 2, "n": 1}',
            '{"low": 3, "high": 2, "n": 0}',
        ],
    )
    assert dict(found.reasons) == {
        1: ("check: high: high >= low",),
        3: ("check: high: high >= low", "the check fails on this record: n: 10 % n >= 0"),
    }
    assert found.fate is not None
    assert found.fate.to_pylist() == [0, 2, 0, 2]
    assert problem("  x: {type: double, check: x + 1}")[0] == "schema.x.check"
    assert problem("  x: {type: double, check: y > 1}")[1].startswith('column "y" is not in')


def test_all_reasons_at_once_fields_unknown_ones_and_checks() -> None:
    schema = (
        "  a: {type: double, max: 1}\n  b: {type: string, matches: x+}\n  c: {type: integer}\n  d: {type: double, check: a < 0}"
    )
    found = read(schema, ['{"a": 5, "b": "y", "c": "z", "zz": 1, "d": 1}'], head="unknown_fields: reject")
    assert found.reasons[0] == (
        "a: 5.0 is above the maximum 1",
        "b: y does not match x+",
        'c: "z" is not an integer',
        'unknown field "zz"',
        "check: d: a < 0",
    )


def test_reasons_never_show_what_is_sensitive() -> None:
    schema = "  x: {type: integer, sensitive: true, max: 5}\n  y: {type: string, sensitive: true, matches: a, nullable: true}"
    for text in (
        pipeline(schema=schema, body="steps:\n  - filter: x > 0\n  - drop: [x, y]"),
        pipeline(schema=schema, body="steps:\n  - redact: {x: drop, y: drop}"),
    ):
        try:
            binder = Binder(load_spec(text), {}, NodeFacts())
        except SpecError:
            continue
        plan = compile_records(binder, "s", binder.spec.sources["s"])
        assert plan is not None
        break
    lines = ['{"x": "secret1"}', '{"x": 77, "y": "secret2"}']
    found = plan.read(Batch("s", 0, NOW_US, Lines(pa.array(lines), pa.array([0, 1]))))
    assert found.reasons == {
        0: ("x: the value is not an integer",),
        1: ("x: the value is above the maximum 5", "y: the value does not match a"),
    }


def test_unknown_fields_are_kept_as_a_column_and_counted() -> None:
    text = pipeline(schema="  x: {type: integer}", head="unknown_fields: {keep: rest}")
    run = Run(compiled(text)).feed(batch(['{"x": 1}', '{"x": 2, "y": [1]}']))
    assert [r["rest"] for r in run.rows()] == [None, '{"y":[1]}']
    assert problem("  x: {type: integer}", head="unknown_fields: {keep: X}")[0] == "unknown_fields.keep"
    run = Run(compiled(pipeline(schema="  x: {type: integer}", head="unknown_fields: reject"))).feed(
        batch(['{"x": 1}', '{"x": 2, "y": 1, "z": 2}'])
    )
    assert run.reasons() == [['unknown field "y"', 'unknown field "z"']]
    ledgers_balance(run.state)


def test_arrays_to_rows_are_accounted() -> None:
    text = pipeline(schema="  x: {type: integer}\n  g: {type: string}", decode="{json: {rows: r, keep: [g]}}")
    run = Run(compiled(text)).feed(
        batch(['{"g": "a", "r": [{"x": 1}, {"x": "no"}, {"x": 3}]}', '{"g": "b", "r": []}', '{"g": "b"}', "junk"])
    )
    assert [(r["x"], r["g"]) for r in run.rows()] == [(1, "a"), (3, "a")]
    assert run.reasons() == [['x: "no" is not an integer'], ["there is no array at r"], ["not a JSON object"]]
    assert run.quarantine()[0]["raw"].startswith('{"g": "a"')
    assert (run.state.sources["s"]["read"], run.state.sources["s"]["undecodable"]) == (5, 2)
    ledgers_balance(run.state)


# -- what a source knows


def test_facts_of_a_source() -> None:
    schema = """
  topic: {type: string, from: meta.topic, nullable: true}
  machine: {type: string, from: meta.topic.machine, nullable: true}
  number: {type: integer, from: meta.topic.number, nullable: true}
  quality: {type: string, from: meta.quality, one_of: [good, bad]}
  old: {type: boolean, from: meta.retained}
  at: {type: timestamp, from: meta.received_at}
"""
    found = read(schema, ["{}", "{}"])
    assert found.columns["topic"].to_pylist() == [None, None]
    assert (found.columns["quality"].to_pylist(), found.columns["old"].to_pylist()) == (["good"] * 2, [False] * 2)
    facts = {
        "topic": "a/b",
        "topic.machine": pa.array(["m1", "m2"]),
        "topic.number": pa.array(["7", "x"]),
        "quality": "bad",
        "retained": True,
    }
    found = read(schema, ["{}", "{}"], facts=facts)
    assert found.columns["machine"].to_pylist() == ["m1", "m2"]
    assert values(found, "number") == [7, ['number: "x" is not an integer']]
    assert problem("  x: {type: string, from: meta.topik}")[1] == 'there is no meta.topik; did you mean "topic"?'


def test_facts_follow_the_records_of_a_message() -> None:
    schema = "  x: {type: integer}\n  k: {type: string, from: meta.key}"
    found = read(
        schema,
        ['{"r": [{"x": 1}, {"x": 2}]}', '{"r": [{"x": 3}]}'],
        decode="{json: {rows: r}}",
        facts={"key": pa.array(["a", "b"])},
    )
    assert found.columns["k"].to_pylist() == ["a", "a", "b"]


def test_facts_in_expressions() -> None:
    text = pipeline(schema="  x: {type: integer}", body="steps:\n  - derive:\n      m: meta.topic.machine\n      q: meta.quality")
    lines = frame_lines(b'{"x": 1}\n')
    run = Run(compiled(text)).feed(Batch("s", 0, NOW_US, lines, "f", (), {"topic.machine": "press"}))
    assert [(r["m"], r["q"]) for r in run.rows()] == [("press", "good")]


# -- CSV


CSV = "  a: {type: string, nullable: true}\n  b: {type: double, nullable: true}"


def test_headers_within_a_file_are_told() -> None:
    found = read(CSV, ["x,1", "a,b", "b,a", '"a","b"', "a,2"], decode="csv", header=("a", "b"))
    assert dict(found.reasons) == dict.fromkeys((1, 2, 3), ("a header within the file",))
    assert found.columns["a"].to_pylist()[4] == "a"


def test_a_header_that_lacks_or_doubles_a_column() -> None:
    found = read("  a: {type: string}\n  c: {type: string, nullable: true}", ["1,2"], decode="csv", header=("x", "b"))
    assert found.reasons[0] == ("a: missing",)
    found = read(CSV, ["1,2,3", "4,5,6"], decode="csv", header=("a", "b", "b"))
    assert dict(found.reasons) == dict.fromkeys((0, 1), ('the header has the column "b" twice',))
    assert problem(CSV.replace("a: {type: string, nullable: true}", "aa: {type: string}"), decode="{csv: {columns: [a, b]}}") == (
        "schema.aa",
        'the source "s" gives no "aa"; did you mean "a"?',
    )


def test_delimiters_and_quotes() -> None:
    assert values(read(CSV, ["x\t1"], decode='{csv: {delimiter: "\\t"}}', header=("a", "b")), "a") == ["x"]
    assert values(read(CSV, ["x\t1"], decode="{csv: {delimiter: tab}}", header=("a", "b")), "a") == ["x"]
    assert values(read(CSV, ['"x|1'], decode="{csv: {delimiter: '|', quote: none}}", header=("a", "b")), "a") == ['"x']
    assert values(read(CSV, ["'x|''y'|1"], decode="{csv: {delimiter: '|', quote: \"'\"}}", header=("a", "b")), "a") == ["x|'y"]
    assert values(read(CSV, ['"say ""hi""",1', '"open,1', 'a"b,1'], decode="csv", header=("a", "b")), "a") == [
        'say "hi"', ["not CSV: unexpected end of data"], 'a"b'
    ]  # fmt: skip
    assert parse_header(b"a\tb", "\t") == ("a", "b")


def test_unknown_columns_of_csv() -> None:
    kept = read(CSV, ["x,1,y,", "x,1,,"], decode="csv", header=("a", "b", "c", "d"), head="unknown_fields: {keep: rest}")
    assert kept.columns["rest"].to_pylist() == ['{"c":"y"}', None]
    rejected = read(CSV, ["x,1,y"], decode="csv", header=("a", "b", "c"), head="unknown_fields: reject")
    assert rejected.reasons == {0: ('unknown field "c"',)}


# -- bad input


def test_records_of_every_bad_kind_are_told_and_the_rest_flows() -> None:
    good = [json.dumps({"ts": NOW_US / 1e6, "k": "a", "v": i}) for i in range(40)]
    odd_stamps = ("1e400", "99999999999999999999", '"x"', "-1e20", "NaN", "true", "[1]", "{}")
    bad = [
        *(b"\xff\xfe", b'{"k": "\xc3"}', b"\0", b'{"k": "\0"}', b'{"k": "\\ud800"}', b"{" + b"[" * 100_000),
        *(b'{"ts": %s}' % stamp.encode() for stamp in odd_stamps),
        *(b'\xef\xbb\xbf{"ts": 1}', b"x" * (RECORD_BYTES_MAX + 1)),
    ]
    block = b"\r\n".join(line.encode() for line in good[:20]) + b"\n" + b"\n".join(bad) + b"\r\n" + "\n".join(good[20:]).encode()
    run = Run(compiled(pipeline())).feed(Batch("s", 0, NOW_US, frame_lines(block), "f"))
    assert [r["v"] for r in run.rows()] == list(range(40))
    assert len(run.quarantine()) == len(bad)
    assert all(len(reason) < 200 for reasons in run.reasons() for reason in reasons)
    ledgers_balance(run.state)


def test_long_values_are_read_and_shown_short() -> None:
    huge = "y" * 250_000
    found = one("type: string", huge, "a")
    assert found == [huge, "a"]
    assert len(one("type: double", huge)[0][0]) < 150


@settings(max_examples=60)
@given(
    st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b and b.strip(b"\r")), min_size=1, max_size=40),
    st.integers(1, 39),
)
def test_i14_any_bytes_in_any_split_give_the_same_records(lines: list[bytes], at: int) -> None:
    plan = compiled(pipeline())

    def feed(*parts: list[bytes]) -> Any:
        run = Run(plan)
        for part in parts:
            if part:
                run.feed(Batch("s", 0, NOW_US, frame_lines(b"\n".join(part), 7), "f"))
        ledgers_balance(run.state)
        return run.rows(), run.reasons(), run.state.sources

    wrapped = [b'{"ts": 1, "k": "' + line + b'"}' for line in lines]
    assert feed(wrapped) == feed(wrapped[:at], wrapped[at:])


# -- nonsense in the schema


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("type: list", "a list says what it holds"),
        ("type: struct", "a struct says its `fields:`"),
        ("type: double, of: string", "`of` is for lists"),
        ("type: string, precision: 3", "precision and scale are for decimal"),
        ("type: decimal, precision: 3, scale: 4", "the scale is above the precision"),
        ("type: decimal, min: x", "x is not of type decimal"),
        ("type: decimal, min: 2, max: 1", "the min is above the max"),
        ("type: timestamp, min: tomorrow", "tomorrow is not a timestamp"),
        ("type: timestamp, unit: ms, timezone: Europe/Paris", "has no time zone"),
        ("type: timestamp, unit: ms, format: '%Y-%m-%d'", "not both"),
        ("type: double, timezone: UTC", "timezone is for timestamps"),
        ("type: timestamp, timezone: Europe/Pari", 'there is no time zone "Europe/Pari"'),
        ("type: timestamp, format: '%Y-%m-%q'", '"%q" is no part of a format'),
        ("type: timestamp, format: '%Y-%m %Y'", '"%Y" stands twice'),
        ("type: timestamp, format: '%H:%M'", "has no date"),
        ("type: integer, decimal: ','", "`decimal` is for double and decimal"),
        ("type: integer, matches: x", "matches is for text"),
        ("type: string, matches: '(?=x)'", "not a regular expression"),
        ("type: string, encoding: hex", "encoding is for binary"),
        ("type: integer, min: 1e300", "min and max reach to 2^53"),
        ("type: string, map: {a: b}, one_of: [b]", "map says which values there are"),
        ("type: integer, map: {a: b}", '"b" is not of type integer'),
        ("type: binary, default: x", "has no default"),
        ("type: string, default: x, nullable: true", "never NULL"),
        ("type: struct, fields: {a: string, A: string}", "differ only in upper and lower case"),
    ],
)  # fmt: skip
def test_fields_that_make_no_sense_are_refused(field: str, message: str) -> None:
    path, said = problem(f"  x: {{{field}}}")
    assert path.startswith("schema.x")
    assert message in said


def test_decoders_that_make_no_sense_are_refused() -> None:
    for decode, message in [
        ("{csv: {columns: [a, a]}}", 'the column "a" stands twice'),
        ("{csv: {delimiter: ab}}", "the delimiter is one character"),
        ("{json: {keep: [a]}}", "`keep` copies into the records of `rows`"),
    ]:
        assert message in problem("  a: {type: string}", decode=decode)[1]
    assert problem("  a: {type: string}", decode="logfmt", head="unknown_fields: reject")[0] == "unknown_fields"


def test_once_a_field_is_sensitive_no_reason_shows_a_value() -> None:
    """Shifted columns bring the value of one field to another."""
    schema = "  badge: {type: string, sensitive: true}\n  door: {type: string, one_of: [north]}\n  n: {type: integer}"
    run = Run(compiled(pipeline("steps:\n  - drop: [badge]", schema=schema)))
    run.feed(batch(['{"badge": "x", "door": "777001", "n": "777001"}', '{"badge": "x", "door": "north", "n": 777001.5}']))
    assert run.quarantine()
    assert "777001" not in str(run.reasons())
