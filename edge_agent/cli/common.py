"""What the commands of `tidewire-agent` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.config import AgentConfig
from pipelines.contract.errors import OutOfReach, Refused

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="The agent's directory. [env TIDEWIRE_AGENT_DIR]", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept with the change.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would touch, and stop.")]


def at(data_dir: Path | None) -> str:
    return f" --data-dir {data_dir}" if data_dir else ""


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
