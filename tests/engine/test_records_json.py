"""JSON lines: the readers that take whole blocks give exactly what one value at a time gives, or leave it to that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.contract.language.schema import FieldSpec
from pipelines.engine.records import json_reader as json_records
from pipelines.engine.records.convert import converter
from pipelines.engine.records.json_reader import JsonField, JsonReader, parse_path
from pipelines.engine.records.json_text import DEPTH_MAX
from pipelines.engine.records.spans import Spans
from pipelines.engine.records.table_read import TableRead, merge

NOW_US = 1_767_225_600_000_000


def reader(
    fields: dict[str, dict[str, Any]], rows: str | None = None, keep: tuple[str, ...] = (), unknown: str = "ignore"
) -> JsonReader:
    made = [
        JsonField(parse_path(spec.pop("from", name)), converter(FieldSpec.model_validate(spec)))
        for name, spec in ((name, dict(spec)) for name, spec in fields.items())
    ]
    return JsonReader(made, parse_path(rows) if rows else None, keep, unknown)


def plain(found: TableRead) -> Any:
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in found.columns]
    unfit = {row: {i: (w.why, w.text, w.at) for i, w in whys.items()} for row, whys in found.unfit.items()}
    line = None if found.line is None else found.line.to_pylist()
    values = [[repr(value) for value in column.to_pylist()] for column in columns]
    types = [column.type for column in found.columns]
    return values, types, found.count, line, unfit, dict(found.undecodable), {k: list(v) for k, v in found.unknown.items()}


def one_by_one(made: JsonReader, lines: list[str], bad: dict[int, str] | None = None) -> TableRead:
    texts = pa.array(lines, pa.string())
    return merge([made._one_by_one(texts, None, bad or {}, NOW_US)], made.types, len(lines), many=made._rows is not None)


def apart(lines: list[str]) -> Spans:
    """The lines in a block in which other bytes lie between them, as in a file."""
    starts, block = [], b"#, "
    for line in lines:
        starts.append(len(block))
        block += line.encode() + b',"\r\n'
    lengths = np.array([len(line.encode()) for line in lines], np.int64)
    return Spans(np.frombuffer(block, np.uint8), np.array(starts, np.int64), np.array(starts, np.int64) + lengths)


def agree(made: JsonReader, lines: list[str]) -> None:
    texts = pa.array(lines, pa.string())
    expected = plain(one_by_one(made, lines))
    assert plain(made.read(Spans.of(texts), {}, NOW_US)) == expected
    assert plain(made.read(apart(lines), {}, NOW_US)) == expected
    general = list(made._general(texts, None, NOW_US))
    assert plain(merge(general, made.types, len(lines), many=made._rows is not None)) == expected


@pytest.fixture(autouse=True, scope="module")
def _blocks_of_two_lines() -> Iterator[None]:
    before, json_records.BLOCK_ROWS_MIN = json_records.BLOCK_ROWS_MIN, 2
    yield
    json_records.BLOCK_ROWS_MIN = before


ALL_TYPES = {
    "b": {"type": "boolean", "nullable": True},
    "i": {"type": "integer"},
    "d": {"type": "double"},
    "c": {"type": "decimal", "precision": 8, "scale": 2},
    "c18": {"type": "decimal"},
    "s": {"type": "string"},
    "t": {"type": "timestamp"},
    "u": {"type": "timestamp", "unit": "s"},
    "n": {"type": "timestamp", "unit": "ns"},
    "l": {"type": "timestamp", "timezone": "Europe/Paris"},
    "f": {"type": "timestamp", "format": "%d/%m/%Y %H:%M:%S"},
    "m": {"type": "string", "map": {"0": "ok", "1": "low", "true": "yes"}},
    "x": {"type": "double", "from": "data.x"},
    "e": {"type": "double", "from": "values[1]"},
    "a": {"type": "list", "of": "double"},
}

_NUMBERS = """
0 -0 1 -5 1.0 1.5 1e3 1E400 -1e400 1e-400 1e-309 007 1. .5 +1 0x1F NaN Infinity Inf -Infinity -NaN -Inf nan -
9223372036854775807 9223372036854775808 1180591620717411303424 9007199254740993 0.30000000000000004 123456.78 123456.789
2.225073858507203e-309 1735957552.24186251 1767225600 1767225600.25 1767225600.1234565 1767225600.1234575 1767225601.1234585
1767225603.1234555 1767225600123456789 99999999999 253402300799 253402300800 -62135596800 -62135596801
"""
_TIMES = """
2026-01-01T00:00:00Z|2026-01-01 00:00:00|2026-01-01|2026-02-30|2026-01-01T10|2026-01-01T10:00:00.1234567|0000-01-01|infinity
0001-01-01T00:00:00+01:00|9999-12-31T23:59:59.999999|9999-12-31T23:59:59-01:00|2026-01-01T24:00:00|2026-01-01T23:59:60Z
2026-10-25 02:30:00|2026-03-29 02:30:00|2026-01-01T00:00:00+02:00|2026-01-01T00:00:00 +02:00|2026-01-01T00:00:00+24:00
31/12/2025 23:59:59|29/02/2025 00:00:00|1/2/2026 1:2:3
"""
_WORDS = r"""
x true 1 1.5 +4 NaN inf é a,b q\"q \u00e9 \ud83d\ude00 \ud800 \udc00 \n \x \u0000 0 -0 0x1F a\\ yes 1e400 1e-309 ٣ 1_0
"""
EACH_NUMBER = [*_NUMBERS.split(), "1" * 400]
EACH_TEXT = [*_WORDS.split(), *_TIMES.strip().replace("\n", "|").split("|"), "", " 2 ", ', \\"', "a, ", "\t", "\x01", "\x7f"]
NUMBERS, TEXTS = st.sampled_from(EACH_NUMBER), st.sampled_from(EACH_TEXT)
SCALARS = st.one_of(NUMBERS, TEXTS.map(lambda text: f'"{text}"'), st.sampled_from(["null", "true", "false", "tru", ""]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]"),
        st.lists(st.tuples(st.sampled_from("abxst"), inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f'"{k}": {v}' for k, v in pairs) + "}"
        ),
    ),
    max_leaves=4,
)
KEYS = st.sampled_from([*ALL_TYPES, "data", "values", "zz", "S", ""])
GOOD = {
    "b": "true",
    "i": "5",
    "d": "1.5",
    "c": "12.50",
    "s": '"text"',
    "t": '"2026-01-01T00:00:00Z"',
    "u": "1767225600",
    "n": "1767225600000000000",
    "l": '"2026-07-01 12:00:00"',
    "f": '"31/12/2025 23:59:59"',
    "m": "1",
    "data": '{"x": 1.5}',
    "values": "[1, 2.5, 3]",
    "a": "[1.5, 2]",
}


def line_of(members: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{k}": {v}' for k, v in members.items()) + "}"


_ODD_LINES = r"""
{}
[]
null
{
}
{"i": 1}{"i": 2}
{"i": 1} {"i": 2}
{"i": 1, "i": 2}
{"zz": 1, "zz": 2}
{"data": {"x": 1}, "data": {"x": 2}}
{"data": {"x": 1, "x": 2}}
{"zz": NaN}
{"zz": Inf}
{"zz": "NaN", "y": -Inf}
{"zz": "\ud800"}
{"i": 1,}
{"i": 1}//
{"s": "a}
{"s": "}
{"zz": {"a": }
{","b":1}
{"s":"x}
{"i": 1}}
{'i': 1}
{"data": 5}
{"data": [1]}
{"i" 1}
{"\u0069": 3}
{"s": "😀"}
"""
_DEEP = ['{"zz":' + "[" * depth + "]" * depth + "}" for depth in (DEPTH_MAX - 1, DEPTH_MAX, DEPTH_MAX + 50)]
_BYTES = ["", "x", "\0", '{"i":1}\0', '{"i": 1\n, "d": 2}', ' {"i": 1}', '{"i": 1} ']
EACH_ODD_LINE = [*_ODD_LINES.strip().split("\n"), *_DEEP, *_BYTES]
ODD_LINES = st.sampled_from(EACH_ODD_LINE)


@st.composite
def blocks(draw: st.DrawFn, names: list[str]) -> list[str]:
    """Clean lines of one shape, with some lines that differ in a value, a key, their order or altogether."""
    shape = {k: v for k, v in GOOD.items() if k in names}
    lines = []
    for _ in range(draw(st.integers(2, 12))):
        kind = draw(st.integers(0, 5))
        members = dict(shape)
        if kind == 0:
            lines.append(draw(ODD_LINES))
            continue
        if kind == 1 and members:
            members[draw(st.sampled_from(list(members)))] = draw(VALUES)
        if kind == 2:
            members[draw(KEYS)] = draw(VALUES)
        if kind == 3 and members:
            del members[draw(st.sampled_from(list(members)))]
        lines.append(line_of(members) if kind < 5 else line_of(members).replace(" ", ""))
    return lines


FLAT = ("b", "i", "d", "c", "s", "t", "u", "m")


@settings(max_examples=200)
@given(blocks(list(FLAT)), st.sampled_from(["ignore", "reject", "keep"]))
@example(['{"i": 1}', '{"s": "a, \\"b"}'], "ignore")
@example(['{"s": "a, "}', '{"s": "b, "}'], "ignore")
def test_flat_lines(lines: list[str], unknown: str) -> None:
    agree(reader({name: ALL_TYPES[name] for name in FLAT}, unknown=unknown), lines)


@settings(max_examples=200)
@given(blocks(["i", "n", "l", "f", "data", "values", "a"]), st.sampled_from(["ignore", "reject", "keep"]))
def test_nested_lines_and_times(lines: list[str], unknown: str) -> None:
    agree(reader({name: ALL_TYPES[name] for name in ("i", "n", "l", "f", "x", "e", "a")}, unknown=unknown), lines)


_OTHERS = ["null", "true", "[1, null]", "[1.5]", '{"a": 1}', "[[1]]", "[]", "{}", "[{}]"]


@pytest.mark.parametrize("name", ALL_TYPES)
def test_every_odd_value_beside_a_good_one_and_beside_itself(name: str) -> None:
    """So that no guard of a reader is left to chance."""
    made = reader({"v": {**ALL_TYPES[name], "from": "v"}, "i": {"type": "integer", "nullable": True}})
    good = GOOD.get(name, "1.5")
    for value in [*EACH_NUMBER, *(f'"{text}"' for text in EACH_TEXT), *_OTHERS]:
        odd = f'{{"v": {value}, "i": 1}}'
        agree(made, [odd, odd])
        agree(made, [f'{{"v": {good}, "i": 1}}', odd, odd])


@pytest.mark.parametrize("unknown", ["ignore", "keep"])
def test_every_odd_line_beside_a_good_one_and_beside_itself(unknown: str) -> None:
    made = reader({"i": ALL_TYPES["i"], "d": ALL_TYPES["d"], "s": ALL_TYPES["s"], "x": ALL_TYPES["x"]}, unknown=unknown)
    for odd in EACH_ODD_LINE:
        agree(made, [odd, odd])
        agree(made, ['{"i": 1, "s": "a"}', odd, '{"i": 2, "s": "b"}'])


@pytest.mark.parametrize(
    "lines",
    [
        ['{"i":', "1}", '{"i": 1}{"i": 2}'],  # as many objects as lines
        ['{"i": 1', ', "d": 2}', '{"i": 1}{"i": 2}'],
        ['{"s": "a", "i": 1}', '{"s": "b, ", "i": 2}', '{"s": "c", "i": 3}'],  # a separator within a value
        ['{"s": "a, ", "i": 1}', '{"s": "b", "i": 2}', '{"s": "c, ", "i": 3}'],
        ['{"data": {"x": 1}, "i": 1}', '{"data": {"x": 2}, "i": 2}', '{"data": null, "i": 2}'],
        ['{"data": 5, "i": 1}', '{"data": 6, "i": 2}'],
        ['{"i": 1, "s": {"a": 1}}', '{"i": 2, "s": {"a": 2}}'],
        ['{"data": {"x": 1}, "data": {"y": 2}}', '{"data": {"x": 3}, "data": {"y": 4}}'],
        ['{"s": {}, "s": "a"}', '{"s": {}, "s": "b"}'],
        ['{"i": 1, "s": []}', '{"i": 2, "s": []}'],
        ['{"i": 1, "zz": {}, "s": "a"}', '{"i": 2, "zz": {}, "s": "b"}'],
    ],
)
def test_traps(lines: list[str]) -> None:
    for names in (("i", "d", "s", "x"), ("i",), ("s", "x")):
        agree(reader({name: {**ALL_TYPES[name], "nullable": True} for name in names}), lines)


@settings(max_examples=200)
@given(st.sampled_from(list(ALL_TYPES)), st.lists(VALUES, min_size=2, max_size=8))
def test_each_type_alone(name: str, values: list[str]) -> None:
    agree(reader({"v": {**ALL_TYPES[name], "from": "v"}}), [f'{{"v": {value}}}' for value in values])


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.one_of(VALUES, st.just(line_of({"d": "1.5", "s": '"a"'}))), max_size=4), min_size=2, max_size=6),
    ODD_LINES,
)
def test_arrays_to_rows(messages: list[list[str]], odd: str) -> None:
    made = reader({"d": {"type": "double"}, "g": {"type": "string"}, "value": {"type": "string"}}, "data.r", ("g", "d"))
    lines = [f'{{"g": "gw", "d": {i}, "data": {{"r": [{", ".join(each)}]}}}}' for i, each in enumerate(messages)]
    agree(made, [*lines, odd])


@settings(max_examples=250)
@given(st.data())
def test_lines_of_one_shape_with_some_characters_changed(data: st.DataObject) -> None:
    """What proves a whole block must see every single character: moved, lost, doubled or of another kind."""
    rows = data.draw(
        st.lists(st.tuples(NUMBERS, st.sampled_from(["a", "b,c", "", "é", '\\"']), st.booleans()), min_size=2, max_size=5)
    )
    block = "".join(f'{{"d": {d}, "s": "{s}", "o": {{"z": null, "b": {str(b).lower()}}}, "i": 12}}\n' for d, s, b in rows)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(block) - 2))
        new = data.draw(st.sampled_from(['"', ",", "\n", "0", "-", ".", "e", " ", "{", "}", "", "\\", "\t", block[at] * 2]))
        block = block[:at] + new + block[at + 1 :]
    names = {"d": "d", "s": "s", "i": "i", "b": "o.b"}
    made = reader({name: {**ALL_TYPES[name], "from": path, "nullable": True} for name, path in names.items()})
    agree(made, [line for line in block.split("\n") if line] or ["{}"])


def taken(made: JsonReader, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which readers gave the lines of a block."""
    used: list[str] = []
    for name in ("_one_by_one", "_whole_block", "_cut"):
        original = getattr(JsonReader, name)

        def spy(self: JsonReader, *args: Any, _name: str = name, _original: Any = original) -> Any:
            found = _original(self, *args)
            used.append(_name)
            return found

        monkeypatch.setattr(JsonReader, name, spy)
    made.read(Spans.of(pa.array(lines)), {}, NOW_US)
    return used


def test_clean_lines_are_cut_by_one_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"t": f"2026-01-01T00:00:{i:02}Z", "s": f"k{i}", "d": i / 2, "i": i, "zz": None}) for i in range(50)]
    assert taken(reader({name: ALL_TYPES[name] for name in ("t", "s", "d", "i")}), lines, monkeypatch) == ["_cut"]


def test_lines_of_many_shapes_are_read_as_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"s": "a\n", f"k{i}": i, "d": i / 2}) for i in range(50)]
    used = taken(reader({name: ALL_TYPES[name] for name in ("s", "d")}), lines, monkeypatch)
    assert used[-1] == "_whole_block" and "_one_by_one" not in used


