"""A target that was out of reach: what waited for it comes in order, and as one message when it is much."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from support import open_store, until
from test_actions import Hook, action, ended, with_actions

from edge_agent.actions import Actions, backlog
from edge_agent.actions.backlog import DIGEST_OVER, digest
from edge_agent.policy import Policy
from edge_agent.store import Store

HOUR_US = 3_600_000_000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "BACKOFF_FIRST_S", 0.05)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def page(store: Store, n: int, port: int, transition: str = "raised", **more: Any) -> dict[str, Any]:
    context = {"message": f"hot {n}", "severity": "critical", "at_us": 1_767_225_600_000_000 + n, "state": "active"}
    words = {"incident": f"i{n}", "transition": transition, "at_us": store.clock.now_us(), "valid_for_us": 12 * HOUR_US}
    url = f"http://127.0.0.1:{port}/alert"
    return action(f"{transition} {n}", "webhook", {"url": url}, **{**words, **more}, context=context)


async def all_ended(store: Store, count: int) -> list[dict[str, Any]]:
    async def found() -> list[dict[str, Any]]:
        log = [a for a in await store.action_log(2_000) if a["status"] != "pending"]
        return log if len(log) == count else []

    result: list[dict[str, Any]] = await until(found, f"the end of {count} actions")
    return result[::-1]


async def all_tried(store: Store, count: int) -> bool:
    return sum(a["tries"] >= 1 for a in await store.pending_actions()) == count


def test_a_night_without_the_pager_is_one_message_in_the_morning(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        port, hook = free_port(), Hook()
        for n in range(200):
            actions.offer("p", page(store, n, port))
            if n % 2:
                actions.offer("p", page(store, n, port, "cleared"))
        actions.offer("p", page(store, 999, port, valid_for_us=1))
        await ended(store, "raised 999")
        await until(lambda: all_tried(store, 300))
        await hook.start(port)
        log = await all_ended(store, 301)
        assert len(hook.calls) == 1
        [(headers, body)] = hook.calls
        assert (body["digest"], body["count"], body["since"]) == (True, 300, "2026-01-01T00:00:00+00:00")
        assert [one["incident"] for one in body["incidents"]] == [f"i{n}" for n in range(200)]
        assert [t["transition"] for t in body["incidents"][1]["transitions"]] == ["raised", "cleared"]
        assert headers["idempotency-key"] == body["id"]
        assert {a["outcome"] for a in log} == {"in a digest of 300: HTTP 200", "its valid_for was over"}
        actions.offer("p", page(store, 1_000, port))
        assert (await ended(store, "raised 1000"))["outcome"] == "HTTP 200"
        assert hook.ids[1:] == ["raised 1000"]

    with_actions(tmp_path, work)


def test_few_come_one_by_one_in_their_order(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        port, hook = free_port(), Hook()
        for n in range(DIGEST_OVER):
            actions.offer("p", page(store, n % 3, port, f"t{n}"))
        await asyncio.sleep(0.2)
        await hook.start(port)
        await all_ended(store, DIGEST_OVER)
        assert hook.ids == [f"t{n} {n % 3}" for n in range(DIGEST_OVER)]

    with_actions(tmp_path, work)


def test_one_that_is_not_taken_holds_up_its_own_incident_and_no_other(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        port, hook = free_port(), Hook(500, 500, 500)
        await hook.start(port)
        actions.offer("p", page(store, 1, port))
        await until(lambda: hook.calls)
        actions.offer("p", page(store, 1, port, "cleared"))
        actions.offer("p", page(store, 2, port))
        await all_ended(store, 3)
        mine = [name for name in hook.ids if name.endswith("1")]
        assert mine == ["raised 1"] * (len(mine) - 1) + ["cleared 1"]
        assert hook.ids.index("raised 2") <= 2, "it is tried at once, or right after the other's next try"

    with_actions(tmp_path, work)


def test_a_receiver_that_refuses_the_digest_gets_them_one_by_one(tmp_path: Path) -> None:
    async def work(store: Store, actions: Actions) -> None:
        port, hook = free_port(), Hook(422)
        for n in range(20):
            actions.offer("p", page(store, n, port))
        await asyncio.sleep(0.2)
        await hook.start(port)
        log = await all_ended(store, 20)
        assert {a["status"] for a in log} == {"done"}
        assert hook.ids[1:] == [f"raised {n}" for n in range(20)]

    with_actions(tmp_path, work)


def test_what_waited_outlives_a_restart_with_its_tries_and_still_comes_as_one(tmp_path: Path) -> None:
    port, hook = free_port(), Hook()

    async def night(store: Store, actions: Actions) -> None:
        for n in range(50):
            actions.offer("p", page(store, n, port, valid_for_us=None if n == 7 else 12 * HOUR_US))
        await until(lambda: all_tried(store, 50))

    async def morning(store: Store) -> None:
        await hook.start(port)
        actions = Actions(store, Policy())
        await actions.resume()
        await all_ended(store, 50)
        await actions.close()

    with_actions(tmp_path, night)
    with open_store(tmp_path) as store:
        asyncio.run(asyncio.wait_for(morning(store), 30))
    assert [body["count"] for _, body in hook.calls] == [50]


def test_i9_without_a_valid_for_tries_are_bounded_over_restarts(tmp_path: Path) -> None:
    port, tries = free_port(), list[int]()

    async def life(store: Store, actions: Actions) -> None:
        if not tries:
            actions.offer("p", page(store, 1, port, valid_for_us=None))

        async def tried() -> bool:
            log = await store.action_log()
            return bool(log) and (log[0]["status"] == "failed" or log[0]["tries"] > sum(tries))

        await until(tried)
        tries.append(1)

    for _ in range(6):
        with_actions(tmp_path, life)
    with open_store(tmp_path) as store:
        [only] = asyncio.run(store.action_log())
    assert only["status"] == "failed" and f"({backlog.TRIES} tries)" in only["outcome"]


def test_a_digest_says_the_last_of_each_incident_and_has_a_name_of_its_own() -> None:
    one = action("a", "webhook", {}, context={"message": "hot", "state": "active", "at_us": 5})
    two = action("b", "webhook", {}, transition="cleared", context={"message": "hot", "state": "closed", "at_us": None})
    made = digest([one, two])
    [incident] = made["digest"]["incidents"]
    assert (incident["state"], [t["id"] for t in incident["transitions"]]) == ("closed", ["a", "b"])
    assert made["id"] == digest([one, two])["id"] != digest([two, one])["id"]
