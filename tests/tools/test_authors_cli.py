"""The commands for authors, as they are typed: what they print, where, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock
from zipfile import ZipFile

import pytest

from control_plane.cli import main

ROOT = Path(__file__).parents[2]
SLOW_TO_IMPORT = ("httpx", "nats", "sqlalchemy", "deltalake", "starlette", "uvicorn", "asyncio")


def tidewire(cwd: Path, *words: str, stdin: str = "", status: int = 0, colour: bool = False) -> str:
    """What a command prints, both streams."""
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", ["tidewire", *words]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
        mock.patch.dict(os.environ, {"FORCE_COLOR": "1"} if colour else {}),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert (ended.value.code or 0) == status, (ended.value.code, out.getvalue(), err.getvalue())
    return out.getvalue() + err.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authors")
    assert "wrote my-press.yaml and my-press.cases.yaml" in tidewire(folder, "new", "my-press")
    return folder


def test_new_can_be_tested_validated_and_explained_at_once(made: Path) -> None:
    assert "4 cases in 1 file passed" in tidewire(made, "test")
    assert "2 files fine" in tidewire(made, "validate", ".")
    assert "trigger too_hot" in tidewire(made, "explain", "my-press.yaml")
    assert "0 of 2 files changed" in tidewire(made, "fmt", ".")


def test_new_overwrites_nothing(made: Path) -> None:
    before = (made / "my-press.yaml").read_text()
    assert "there is such a file already" in tidewire(made, "new", "my-press", status=1)
    assert (made / "my-press.yaml").read_text() == before
    assert "is no name of a pipeline" in tidewire(made, "new", "My Press", status=2)


def test_a_ready_pipeline_as_a_start(made: Path) -> None:
    listed = json.loads(tidewire(made, "catalog", "--json"))["catalog"]
    assert all(row["description"] for row in listed)
    assert "pipeline: valve-closing" in tidewire(made, "catalog", "show", "valve-closing")
    assert 'did you mean "valve-closing"' in tidewire(made, "catalog", "show", "valve-closng", status=1)
    tidewire(made, "new", "bench-7", "--from", "valve-closing")
    assert "pipeline: bench-7\n" in (made / "bench-7.yaml").read_text()
    tidewire(made, "validate", "bench-7.yaml")


def test_test_shows_differences_and_fails(made: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text((made / "my-press.yaml").read_text())
    cases = (made / "my-press.cases.yaml").read_text().replace("temp_f: 68", "temp_f: 69")
    (tmp_path / "p.cases.yaml").write_text(cases)
    told = tidewire(tmp_path, "test", "p.yaml", status=1)
    assert "FAIL a reading passes, an impossible one is quarantined" in told
    assert "+ s1      20.0    68.0    came instead" in told
    assert "4 cases in 1 file: 1 failed, 3 passed" in told
    assert "1 case in 1 file passed" in tidewire(tmp_path, "test", "-k", "spike")
    assert "no case is named like" in tidewire(tmp_path, "test", "-k", "nothing like it", status=1)
    report = json.loads(tidewire(tmp_path, "test", "--json", status=1))
    assert [case["passed"] for case in report["cases"]] == [False, True, True, True]
    assert report["cases"][0]["failures"][0]["differences"][0]["misfits"] == ["temp_f"]
    coloured = tidewire(tmp_path, "test", status=1, colour=True)
    assert "\x1b[" in coloured
    assert "\x1b[" not in told


def test_test_without_cases(tmp_path: Path) -> None:
    assert "there are no *.cases.yaml" in tidewire(tmp_path, "test", status=1)
    (tmp_path / "p.yaml").write_text("x: 1\n")
    assert "it has no cases" in tidewire(tmp_path, "test", "p.yaml", status=1)
    (tmp_path / "q.cases.yaml").write_text("cases:\n  - {name: a, at 0s: {}}\n")
    assert "q.yaml" in tidewire(tmp_path, "test", "q.cases.yaml", status=1)


def test_validate_tells_every_problem_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tidewire: 1\npipeline: a\n")
    (tmp_path / "b.yaml").write_bytes(b"tidewire: 1\nx: \xff\n")
    (tmp_path / "c.cases.yaml").write_text("case: []\n")
    told = tidewire(tmp_path, "validate", ".", status=1)
    assert 'a.yaml:1:1: sources: "sources" is missing' in told
    assert "b.yaml:2:4: this byte is not UTF-8 text" in told
    assert 'unknown key "case"; did you mean "cases"?' in told
    report = json.loads(tidewire(tmp_path, "validate", "--json", ".", status=1))
    assert report["files"] == 3
    assert {problem["line"] for problem in report["problems"]} == {1, 2}
    assert "nope.yaml" in tidewire(tmp_path, "validate", "nope.yaml", status=1)


def test_fmt_check_diff_stdout_and_stdin(tmp_path: Path, made: Path) -> None:
    text = (made / "my-press.yaml").read_text()
    messy = text.replace("over: 10s\n    by: [sensor]", "by: [ sensor ]  # each\n    over: 10s")
    (tmp_path / "p.yaml").write_text(messy)
    assert "would change p.yaml" in tidewire(tmp_path, "fmt", "--check", "p.yaml", status=1)
    assert "+    by: [sensor]  # each" in tidewire(tmp_path, "fmt", "--diff", "p.yaml", status=1)
    wanted = text.replace("by: [sensor]\n    when", "by: [sensor]  # each\n    when")
    assert tidewire(tmp_path, "fmt", "--stdout", "p.yaml") == wanted
    assert tidewire(tmp_path, "fmt", "-", stdin=messy) == wanted
    assert (tmp_path / "p.yaml").read_text() == messy
    assert "1 of 1 file changed" in tidewire(tmp_path, "fmt", "p.yaml")
    assert (tmp_path / "p.yaml").read_text() == wanted
    tidewire(tmp_path, "fmt", "--check", ".")
    assert "never closed" in tidewire(tmp_path, "fmt", "-", stdin="a: [x", status=1)
    assert not list(tmp_path.glob(".*"))


def test_explain_with_input_from_a_pipe(made: Path) -> None:
    rows = '{"ts": "2026-01-01T00:00:00Z", "sensor": "s1", "value": 20}\nnope\n'
    told = tidewire(made, "explain", "my-press.yaml", "--input", "-", stdin=rows)
    assert "after steps[0] derive" in told
    assert "1 row goes on, 1 undecodable" in told
    report = json.loads(tidewire(made, "explain", "my-press.yaml", "-i", "-", "--json", stdin=rows))
    assert report["parts"][2]["rows"][0]["temp_f"] == "68.0"
    assert "there is no source" in tidewire(made, "explain", "my-press.yaml", "-i", "-", "--source", "x", stdin=rows, status=1)
    assert "no record" in tidewire(made, "explain", "my-press.yaml", "-i", "-", status=1)


def test_schemas_are_printed(made: Path) -> None:
    assert json.loads(tidewire(made, "schema"))["title"] == "Tidewire pipeline"
    assert json.loads(tidewire(made, "schema", "--cases"))["title"] == "Tidewire cases"


def test_authors_commands_import_nothing_of_a_control_plane(made: Path) -> None:
    code = (
        "import sys; from control_plane.cli import app\n"
        "for words in (['validate', 'my-press.yaml'], ['fmt', '--check', '.'], ['test', '.'], ['explain', 'my-press.yaml']):\n"
        "    try: app(words, standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        f"print(sorted(set({SLOW_TO_IMPORT!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=made, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_comes_with_the_package_is_in_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(ZipFile(wheel).namelist())
    for folder in ("catalog", "starter"):
        assert {f"pipelines/{folder}/{path.name}" for path in (ROOT / "pipelines" / folder).glob("*.yaml")} <= packed


TAGS = """
tidewire: 1
pipeline: tags
sources:
  all:
    file: {path: "*.jsonl"}