def test_arrays_of_clean_elements_are_read_as_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"g": "x", "r": [{"d": 1}, {"d": i}]}) for i in range(50)]
    made = reader({"d": {"type": "double"}, "g": {"type": "string"}}, "r", ("g",))
    assert taken(made, lines, monkeypatch) == ["_whole_block"]


def test_dirty_lines_alone_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"s": f"k{i}", "d": "x" if i % 100 == 7 else i}) for i in range(1000)]
    made = reader({name: ALL_TYPES[name] for name in ("s", "d")})
    read: list[int] = []
    original = JsonReader._one_by_one
    monkeypatch.setattr(
        JsonReader, "_one_by_one", lambda self, texts, *rest: read.append(len(texts)) or original(self, texts, *rest)
    )
    found = made.read(Spans.of(pa.array(lines)), {}, NOW_US)
    assert read == [10]
    assert sorted(found.unfit) == list(range(7, 1000, 100))
    assert found.columns[0].to_pylist() == [f"k{i}" for i in range(1000)]


def test_values_are_those_of_python() -> None:
    """Against the standard library, without any of ours."""
    rows = [{"s": f"é{i}", "d": i * 1.1e-3, "i": i * 10**15, "b": i % 2 == 0} for i in range(200)]
    found = reader({name: ALL_TYPES[name] for name in ("s", "d", "i", "b")}).read(
        Spans.of(pa.array([json.dumps(r) for r in rows])), {}, NOW_US
    )
    assert [
        dict(zip(("s", "d", "i", "b"), values, strict=True))
        for values in zip(*(c.to_pylist() for c in found.columns), strict=True)
    ] == rows


