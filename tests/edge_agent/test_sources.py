"""Sources against real files: nothing read twice, nothing left out, wherever the reader is restarted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.sources import Block, Source, SourceContext, file, open_source
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
    pattern: object, position: dict[str, Any] | None = None, *, csv: dict[str, Any] | None = None, **options: Any
) -> Source:
    decode = {"csv": csv} if csv is not None else "json"
    spec = SourceSpec.model_validate({"file": {"path": str(pattern)}, "decode": decode})
    stored = json.loads(json.dumps(position or {}))  # as it comes back from the store
    return open_source(spec, stored, context(**options))


def blocks(source: Source) -> Iterator[Block]:
    while (block := source.read()) is not None:
        yield block


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


def test_empty_files_end_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "")
    source = reader(tmp_path / "a.csv", csv={}, until_eof=True)
    assert texts(source) == []
    assert source.exhausted


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
