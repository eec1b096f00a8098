"""`tidewire up`, `tidewire demo`: what runs here until it is stopped."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from control_plane.cli.common import DataDir, Json, seconds
from control_plane.config import API_PORT, LOOPBACK, NATS_PORT, ControlConfig, default_data_dir
from control_plane.process import leave, loading

app = typer.Typer()


@app.command()
def up(
    data_dir: DataDir = None,
    api_port: Annotated[
        int, typer.Option(envvar="TIDEWIRE_API_PORT", min=0, max=65535, help="HTTP API on loopback; 0: any free port.")
    ] = API_PORT,
    nats_port: Annotated[
        int, typer.Option(envvar="TIDEWIRE_NATS_PORT", min=0, max=65535, help="Where nodes connect; 0: any free port.")
    ] = NATS_PORT,
    listen: Annotated[str, typer.Option(help="Address nodes connect to; off loopback TLS is turned on.")] = LOOPBACK,
    public_url: Annotated[str, typer.Option(help="What nodes dial, such as nats://192.168.1.10:4222.")] = "",
    in_contact: Annotated[
        str, typer.Option(help="Nodes not heard of for this long are out of contact: three of their heartbeats (heartbeat_s).")
    ] = "90s",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run the control plane here until Ctrl-C."""
    with loading():
        from control_plane.server import ControlPlane, configure_logs, serve

    configure_logs(logging.DEBUG if verbose else logging.INFO)
    config = ControlConfig(data_dir or default_data_dir(), api_port, nats_port, listen, public_url, seconds(in_contact))

    def ready(plane: ControlPlane) -> None:
        print(f"control plane is up: nodes dial {plane.nats_url}, commands use {plane.api_url}, data in {config.data_dir}")
        print("  next: tidewire join-token create", flush=True)

    serve(config, ready)
    leave()


@app.command()
def ingest(
    data_dir: DataDir = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run one more ingest process beside the control plane of this machine, which takes over a share of the nodes."""
    with loading():
        from control_plane.ingest_process import IngestProcess, serve
        from control_plane.server import configure_logs

    configure_logs(logging.DEBUG if verbose else logging.INFO)

    def ready(process: IngestProcess) -> None:
        print(f"ingest process {process.name} is up", flush=True)

    serve(ControlConfig(data_dir or default_data_dir()), ready)
    leave()


@app.command()
def demo(
    json_output: Json = False,
    fast: Annotated[bool, typer.Option("--fast", help="Shorter, for tests.")] = False,
) -> None:
    """Three agents, one control plane, one cut link: the whole story on this machine."""
    from control_plane.demo import run

    raise typer.Exit(run(json_output=json_output, fast=fast))
