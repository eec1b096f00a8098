"""`tidewire-agent secret`: values that only this node knows."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.cli.common import AsJson, DataDir, call
from edge_agent.config import AgentConfig
from edge_agent.secret_store import VALUE_BYTES_MAX, SecretStore
from pipelines.contract.errors import OutOfReach, Refused

app = typer.Typer(
    help="Values that pipelines name as ${secret:NAME} and only this node knows.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("set")
def secret_set(name: Annotated[str, typer.Argument()], data_dir: DataDir = None) -> None:
    """Set a secret from standard input (or ask for it). Pipelines that need it start anew."""
    value = getpass.getpass(f"value of {name}: ") if sys.stdin.isatty() else _text_from_stdin()
    _secrets(data_dir).put(name, value)
    print(f"{name} is set; {_tell_agent(data_dir)}")


@app.command("list")
def secret_list(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """Names, when they were set, and the start of each digest: equal on two nodes when the values are."""
    rows = [{"name": name, "since": found.since, "digest": found.digest} for name, found in _secrets(data_dir).all().items()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']}  since {row['since']}  digest {row['digest']}")
    if not rows:
        print("no secrets")


@app.command("remove")
def secret_remove(name: Annotated[str, typer.Argument()], data_dir: DataDir = None) -> None:
    """Forget a secret. Pipelines that need it fail from their next start on, and say so."""
    _secrets(data_dir).remove(name)
    print(f"{name} is removed; {_tell_agent(data_dir)}")


def _secrets(data_dir: Path | None) -> SecretStore:
    return SecretStore(AgentConfig.load(data_dir).data_dir)


def _text_from_stdin() -> str:
    """Without the line end that `echo` adds."""
    try:
        text = sys.stdin.buffer.read(VALUE_BYTES_MAX + 2).decode()
    except UnicodeDecodeError:
        raise Refused("the value is not UTF-8 text", op="secret set", hint="encode it, say as base64") from None
    return text.removesuffix("\n").removesuffix("\r")


def _tell_agent(data_dir: Path | None) -> str:
    try:
        call(data_dir, "POST", "/look", {})
    except OutOfReach:
        return "no managed agent runs here, the next start reads it"
    return "the agent looks at it now"
