"""`tidewire apply`, `diff`, `deploy`, `pipelines`, `history`: what should run where, and what did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import (
    AllowEmpty,
    DryRun,
    Json,
    Params,
    Reason,
    Select,
    client,
    pairs,
    print_diff,
    quoted,
    read,
    who,
    write,
)
from control_plane.cli.rollouts import Timeout, Wait, wait_for_rollout
from pipelines.contract.errors import TidewireError

app = typer.Typer()


@app.command("apply")
def apply_(
    path: Annotated[Path, typer.Argument(help="A pipeline or deployment file, or a directory of *.yaml.")],
    allow_empty: AllowEmpty = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Register new versions of pipelines and bring deployments in line with their files: all of it, or nothing."""
    body = {"files": _files(path, "apply"), "allow_empty": allow_empty}
    server = client()
    done = server.post("/v1/apply", {**body, **who(reason, True)})
    if not as_json:
        _print_versions(done["versions"], dry_run)
        print("\n".join(map(output.plain, _deployed(done))), end="\n" if done["deployments"] else "")
    if not dry_run:
        done = server.post("/v1/apply", {**body, **who(reason, False)})
    if as_json:
        output.print_json(done)
    elif done["deployments"]:
        print("dry run: nothing changed" if dry_run else "done")
    elif not dry_run and any(row["new"] for row in done["versions"]):
        print(f"  next: tidewire deploy {done['versions'][0]['pipeline']} --select all")


@app.command("diff")
def diff_(
    path: Annotated[Path, typer.Argument(help="A pipeline or deployment file, or a directory of *.yaml.")],
    as_json: Json = False,
) -> None:
    """What `apply` would change: versions, targets, and what that means for each node. Exit status 1 when something differs."""
    body = {"files": _files(path, "diff"), "allow_empty": True, **who("", True)}
    done = client().post("/v1/apply", body)
    if as_json:
        output.print_json(done)
    else:
        print_diff(map(output.plain, done["diff"]))
        if done["diff"] and done["deployments"]:
            print("\n".join(map(output.plain, _deployed(done))))
    if done["diff"] or done["nodes"]:
        raise typer.Exit(1)


def _files(path: Path, op: str) -> list[dict[str, str]]:
    files = sorted(f for f in path.glob("*.yaml") if not f.name.endswith(".cases.yaml")) if path.is_dir() else [path]
    if not files:
        raise TidewireError("no *.yaml in it", op=op, place=str(path), hint="name a pipeline file or a directory of them")
    return [{"name": str(file), "text": read(file)} for file in files]


def _print_versions(versions: list[dict[str, Any]], dry_run: bool) -> None:
    for row in versions:
        what = f"version {row['number']}" if row["new"] else f"unchanged, it is version {row['number']}"
        suffix = " (not registered: dry run)" if dry_run and row["new"] else ""
        print(f"{row['pipeline']}: {what} ({row['digest'][:19]}){suffix}")


def _deployed(done: dict[str, Any]) -> list[str]:
    """What becomes of the deployments, and of the nodes."""
    lines = []
    for row in done["deployments"]:
        changed = [*row["changed"], *(f"{select} (removed)" for select in row["removed"])]
        lines.append(f"deployment {row['pipeline']}: {', '.join(changed) or 'no target changes'}")
        lines += [f"  no node matches {select} yet" for select in row["matches_nothing"]]
    return lines + (done["summary"] if lines else [])


@app.command()
def deploy(
    reference: Annotated[str, typer.Argument(metavar="NAME[@N]", help="A pipeline; without @N its newest version.")],
    select: Select,
    param: Params = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take this target away instead.")] = False,
    canary: Annotated[str, typer.Option(help="Steps, such as 1,10%,100%: nodes, or a share of those in contact.")] = "",
    soak: Annotated[str, typer.Option(help="How long a version must hold, on each node and in each step.")] = "60s",
    gate: Annotated[
        str, typer.Option(help="What it must hold to on each node: rejected=5%,crashes=2,memory=200MiB,slower=10.")
    ] = "",
    failures: Annotated[int, typer.Option(min=0, help="How many nodes may fail it before the rollout is held.")] = 0,
    allow_empty: AllowEmpty = False,
    wait: Wait = False,
    timeout: Timeout = "1h",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Have the selected nodes run a version, at once or in steps; nodes that join later too."""
    words = pairs([word for word in gate.split(",") if word])
    rollout = {"soak": soak, "failures": failures, "gate": words, **({"steps": canary.split(",")} if canary else {})}
    body = {"reference": reference, "select": select, "params": pairs(param or []), "remove": remove, "rollout": rollout}
    write("/v1/deployments", {**body, "allow_empty": allow_empty}, reason, dry_run, as_json)
    if wait and not (dry_run or remove):
        wait_for_rollout(reference.partition("@")[0], timeout, quiet=as_json)


@app.command()
def pipelines(as_json: Json = False) -> None:
    """The pipelines: newest version, where deployed, on how many nodes."""
    found = client().get("/v1/pipelines")
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            row["pipeline"],
            row["newest"],
            "; ".join(f"{t['select']} -> {t['version']}" for t in row["targets"]) or "deployed nowhere",
            ", ".join(f"{count} {phase}" for phase, count in row["nodes"].items()) or "0",
            row["description"],
        )
        for row in found["pipelines"]
    ]
    output.print_table(("PIPELINE", "NEWEST", "TARGETS", "NODES", "DESCRIPTION"), rows)


@app.command()
def history(
    pipeline: Annotated[str, typer.Argument(help="A pipeline.")],
    node: Annotated[str | None, typer.Option("--node", help="Only this node.")] = None,
    as_json: Json = False,
) -> None:
    """Which version ran where, from when to when, who asked for it, how its gate ended."""
    found = client().get(f"/v1/pipelines/{quoted(pipeline)}/history", node=node)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (run["node"], run["version"], run["from"], run["to"] or "now", run["gate"] or run["ended"], _asked(run))
        for run in found["runs"]
    ]
    output.print_table(("NODE", "VERSION", "FROM", "TO", "GATE", "ASKED"), rows)
    for failure in found["failures"]:
        banned = " and is banned there" if failure["banned"] else ""
        print(output.plain(f"version {failure['version']} failed on {failure['node']}{banned}: {failure['reason']}"))


def _asked(run: dict[str, Any]) -> str:
    return " ".join(part for part in (run["select"], f"by {run['by']}" if run["by"] else "", run["reason"]) if part)
