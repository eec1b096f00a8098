"""`tidewire pause`, `resume`, `pin`, `unpin`, `comment`: what people decide centrally about what runs."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli.common import DryRun, Json, Reason, Select, write
from pipelines.contract.duration import parse_duration
from pipelines.contract.errors import WrongUsage

app = typer.Typer()

Pipeline = Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline.")]
For = Annotated[str, typer.Option("--for", help="How long, in the node's own time, such as 8h; then it ends by itself.")]
Force = Annotated[bool, typer.Option("--force", help="Also beat what somebody set on site without knowing of this.")]


@app.command()
def pause(
    pipeline: Pipeline,
    select: Select,
    for_: For = "",
    force: Force = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Stop a pipeline on the selected nodes, until `resume`; what it has not sent still goes up."""
    _decide("pause", pipeline, select, for_, force, reason, dry_run, as_json)


@app.command()
def resume(
    pipeline: Pipeline,
    select: Select,
    force: Force = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take back pauses, central ones and those made on site."""
    _decide("resume", pipeline, select, "", force, reason, dry_run, as_json)


@app.command()
def pin(
    reference: Annotated[str, typer.Argument(metavar="PIPELINE[@N]", help="Without @N: the version that each node runs now.")],
    select: Select,
    for_: For = "",
    force: Force = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Keep a version on the selected nodes, whatever is deployed, until `unpin`."""
    _decide("pin", reference, select, for_, force, reason, dry_run, as_json)


@app.command()
def unpin(
    pipeline: Pipeline,
    select: Select,
    force: Force = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take back pins, central ones and those made on site."""
    _decide("unpin", pipeline, select, "", force, reason, dry_run, as_json)


@app.command()
def comment(
    subject: Annotated[str, typer.Argument(metavar="NODE|PIPELINE/NODE|INCIDENT", help="What it is about.")],
    text: Annotated[str, typer.Argument(help="What you have to say.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Say something about a node, a pipeline on it, or an incident; it is read on both sides."""
    write("/v1/comments", {"subject": subject, "text": text}, reason, dry_run, as_json)


def _decide(kind: str, reference: str, select: str, for_: str, force: bool, reason: str, dry_run: bool, as_json: bool) -> None:
    body = {"kind": kind, "reference": reference, "select": select, "for_s": _seconds(for_) if for_ else 0, "force": force}
    write("/v1/notes", body, reason, dry_run, as_json)


def _seconds(text: str) -> int:
    try:
        return max(1, parse_duration(text) // 1_000_000)
    except ValueError as error:
        raise WrongUsage(str(error), op="--for") from None
