"""Bytes to records: every byte of the input ends in exactly one record, or in a line end."""

from __future__ import annotations

import json

import pytest
from engine_support import Run, batch, compiled, ledgers_balance, pipeline, row
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contract.language.sources import RECORD_BYTES_MAX
from pipelines.engine.batch import Batch, parse_header
from pipelines.engine.records.framing import frame_lines

CSV_SCHEMA = """
  a: {type: string, nullable: true}
  b: {type: double, nullable: true}
  c: {type: string, from: "c d", nullable: true}
"""


def csv_run(block: bytes, header: str = "a,b,c d", delimiter: str = ",") -> Run:
    text = pipeline(schema=CSV_SCHEMA, decode=f"{{csv: {{delimiter: {json.dumps(delimiter)}}}}}")
    lines = frame_lines(block, 100)
    return Run(compiled(text)).feed(Batch("s", 0, 0, lines, "f", parse_header(header.encode(), delimiter)))


def values(run: Run) -> list[tuple[object, ...]]:
    return [(r["a"], r["b"], r["c"]) for r in run.rows()]


def test_what_is_no_utf8_or_too_long_spoils_its_own_record_only() -> None:
    block = b"\n".join([row(0).encode(), b'{"k": "\xff"}', row(1).encode(), b"x" * (RECORD_BYTES_MAX + 1), row(2).encode()])
    run = Run(compiled(pipeline())).feed(Batch("s", 0, 0, frame_lines(block)))
    assert len(run.rows()) == 3
    assert run.reasons() == [
        ["not UTF-8 at byte 7"],
        [f"the record has more than {RECORD_BYTES_MAX} bytes"],
    ]
    assert run.quarantine()[0]["step"] == "undecodable"
    assert len(run.quarantine()[1]["raw"]) == 4096
    ledgers_balance(run.state)


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        '{"ts": 1',
        "[1]",
        '"text"',
        "12",
        "null",
        "true",
        '{"a": "\\ud800"}',
        "\0",
        '{"a":1}\0',
        '{"ts":1}{"ts":2}',
        "  ",
        "{'a': 1}",
    ],
)
def test_json_that_is_no_object_is_undecodable(text: str) -> None:
    run = Run(compiled(pipeline())).feed(batch([row(0), text, row(1)]))
    assert len(run.rows()) == 2
    assert run.reasons() == [["not a JSON object"]]
    assert run.quarantine()[0]["raw"] == text
    assert run.state.sources["s"]["undecodable"] == 1


def test_deep_and_wide_json_is_read_or_quarantined_never_fatal() -> None:
    deep = '{"k":' * 5000 + "1" + "}" * 5000
    twice = '{"ts": 1, "ts": 2, "k": "a"}'
    big = '{"ts": 1767225600, "k": 123456789012345678901234567890, "v": 1e400, "n": 99999999999999999999}'
    run = Run(compiled(pipeline())).feed(batch([row(0), deep, twice, big, row(1)]))
    assert run.state.sources["s"]["read"] == 5
    assert len(run.rows()) + len(run.quarantine()) == 5
    ledgers_balance(run.state)


def test_json_values_are_found_by_path_whatever_their_keys_look_like() -> None:
    schema = """
  t: {type: double, from: data.t}
  u: {type: double, from: data.u, nullable: true}
  low: {type: string, from: Name, nullable: true}
  up: {type: string, from: name, nullable: true}
  odd: {type: string, from: 'a b"c', nullable: true}
"""
    record = {"data": {"t": 1.5, "u": None}, "Name": "N", "name": "n", 'a b"c': "q"}
    run = Run(compiled(pipeline(schema=schema))).feed(batch([json.dumps(record), '{"data": 5}', '{"data": [1]}']))
    (found,) = run.rows()
    assert (found["t"], found["u"], found["low"], found["up"], found["odd"]) == (1.5, None, "N", "n", "q")
    assert run.reasons() == [["t: missing"], ["t: missing"]]


def test_csv_fields_with_quotes_delimiters_and_gaps() -> None:
    run = csv_run(b'x,1,y\n"a,b",2,"say ""hi"""\n,,\nc,3,"d"\n')
    assert values(run) == [("x", 1.0, "y"), ("a,b", 2.0, 'say "hi"'), (None, None, None), ("c", 3.0, "d")]


def test_csv_lines_that_do_not_fit_the_header_spoil_only_themselves() -> None:
    for quoted in (b"ok,1,z\n", b'"ok",1,z\n'):  # with and without a quote elsewhere in the batch (I14)
        run = csv_run(quoted + b"a,b\na,1,c,d\nlast,2,z\n")
        assert values(run) == [("ok", 1.0, "z"), ("last", 2.0, "z")]
        assert run.reasons() == [["2 fields, the header has 3"], ["4 fields, the header has 3"]]
    run = csv_run(b'a,1,"open\nb,2,c\n')
    assert run.reasons() == [["not CSV: unexpected end of data"]]
    assert values(run) == [("b", 2.0, "c")]


def test_a_carriage_return_within_a_line_means_the_same_beside_quotes() -> None:
    alone, beside = csv_run(b"a\rb,1,c\n"), csv_run(b'a\rb,1,c\n"q",2,r\n')
    assert values(alone) == values(beside)[:1] == [("a\rb", 1.0, "c")]


def test_csv_with_crlf_nul_and_another_delimiter() -> None:
    assert values(csv_run(b"a;1;c\r\nb\0;2;d\r\n", "a;b;c d\r\n", ";")) == [("a", 1.0, "c"), ("b\0", 2.0, "d")]
    assert values(csv_run(b"a|1|c\n", "a|b|c d", "|")) == [("a", 1.0, "c")]
    assert values(csv_run(b"a\t1\tc\n", "a\tb\tc d", "\t")) == [("a", 1.0, "c")]


def test_csv_headers() -> None:
    assert parse_header(b'\xef\xbb\xbfa, b ,"c d"\r\n', ",") == ("a", "b", "c d")
    assert parse_header(b"\n", ",") == ()
    missing = csv_run(b"1,2\n", header="x,b")
    assert values(missing) == [(None, 2.0, None)]


@given(st.lists(st.text(alphabet='ab,;"\r\x00 1é', max_size=12), min_size=1, max_size=6))
def test_i14_a_csv_line_means_the_same_alone_and_in_company(lines: list[str]) -> None:
    blocks = [line.encode() for line in lines]
    together = csv_run(b"\n".join(blocks))
    alone = [csv_run(block) for block in blocks]
    assert values(together) == [v for run in alone for v in values(run)]
    assert together.reasons() == [r for run in alone for r in run.reasons()]
