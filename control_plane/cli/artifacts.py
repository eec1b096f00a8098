"""`tidewire artifact`: lookup tables that nodes pull, without a new version of the pipelines that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, quoted, read_bytes, who

app = typer.Typer()
artifact = typer.Typer(no_args_is_help=True, help="Lookup tables for the nodes: put, list, show.")
app.add_typer(artifact, name="artifact")


@artifact.command()
def put(
    name: Annotated[str, typer.Argument(help="What pipelines call it: lookups: {assets: {artifact: NAME, ...}}.")],
    file: Annotated[Path, typer.Argument(help="A CSV file in UTF-8 with a header line, at most 64 MiB; - is stdin.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Register a table; nodes whose pipelines use it get it at once, or when they are back."""
    data, server, path = read_bytes(file), client(), f"/v1/artifacts/{quoted(name)}"
    words = {key: str(value) for key, value in who(reason, True).items()}
    done = server.send(path, data, **words)
    if not as_json:
        print("\n".join(map(output.plain, done["summary"])))
    if not dry_run and done["new"]:
        done = server.send(path, data, **{**words, "dry_run": "false"})
    if as_json:
        output.print_json(done)
    else:
        print("dry run: nothing changed" if dry_run else "done")


@artifact.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="All numbers of this one; without it the newest of each.")] = None,
    as_json: Json = False,
) -> None:
    """The artifacts, their sizes, and who put them when and why. All numbers are kept."""
    found = client().get("/v1/artifacts", name=name)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (r["name"], r["number"], f"{r['size']:,}", r["digest"][:19], r["by"], r["at"], r["reason"]) for r in found["artifacts"]
    ]
    output.print_table(("NAME", "NUMBER", "BYTES", "DIGEST", "BY", "AT", "REASON"), rows)


@artifact.command()
def show(
    reference: Annotated[str, typer.Argument(metavar="NAME[@N]", help="Without @N the newest.")],
    as_json: Json = False,
) -> None:
    """What is in a table, which pipelines look things up in it, and which nodes have it."""
    found = client().get(f"/v1/artifacts/{quoted(reference)}")
    if as_json:
        output.print_json(found)
        return
    lines = [
        ("artifact", f"{found['name']}@{found['number']} ({found['kind']}), {found['size']:,} bytes, {found['rows']:,} rows"),
        ("digest", found["digest"]),
        ("put", " ".join(filter(None, (f"by {found['by']} at {found['at']}", found["reason"])))),
        *(("pipeline", name) for name in found["pipelines"]),
        *(("node", f"{row['node']} {row['pipeline']}: {_use(row)}") for row in found["nodes"]),
    ]
    output.print_lines(lines)
    output.print_table(found["columns"], found["first"])


def _use(row: dict[str, bool]) -> str:
    if row["wanted"]:
        return "in use" if row["in_use"] else "should have it, does not use it yet"
    return "uses it, should have another"
