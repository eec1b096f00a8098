"""What no segment can hold is given up and counted; all else becomes a commit."""

from __future__ import annotations

import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent import uncommitted
from edge_agent.uncommitted import PAYLOAD_BYTES_MAX, Uncommitted
from edge_agent.wire import to_frame
from pipelines.contract.errors import Refused
from pipelines.contract.spec import load_spec
from pipelines.engine.batch import Batch
from pipelines.engine.plan import Plan, compile_plan
from pipelines.engine.records.framing import frame_lines
from pipelines.engine.run import run_batch
from pipelines.engine.state import State

PIPELINE = """
tidewire: 1
pipeline: p
sources:
  log:
    file: {path: PATH}
schema:
  v: {type: integer}
  k: {type: string}
  k2: {type: string, from: k}
  k3: {type: string, from: k}
  k4: {type: string, from: k}
sinks:
  rows: {lake: {table: rows}}
"""
ALARM = """
tidewire: 1
pipeline: p
sources:
  log:
    file: {path: PATH}
schema:
  v: {type: integer}
  k: {type: string}
triggers:
  t:
    over: latest
    by: [k]
    when: max(v) > 0
    message: "{k} {k} is {value}"
    actions:
      on_raise:
        - log:
sinks:
  rows: {lake: {table: rows}, select: [v]}
"""
DEADLINE_S = 120


def text_of(size: int, seed: int = 1) -> str:
    """Text that does not compress well."""
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=size))


def lines(*rows: tuple[int, str]) -> bytes:
    return "".join(json.dumps({"v": v, "k": k}) + "\n" for v, k in rows).encode()


def evaluated(text: str, *rows: tuple[int, str]) -> tuple[Plan, Uncommitted, State]:
    plan = compile_plan(load_spec(text))
    state = State("lineage")
    held = Uncommitted(plan.spec, {}, state)
    state, output = run_batch(plan, state, Batch("log", 1, 1, frame_lines(lines(*rows)), "f"))
    return plan, held, held.add(state, output, "d")


def test_a_row_that_no_segment_can_hold_is_counted_as_void() -> None:
    _, held, state = evaluated(PIPELINE, (1, "a"), (2, text_of(250_000)), (3, "b"))
    header, blobs, state = held.seal(state, {"log": {"offset": 1}}, "d", final=True)
    assert header is not None
    assert sum(s["rows"] for s in header["sealed"] if s["stream"] == "rows") == 2
    assert all(len(blob) <= PAYLOAD_BYTES_MAX for blob in blobs)
    assert state.streams["rows"] == {"offered": 3, "not_selected": 0, "written": 3, "void": 1}
    assert header["ledger"]["streams"]["rows"]["void"] == 1
    told = next(s for s in header["sealed"] if s["stream"] == "_ledger")
    assert told["ledgers"]["streams"]["rows"]["void"] == 1, "the same commit tells it"


def test_the_rest_of_a_file_with_a_row_too_large_flows(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE.replace("PATH", "in.jsonl"))
    rows = [(i, "a") for i in range(1_000)]
    rows[500:500] = [(-1, text_of(250_000)), (-2, text_of(250_000, 2))]
    (tmp_path / "in.jsonl").write_bytes(lines(*rows))
    command = [sys.executable, "-m", "edge_agent", "run", "p.yaml", "--until-eof", "--data-dir", "d", "--json"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])
        assert report["balanced"] is True
        assert report["tables"]["rows"] == 1_000
        assert report["sources"]["log"]["accepted"] == 1_002
        assert report["streams"]["rows"]["void"] == 2


def test_what_incidents_tell_of_long_texts_is_cut() -> None:
    _, held, state = evaluated(ALARM, *((1, f"{i}{text_of(250_000, i)}") for i in range(20)))
    header, blobs, _ = held.seal(state, {"log": {"offset": 1}}, "d", final=True)
    assert header is not None
    assert len(header["transitions"]) == len({t["incident"] for t in header["transitions"]}) == 20
    for told in [*header["transitions"], *(a["context"] for a in header["actions"])]:
        group = json.loads(told["group"]) if isinstance(told["group"], str) else told["group"]
        assert group["k"].endswith("…")
        assert len(group["k"]) == 1_024
        assert len(told["message"]) <= 4_096
    assert len(json.dumps({**header, "state_set": []})) < 20 * 20_000
    assert sum(s["rows"] for s in header["sealed"] if s["stream"] == "_incidents") == 20
    assert len(to_frame({"type": "commit", **header}, blobs)) < 32 * 2**20


def test_a_state_beyond_its_bound_is_refused_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncommitted, "STATE_BYTES_MAX", 100_000)
    steps = "steps:\n  - previous: {take: {before: k}, by: [v]}\nsinks:"
    plan, held, state = evaluated(PIPELINE.replace("sinks:", steps))
    for i in range(100):  # one group, written again and again: small
        state, output = run_batch(plan, state, Batch("log", i, i, frame_lines(lines((1, text_of(10_000, i)))), "f"))
        state = held.add(state, output, "d")
        _, _, state = held.seal(state, {"log": {"offset": i}}, "d", final=False)
    with pytest.raises(Refused, match=r"its state is \d+ MiB, more than 0 MiB: most of it in step\.previous") as caught:
        for i in range(100):
            state, output = run_batch(plan, state, Batch("log", i, i, frame_lines(lines((i, text_of(10_000, i)))), "f"))
            state = held.add(state, output, "d")
            _, _, state = held.seal(state, {"log": {"offset": 100 + i}}, "d", final=False)
    assert 9 <= i <= 15
    assert "max_groups" in caught.value.hint


def test_i4_the_last_commit_tells_the_ledgers_even_if_nothing_came_since_the_one_before() -> None:
    _, held, state = evaluated(PIPELINE, (1, "a"))
    header, _, state = held.seal(state, {"log": {"offset": 1}}, "d", final=False)
    assert header is not None and [s["stream"] for s in header["sealed"]] == ["rows"]
    header, _, state = held.seal(state, {"log": {"offset": 1}}, "d", final=True)
    assert header is not None and [s["stream"] for s in header["sealed"]] == ["_ledger"]
    assert held.seal(state, {"log": {"offset": 1}}, "d", final=True)[0] is None, "once"


def test_i4_every_segment_says_how_many_rows_of_its_stream_are_sealed() -> None:
    """After the last segment of a commit that is what was written and is not void."""
    _, held, state = evaluated(PIPELINE, (1, "a"), *((i, text_of(60_000, i)) for i in range(12)), (2, text_of(250_000)))
    header, _, state = held.seal(state, {"log": {"offset": 1}}, "d", final=False)
    assert header is not None
    sealed = [s for s in header["sealed"] if s["stream"] == "rows"]
    assert len(sealed) > 1
    before = 0
    for one in sealed:
        before += one["rows"]
        assert one["ledgers"]["sealed"] == before
        assert one["ledgers"]["commit"] == state.epoch - 1
    counts = state.streams["rows"]
    assert before == counts["written"] - counts["void"] == 13
