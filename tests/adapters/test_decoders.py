"""One acceptance suite for every decoder, through the engine as a pipeline uses it; then what is particular to each."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contract.errors import SpecError
from pipelines.contract.language.decoders import Decode, decode_short_form
from pipelines.contract.spec import load_spec
from pipelines.engine.batch import Batch, Lines
from pipelines.engine.decoders import check, text_decoder
from pipelines.engine.decoders.grok_patterns import PATTERNS
from pipelines.engine.decoders.keyvalue import KeyValueDecoder
from pipelines.engine.plan import Plan, check_spec, compile_plan
from pipelines.engine.records.framing import frame_lines
from pipelines.engine.run import run_batch
from pipelines.engine.state import State

ARRIVED = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
Row = tuple[str | None, float | None]
WORD = st.text(st.sampled_from("abcXYZ01"), min_size=1, max_size=6)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8)
NUMBER = st.integers(-(10**6), 10**6).map(lambda n: n / 8)


@dataclass(frozen=True)
class Case:
    """A decoder: how a row of (a, b) is written for it, which values of `a` it can carry, and what it must refuse."""

    decode: str
    write: Callable[[str, float], str]
    texts: st.SearchStrategy[str]
    bad: Sequence[str]
    header: tuple[str, ...] = ()
    names: tuple[str, str] = ("a", "b")
    fixed: dict[str, Any] = field(default_factory=dict)


def as_csv(a: str, b: float) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([a, b])
    return out.getvalue()


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


CASES = {
    "json": Case("json", lambda a, b: json.dumps({"a": a, "b": b}), TEXT, ["{", '{"a": 1', "a,1", "[1]"]),
    "csv": Case("csv", as_csv, TEXT.filter(bool), ["1", "1,2,3", '"1,2'], header=("a", "b")),
    "logfmt": Case("logfmt", lambda a, b: f"x=1 a={quoted(a)} b={b} flag", TEXT, ["plain text", "=1", 'a="1', 'a="1"2']),
    "logfmt, bare": Case("logfmt", lambda a, b: f"  b={b}\ta={a}", WORD, ["a", "= b=1"]),
    "keyvalue": Case("{keyvalue: {}}", lambda a, b: f"b={b};a={quoted(a)};", TEXT, ["a", "a=1;=2", 'a="1;b=2']),
    "keyvalue, spaced": Case(
        '{keyvalue: {pair: ", ", separator: ": "}}', lambda a, b: f"a:  {a} , b: {b}, ", WORD, ["a", "a: 1, : 2"]
    ),
    "keyvalue, long marks": Case('{keyvalue: {pair: "||", separator: "->"}}', lambda a, b: f"a->{a}||b -> {b}", WORD, ["a|b"]),
    "regex": Case(r"{regex: {pattern: '^(?P<b>\S+) (?P<a>.*)$'}}", lambda a, b: f"{b} {a}", TEXT, ["one", "two  "[:3]]),
    "grok": Case('{grok: {pattern: "^<%{NUMBER:b:float}> %{GREEDYDATA:a}$"}}', lambda a, b: f"<{b}> {a}", TEXT, ["<x> y", "1"]),
    "syslog 3164": Case(
        "syslog", lambda a, b: f"<34>Oct 11 22:14:15 h app[{b}]: {a}", WORD, ["Oct 11", "<999>Oct 11 22:14:15 h a: b"],
        names=("message", "procid"),
    ),
    "syslog 5424": Case(
        "{syslog: {format: rfc5424}}", lambda a, b: f'<34>1 2003-10-11T22:14:15.003Z h app {b} - [e@1 x="1"] {a}', WORD,
        ["Oct 11 22:14:15 h a: b", "<34>1 2003-10-11T22:14:15.003Z h app 1 - [e x"], names=("message", "procid"),
    ),
    "value": Case("value", lambda a, b: str(b), st.just(""), [], names=("other", "value")),
}  # fmt: skip


@cache
def plan_of(name: str) -> Plan:
    case = CASES[name]
    a, b = case.names
    return compile_plan(
        load_spec(f"""
tidewire: 1
pipeline: p
sources:
  s:
    file: {{path: x}}
    decode: {case.decode}