@pytest.mark.parametrize("n", [1, 60])
@pytest.mark.parametrize("deep", ["[" * 100_000, '{"k":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_depth_harms_nobody(n: int, deep: str) -> None:
    lines = [f'{{"i": {i}}}' for i in range(n)] + [f'{{"i": 1, "k": {deep}}}', deep]
    found = reader({"i": {"type": "integer"}}).read(Spans.of(pa.array(lines)), {}, NOW_US)
    assert found.columns[0].to_pylist() == [*range(n), None, None]
    assert set(found.undecodable.values()) <= {"not a JSON object", f"nested deeper than {DEPTH_MAX} levels"}
    assert sorted(found.undecodable) == [n, n + 1]


def test_rows_of_a_message() -> None:
    made = reader(
        {"gateway": {"type": "string"}, "t": {"type": "double", "nullable": True}, "value": {"type": "double"}},
        "readings",
        ("gateway",),
    )
    lines = [
        '{"gateway": "g1", "readings": [{"t": 1}, {"t": 2, "gateway": "own"}, 7]}',
        '{"gateway": "g1", "readings": []}',
        '{"gateway": "g1"}',
        '{"gateway": "g1", "readings": {"t": 1}}',
        f'{{"gateway": "g1", "readings": [{", ".join(["1"] * 10_001)}]}}',
    ]
    found = made.read(Spans.of(pa.array(lines)), {}, NOW_US)
    assert found.count == 6
    assert found.line is not None
    assert found.line.to_pylist() == [0, 0, 0, 2, 3, 4]
    assert found.columns[0].to_pylist() == ["g1", "own", "g1", None, None, None]
    assert found.columns[2].to_pylist() == [None, None, 7.0, None, None, None]
    assert [found.undecodable[row] for row in sorted(found.undecodable)] == [
        "there is no array at readings",
        "there is no array at readings",
        "the array at readings has 10001 elements, more than 10000",
    ]


def test_unknown_fields() -> None:
    fields = {"i": {"type": "integer"}, "x": {"type": "double", "from": "data.x", "nullable": True}}
    lines = ['{"i": 1, "data": {"x": 1}}', '{"i": 2, "data": {"x": 1, "y": [1.50]}, "z": "é"}', '{"i": 3, "data": 7}']
    kept = reader(fields, unknown="keep").read(Spans.of(pa.array(lines)), {}, NOW_US)
    assert kept.columns[-1].to_pylist() == [None, '{"data":{"y":[1.50]},"z":"é"}', '{"data":7}']
    rejected = reader(fields, unknown="reject").read(Spans.of(pa.array(lines)), {}, NOW_US)
    assert {row: list(names) for row, names in rejected.unknown.items()} == {1: ["data.y", "z"], 2: ["data"]}
