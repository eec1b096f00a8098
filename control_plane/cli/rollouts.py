"""`tidewire rollout`: how a change goes out, stops, goes on, goes back."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, quoted, seconds, who, write
from pipelines.contract.errors import OutOfReach, WrongUsage

app = typer.Typer()
rollout = typer.Typer(no_args_is_help=True, help="How a change goes out: look, pause, go on, go back.")
app.add_typer(rollout, name="rollout")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A pipeline.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until it is done (exit status 0) or held (1).")]
Timeout = Annotated[str, typer.Option(help="How long to wait at most; then the exit status is 3.")]
OnNode = Annotated[str, typer.Option("--node", help="Only this node.")]

_ENDED = ("done", "held", "undone", "superseded")
_POLL_S = 1.0
_NAMES_SHOWN = 8


@rollout.command("status")
def status(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A pipeline; none for all.")] = None,
    wait: Wait = False,
    timeout: Timeout = "1h",
    as_json: Json = False,
) -> None:
    """Where a rollout is, and every node of it in a word. Exit status 1 when it is held."""
    if wait and name:
        wait_for_rollout(name, timeout, quiet=as_json)
    found = client().get("/v1/rollouts", pipeline=name)
    if as_json:
        output.print_json(found)
    else:
        for row in found["rollouts"]:
            _print(row, with_nodes=name is not None)
        if not found["rollouts"]:
            print("nothing is deployed")
    if any(row["state"] == "held" for row in found["rollouts"]):
        raise typer.Exit(1)


@rollout.command()
def pause(name: Name, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Admit no more nodes; what runs goes on."""
    _steer("pause", name, {}, reason, dry_run, as_json)


@rollout.command()
def resume(name: Name, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Go on, in spite of the nodes that failed, went silent or hold their gate until now."""
    _steer("resume", name, {}, reason, dry_run, as_json)


@rollout.command()
def retry(name: Name, node: OnNode = "", reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Have the nodes that failed it try again, and go on."""
    _steer("retry", name, {"node": node}, reason, dry_run, as_json)


@rollout.command()
def unban(
    reference: Annotated[str, typer.Argument(metavar="NAME[@N]", help="A pipeline; without @N the version under way.")],
    node: OnNode = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Lift the bans that nodes put on a version, so that it may be offered to them again."""
    name, _, number = reference.partition("@")
    if number and not number.isdecimal():
        raise WrongUsage(f"{reference!r} names no version", hint="write NAME for the version under way, or NAME@N")
    _steer("unban", name, {"node": node, "version": int(number) if number else None}, reason, dry_run, as_json)


@rollout.command()
def undo(name: Name, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Bring the deployment back to what it was before its last change, and say what becomes of each node."""
    write(f"/v1/rollouts/{quoted(name)}/undo", {}, reason, dry_run, as_json)


def wait_for_rollout(name: str, timeout: str, *, quiet: bool = False) -> None:
    """Until every rollout of the pipeline ended. Exits with 1 when one is held; raises `OutOfReach` (3) on time-out."""
    deadline, told = time.monotonic() + seconds(timeout), ""
    while True:
        rows = [row for row in client().get("/v1/rollouts", pipeline=name)["rollouts"] if row["state"] != "undone"]
        words = "; ".join(_headline(row) for row in rows)
        if words != told and not quiet:
            print(output.plain(words), file=sys.stderr)
            told = words
        if any(row["state"] == "held" for row in rows):
            raise typer.Exit(1)
        if all(row["state"] in _ENDED for row in rows):
            return
        if time.monotonic() > deadline:
            raise OutOfReach(f"{name} is not out after {timeout}", op="wait", hint=f"tidewire rollout status {name}")
        time.sleep(_POLL_S)


def _steer(verb: str, name: str, body: dict[str, Any], reason: str, dry_run: bool, as_json: bool) -> None:
    path = f"/v1/rollouts/{quoted(name)}/{verb}"
    plan = client().post(path, {**body, **who(reason, dry_run)})
    if as_json:
        output.print_json(plan)
        return
    print(output.plain(f"{verb}: {name} on {', '.join(plan['touched'])}"))
    print("\n".join(output.plain(line) for line in plan["summary"] if plan["nodes"]) or "no node changes now")
    print("dry run: nothing changed" if dry_run else "done")


def _headline(row: dict[str, Any]) -> str:
    is_open = row["state"] in ("running", "paused", "held")
    step = f", step {row['step']} ({', '.join(row['steps'])})" if row["step"] and is_open else ""
    counts = Counter(str(n["state"]).partition(" since")[0] for n in row["nodes"])
    nodes = ", ".join(f"{count} {state}" for state, count in counts.items())
    why = row["why"] or row["waits"]
    return f"{row['pipeline']}@{row['version']} on {row['select']}: {row['state']}{step}" + "".join(
        f"; {part}" for part in (nodes, why) if part
    )


def _print(row: dict[str, Any], *, with_nodes: bool) -> None:
    print(output.plain(_headline(row)))
    if not with_nodes:
        return
    if row["lines"]:
        print("\n".join(output.plain(f"  {line}") for line in row["lines"]))
        return
    for (state, detail), names in _grouped(row["nodes"]).items():
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        print(
            output.plain(f"  {len(names)} {state}: {', '.join(names[:_NAMES_SHOWN])}{more}" + (f": {detail}" if detail else ""))
        )


def _grouped(nodes: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        grouped.setdefault((node["state"], node["detail"]), []).append(node["name"])
    return grouped
