"""What the demo shows: on a terminal one live screen, else a line per event."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

LINES_SHOWN = 16


@dataclass
class NodeRow:
    """One node as seen now. `lake` rows are those in the lake, `backlog` segments those that wait on the node."""

    name: str
    written: int = 0
    lake: int = 0
    backlog: int = 0
    version: str = "-"
    params: str = ""
    incidents: int = 0
    is_up: bool = True


@dataclass(frozen=True)
class Result:
    """The demo's figures; the field names are those of `--json`."""

    rows_read: int
    rows_in_lake: int
    filtered: int
    quarantined: int
    lost: int
    duplicated: int
    incidents_while_cut: int
    action_p99_ms: float
    converged: bool
    cut_seconds: float
    catch_up_seconds: float
    problems: list[str] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    accounts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return self.lost == self.duplicated == 0 and self.converged and not self.problems

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("problems", "nodes", "accounts")}


class View(AbstractContextManager["View"]):
    """Plain lines."""

    def __init__(self, console: Console) -> None:
        self.console, self._started_s = console, time.monotonic()

    def say(self, text: str, style: str = "") -> None:
        self.console.print(f"{self._clock()}  {text}", style=style, highlight=False, markup=False, soft_wrap=True)

    def command(self, text: str) -> None:
        self.say(f"$ {text}", style="bold")

    def update(self, rows: list[NodeRow], *, is_cut: bool) -> None:
        """Show the nodes as they are now."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def show_result(self, result: Result) -> None:
        out = self.console.print
        out()
        out(_accounts_table(result))
        out(_nodes_table(result))
        lake = f"{result.rows_in_lake:,} rows in the lake, {result.quarantined:,} quarantined, {result.filtered:,} filtered"
        out(f"{result.rows_read:,} lines written by the sensors = {lake}; ", end="", highlight=False)
        out(
            f"{result.lost} lost, {result.duplicated} doubled",
            style="bold green" if result.lost == result.duplicated == 0 else "bold red",
        )
        out(
            f"link cut for {result.cut_seconds:.1f} s; {result.incidents_while_cut} incidents raised meanwhile, "
            f"horn within {result.action_p99_ms:.0f} ms (p99); caught up in {result.catch_up_seconds:.1f} s",
            highlight=False,
        )
        for problem in result.problems:
            out(f"problem: {problem}", style="bold red", markup=False)
        out(
            "both sides agree" if result.converged else "both sides do NOT agree",
            style="bold green" if result.converged else "bold red",
        )

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started_s:5.1f}s"


class LiveView(View):
    """One screen: the nodes above, what happened below."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._lines: list[Text] = []
        self._rows: list[NodeRow] = []
        self._is_cut = False
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        for line in self._lines:
            self.console.print(line)

    def say(self, text: str, style: str = "") -> None:
        self._lines.append(Text(f"{self._clock()}  {text}", style=style))
        self._draw()

    def update(self, rows: list[NodeRow], *, is_cut: bool) -> None:
        self._rows, self._is_cut = rows, is_cut
        self._draw()

    def _draw(self) -> None:
        link = Text(" link CUT ", style="bold white on red") if self._is_cut else Text(" link up ", style="bold white on green")
        story = Text("\n").join(self._lines[-LINES_SHOWN:])
        self._live.update(Group(link, node_table(self._rows), Panel(story, title="what happens", title_align="left")))


def node_table(rows: list[NodeRow]) -> Table:
    table = Table(expand=True)
    for name in ("node", "written by sensors", "in the lake", "waiting on the node", "runs", "parameters", "open incidents"):
        table.add_column(name, justify="left" if name in ("node", "runs", "parameters") else "right")
    for row in rows:
        waiting = f"{row.backlog} segments" if row.backlog else "-"
        runs = row.version if row.is_up else "DOWN"
        style = "" if row.is_up else "red"
        table.add_row(
            row.name, f"{row.written:,}", f"{row.lake:,}", waiting, runs, row.params, str(row.incidents or "-"), style=style
        )
    return table


def _accounts_table(result: Result) -> Table:
    table = Table(title="What went in, what became of it (each node's own ledger)", title_justify="left")
    for name in ("node", "read", "undecodable", "invalid", "filtered", "accepted", "balance"):
        table.add_column(name, justify="left" if name in ("node", "balance") else "right")
    for row in result.accounts:
        counts = [f"{row[name]:,}" for name in ("read", "undecodable", "invalid", "filtered", "accepted")]
        table.add_row(row["node"], *counts, "balanced" if row["balanced"] else "OFF")
    return table


def _nodes_table(result: Result) -> Table:
    table = Table(title="What each node should run, and does", title_justify="left")
    for name in ("node", "wanted", "running", "parameters in effect", "because"):
        table.add_column(name)
    for row in result.nodes:
        table.add_row(row["node"], row["wanted"], row["running"], row["params"], row["because"])
    return table


def open_view(*, json_output: bool) -> View:
    """The live screen on a terminal; plain lines otherwise, on stderr when stdout is for JSON."""
    console = Console(stderr=json_output)
    return LiveView(console) if sys.stdout.isatty() and not json_output else View(console)