schema:
  a: {{type: string, from: {a}, nullable: true}}
  b: {{type: double, from: {b}, nullable: true}}
sinks:
  rows: {{lake: {{table: rows}}}}
""")
    )


def run(name: str, batches: Sequence[Lines]) -> tuple[list[Row], list[tuple[int, list[str]]]]:
    """Rows, and (position, reasons) of what was quarantined."""
    rows: list[Row] = []
    refused: list[tuple[int, list[str]]] = []
    state = State("lineage")
    for lines in batches:
        state, output = run_batch(plan_of(name), state, Batch("s", 0, ARRIVED, lines, "f", CASES[name].header))
        rows += [(r["a"], r["b"]) for table in output.rows.get("rows", []) for r in table.to_pylist()]
        refused += [(r["offset"], r["reasons"]) for table in output.quarantine for r in table.to_pylist()]
    counts = state.sources.get("s") or dict.fromkeys(("read", "accepted", "quarantined", "undecodable"), 0)
    assert counts["read"] == sum(map(len, batches)) == counts["accepted"] + counts["quarantined"] + counts["undecodable"]
    return rows, refused


def records(texts: Sequence[str]) -> Lines:
    return Lines(pa.array(texts, pa.string()), pa.array(range(len(texts)), pa.int64()))


def expected(name: str, a: str, b: float) -> Row:
    return (None if name == "value" else a, b)


every = pytest.mark.parametrize("name", CASES)


@every
@given(data=st.data())
@settings(max_examples=30)
def test_values_come_out_as_they_were_written(name: str, data: st.DataObject) -> None:
    made = data.draw(st.lists(st.tuples(CASES[name].texts, NUMBER), max_size=20))
    rows, refused = run(name, [records([CASES[name].write(a, b) for a, b in made])])
    assert (rows, refused) == ([expected(name, a, b) for a, b in made], [])


@every
def test_a_bad_record_spoils_itself_only(name: str) -> None:
    case, good = CASES[name], CASES[name].write("x", 1.5)
    texts = [text for bad in case.bad for text in (good, bad)] + [good]
    rows, refused = run(name, [records(texts)])
    assert rows == [expected(name, "x", 1.5)] * (len(case.bad) + 1)
    assert [at for at, _ in refused] == [2 * i + 1 for i in range(len(case.bad))]
    assert all(len(reasons) == 1 and reasons[0] for _, reasons in refused)


@every
@given(data=st.data())
@settings(max_examples=30)
def test_batches_do_not_matter_and_nothing_raises(name: str, data: st.DataObject) -> None:
    """I14: among anything at all, each record alone gives what it gives among the others."""
    case = CASES[name]
    whole = st.builds(case.write, case.texts, NUMBER)
    letters = st.text(st.sampled_from('ab=;:"\\ {}[],|<>-1\t\x00\x1d\ufeff\ud7ff\U0001f600'), max_size=20)
    spoilt = st.builds(lambda text, at: text[:at] + text[at + 1 :], whole, st.integers(0, 30))
    texts = data.draw(st.lists(st.one_of(whole, spoilt, letters, st.text(max_size=20).filter(encodable)), max_size=12))
    lines = records(texts)
    apart = [Lines(lines.text[i : i + 1], lines.offsets[i : i + 1]) for i in range(len(texts))]
    assert run(name, [lines]) == run(name, apart)


def encodable(text: str) -> bool:
    return not any(0xD800 <= ord(c) < 0xE000 for c in text)


@every
def test_what_framing_found_wrong_stays_wrong(name: str) -> None:
    good = CASES[name].write("x", 1.5).encode()
    block = b"\n".join([good, good + b"\xff", good, b"y" * 300_000])
    rows, refused = run(name, [frame_lines(block)])
    assert rows == [expected(name, "x", 1.5)] * 2
    assert [reasons for _, reasons in refused] == [
        [f"not UTF-8 at byte {len(good)}"],
        ["the record has more than 262144 bytes"],
    ]


@every
def test_nothing_in_gives_nothing(name: str) -> None:
    assert run(name, [records([])]) == ([], [])


# -- one text at a time


def decoded(decode: Any, text: str, *wanted: str, received_at_us: int | None = ARRIVED) -> dict[str, str | None] | str:
    """The values, those that are there; or why there are none."""
    decoder = text_decoder(Decode.model_validate(decode_short_form(decode)))
    assert decoder is not None
    names = wanted or decoder.names() or ()
    columns, bad = decoder.columns(records([text]), names, (), received_at_us)
    return bad.get(0) or {name: v for name in names if (v := columns[name][0].as_py()) is not None}


def test_null_texts_are_null_and_fine() -> None:
    for case in CASES.values():
        decoder = text_decoder(load_decode(case.decode))
        if decoder is not None:
            good = case.write("x", 1.5)
            columns, bad = decoder.columns(Lines(pa.array([None, good, None]), pa.nulls(3, pa.int64())), case.names, ())
            assert bad == {}
            assert all(column[0].as_py() is None and column[2].as_py() is None for column in columns.values())


def load_decode(text: str) -> Decode:
    spec = load_spec(
        f"{{tidewire: 1, pipeline: p, sources: {{s: {{file: {{path: x}}, decode: {text}}}}}, schema: {{a: {{type: string}}}}}}"
    )
    return spec.sources["s"].decode


# -- logfmt and keyvalue


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=1 b=2", {"a": "1", "b": "2"}),
        ('  a="x y"\tb=', {"a": "x y", "b": ""}),
        ("a=1 a=2", {"a": "2"}),
        ("a b=1", {"a": "true", "b": "1"}),
        ('a="q\\"\\n\\u00e9\\ud800"', {"a": 'q"\né\ufffd'}),
        ('a=x"y b=x=y', {"a": 'x"y', "b": "x=y"}),
        ('a="" b="="', {"a": "", "b": "="}),
        ("nothing here", 'there is no "=" in it, so no value'),
        ("=1", "a value without a name"),
        ('a="1', "a quoted value does not end"),
        ('a="1"2', "text right behind a quoted value"),
    ],
)
def test_logfmt(text: str, values: object) -> None:
    assert decoded("logfmt", text, "a", "b") == values


PIECES = st.sampled_from(
    ["a", "b", "=", "=", " ", ";", '"', '"', "\\", "x", '="', "\t", "\x1d", '" ', '";', "a=1", 'b="x y"', "é"]
)


@pytest.mark.parametrize(
    ("pair", "separator"), [("", "="), (";", "="), (";", ":="), (", ", ":"), (" |", "="), ("-", "]"), ("^", "\\")]
)
@given(st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=6))
@settings(max_examples=60)
def test_pairs_of_whole_columns_are_those_of_one_text(pair: str, separator: str, texts: list[str]) -> None:
    texts = [text.replace("=", separator).replace(";", pair or ";") for text in texts]
    decoder = KeyValueDecoder(pair, separator)
    columns, bad = decoder.columns(records(texts), ["a", "b"])
    for i, text in enumerate(texts):
        found, why = decoder.parse(text)
        assert bad.get(i, "") == why, text
        if not why:
            assert {name: columns[name][i].as_py() for name in ("a", "b")} == {name: found.get(name) for name in ("a", "b")}


# -- regex and grok


def test_a_pattern_is_searched_for_and_groups_that_took_no_part_are_absent() -> None:
    pattern = r"t=(?P<t>-?\d+)(?: u=(?P<u>\w+))?(?: (?P<rest>.*))?"
    assert decoded({"regex": {"pattern": pattern}}, "xx t=21 u=C and more") == {"t": "21", "u": "C", "rest": "and more"}
    assert decoded({"regex": {"pattern": pattern}}, "t=21") == {"t": "21", "rest": ""}
    assert decoded({"regex": {"pattern": pattern}}, "t=x") == "does not match the pattern"
    either = r"(?:t=(?P<v>\d+)|h=(?P<v>\d+))(x|\(|[)(\]])(?<w>.)"
    assert decoded({"regex": {"pattern": either}}, "h=7)!") == {"v": "7", "w": "!"}
    assert decoded({"regex": {"pattern": either}}, "t=7x!", "w", "none") == {"w": "!"}


def test_a_pattern_that_would_backtrack_for_ever_does_not() -> None:
    started = time.process_time()
    assert decoded({"regex": {"pattern": "^(?P<x>(a+)+)$"}}, "a" * 5000 + "b") == "does not match the pattern"
    assert time.process_time() - started < 5  # a backtracking engine needs longer than the age of the universe


@pytest.mark.parametrize(
    ("decode", "path", "message", "hint"),
    [
        ({"regex": {"pattern": "(?P<a>x"}}, "regex.pattern", "missing )", "re2"),
        ({"regex": {"pattern": r"(?P<a>x)(?=y)"}}, "regex.pattern", "not a pattern of RE2", "no look-around"),
        ({"regex": {"pattern": r"(?P<a>x)\1"}}, "regex.pattern", "not a pattern of RE2", "back-references"),
        ({"regex": {"pattern": r"(?P<a>x){1001}"}}, "regex.pattern", "too large", "1000"),
        ({"regex": {"pattern": r"((x{100}){100}){100}(?P<a>x)"}}, "regex.pattern", "too large", "1000"),
        ({"regex": {"pattern": r"\d+(x)"}}, "regex.pattern", "names nothing", "(?P<level>"),
        ({"regex": {"pattern": r"(?P<a-b>x)"}}, "regex.pattern", '"a-b" cannot be a name', "letters"),
        ({"grok": {"pattern": "%{NUMBR:n}"}}, "grok.pattern", 'no grok pattern NUMBR; did you mean "NUMBER"?', "patterns:"),
        ({"grok": {"pattern": "%{NUMBER}"}}, "grok.pattern", "names nothing", "%{WORD:level}"),
        ({"grok": {"pattern": "%{A:x}", "patterns": {"A": "%{B}", "B": "%{A}"}}}, "grok.patterns.B", "contains itself", ""),
        ({"grok": {"pattern": "%{A:x}", "patterns": {"A": "%{WORDS}"}}}, "grok.patterns.A", "no grok pattern WORDS", ""),
        ({"grok": {"pattern": "%{A:x}", "patterns": {"A": "("}}}, "grok.pattern", "missing )", ""),
    ],
)
def test_patterns_are_checked_before_they_ship(decode: Any, path: str, message: str, hint: str) -> None:
    ((found_path, found, found_hint),) = check(Decode.model_validate(decode))
    assert found_path == path
    assert message in found
    assert hint in found_hint
    text = json.dumps(
        {
            "tidewire": 1,
            "pipeline": "p",
            "sources": {"s": {"file": {"path": "x"}, "decode": decode}},
            "schema": {"a": {"type": "string"}},
            "sinks": {"r": {"lake": {"table": "r"}}},
        }
    )
    with pytest.raises(SpecError) as caught:
        check_spec(load_spec(text))
    assert (f"sources.s.decode.{path}", found) in [(p.path, p.message) for p in caught.value.problems]


def test_patterns_that_grow_without_bounds_are_refused() -> None:
    own = {f"P{i}": f"%{{P{i + 1}}}%{{P{i + 1}}}" for i in range(30)} | {"P30": "x"}
    started = time.process_time()
    ((_, message, _),) = check(Decode.model_validate({"grok": {"pattern": "%{P0:x}", "patterns": own}}))
    assert "grows over" in message
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_of_the_library_compiles(name: str) -> None:
    assert list(check(Decode.model_validate({"grok": {"pattern": f"%{{{name}:x}}"}}))) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("NUMBER", "t -12.5C", "-12.5"), ("INT", "x+7", "+7"), ("WORD", "  wörd two", "w"), ("QS", r'x "a \" b" y', r'"a \" b"'),
        ("UUID", "id=6ba7b810-9dad-11d1-80b4-00c04fd430c8;", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ("MAC", "at 00:1B:44:11:3A:B7", "00:1B:44:11:3A:B7"), ("MAC", "at 001b.4411.3ab7", "001b.4411.3ab7"),
        ("IP", "from 10.250.11.85:50010", "10.250.11.85"), ("IP", "1.2.3.256", None), ("IP", "[2001:db8::1]", "2001:db8::1"),
        ("IPV6", "::1", "::1"), ("IPV6", "x ::ffff:10.0.0.1", "::ffff:10.0.0.1"), ("IPV6", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ("IPV6", "10:20:30", None), ("HOSTPORT", "a.example.com:8080/", "a.example.com:8080"),
        ("EMAILADDRESS", "<ann.b@mail.example.com>", "ann.b@mail.example.com"),
        ("PATH", "open /var/log/a.log now", "/var/log/a.log"), ("PATH", r"open C:\logs\a.log now", r"C:\logs\a.log"),
        ("URI", "GET https://u@h.example:8/p/a?q=1&r=2 x", "https://u@h.example:8/p/a?q=1&r=2"),
        ("TIMESTAMP_ISO8601", "at 2026-01-31T06:00:00.123+02:00 x", "2026-01-31T06:00:00.123+02:00"),
        ("TIMESTAMP_ISO8601", "2026-01-31 06:00:00,123 x", "2026-01-31 06:00:00,123"), ("DATE_EU", "on 31.01.2026", "31.01.2026"),
        ("HTTPDATE", "[06/Nov/2014:19:10:38 +0600]", "06/Nov/2014:19:10:38 +0600"),
        ("SYSLOGTIMESTAMP", "<3>Oct  1 22:14:15 h", "Oct  1 22:14:15"),
        ("LOGLEVEL", "a WARN b", "WARN"), ("LOGLEVEL", "Error", "Error"),
        ("JAVACLASS", "(org.example.Foo$Bar.run)", "org.example.Foo$Bar.run"), ("MONTH", "September", "September"),
    ],
)  # fmt: skip
def test_the_library_finds_what_it_says(name: str, text: str, found: str | None) -> None:
    values = decoded({"grok": {"pattern": f"%{{{name}:x}}"}}, text)
    assert values == ({"x": found} if found is not None else "does not match the pattern")


def test_an_access_log() -> None:
    line = (
        '66.249.65.159 - ann [06/Nov/2014:19:10:38 +0600] "GET /news/53f8d72.html?x=1 HTTP/1.1" 404 177 "-" '
        '"Mozilla/5.0 (iPhone; CPU \\"x\\")"'
    )
    assert decoded({"grok": {"pattern": "^%{COMBINEDAPACHELOG}$"}}, line) == {
        "clientip": "66.249.65.159",
        "ident": "-",
        "auth": "ann",
        "timestamp": "06/Nov/2014:19:10:38 +0600",
        "verb": "GET",
        "request": "/news/53f8d72.html?x=1",
        "httpversion": "1.1",
        "response": "404",
        "bytes": "177",
        "referrer": '"-"',
        "agent": '"Mozilla/5.0 (iPhone; CPU \\"x\\")"',
    }


def test_own_patterns_types_and_ecs_names() -> None:
    grok = {"pattern": "%{LEVEL:[log][level]} %{INT:process.pid:int}", "patterns": {"LEVEL": "[A-Z]+"}}
    assert decoded({"grok": grok}, "INFO 77") == {"log_level": "INFO", "process_pid": "77"}


# -- syslog


OLD = {"host": "h", "message": "m"}
PRIORITY = {"facility": "auth", "severity": "crit", "facility_code": "4", "severity_code": "2"}


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("<34>Oct 11 22:14:15 h su: m", {**OLD, **PRIORITY, "timestamp": "2025-10-11 22:14:15", "app": "su"}),
        (
            "Jun  4 05:06:07.5 h sshd(pam_unix)[19939]: m; user: unknown",
            {
                "host": "h",
                "timestamp": "2025-06-04 05:06:07.5",
                "app": "sshd(pam_unix)",
                "procid": "19939",
                "message": "m; user: unknown",
            },
        ),
        (
            "<34>2026-02-05T17:32:18.123+01:00 h app[1]: m",
            {**OLD, **PRIORITY, "procid": "1", "timestamp": "2026-02-05T17:32:18.123+01:00", "app": "app"},
        ),
        (
            "Feb 5 2024 17:32:18 h : %ASA-6-302013: m",
            {**OLD, "timestamp": "2024-02-05 17:32:18", "message": ": %ASA-6-302013: m"},
        ),
        ("Feb 5 2024 17:32:18 h %ASA-6-302013: m", {**OLD, "timestamp": "2024-02-05 17:32:18", "app": "%ASA-6-302013"}),
        ("Feb  5 17:32:18 h out of memory: m", {**OLD, "timestamp": "2025-02-05 17:32:18", "message": "out of memory: m"}),
        ("Jan 20 00:00:00 h  -- root: m", {**OLD, "timestamp": "2026-01-20 00:00:00", "app": "-- root"}),
        ("Feb 20 00:00:00 h a:", {"host": "h", "timestamp": "2025-02-20 00:00:00", "app": "a", "message": ""}),
        (
            '<34>1 2003-10-11T22:14:15.003Z h.example.com log - ID47 [a@1 iut="3" t="x\\"\\]\\\\"][b@2] ' + "\ufeffm",
            {
                **PRIORITY,
                "host": "h.example.com",
                "timestamp": "2003-10-11T22:14:15.003Z",
                "app": "log",
                "msgid": "ID47",
                "message": "m",
                "structured_data": '{"a@1": {"iut": "3", "t": "x\\"]\\\\"}, "b@2": {}}',
            },
        ),
        ("1 - - - - - -", {"message": ""}),
        ("<192>Oct 11 22:14:15 h a: b", "the priority 192 is more than 191"),
        ("Octember 11 22:14:15 h a: b", "no syslog line of RFC 3164"),
        ("<34>1 2003-10-11T22:14:15.003Z h", "no syslog line of RFC 5424"),
        ("hello", "no syslog line of RFC 3164"),
    ],
)
def test_syslog(line: str, values: object) -> None:
    assert decoded("syslog", line) == values


@pytest.mark.parametrize(
    ("received", "stamp", "year"),
    [
        ("2026-01-01", "Dec 31 23:59:59", 2025), ("2026-01-01", "Jan 31 23:59:59", 2026), ("2026-01-01", "Feb  2 00:00:01", 2025),
        ("2026-12-20", "Jan  5 00:00:00", 2027), ("2026-12-20", "Jan 21 00:00:00", 2026), ("2026-06-15", "Jun 15 12:00:00", 2026),
    ],
)  # fmt: skip
def test_the_year_of_a_stamp_without_one(received: str, stamp: str, year: int) -> None:
    arrived = int(pa.scalar(received).cast(pa.timestamp("us")).value)
    values = decoded("syslog", f"{stamp} h a: b", "timestamp", received_at_us=arrived)
    assert isinstance(values, dict)
    assert (values["timestamp"] or "").startswith(f"{year}-")
    assert decoded({"syslog": {"year": 2005}}, f"{stamp} h a: b", "timestamp")["timestamp"][:5] == "2005-"  # type: ignore[index]


# -- validate


def test_a_name_that_no_decoder_gives_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        check_spec(
            load_spec("""
tidewire: 1
pipeline: p
sources:
  s:
    file: {path: x}
    decode: syslog
schema:
  hst: {type: string}
sinks:
  rows: {lake: {table: rows}}
""")
        )
    assert 'did you mean "host"?' in str(caught.value)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ("{keyvalue: {pair: '=', separator: '='}}", "cannot be told apart"),
        ("{keyvalue: {pair: ' ', separator: ' '}}", "is blank"),
        ("{keyvalue: {pair: '\"'}}", "double quote"),
        ("regex", '"pattern" is missing'),
        ("grok", '"pattern" is missing'),
        ("{syslog: {format: rfc1}}", "rfc3164"),
        ("{json: {}, csv: {}}", "exactly one"),
        ("jsn", 'unknown key "jsn"'),
    ],
)
def test_settings_that_cannot_be(settings_: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_decode(settings_)
    assert message in str(caught.value)


def test_the_docs_list_the_whole_library() -> None:
    page = (Path(__file__).parents[2] / "docs" / "language" / "sources.md").read_text()
    library = page[page.index("The library has the usual names") : page.index("Those that name values themselves")]
    assert set(re.findall(r"`([A-Z0-9_]+)`", library)) == set(PATTERNS)
