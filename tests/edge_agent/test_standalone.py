"""`tidewire-agent run FILE` as a process: killed at any moment, every row is in Parquet exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DEADLINE_S = 60
ROWS_PER_FILE, FILES = 20_000, 4
KILLS = 5  # `make prove` does a hundred
PIPELINE = """
tidewire: 1
pipeline: stand-alone
params:
  limit: {type: double, default: 95}
sources:
  log:
    file: {path: PATH}
    decode: csv
schema:
  n: {type: integer}
  ts: {type: timestamp, event_time: true, unit: s}
  v: {type: double, max: 99}
steps:
  - filter: v <> 13
windows:
  minute:
    every: 1m
    select:
      rows: count(*)
      mean: avg(v)
triggers:
  high:
    over: 10s
    when: min(v) > $limit
    actions:
      on_raise:
        - log:
sinks:
  readings: {lake: {table: readings}}
  minutes: {lake: {table: minutes}, from: minute}
"""


def write_input(folder: Path, rows_per_file: int = ROWS_PER_FILE) -> dict[int, float]:
    """Files of numbered rows; what should be in the lake, by number."""
    folder.mkdir()
    expected = {}
    for file in range(FILES):
        with (folder / f"{file}.csv").open("w") as out:
            out.write("n,ts,v\n")
            for n in range(file * rows_per_file, (file + 1) * rows_per_file):
                v = 97 if n % 5000 < 30 else n % 100
                out.write(f"{n},{1_767_225_600 + n},{v}\n" if n % 1000 != 500 else f"{n},never,{v}\n")
                if v not in (13,) and n % 1000 != 500:
                    expected[n] = float(v)
    return expected


def start(spec: Path, data_dir: Path, *more: str) -> subprocess.Popen[str]:
    words = ["run", str(spec), "--until-eof", "--data-dir", str(data_dir), "--json", *more]
    command = [sys.executable, "-m", "edge_agent", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=spec.parent)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def lake(data_dir: Path, table: str) -> pa.Table:
    files = sorted((data_dir / "lake" / table).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files], promote_options="default")


def check(report: dict[str, Any], data_dir: Path, expected: dict[int, float], read: int = FILES * ROWS_PER_FILE) -> None:
    rows = lake(data_dir, "readings")
    assert rows.num_rows == len(expected) == report["tables"]["readings"]
    assert dict(zip(rows["n"].to_pylist(), rows["v"].to_pylist(), strict=True)) == expected
    keys = set(zip(*(rows[name].to_pylist() for name in ("_node", "_run", "_stream", "_seq", "_row")), strict=True))
    assert len(keys) == rows.num_rows  # I2
    minutes = lake(data_dir, "minutes")
    assert sum(minutes["rows"].to_pylist()) == len(expected)
    assert len(set(minutes["_window_start"].to_pylist())) == minutes.num_rows
    raised = [r for r in lake(data_dir, "incidents").to_pylist() if r["transition"] == "raised"]
    assert len({r["incident"] for r in raised}) == len(raised) == read // 5000
    assert report["balanced"] is True
    assert report["sources"]["log"]["read"] == read
    assert report["streams"]["readings"]["written"] == len(expected)
    assert report["streams"]["_quarantine"]["written"] == read // 1000 == report["tables"]["quarantine"]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE.replace("PATH", "input/*.csv"))
    return path


def test_a_bounded_run_puts_every_row_into_parquet_and_a_second_adds_nothing(tmp_path: Path, spec: Path) -> None:
    expected = write_input(tmp_path / "input")
    for _ in range(2):
        check(finish(start(spec, tmp_path / "data")), tmp_path / "data", expected)
    with (tmp_path / "input" / "3.csv").open("a") as out:
        out.write("1000000,1767325600,1\n")
    report = finish(start(spec, tmp_path / "data"))
    assert report["tables"]["readings"] == len(expected) + 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["agent", "runner"])
def test_killed_at_random_moments_every_row_is_there_exactly_once(tmp_path: Path, spec: Path, victim: str) -> None:
    expected = write_input(tmp_path / "input", 150_000)
    chance = random.Random(victim)
    killed = sum(_kill(start(spec, tmp_path / "data"), victim, chance) for _ in range(KILLS))
    report = finish(start(spec, tmp_path / "data"))
    assert killed >= KILLS // 2, "it ended too soon to say much"
    check(report, tmp_path / "data", expected, 600_000)


def _kill(process: subprocess.Popen[str], victim: str, chance: random.Random) -> bool:
    """SIGKILL it at a random moment after its runner is there; False when it ended before."""
    runner = _runner_of(process)
    if runner is None:
        process.communicate(timeout=DEADLINE_S)
        return False
    time.sleep(chance.uniform(0, 0.15))
    was_alive = process.poll() is None
    if victim == "agent":
        process.send_signal(signal.SIGKILL)
    else:
        try:
            runner.kill()
        except psutil.NoSuchProcess:
            was_alive = False
    process.communicate(timeout=DEADLINE_S)
    return was_alive


def _runner_of(process: subprocess.Popen[str]) -> psutil.Process | None:
    """The process that reads the input: the child of the agent's fork server."""
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            for child in psutil.Process(process.pid).children(recursive=True):
                if any("input" in f.path for f in child.open_files()):
                    return child
        except psutil.Error:
            pass
        time.sleep(0.005)
    return None


