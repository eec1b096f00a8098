"""The demo's story: deploy, cut the link, live through an incident and changes on both sides, heal, agree, account."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from control_plane.client import Client
from control_plane.demo import processes, truth
from control_plane.demo.factory import Press
from control_plane.demo.horn import Blast, Horn
from control_plane.demo.processes import AGENT, CONTROL, Program
from control_plane.demo.proxy import Link, free_port
from control_plane.demo.truth import Comparison
from control_plane.demo.view import NodeRow, Result, View
from pipelines.contract.errors import OutOfReach, TidewireError

PIPELINE = "press-overheat"
LINES = {"press-a1": "a", "press-a2": "a", "press-b1": "b"}  # node -> line of the factory
SETTLE_S = 60.0  # longest wait for both sides to agree after the link is back
SEE_S = 30.0  # longest wait for anything else
LOOK_S = 0.4


@dataclass
class Node:
    name: str
    directory: Path
    press: Press
    program: Program
    id: str = ""
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return self.directory / "agent"


class Demo:
    def __init__(self, view: View, home: Path, cut_s: float, quiet_s: float) -> None:
        self.view, self.home, self.cut_s, self.quiet_s = view, home, cut_s, quiet_s
        self.link, self.horn = Link(), Horn()
        self.env = processes.environment(TIDEWIRE_HOME=str(home / "control"), TIDEWIRE_USER="c.roy")
        self.nodes: list[Node] = []
        self.server: Program | None = None
        self.rows_in_lake: dict[str, int] = {}
        self.problems: list[str] = []
        self.cut_at_s = self.healed_at_s = 0.0
        self.cut_blasts: list[Blast] = []
        self.acknowledged = ""
        self._factory: asyncio.Task[None] | None = None

    # -- the story

    async def play(self) -> Result:
        await self._start_control_plane()
        await self._start_nodes()
        await self._deploy()
        await self._wait("rows in the lake from every node", lambda: len(self.rows_in_lake) == len(self.nodes))
        await asyncio.sleep(self.quiet_s)
        await self._live_apart()
        await self._heal()
        return await self._account()

    async def _start_control_plane(self) -> None:
        self.view.say("a control plane with its own broker; between it and the nodes a link that can be cut")
        dialled = await self.link.open()
        self.link.target_port = free_port()
        ports = ("--api-port", "0", "--nats-port", str(self.link.target_port))
        args = processes.module_command(CONTROL, "up", *ports, "--public-url", f"nats://127.0.0.1:{dialled}")
        self.server = Program("control plane", args, self.home, self.home / "control.log", self.env)
        await self.server.start()
        deadline = time.monotonic() + processes.START_S
        while not await self._is_up():
            if not self.server.is_running or time.monotonic() > deadline:
                raise self.server.why_dead()
            await asyncio.sleep(0.05)

    async def _is_up(self) -> bool:
        try:
            await asyncio.to_thread(self._client().get, "/v1/health")
        except (OutOfReach, TidewireError):
            return False
        return True

    async def _start_nodes(self) -> None:
        horn_port = await self.horn.open()
        self._horn_url = f"http://127.0.0.1:{horn_port}/horn"
        tokens = {line: await self._tidewire("join-token", "create", "--label", f"line={line}", "--uses", "2") for line in "ab"}
        for i, (name, line) in enumerate(LINES.items()):
            directory = self.home / name
            press = Press(name.removeprefix("press-"), directory / "readings", seed=i)
            args = processes.module_command(AGENT, "run", "--data-dir", str(directory / "agent"))
            self.nodes.append(Node(name, directory, press, Program(name, args, directory, directory / "agent.log", self.env)))
            self.view.command(f"tidewire-agent join tw1... --name {name}")
            await self._agent(self.nodes[-1], "join", tokens[line].strip().splitlines()[-1], "--name", name)
        for node in self.nodes:
            node.id = json.loads((node.data_dir / "identity.json").read_text())["node"]
            await node.program.start()
        self._factory = asyncio.create_task(self._run_factory())
        self.view.say("three nodes joined on two lines of a factory, each reading the files of its own press")

    async def _deploy(self) -> None:
        first = (Path(__file__).parent / f"{PIPELINE}.yaml").read_text().replace("http://127.0.0.1:8099/horn", self._horn_url)
        self._pipeline_file = self.home / f"{PIPELINE}.yaml"
        self._pipeline_file.write_text(first)
        await self._say_and_do("apply", self._pipeline_file.name)
        await self._say_and_do("deploy", PIPELINE, "--select", "line in (a,b)", "--reason", "go live")

    async def _live_apart(self) -> None:
        self.link.cut()
        self.cut_at_s = time.monotonic()
        blasts_before = len(self.horn.blasts)
        self.view.say("THE LINK IS CUT. Readings keep coming, nodes carry on", "bold red")
        await self._heat("line a and line b overheat")
        self.acknowledged = self._blasts_of("press-a2")[-1].incident
        await self._say_and_do_on(self._node("press-a2"), "ack", self.acknowledged, "--reason", "cooling opened")
        await self._cool()
        second = self._pipeline_file.read_text().replace(
            "  - enrich:", "  - derive:\n      over_limit_c: temp_c - $limit_c\n  - enrich:"
        )
        self._pipeline_file.write_text(second)
        await self._say_and_do("apply", self._pipeline_file.name)
        await self._say_and_do("deploy", f"{PIPELINE}@2", "--select", "line in (a,b)", "--reason", "analysts want the margin")
        await self._say_and_do("set", PIPELINE, "min_sensors=5", "--select", "line=a", "--reason", "sensor 6 rewired")
        await self._say_and_do_on(self._node("press-b1"), "set", PIPELINE, "limit_c=90", "--reason", "new mould runs hotter")
        await self._restart(self._node("press-a1"))
        await self._heat("they overheat again")
        await self._cool()
        await asyncio.sleep(max(0.0, self.cut_s - (time.monotonic() - self.cut_at_s)))
        self.cut_blasts = self.horn.blasts[blasts_before:]

    async def _heal(self) -> None:
        self.link.heal()
        self.healed_at_s = time.monotonic()
        self.view.say(f"the link is back after {self.healed_at_s - self.cut_at_s:.1f} s", "bold green")
        await asyncio.sleep(1.5)
        await self._stop_factory()
        self.view.say("the sensors stop; everything they wrote must now arrive")
        try:
            await self._wait("both sides to agree", self._has_settled, SETTLE_S)
        except TidewireError as error:
            self.problems.append(str(error))
        self.settled_at_s = time.monotonic()

    async def _account(self) -> Result:
        compared = await asyncio.to_thread(self._compare)
        accounts = await asyncio.to_thread(self._accounts)
        rows = [await asyncio.to_thread(self._client().get, f"/v1/nodes/{node.name}") for node in self.nodes]
        incidents = (await asyncio.to_thread(self._client().get, "/v1/incidents"))["incidents"]
        self._check(compared, accounts, rows, incidents)
        times = sorted(blast.after_ms for blast in self.cut_blasts) or [0.0]
        return Result(
            rows_read=compared.written,
            rows_in_lake=compared.in_lake,
            filtered=sum(row["filtered"] for row in accounts),
            quarantined=compared.quarantined,
            lost=compared.lost,
            duplicated=compared.duplicated,
            incidents_while_cut=len({blast.incident for blast in self.cut_blasts}),
            action_p99_ms=round(times[min(len(times) - 1, int(len(times) * 0.99))], 1),
            converged=self._has_agreed(rows),
            cut_seconds=round(self.healed_at_s - self.cut_at_s, 2),
            catch_up_seconds=round(self.settled_at_s - self.healed_at_s, 2),
            problems=self.problems,
            nodes=[_node_line(node, row) for node, row in zip(self.nodes, rows, strict=True)],
            accounts=accounts,
        )

    # -- what must be true in the end

    def _check(self, compared: Comparison, accounts: list[dict[str, Any]], rows: list[Any], incidents: list[Any]) -> None:
        """Everything the story claims, beyond the row counts."""
        demand = self._demand
        demand(compared.misplaced == 0, f"{compared.misplaced} rows in a table where they should not be")
        demand(all(row["balanced"] for row in accounts), "a ledger does not balance")
        filtered = sum(len(node.press.written.filtered) for node in self.nodes)
        demand(sum(row["filtered"] for row in accounts) == filtered, f"the sensors wrote {filtered} rows to filter")
        demand(sum(row["read"] for row in accounts) == compared.written, "the ledgers do not count every line as read")
        known = {incident["id"]: incident for incident in incidents}
        for blast in self.cut_blasts:
            demand(blast.incident in known, f"incident {blast.incident} did not reach the control plane")
        acknowledged = json.dumps(known.get(self.acknowledged, {}))
        demand("acknowledged" in acknowledged, "the acknowledgement did not reach the control plane")
        for node, row in zip(self.nodes, rows, strict=True):
            params = row["reported"].get(PIPELINE, {}).get("params", {})
            wanted = {"limit_c": 90.0 if node.name == "press-b1" else 85.0, "min_sensors": 5 if LINES[node.name] == "a" else 4}
            demand(params == wanted, f"{node.name} runs with {params}, not {wanted}")
            demand(row["reported"].get(PIPELINE, {}).get("number") == 2, f"{node.name} does not run version 2")

    def _demand(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.problems.append(otherwise)

    def _has_agreed(self, rows: list[Any]) -> bool:
        return all(row["converged"] for row in rows)

    async def _has_settled(self) -> bool:
        """Everything the sensors wrote is in the lake, and every node does what it should."""
        listed = (await asyncio.to_thread(self._client().get, "/v1/nodes"))["nodes"]
        if len(listed) < len(self.nodes) or not self._has_agreed(listed):
            return False
        if any(node.status.get("backlog", {}).get("segments", 1) for node in self.nodes):
            return False
        compared = await asyncio.to_thread(self._compare)
        accounts = await asyncio.to_thread(self._accounts)
        return compared.lost == 0 and sum(row["read"] for row in accounts) == compared.written

    def _compare(self) -> Comparison:
        return truth.compare(self.home / "control" / "lake", {node.id: node.press.written for node in self.nodes})

    def _accounts(self) -> list[dict[str, Any]]:
        """Each node's source ledger as the newest segment in the lake carries it (I4)."""
        sql = "SELECT node, arg_max(ledgers, node_time_us) FROM segments GROUP BY 1"
        newest = {node: json.loads(ledgers)["source"]["sensors"] for node, ledgers in self._query(sql)}
        return [_account_line(node.name, newest.get(node.id, {})) for node in self.nodes]

    # -- small things

    async def _heat(self, text: str) -> None:
        count = len(self.horn.blasts)
        self.view.say(text, "yellow")
        for node in self.nodes:
            node.press.is_overheating = True
        await self._wait("every horn", lambda: all(self._blasts_of(node.name, count) for node in self.nodes))
        blasts = self.horn.blasts[count:]
        shown = ", ".join(f"{blast.after_ms:.0f} ms" for blast in blasts)
        self.view.say(f"horn: {len(blasts)} incidents, sounded {shown} after the reading that raised them", "bold yellow")

    async def _cool(self) -> None:
        """Until the hot readings have left the span of the trigger, so that the next heat is an incident of its own."""
        await asyncio.sleep(1.0)
        for node in self.nodes:
            node.press.is_overheating = False
        await asyncio.sleep(2.5)

    async def _restart(self, node: Node) -> None:
        self.view.say(f"{node.name}: the agent is killed (SIGKILL) and started again", "magenta")
        await node.program.kill()
        node.status = {}
        await asyncio.sleep(1.0)
        await node.program.start()
        await self._wait(f"{node.name} to be back", lambda: bool(node.status))

    async def _say_and_do(self, *words: str) -> None:
        self.view.command("tidewire " + " ".join(_quoted(word) for word in words))
        for line in (await self._tidewire(*words)).strip().splitlines()[:2]:
            self.view.say("  " + line)

    async def _say_and_do_on(self, node: Node, *words: str) -> None:
        self.view.command(f"[{node.name}] tidewire-agent " + " ".join(_quoted(word) for word in words))
        await self._agent(node, *words)

    async def _tidewire(self, *words: str) -> str:
        return await processes.call(CONTROL, *words, cwd=self.home, env=self.env)

    async def _agent(self, node: Node, *words: str) -> str:
        node.directory.mkdir(exist_ok=True)
        return await processes.call(AGENT, *words, "--data-dir", str(node.data_dir), cwd=node.directory, env=self.env)

    def _client(self) -> Client:
        return Client(self.home / "control")

    def _query(self, sql: str) -> list[list[Any]]:
        try:
            rows: list[list[Any]] = self._client().post("/v1/query", {"sql": sql, "limit": 100})["rows"]
        except TidewireError:
            return []
        return rows

    def _node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def _blasts_of(self, node: str, since: int = 0) -> list[Blast]:
        return [blast for blast in self.horn.blasts[since:] if blast.message.startswith(node + ":")]

    async def _wait(self, what: str, holds: Any, within_s: float = SEE_S) -> None:
        deadline = time.monotonic() + within_s
        while True:
            held = holds()
            if await held if asyncio.iscoroutine(held) else held:
                return
            if time.monotonic() > deadline:
                raise TidewireError(
                    f"waited {within_s:.0f} s for {what}", op="demo", hint=f"logs and data are kept in {self.home}"
                )
            await asyncio.sleep(0.1)

    async def watch(self) -> None:
        """Keep the picture fresh: from the lake and from every node's own status."""
        while True:
            for node in self.nodes:
                node.status = await _status(node) or ({} if not node.program.is_running else node.status)
            if self.nodes and self.nodes[-1].id:
                sql = f"SELECT _node, count(*) FROM {truth.READINGS} GROUP BY 1"
                counts = dict(await asyncio.to_thread(self._query, sql))
                self.rows_in_lake = counts or self.rows_in_lake
            self.view.update([self._row(node) for node in self.nodes], is_cut=self.link.is_cut)
            await asyncio.sleep(LOOK_S)

    def _row(self, node: Node) -> NodeRow:
        status = node.status
        running = _entry(status)
        params = ", ".join(f"{name}={entry['value']:g}" for name, entry in running.get("params", {}).items())
        active = [i for i in status.get("incidents", []) if i.get("state") == "active"]
        return NodeRow(
            node.name,
            node.press.written.lines,
            self.rows_in_lake.get(node.id, 0),
            status.get("backlog", {}).get("segments", 0),
            f"v{running['number']} {running.get('phase', '')}" if running else "-",
            params,
            len(active),
            node.program.is_running,
        )

    async def _run_factory(self) -> None:
        await asyncio.gather(*(node.press.run() for node in self.nodes))

    async def _stop_factory(self) -> None:
        if self._factory is not None:
            self._factory.cancel()
            await asyncio.gather(self._factory, return_exceptions=True)
        for node in self.nodes:
            node.press.close()

    async def close(self) -> None:
        await self._stop_factory()
        for program in [*(node.program for node in self.nodes), *([self.server] if self.server else [])]:
            await program.stop()
        await self.link.close()
        await self.horn.close()


