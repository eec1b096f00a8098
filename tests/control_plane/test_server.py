"""The real server process over real NATS, with nodes made of the contract alone."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from functools import wraps
from pathlib import Path

import nats
import psutil
import pytest
from deltalake import DeltaTable
from fake_node import FakeNode, ask_to_join, creds, incident_rows, rows
from nats.aio.client import RawCredentials
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from server_process import ServerProcess, end, free_port, run_cli, until, wait_until
from sqlalchemy.exc import OperationalError

import control_plane.server
from control_plane import fleet
from control_plane.config import ApiAddress, ControlConfig
from control_plane.keys import KeyRing
from control_plane.server import ControlPlane
from control_plane.tls import open_tls
from pipelines.contract import subjects
from pipelines.contract.document import NodeDocument
from pipelines.contract.errors import TidewireError
from pipelines.contract.keys import Key
from pipelines.contract.messages import Exchange, ExchangeReply, Heartbeat, Upload
from pipelines.contract.node_state import Note, Reported
from pipelines.contract.token import JoinToken, prove


def node_row(server: ServerProcess, name: str) -> dict[str, object]:
    return dict(server.client.get(f"/v1/nodes/{name}"))


def test_a_node_joins_runs_what_is_deployed_and_converges(server: ServerProcess) -> None:
    server.apply()

    async def story() -> None:
        node = await FakeNode.join(server.token("--label", "site=lyon"), "lyon-1")
        assert server.cli("deploy", "press", "-s", "site=lyon").returncode == 0
        await until(lambda: node.pokes)  # a hint, at once
        await node.exchange()
        assert not node_row(server, "lyon-1")["converged"]
        await node.obey()
        assert node_row(server, "lyon-1")["converged"]
        assert server.cli("set", "press", "limit_c=90", "-s", "all", "--reason", "summer").returncode == 0
        await node.exchange()
        assert node_row(server, "lyon-1")["why"] == "press: running, but not yet with the wanted parameters"
        await node.obey()
        assert node_row(server, "lyon-1")["converged"]
        assert server.cli("deploy", "press", "-s", "site=lyon", "--remove").returncode == 0
        await node.exchange()
        assert node.manifest.assignments == {} and not node_row(server, "lyon-1")["converged"]
        await node.obey()
        assert node_row(server, "lyon-1")["converged"]
        await node.close()

    asyncio.run(story())


def test_a_node_that_joins_late_gets_deployments_and_rules(server: ServerProcess) -> None:
    server.apply()
    assert server.cli("deploy", "press", "-s", "all").returncode == 0
    assert server.cli("set", "press", "mode=night", "-s", "site=lyon", "--allow-empty").returncode == 0

    async def story() -> None:
        node = await FakeNode.join(server.token("--label", "site=lyon"))
        await node.exchange()
        assert node.manifest.assignments["press"].params["mode"].value == "night"
        await node.close()

    asyncio.run(story())


def test_join_is_idempotent_for_a_key_and_names_are_unique(server: ServerProcess) -> None:
    token = JoinToken.decode(server.token("--uses", "2"))

    async def story() -> None:
        key = Key.from_entropy(os.urandom(32))
        first, again = await ask_to_join(token, key, "pi"), await ask_to_join(token, key, "pi")
        other = await ask_to_join(token, Key.from_entropy(os.urandom(32)), "pi")
        assert first.node == again.node and first.name == again.name == "pi"
        assert (other.name, len(other.node), other.node[0]) == ("pi-2", 13, "n")
        third = await ask_to_join(token, Key.from_entropy(os.urandom(32)), "pi")
        assert "used up" in third.error and "tidewire join-token create" in third.hint

    asyncio.run(story())


def test_i13_whoever_reads_a_join_cannot_make_one(server: ServerProcess) -> None:
    token = JoinToken.decode(server.token("--uses", "2"))

    async def story() -> None:
        key = Key.from_entropy(os.urandom(32))
        forged = prove(key, "x", key.public)
        for proof in (b"", forged, forged[:5]):
            with pytest.raises((NatsTimeoutError, NoRespondersError)):
                await ask_to_join(token, key, "pi", proof, timeout=0.5)
        assert server.client.get("/v1/nodes")["nodes"] == []
        assert (await ask_to_join(token, key, "pi")).name == "pi"
        with pytest.raises((NatsTimeoutError, NoRespondersError)):
            await ask_to_join(token, key, "pi", forged, timeout=0.5)

    asyncio.run(story())
    assert any("join" in row["detail"] for row in server.client.get("/v1/audit")["audit"] if row["action"] == "security")


def test_i5_another_manifest_of_the_same_number_is_a_security_event(server: ServerProcess) -> None:
    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        server.apply()
        server.cli("deploy", "press", "-s", "all")
        await node.exchange()
        await node.exchange()
        assert "another manifest" not in str(node_row(server, "pi")["audit"])
        node.manifest_digest = "sha256:other"
        await node.exchange()
        assert "another manifest" in str(node_row(server, "pi")["audit"])
        await node.close()

    asyncio.run(story())


def test_an_expired_token_says_so(server: ServerProcess) -> None:
    token = JoinToken.decode(server.token("--ttl", "1s"))

    async def refused() -> bool:
        return "expired" in (await ask_to_join(token, Key.from_entropy(os.urandom(32)), "pi")).error

    asyncio.run(until(refused))


def test_i13_a_node_may_use_only_its_own_subjects(server: ServerProcess) -> None:
    async def story() -> None:
        token = server.token("--uses", "2")
        one, two = await FakeNode.join(token, "one"), await FakeNode.join(token, "two")
        request = Exchange(two.id, "x", 0, 0, two.document.digest()).seal(one.key)
        for subject in (subjects.state(two.id), subjects.data(two.id), subjects.poke(two.id)):
            with pytest.raises((NatsTimeoutError, NoRespondersError)):
                await one.request(subject, request, timeout=0.3)
        await one.client.subscribe(f"{subjects.inbox(two.id)}.>")
        await one.client.flush()
        await until(lambda: any("subscription" in error for error in one.errors))
        with pytest.raises(NatsTimeoutError):  # its own subject, another's signature
            await one.request(subjects.state(one.id), Exchange(one.id, "x", 0, 0, "d").seal(two.key), timeout=0.5)
        await until(lambda: any(a["action"] == "security" for a in server.client.get("/v1/audit")["audit"]))
        assert not await _is_let_in(one.token.url, creds(one.jwt, Key.from_entropy(os.urandom(32)).seed))
        assert await _is_let_in(one.token.url, creds(one.jwt, one.key.seed))
        await one.close()
        await two.close()

    asyncio.run(story())


async def _is_let_in(url: str, login: RawCredentials) -> bool:
    """Whether the broker takes the login at the first try; nats-py would go on trying."""
    refused = asyncio.get_running_loop().create_future()

    async def on_error(error: Exception) -> None:
        if "authorization" in str(error).lower() and not refused.done():
            refused.set_result(False)

    trying = asyncio.create_task(nats.connect(url, user_credentials=login, error_cb=on_error, max_reconnect_attempts=-1))
    await asyncio.wait({trying, refused}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    if not refused.done():
        await trying.result().close()
        return True
    await end(trying)
    return False


def test_a_hostile_document_is_refused_and_visible(server: ServerProcess) -> None:
    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        document = NodeDocument()
        document.add_note(Note("control", 1, "acknowledge", "i1"))
        for blob in (document.save(), b"", b"\x85oJ\x83garbage"):
            request = Exchange(node.id, os.urandom(4).hex(), 0, 0, "other", has_document=True)
            raw = await node.request(subjects.state(node.id), request.seal(node.key, [blob]))
            reply, _ = ExchangeReply.unseal(node.token.control, raw)
            assert reply.error and reply.document == NodeDocument().digest()
        assert "may not write note/control" in str(node_row(server, "pi")["audit"])
        await node.exchange()
        await node.close()

    asyncio.run(story())


def test_i11_no_message_of_a_node_ends_the_control_plane(server: ServerProcess) -> None:
    server.apply()

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        header = json.dumps({"format": 1, "node": node.id, "nonce": "\ud800", "streams": [], "_blobs": []}).encode()
        hostile = [
            b"TWF1" + len(header).to_bytes(4, "big") + header,
            Upload(node.id, "x", [[f"{n:x}", "b"] for n in range(70_000)]).pack(),
            Upload(node.id, "x", [["r" * 2_000, f"{n}"] for n in range(500)]).pack(),
            Upload(node.id, "x").pack([b""] * 60_000),
            Upload(node.id, "x").pack([os.urandom(7)] * 128),
        ]
        for data in hostile:
            for subject in (subjects.data, subjects.state, subjects.artifact, subjects.heartbeat):
                await node.client.publish(subject(node.id), data, reply=f"{subjects.inbox(node.id)}.x")
        receipts = await node.upload(node.stream().seal(rows(1.0)))
        assert receipts.marks[0][2] == 1
        too_many = await node.upload(ask=[["r", str(n)] for n in range(501)])
        assert "500 streams" in too_many.error
        await node.close()

    asyncio.run(story())
    assert server.process and server.process.poll() is None


def test_a_locked_database_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def locked(*args: object) -> None:
        calls.append(args)
        raise OperationalError("update nodes", {}, Exception("database is locked"))

    for name in ("flush_last_seen", "record_security"):
        monkeypatch.setattr(fleet, name, wraps(getattr(fleet, name))(locked))
    monkeypatch.setattr(control_plane.server, "FLUSH_SEEN_S", 0.001)

    async def story() -> None:
        plane = ControlPlane(ControlConfig(tmp_path / "data", api_port=0, nats_port=0))
        flushing = asyncio.create_task(plane._flush_seen())
        await until(lambda: len(calls) > 2)
        await plane._db.report_security("n1", "a clone")
        assert not flushing.done()
        flushing.cancel()
        plane._close()

    asyncio.run(story())


def test_acknowledged_here_it_reaches_the_node_and_everybody_knows(server: ServerProcess) -> None:
    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        stream = node.incidents()
        await node.upload(stream.seal(incident_rows("abc1", "raised")))
        assert server.json("incidents")["incidents"][0]["state"] == "active, unacknowledged"
        assert server.cli("incidents", "ack", "abc", "--dry-run").returncode == 0
        assert server.json("incidents", "show", "abc1")["state"] == "active, unacknowledged"
        done = server.cli("incidents", "ack", "abc", "--reason", "on my way")
        assert done.stdout.startswith("acknowledge 1 incident on 1 node:\n  abc1 pi press ") and done.stdout.endswith("done\n")
        assert "the node does not know yet" in server.cli("incidents", "show", "abc1").stdout
        await node.exchange()
        (note,) = node.document.notes()
        assert (note.kind, note.subject, note.by, note.reason) == ("acknowledge", "abc1", "ana", "on my way")
        await node.beat()
        await until(lambda: server.client.get("/v1/incidents/abc1")["steps"][1]["known_on"] == ["node", "control"])
        assert "already" in server.cli("incidents", "ack", "abc1").stdout
        await node.upload(stream.seal(incident_rows("abc1", "cleared")))
        assert server.json("incidents")["incidents"] == []
        assert server.json("incidents", "--all")["incidents"][0]["state"] == "cleared, acknowledged"
        missing = server.cli("incidents", "ack", "nope")
        assert missing.returncode == 1 and "fix: list them" in missing.stderr
        await node.close()

    asyncio.run(story())


def test_a_latched_incident_is_reset_by_a_note(server: ServerProcess) -> None:
    def reset() -> bool:
        return bool(server.client.post("/v1/incidents/reset", {"incidents": ["abc1"], "by": "ana"})["changed"])

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        stream = node.incidents()
        await node.upload(stream.seal(incident_rows("abc1", "raised", state="active")))
        assert not reset(), "it is not latched"
        await node.upload(stream.seal(incident_rows("abc1", "latched", state="active", flags="latched")))
        assert server.json("incidents")["incidents"][0]["state"] == "active, unacknowledged, latched"
        assert reset()
        await node.exchange()
        assert [(note.kind, note.subject) for note in node.document.notes()] == [("reset", "abc1")]
        await node.upload(stream.seal(incident_rows("abc1", "reset", state="closed", by="ana")))
        assert server.json("incidents")["incidents"] == [] and not reset()
        await node.close()

    asyncio.run(story())


def test_why_says_the_cause_first(server: ServerProcess) -> None:
    server.apply()

    def cause(*words: str) -> str:
        return str(server.json("why", *words)["code"])

    async def story() -> None:
        node = await FakeNode.join(server.token("--label", "site=lyon"), "pi")
        assert cause("pi", "press") == "not_deployed"
        server.cli("deploy", "press", "-s", "site=paris", "--allow-empty")
        assert cause("pi", "press") == "not_selected"
        server.cli("deploy", "press", "-s", "name=pi", "--reason", "try it")
        assert cause("pi", "press") == "not_received"
        await node.exchange()
        await node.beat()
        await until(lambda: cause("pi", "press") == "not_applied")
        await node.obey("failed", "no such file")
        said = server.cli("why", "pi", "press").stdout.splitlines()
        assert said[0] == "because  version 1 failed: no such file"
        assert said[-1].startswith("next     tidewire deploy press@N --select name=pi")
        await node.obey("pending")
        assert cause("press", "pi") == "starting"
        await node.obey()
        assert cause("pi", "press") == cause("pi") == "as_wanted"
        server.cli("set", "press", "limit_c=70", "-s", "all")
        await node.exchange()
        await node.beat()
        await until(lambda: cause("pi", "press") == "params_pending")
        await node.obey()
        node.document.add_note(Note(node.id, 1, "param", "press", {"name": "limit_c", "value": 60.0}, "m.durand", "hot", 9))
        await node.obey()
        text = server.cli("why", "pi", "press").stdout
        assert 'limit_c = 60.0 (on-site by m.durand "hot"; beats 70.0 (rule:1), 85.0 (default))' in text
        assert "1 as wanted" in server.cli("why", "press").stdout
        server.cli("deploy", "press", "-s", "name=pi", "--remove")
        await node.exchange()
        await node.beat()
        await until(lambda: cause("pi", "press") == "still_running")
        await node.close()

    asyncio.run(story())


def test_writes_say_what_they_touch_and_a_dry_run_changes_nothing(server: ServerProcess) -> None:
    server.apply()

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        dry = server.cli("deploy", "press", "-s", "all", "--dry-run")
        assert dry.stdout == "1 node: pi\n  press starts version 1\ndry run: nothing changed\n"
        assert server.json("nodes")["nodes"][0]["generation"] == 0
        server.cli("deploy", "press", "-s", "all")
        await node.exchange()
        node.document.add_note(Note(node.id, 1, "param", "press", {"name": "limit_c", "value": 60.0}, "m.durand", "", 1))
        await node.obey()
        kept = server.cli("set", "press", "limit_c=90", "-s", "all").stdout
        assert "pi keeps its on-site override limit_c=60.0 by m.durand" in kept
        forced = server.cli("set", "press", "limit_c=90", "-s", "all", "--force").stdout
        assert "keeps" not in forced
        again = server.cli("unset", "press", "limit_c", "-s", "site=x")
        assert again.returncode == 1 and "its rules are: limit_c on all" in again.stderr
        await node.close()

    asyncio.run(story())


def test_bad_requests_get_one_line_and_a_fix(server: ServerProcess) -> None:
    server.apply()
    for words, status, text in [
        (("deploy", "pres", "-s", "all"), 1, "known pipelines: press"),
        (("deploy", "press@9", "-s", "all"), 1, "its versions are 1 to 1"),
        (("deploy", "press@x", "-s", "all"), 2, "NAME@N"),
        (("deploy", "press", "-s", "site="), 2, "site=lyon,line in (a,b),!spare"),
        (("deploy", "press"), 2, "--select"),
        (("set", "press", "limit_c=900", "-s", "all"), 1, "900 is above the maximum 400"),
        (("set", "press", "limit=9", "-s", "all"), 1, "its parameters are: limit_c, mode"),
        (("set", "press", "limit_c", "-s", "all"), 2, "NAME=VALUE"),
        (("nodes", "show", "x"), 1, "tidewire join-token create"),
        (("nodes", "show", "a/b?c"), 1, "there is no node 'a/b?c'"),
        (("nodes", "show", ".."), 1, "there is no node '..'"),
        (("nodes", "label", "a/labels", "k=v"), 1, "there is no node 'a/labels'"),
        (("incidents", "show", "a/b"), 1, "fix: "),
        (("why", "a/b"), 1, "'a/b'"),
        (("query", "select 1; select 2"), 1, "only one SELECT"),
        (("query", "create table t(a int)"), 1, "only one SELECT"),
        (("query", "select * from nothing"), 1, "the lake is empty so far"),
        (("query", "select * from read_text('/etc/passwd')"), 1, "disabled"),
        (("nosuch",), 2, "No such command"),
    ]:
        done = server.cli(*words)
        assert done.returncode == status and text in done.stderr, (words, done)
        assert "Traceback" not in done.stderr


def test_the_api_asks_for_its_token(server: ServerProcess) -> None:
    done = server.cli("nodes", TIDEWIRE_TOKEN="wrong")
    assert done.returncode == 1 and "the token is missing or wrong" in done.stderr
    assert (server.data_dir / "api.json").stat().st_mode & 0o777 == 0o600


def test_the_servers_own_token_goes_to_no_other_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ApiAddress("http://127.0.0.1:1", "secret").write(tmp_path / "api.json")
    for name in ("TIDEWIRE_URL", "TIDEWIRE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    found = ApiAddress.find(tmp_path)
    assert found and found.token == "secret"
    monkeypatch.setenv("TIDEWIRE_URL", "http://elsewhere")
    found = ApiAddress.find(tmp_path)
    assert found and found.token == ""


def test_a_missing_key_is_not_made_anew(tmp_path: Path) -> None:
    keys = KeyRing.open(tmp_path / "keys")
    assert KeyRing.open(tmp_path / "keys") == keys
    (tmp_path / "keys" / "control.seed").unlink()
    with pytest.raises(TidewireError) as caught:
        KeyRing.open(tmp_path / "keys")
    assert "backup" in caught.value.hint and not (tmp_path / "keys" / "control.seed").exists()


def test_a_missing_authority_is_not_made_anew(tmp_path: Path) -> None:
    first = open_tls(tmp_path / "tls", "localhost")
    assert open_tls(tmp_path / "tls", "localhost").ca_pem == first.ca_pem
    (tmp_path / "tls" / "ca.key").unlink()
    with pytest.raises(TidewireError):
        open_tls(tmp_path / "tls", "localhost")


def test_a_query_that_runs_away_is_stopped_and_rows_are_limited(server: ServerProcess) -> None:
    done = server.cli("query", "select count(*) from range(100000000000) a, range(1000) b", "--timeout", "0.3")
    assert done.returncode == 1 and "stopped after 0.3 s" in done.stderr
    done = server.cli("query", "select * from range(5)", "--limit", "2", "--csv")
    assert done.stdout == "range\n0\n1\n" and "only the first 2 rows" in done.stderr
    assert server.json("query", "select timestamptz '2024-01-01 00:00:00+00' t, sum(1) s") == [
        {"t": "2024-01-01T00:00:00Z", "s": 1}
    ]


def test_one_server_per_data_directory_and_per_port(server: ServerProcess, tmp_path: Path) -> None:
    second = run_cli("up", "--data-dir", str(server.data_dir), "--api-port", "0", "--nats-port", "0")
    assert second.returncode == 1 and "running on it already" in second.stderr and "  fix: " in second.stderr
    for option, port in (("--api-port", server.api_port), ("--nats-port", server.nats_port)):
        ports = {"--api-port": "0", "--nats-port": "0", option: str(port)}
        taken = run_cli("up", "--data-dir", str(tmp_path / "other"), *[word for pair in ports.items() for word in pair])
        assert taken.returncode == 1 and f"pick another with {option}" in taken.stderr, taken.stderr


def test_start_and_reach_problems_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = run_cli("up", "--data-dir", str(tmp_path / "file" / "data"))
    assert blocked.returncode == 1 and "--data-dir" in blocked.stderr and "Traceback" not in blocked.stderr
    nobody = run_cli("--data-dir", str(tmp_path), "nodes")
    assert nobody.returncode == 3 and "tidewire up" in nobody.stderr
    unreachable = run_cli("nodes", TIDEWIRE_URL=f"http://127.0.0.1:{free_port()}", TIDEWIRE_TOKEN="x")
    assert unreachable.returncode == 3 and "  fix: " in unreachable.stderr
    off_loopback = run_cli("up", "--data-dir", str(tmp_path / "d"), "--listen", "0.0.0.0")
    assert off_loopback.returncode == 2 and "--public-url" in off_loopback.stderr


def test_nats_server_dies_and_comes_back_on_its_port(server: ServerProcess) -> None:
    server.apply()

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        stream = node.stream()
        assert server.process
        for n in range(2):
            (broker,) = psutil.Process(server.process.pid).children()
            broker.send_signal(signal.SIGKILL)
            segment = stream.seal(rows(1.0))

            async def stored(segment=segment, seq=n + 1) -> bool:  # type: ignore[no-untyped-def]  # bound per round
                try:
                    return (await node.upload(segment, timeout=0.5)).marks[0][2] == seq
                except (nats.errors.Error, TimeoutError, OSError):
                    return False

            await until(stored, 30)
        await node.close()

    asyncio.run(story())


def test_children_die_with_the_server_and_a_stop_is_clean(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data").start()
    assert server.process
    (broker,) = psutil.Process(server.process.pid).children()
    server.kill()
    wait_until(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE, 5)
    server.start()
    (broker,) = psutil.Process(server.process.pid).children()
    assert server.stop() == 0
    assert not broker.is_running() and not (server.data_dir / "api.json").exists()
    assert "Traceback" not in server.said()


def test_off_loopback_nodes_come_in_over_tls(tmp_path: Path) -> None:
    port = free_port()
    server = ServerProcess(tmp_path / "data", "--listen", "0.0.0.0", "--public-url", f"nats://localhost:{port}")
    server.nats_port = port
    server.start()
    server.apply()

    async def story() -> None:
        text = server.token()
        token = JoinToken.decode(text)
        assert token.ca.startswith("-----BEGIN CERTIFICATE-----") and token.url == f"nats://localhost:{port}"
        node = await FakeNode.join(text, "pi")
        receipts = await node.upload(node.stream().seal(rows(1.0)))
        assert receipts.marks[0][2] == 1
        await node.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"CONNECT {}\r\nPING\r\n")
        assert b"INFO" not in await asyncio.wait_for(reader.read(), 20), "I13: not one word in clear, so nobody can strip TLS"
        writer.close()

    try:
        asyncio.run(story())
    finally:
        server.stop()


def test_i2_i3_killed_at_random_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """Ten SIGKILLs while a node uploads; then everything once more. Replay with the printed seed."""
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    print(f"seed {seed}")
    server = ServerProcess(tmp_path / "data").start()
    server.apply()

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        streams = [node.stream(f"s{n}", f"t{n % 2}") for n in range(3)]
        confirmed: Counter[str] = Counter()
        for _ in range(5):
            for stream in streams:
                for _ in range(8):
                    stream.seal(rows(*range(dice.randint(1, 20))))
            work = asyncio.create_task(_upload_all(node, streams, confirmed, dice))
            await asyncio.sleep(dice.uniform(0.0, 0.4))
            server.kill()
            await end(work)
            await asyncio.to_thread(server.start)
            await until(lambda: node.client.is_connected)
            await _keeps_what_it_confirmed(node, streams, confirmed)
        final: Counter[str] = Counter()
        await _upload_all(node, streams, final, dice)
        assert {s.run: len(s.sealed) for s in streams} == final
        await node.close()
        expected = Counter({s.run: sum(g.header.rows for g in s.sealed) for s in streams})
        stored = [r for t in ("t0", "t1") for r in _lake(server, t, "_run", "_seq", "_row")]
        assert Counter(r["_run"] for r in stored) == expected
        assert len({tuple(r.values()) for r in stored}) == len(stored)
        assert len(_lake(server, "segments", "seq")) == sum(final.values())

    try:
        asyncio.run(story())
    finally:
        server.stop()


async def _upload_all(node: FakeNode, streams: list, confirmed: Counter[str], dice: random.Random) -> None:  # type: ignore[type-arg]
    for stream in streams:
        while confirmed[stream.run] < len(stream.sealed):
            start = confirmed[stream.run]
            again = dice.randint(0, min(3, start))  # some of what is confirmed already, too
            try:
                receipts = await node.upload(*stream.sealed[start - again : start + 4], timeout=2)
            except (nats.errors.Error, OSError, TimeoutError):
                await asyncio.sleep(0.05)
                continue
            assert not receipts.error, receipts.error
            confirmed[stream.run] = max(start, receipts.marks[0][2])


async def _keeps_what_it_confirmed(node: FakeNode, streams: list, confirmed: Counter[str]) -> None:  # type: ignore[type-arg]
    async def answered() -> bool:
        try:
            receipts = await node.upload(ask=[[s.run, s.name] for s in streams], timeout=1)
        except (nats.errors.Error, OSError, TimeoutError):
            return False
        assert all(seq >= confirmed[run] for run, _, seq, *_ in receipts.marks), "I3: a receipt was given for what is lost"
        return True

    await until(answered)


def _lake(server: ServerProcess, table: str, *columns: str) -> list[dict[str, object]]:
    dataset = DeltaTable(server.data_dir / "lake" / table).to_pyarrow_dataset()
    return list(dataset.to_table(columns=list(columns)).to_pylist())


def test_i7_heartbeats_that_waited_on_the_line_take_back_nothing(server: ServerProcess) -> None:
    server.apply()

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        stale = Heartbeat(node.id, node.document.digest(), *node.manifest.order, 99, 99, "unsynced", "old", backlog_rows=99)
        server.cli("deploy", "press", "-s", "all")
        await node.exchange()
        await node.obey()
        await node.beat()
        await until(lambda: (node_row(server, "pi")["backlog"] or {"rows": 99})["rows"] == 0)
        before = node_row(server, "pi")
        assert before["converged"] and before["received_generation"] == 1
        pokes = node.pokes
        for _ in range(50):
            await node.client.publish(subjects.heartbeat(node.id), stale.pack())
        await node.client.flush()
        await until(lambda: node.pokes > pokes)  # it is asked, once for each; its answer would be what it is
        after = node_row(server, "pi")
        assert {**after, "last_seen": ""} == {**before, "last_seen": ""}
        await node.close()

    asyncio.run(story())


def test_i8_silence_is_unknown_not_failed(server: ServerProcess) -> None:
    server.apply()
    server.cli("deploy", "press", "-s", "all")

    async def story() -> None:
        node = await FakeNode.join(server.token(), "pi")
        await node.exchange()
        await node.obey()
        node.document.report("press", Reported("sha256:x", 1, "running"))
        await node.close()

    asyncio.run(story())
    server.stop()
    import sqlite3

    with sqlite3.connect(server.data_dir / "control.db") as db:
        db.execute("update nodes set last_seen = last_seen - 3600000000")
    server.start()
    row = node_row(server, "pi")
    assert str(row["contact"]).startswith("unknown since ") and str(row["contact"]).endswith("assumed running")
    assert row["converged"], "what it last reported stands"
    preview = server.cli("set", "press", "limit_c=70", "-s", "all").stdout
    assert preview.startswith("1 node: pi (out of contact since ")
    assert server.json("why", "pi", "press")["code"] == "out_of_contact"
