"""`tidewire-agent buffer`: what waits, beside a running agent and without one, in a whole store and in a damaged one."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from support import new_key, open_store
from typer.testing import CliRunner

from edge_agent import buffer
from edge_agent.buffer_view import size
from edge_agent.cli import app
from edge_agent.outbox import Sealed
from edge_agent.store import Commit, Store
from pipelines.contract.errors import Refused, TidewireError
from pipelines.engine.ipc import encode_rows

KEY = new_key()


def sealed(first: int, count: int, stream: str = "readings") -> Sealed:
    numbers = list(range(first, first + count))
    rows = pa.table({"n": numbers, "name": [f"é{n}" for n in numbers], "tags": [[n, n + 1] for n in numbers]})
    return Sealed(stream, "rows", stream, count, encode_rows(rows))


async def fill(store: Store) -> None:
    await store.checkpoint("p")
    for n in range(0, 100, 10):
        await store.commit("p", "sha256:v", 3, Commit({}, {}, sealed=[sealed(n, 10)]))
    await store.commit("p", "sha256:v", 3, Commit({}, {}, sealed=[sealed(0, 5, "means")]))


@pytest.fixture(params=["running", "stopped"])
def data_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "standalone.key").write_text(KEY.seed)
    with open_store(tmp_path, KEY) as store:
        asyncio.run(fill(store))
        if request.param == "running":
            yield tmp_path
    if request.param == "stopped":
        yield tmp_path


def run(*words: object) -> Any:
    done = CliRunner().invoke(app, ["buffer", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def told(*words: object) -> Any:
    return json.loads(run(*words, "--json").stdout)


def test_inspect_tells_what_waits_by_stream_and_run(data_dir: Path) -> None:
    facts = told("inspect", "--data-dir", data_dir)
    means, readings = facts["streams"]
    assert [(s["pipeline"], s["stream"], s["segments"], s["rows"]) for s in (means, readings)] == [
        ("p", "means", 1, 5),
        ("p", "readings", 10, 100),
    ]
    [one] = readings["runs"]
    assert (one["mark"], one["last"], one["state"], one["stub_rows"]) == (0, 10, "open", 0)
    assert 0 < one["oldest_us"] <= one["newest_us"]
    assert facts["bytes"] == readings["bytes"] + means["bytes"]
    assert [s["stream"] for s in told("inspect", "readings", "--data-dir", data_dir)["streams"]] == ["readings"]
    text = run("inspect", "--data-dir", data_dir).stdout
    assert "p/readings" in text
    assert "the rate is not known yet" in text
    with pytest.raises(Refused, match='nothing of "other"'):
        run("inspect", "other", "--data-dir", data_dir)


def test_inspect_shows_a_segment_with_its_first_rows(data_dir: Path) -> None:
    facts = told("inspect", "p/readings", 3, "--limit", 2, "--data-dir", data_dir)
    assert (facts["header"]["seq"], facts["header"]["number"], facts["header"]["rows"]) == (3, 3, 10)
    assert facts["first_rows"] == [{"n": 20, "name": "é20", "tags": [20, 21]}, {"n": 21, "name": "é21", "tags": [21, 22]}]
    text = run("inspect", "readings", 3, "--data-dir", data_dir).stdout
    assert "é29" in text
    with pytest.raises(Refused, match="segment 99"):
        run("inspect", "readings", 99, "--data-dir", data_dir)


def test_verify_finds_nothing_wrong_with_a_sound_store(data_dir: Path) -> None:
    assert told("verify", "--data-dir", data_dir) == {"segments": 11, "rows": 105, "stub_rows": 0, "problems": []}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            "UPDATE outbox SET data = zeroblob(length(data)) WHERE seq = 4",
            "not those that were sealed",
        ),
        ("UPDATE outbox SET digest = 'sha256:0' WHERE seq = 4", "not those that were sealed"),
        ("DELETE FROM outbox WHERE seq = 4", "segment 5 begins at 5, what is before it ends at 3"),
        ("DELETE FROM outbox WHERE seq = 10", "its row says 10"),
        ("UPDATE streams SET pending_rows = 7", "its counter pending_rows says 7"),
        ("UPDATE outbox SET seq = 99 WHERE seq = 10", "its header says segment 10"),
        ("UPDATE streams SET mark_digest = 'sha256:0'", "it does not follow from the one before"),
        (
            "DROP INDEX outbox_whole; PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = 2 WHERE name = 'actions'",
            "the file",
        ),
    ],
)
def test_verify_names_what_is_wrong(tmp_path: Path, change: str, problem: str) -> None:
    (tmp_path / "standalone.key").write_text(KEY.seed)
    with open_store(tmp_path, KEY) as store:
        asyncio.run(fill(store))
    with closing(sqlite3.connect(tmp_path / "agent.db")) as db:
        db.executescript(change)
    done = CliRunner().invoke(app, ["buffer", "verify", "--data-dir", str(tmp_path)])
    assert isinstance(done.exception, TidewireError)
    assert done.exception.exit_status == 1
    assert problem in done.stdout
    assert CliRunner().invoke(app, ["buffer", "verify", "--json", "--data-dir", str(tmp_path)]).exit_code == 1


def test_verify_knows_another_nodes_key(tmp_path: Path) -> None:
    with open_store(tmp_path, KEY) as store:
        asyncio.run(fill(store))
    with buffer.reading(tmp_path / "agent.db", new_key().public) as db:
        assert len(buffer.verify(db, new_key().public).problems) == 11


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "arrow": lambda path: pa.ipc.open_file(path).read_all().to_pylist(),
    "parquet": lambda path: pq.read_table(path).to_pylist(),
    "csv": lambda path: [{**row, "tags": json.loads(row["tags"])} for row in pacsv.read_csv(path).to_pylist()],
    "json": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
}


@pytest.mark.parametrize("how", READERS)
def test_export_copies_the_rows(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, how: str) -> None:
    to = tmp_path_factory.mktemp("out")
    files = told("export", to, "--format", how, "--data-dir", data_dir)
    assert [(Path(f["path"]).name, f["rows"]) for f in files] == [(f"p.means.{how}", 5), (f"p.readings.{how}", 100)]
    rows = READERS[how](to / f"p.readings.{how}")
    assert [(row["n"], row["name"], row["tags"], row["_seq"]) for row in rows] == [
        (n, f"é{n}", [n, n + 1], n // 10 + 1) for n in range(100)
    ]
    assert told("inspect", "--data-dir", data_dir)["streams"][1]["rows"] == 100, "they still go to the lake"


def test_export_into_one_file_takes_one_stream(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> None:
    to = tmp_path_factory.mktemp("out") / "rows.csv"
    with pytest.raises(Refused, match="2 streams do not fit one file"):
        run("export", to, "--data-dir", data_dir)
    run("export", to, "--stream", "means", "--data-dir", data_dir)
    assert pacsv.read_csv(to).num_rows == 5
    with pytest.raises(Refused, match="it exists"):
        run("export", to, "--stream", "means", "--data-dir", data_dir)


def test_a_damaged_file_that_was_set_aside_can_be_inspected_and_exported(tmp_path: Path) -> None:
    (tmp_path / "standalone.key").write_text(KEY.seed)
    with open_store(tmp_path, KEY) as store:
        asyncio.run(fill(store))
    with (tmp_path / "agent.db").open("r+b") as file:
        file.write(bytes(4096))
    broken = (tmp_path / "agent.db").rename(tmp_path / "agent.damaged-1.db")
    before = broken.read_bytes()
    words = ("--store", broken, "--data-dir", tmp_path)
    assert told("verify", *words)["rows"] == 105
    assert [f["rows"] for f in told("export", tmp_path / "out", *words)] == [5, 100]
    assert broken.read_bytes() == before


def test_without_a_store_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "buffer", "inspect", "--data-dir", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[1].startswith("  fix: ")


def test_only_the_commands_that_show_rows_load_pyarrow() -> None:
    code = "import sys, edge_agent.cli, edge_agent.buffer, edge_agent.buffer_view; print('pyarrow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_sizes_read_as_people_say_them() -> None:
    assert [size(n) for n in (0, 999, 1500, 123_456, 2_000_000_000)] == ["0 B", "999 B", "1.5 kB", "123 kB", "2.0 GB"]


PIPELINE = """
tidewire: 1
pipeline: p
buffer: {max_size: BUFFER}
sources:
  log: {file: {path: PATH}, decode: csv}
