"""What a runner makes of its node: labels and parameters in sources, lookup tables from files, secrets, raw bytes that stay."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from test_runner import Agent, _no_exit, append, line, running  # noqa: F401 - a fixture

from edge_agent import quarantine, runner
from edge_agent.lookups import LookupFiles
from edge_agent.quarantine import unpack
from pipelines.contract.errors import Refused
from pipelines.contract.frames import sha256

HEAD = """
tidewire: 1
pipeline: p
params:
  limit: {type: double, default: 10}
sources:
  log:
    file: {path: "FILE"}
schema:
  ts: {type: timestamp, event_time: true, unit: s}
  v: {type: double}
  k: {type: string, default: a}
"""
SINKS = """
sinks:
  rows: {lake: {table: rows}}
"""
LOOKUP = """
lookups:
  places: {file: "CSV", key: [k], columns: {floor: integer}}
steps:
  - lookup: {table: places, take: [floor]}
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "COMMIT_S", 0.05)
    monkeypatch.setattr(runner, "STATS_S", 0.05)


def node(**labels: str) -> dict[str, Any]:
    return {"id": "n1", "name": "one", "labels": labels, "facts": {}}


def failed(agent: Agent) -> tuple[str, str]:
    message = agent.until("failed")
    return message["reason"], message["hint"]


# -- references


def test_a_source_reads_where_the_nodes_label_says(tmp_path: Path) -> None:
    (tmp_path / "l1").mkdir()
    append(tmp_path / "l1" / "a.log", line(0, 1))
    with running(tmp_path, HEAD.replace("FILE", f"{tmp_path}/${{label:line}}/*.log") + SINKS) as agent:
        agent.start(node=node(line="l1"))
        agent.until(lambda m: len(agent.rows()) == 1)


def test_a_source_is_opened_anew_when_a_parameter_moves_it(tmp_path: Path) -> None:
    append(tmp_path / "10.log", line(0, 1))
    append(tmp_path / "20.log", line(1, 2))
    with running(tmp_path, HEAD.replace("FILE", f"{tmp_path}/${{param:limit}}.log") + SINKS) as agent:
        agent.start()
        agent.until(lambda m: len(agent.rows()) == 1)
        agent.send("params", params={"limit": 20.0}, params_digest="p2")
        agent.until(lambda m: len(agent.rows()) == 2)
        agent.send("params", params={"limit": 10.0}, params_digest="p1")
        append(tmp_path / "10.log", line(2, 3))
        agent.until(lambda m: len(agent.rows()) == 3)
    assert [r["v"] for r in agent.rows()] == [1, 2, 3], "what was read is not read again"


def test_a_label_that_is_not_set_fails_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, HEAD.replace("FILE", "/x/${label:line}") + SINKS) as agent:
        agent.start()
        reason, hint = failed(agent)
    assert reason == "label line is not set on this node" and "--label line=" in hint


# -- lookup tables


def start_lookup(agent: Agent) -> None:
    agent.start()
    agent.until("ready")


