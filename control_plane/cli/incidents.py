"""`tidewire incidents`: what was raised, and acknowledging it."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, quoted, who

app = typer.Typer()
incidents = typer.Typer(invoke_without_command=True, help="What was raised, who knows it, who acknowledged it.")
app.add_typer(incidents, name="incidents")


@incidents.callback()
def incidents_list(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are cleared and acknowledged.")] = False,
    as_json: Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    found = [row for row in client().get("/v1/incidents")["incidents"] if everything or row["needs_somebody"]]
    if as_json:
        output.print_json({"incidents": found})
        return
    if not found:
        print("no incidents" if everything else "no incident needs anybody (those that are over: tidewire incidents --all)")
        return
    rows = [(r["id"], r["raised_at"], r["node"], r["pipeline"], r["severity"], r["state"], r["message"]) for r in found]
    output.print_table(("INCIDENT", "RAISED", "NODE", "PIPELINE", "SEVERITY", "STATE", "MESSAGE"), rows)


@incidents.command("show")
def incidents_show(incident: str, as_json: Json = False) -> None:
    """One incident: what happened, who did what, which side knows it."""
    row = client().get(f"/v1/incidents/{quoted(incident)}")
    if as_json:
        output.print_json(row)
        return
    lines = [["incident", row["id"]], ["state", row["state"]], ["node", row["node"]], ["message", row["message"]]]
    lines += [["trigger", f"{row['pipeline']} {row['trigger']} {row['group']} ({row['severity']})"]]
    for step in row["steps"]:
        who = " ".join(part for part in (f"by {step['by']}" if step["by"] else "", step["reason"]) if part)
        known = "known to node and control plane" if len(step["known_on"]) > 1 else "the node does not know yet"
        lines.append(["history", f"{step['at']} {' '.join((step['transition'], who)).strip()}; {known}"])
    output.print_lines(lines)


@incidents.command("ack")
def incidents_ack(incident: str, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Acknowledge an incident. It reaches the node as soon as that is in contact."""
    _by_hand("acknowledge", "acknowledged", "was acknowledged already, or is over", incident, reason, dry_run, as_json)


@incidents.command("reset")
def incidents_reset(incident: str, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Let go of an incident that a latch holds after its cause is gone. It reaches the node as soon as that is in contact."""
    _by_hand("reset", "reset", "is held by no latch", incident, reason, dry_run, as_json)


def _by_hand(verb: str, past: str, unchanged: str, incident: str, reason: str, dry_run: bool, as_json: bool) -> None:
    done = client().post(f"/v1/incidents/{quoted(incident)}/{verb}", who(reason, dry_run))
    if as_json:
        output.print_json(done)
    elif not done["changed"]:
        print(f"{done['incident']} on {done['node']} {unchanged}")
    else:
        print(output.plain(f"{f'would {verb}' if dry_run else past} {done['incident']} on {done['node']}: {done['message']}"))
