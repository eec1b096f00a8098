"""Pauses and pins from the centre, on a real node: it obeys, `why` says so, and what is done on site is seen at the centre."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prove.cluster import eventually
from tests.integration.restore_rig import NUMBERS, Rig


def test_a_node_obeys_central_notes_and_why_says_so(tmp_path: Path) -> None:
    asyncio.run(whole(tmp_path))


async def whole(home: Path) -> None:
    rig = Rig(home / "rig")
    rig.home.mkdir()
    try:
        await rig.open()
        rig.client.post("/v1/apply", {"files": [{"name": "n.yaml", "text": NUMBERS}]})
        await rig.tidewire("deploy", "numbers", "--select", "all", "--soak", "2s")
        await rig.join("pi")
        rig.write("pi", range(3))
        await rig.arrived(range(3))
        await rig.works("pi")
        await caused(rig, "as_wanted")
        await pausing(rig)
        await pinning(rig)
    finally:
        await rig.close()


async def pausing(rig: Rig) -> None:
    assert (await rig.tidewire("pause", "numbers", "--select", "all", "--reason", "cleaning")).endswith("done\n")
    await caused(rig, "paused")
    assert [p["phase"] for p in (await rig.status("pi"))["pipelines"]] == ["paused"]
    said = (await rig.tidewire("why", "pi", "numbers")).splitlines()
    assert said[0].startswith("because  paused centrally by tester: cleaning")
    assert said[-1].split(maxsplit=1) == ["next", "tidewire resume numbers --select name=pi"]
    assert not (await rig.node("pi"))["converged"], "not as wanted, and it says why (I6)"
    rig.link.cut()
    await rig.agent("pi", "resume", "numbers", "--reason", "clean")
    await eventually("the node to go on, on site", lambda: runs(rig, 1))
    rig.link.heal()
    await caused(rig, "as_wanted")
    also = [text for label, text in (await why(rig))["lines"] if label == "also"]
    assert any("cleaning" in text and "lost" in text for text in also), also


async def pinning(rig: Rig) -> None:
    await rig.tidewire("pin", "numbers", "--select", "all", "--reason", "audit")
    rig.client.post("/v1/apply", {"files": [{"name": "n.yaml", "text": NUMBERS.replace("default: 1000", "default: 900")}]})
    await rig.tidewire("deploy", "numbers@2", "--select", "all", "--soak", "2s")
    await caused(rig, "pinned")
    assert await runs(rig, 1)
    assert (await why(rig))["next"] == "tidewire unpin numbers --select name=pi"
    assert (await rig.tidewire("why", "numbers")).startswith("because  1 pinned\n")
    await rig.tidewire("unpin", "numbers", "--select", "all")
    await eventually("the wanted version", lambda: runs(rig, 2))
    rig.write("pi", range(3, 6))  # or its gate would be held: nothing is known of a version without rows
    await caused(rig, "as_wanted")


async def why(rig: Rig) -> dict[str, Any]:
    return dict(await asyncio.to_thread(rig.client.get, "/v1/why/pi", pipeline="numbers"))


async def caused(rig: Rig, code: str) -> None:
    async def holds() -> bool:
        return (await why(rig))["code"] == code

    await eventually(code, holds)


async def runs(rig: Rig, number: int) -> bool:
    pipelines = (await rig.status("pi")).get("pipelines", [])
    return [(p["number"], p["phase"]) for p in pipelines] == [(number, "running")]
