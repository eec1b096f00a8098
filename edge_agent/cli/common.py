"""What the commands of `tidewire-agent` share."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.config import AgentConfig
from pipelines.contract.duration import parse_duration
from pipelines.contract.errors import OutOfReach, Refused, WrongUsage

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="The agent's directory. [env TIDEWIRE_AGENT_DIR]", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept with the change.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would touch, and stop.")]


For = Annotated[
    str, typer.Option("--for", metavar="DURATION", help="How long, as in 8h, of the time the node is on.", show_default=False)
]


def at(data_dir: Path | None) -> str:
    return f" --data-dir {data_dir}" if data_dir else ""


def pairs(option: str, words: list[str]) -> dict[str, str]:
    parts = [word.partition("=") for word in words]
    for name, equals, _ in parts:
        if not equals or not name:
            raise WrongUsage(f"{name!r} is not NAME=VALUE", op=option, hint="for example: limit_c=90")
    return {name: value for name, _, value in parts}


def seconds(op: str, text: str) -> float | None:
    """What `--for` says; None when it says nothing."""
    if not text:
        return None
    try:
        us = parse_duration(text)
    except ValueError as error:
        raise WrongUsage(str(error), op=op, hint="for example: --for 8h") from None
    if us < 1_000_000:
        raise WrongUsage(f"{text} is shorter than a second", op=op, hint="for example: --for 8h")
    return us / 1e6


def change(data_dir: Path | None, path: str, body: dict[str, Any], reason: str, dry_run: bool) -> None:
    """Say what it touches, then do it."""
    who = {"by": getpass.getuser(), "reason": reason}
    preview = call(data_dir, "POST", path, {**body, **who, "dry_run": True})
    for line in preview["done"]:
        print(plain(line))
    if dry_run:
        print("dry run: nothing was changed")
        return
    call(data_dir, "POST", path, {**body, **who, "dry_run": False})
    print("done")


def plain(text: str) -> str:
    """Without characters that would move the cursor: some of it others wrote."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def call(data_dir: Path | None, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """What the running agent answers. Raises `OutOfReach` when none runs, `Refused` with its words otherwise."""
    import httpx  # only the commands that talk to the agent need it

    from edge_agent.local_api import SOCKET

    place = AgentConfig.load(data_dir).data_dir / SOCKET
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(place)), base_url="http://agent", timeout=10) as client:
            reply = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise OutOfReach(
            f"no agent answers ({error})",
            op=path.strip("/"),
            place=str(place.parent),
            hint=f"start it: tidewire-agent run{at(data_dir)}",
        ) from None
    answer = reply.json()
    if reply.status_code != 200:
        raise Refused(answer["error"], hint=answer["hint"])
    return answer
