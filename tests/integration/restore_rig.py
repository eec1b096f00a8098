"""Real processes whose directories are copied and put back, as cards and backups are."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from control_plane.demo import processes
from control_plane.demo.processes import AGENT, CONTROL, Program
from edge_agent.join import join
from pipelines.contract.token import JoinToken
from prove.cluster import eventually
from prove.truth import table
from tests.integration.here import Here

NUMBERS = """
tidewire: 1
pipeline: numbers
params:
  least: {type: integer, default: 0}
  most: {type: integer, default: 1000}
sources:
  log:
    file: {path: "log/*.jsonl"}
schema:
  n: {type: integer}
steps:
  - filter: n >= $least and n <= $most
sinks:
  rows: {lake: {table: numbers}}
"""
RHYTHM = "heartbeat_s: 0.5\nexchange_s: 1\ncommit_s: 0.3\n"
_KEY = {"_node": pa.string(), "_run": pa.string(), "_stream": pa.string(), "_seq": pa.int64(), "_row": pa.int64()}


class Rig(Here):
    """Nodes that read `log/*.jsonl` of their directories into the table `numbers`."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._written: dict[str, int] = {}  # bytes, per image

    def log(self, name: str) -> Path:
        return self.home / name / "log" / "a.jsonl"

    async def join(self, name: str, settings: str = "") -> None:
        """`settings` go into its agent.yaml."""
        data_dir = self.home / name / "agent"
        data_dir.mkdir(parents=True)
        (data_dir / "agent.yaml").write_text(RHYTHM + settings)
        await join(JoinToken.decode(self.client.post("/v1/join-tokens", {})["token"]), data_dir, name)
        self.run_agent(name)
        await self.start(name)

    async def stop(self, name: str) -> None:
        await self.agents[name].stop()

    async def start(self, name: str) -> None:
        """Until it answers on its node."""
        await self.agents[name].start()

        async def answers() -> bool:
            return bool(await self.status(name))

        await eventually("the agent to answer", answers, 30)

    def image(self, name: str, to: str) -> None:
        """Copy a node's card: what its agent keeps, and how far the file that it reads was written."""
        shutil.copytree(self.home / name / "agent", self.home / to / "agent", ignore=shutil.ignore_patterns("*.sock"))
        self._written[to] = self.log(name).stat().st_size if self.log(name).exists() else 0

    def put_back(self, image: str, name: str) -> None:
        """The file keeps its inode, as in an image of the whole file system."""
        shutil.rmtree(self.home / name / "agent")
        shutil.copytree(self.home / image / "agent", self.home / name / "agent")
        os.truncate(self.log(name), self._written[image])

    def clone(self, image: str, name: str) -> None:
        """Put an image into another machine, which has files of its own."""
        self.image(image, name)
        self.run_agent(name)

    def run_agent(self, name: str) -> None:
        """Have an agent ready to `start` on what is there."""
        directory = self.home / name
        (directory / "log").mkdir()
        args = processes.module_command(AGENT, "run", "--data-dir", str(directory / "agent"))
        self.agents[name] = Program(name, args, directory, directory / "agent.log", self.env)

    def write(self, name: str, *numbers: Iterable[int]) -> None:
        with self.log(name).open("a") as file:
            file.writelines(f'{{"n": {n}}}\n' for some in numbers for n in some)

    async def sealed(self, name: str, rows: int) -> None:
        """Wait until so many rows wait on the node."""

        async def holds() -> bool:
            return bool((await self.status(name)).get("backlog", {}).get("rows") == rows)

        await eventually(f"{rows} rows to wait on {name}", holds)

    async def arrived(self, expected: Iterable[int], node: str = "", name: str = "numbers") -> None:
        """Wait until the table holds exactly these numbers of a node, and each row's key once (I2)."""
        wanted = Counter(expected)

        def holds() -> bool:
            return self.numbers(node, name) == wanted

        try:
            await eventually("rows", holds, 30)
        except AssertionError:
            found = self.numbers(node, name)
            words = f"missing {sorted((wanted - found).elements())}, too many {sorted((found - wanted).elements())}"
            raise AssertionError(words) from None
        keys = table(self.lake, name, _KEY).to_pylist()
        assert len({tuple(key.values()) for key in keys}) == len(keys)

    def numbers(self, node: str = "", name: str = "numbers") -> Counter[int]:
        rows = table(self.lake, name, {"n": pa.int64(), "_node": pa.string()}).to_pylist()
        return Counter(row["n"] for row in rows if row["_node"] == node or not node)

    def runs(self, node: str) -> dict[str, set[int]]:
        """Of the table `numbers`: run -> its numbers."""
        found: dict[str, set[int]] = {}
        for row in table(self.lake, "numbers", {"n": pa.int64(), **_KEY}).to_pylist():
            if row["_node"] == node:
                found.setdefault(row["_run"], set()).add(row["n"])
        return found

    def events(self, name: str, action: str = "security") -> list[str]:
        """What `nodes show` has of it, newest first."""
        return [row["detail"] for row in self.client.get(f"/v1/nodes/{name}")["audit"] if row["action"] == action]

    async def told(self, name: str, words: str, action: str = "security") -> None:
        """Wait until the centre says so where an operator looks."""
        await eventually(f"{action}: {words}", lambda: any(words in event for event in self.events(name, action)))

    async def works(self, *names: str) -> None:
        """Wait until nodes and control plane agree, nothing waits and nobody complains."""

        async def holds() -> bool:
            return not [trouble for name in names if (trouble := await self._trouble(name))]

        try:
            await eventually("all to be well", holds, 30)
        except AssertionError:
            raise AssertionError(str([await self._trouble(name) for name in names])) from None

    async def _trouble(self, name: str) -> str:
        status, seen = await self.status(name), await self.node(self.named(name))
        link = status.get("link", {"exchange": "no status", "upload": ""})
        waits = f"{status['backlog']['segments']} segments wait" if status and status["backlog"]["segments"] else ""
        return "; ".join(filter(None, (link["exchange"], link["upload"], waits, seen.get("why", "no answer"))))

    def named(self, name: str) -> str:
        """The node's name at the centre, which a clone shares."""
        return self.node_id(name)

    async def audit(self, *words: str) -> tuple[int, str]:
        """Exit status and text of `tidewire audit`."""
        ended = await self.end(CONTROL, "audit", *words, cwd=self.home)
        return ended.status, ended.out + ended.err

    def edit(self, name: str, sql: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.home / name / "agent" / "agent.db")) as db, db:
            db.execute(sql, values)


def deploy(rig: Rig, text: str = NUMBERS) -> None:
    """Register a version and have all nodes run it."""
    rig.client.post("/v1/apply", {"files": [{"name": "numbers.yaml", "text": text}]})
    rig.client.post("/v1/deployments", {"reference": "numbers", "select": "all"})


class Site:
    """One control plane for the tests of a file; each has nodes of its own, which are stopped at its end."""

    def __init__(self, home: Path) -> None:
        self.rig, self._loop = Rig(home), asyncio.Runner()

    @classmethod
    @contextmanager
    def opened(cls, home: Path) -> Iterator[Site]:
        site = cls(home)
        try:
            site.run(site.rig.open())
            yield site
        finally:
            site.run(site.rig.close())
            site._loop.close()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run(work)

    async def stop_nodes(self) -> None:
        self.rig.link.heal()
        for name in list(self.rig.agents):
            await self.rig.agents.pop(name).stop()