def put(path: Path, text: str) -> str:
    """Replaced as one does; the digest of the bytes."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.utime(new, ns=(time.time_ns(), time.time_ns()))
    new.replace(path)
    return sha256(text.encode())


def test_lookup_tables_come_from_files_and_their_digest_is_lineage(tmp_path: Path) -> None:
    log, places = tmp_path / "a.log", tmp_path / "places.csv"
    first = put(places, "k,floor\na,1\n")
    append(log, line(0, 1))
    with running(log, (HEAD + LOOKUP + SINKS).replace("FILE", str(log)).replace("CSV", str(places))) as agent:
        start_lookup(agent)
        agent.until(lambda m: len(agent.rows()) == 1)
        second = put(places, "k,floor\na,2\n")
        agent.until(lambda m: bool(_see(log, agent) and agent.rows()[-1]["floor"] == 2))
    made_with = {r["floor"]: head["lookups"] for head, payload in agent.segments for r in _rows(agent, head, payload)}
    assert made_with == {1: {"places": first}, 2: {"places": second}}


def _see(log: Path, agent: Agent) -> bool:
    """One more row, so that there is something to see."""
    append(log, line(len(agent.messages), 1))
    return True


def _rows(agent: Agent, head: dict[str, Any], payload: bytes) -> list[dict[str, Any]]:
    from pipelines.engine.ipc import decode_rows

    return decode_rows(payload).to_pylist() if head["stream"] == "rows" and head["rows"] else []


@pytest.mark.parametrize("broken", ["k,floor\na,high\n", "k,floor\na,1\na,2\n", "k,floor\na\n", ""])
def test_a_broken_new_file_leaves_the_old_table_and_is_told(tmp_path: Path, broken: str) -> None:
    log, places = tmp_path / "a.log", tmp_path / "places.csv"
    put(places, "k,floor\na,1\n")
    with running(log, (HEAD + LOOKUP + SINKS).replace("FILE", str(log)).replace("CSV", str(places))) as agent:
        start_lookup(agent)
        put(places, broken)
        note = agent.until(lambda m: m["type"] == "note" and m["about"] == "lookup places")
        assert note["level"] == "warning" and "the former table stays in use" in note["text"]
        append(log, line(0, 1))
        agent.until(lambda m: len(agent.rows()) == 1)
        assert agent.rows()[0]["floor"] == 1
        put(places, "k,floor\na,3\n")
        agent.until(lambda m: m["type"] == "note" and m["about"] == "lookup places" and m["level"] == "info")
        append(log, line(1, 1))
        agent.until(lambda m: len(agent.rows()) == 2)
    assert agent.rows()[1]["floor"] == 3


@pytest.mark.parametrize("text", [None, "k,floor\na,high\n"])
def test_a_pipeline_does_not_start_without_its_table(tmp_path: Path, text: str | None) -> None:
    places = tmp_path / "places.csv"
    if text:
        put(places, text)
    with running(tmp_path, (HEAD + LOOKUP + SINKS).replace("FILE", "x").replace("CSV", str(places))) as agent:
        agent.start()
        reason, _ = failed(agent)
    assert ("No such file" in reason) if text is None else ("high" in reason)


def test_policy_and_limits_hold_for_lookup_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    put(path, "k\n" + "a\n" * 100)
    with pytest.raises(Refused, match="does not allow to read it"):
        LookupFiles({"t": str(path)}, lambda _: False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="no regular file"):
        LookupFiles({"t": str(tmp_path / "pipe")}, lambda _: True)
    monkeypatch.setattr("pipelines.engine.lookup_csv.LOOKUP_ROWS_MAX", 99)
    with pytest.raises(Refused, match="100 rows, 99 are the most"):
        LookupFiles({"t": str(path)}, lambda _: True)
    monkeypatch.setattr("edge_agent.lookups.LOOKUP_BYTES_MAX", 50)
    with pytest.raises(Refused, match="more than"):
        LookupFiles({"t": str(path)}, lambda _: True)


ARTIFACT = """
lookups:
  places: {artifact: places, key: [k], columns: {floor: integer}}
steps:
  - lookup: {table: places, take: [floor]}
