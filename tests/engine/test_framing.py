"""Bytes to records: every byte ends in exactly one record or between two, however the bytes were cut into blocks."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Iterable

import pyarrow as pa
import pytest
from engine_support import Run, pipeline, row
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.contract.language.sources import RECORD_BYTES_MAX, Framing
from pipelines.contract.spec import load_spec
from pipelines.engine.batch import Batch, Lines
from pipelines.engine.plan import compile_plan
from pipelines.engine.records.framing import Counted, Framer, Marked, MultiLine, frame_lines, open_framer
from pipelines.engine.run import RAW_BYTES_MAX

Record = tuple[str, int, str]  # text, position, what is wrong
MARK = b"\xef\xbb\xbf"
MAX = 16
LONG = f"the record has more than {MAX} bytes"


def framed(framer: Framer, data: bytes, sizes: Iterable[int] = ()) -> list[Record]:
    """What a framer gives when the bytes come in blocks of these sizes, then at once."""
    found: list[Record] = []
    start = end = skipping = 0
    for size in [*sizes, len(data)]:
        end = min(end + size, len(data))
        while True:
            step = framer.frame(data[start:end], start, skipping, is_last=end == len(data))
            lines = step.lines
            if lines is not None:
                texts, starts = lines.text.to_pylist(), lines.offsets.to_pylist()
                found += [(text, starts[i], lines.bad.get(i, "")) for i, text in enumerate(texts)]
            start, skipping = start + step.consumed, step.skipping
            if not step.consumed:
                break
    assert start == len(data)
    return found


def decoded(raw: bytes, position: int, length: int) -> Record:
    """A record of `length` bytes as it should come out; `raw` is what is left of it after trimming."""
    if length > MAX:
        return raw[:MAX].decode(errors="replace"), position, LONG
    try:
        return raw.decode(), position, ""
    except UnicodeDecodeError as error:
        return raw.decode(errors="replace"), position, f"not UTF-8 at byte {error.start}"


def marked(data: bytes, mark: bytes, trim: Callable[[bytes], bytes]) -> list[Record]:
    found, position = [], len(MARK) if data.startswith(MARK) else 0
    for raw in data[position:].split(mark):
        if len(raw) > MAX:
            found.append(decoded(raw, position, len(raw)))
        elif trim(raw):
            found.append(decoded(trim(raw), position, len(raw)))
        position += len(raw) + len(mark)
    return found


def events(data: bytes, begins: Callable[[bytes], bool]) -> list[Record]:
    """Lines put together, by the book; one that is too long takes the lines behind it that continue it."""
    position = len(MARK) if data.startswith(MARK) else 0
    starts: list[int] = []
    for line in data[position:].splitlines(keepends=True):
        if not starts or begins(line.rstrip(b"\n")):
            starts.append(position)
        position += len(line)
    found = []
    for start, end in zip(starts, [*starts[1:], len(data)], strict=bool(starts)):
        raw = data[start:end]
        if len(raw) > MAX:
            found.append(decoded(raw, start, len(raw)))
        elif trimmed := raw.strip(b"\r\n"):
            text, *rest = decoded(trimmed, start, len(raw))
            found.append((text.replace("\r\n", "\n"), *rest))
    return found


def counted(data: bytes, head: int, order: str, inside: bool) -> list[Record]:
    found, at = [], 0
    while at < len(data):
        if at + head > len(data):
            found.append((data[at:].decode(errors="replace"), at, "the input ends within the length of a record"))
            break
        length = int.from_bytes(data[at : at + head], "big" if order == "big" else "little") - head * inside
        raw = data[at + head : at + head + max(0, length)]
        if length < 0:
            found.append(("", at, f"a length of {length + head} is less than its own {head} bytes"))
        elif length > MAX:
            found.append((raw[:MAX].decode(errors="replace"), at, LONG))
        elif length > len(raw):
            found.append((raw.decode(errors="replace"), at, f"the input ends {length - len(raw)} bytes before the record does"))
        elif raw:
            found.append(decoded(raw, at, length))
        at += head + len(raw)
    return found


LETTERS = st.sampled_from(
    [b"a", b"b", b" ", b"\n", b"\n", b"\r", b"\r\n", b";", b"||", b"\x00", b"\xff", "é".encode(), b"xxxxxxxxxxxx"]
)
DATA = st.builds(lambda mark, parts: mark + b"".join(parts), st.sampled_from([b"", MARK]), st.lists(LETTERS, max_size=40))
SIZES = st.lists(st.integers(0, 20), max_size=10)


@given(DATA, SIZES)
def test_lines(data: bytes, sizes: list[int]) -> None:
    assert framed(Marked(b"\n", b"\r", MAX), data, sizes) == marked(data, b"\n", lambda raw: raw.rstrip(b"\r"))


@given(DATA, SIZES, st.sampled_from([b";", b"||", b";|", b"\x00"]))
def test_a_delimiter(data: bytes, sizes: list[int], mark: bytes) -> None:
    assert framed(Marked(mark, b"\r\n", MAX), data, sizes) == marked(data, mark, lambda raw: raw.strip(b"\r\n"))


def no_line_end_but_lf(data: bytes) -> bytes:
    return re.sub(rb"\r(?!\n)|\x00", b"", data)  # bytes.splitlines, the yardstick, knows more line ends


@given(DATA.map(no_line_end_but_lf), SIZES)
def test_lines_that_begin_a_record(data: bytes, sizes: list[int]) -> None:
    framer = MultiLine("^(?:[ab])", matches_first=True, max_bytes=MAX)
    assert same_but_kept(framed(framer, data, sizes), events(data, lambda line: line[:1] in (b"a", b"b")))


@given(DATA.map(no_line_end_but_lf), SIZES)
def test_lines_that_continue_a_record(data: bytes, sizes: list[int]) -> None:
    framer = MultiLine(r"^(?:\s|x)", matches_first=False, max_bytes=MAX)
    found = framed(framer, data, sizes)
    assert same_but_kept(found, events(data, lambda line: line[:1] not in (b" ", b"x", b"\r")))


def same_but_kept(found: list[Record], expected: list[Record]) -> bool:
    """What is kept of a long record of several lines has its line ends as they were."""
    return [(r if r[2] != LONG else ("", *r[1:])) for r in found] == [(r if r[2] != LONG else ("", *r[1:])) for r in expected]


@given(
    st.lists(st.integers(0, 20).map(lambda n: b"y" * n), max_size=6),
    st.binary(max_size=6),
    SIZES,
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["big", "little"]),
    st.booleans(),
)
def test_lengths(records: list[bytes], rest: bytes, sizes: list[int], head: int, order: str, inside: bool) -> None:
    byte_order = "big" if order == "big" else "little"
    data = b"".join((len(r) + head * inside).to_bytes(head, byte_order) + r for r in records) + rest
    assert framed(Counted(head, byte_order, inside, MAX), data, sizes) == counted(data, head, order, inside)


def test_positions_are_those_of_the_input() -> None:
    lines = frame_lines(b"one\n\ntwo\r\nthree", 7)
    assert lines.text.to_pylist() == ["one", "two", "three"]
    assert lines.offsets.to_pylist() == [7, 12, 17]


def test_a_byte_order_mark_is_dropped_at_the_start_of_a_file_only() -> None:
    assert frame_lines(MARK + b"one\n", 0).text.to_pylist() == ["one"]
    assert frame_lines(MARK + b"one\n", 0).offsets.to_pylist() == [3]
    assert frame_lines(MARK + b"one\n", 9).text.to_pylist() == ["\ufeffone"]
    assert len(frame_lines(MARK, 0)) == 0
    assert framed(Marked(b"\n", b"\r", MAX), MARK, [1, 1]) == []


def test_a_stack_trace_is_one_record() -> None:
    data = b"2026-01-01 boom\n\tat A\r\n\tat B\n\nCaused by: x\n2026-01-02 fine\n"
    framer = open_framer(Framing.model_validate({"multiline": {"starts_with": r"\d{4}-"}}))
    assert [(text, at) for text, at, _ in framed(framer, data)] == [
        ("2026-01-01 boom\n\tat A\n\tat B\n\nCaused by: x", 0),
        ("2026-01-02 fine", data.index(b"2026-01-02")),
    ]
    framer = open_framer(Framing.model_validate({"multiline": {"continues_with": r"\s|Caused by"}}))
    assert [text for text, *_ in framed(framer, b"a\n b\nCaused by: c\nd\n")] == ["a\n b\nCaused by: c", "d"]


def test_the_last_record_of_several_lines_waits_for_more() -> None:
    framer = MultiLine("^(?:a)", matches_first=True, max_bytes=MAX)
    step = framer.frame(b"a1\n x\na2\n", 0)
    assert step.lines is not None
    assert (step.lines.text.to_pylist(), step.consumed) == (["a1\n x"], 6)
    assert framer.frame(b"a2\n", 6).consumed == 0


def test_an_endless_record_takes_no_memory() -> None:
    piece = b"x" * 1_000_000
    for framer in (Marked(b"\n", b"\r", RECORD_BYTES_MAX), MultiLine("^(?:a)", True, RECORD_BYTES_MAX)):
        tracemalloc.start()
        step = framer.frame(piece, 0)
        assert step.lines is not None
        assert [len(text) for text in step.lines.text.to_pylist()] == [4096]
        for _ in range(20):
            step = framer.frame(piece, 1, step.skipping)
            assert (step.lines, step.consumed) == (None, len(piece))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(piece)
        step = framer.frame(b"x\nafter\na\n", 1, step.skipping, is_last=True)
        assert step.lines is not None
        assert step.lines.text.to_pylist()[-1] == "a"


@pytest.mark.parametrize(
    ("framing", "message"),
    [
        ({"delimiter": ""}, "1 to 16 bytes"),
        ({"delimiter": "x" * 17}, "1 to 16 bytes"),
        ({"lines": {"max": "1GiB"}}, "from 16B to 4MiB"),
        ({"lines": {"max": 5}}, "is not a size"),
        ({"length": {"bytes": 3}}, "1, 2 or 4"),
        ({"multiline": {}}, "exactly one"),
        ({"multiline": {"starts_with": "a", "continues_with": "b"}}, "exactly one"),
        ({"lines": {}, "delimiter": ";"}, "exactly one"),
    ],
)
def test_refusals(framing: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Framing.model_validate(framing)


@pytest.mark.parametrize("character", ["a", "é", "€"])
def test_of_a_long_record_in_quarantine_the_beginning_is_kept(character: str) -> None:
    text = pipeline().replace("file: {path: x}", "file: {path: x}\n    framing: {lines: {max: 4MiB}}")
    lines = Lines(pa.array(["x" + character * 1_000_000, "short", row(0)]), pa.array([0, 1, 2]))
    run = Run(compile_plan(load_spec(text))).feed(Batch("s", 1, 1, lines, "f"))
    long, short = (r["raw"] for r in run.quarantine())
    assert long == ("x" + character * RAW_BYTES_MAX).encode()[:RAW_BYTES_MAX].decode(errors="ignore")
    assert RAW_BYTES_MAX - 3 < len(long.encode()) <= RAW_BYTES_MAX
    assert short == "short"
    assert len(run.rows()) == 1
