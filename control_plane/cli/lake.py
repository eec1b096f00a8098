"""`tidewire query`, `tidewire audit`: what arrived, and who did what."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from control_plane import output
from control_plane.cli.common import Json, client

app = typer.Typer()


@app.command()
def query(
    sql: str,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most rows to print.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds before it is stopped.")] = 60,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """One SELECT over the lake."""
    result = client().post("/v1/query", {"sql": sql, "limit": limit, "timeout_s": float(timeout)})
    if as_json:
        output.print_json([dict(zip(result["columns"], row, strict=True)) for row in result["rows"]])
    else:
        (output.print_csv if as_csv else output.print_table)(result["columns"], result["rows"])
    if result["truncated"]:
        print(f"only the first {limit} rows; more with --limit", file=sys.stderr)


@app.command()
def audit(as_json: Json = False) -> None:
    """Who did what, newest first; and security events."""
    found = client().get("/v1/audit")
    if as_json:
        output.print_json(found)
        return
    rows = [(r["at"], r["by"], r["action"], r["subject"], r["detail"], r["reason"]) for r in found["audit"]]
    output.print_table(("AT", "BY", "ACTION", "SUBJECT", "DETAIL", "REASON"), rows)
