"""docs/incidents.md, word for word: acknowledged on site at 3 am with the link down. Real processes, a proxy that is cut."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prove.cluster import eventually
from tests.docs.blocks import Block, blocks
from tests.integration.here import Here, cluster

PAGE = Path(__file__).parents[2] / "docs" / "incidents.md"
SIREN_S = 15  # after the horn, unless somebody acknowledged
HEADING = "Acknowledged on site at 3 am with the link down"


class Pager:
    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/s3cret"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
        self.calls.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    def of(self, transition: str) -> int:
        return sum(call.get("transition") == transition and "incident" in call for call in self.calls)


@pytest.mark.slow
def test_acknowledged_on_site_at_3_am_with_the_link_down(tmp_path: Path) -> None:
    asyncio.run(_walk(tmp_path))


async def _walk(home: Path) -> None:
    walk = [block for block in blocks(PAGE) if block.heading == HEADING]
    script = {block.info: block for block in walk if block.info.startswith("console")}
    pager = Pager()
    async with cluster(home, "commit_s: 1\nheartbeat_s: 3\n", ("--in-contact", "12s")) as made:
        here = await made.add_node("node-1", site="lyon", policy="exec: [/usr/bin/touch]\n")
        [pipeline] = [block for block in walk if block.save_as]
        assert f"after: {SIREN_S}s" in pipeline.text
        (home / pipeline.save_as).write_text(pipeline.text.replace("PLACE", str(here)))
        words = {"PAGER": await pager.start()}
        said = await _type(made, script["console"], words)
        assert "s3cret" not in "".join(said)
        await eventually("the pipeline to run", made.has_converged)

        _heat(here, 95)
        await eventually("the horn", (here / "horn-on").exists)
        horn_s = time.monotonic()
        await eventually("the incident at the centre, and the pager", lambda: _incident(made) and pager.of("raised") == 1)
        raised, words["INCIDENT"] = _incident(made), _incident(made)["id"]
        assert raised["state"] == "active, unacknowledged" and not raised["as_of"]
        assert words["INCIDENT"] in (await _type(made, script["console raise"], words))[0]

        made.link.cut()
        [acked, _] = await _type(made, script["console cut"], words)
        assert "acknowledged" in acked
        await eventually("the horn to stop", (here / "horn-off").exists)

        await eventually("the centre to miss the node", lambda: _incident(made)["as_of"])
        [incidents, nodes] = await _type(made, script["console apart"], words)
        assert "unacknowledged" in incidents and "may already be acknowledged on site" in incidents
        assert "unknown since" in nodes
        await asyncio.sleep(max(0.0, horn_s + SIREN_S + 3 - time.monotonic()))
        assert not (here / "siren").exists(), "its time is over: the acknowledgement on site stopped the escalation"

        made.link.heal()
        await eventually("both sides to agree", lambda: _incident(made)["acknowledged"])
        [shown, stats] = await _type(made, script["console healed"], words)
        assert "acknowledged by" in shown and "opened V12, m.durand" in shown and "the node does not know" not in shown
        assert "1 since" in stats
        await eventually("the pager to hear of the acknowledgement", lambda: pager.of("acknowledged") == 1)
        await asyncio.sleep(5)
        assert pager.of("raised") == 1, "nobody is called again"


async def _type(made: Here, block: Block, words: dict[str, str]) -> list[str]:
    outputs = []
    for line in block.text.strip().splitlines():
        program, *typed = shlex.split(line)
        typed = [words.get(word, word) for word in typed]
        outputs.append(await (made.tidewire(*typed) if program == "tidewire" else made.agent("node-1", *typed)))
    return outputs


def _incident(made: Here) -> dict[str, Any]:
    found = [row for row in made.client.get("/v1/incidents")["incidents"] if row["origin"] == "node"]
    assert len(found) <= 1, "one occurrence is one incident"
    return found[0] if found else {}


def _heat(here: Path, temp_c: float) -> None:
    with (here / "press.jsonl").open("a") as file:
        file.write(json.dumps({"ts": datetime.now(UTC).isoformat(), "machine": "m1", "temp_c": temp_c}) + "\n")
