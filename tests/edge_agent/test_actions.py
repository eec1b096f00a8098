"""Local actions: at once, in order, again after a failure, never after their time, never against the policy."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import open_store, until

from edge_agent.actions import PROGRAMS_AT_ONCE, Actions, backlog
from edge_agent.actions import exec as exec_action
from edge_agent.policy import Policy
from edge_agent.store import Commit, Store


class Hook:
    """A real HTTP server that answers with the statuses it was given, then 200."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self.calls: list[tuple[dict[str, str], Any]] = []

    async def start(self, port: int = 0) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/alert"

    @property
    def ids(self) -> list[str]:
        return [headers["idempotency-key"] for headers, _ in self.calls]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.calls.append((headers, json.loads(body)))
        status = self._statuses.pop(0) if self._statuses else 200
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()


def action(name: str, kind: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = {
        "id": name,
        "incident": "i1",
        "pipeline": "p",
        "trigger": "hot",
        "transition": "raised",
        "valid_for_us": None,
        "at_us": 0,
    }
    return {**base, "kind": kind, "config": config, "context": {"message": "hot!", "severity": "critical"}, **more}


def with_actions(tmp_path: Path, work: Callable[[Store, Actions], Awaitable[None]], policy: Policy | None = None) -> None:
    async def go(store: Store) -> None:
        actions = Actions(store, policy or Policy())
        await actions.resume()
        try:
            await asyncio.wait_for(work(store, actions), 30)
        finally:
            await actions.close()

    with open_store(tmp_path) as store:
        asyncio.run(go(store))


async def ended(store: Store, name: str) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        return next((a for a in await store.action_log(2_000) if a["id"] == name and a["status"] != "pending"), None)

    result: dict[str, Any] = await until(found, f"the end of action {name}")
    return result


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "BACKOFF_FIRST_S", 0.05)


