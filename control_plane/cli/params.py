"""`tidewire set`, `unset`, `params`: values that change without a new version."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import AllowEmpty, DryRun, Json, Reason, Select, client, pairs, quoted, seconds, write

app = typer.Typer()


@app.command("set")
def set_(
    pipeline: Annotated[str, typer.Argument(help="A pipeline.")],
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Parameters.")],
    select: Select,
    force: Annotated[bool, typer.Option("--force", help="Beat on-site overrides made before this.")] = False,
    lock: Annotated[bool, typer.Option("--lock", help="Forbid on-site overrides.")] = False,
    for_: Annotated[str, typer.Option("--for", help="Take it back after this long, such as 8h.")] = "",
    allow_empty: AllowEmpty = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set parameters on the selected nodes, without a new version; nodes that join later get them too."""
    body = {"pipeline": pipeline, "params": pairs(values), "select": select, "force": force, "lock": lock}
    body |= {"for_s": seconds(for_) if for_ else 0, "allow_empty": allow_empty}
    write("/v1/params", body, reason, dry_run, as_json)


@app.command()
def unset(
    pipeline: Annotated[str, typer.Argument(help="A pipeline.")],
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Parameters.")],
    select: Select,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take back what `set` set for the same selector."""
    body = {"pipeline": pipeline, "names": [name.partition("=")[0] for name in names], "select": select}
    write("/v1/params/unset", body, reason, dry_run, as_json)


@app.command()
def params(
    pipeline: Annotated[str, typer.Argument(help="A pipeline.")],
    as_json: Json = False,
) -> None:
    """The rules of a pipeline's parameters, and on each node the values in effect with what they beat."""
    found = client().get(f"/v1/pipelines/{quoted(pipeline)}/params")
    if as_json:
        output.print_json(found)
        return
    rules = [
        (f"rule:{r['id']}", f"{r['name']}={r['value']}", r["select"], r["nodes"], _flags(r), f"{r['by']} {r['reason']}".strip())
        for r in found["rules"]
    ]
    if rules:
        output.print_table(("RULE", "SETS", "ON", "NODES", "", "BY"), rows=rules)
    else:
        print("no rules")
    rows = [(node["name"], p["name"], p["value"], _origin(p), _beats(p)) for node in found["nodes"] for p in node["params"]]
    if rows:
        output.print_table(("NODE", "PARAMETER", "VALUE", "FROM", "BEATS"), rows)


def _flags(rule: dict[str, Any]) -> str:
    words = (
        "force" if rule["force"] else "",
        "locked" if rule["locked"] else "",
        f"until {rule['until']}" if rule["until"] else "",
    )
    return ", ".join(word for word in words if word)


def _origin(param: dict[str, Any]) -> str:
    told = "" if param["on_node"] in (None, param["value"]) else f" (the node still has {param['on_node']})"
    by = f" by {param['by']}" if param["by"] else ""
    return f"{param['origin']}{by}{told}"


def _beats(param: dict[str, Any]) -> str:
    return ", ".join(f"{lost['value']} ({lost['origin']})" for lost in param["beats"] if lost["value"] is not None)
