"""What the manifest asks is answered once, by a child with limits, from what the node holds; the agent goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from support import NODE, new_key, open_store, until

from edge_agent import answers, logs, quarantine, shares
from edge_agent import requests as requests_module
from edge_agent.keeper import Status
from edge_agent.outbox import Sealed
from edge_agent.policy import Policy
from edge_agent.requests import Passing, Requests
from edge_agent.secret_store import SecretStore
from edge_agent.shares import Usage
from edge_agent.store import Commit, Store
from edge_agent.supervisor import Supervisor
from pipelines.contract.keys import Key
from pipelines.contract.node_state import Manifest, Request
from pipelines.contract.segment import REQUESTS, ROWS
from pipelines.contract.version import PipelineVersion
from pipelines.engine.ipc import decode_rows, encode_rows

OVENS = PipelineVersion(
    b"""
tidewire: 1
pipeline: ovens
sources: {log: {file: {path: "*.jsonl"}}}
schema:
  ts: {type: timestamp, event_time: true}
  oven: {type: string}
  temp_c: {type: double}
windows:
  by_oven: {every: 10s, by: [oven], select: {avg_c: avg(temp_c)}}
sinks:
  readings: {lake: {table: oven_readings}}
  summary: {lake: {table: oven_summary}, from: by_oven}