"""


def test_an_artifact_is_taken_over_without_a_restart_and_its_digest_is_lineage(tmp_path: Path) -> None:
    """The agent keeps the bytes in its own directory, which no source and no file of the pipeline may read."""
    log, private = tmp_path / "a.log", tmp_path / "private"
    private.mkdir()
    texts = {"one": "k,floor\na,1\n", "two": "k,floor\na,2\n", "misfit": "k,storey\na,3\n"}
    digests = {name: put(private / name, text) for name, text in texts.items()}

    def given(name: str, digest: str = "") -> dict[str, Any]:
        return {"places": [str(private / name), digest or digests[name]]}

    append(log, line(0, 1))
    with running(log, (HEAD + ARTIFACT + SINKS).replace("FILE", str(log))) as agent:
        agent.start(private=str(private), tables=given("one"))
        assert agent.until("ready")["tables"] == {"places": digests["one"]}
        agent.until(lambda m: len(agent.rows()) == 1)
        for name, says in [("misfit", 'no column "floor"'), ("gone", "No such file")]:
            agent.channel.send({"type": "tables", "tables": given(name, sha256(name.encode()) if name == "gone" else "")})
            note = agent.until(lambda m: m["type"] == "note" and m["about"] == "lookup places")
            assert says in note["text"] and "the former table stays in use" in note["text"]
            assert agent.until("tables")["tables"] == {"places": digests["one"]}
        agent.channel.send({"type": "tables", "tables": given("two", sha256(b"others"))})
        assert "it is damaged" in agent.until(lambda m: m["type"] == "note" and m["about"] == "lookup places")["text"]
        agent.channel.send({"type": "tables", "tables": given("two")})
        assert agent.until(lambda m: m["type"] == "tables" and m["tables"] == {"places": digests["two"]})
        agent.until(lambda m: bool(_see(log, agent) and agent.rows()[-1]["floor"] == 2))
    made_with = {r["floor"]: head["lookups"] for head, payload in agent.segments for r in _rows(agent, head, payload)}
    assert made_with == {1: {"places": digests["one"]}, 2: {"places": digests["two"]}}


def test_a_damaged_artifact_does_not_start_a_pipeline(tmp_path: Path) -> None:
    log, table = tmp_path / "a.log", tmp_path / "t"
    digest = put(table, "k,floor\na,1\n")
    put(table, "k,floor\na,9\n")
    with running(log, (HEAD + ARTIFACT + SINKS).replace("FILE", str(log))) as agent:
        agent.start(tables={"places": [str(table), digest]})
        assert "it is damaged" in failed(agent)[0]


def test_a_file_that_is_being_written_is_left_alone_until_it_lies_still(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    put(path, "k\na\n")
    files = LookupFiles({"t": str(path)}, lambda _: True)
    for i in range(3):
        put(path, f"k\na\n{i}\n" * (i + 1))
        assert not files.look()
    assert "t" in files.look() and not files.look()
    path.unlink()
    assert not files.look()
    assert isinstance(files.look()["t"], Refused)
    assert not files.look(), "told once"


# -- secrets and what stays

REDACT = """
steps:
  - redact:
      k: {hash: {key: "${secret:k}", length: 16}}
"""


def test_the_secret_of_a_step_is_used_and_told_to_nobody(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, line(0, 1), '{"ts": 1, "v": "x"}\n')
    with running(log, (HEAD + REDACT + SINKS).replace("FILE", str(log))) as agent:
        agent.start("until_eof", secrets={"k": "s3cret-of-k"})
        agent.until("stopped")
    [row] = agent.rows()
    assert len(row["k"]) == 16 and row["k"] != "a"
    told = json.dumps(agent.messages).encode() + b"".join([*agent.state.values(), *(payload for _, payload in agent.segments)])
    assert b"s3cret" not in told


def test_a_secret_that_is_missing_is_a_reason_to_fail(tmp_path: Path) -> None:
    with running(tmp_path, (HEAD + REDACT + SINKS).replace("FILE", "x")) as agent:
        agent.start(secrets={})
        assert "secret k is not set on this node" in failed(agent)[0]


@pytest.mark.parametrize(
    ("key", "goes", "stays"),
    [
        ("", True, False),
        ("quarantine: {raw: upload}", True, False),
        ("quarantine: {raw: local}", False, True),
        ("quarantine: {raw: drop}", False, False),
        ("sensitive", False, True),
    ],
)
def test_where_raw_bytes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, goes: bool, stays: bool) -> None:
    monkeypatch.setattr(quarantine, "CHUNK_ROWS_MAX", 2)
    log = tmp_path / "a.log"
    lines = [f'{{"ts": {i}, "v": "bad"}}' for i in range(5)]
    append(log, line(0, 1), *(f"{text}\n" for text in lines))
    text = HEAD.replace("FILE", str(log)) + SINKS
    if key == "sensitive":
        text = text.replace("k: {type: string, default: a}", "k: {type: string, default: a, sensitive: true}")
        text = text.replace("{table: rows}", "{table: rows}, select: [ts, v]")
    else:
        text += key
    with running(log, text) as agent:
        agent.start("until_eof")
        agent.until("stopped")
    uploaded = agent.rows("_quarantine")
    assert [r["raw"] for r in uploaded] == (lines if goes else [None] * 5)
    assert all(r["reasons"] for r in uploaded)
    kept = [row for _, data in agent.kept for row in unpack(data)]
    assert [row["raw"] for row in kept] == (lines if stays else [])
    assert all(row["reasons"] == r["reasons"] and row["offset"] == r["offset"] for row, r in zip(kept, uploaded, strict=False))
    assert [rows for rows, _ in agent.kept] == ([2, 2, 1] if stays else [])
    assert agent.ledger["streams"]["_quarantine"]["written"] == 5
