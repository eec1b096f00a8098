"""Sources against real files: nothing read twice, nothing left out, wherever the reader is restarted."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from edge_agent.sources import Block, Source, SourceContext, file, open_source, stream
from edge_agent.sources.simulate import row
from pipelines.contract.errors import TidewireError
from pipelines.contract.language.sources import RECORD_BYTES_MAX
from pipelines.contract.language.sources import Source as SourceSpec


@pytest.fixture(autouse=True)
def _always_rescan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "RESCAN_S", 0.0)


@pytest.fixture
def gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "GONE_S", 0.0)


class Clock:
    us = 0


def context(until_eof: bool = False, may_read: Callable[[str], bool] = lambda path: True) -> SourceContext:
    return SourceContext(until_eof, may_read, lambda: Clock.us, lambda: 1_767_225_600_000_000)


def reader(
    pattern: object,
    position: dict[str, Any] | None = None,
    *,
    csv: dict[str, Any] | None = None,
    compression: str = "auto",
    framing: Any = None,
    encoding: str = "utf-8",
    **options: Any,
) -> Source:
    settings = {
        "file": {"path": str(pattern), "compression": compression},
        "decode": {"csv": csv} if csv is not None else "json",
        "framing": framing,
        "encoding": encoding,
    }
    stored = json.loads(json.dumps(position or {}))  # as it comes back from the store
    return open_source(SourceSpec.model_validate(settings), stored, context(**options))


def blocks(source: Source) -> Iterator[Block]:
    """What it has ready now; an endless record is passed over in several looks."""
    looks = 0
    while looks < 20:
        looks += 1
        block = source.read()
        if block is not None:
            looks = 0
            yield block
        elif source.exhausted:
            return


def texts(source: Source) -> list[str]:
    return [text for block in blocks(source) for text in block.lines.text.to_pylist()]


def write(path: Path, text: str | bytes, mode: str = "a") -> None:
    with path.open(mode + ("b" if isinstance(text, bytes) else "")) as out:
        out.write(text)


# -- growth


def test_a_growing_file_is_followed_by_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, "one\ntw")
    source = reader(log)
    assert texts(source) == ["one"]
    write(log, "o")
    assert texts(source) == []
    write(log, "\nthree\n")
    assert texts(source) == ["two", "three"]


def test_the_last_line_may_lack_its_end_in_bounded_input_only(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, "one\ntwo")
    source = reader(log, until_eof=True)
    assert texts(source) == ["one", "two"]
    assert source.exhausted
    assert texts(reader(log)) == ["one"]


def test_new_files_are_found_and_two_files_do_not_mix(tmp_path: Path) -> None:
    source = reader(tmp_path / "*.log")
    assert source.trouble() == f"no file matches {tmp_path}/*.log"
    write(tmp_path / "a.log", "a1\na2\n")
    assert texts(source) == ["a1", "a2"]
    write(tmp_path / "b.log", "b1\n")
    write(tmp_path / "a.log", "a3\n")
    assert [(b.file.rsplit("/")[-1], b.lines.text.to_pylist()) for b in blocks(source)] == [("a.log", ["a3"]), ("b.log", ["b1"])]
    assert source.trouble() == ""


def test_a_file_larger_than_a_block_comes_whole(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    lines = [f"{i}:" + "x" * (i % 500) for i in range(20_000)]
    write(log, "\n".join(lines))
    assert texts(reader(log, until_eof=True)) == lines


def test_offsets_say_where_a_line_began(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, "one\n\ntwo\n")
    source = reader(log)
    (block,) = blocks(source)
    write(log, "three\n")
    (later,) = blocks(source)
    assert (block.lines.offsets.to_pylist(), later.lines.offsets.to_pylist()) == ([0, 5], [9])


# -- resume


def test_it_resumes_right_after_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "BLOCK_BYTES", 16)
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, "x,y\n" + "".join(f"{name}{i},{i}\n" for i in range(20)))
    expected = texts(reader(tmp_path / "*.csv", csv={}, until_eof=True))
    assert len(expected) == 40
    found: list[str] = []
    position: dict[str, Any] = {}
    while True:
        source = reader(tmp_path / "*.csv", position, csv={}, until_eof=True)
        block = source.read()
        if block is None:
            break
        assert block.header == ("x", "y")
        found += block.lines.text.to_pylist()
        position = dict(source.position)
    assert found == expected
    assert source.exhausted


def test_a_restart_after_a_rename_goes_on_in_the_renamed_file(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    write(log, "one\ntwo\n")
    source = reader(tmp_path / "app.log*")
    assert texts(source) == ["one", "two"]
    position = dict(source.position)
    write(log, "three\n")
    log.rename(tmp_path / "app.log.1")
    write(log, "four\n")
    assert sorted(texts(reader(tmp_path / "app.log*", position))) == ["four", "three"]


def test_a_restart_finds_what_was_renamed_out_of_the_pattern(tmp_path: Path, gone_at_once: None) -> None:
    log = tmp_path / "app.log"
    write(log, "one\n")
    source = reader(log)
    assert texts(source) == ["one"]
    position = dict(source.position)
    write(log, "two\n")
    log.rename(tmp_path / "app.log.1")
    write(log, "three\n")
    again = reader(log, position)
    assert sorted(texts(again)) == ["three", "two"]
    assert texts(again) == []


def test_a_reused_inode_is_a_new_file(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, "old one\nold two\n")
    source = reader(log)
    assert texts(source) == ["old one", "old two"]
    position = dict(source.position)
    with log.open("r+") as same_inode:
        same_inode.truncate(0)
        same_inode.write("new one, which is longer\nnew two\n")
    assert texts(reader(log, position)) == ["new one, which is longer", "new two"]
    assert texts(source) == ["new one, which is longer", "new two"]


def test_a_restart_does_not_read_an_unchanged_file_again(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, "one\n" * 1000)
    source = reader(log)
    assert len(texts(source)) == 1000
    assert texts(reader(log, dict(source.position))) == []
    write(log, "more\n")
    assert texts(reader(log, dict(source.position))) == ["more"]


# -- rotation


@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
def test_rotation_by_rename_loses_and_doubles_nothing(tmp_path: Path, pattern: str, gone_at_once: None) -> None:
    log = tmp_path / "app.log"
    source = reader(tmp_path / pattern)
    found, expected = [], []
    for turn in range(12):
        lines = [f"{turn}-{i}" for i in range(3)]
        write(log, "\n".join(lines) + "\n")
        expected += lines
        if turn % 3 == 0:
            found += texts(source)
        if turn % 4 == 3:
            for number in range(5, 0, -1):
                older = tmp_path / f"app.log.{number}"
                if older.exists():
                    older.rename(tmp_path / f"app.log.{number + 1}")
            log.rename(tmp_path / "app.log.1")
            found += texts(source)
    found += texts(source)
    assert sorted(found) == sorted(expected)


def test_a_writer_may_go_on_in_the_renamed_file_for_a_while(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    write(log, "one\n")
    source = reader(log)
    assert texts(source) == ["one"]
    log.rename(tmp_path / "elsewhere")
    write(log, "new\n")
    assert texts(source) == ["new"]
    write(tmp_path / "elsewhere", "late\n")
    assert texts(source) == ["late"]


def test_the_unended_last_line_of_a_vanished_file_is_a_line(tmp_path: Path, gone_at_once: None) -> None:
    log = tmp_path / "app.log"
    write(log, "one\ntwo without an end")
    source = reader(log)
    assert texts(source) == ["one"]
    log.unlink()
    write(log, "three\n")
    assert sorted(texts(source)) == ["three", "two without an end"]


def test_rotation_by_truncation_starts_again(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, "one\ntwo\n")
    source = reader(log)
    assert texts(source) == ["one", "two"]
    os.truncate(log, 0)
    assert texts(source) == []
    write(log, "3\n")
    assert texts(source) == ["3"]


def test_a_truncated_csv_file_has_a_header_again(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    write(table, "x,y\n1,2\n3,4\n")
    source = reader(table, csv={})
    assert texts(source) == ["1,2", "3,4"]
    write(table, "y,x\n5,6\n", "w")
    (block,) = blocks(source)
    assert (block.header, block.lines.text.to_pylist()) == (("y", "x"), ["5,6"])


def test_a_deleted_file_is_read_to_its_end_and_forgotten(tmp_path: Path, gone_at_once: None) -> None:
    write(tmp_path / "a.log", "one\n")
    source = reader(tmp_path / "*.log")
    (tmp_path / "a.log").unlink()
    assert texts(source) == ["one"]
    assert texts(source) == []
    assert source.position["files"] == {}


def test_one_file_under_two_names_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "app-1.log", "one\n")
    (tmp_path / "app-current.log").symlink_to(tmp_path / "app-1.log")
    os.link(tmp_path / "app-1.log", tmp_path / "app-0.log")
    assert texts(reader(tmp_path / "*.log")) == ["one"]


# -- CSV


def test_each_csv_file_has_its_own_header(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "\n\nx;y\n1;2\n")
    write(tmp_path / "b.csv", b"\xef\xbb\xbfy;x\r\n3;4\r\n")
    got = [(b.header, b.lines.text.to_pylist()) for b in blocks(reader(tmp_path / "*.csv", csv={"delimiter": ";"}))]
    assert got == [(("x", "y"), ["1;2"]), (("y", "x"), ["3;4"])]


def test_a_header_may_arrive_in_pieces_or_be_declared(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    write(table, "x,")
    source = reader(table, csv={})
    assert list(blocks(source)) == []
    write(table, "y\n1,2\n")
    (block,) = blocks(source)
    assert (block.header, block.lines.text.to_pylist()) == (("x", "y"), ["1,2"])
    (declared,) = blocks(reader(table, csv={"columns": ["p", "q"]}))
    assert (declared.header, declared.lines.text.to_pylist()) == (("p", "q"), ["x,y", "1,2"])


# -- trouble


def test_a_record_that_never_ends_is_one_bad_record(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, "one\n" + "x" * (RECORD_BYTES_MAX + 10))
    source = reader(log)
    first, bad = blocks(source)
    assert first.lines.text.to_pylist() == ["one"]
    assert bad.lines.bad == {0: f"the record has more than {RECORD_BYTES_MAX} bytes"}
    position = dict(source.position)
    write(log, "x" * 3_000_000)
    assert texts(source) == []
    write(log, "the end\ntwo\n")
    assert texts(source) == ["two"]
    assert texts(reader(log, position)) == ["two"]


def test_what_policy_or_permissions_forbid_is_told_and_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.log", "secret\n")
    write(tmp_path / "ok.log", "fine\n")
    (tmp_path / "link.log").symlink_to(tmp_path / "a.log")
    source = reader(tmp_path / "*.log", may_read=lambda path: not path.endswith("/a.log"))
    assert texts(source) == ["fine"]
    assert "local policy or permissions do not allow" in source.trouble()
    assert "a.log" in source.trouble()
    assert "link.log" in source.trouble()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_becomes_readable_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.log", "one\n")
    (tmp_path / "a.log").chmod(0)
    source = reader(tmp_path / "a.log")
    assert texts(source) == []
    assert "a.log" in source.trouble()
    (tmp_path / "a.log").chmod(0o600)
    assert texts(source) == ["one"]


def test_directories_and_pipes_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "dir.log").mkdir()
    os.mkfifo(tmp_path / "pipe.log")
    write(tmp_path / "a.log", "one\n")
    assert texts(reader(tmp_path / "*.log")) == ["one"]


def test_bounded_input_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(TidewireError, match="no file matches") as caught:
        reader(tmp_path / "none.log", until_eof=True)
    assert "relative to where the agent was started" in caught.value.hint
    with pytest.raises(TidewireError, match="do not allow"):
        write(tmp_path / "a.log", "x\n")
        reader(tmp_path / "a.log", until_eof=True, may_read=lambda path: False)


@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8, b"\n\r\n", gzip.compress(b"", mtime=0)])
def test_empty_files_end_at_once(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a.csv", content)
    source = reader(tmp_path / "a.csv", csv={}, until_eof=True)
    assert texts(source) == []
    assert source.exhausted


def test_a_row_of_10_mb_and_an_endless_line_of_300_mb(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("wb") as out:
        out.write(b"one\n" + b"y" * 10_000_000 + b"\ntwo\n")
        out.truncate(300_000_000)  # NUL bytes that take no room
    source = reader(log, until_eof=True)
    tracemalloc.start()
    found = [(text[:3], i in b.lines.bad) for b in blocks(source) for i, text in enumerate(b.lines.text.to_pylist())]
    assert tracemalloc.get_traced_memory()[1] < 4 * file.BLOCK_BYTES
    tracemalloc.stop()
    assert found == [("one", False), ("yyy", True), ("two", False), ("\0\0\0", True)]
    assert source.exhausted


# -- framing


def test_records_of_several_lines_are_handed_on_when_the_file_is_quiet(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    framing = {"multiline": {"starts_with": "[0-9]", "flush_after": "50ms"}}
    write(log, "1 boom\n at a\n2 boom\n at b\n")
    source = reader(log, framing=framing)
    assert texts(source) == ["1 boom\n at a"]
    write(log, " at c\n at d")
    assert texts(source) == []
    time.sleep(0.06)
    assert texts(source) == ["2 boom\n at b\n at c"]
    assert texts(reader(log, dict(source.position), framing=framing, until_eof=True)) == [" at d"]


@pytest.mark.parametrize(
    ("framing", "data", "expected"),
    [
        ({"delimiter": ";"}, b"one;two\n;\nthree", ["one", "two", "three"]),
        ({"length": {"bytes": 2}}, b"\x00\x03one\x00\x03two", ["one", "two"]),
        ({"multiline": {"continues_with": " "}}, b"one\n 1\ntwo\n", ["one\n 1", "two"]),
        ({"lines": {"max": "16B"}}, b"one\n" + b"x" * 99 + b"\ntwo\n", ["one", "x" * 16, "two"]),
    ],
)
@pytest.mark.parametrize("block_bytes", [5, 1 << 20])
def test_it_resumes_within_any_framing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framing: Any, data: bytes, expected: list[str], block_bytes: int
) -> None:
    monkeypatch.setattr(file, "BLOCK_BYTES", block_bytes)
    write(tmp_path / "a", data)
    assert read_in_turns(tmp_path / "a", framing=framing) == expected


def read_in_turns(path: Path, **options: Any) -> list[str]:
    """Every block by another reader, which goes on where the last one stood."""
    found: list[str] = []
    position: dict[str, Any] = {}
    while True:
        source = reader(path, position, until_eof=True, **options)
        block = source.read()
        if block is None and source.exhausted:
            return found
        found += block.lines.text.to_pylist() if block else []
        position = dict(source.position)


# -- packed and re-encoded files

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}
LINES = [f"{i}: {i * i % 7919}" for i in range(30_000)]
TEXT = "".join(f"{line}\n" for line in LINES).encode()


@pytest.mark.parametrize("kind", PACK)
def test_packed_files_are_known_by_their_first_bytes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.log").write_bytes(PACK[kind](TEXT))
    assert read_in_turns(tmp_path / "a.log") == LINES
    source = reader(tmp_path / "a.log")
    (block,) = blocks(source)
    assert block.lines.offsets.to_pylist()[:3] == [0, 5, 10]
    assert source.trouble() == ""
    assert texts(reader(tmp_path / "a.log", dict(source.position))) == []


@pytest.mark.parametrize("kind", PACK)
def test_members_one_behind_the_other_are_one_file(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(PACK[kind](TEXT[:1000]) + PACK[kind](TEXT[1000:]))
    source = reader(log)
    assert texts(source) == LINES
    write(log, PACK[kind](b"more\n"))
    assert texts(source) == ["more"]
    assert texts(reader(log, dict(source.position))) == []


@pytest.mark.parametrize("kind", PACK)
def test_a_packed_file_cut_off_gives_what_unpacks_and_says_so(tmp_path: Path, kind: str) -> None:
    log, packed = tmp_path / "a.log", PACK[kind](TEXT)
    log.write_bytes(packed[:-7])
    source = reader(log)
    found = texts(source)
    assert found == LINES[: len(found)]
    assert len(found) > (0 if kind in ("bzip2", "zstd") else 20_000)  # these unpack whole blocks
    assert "ends before its end" in source.trouble()
    write(log, packed[-7:])
    assert found + texts(source) == LINES
    assert source.trouble() == ""
    log.write_bytes(packed[:-7])
    bounded = reader(log, until_eof=True)
    assert texts(bounded) == found  # and no half a line
    assert bounded.exhausted


@pytest.mark.parametrize("kind", PACK)
def test_damage_ends_the_file_and_nothing_else(tmp_path: Path, kind: str) -> None:
    packed = bytearray(PACK[kind](TEXT))
    packed[30:80] = b"\xff" * 50
    (tmp_path / "a.log").write_bytes(packed)
    (tmp_path / "b.log").write_text("fine\n")
    source = reader(tmp_path / "*.log", until_eof=True)
    assert texts(source) == ["fine"]
    assert "a.log" in source.trouble()
    assert "damaged" in source.trouble()
    assert source.exhausted


def test_a_bomb_takes_time_not_memory(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with gzip.open(log, "wb", compresslevel=9) as out:
        for _ in range(64):
            out.write(b"\0" * (1 << 20))
        out.write(b"\nafter\n")
    source = reader(log, until_eof=True)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    found = [(len(b.lines.text[0].as_py()), *b.lines.bad.values()) for b in blocks(source)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + pa.total_allocated_bytes() - before < 16 << 20
    assert found == [(4096, f"the record has more than {RECORD_BYTES_MAX} bytes"), (5,)]


def test_a_long_way_to_where_it_stood_is_gone_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SKIP_BYTES_MAX", 10_000)
    monkeypatch.setattr(stream, "PIECE_BYTES", 5_000)
    monkeypatch.setattr(file, "BLOCK_BYTES", 1_000)
    (tmp_path / "a.log").write_bytes(gzip.compress(TEXT))
    source = reader(tmp_path / "a.log")
    while source.position["files"][str(tmp_path / "a.log")]["offset"] < len(TEXT) - 5_000:
        source.read()
    again = reader(tmp_path / "a.log", dict(source.position), until_eof=True)
    looks = 0
    found: list[str] = []
    while not again.exhausted:
        looks += 1
        block = again.read()
        found += block.lines.text.to_pylist() if block else []
    assert found == texts(source)
    assert looks > 10


def test_compression_may_be_switched_off_and_look_alikes_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"BZh9 is no bzip2\n")
    assert texts(reader(tmp_path / "a.log")) == ["BZh9 is no bzip2"]
    (tmp_path / "b.log").write_bytes(gzip.compress(b"x\n" * 10))
    (block,) = blocks(reader(tmp_path / "b.log", compression="none", until_eof=True))
    assert block.lines.bad[0].startswith("not UTF-8")


def test_a_file_of_too_few_bytes_to_tell_waits(tmp_path: Path) -> None:
    log, packed = tmp_path / "a.log", gzip.compress(b"one\n")
    write(log, "")
    source = reader(log)
    assert texts(source) == []
    write(log, packed[:2])
    assert texts(source) == []
    write(log, packed[2:])
    assert texts(source) == ["one"]


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("is_down", [True, False], ids=["node down meanwhile", "node up"])
def test_a_file_packed_after_it_was_read_is_not_read_again(tmp_path: Path, gone_at_once: None, kind: str, is_down: bool) -> None:
    log, rotated, packed = tmp_path / "app.log", tmp_path / "app.log.1", tmp_path / "app.log.1.pack"
    write(log, TEXT)
    source = reader(tmp_path / "app.log*")
    assert len(texts(source)) == len(LINES)
    log.rename(rotated)
    write(log, "new\n")
    found = texts(source) if not is_down else []
    packed.write_bytes(PACK[kind](TEXT + b"unread\n" if is_down else TEXT))
    found += texts(source) if not is_down else []  # both are there
    rotated.unlink()
    if is_down:
        source = reader(tmp_path / "app.log*", dict(source.position))
    found += texts(source) + texts(source)
    assert sorted(found) == (["new", "unread"] if is_down else ["new"])
    position = dict(source.position)
    assert texts(reader(tmp_path / "app.log*", position)) == []


def test_a_packed_file_of_other_content_is_read(tmp_path: Path, gone_at_once: None) -> None:
    write(tmp_path / "a.csv", "x,y\n1,2\n")
    source = reader(tmp_path / "*", csv={})
    assert texts(source) == ["1,2"]
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"x,y\n3,4\n"))
    assert texts(source) == ["3,4"]
    (tmp_path / "a.csv").unlink()
    assert texts(source) == []
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x,y\n1,2\n"))
    assert texts(source) == []


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("latin-1", "Grüße\nÄ\n".encode("latin-1")),
        ("cp1252", "Grüße\nÄ\n".encode("cp1252")),
        ("utf-16", "Grüße\r\nÄ\r\n".encode("utf-16")),
        ("utf-16", codecs.BOM_UTF16_BE + "Grüße\nÄ\n".encode("utf-16-be")),
        ("utf-8", codecs.BOM_UTF8 + "Grüße\nÄ\n".encode()),
    ],
)
def test_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, data: bytes) -> None:
    monkeypatch.setattr(file, "BLOCK_BYTES", 11)
    log = tmp_path / "a.log"
    log.write_bytes(data)
    assert read_in_turns(log, encoding=encoding) == ["Grüße", "Ä"]
    log.write_bytes(gzip.compress(data))
    source = reader(log, encoding=encoding)
    assert texts(source) == ["Grüße", "Ä"]


def test_bytes_that_mean_nothing_spoil_their_record_only(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"one\n\x81\ntwo\n")
    (block,) = blocks(reader(tmp_path / "a.log", encoding="cp1252"))
    assert (block.lines.text.to_pylist()[::2], list(block.lines.bad)) == (["one", "two"], [1])
    (tmp_path / "b.log").write_bytes("one\n".encode("utf-16") + b"\x00\xd8" + "\ntwo\n".encode("utf-16-le"))
    (block,) = blocks(reader(tmp_path / "b.log", encoding="utf-16"))
    assert (block.lines.text.to_pylist()[::2], list(block.lines.bad)) == (["one", "two"], [1])


# -- simulate


def simulator(position: dict[str, Any] | None = None, *, until_eof: bool = True, **spec: Any) -> Source:
    return open_source(SourceSpec.model_validate({"simulate": spec}), position or {}, context(until_eof))


def test_simulated_rows_are_the_same_for_ever() -> None:
    spec = {"seed": 5, "rows": 200, "sensors": 3, "start": "2026-01-01", "value": {"base": 50.0, "swing": 5.0, "noise": 1.0}}
    found = texts(simulator(**spec))
    assert found == texts(simulator(**spec))
    assert found != texts(simulator(**{**spec, "seed": 6}))
    assert json.loads(found[0]) == {
        "ts": "2026-01-01T00:00:00.000+00:00",
        "sensor": "s1",
        "value": json.loads(found[0])["value"],
        "n": 0,
    }
    assert [json.loads(text)["n"] for text in found] == list(range(200))
    assert {json.loads(text)["sensor"] for text in found} == {"s1", "s2", "s3"}


def test_a_simulation_resumes_at_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.sources.simulate.ROWS_PER_BLOCK", 7)
    expected = texts(simulator(rows=100))
    found: list[str] = []
    position: dict[str, Any] = {}
    while not (source := simulator(position, rows=100)).exhausted:
        block = source.read()
        assert block is not None
        found += block.lines.text.to_pylist()
        position = json.loads(json.dumps(source.position))
    assert found == expected


def test_a_simulation_is_paced_by_node_time() -> None:
    Clock.us = 1_000_000
    source = simulator(until_eof=False, sensors=2, every="1s")
    assert texts(source) == []
    Clock.us = 4_000_000
    assert len(texts(source)) == 6
    assert not source.exhausted


def test_faults_are_as_declared() -> None:
    faults = [
        {"kind": "garbage", "share": 0.1},
        {"kind": "missing", "share": 0.1},
        {"kind": "text", "share": 0.1},
        {"kind": "offset", "at": "10s", "lasts": "5s", "every": "60s", "sensors": 1, "by": 100.0},
    ]
    spec = SourceSpec.model_validate({"simulate": {"sensors": 2, "rows": 4000, "faults": faults}}).simulate
    assert spec is not None
    kinds = {"garbage": 0, "missing": 0, "text": 0, "high": 0}
    for n in range(4000):
        text = row(spec, n, 0)
        try:
            value = json.loads(text)["value"]
        except ValueError:
            kinds["garbage"] += 1
            continue
        kinds["missing"] += value is None
        kinds["text"] += value == "n/a"
        kinds["high"] += isinstance(value, float) and value > 60
        if isinstance(value, float) and value > 60:
            assert json.loads(text)["sensor"] == "s1"
            assert 10 <= (n // 2) % 60 < 15
    assert all(250 < kinds[name] < 550 for name in ("garbage", "missing", "text")), kinds
    assert 90 < kinds["high"] < 170


def test_a_simulation_that_never_ends_is_refused_for_bounded_input() -> None:
    with pytest.raises(TidewireError, match="never ends") as caught:
        simulator()
    assert "rows" in caught.value.hint
    with pytest.raises(TidewireError, match="not an ISO 8601 time"):
        simulator(rows=1, start="yesterday")
