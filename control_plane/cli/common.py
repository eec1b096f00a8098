"""What the commands of `tidewire` share: their common options, the client, errors as lines."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from control_plane import output
from pipelines.contract.errors import TidewireError, WrongUsage

if TYPE_CHECKING:
    from control_plane.client import Client

Select = Annotated[str, typer.Option("--select", "-s", help="Which nodes: site=lyon,line in (a,b),!spare or name=pi17 or all.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the change.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Default: $TIDEWIRE_HOME or ~/.tidewire.")]
Params = Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, may repeat.")]


def write(path: str, body: dict[str, Any], reason: str, dry_run: bool, as_json: bool) -> None:
    """Say what the write touches, then do it."""
    server = client()
    plan = server.post(path, {**body, **who(reason, True)})
    if not as_json:
        print("\n".join(map(output.plain, plan["summary"])))
    if not dry_run:
        plan = server.post(path, {**body, **who(reason, False)})
    if as_json:
        output.print_json(plan)
    else:
        print("dry run: nothing changed" if dry_run else "done")


def quoted(name: str) -> str:
    """As one part of a path, whatever is in it."""
    return quote(name, safe="").replace(".", "%2E")


def client() -> Client:
    from control_plane.client import Client  # httpx, which the authors' commands do without
    from control_plane.config import default_data_dir

    return Client(default_data_dir())


def who(reason: str, dry_run: bool) -> dict[str, Any]:
    return {"by": os.environ.get("TIDEWIRE_USER") or _login(), "reason": reason, "dry_run": dry_run}


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def pairs(words: list[str]) -> dict[str, str]:
    wrong = next((word for word in words if "=" not in word or word.startswith("=")), None)
    if wrong is not None:
        raise WrongUsage(f"{wrong!r} is not NAME=VALUE", hint="write NAME=VALUE without spaces")
    return dict(word.split("=", 1) for word in words)


def read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise TidewireError(cause or str(error), op="read", place=str(file), hint="name a pipeline file") from None