async def play(view: View, *, cut_s: float, quiet_s: float) -> Result:
    """Play the whole story in a directory of its own, which is kept only when something went wrong."""
    home = Path(tempfile.mkdtemp(prefix="tidewire-demo-"))
    demo = Demo(view, home, cut_s, quiet_s)
    async with _watching(demo):
        result = await demo.play()
    if result.is_good:
        shutil.rmtree(home, ignore_errors=True)
    else:
        view.say(f"logs and data are kept in {home}")
    return result


@asynccontextmanager
async def _watching(demo: Demo) -> AsyncIterator[None]:
    watching = asyncio.create_task(demo.watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await demo.close()


async def _status(node: Node) -> dict[str, Any] | None:
    transport = httpx.AsyncHTTPTransport(uds=str(node.data_dir / "agent.sock"))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://agent", timeout=2) as client:
            answer = (await client.get("/status")).json()
    except (httpx.HTTPError, ValueError):
        return None
    return dict(answer)


def _account_line(name: str, counts: dict[str, int]) -> dict[str, Any]:
    filtered = sum(n for key, n in counts.items() if key.startswith(("filtered", "deduplicated")))
    read, undecodable, invalid, accepted = (counts.get(key, 0) for key in ("read", "undecodable", "quarantined", "accepted"))
    balanced = bool(counts) and read == undecodable + invalid + filtered + accepted
    return {
        "node": name,
        "read": read,
        "undecodable": undecodable,
        "invalid": invalid,
        "filtered": filtered,
        "accepted": accepted,
        "balanced": balanced,
    }


def _node_line(node: Node, row: dict[str, Any]) -> dict[str, Any]:
    wanted = _entry(row)
    params = _entry(node.status).get("params", {})
    because = [f"{name}: {p['origin']} by {p['by']}, {p['reason']}" for name, p in params.items() if p["origin"] != "default"]
    return {
        "node": node.name,
        "wanted": f"v{wanted.get('wanted')}",
        "running": f"v{wanted.get('running')} {wanted.get('phase', '')}",
        "params": ", ".join(f"{name}={p['value']:g}" for name, p in params.items()),
        "because": "\n".join(because),
    }


def _entry(status: dict[str, Any]) -> dict[str, Any]:
    """What a status, of the node itself or of the control plane, says of the demo's pipeline."""
    return next((p for p in status.get("pipelines", []) if p["pipeline"] == PIPELINE), {})


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word