def test_a_webhook_carries_the_context_and_its_idempotency_key(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        hook = Hook()
        actions.offer("p", action("a1", "webhook", {"url": await hook.start(), "headers": {"X-Key": "k"}}))
        assert (await ended(store, "a1"))["status"] == "done"
        [(headers, body)] = hook.calls
        assert (headers["idempotency-key"], headers["x-key"]) == ("a1", "k")
        assert (body["incident"], body["message"], body["transition"]) == ("i1", "hot!", "raised")

    with_actions(tmp_path, work)


def test_a_webhook_is_tried_again_until_it_is_taken(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        hook = Hook(500, 503, 429)
        actions.offer("p", action("a1", "webhook", {"url": await hook.start()}))
        got = await ended(store, "a1")
        assert (got["status"], got["tries"], len(hook.calls)) == ("done", 4, 4)

    with_actions(tmp_path, work)


def test_what_would_come_back_the_same_is_not_tried_again(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        hook = Hook(404)
        actions.offer("p", action("a1", "webhook", {"url": await hook.start()}))
        assert (await ended(store, "a1"))["outcome"] == "HTTP 404"
        assert len(hook.calls) == 1

    with_actions(tmp_path, work)


def test_without_a_valid_for_it_gives_up_after_five_tries(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        hook = Hook(*[500] * 99)
        actions.offer("p", action("a1", "webhook", {"url": await hook.start()}))
        assert (await ended(store, "a1"))["status"] == "failed"
        assert len(hook.calls) == 5

    with_actions(tmp_path, work)


def test_a_late_action_expires_in_the_open_and_is_not_performed(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        hook = Hook()
        url = await hook.start()
        late = store.clock.now_us() - 31_000_000
        actions.offer("p", action("late", "webhook", {"url": url}, at_us=late, valid_for_us=30_000_000))
        assert (await ended(store, "late"))["status"] == "expired"
        failing = Hook(*[500] * 99)
        now = store.clock.now_us()
        actions.offer("p", action("soon", "webhook", {"url": await failing.start()}, at_us=now, valid_for_us=300_000))
        assert (await ended(store, "soon"))["status"] == "expired"
        assert (hook.calls, len(failing.calls) > 1) == ([], True)

    with_actions(tmp_path, work)


def test_an_action_is_performed_once_whether_offered_committed_or_resumed(tmp_path: Path) -> None:
    hook = Hook()
    seen: list[int] = []

    async def first(store: Store, actions: Actions) -> None:
        one = action("a1", "webhook", {"url": await hook.start()})
        for _ in range(3):
            actions.offer("p", one)
        await ended(store, "a1")
        await store.checkpoint("p")
        await store.commit("p", "v", 1, Commit({}, {}, actions=[one, action("a2", "log", {})]))
        seen.append(len(hook.calls))

    async def second(store: Store, actions: Actions) -> None:
        assert (await ended(store, "a2"))["status"] == "done", "what a commit made durable is done after a restart"
        actions.offer("p", action("a1", "webhook", {"url": "http://127.0.0.1:1/"}))
        await actions.idle()
        assert (await ended(store, "a1"))["outcome"] == "HTTP 200"

    with_actions(tmp_path, first)
    with_actions(tmp_path, second)
    assert seen == [1]


def test_actions_on_one_target_for_one_incident_keep_their_order(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        hook = Hook(500, 500)
        url = await hook.start()
        actions.offer("p", action("on", "webhook", {"url": url}))
        actions.offer("p", action("off", "webhook", {"url": url}, transition="cleared"))
        await ended(store, "off")
        assert [body["transition"] for _, body in hook.calls] == ["raised", "raised", "raised", "cleared"]

    with_actions(tmp_path, work)


def test_i13_policy_narrows_hosts_and_programs(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        actions.offer("p", action("web", "webhook", {"url": "http://127.0.0.1:1/"}))
        actions.offer("p", action("run", "exec", {"program": "/bin/true"}))
        actions.offer("p", action("odd", "teleport", {}))
        for name, words in [("web", "webhook_hosts"), ("run", "does not list /bin/true"), ("odd", "no action")]:
            got = await ended(store, name)
            assert got["status"] == "refused" and words in got["outcome"]

    with_actions(tmp_path, work, Policy(webhook_hosts=("*.example",)))


def test_a_program_gets_its_words_the_context_and_nothing_of_the_agents_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "do not pass on")
    program, out = tmp_path / "horn", tmp_path / "out"
    program.write_text(f'#!/bin/sh\n(echo "$1"; env; cat) > {out}\n')
    program.chmod(stat.S_IRWXU)

    async def work(store: Store, actions: Actions) -> None:
        actions.offer("p", action("a1", "exec", {"program": str(program), "args": ["$(id) & x"]}))
        assert (await ended(store, "a1"))["status"] == "done"
        lines = out.read_text().splitlines()
        assert lines[0] == "$(id) & x"
        assert {"TIDEWIRE_INCIDENT=i1", "TIDEWIRE_MESSAGE=hot!", "TIDEWIRE_TRANSITION=raised"} <= set(lines)
        assert not any("SECRET" in line for line in lines)
        assert json.loads(lines[-1]) == {"message": "hot!", "severity": "critical"}

    with_actions(tmp_path, work, Policy(exec=(str(program),)))


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_action, "TIMEOUT_S", 0.3)
    program, pid = tmp_path / "hang", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {pid}\nwait\n")
    program.chmod(stat.S_IRWXU)

    async def work(store: Store, actions: Actions) -> None:
        actions.offer("p", action("a1", "exec", {"program": str(program)}))
        assert "killed" in (await ended(store, "a1"))["outcome"]
        await until(lambda: _is_gone(int(pid.read_text())), "the end of the grandchild")

    with_actions(tmp_path, work, Policy(exec=(str(program),)))


def _is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_exec_runs_few_programs_at_once(tmp_path: Path) -> None:
    program = tmp_path / "slow.sh"
    program.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/on-$$; ls {tmp_path} | grep -c on- >> {tmp_path}/seen; sleep 0.1; rm {tmp_path}/on-$$\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    async def work(store: Store, actions: Actions) -> None:
        for n in range(12):
            actions.offer("p", action(f"a{n}", "exec", {"program": str(program)}, incident=f"i{n}"))
        for n in range(12):
            assert (await ended(store, f"a{n}"))["status"] == "done"
        counts = [int(line) for line in (tmp_path / "seen").read_text().split()]
        assert (len(counts), max(counts) <= PROGRAMS_AT_ONCE) == (12, True)

    with_actions(tmp_path, work, Policy(exec=(str(program),)))


def test_a_program_that_waited_too_long_for_its_turn_is_expired(tmp_path: Path) -> None:
    program = tmp_path / "slow.sh"
    program.write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/seen; sleep 0.5\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    async def work(store: Store, actions: Actions) -> None:
        for n in range(PROGRAMS_AT_ONCE):
            actions.offer("p", action(f"a{n}", "exec", {"program": str(program), "args": ["early"]}, incident=f"i{n}"))
        late = action("late", "exec", {"program": str(program), "args": ["late"]}, incident="late")
        actions.offer("p", {**late, "at_us": store.clock.now_us(), "valid_for_us": 200_000})
        assert (await ended(store, "late"))["status"] == "expired"
        assert "late" not in (tmp_path / "seen").read_text()

    with_actions(tmp_path, work, Policy(exec=(str(program),)))


@pytest.mark.parametrize("message", ["hot\0dog", "x" * 140_000, "\ud800"], ids=["NUL", "long", "surrogate"])
def test_exec_gets_a_message_that_no_environment_takes(tmp_path: Path, message: str) -> None:
    program = tmp_path / "keep.sh"
    program.write_text(f'#!/bin/sh\nprintf %s "$TIDEWIRE_MESSAGE" > {tmp_path}/message\ncat > {tmp_path}/stdin\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)

    async def work(store: Store, actions: Actions) -> None:
        actions.offer("p", action("a1", "exec", {"program": str(program), "args": [message]}, context={"message": message}))
        assert (await ended(store, "a1"))["status"] == "done"

    with_actions(tmp_path, work, Policy(exec=(str(program),)))
    assert json.loads((tmp_path / "stdin").read_text()) == {"message": message}, "the whole of it is on stdin"
    assert 0 < len((tmp_path / "message").read_bytes()) <= 4096