""",
    3,
)


FOR_EVER = "select max(range % 7) from range(1000000000000000)"  # and in no memory


class Record:
    """Of a NodeRecord, what requests need."""

    def __init__(self) -> None:
        self.manifest = Manifest(NODE, 1, 0)
        self._callbacks: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def ask(self, **requests: Request) -> None:
        self.manifest = Manifest(NODE, 1, self.manifest.generation + 1, requests=requests)
        for callback in self._callbacks:
            callback()


class Node:
    def __init__(self, folder: Path, store: Store, policy: Policy | None = None, runs: Sequence[str] = ("ovens",)) -> None:
        self.store, self.record = store, Record()
        keepers = {name: SimpleNamespace(version=OVENS, params={"limit": 5}) for name in runs}
        agent: Any = SimpleNamespace(
            store=store,
            record=self.record,
            policy=policy or Policy(),
            secrets=SecretStore(folder),
            keepers=keepers,
            version=lambda name: OVENS,
            status_of=lambda name: Status("running", since="2026-01-01"),
        )
        self.requests = Requests(agent, Supervisor())

    async def rows(self) -> list[dict[str, Any]]:
        """Every row of an answer that is sealed."""
        found: list[dict[str, Any]] = []
        sent: dict[tuple[str, str], int] = {}
        while batch := await self.store.pending_segments(1 << 40, sent):
            for pending in batch:
                sent[pending.run, pending.stream] = pending.seq
                if pending.header().kind == REQUESTS:
                    found += decode_rows(pending.payload()).to_pylist()
        return found

    async def answer(self, name: str = "q", timeout_s: float = 30) -> list[dict[str, Any]]:
        """Once it is over; its rows are numbered without a gap."""

        async def over() -> list[dict[str, Any]]:
            rows = [row for row in await self.rows() if row["request"] == name]
            return rows if rows and rows[-1]["kind"] != "row" else []

        found: list[dict[str, Any]] = await until(over, f"the answer to {name}", timeout_s)
        assert [row["n"] for row in found[:-1]] == list(range(1, len(found)))
        assert found[-1]["n"] == len(found) - 1
        return found


@asynccontextmanager
async def answering(folder: Path, key: Key | None = None, **options: Any) -> AsyncIterator[Node]:
    with open_store(folder, key) as store:
        node = Node(folder, store, **options)
        running = asyncio.create_task(node.requests.run())
        try:
            yield node
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def run(test: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
    asyncio.run(test(*args))


def query(sql: str, **limits: Any) -> Request:
    return Request("query", {"sql": sql}, "ann", **limits)


async def put(store: Store, *temps: float, stream: str = "readings", pipeline: str = "ovens") -> None:
    """A commit of these readings."""
    await store.checkpoint(pipeline)
    rows = pa.table({"oven": ["a"] * len(temps), "temp_c": [float(t) for t in temps]})
    sealed = Sealed(stream, ROWS, "oven_readings", len(temps), encode_rows(rows))
    await store.commit(pipeline, OVENS.digest, 3, Commit({}, {}, sealed=[sealed]))


def texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["row"] for row in rows[:-1]]


def test_a_query_sees_the_rows_that_wait_for_the_lake(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            await put(node.store, 1, 2)
            await put(node.store, 30)
            node.record.ask(q=query("select oven, sum(temp_c) as s, count(*) as n from oven_readings group by oven"))
            rows = await node.answer()
            assert texts(rows) == ['{"oven": "a", "s": 33.0, "n": 3}']
            assert (rows[-1]["kind"], rows[-1]["note"]) == ("done", "")

    run(go)


def test_tables_of_which_nothing_waits_are_there_without_rows(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            node.record.manifest = Manifest(NODE, 1, 1, assignments={"ovens": None})  # type: ignore[dict-item]
            both = "select (select count(*) from oven_readings) as a, (select count(avg_c) from oven_summary) as b"
            node.record.manifest = Manifest(NODE, 1, 2, node.record.manifest.assignments, requests={"q": query(both)})
            node.requests._look()
            assert texts(await node.answer()) == ['{"a": 0, "b": 0}']

    run(go)


def test_a_query_sees_incidents_and_pipelines_and_rejected_records_without_their_bytes(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            await node.store.checkpoint("ovens")
            raised = {"incident": "i1", "transition": "raised", "pipeline": "ovens", "trigger": "hot", "severity": "critical"}
            kept = quarantine.pack([{"at": "2026", "step": "schema", "reasons": ["too hot"], "raw": "the badge 4711"}])
            commit = Commit({}, {}, transitions=[raised], quarantined=[kept])
            await node.store.commit("ovens", OVENS.digest, 3, commit)
            node.record.ask(
                i=query("select incident, severity, acknowledged from incidents"),
                p=query("select pipeline, version, phase, params from pipelines"),
                s=query("select * from quarantine"),
            )
            assert texts(await node.answer("i")) == ['{"incident": "i1", "severity": "critical", "acknowledged": false}']
            (pipelines,) = texts(await node.answer("p"))
            assert '"version": 3' in pipelines
            (rejected,) = texts(await node.answer("s"))
            assert "too hot" in rejected
            assert "4711" not in rejected
            chunk = await node.store.look(lambda db: answers.kept_chunk(db, 2**62))
            assert chunk is not None
            assert "4711" not in str(chunk), "the child does not even see it"

    run(go)


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("drop table oven_readings", "only one SELECT"),
        ("select 1; select 2", "only one SELECT"),
        ("select nonsense from", "syntax error"),
        ("select * from elsewhere", "no table elsewhere"),
        ("select * from read_text('/etc/passwd')", "disabled"),
        ("select repeat('x', 3000000000)", "memory"),
        ("select list(range) from range(500000000)", "memory"),
        ("", "only one SELECT"),
    ],
)
def test_what_cannot_be_answered_says_why_and_harms_nobody(tmp_path: Path, sql: str, says: str) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            await put(node.store, 1)
            node.record.ask(q=query(sql), r=query("select 1 as one"))
            (end,) = await node.answer()
            assert end["kind"] in ("failed", "refused")
            assert says in end["note"]
            assert texts(await node.answer("r")) == ['{"one": 1}']

    run(go)


def test_a_query_for_ever_ends_in_time(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            node.record.ask(q=query(FOR_EVER, max_s=1.0))
            (end,) = await node.answer()
            assert end["kind"] == "failed"
            assert end["note"].startswith("stopped after 1 s")

    run(go)


def test_of_a_billion_rows_as_many_come_as_were_asked_for(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            wide = query("select repeat('x', 1000) as x from range(1000000000)", max_bytes=10_500, max_rows=10**9)
            node.record.ask(q=query("select range as i from range(1000000000)", max_rows=5), wide=wide)
            rows = await node.answer()
            assert texts(rows) == [f'{{"i": {i}}}' for i in range(5)]
            assert "more than the request allows" in rows[-1]["note"]
            wide_rows = await node.answer("wide")
            assert len(wide_rows) == 11
            assert "bytes" in wide_rows[-1]["note"]

    run(go)


def test_leaving_the_manifest_kills_the_work_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = Supervisor.start

    async def watched(self: Supervisor, name: str, entry: str = "", memory_bytes: int = 0) -> Any:
        child = await start(self, name, entry, memory_bytes)
        started.append(child.pid)
        return child

    monkeypatch.setattr(Supervisor, "start", watched)

    async def go() -> None:
        async with answering(tmp_path) as node:
            node.record.ask(a=query(FOR_EVER, max_s=300))
            await until(lambda: started, "the child")
            begun = time.monotonic()
            node.record.ask(b=query("select 1 as one"))
            assert texts(await node.answer("b")) == ['{"one": 1}']
            assert time.monotonic() - begun < 20
            assert not Path(f"/proc/{started[0]}").exists()
            assert {row["request"] for row in await node.rows()} == {"b"}

    run(go)


def test_each_is_answered_once_also_after_a_restart(tmp_path: Path) -> None:
    key = new_key()

    async def go(expected: int) -> None:
        async with answering(tmp_path, key) as node:
            node.record.ask(q=query("select 1 as one"))
            await node.answer()
            node.record.ask(q=query("select 1 as one"), z=query("select 2 as two"))
            await node.answer("z")
            assert len(await node.rows()) == expected

    run(go, 4)
    run(go, 4)


def test_nothing_is_added_to_an_answer_that_is_over(tmp_path: Path) -> None:
    """A full disk may let a write through after whoever waited for it has said that the request failed."""

    async def work(store: Store) -> None:
        await store.take_up("q")
        payload = encode_rows(pa.table({"a": [1]}))
        await asyncio.gather(*(store.answer("q", 1, [(1, payload)], is_over=True) for _ in range(2)))
        assert (await store.backlog()).rows == 1

    with open_store(tmp_path, new_key()) as store:
        asyncio.run(work(store))


def test_what_is_asked_anew_under_the_same_name_is_answered_anew(tmp_path: Path) -> None:
    """Only the manifest remembers: a node does not keep names for ever (I9)."""

    async def go() -> None:
        async with answering(tmp_path) as node:
            node.record.ask(q=query("select 1 as one"))
            await node.answer()
            node.record.ask()
            await until(lambda: node.store.look(lambda db: not db.execute("SELECT 1 FROM requests").fetchall()), "forgotten")

    run(go)


def test_a_full_buffer_takes_no_answer(tmp_path: Path) -> None:
    """Somebody waits for it, and there are few; rows go instead (I9)."""

    async def go() -> None:
        with open_store(tmp_path, buffer_bytes=64 * 1024) as store:
            node = Node(tmp_path, store)
            running = asyncio.create_task(node.requests.run())
            node.record.ask(q=query("select repeat('x', 900) || range as x from range(40)"))
            await node.answer()
            for _ in range(6):
                await put(store, *(random.random() for _ in range(3_000)))
            assert (await store.backlog()).evicted_rows > 0
            assert len(await node.answer()) == 41
            assert shares.losers([Usage(answers.OWNER, answers.STREAM, REQUESTS, 1 << 30)], {}, 1 << 20) == []
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run(go)


def test_policy_narrows_and_refusing_is_an_answer(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path, policy=Policy(requests=("logs",))) as node:
            node.record.ask(q=query("select 1"), t=Request("tap", {"pipeline": "ovens"}), x=Request("reprocess", {}))
            (end,) = await node.answer()
            assert (end["kind"], end["note"]) == ("refused", "policy.yaml does not list query under requests")
            assert (await node.answer("t"))[-1]["kind"] == "refused"
            assert "as new as" in (await node.answer("x"))[-1]["note"]

    run(go)


def test_more_than_sixteen_are_refused(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            node.record.ask(**{f"q{i:02}": query(f"select {i} as i") for i in range(17)})
            (end,) = await node.answer("q16", 90)
            assert (end["kind"], end["note"]) == ("refused", "more than 16 requests are open on this node")
            assert texts(await node.answer("q15", 90)) == ['{"i": 15}']

    run(go)


def test_a_tap_shows_rows_as_they_are_committed(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            await put(node.store, 1)
            node.record.ask(t=Request("tap", {"pipeline": "ovens", "where": "temp_c > 50"}, max_s=60, max_rows=3))
            await until(lambda: node.store.taps, "the tap")
            await put(node.store, 10, 60)
            first = await until(node.rows, "the first row while it goes on")
            assert [row["row"] for row in first] == ['{"_stream": "readings", "oven": "a", "temp_c": 60.0}']
            await put(node.store, 70, pipeline="other")
            await put(node.store, 80, 90, 100)
            rows = await node.answer("t")
            assert [text.partition("temp_c")[2] for text in texts(rows)] == ['": 60.0}', '": 80.0}', '": 90.0}']
            await until(lambda: not node.store.taps, "the end of the tap")

    run(go)


def test_a_tap_ends_in_time_and_says_when_its_condition_does_not_apply(tmp_path: Path) -> None:
    async def go() -> None:
        async with answering(tmp_path) as node:
            node.record.ask(t=Request("tap", {"pipeline": "ovens", "where": "nonsense > 1"}, max_s=3.0))
            await until(lambda: node.store.taps, "the tap")
            await put(node.store, 10)
            (end,) = await node.answer("t")
            assert end["kind"] == "failed"
            assert "nonsense" in end["note"]
            node.record.ask(u=Request("tap", {"pipeline": "unknown"}))
            assert "what runs: ovens" in (await node.answer("u"))[-1]["note"]

    run(go)


def test_a_tap_never_waits_for_its_child(tmp_path: Path) -> None:
    passing = Passing("p")
    for _ in range(3):
        passing("p", [Sealed("s", ROWS, "t", 10, b"x" * (requests_module.TAP_BYTES_MAX // 2))])
    assert passing.dropped == 10


def test_a_tap_goes_on_where_it_was_after_a_kill(tmp_path: Path) -> None:
    key = new_key()
    tap = Request("tap", {"pipeline": "ovens"}, max_s=120, max_rows=2)

    async def first() -> None:
        async with answering(tmp_path, key) as node:
            node.record.ask(t=tap)
            await until(lambda: node.store.taps, "the tap")
            await put(node.store, 1)
            await until(node.rows, "the first row")

    async def second() -> None:
        async with answering(tmp_path, key) as node:
            node.record.ask(t=tap)
            await until(lambda: node.store.taps, "the tap")
            await put(node.store, 2, 3)
            assert [text.partition("temp_c")[2] for text in texts(await node.answer("t"))] == ['": 1.0}', '": 2.0}']

    run(first)
    run(second)


def test_logs_are_the_last_lines_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SecretStore(tmp_path).put("pin", "hunter2")
    monkeypatch.setattr(logs, "_kept", type(logs._kept)(maxlen=4))
    for i in range(6):
        logs.keep(None, "info", {"event": f"line {i} hunter2", "pipeline": "ovens" if i % 2 else "other"})

    async def go() -> None:
        async with answering(tmp_path) as node:
            node.record.ask(
                a=Request("logs", {}, max_rows=2),
                b=Request("logs", {"pipeline": "ovens"}),
            )
            assert texts(await node.answer("a")) == [
                '{"event": "line 4 ***", "pipeline": "other"}',
                '{"event": "line 5 ***", "pipeline": "ovens"}',
            ]
            assert len(texts(await node.answer("b"))) == 2

    run(go)


def test_an_agent_killed_in_the_middle_answers_from_the_start_and_once(tmp_path: Path) -> None:
    """SIGKILL while the child works: nothing of the unfinished answer is sealed, and its child is gone."""
    key = new_key()

    async def go() -> None:
        command = [sys.executable, __file__, str(tmp_path), key.seed]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
        assert child.stderr is not None
        worker = int(await asyncio.wait_for(child.stderr.readline(), 60))
        await until(lambda: _cpu_s(worker) > 0.5, "the query runs")
        child.send_signal(signal.SIGKILL)
        await child.wait()
        await until(lambda: not Path(f"/proc/{worker}").exists(), "the child of a dead agent ends")
        async with answering(tmp_path, key) as node:
            assert await node.rows() == []
            node.record.ask(q=query("select 7 as seven"))
            assert texts(await node.answer()) == ['{"seven": 7}']

    run(go)


def _cpu_s(pid: int) -> float:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


async def _to_be_killed(folder: Path, seed: str) -> None:
    start = Supervisor.start

    async def watched(self: Supervisor, name: str, entry: str = "", memory_bytes: int = 0) -> Any:
        child = await start(self, name, entry, memory_bytes)
        print(child.pid, file=sys.stderr, flush=True)
        return child

    Supervisor.start = watched  # type: ignore[method-assign]
    async with answering(folder, Key(seed)) as node:
        node.record.ask(q=query(FOR_EVER, max_s=300))
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(_to_be_killed(Path(sys.argv[1]), sys.argv[2]))
