"""`tidewire refused`: segments that did not fit their table, and another try once the cause is gone."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, who

app = typer.Typer()
refused = typer.Typer(no_args_is_help=True, help="Segments that did not fit their table, kept raw.")
app.add_typer(refused, name="refused")

_DIGEST_SHOWN = 12


@refused.command("list")
def refused_list(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were stored by a retry.")] = False,
    as_json: Json = False,
) -> None:
    """Which segments are not in their table, and why."""
    found = [row for row in client().get("/v1/refused")["refused"] if everything or not row["retaken"]]
    if as_json:
        output.print_json({"refused": found})
        return
    if not found:
        print("no segment is refused")
        return
    rows = [
        (_short(r["digest"]), r["node"], r["pipeline"], r["table_name"], r["rows"], "stored" if r["retaken"] else r["reason"])
        for r in found
    ]
    output.print_table(("SEGMENT", "NODE", "PIPELINE", "TABLE", "ROWS", "REASON"), rows)


@refused.command("retry")
def refused_retry(
    segments: Annotated[list[str] | None, typer.Argument(help="As listed. Default: all.")] = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Try to store refused segments again. What is stored already is not stored twice."""
    done = client().post("/v1/refused/retry", {"digests": segments or [], **who(reason, dry_run)})["segments"]
    if as_json:
        output.print_json({"segments": done})
    elif not done:
        print("no segment is refused")
    else:
        for one in done:
            what = "would be tried again" if dry_run else one["reason"] or "stored"
            print(output.plain(f"{_short(one['digest'])} {what}"))
    if any(one["reason"] for one in done):
        raise typer.Exit(1)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_DIGEST_SHOWN]
