"""`tidewire query`, `audit`, `changes`: what arrived, whether it is all there, and who did what."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client
from control_plane.cli.requests import query_fleet, seconds
from control_plane.times import iso, parse_time
from pipelines.contract.errors import WrongUsage

app = typer.Typer()


@app.command()
def query(
    sql: str,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most rows to print.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds before it is stopped.")] = 60,
    fleet: Annotated[bool, typer.Option("--fleet", help="Ask the nodes instead: what the lake does not have yet.")] = False,
    select: Annotated[str, typer.Option("--select", "-s", help="With --fleet: which nodes.")] = "all",
    wait: Annotated[str, typer.Option(help="With --fleet: how long to wait for nodes in contact.")] = "30s",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """One SELECT over the lake, or (--fleet) on every node over what it still holds."""
    if fleet:
        form = "json" if as_json else "csv" if as_csv else "table"
        query_fleet(sql, select, seconds(wait, "--wait"), limit, float(timeout), reason, dry_run=dry_run, form=form)
        return
    if select != "all" or dry_run:
        raise WrongUsage("--select and --dry-run are for --fleet", op="query", hint="the lake answers for all nodes")
    result = client().post("/v1/query", {"sql": sql, "limit": limit, "timeout_s": float(timeout)})
    if as_json:
        output.print_json([dict(zip(result["columns"], row, strict=True)) for row in result["rows"]])
    else:
        (output.print_csv if as_csv else output.print_table)(result["columns"], result["rows"])
    if result["truncated"]:
        print(f"only the first {limit} rows; more with --limit", file=sys.stderr)


@app.command()
def audit(
    pipeline: Annotated[str, typer.Argument(help="Default: all.")] = "",
    node: Annotated[str, typer.Option(help="Only what this node sent.")] = "",
    since: Annotated[str, typer.Option("--from", help="Only what was received since then: 2026-11-21T14:00, or 2h (ago).")] = "",
    until: Annotated[str, typer.Option("--to", help="As it was then.")] = "",
    as_json: Json = False,
) -> None:
    """Whether every row is accounted for and in its table once; exit status 1 when not. Reads the whole lake in scope."""
    times = {"from_us": _time(since, "--from"), "to_us": _time(until, "--to")}
    found = client().get("/v1/ledgers", pipeline=pipeline or None, node=node or None, **times)
    if as_json:
        output.print_json(found)
    else:
        _print_audit(found)
    if not found["holds"]:
        raise typer.Exit(1)


def _time(text: str, option: str) -> str | None:
    try:
        return str(parse_time(text, time.time_ns() // 1000)) if text else None
    except ValueError as error:
        raise WrongUsage(str(error), op="audit", place=option) from None


_SOURCE = (
    "read",
    "undecodable",
    "made",
    "quarantined",
    "dropped_invalid",
    "deduplicated",
    "filtered",
    "filtered_null",
    "accepted",
)
_STREAM = ("offered", "not_selected", "written", "stored", "evicted", "damaged", "refused", "unfit", "pending")
_WINDOW = ("contributed", "emitted", "open", "too_late", "over_limit")


def _print_audit(found: dict[str, Any]) -> None:
    figures = found["figures"]
    for of, words in (("source", _SOURCE), ("stream", _STREAM), ("window", _WINDOW)):
        rows = [
            [f["pipeline"], f["node"], f["name"], *(f["rows"].get(word, 0) for word in words)] for f in figures if f["of"] == of
        ]
        _print_part(("PIPELINE", "NODE", of.upper(), *(word.upper() for word in words)), rows)
    steps = [[f["pipeline"], f["node"], f["name"], what, n] for f in figures for what, n in f["steps"].items()]
    _print_part(("PIPELINE", "NODE", "SOURCE", "RECORDS", "ROWS"), steps)
    for name, (title, columns) in _LISTS.items():
        if found[name]:
            print(title)
        _print_part([column.upper() for column in columns], [[row[column] for column in columns] for row in found[name]])
        if more := found["more"].get(name):
            print(f"and {more} more {name}")
    silent = [[h["node"], _when(h["last_seen"]), _when(h["as_of"])] for h in found["heard"] if not h["in_contact"]]
    _print_part(("NOT IN CONTACT", "LAST SEEN", "FIGURES AS OF"), silent)
    print("what sources lost before they were read is unknown")
    if found["holds"]:
        counted = sum(found["tables"].values())
        print(f"every equation holds; {counted} rows in {len(found['tables'])} tables, each once")
    for difference in found["differences"]:
        print(output.plain(f"DIFFERENCE {difference['says']}"))


_LISTS = {
    "reasons": ("why records are in quarantine:", ("pipeline", "step", "reason", "rows")),
    "gaps": (
        "lost on the node, with a stub in their place:",
        ("pipeline", "node", "stream", "run", "first", "seq", "rows", "reason", "at"),
    ),
    "refused": (
        "kept raw by the control plane, not in their table:",
        ("pipeline", "node", "stream", "run", "seq", "rows", "reason", "at"),
    ),
    "restarts": (
        "ledgers that began anew; ROWS of the former never came:",
        ("pipeline", "node", "former", "lineage", "rows", "at"),
    ),
}


def _print_part(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        output.print_table(columns, rows)
        print()


def _when(at_us: int | None) -> str:
    return iso(at_us) if at_us else "never"


@app.command()
def changes(
    security: Annotated[bool, typer.Option("--security", help="Only what somebody should look at.")] = False,
    as_json: Json = False,
) -> None:
    """Who did what, newest first; and security events."""
    found = client().get("/v1/audit", security="1" if security else None)
    if as_json:
        output.print_json(found)
        return
    rows = [(r["at"], r["by"], r["action"], r["subject"], r["detail"], r["reason"]) for r in found["audit"]]
    output.print_table(("AT", "BY", "ACTION", "SUBJECT", "DETAIL", "REASON"), rows)
