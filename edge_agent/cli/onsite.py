"""What people change on the node itself, also with nobody in reach: see docs/on-site.md."""

from __future__ import annotations

from typing import Annotated

import typer

from edge_agent.cli.common import DataDir, DryRun, For, Reason, change, pairs, seconds
from pipelines.contract.errors import WrongUsage

app = typer.Typer()
Pipeline = Annotated[str, typer.Argument()]


@app.command("set")
def set_(
    pipeline: Pipeline,
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...")],
    duration: For = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Override parameters of a pipeline on this node, for some time or until `unset`. Works with nobody in reach."""
    body = {"pipeline": pipeline, "values": pairs("set", values), "for_s": seconds("set", duration)}
    change(data_dir, "/set", body, reason, dry_run)


@app.command()
def unset(
    pipeline: Pipeline,
    names: Annotated[list[str], typer.Argument(metavar="NAME...")],
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Withdraw on-site overrides: what the centre says holds again."""
    change(data_dir, "/unset", {"pipeline": pipeline, "names": names}, reason, dry_run)


@app.command()
def pin(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE[@N]", help="With @N: that version, whose bytes must be here.")],
    duration: For = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Keep a pipeline at the version that runs, or at another, whatever the centre offers, until `unpin`."""
    name, at, number = pipeline.partition("@")
    if at and not (number.isascii() and number.isdigit() and int(number)):
        raise WrongUsage(f"{number!r} is not the number of a version", op="pin", hint="for example: tidewire-agent pin ovens@3")
    body = {"pipeline": name, "number": int(number) if at else None, "for_s": seconds("pin", duration)}
    change(data_dir, "/pin", body, reason, dry_run)


@app.command()
def unpin(pipeline: Pipeline, reason: Reason = "", dry_run: DryRun = False, data_dir: DataDir = None) -> None:
    """Let the version that the centre offers run again."""
    change(data_dir, "/unpin", {"pipeline": pipeline}, reason, dry_run)


@app.command()
def pause(pipeline: Pipeline, duration: For = "", reason: Reason = "", dry_run: DryRun = False, data_dir: DataDir = None) -> None:
    """Stop a pipeline on this node, also across reboots, until `resume`. What it made already still goes to the lake."""
    change(data_dir, "/pause", {"pipeline": pipeline, "for_s": seconds("pause", duration)}, reason, dry_run)


@app.command()
def resume(pipeline: Pipeline, reason: Reason = "", dry_run: DryRun = False, data_dir: DataDir = None) -> None:
    """Let a paused pipeline go on where it stopped."""
    change(data_dir, "/resume", {"pipeline": pipeline}, reason, dry_run)


@app.command()
def label(
    labels: Annotated[list[str], typer.Argument(metavar="NAME=VALUE|NAME-...", help="NAME- takes a label off.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Label this node. Pipelines and selectors know it as local.NAME."""
    gone: dict[str, str | None] = {word[:-1]: None for word in labels if word.endswith("-") and "=" not in word}
    given = pairs("label", [word for word in labels if not (word.endswith("-") and "=" not in word)])
    change(data_dir, "/label", {"labels": {**gone, **given}}, reason, dry_run)


@app.command()
def ack(
    incident: Annotated[str, typer.Argument(help="Its id, or how the id starts.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Acknowledge an open incident: this one, never the next."""
    change(data_dir, "/ack", {"incident": incident}, reason, dry_run)


@app.command()
def reset(
    incident: Annotated[str, typer.Argument(metavar="INCIDENT|TRIGGER", help="An id, or how it starts; or a trigger's name.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Let go of latched incidents whose cause is gone."""
    change(data_dir, "/reset", {"incident": incident}, reason, dry_run)


@app.command()
def shelve(
    subject: Annotated[str, typer.Argument(metavar="INCIDENT|PIPELINE/TRIGGER", help="An open incident, or all of a trigger.")],
    duration: For = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Call nobody about an incident or a trigger for some time. Needs --for and --reason."""
    if not duration or not reason:
        raise WrongUsage("a shelf needs a duration and a reason", op="shelve", hint="add --for 8h --reason WHY")
    change(data_dir, "/shelve", {"subject": subject, "for_s": seconds("shelve", duration)}, reason, dry_run)


@app.command()
def unshelve(
    subject: Annotated[str, typer.Argument(metavar="INCIDENT|PIPELINE/TRIGGER", help="As it was shelved, or how that starts.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Take a shelf away before its time."""
    change(data_dir, "/unshelve", {"subject": subject}, reason, dry_run)


@app.command()
def comment(
    subject: Annotated[str, typer.Argument(metavar="node|PIPELINE|INCIDENT")],
    text: Annotated[str, typer.Argument()],
    dry_run: DryRun = False,
    data_dir: DataDir = None,
) -> None:
    """Write something down about this node, a pipeline or an open incident, for everybody to read."""
    change(data_dir, "/comment", {"subject": subject, "text": text}, "", dry_run)