schema:
  tag: {type: string}
lookups:
  assets: {artifact: asset_register, key: [tag]}
steps:
  - lookup: {table: assets, take: [asset]}
sinks:
  tags: {lake: {table: tags}}
"""


def test_explain_follows_rows_through_the_table_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "tags.yaml").write_text(TAGS)
    (tmp_path / "a.csv").write_text("tag,asset\nPT1,pump 1\n")
    row, words = '{"tag": "PT1"}\n', ("explain", "tags.yaml")
    assert "artifact asset_register of the control plane: the newest" in tidewire(tmp_path, *words)
    assert "pump 1" in tidewire(tmp_path, *words, "-i", "-", "--artifact", "asset_register=a.csv", stdin=row)
    assert "give --artifact asset_register=FILE, so nothing is found in it" in tidewire(tmp_path, *words, "-i", "-", stdin=row)
    wrong = tidewire(tmp_path, *words, "-i", "-", "--artifact", "aset_register=a.csv", stdin=row, status=2)
    assert "no lookup table of the pipeline names the artifact aset_register" in wrong
    (tmp_path / "a.csv").write_text("tag,asset\nPT1\n")
    broken = tidewire(tmp_path, *words, "-i", "-", "--artifact", "asset_register=a.csv", stdin=row, status=1)
    assert "Expected 2 columns, got 1" in broken and "fix:" in broken
