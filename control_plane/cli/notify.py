"""`tidewire notify`: whom the control plane calls when an incident is raised or a node falls silent."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, quoted, who, write
from pipelines.contract.duration import parse_duration
from pipelines.contract.errors import WrongUsage

app = typer.Typer()
notify = typer.Typer(no_args_is_help=True, help="Whom to call when an incident is raised or a node falls silent.")
app.add_typer(notify, name="notify")

Name = Annotated[str, typer.Argument(help="Of the target.")]


@notify.command("add")
def notify_add(
    name: Name,
    webhook: Annotated[str, typer.Option("--webhook", help="Where incidents are posted as JSON. It is shown to nobody again.")],
    select: Annotated[str, typer.Option("--select", "-s", help="Of which nodes.")] = "all",
    severity: Annotated[str, typer.Option("--severity", help="Which ones, with commas between.")] = "critical,warning",
    on: Annotated[str, typer.Option("--on", help="When, with commas between.")] = "raised,acknowledged,cleared",
    silent_after: Annotated[str, typer.Option("--silent-after", help="After which a node that is not heard of is told.")] = "10m",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Notify somebody from now on. Not of what a node's own actions do: those work without us."""
    try:
        silent_s = parse_duration(silent_after) / 1e6
    except ValueError as error:
        raise WrongUsage(f"--silent-after {silent_after}: {error}", hint="write it like 10m") from None
    words = {"severity": severity.split(","), "on": on.split(","), "silent_after_s": silent_s}
    write("/v1/notify", {"name": name, "webhook": webhook, "select": select, **words}, reason, dry_run, as_json)


@notify.command("list")
def notify_list(as_json: Json = False) -> None:
    """The targets, what waits for them, and how the last one ended. What is secret in their addresses is not shown."""
    found = client().get("/v1/notify")["targets"]
    if as_json:
        output.print_json({"targets": found})
        return
    if not found:
        print("nobody is notified (tidewire notify add NAME --webhook URL)")
        return
    rows = [
        (
            t["name"],
            t["webhook"],
            t["select"],
            ",".join(t["severity"]),
            ",".join(t["on"]),
            t["silent_after"],
            t["waiting"],
            t["last"],
        )
        for t in found
    ]
    output.print_table(("TARGET", "WEBHOOK", "SELECT", "SEVERITY", "ON", "SILENT AFTER", "WAITING", "LAST"), rows)


@notify.command("remove")
def notify_remove(name: Name, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Notify this target no more. What waits for it is dropped."""
    write(f"/v1/notify/{quoted(name)}/remove", {}, reason, dry_run, as_json)


@notify.command("test")
def notify_test(name: Name, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> int:
    """Post a message that says it is a test, and say how it was taken."""
    done = client().post(f"/v1/notify/{quoted(name)}/test", who(reason, dry_run))
    if as_json:
        output.print_json(done)
    else:
        print("\n".join(map(output.plain, done["summary"])))
    return 0 if done["dry_run"] or done["status"] == "done" else 1
