"""`tidewire-agent`: thin. It asks the running agent over its Unix socket, or becomes it."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from edge_agent import status_view
from edge_agent.cli import buffer, onsite, secrets, validate
from edge_agent.cli.common import AsJson, DataDir, at, call, pairs
from edge_agent.config import AgentConfig, Identity
from pipelines.contract.errors import Refused, TidewireError, WrongUsage

app = typer.Typer(
    help="The node of Tidewire: runs pipelines beside the machines, connected or not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # an error is two plain lines
)
app.add_typer(secrets.app, name="secret")
app.add_typer(buffer.app, name="buffer")
app.add_typer(validate.app)
app.add_typer(onsite.app)


def main() -> None:
    """Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 out of reach. Errors never show a traceback."""
    try:
        app()
    except TidewireError as error:
        _end(error)
    except BaseExceptionGroup as group:  # of the agent's tasks
        known, _ = group.split(TidewireError)
        if known is None:
            raise
        _end(known)
    except KeyboardInterrupt:
        sys.exit(130)


def _end(error: BaseException) -> NoReturn:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, TidewireError)
    print(*error.lines(), sep="\n", file=sys.stderr)
    sys.exit(error.exit_status)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        print(f"tidewire-agent {metadata.version('tidewire')}")
        raise typer.Exit


@app.command()
def join(
    token: Annotated[str, typer.Argument(help="What `tidewire join-token create` printed.")],
    name: Annotated[str, typer.Option("--name", help="What to call this node; default: its host name.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="As a new node: the identity that is here, and what it has not sent, is set aside.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Become a node of the control plane that made the token."""
    import asyncio  # like the rest of these, not worth loading for the other commands

    from edge_agent import former, logs
    from edge_agent.join import join as do_join
    from pipelines.contract.token import JoinToken

    logs.configure("error")
    config = AgentConfig.load(data_dir)
    parsed = JoinToken.decode(token)
    print(f"Joining the control plane at {parsed.url}; the identity goes to {config.data_dir}")
    before = Identity.load(config.data_dir)
    identity, is_new = asyncio.run(do_join(parsed, config.data_dir, name, again=again))
    labels = ", ".join(f"{key}={value}" for key, value in identity.labels.items())
    if name and identity.name != name:
        print(f"  the name {name!r} is taken or has other characters than letters, digits and dashes")
    print(f"{'This node is now' if is_new else 'Nothing to do: this node already is'} {identity.name} ({identity.node})")
    print(f"  labels: {labels or 'none'}")
    if before is not None and is_new:
        _tell_former(before, former.unsent(config.data_dir, before), former.directory_of(config.data_dir, before))
    if is_new:
        print(f"  next: tidewire-agent run{at(data_dir)}")


def _tell_former(identity: Identity, unsent: list[tuple[str, int]], place: Path) -> None:
    print(f"  it was {identity.name} ({identity.node}): that is in {place}; its files are read again from the start")
    for stream, rows in unsent:
        print(f"  never sent: {rows:,} rows of {stream}")
    if unsent:
        print(f"  to have them as files: tidewire-agent buffer export DIR --data-dir {place}")


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="A pipeline to run stand-alone; without it: the managed agent.")] = None,
    until_eof: Annotated[bool, typer.Option("--until-eof", help="With FILE: end when its sources do.")] = False,
    params: Annotated[list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="With FILE: a parameter.")] = None,
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="With FILE: a node label.")] = None,
    artifacts: Annotated[
        list[str] | None, typer.Option("--artifact", metavar="NAME=FILE", help="With FILE: the CSV of a table that it names.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Run the agent, or one pipeline stand-alone."""
    if file is not None:
        from edge_agent.standalone import run_file  # a managed agent does without it

        given = {"params": pairs("--param", params or []), "labels": pairs("--label", labels or [])}
        given["artifacts"] = pairs("--artifact", artifacts or [])
        _leave(run_file(file, data_dir, until_eof=until_eof, json_output=as_json, **given))
    if until_eof or as_json or params or labels or artifacts:
        hint = "tidewire-agent run FILE --until-eof"
        raise WrongUsage("--until-eof, --param, --label, --artifact and --json go with a FILE", op="run", hint=hint)
    config = AgentConfig.load(data_dir)
    identity = Identity.load(config.data_dir)
    if identity is None:
        raise Refused(
            "this node has not joined a control plane", op="run", place=str(config.data_dir),
            hint="tidewire-agent join TOKEN, or run one pipeline stand-alone: tidewire-agent run FILE",
        )  # fmt: skip
    if (config.data_dir / "agent.db").exists():  # it ran before, so there will be something to run at once
        from edge_agent.supervisor import warm_up

        warm_up()
    import asyncio

    from edge_agent import logs
    from edge_agent.agent import run_managed

    logs.configure(config.log_level)
    asyncio.run(run_managed(config, identity))
    _leave(0)


def _leave(status: int) -> NoReturn:
    """All is closed, and Python's own end takes 0.15 CPU-s to free what the kernel frees."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@app.command()
def status(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """What runs here, since when, and why."""
    facts = call(data_dir, "GET", "/status")
    print(json.dumps(facts, indent=1)) if as_json else status_view.show(facts)


@app.command()
def quarantine(
    pipeline: Annotated[str, typer.Argument(help="Of this pipeline only.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 20,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Rejected records whose raw bytes stay on this node (`quarantine: {raw: local}`), newest first."""
    from edge_agent.quarantine import read

    rows = read(AgentConfig.load(data_dir).data_dir, pipeline, limit)
    print(json.dumps(rows, indent=1)) if as_json else status_view.show_quarantine(rows)
