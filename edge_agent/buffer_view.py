"""`tidewire-agent buffer` for people: the facts of buffer.py as text and tables."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent import rate

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Bytes as people say them: `512 B`, `1.5 MB`."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_UNITS[unit]}"


def how_long(seconds: float | None) -> str:
    if seconds is None:
        return "the rate is not known yet"
    return f"at the measured rate this buffer lasts {rate.text(seconds)}"


def _console() -> Console:
    """Into a file or a pipe no line is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=250)


def show(facts: dict[str, Any]) -> None:
    console = _console()
    used = f"{size(facts['bytes'])} of {size(facts['limit_bytes'])} ({facts['share']:.1%})"
    console.print(f"buffer: {used}; {how_long(facts['lasts_s'])}")
    if not facts["streams"]:
        console.print("nothing waits for the lake")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stream", "run", "segments", "rows", "bytes", "share", "sealed", "confirmed", "state", "lost"):
        table.add_column(column, justify="right" if column in ("segments", "rows", "bytes", "share", "confirmed") else "left")
    for stream in facts["streams"]:
        for run in stream["runs"]:
            name = f"{stream['pipeline']}/{stream['stream']}"
            table.add_row(
                name, run["run"][:8], str(run["segments"]), f"{run['rows']:,}", size(run["bytes"]),
                f"{run['bytes'] / stream['limit_bytes']:.1%}", _span(run["oldest_us"], run["newest_us"]),
                f"{run['mark']} of {run['last']}", run["state"], f"{run['stub_rows']:,} rows" if run["stub_rows"] else "",
            )  # fmt: skip
    console.print(table)
    for stream in facts["streams"]:
        lost = [f"{stream[f'{how}_rows']:,} rows {how}" for how in ("evicted", "damaged") if stream[f"{how}_rows"]]
        limit = f"limit {size(stream['limit_bytes'])}, when full {stream['when_full']}, priority {stream['priority']}"
        console.print(Text(f"{stream['pipeline']}/{stream['stream']}: {'; '.join([limit, *lost])}", "yellow" if lost else ""))


def show_segment(facts: dict[str, Any]) -> None:
    """What `export.segment_facts` tells."""
    header, rows = facts["header"], facts["first_rows"]
    console = _console()
    for name, value in header.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        console.print(Text(f"{name:<15} {text}" + (f"  ({_time(value)})" if name == "sealed_at_us" else "")), soft_wrap=True)
    console.print(Text(f"{'digest':<15} {facts['digest']}\n{'bytes':<15} {facts['bytes']:,}"), soft_wrap=True)
    if not rows:
        console.print("no rows to show")
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*(Text("" if value is None else str(value)) for value in row.values()))
    console.print(shown)
    if header["rows"] > len(rows):
        console.print(f"... and {header['rows'] - len(rows):,} more rows")


def _span(oldest_us: int | None, newest_us: int | None) -> str:
    oldest, newest = _time(oldest_us), _time(newest_us)
    return oldest if oldest == newest else f"{oldest} to {newest[11:] if newest[:10] == oldest[:10] else newest}"


def _time(us: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(us / 1e6)) if us is not None else ""