def run_badly(words: Sequence[str], cwd: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "run", *words], capture_output=True, text=True, timeout=DEADLINE_S, cwd=cwd
    )
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_bad_input_gets_one_line_and_a_fix(tmp_path: Path, spec: Path) -> None:
    status, lines = run_badly(["none.yaml", "--until-eof", "--data-dir", "d"], tmp_path)
    assert (status, lines) == (
        1,
        ["run: none.yaml: cannot read it: No such file or directory", "  fix: give the path of a pipeline file"],
    )
    (tmp_path / "bad.yaml").write_text(PIPELINE.replace("v <> 13", "vv <> 13"))
    status, lines = run_badly(["bad.yaml", "--until-eof", "--data-dir", "d"], tmp_path)
    assert status == 1
    assert lines[0] == 'bad.yaml:15:5: steps[0].filter: column "vv" is not in the schema; did you mean "v"?'
    (tmp_path / "torn.yaml").write_text("tidewire: [1")
    status, lines = run_badly(["torn.yaml", "--until-eof", "--data-dir", "d"], tmp_path)
    assert (status, len(lines)) == (1, 2)
    (tmp_path / "unset.yaml").write_text(PIPELINE.replace(", default: 95", ""))
    status, lines = run_badly(["unset.yaml", "--until-eof", "--data-dir", "d"], tmp_path)
    assert status == 1
    assert "params.limit: has no value" in lines[0]
    assert not (tmp_path / "d").exists(), "nothing is left half-done"
    status, lines = run_badly([str(spec), "--until-eof", "--data-dir", "d"], tmp_path)
    assert (status, len(lines)) == (1, 2)
    assert "no file matches input/*.csv" in lines[0]
    assert lines[1] == "  fix: check the path; it is relative to where the agent was started"
    assert run_badly([str(spec), "--nonsense"], tmp_path)[0] == 2


LOOKUP = """
tidewire: 1
pipeline: places
sources:
  log:
    file: {path: "a.jsonl"}
schema:
  k: {type: string}
lookups:
  places: {artifact: places, key: [k], columns: {floor: integer}}
steps:
  - lookup: {table: places, take: [floor]}
sinks:
  readings: {lake: {table: readings}}
"""


def test_a_table_that_is_an_artifact_is_given_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "places.yaml").write_text(LOOKUP)
    (tmp_path / "a.jsonl").write_text('{"k": "a"}\n{"k": "b"}\n')
    (tmp_path / "places.csv").write_text("k,floor\na,3\n")
    words = ["places.yaml", "--until-eof", "--data-dir", "d"]
    assert run_badly(words, tmp_path) == (
        1, ["run places: it looks things up in places", "  fix: give --artifact places=FILE.csv"]
    )  # fmt: skip
    status, lines = run_badly([*words, "--artifact", "plces=places.csv"], tmp_path)
    assert status == 1 and 'no lookup table of the pipeline is the artifact "plces"; did you mean "places"?' in lines[0]
    status, lines = run_badly([*words, "--artifact", "places=none.csv"], tmp_path)
    assert (status, lines[0]) == (1, "read: none.csv: No such file or directory")
    assert not (tmp_path / "d").exists()
    finish(start(tmp_path / "places.yaml", tmp_path / "d", "--artifact", "places=places.csv"))
    assert dict(zip(*(lake(tmp_path / "d", "readings")[name].to_pylist() for name in ("k", "floor")), strict=True)) == {
        "a": 3,
        "b": None,
    }


def test_a_second_run_in_the_same_data_directory_is_refused(tmp_path: Path, spec: Path) -> None:
    write_input(tmp_path / "input")
    words = ["run", str(spec), "--data-dir", str(tmp_path / "data"), "--json"]
    first = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert _runner_of(first) is not None
        status, lines = run_badly([str(spec), "--until-eof", "--data-dir", "data"], tmp_path)
        assert (status, len(lines)) == (1, 2)
        assert lines[1].startswith("  fix: ")
    finally:
        first.send_signal(signal.SIGINT)
    report = finish(first)
    assert report["balanced"]


def test_without_until_eof_it_follows_until_it_is_interrupted(tmp_path: Path, spec: Path) -> None:
    expected = write_input(tmp_path / "input")
    words = ["run", str(spec), "--data-dir", str(tmp_path / "data"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with (tmp_path / "input" / "4.csv").open("w") as out:
        out.write("n,ts,v\n1000000,1767325600,1\n")
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        files = list((tmp_path / "data" / "lake" / "readings").glob("*.parquet"))
        if sum(pq.read_metadata(f).num_rows for f in files) == len(expected) + 1:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    report = finish(process)
    assert report["tables"]["readings"] == len(expected) + 1


def test_a_changed_pipeline_goes_on_where_the_old_one_stood(tmp_path: Path, spec: Path) -> None:
    expected = write_input(tmp_path / "input")
    finish(start(spec, tmp_path / "data"))
    spec.write_text(spec.read_text().replace("v <> 13", "v <> 14").replace("avg(v)", "max(v)"))
    report = finish(start(spec, tmp_path / "data"))
    assert report["tables"]["readings"] == len(expected)
    assert report["balanced"]


def test_the_agents_process_stays_free_of_what_only_runners_need() -> None:
    heavy = "{'duckdb', 'pyarrow', 'numpy'} & set(sys.modules)"
    code = f"import sys, edge_agent.cli, edge_agent.agent, edge_agent.runner; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True)
    assert done.stdout == "[]\n"