schema:
  n: {type: integer}
  ts: {type: timestamp, event_time: true, unit: s}
triggers:
  high:
    over: 10s
    when: max(n) > 5
    actions:
      on_raise:
        - exec: {program: /usr/bin/true}
        - webhook: {url: "https://example.com/x", headers: {a: "${secret:token}"}}
sinks:
  readings: {lake: {table: readings}}
"""


def validate(tmp_path: Path, path: str, size: str = "50MiB") -> list[str]:
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE.replace("PATH", path).replace("BUFFER", size))
    done = CliRunner().invoke(app, ["validate", str(file), "--data-dir", str(tmp_path / "data")])
    problems = done.exception.lines() if isinstance(done.exception, TidewireError) else []
    return [*done.output.splitlines(), *problems]


def test_validate_says_what_keeps_a_pipeline_from_working_here(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "policy.yaml").write_text("files: [/var/log/**]\nwebhook_hosts: [localhost]\n")
    lines = "\n".join(validate(tmp_path, "/etc/*.conf"))
    for problem in (
        "secret token is not set on this node",
        ".conf under files",
        "does not list /usr/bin/true under exec",
        "does not list example.com under webhook_hosts",
    ):
        assert problem in lines
    assert "is in the agent's own directory" in "\n".join(validate(tmp_path, f"{data}/*"))


def test_validate_tells_how_long_the_buffer_lasts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "policy.yaml").write_text("exec: [/usr/bin/true]\n")
    subprocess.run([sys.executable, "-m", "edge_agent", "secret", "set", "token", "--data-dir", data], input=b"x", check=True)
    assert validate(tmp_path, f"{tmp_path}/*.csv") == [
        "p can run on this node",
        "how long the buffer lasts is not known: the pipeline has not run here for a minute yet",
    ]
    with open_store(data, KEY) as store:
        asyncio.run(fill(store))
    with closing(sqlite3.connect(data / "agent.db")) as db:  # as if it had run for 1000 s
        mark, rates = (
            json.loads(db.execute("SELECT value FROM meta WHERE key = ?", (k,)).fetchone()[0]) for k in ("clock", "rates")
        )
        since = mark["node_time_us"] - 10**9
        rates = dict.fromkeys(rates, (10**6, mark["node_time_us"], since))
        db.execute("UPDATE meta SET value = ? WHERE key = 'rates'", (json.dumps(rates),))
        db.commit()
    [*_, last] = validate(tmp_path, f"{tmp_path}/*.csv", "10MiB")
    assert last == "at the measured rate this buffer lasts 76 min"
    assert "buffer.max_size: needs 100 GiB for its buffer, " in "\n".join(validate(tmp_path, f"{tmp_path}/*.csv", "100GiB"))
