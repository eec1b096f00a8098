"""A runner over a socket pair, with a scripted agent at the other end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from edge_agent import runner, uncommitted, wire
from edge_agent.sources import file
from edge_agent.wire import Channel, parts
from pipelines.contract.spec import load_spec
from pipelines.engine.ipc import decode_rows

DEADLINE_S = 30
PIPELINE = """
tidewire: 1
pipeline: p
params:
  limit: {type: double, default: 10}
sources:
  log:
    file: {path: PATH}
schema:
  ts: {type: timestamp, event_time: true, unit: s}
  v: {type: double}
windows:
  w:
    every: 10s
    select:
      n: count(*)
triggers:
  hot:
    over: 5s
    when: last(v) > $limit
    actions:
      on_raise:
        - log:
      on_ack:
        - log: {message: seen}
sinks:
  rows: {lake: {table: rows}}
  out: {lake: {table: windows}, from: w}
"""


class Agent:
    """The agent's half: it stores what is committed and answers, unless told to withhold."""

    def __init__(self, channel: Channel, path: Path, text: str = PIPELINE) -> None:
        self.channel = channel
        self.text = text.replace("PATH", str(path))
        self.state: dict[str, bytes] = {}
        self.positions: dict[str, Any] = {}
        self.ledger: dict[str, Any] = {}
        self.messages: list[dict[str, Any]] = []
        self.segments: list[tuple[dict[str, Any], bytes]] = []
        self.transitions: list[dict[str, Any]] = []
        self.kept: list[tuple[int, bytes]] = []  # what stays on the node
        self.last_n = self.answered = 0
        self.withholds = False

    def start(self, mode: str = "follow", *, successor: str = "", private: str = "/nonexistent", **more: Any) -> None:
        header = {
            "type": "start",
            "mode": mode,
            "params": {"limit": 10.0},
            "params_digest": "p1",
            "node": {"id": "n1", "name": "one", "labels": {}, "facts": {}},
            "node_time_offset_us": 0,
            "lineage": "lineage",
            "positions": self.positions,
            "ledger": self.ledger,
            "state_parts": len(told := list(parts(self.state))),
            "policy": {"files": ["*"]},
            "private": private,
        }
        after = load_spec(successor.replace("PATH", "x")).canonical_bytes() if successor else b""
        self.channel.send({**header, **more}, [load_spec(self.text).canonical_bytes(), after])
        for part in told:
            self.channel.send({"type": "state", "keys": list(part)}, list(part.values()))

    def take(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The next message; a commit is stored, and answered unless withheld."""
        got = self.channel.receive(timeout_s)
        assert got is not None, f"nothing within {timeout_s} s; so far {[m['type'] for m in self.messages]}"
        header, blobs = got
        self.messages.append(header)
        if header["type"] == "commit":
            self._store(header, blobs)
            if not self.withholds:
                self.answer()
        return header

    def _store(self, header: dict[str, Any], blobs: list[bytes]) -> None:
        assert header["n"] == self.last_n + 1
        self.last_n = header["n"]
        keys = header["state_set"]
        assert len(blobs) == len(keys) + len(header["sealed"]) + len(header["quarantined"])
        for key in header["state_delete"]:
            del self.state[key]
        self.state.update(zip(keys, blobs, strict=False))
        self.positions, self.ledger = header["positions"], header["ledger"]
        kept = len(blobs) - len(header["quarantined"])
        self.segments += zip(header["sealed"], blobs[len(keys) : kept], strict=True)
        self.kept += zip(header["quarantined"], blobs[kept:], strict=True)
        self.transitions += header["transitions"]

    def answer(self) -> None:
        while self.answered < self.last_n:
            self.answered += 1
            self.channel.send({"type": "committed", "n": self.answered})

    def until(self, what: Any) -> dict[str, Any]:
        """Take messages up to one of this type, or one that makes `what` true."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            message = self.take(max(0.01, deadline - time.monotonic()))
            if message["type"] == "failed" and what != "failed":
                raise AssertionError(message)
            if message["type"] == what or (callable(what) and what(message)):
                return message

    def send(self, kind: str, **fields: Any) -> None:
        self.channel.send({"type": kind, **fields})

    def rows(self, stream: str = "rows") -> list[dict[str, Any]]:
        return [
            r
            for head, payload in self.segments
            if head["stream"] == stream and head["rows"]
            for r in decode_rows(payload).to_pylist()
        ]


@contextmanager
def running(path: Path, text: str = PIPELINE) -> Iterator[Agent]:
    """`main` in a thread."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_quietly, args=(theirs,), daemon=True)
    thread.start()
    agent = Agent(Channel(ours), path, text)
    try:
        yield agent
    finally:
        ours.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the runner outlives its agent"


def _quietly(sock: socket.socket) -> None:
    with suppress(SystemExit):
        runner.main(sock)


@pytest.fixture(autouse=True)
def _no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, the end of the agent must not end the test."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(runner.os, "_exit", leave)


def line(second: float, v: object) -> str:
    return json.dumps({"ts": 1_767_225_600 + second, "v": v}) + "\n"


def append(path: Path, *lines: str) -> None:
    with path.open("a") as out:
        out.write("".join(lines))


def values(agent: Agent) -> list[float]:
    return [r["v"] for r in agent.rows()]


def test_bounded_input_is_committed_in_order_and_ends(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, *(line(i, 1 + i % 7) for i in range(30_000)), "garbage\n")
    with running(log) as agent:
        agent.start("until_eof")
        assert agent.take()["type"] == "ready"
        agent.until("stopped")
    assert [m["n"] for m in agent.messages if m["type"] == "commit"] == list(range(1, agent.last_n + 1))
    assert values(agent) == [1 + i % 7 for i in range(30_000)]
    assert sum(r["n"] for r in agent.rows("out")) == 30_000
    assert agent.ledger["sources"]["log"]["read"] == 30_001
    assert agent.ledger["sources"]["log"]["undecodable"] == 1
    assert [r["raw"] for r in agent.rows("_quarantine")] == ["garbage"]
    assert agent.segments[-1][0]["stream"] == "_ledger"
    assert agent.segments[-1][0]["ledgers"]["streams"]["rows"]["written"] == 30_000


def test_rows_follow_a_growing_file_and_stop_seals_everything(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, line(0, 1))
    with running(log) as agent:
        agent.start(commit_s=0.05)
        agent.until(lambda m: len(agent.rows()) == 1)
        append(log, line(1, 2), line(2, 3))
        agent.until(lambda m: len(agent.rows()) == 3)
        append(log, line(3, 4))
        agent.send("stop")
        agent.until("stopped")
    assert values(agent)[:3] == [1, 2, 3]
    assert agent.positions["log"]["files"][str(log)]["offset"] == sum(len(line(i, i + 1)) for i in range(len(values(agent))))


def test_an_incident_is_acted_on_before_and_committed_at_once(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with running(log) as agent:
        agent.start()
        agent.until("ready")
        began = time.monotonic()
        append(log, line(0, 11))
        act = agent.until("act")
        commit = agent.until("commit")
        assert time.monotonic() - began < 0.9, "it waited for the rhythm of commits"
        assert [a["kind"] for a in act["actions"]] == ["log"]
        assert commit["actions"] == act["actions"]
        assert [t["transition"] for t in commit["transitions"]] == ["raised"]
        assert agent.rows("_incidents")[0]["incident"] == act["actions"][0]["incident"]
        agent.send("acknowledge", incident=act["actions"][0]["incident"], by="ann", reason="seen", at="now")
        assert agent.until("act")["actions"][0]["config"] == {"message": "seen"}
        assert [(t["transition"], t["by"]) for t in agent.until("commit")["transitions"]] == [("acknowledged", "ann")]
        agent.send("acknowledge", incident="i-unknown", by="ann", reason="", at="now")
        append(log, line(1, 1))
        agent.until(lambda m: [t["transition"] for t in agent.transitions] == ["raised", "acknowledged", "cleared"])


def test_what_is_shelved_is_so_before_the_first_row_and_until_it_is_not_any_more(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, line(0, 11))
    with running(log) as agent:
        agent.start(shelves={"hot": [True, "ann", "being mended"]})
        agent.until(lambda m: agent.transitions)
        assert [(t["transition"], t["flags"]) for t in agent.transitions] == [("raised", "shelved")]
        agent.send("stop")
        agent.until("stopped")
        assert "act" not in [m["type"] for m in agent.messages]
    with running(log) as later:
        later.state, later.positions, later.ledger = agent.state, agent.positions, agent.ledger
        later.start(shelves={"hot": [True, "ann", "being mended"]})
        later.until("stats")
        assert later.transitions == [], "a restart says nothing anew"
        later.send("shelves", shelves={"hot": [False, "bob", "mended"]})
        assert later.until("act")["actions"][0]["transition"] == "unshelved"
        later.until(lambda m: later.transitions)
        assert [(t["transition"], t["by"], t["reason"]) for t in later.transitions] == [("unshelved", "bob", "mended")]


def test_new_params_hold_from_now_on_and_older_rows_keep_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "COMMIT_S", 0.05)
    monkeypatch.setattr(runner, "STATS_S", 0.05)
    log = tmp_path / "a.log"
    append(log, line(0, 1))
    with running(log) as agent:
        agent.withholds = True
        agent.start()
        agent.until("commit")
        for i in range(1, 5):  # commits pile up unanswered: the change must not wait for them
            append(log, line(i, 1))
            agent.until("commit") if i < 4 else None
        agent.until(lambda m: m.get("accepted") == 5)  # the last row is evaluated and cannot be committed
        agent.send("params", params={"limit": 0.0}, params_digest="p2")
        append(log, line(5, 2))
        assert agent.until("act")["actions"][0]["transition"] == "raised"
        agent.withholds = False
        agent.answer()
        agent.until(lambda m: len(agent.rows()) == 6)
    by_params = [
        (head["params"], [r["v"] for r in decode_rows(p).to_pylist()]) for head, p in agent.segments if head["stream"] == "rows"
    ]
    assert [v for params, found in by_params for v in found if params == "p2"] == [2.0]
    assert [v for params, found in by_params for v in found if params == "p1"] == [1.0] * 5


def test_i1_a_killed_runner_resumes_from_the_last_commit(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    stored: Agent | None = None
    for turn in range(4):
        append(log, *(line(5000 * turn + i, 12 if i == 9 and turn < 3 else 1) for i in range(5000)))
        with running(log) as agent:
            if stored is not None:
                agent.state, agent.positions, agent.ledger = stored.state, stored.positions, stored.ledger
                agent.segments, agent.transitions = stored.segments, stored.transitions
            agent.start("until_eof")
            agent.until("commit" if turn < 3 else "stopped")
        stored = agent
    assert stored is not None
    assert len(stored.rows()) == 20_000
    assert sum(r["n"] for r in stored.rows("out")) == 20_000
    assert [t["transition"] for t in stored.transitions] == ["raised", "cleared"] * 3
    assert len({t["incident"] for t in stored.transitions}) == 3
    assert stored.ledger["sources"]["log"]["read"] == 20_000


def test_i15_without_commits_alarms_go_on_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "BLOCK_BYTES", 300_000)
    monkeypatch.setattr(runner, "STALL_S", 0.3)
    monkeypatch.setattr(runner, "FULL_BYTES", 200_000)
    monkeypatch.setattr(uncommitted, "KEPT_BYTES_MAX", 1_000_000)
    monkeypatch.setattr(uncommitted, "SEAL_BYTES_MAX", 50_000)
    log = tmp_path / "a.log"
    with running(log) as agent:
        agent.withholds = True
        agent.start()
        agent.until("ready")
        for turn in range(12):
            append(
                log, *(line(turn * 10_000 + i, 1) for i in range(10_000)), line(turn * 10_000 + 9_999, 11 if turn == 11 else 1)
            )
        assert agent.until("act")["actions"][0]["transition"] == "raised"
        assert agent.last_n == runner.IN_FLIGHT_MAX
        kept = max(m["uncommitted_bytes"] for m in [*agent.messages, agent.until("stats")] if m["type"] == "stats")
        assert kept < 2_000_000
        agent.withholds = False
        agent.answer()
        agent.send("stop")
        agent.until("stopped")
    counts = agent.ledger["streams"]["rows"]
    assert counts["void"] > 0
    assert counts["written"] == 120_012 == counts["void"] + len(agent.rows())
    assert agent.ledger["sources"]["log"]["accepted"] == 120_012
    assert [t["transition"] for t in agent.transitions] == ["raised"]


def test_bounded_input_waits_for_commits_and_gives_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "BLOCK_BYTES", 300_000)
    monkeypatch.setattr(runner, "STALL_S", 0.0)
    monkeypatch.setattr(runner, "FULL_BYTES", 100_000)
    monkeypatch.setattr(uncommitted, "SEAL_BYTES_MAX", 50_000)
    monkeypatch.setattr(uncommitted, "KEPT_BYTES_MAX", 5_000_000)
    log = tmp_path / "a.log"
    append(log, *(line(i / 10, 1) for i in range(120_000)))
    with running(log) as agent:
        agent.withholds = True
        agent.start("until_eof")
        agent.until(lambda m: agent.last_n == runner.IN_FLIGHT_MAX)
        agent.until("stats")
        assert agent.last_n == runner.IN_FLIGHT_MAX
        agent.withholds = False
        agent.answer()
        agent.until("stopped")
    assert len(agent.rows()) == 120_000
    assert "void" not in agent.ledger["streams"]["rows"]


def test_a_drain_emits_what_the_successor_does_not_carry_over(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, line(0, 11), line(1, 12))
    with running(log) as first:
        first.start()
        first.until(lambda m: len(first.rows()) == 2)
        first.send("stop")
        first.until("stopped")
    assert first.rows("out") == []
    changed = PIPELINE.replace("count(*)", "max(v)").replace("  hot:", "  other:")
    with running(log) as agent:
        agent.state, agent.positions, agent.ledger = first.state, first.positions, first.ledger
        append(log, line(2, 1))
        agent.start("drain", successor=changed)
        agent.until("stopped")
    assert [(r["n"], r["_partial"]) for r in agent.rows("out")] == [(2, True)]
    assert [(t["transition"], t["reason"][:7]) for t in agent.transitions] == [("retired", "retired")]
    assert agent.rows() == []
    assert agent.positions == first.positions
    assert not [key for key in agent.state if json.loads(key)[0] in ("window", "alarm", "span")]


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with running(tmp_path / "none.log") as agent:
        agent.start("until_eof")
        failed = agent.until("failed")
        assert "no file matches" in failed["reason"]
        assert "relative to where" in failed["hint"]
    with running(tmp_path / "none.log", PIPELINE.replace("default: 10", "description: x")) as agent:
        agent.start(params={})
        assert "params.limit: has no value" in agent.until("failed")["reason"]


def test_a_source_in_trouble_is_a_note_and_so_is_its_end(tmp_path: Path) -> None:
    log = tmp_path / "late.log"
    with running(log) as agent:
        agent.start()
        note = agent.until("note")
        assert (note["level"], note["about"], note["text"]) == ("warning", "source log", f"no file matches {log}")
        append(log, line(0, 1))
        assert agent.until("note")["text"] == "reads again"


def test_no_source_reads_the_agents_own_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    append(tmp_path / "data" / "node.key", line(0, 1))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in (tmp_path / "data" / "node.key", tmp_path / "link" / "*", tmp_path / "data" / ".." / "data" / "node.key"):
        with running(path) as agent:
            agent.start("until_eof", private=str(tmp_path / "data"))
            assert "do not allow reading" in agent.until("failed")["reason"]


def test_i11_a_runner_process_ends_when_its_agent_is_gone(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    code = "import socket, sys; from edge_agent.runner import main; main(socket.socket(fileno=int(sys.argv[1])))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
    )
    theirs.close()
    agent = Agent(Channel(ours), tmp_path / "a.log")
    append(tmp_path / "a.log", line(0, 1))
    agent.start()
    agent.until("ready")
    ours.close()
    _, errors = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, errors) == (0, b"")


WIDE = """
tidewire: 1
pipeline: p
params:
  limit: {type: double, default: 10}
sources:
  log:
    file: {path: PATH}
schema:
  ts: {type: timestamp, event_time: true, unit: s}
  v: {type: integer}
  k: {type: string}
windows:
  w:
    every: 1h
    by: [v]
    select:
      kept: last(k)
sinks:
  out: {lake: {table: windows}, from: w}
"""


def wide_line(v: int) -> str:
    return json.dumps({"ts": 1_767_225_600 + v, "v": v, "k": f"{v}-" + "x" * 200_000}) + "\n"


def test_a_state_larger_than_any_frame_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 16 * 2**20)
    monkeypatch.setattr(wire, "PART_BYTES", 2**20)
    log = tmp_path / "a.log"
    with running(log, WIDE) as agent:
        agent.start(commit_s=0.05)
        for first in range(0, 100, 20):
            append(log, *map(wide_line, range(first, first + 20)))
            agent.until(lambda m, n=first + 20: agent.ledger.get("sources", {}).get("log", {}).get("read") == n)
    before = agent
    assert sum(map(len, before.state.values())) > wire.FRAME_BYTES_MAX
    append(log, wide_line(100))
    with running(log, WIDE) as agent:
        agent.state, agent.positions, agent.ledger = before.state, before.positions, before.ledger
        agent.start("until_eof")
        agent.until("stopped")
    assert agent.ledger["streams"]["windows.w"]["emitted"] == 101, "one row of each group, those of before and the new one"


def test_what_is_too_much_for_one_commit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "a.log"
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 2**20)
    append(log, *map(wide_line, range(10)))
    with running(log, WIDE) as agent:
        agent.start(commit_s=0.05)
        told = agent.until("failed")
    assert "more than the 1 MiB that go from a runner to its agent" in told["reason"]
    assert "lower max_groups" in told["hint"]
