"""The http source: a body is answered 200 when its rows are committed, never before; everything else is turned down cheaply."""

from __future__ import annotations

import gzip
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from test_runner import running

from edge_agent.node_check import Here, problems
from edge_agent.policy import Policy
from edge_agent.sources import Block, Source, SourceContext, http, http_server, open_source
from pipelines.contract.errors import Refused, SpecError, TidewireError
from pipelines.contract.interpolate import Values, resolved_source
from pipelines.contract.language.sources import Source as SourceSpec
from pipelines.contract.spec import load_spec

DEADLINE_S = 30
LINES = b'{"n": 1}\n{"n": 2}\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], Any], why: str = "") -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (got := what()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {why}"
        time.sleep(0.005)
    return got


class Bench:
    """A source, the runner's part played by the test, and clients."""

    def __init__(self, position: dict[str, Any] | None = None, **settings: Any) -> None:
        more: dict[str, Any] = {name: settings.pop(name) for name in ("decode", "framing", "encoding") if name in settings}
        self.port = free_port()
        spec: dict[str, Any] = {"http": {"listen": f"127.0.0.1:{self.port}", "path": "/rows", **settings}, **more}
        self.settings = SourceSpec.model_validate(spec)
        self.source: Source = open_source(self.settings, position or {}, context())
        self.pool = ThreadPoolExecutor(20)
        until(self._listens, "it listens")

    def _listens(self) -> bool:
        try:
            return self.raw(b"") == b""
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/rows"

    def post(self, content: Any = LINES, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(self.url, content=content, headers=named, timeout=DEADLINE_S)

    def posting(self, content: Any = LINES, **headers: str) -> Future[httpx.Response]:
        return self.pool.submit(self.post, content, **headers)

    def block(self) -> Block:
        block: Block = until(self.source.read, "a block")
        return block

    def commit(self) -> None:
        self.source.acknowledge(json.loads(json.dumps(self.source.position)))

    def raw(self, data: bytes, *, is_all: bool = True) -> bytes:
        """What a connection gets that sends just this."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S) as client:
            client.sendall(data)
            if is_all:
                client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65536), b""))


def context(until_eof: bool = False, may_listen: Callable[[str], bool] = lambda address: True) -> SourceContext:
    return SourceContext(until_eof, lambda path: True, lambda: 0, lambda: 0, may_listen)


@contextmanager
def opened(position: dict[str, Any] | None = None, **settings: Any) -> Iterator[Bench]:
    bench = Bench(position, **settings)
    try:
        yield bench
    finally:
        bench.source.close()
        bench.pool.shutdown()


def texts(block: Block) -> list[str]:
    return list(block.lines.text.to_pylist())


# -- the promise


def test_i1_a_body_is_answered_when_the_position_that_holds_it_is_committed() -> None:
    with opened() as bench:
        before = bench.source.position
        first = bench.posting()
        assert texts(bench.block()) == ['{"n": 1}', '{"n": 2}']
        second = bench.posting(b'{"n": 3}')
        then = bench.source.position
        bench.block()
        bench.source.acknowledge(before)
        time.sleep(0.1)
        assert not first.done()
        bench.source.acknowledge(then)
        assert (first.result().status_code, first.result().json()) == (200, {"records": 2})
        time.sleep(0.1)
        assert not second.done()
        bench.commit()
        assert second.result().json() == {"records": 1}


def test_a_body_is_awaited_and_one_without_records_is_not() -> None:
    with opened() as bench:
        empty = bench.posting(b"\n\n")
        until(lambda: bench.source.read() is None and empty.done(), "an answer")
        assert empty.result().json() == {"records": 0}
        bench.posting()
        assert bench.block().is_awaited
        bench.commit()


def test_waiting_bodies_are_joined_and_keep_their_offsets_and_faults() -> None:
    with opened() as bench:
        answers = [bench.posting(body) for body in (b'{"n": 1}\n\xff\xfe\n', b'\n{"n": 2}')]
        until(lambda: len(bench.source._inbox._waiting) == 2)  # type: ignore[attr-defined]
        lines = bench.block().lines
        found = sorted(zip(lines.text.to_pylist(), lines.offsets.to_pylist(), strict=True))
        assert found == [('{"n": 1}', 0), ('{"n": 2}', 1), ("\ufffd\ufffd", 9)]
        [(bad, why)] = lines.bad.items()
        assert (lines.text[bad].as_py(), why) == ("\ufffd\ufffd", "not UTF-8 at byte 0")
        bench.commit()
        assert sorted(answer.result().json()["records"] for answer in answers) == [1, 2]


def test_i2_a_key_is_taken_once_within_a_run_and_after_a_restart() -> None:
    with opened() as bench:
        answers = [bench.posting(Idempotency_Key="k1") for _ in range(3)]  # as of a client that lost its connection
        assert len(texts(bench.block())) == 2
        until(lambda: len(bench.pool._threads) == 3)
        time.sleep(0.1)
        assert bench.source.read() is None
        bench.commit()
        assert {answer.result().json()["records"] for answer in answers} == {2}
        assert bench.post(Idempotency_Key="k1").json() == {"records": 2}
        assert bench.source.read() is None
        position = json.loads(json.dumps(bench.source.position))
        assert "k1" not in json.dumps(position)
    with opened(position) as bench:  # as after a change of parameters: read, perhaps not committed
        answer = bench.posting(Idempotency_Key="k1")
        time.sleep(0.1)
        assert not answer.done() and bench.source.read() is None
        bench.source.acknowledge(position)
        assert answer.result().json() == {"records": 2}
        assert bench.post(Idempotency_Key="k1").json() == {"records": 2}
        other = bench.posting(Idempotency_Key="k2")
        assert len(texts(bench.block())) == 2
        bench.commit()
        assert other.result().status_code == 200


def test_i9_the_last_keys_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEYS_KEPT", 2)
    with opened() as bench:
        for key in "abc":
            answer = bench.posting(Idempotency_Key=key)
            bench.block()
            bench.commit()
            answer.result()
        assert list(bench.source.position["keys"]) == [http.key_digest("b"), http.key_digest("c")]
        again = bench.posting(Idempotency_Key="a")
        bench.block()
        bench.commit()
        assert again.result().status_code == 200


def test_a_thousand_keys_are_a_small_position() -> None:
    inbox = http.Inbox(0, {}, 1 << 20)
    for i in range(1100):
        post = inbox.offer(b"x", http.key_digest(f"client-7/{i}"))
        inbox.take(1, 1)
        post.records = 1000
        inbox.note_read([post])
    assert len(json.dumps(inbox.keys)) < 32 * 1024


# -- what is turned down

REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "a path": (404, {"path": "/other"}),
    "a method": (405, {"method": "PUT"}),
    "no token": (401, {"authorization": ""}),
    "a wrong token": (401, {"authorization": "Bearer wrong"}),
    "another scheme": (401, {"authorization": "Basic s3cret"}),
    "a long key": (400, {"idempotency-key": "k" * 129}),
    "no gzip": (400, {"content-encoding": "gzip"}),
    "a torn gzip": (400, {"content-encoding": "gzip", "content": gzip.compress(LINES)[:-3]}),
    "more behind gzip": (400, {"content-encoding": "gzip", "content": gzip.compress(LINES) + b"x"}),
    "a coding": (415, {"content-encoding": "br"}),
    "too long": (413, {"content": b"x" * 5000}),
    "too long unpacked": (413, {"content-encoding": "gzip", "content": gzip.compress(b"\n" * 3_000_000)}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_turned_down_is_told_and_never_read(name: str) -> None:
    status, more = REQUESTS[name]
    headers: dict[str, Any] = {"authorization": "Bearer s3cret"} | more
    method, path = headers.pop("method", "POST"), headers.pop("path", "/rows")
    content = headers.pop("content", LINES)
    with opened(token="s3cret", max_body="4KiB") as bench:
        url = bench.url.replace("/rows", path)
        got = httpx.request(method, url, content=content, headers=headers, timeout=DEADLINE_S)
        assert got.status_code == status
        assert got.json()["error"] and "s3cret" not in got.text
        assert got.headers["connection"] == "close"
        chunked = httpx.request(method, url, content=iter([content]), headers=headers, timeout=DEADLINE_S)
        assert chunked.status_code == status
        assert bench.source.read() is None
        right = bench.posting(authorization="bearer s3cret")
        bench.block()
        bench.commit()
        assert right.result().status_code == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /rows HTTP/1.1\r\nbroken\r\n\r\n", 400),
        (b"POST /rows HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"POST /rows HTTP/2.0\r\n\r\n", 505),
        (b"POST /rows HTTP/1.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /rows HTTP/1.1\r\n\r\n", 411),
        (b"POST /rows HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /rows HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST /rows HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /rows HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /rows HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /rows HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST /rows HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 40 + b"\r\n", 400),
        (b"POST /rows HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
    ],
)
def test_what_is_no_sound_request_ends_its_connection(request_: bytes, status: int) -> None:
    with opened() as bench:
        got = bench.raw(request_ + b"GET / HTTP/1.1\r\n\r\n")
        assert got.startswith(f"HTTP/1.1 {status} ".encode())
        assert got.count(b"HTTP/1.1 ") == 1, "what follows is not looked at"
        assert bench.source.read() is None


def test_half_of_a_body_is_none() -> None:
    with opened() as bench:
        head = b"POST /rows HTTP/1.1\r\nContent-Length: 100\r\n\r\n"
        assert bench.raw(head + LINES) == b""
        assert bench.raw(b"POST /rows HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n" + LINES) == b""
        time.sleep(0.1)
        assert bench.source.read() is None
        assert bench.source._inbox._held_bytes == 0  # type: ignore[attr-defined]


def test_slow_clients_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "BODY_S", "IDLE_S", "LINGER_S"):
        monkeypatch.setattr(http_server, name, 0.2)
    with opened() as bench:
        assert bench.raw(b"", is_all=False) == b""
        assert bench.raw(b"POST /rows HT", is_all=False).startswith(b"HTTP/1.1 408 ")
        assert bench.raw(b"POST /rows HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", is_all=False).startswith(b"HTTP/1.1 408 ")


def test_i9_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS_MAX", 3)
    with opened() as bench:
        until(lambda: bench.source._server._connections == 0)  # type: ignore[attr-defined]
        held = [socket.create_connection(("127.0.0.1", bench.port)) for _ in range(3)]
        until(lambda: bench.source._server._connections == 3)  # type: ignore[attr-defined]
        assert bench.raw(b"", is_all=False).startswith(b"HTTP/1.1 503 ")
        for connection in held:
            connection.close()
        until(lambda: bench.source._server._connections == 0)  # type: ignore[attr-defined]
        answer = bench.posting()
        bench.block()
        bench.commit()
        assert answer.result().status_code == 200


# -- when commits do not keep up


def test_i15_what_is_not_read_is_turned_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALL_S", 0.2)
    with opened() as bench:
        first = bench.posting()
        time.sleep(0.4)
        second = bench.post()
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert len(texts(bench.block())) == 2
        time.sleep(0.4)
        third = bench.posting()
        assert third.result().status_code == 503, "read, and not committed for long"
        bench.commit()
        assert first.result().status_code == 200


def test_i9_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HELD_BYTES_MAX", 4096)
    monkeypatch.setattr(http, "READ_BYTES_MAX", 1500)
    with opened(max_body="2KiB") as bench:
        body = b'{"n": 1}\n' * 200
        answers = [bench.posting(body) for _ in range(8)]
        until(lambda: sum(answer.done() for answer in answers) == 6, "six are turned down")
        assert {answer.result().status_code for answer in answers if answer.done()} == {503}
        assert len(texts(bench.block())) == 400
        assert bench.source.read() is None
        bench.commit()
        assert Counter(answer.result().status_code for answer in answers) == {200: 2, 503: 6}


def test_i15_nothing_is_read_beyond_what_may_be_lost_track_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "READ_BYTES_MAX", 10)
    with opened() as bench:
        answers = [bench.posting()]
        bench.block()
        answers.append(bench.posting())
        until(lambda: bench.source._inbox._waiting)  # type: ignore[attr-defined]
        assert bench.source.read() is None
        bench.commit()
        bench.block()
        bench.commit()
        assert {answer.result().status_code for answer in answers} == {200}


def test_a_body_that_waited_too_long_is_not_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "ANSWER_S", 0.1)
    with opened() as bench:
        assert bench.post().status_code == 503
        assert bench.source.read() is None
        assert bench.source._inbox._held_bytes == 0  # type: ignore[attr-defined]


def test_i1_a_stop_answers_nothing_200_that_is_not_committed() -> None:
    with opened() as bench:
        read = bench.posting()
        bench.block()
        unread = bench.posting()
        until(lambda: bench.source._inbox._waiting)  # type: ignore[attr-defined]
        bench.source.close()
        assert [read.result().status_code, unread.result().status_code] == [503, 503]
        with pytest.raises(httpx.TransportError):
            bench.post()


# -- bodies


def test_a_connection_is_kept_for_the_next_body() -> None:
    with opened() as bench:

        def three() -> list[Any]:
            with httpx.Client(timeout=DEADLINE_S) as client:
                return [client.post(bench.url, content=LINES) for _ in range(3)]

        answers = bench.pool.submit(three)
        ports = set()
        for _ in range(3):
            bench.block()
            ports |= {
                c.raddr.port for c in psutil.Process().net_connections() if c.laddr and c.laddr.port == bench.port and c.raddr
            }
            bench.commit()
        assert [answer.status_code for answer in answers.result()] == [200] * 3
        assert len(ports) == 1


def test_gzip_chunks_and_continue() -> None:
    with opened() as bench:
        answers = [
            bench.posting(gzip.compress(LINES * 50_000), Content_Encoding="gzip"),
            bench.posting(iter([LINES[:5], LINES[5:]])),
            bench.posting(LINES, Expect="100-continue"),
        ]
        rows = 0
        while rows < 100_004:
            rows += len(texts(bench.block()))
            bench.commit()
        assert [answer.result().json()["records"] for answer in answers] == [100_000, 2, 2]
        http_1_0 = bench.pool.submit(bench.raw, b"POST /rows HTTP/1.0\r\nContent-Length: 9\r\n\r\n" + LINES[:9])
        bench.block()
        bench.commit()
        assert b"Connection: close" in http_1_0.result()


def test_each_csv_body_has_its_own_header_and_encodings_hold() -> None:
    with opened(decode="csv", encoding="latin-1") as bench:
        answers = [bench.posting(body) for body in (b"a,b\n1,\xe4\n2,y\n", b"b,c\n3,4\n")]
        blocks = sorted([bench.block(), bench.block()], key=lambda block: block.header)
        assert [(block.header, texts(block)) for block in blocks] == [(("a", "b"), ["1,ä", "2,y"]), (("b", "c"), ["3,4"])]
        bench.commit()
        assert [answer.result().json()["records"] for answer in answers] == [2, 1]


# -- where it may listen


def test_bounded_input_is_no_http() -> None:
    with pytest.raises(TidewireError, match="never ends"):
        open_source(SourceSpec.model_validate({"http": {"listen": "127.0.0.1:1"}}), {}, context(until_eof=True))


def test_i13_local_policy_may_forbid_it() -> None:
    spec = SourceSpec.model_validate({"http": {"listen": "127.0.0.1:8088"}})
    source = open_source(spec, {}, context(may_listen=lambda address: False))
    assert source.trouble() == "local policy does not allow listening on 127.0.0.1:8088"
    assert source.read() is None
    source.close()


def test_a_port_that_is_taken_is_trouble_until_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REBIND_S", 0.05)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        source = open_source(SourceSpec.model_validate({"http": {"listen": address}}), {}, context())
        until(lambda: address in source.trouble(), "trouble")
    until(lambda: not source.trouble(), "it listens")
    source.close()


PIPELINE = """
tidewire: 1
pipeline: p
sources:
  rows:
    http:
      listen: 127.0.0.1:8088
      path: /rows
      token: ${secret:ingest}
schema:
  n: {type: integer}
sinks:
  rows: {lake: {table: rows}}
"""
TOKEN = "      token: ${secret:ingest}\n"


@pytest.mark.parametrize(
    ("old", "new", "message", "place"),
    [
        ("127.0.0.1:8088", "localhost", "is not an address and a port", (7, 7)),
        ("127.0.0.1:8088", "example.com:80", "is not an address and a port", (7, 7)),
        ("127.0.0.1:8088", "127.0.0.1:0", "is not an address and a port", (7, 7)),
        ("127.0.0.1:8088\n      path: /rows\n" + TOKEN, "0.0.0.0:8088\n", "others can reach 0.0.0.0:8088", (6, 5)),
        ("/rows", "rows", "is not a path", (8, 7)),
        ("/rows", "/rows?x", "is not a path", (8, 7)),
        ("${secret:ingest}", "hunter2", "the token is a secret of the node", (9, 7)),
        ("${secret:ingest}", "${label:x}", "the token is a secret of the node", (9, 7)),
        ("/rows\n", "/rows\n      max_body: 1GiB\n", "the longest body is from 1KiB to 64MiB", (9, 7)),
        ("schema:", "  more:\n    http: {listen: 127.0.0.1:8088}\nschema:", "listens on 127.0.0.1:8088 already", (11, 12)),
    ],
)
def test_a_source_that_cannot_be_is_refused_with_its_place(old: str, new: str, message: str, place: tuple[int, int]) -> None:
    assert old in PIPELINE
    with pytest.raises(SpecError) as error:
        load_spec(PIPELINE.replace(old, new, 1))
    problem = error.value.problems[0]
    assert message in problem.message and problem.hint
    assert (problem.line, problem.column) == place


def test_i13_validate_on_the_node_knows_its_policy(tmp_path: Path) -> None:
    def told(policy: Policy) -> list[str]:
        here = Here(tmp_path, policy, frozenset({"ingest"}), {}, 1 << 20)
        return [f"{problem.line}: {problem.message}" for problem in problems(load_spec(PIPELINE), here)]

    assert told(Policy()) == told(Policy(listen=("127.0.0.1:*",))) == []
    assert told(Policy(listen=())) == ["7: policy.yaml does not list 127.0.0.1:8088 under listen"]


def test_a_full_buffer_may_make_its_clients_wait() -> None:
    load_spec(PIPELINE + "buffer: {max_size: 1MiB, when_full: block}\n")
    with pytest.raises(SpecError, match="block is accepted only"):
        load_spec(PIPELINE.replace("sources:", "sources:\n  s: {simulate: {}}") + "buffer: {max_size: 1MiB, when_full: block}\n")


def test_references_are_checked_again_once_they_are_known() -> None:
    text = PIPELINE.replace("127.0.0.1:8088", "${label:at}").replace(TOKEN, "")
    spec = load_spec(text).sources["rows"]
    here = resolved_source(spec, Values(labels={"at": "127.0.0.1:9"})).http
    assert here is not None and here.listen == "127.0.0.1:9"
    with pytest.raises(Refused, match="others can reach"):
        resolved_source(spec, Values(labels={"at": "0.0.0.0:9"}))


# -- with an agent

AGENT = """
tidewire: 1
pipeline: posted
sources:
  rows:
    http: {listen: "127.0.0.1:PORT", token: "${secret:ingest}"}
schema:
  client: {type: integer}
  n: {type: integer}
sinks:
  rows: {lake: {table: rows}}
"""
HEADERS = {"Authorization": "Bearer s3cret-of-this-test"}


class AgentProcess:
    """`tidewire-agent run FILE`, started again whenever it ends."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        (home / "p.yaml").write_text(AGENT.replace("PORT", str(self.port)))
        self._call("secret", "set", "ingest", given=HEADERS["Authorization"].split()[1])
        self.process = self.start()

    def _call(self, *words: str, given: str = "") -> None:
        command = [sys.executable, "-m", "edge_agent", *words, "--data-dir", str(self.home / "data")]
        subprocess.run(command, input=given, text=True, check=True, capture_output=True, timeout=DEADLINE_S)

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edge_agent", "run", "p.yaml", "--json", "--data-dir", str(self.home / "data")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.home)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def runner(self) -> psutil.Process | None:
        """The process that listens."""
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if any(c.laddr and c.laddr.port == self.port for c in child.net_connections()):
                    return child
        return None

    def stop(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGINT)
        out, errors = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0 and "Traceback" not in errors, errors
        report: dict[str, Any] = json.loads(out.splitlines()[-1])
        return report

    def rows(self) -> Counter[tuple[int, int]]:
        files = sorted((self.home / "data" / "lake" / "rows").glob("*.parquet"))
        return Counter((r["client"], r["n"]) for f in files for r in pq.read_table(f).to_pylist())


class Client(threading.Thread):
    """Posts bodies of numbers, each until it is answered 200."""

    def __init__(self, number: int, url: str, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.number, self.url, self.chance = number, url, chance
        self.acknowledged: list[int] = []
        self.stopping, self.leaving, self.statuses = threading.Event(), threading.Event(), Counter[int]()

    def run(self) -> None:
        next_n = body = 0
        with httpx.Client(timeout=DEADLINE_S) as client:
            while not self.stopping.is_set():
                numbers = range(next_n, next_n := next_n + self.chance.randint(1, 20))
                content = "".join(json.dumps({"client": self.number, "n": n}) + "\n" for n in numbers)
                body += 1
                headers = {**HEADERS, "Idempotency-Key": f"{self.number}/{body}"}
                while not self._is_stored(client, content, headers):
                    if self.leaving.wait(0.02):
                        return
                self.acknowledged += numbers

    def _is_stored(self, client: httpx.Client, content: str, headers: dict[str, str]) -> bool:
        try:
            status = client.post(self.url, content=content, headers=headers).status_code
        except httpx.TransportError:
            return False
        self.statuses[status] += 1
        return status == 200


def test_i1_i2_what_is_acknowledged_is_stored_exactly_once_through_kills(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # a failure prints it
    chance = random.Random(seed)
    agent = AgentProcess(tmp_path)
    clients = [Client(number, agent.url, random.Random(f"{seed}/{number}")) for number in range(4)]
    for client in clients:
        client.start()
    for turn in range(4):
        until(lambda: agent.runner(), "a runner that listens")
        time.sleep(chance.uniform(0, 0.5))
        victim = agent.runner() if turn % 2 else None
        if victim is not None:
            victim.kill()  # stand-alone, the agent ends with it
        else:
            agent.process.kill()
        agent.process.communicate(timeout=DEADLINE_S)
        agent.process = agent.start()
    before = sum(len(client.acknowledged) for client in clients)
    until(lambda: sum(len(client.acknowledged) for client in clients) > before + 100, "they get through again")
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join(DEADLINE_S)
    report = agent.stop()
    rows = agent.rows()
    expected = Counter((client.number, n) for client in clients for n in client.acknowledged)
    assert rows == expected, f"{len(expected - rows)} missing, {len(rows - expected)} twice or never acknowledged"
    assert report["balanced"] is True and report["sources"]["rows"]["read"] == len(expected)
    assert sum(client.statuses[200] for client in clients) > 50
    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("agent.db*"))
    assert HEADERS["Authorization"].split()[1].encode() not in kept


def test_a_stop_commits_what_was_read_and_a_lone_client_does_not_wait_for_the_rhythm(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path)
    until(agent.runner, "a runner that listens")
    took = []
    for n in range(10):
        began = time.monotonic()
        assert httpx.post(agent.url, json={"client": 0, "n": n}, headers=HEADERS).json() == {"records": 1}
        took.append(time.monotonic() - began)
    assert sorted(took)[5] < 0.5, "commits of their own would take a second each"
    broken = httpx.post(agent.url, content=b"\xff\n{}\nno json\n", headers=HEADERS)
    assert broken.json() == {"records": 3}
    client = Client(1, agent.url, random.Random(1))
    client.start()
    until(lambda: len(client.acknowledged) > 100)
    client.stopping.set()  # after this body; the agent may be gone by then
    report = agent.stop()
    client.leaving.set()
    client.join(DEADLINE_S)
    rows = agent.rows()
    assert {(1, n) for n in client.acknowledged} <= rows.keys()
    assert max(rows.values()) == 1
    assert report["tables"]["quarantine"] == 3 and report["balanced"] is True


def test_i1_a_runner_answers_each_body_with_its_own_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:  # in a thread, the end of the agent must not end the test
        raise SystemExit(status)

    monkeypatch.setattr("edge_agent.runner.os._exit", leave)
    port = free_port()
    text = AGENT.replace("PORT", str(port)).replace(', token: "${secret:ingest}"', "")
    url = f"http://127.0.0.1:{port}/"

    def post(n: int) -> httpx.Response:
        return httpx.post(url, json={"client": 0, "n": n}, timeout=DEADLINE_S)

    with running(tmp_path, text) as agent, ThreadPoolExecutor(3) as pool:
        agent.start()
        agent.until("ready")
        agent.withholds = True
        answers = []
        for n in range(3):
            answers.append(pool.submit(post, n))
            agent.until("commit")
        assert [row["n"] for row in agent.rows()] == [0, 1, 2]
        for n in range(3):
            time.sleep(0.1)
            assert [answer.done() for answer in answers] == [i < n for i in range(3)]
            agent.send("committed", n=n + 1)
            assert answers[n].result(DEADLINE_S).json() == {"records": 1}
        agent.answered = 3
        agent.withholds = False
        agent.send("stop")
        agent.until("stopped")
        assert agent.positions["rows"] == {"count": 3}
        told = [head["positions"]["rows"] for head, _ in agent.segments if head["stream"] == "rows"]
        assert told == [{"from": {"count": n} if n else {}, "to": {"count": n + 1}} for n in range(3)]
