"""`tidewire`: thin. It reads words, calls the server over HTTP or the pure core, prints. Nothing is decided here.

Each module holds the commands of one noun; only this one knows them all.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated, NoReturn

import typer

from control_plane import output
from control_plane.cli import (
    artifacts,
    authors,
    catalog,
    incidents,
    lake,
    nodes,
    notes,
    notify,
    params,
    pipelines,
    refused,
    requests,
    rollouts,
    server,
    testing,
)
from control_plane.cli.common import DataDir
from pipelines.contract.errors import TidewireError

CONTROL_EXTRA = ("cryptography", "deltalake", "sqlalchemy")  # modules of the extra `control` in pyproject.toml

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for module in (
    server,
    authors,
    testing,
    catalog,
    pipelines,
    params,
    rollouts,
    artifacts,
    nodes,
    notes,
    incidents,
    notify,
    lake,
    requests,
    refused,
):
    app.add_typer(module.app)


@app.callback(invoke_without_command=True)
def root(
    data_dir: DataDir = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Edge-to-cloud data pipelines that tolerate partitions."""
    if version:
        print(f"tidewire {installed_version('tidewire')}")
        raise typer.Exit
    if data_dir:
        os.environ["TIDEWIRE_HOME"] = str(data_dir)


def main() -> None:
    """Run a command and exit with its status; errors are lines on stderr, never a traceback."""
    try:
        status = app(standalone_mode=False)
    except TidewireError as error:
        _fail(error.lines(), error.exit_status)
    except (typer.Abort, KeyboardInterrupt):
        _fail(["stopped"], 130)
    except typer.TyperException as error:
        _fail(_usage_lines(error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in CONTROL_EXTRA:
            missing = f"the control plane's part of Tidewire is not installed here (no {error.name})"
            _fail([missing, "  fix: pip install 'tidewire[control]'"], 1)
        if os.environ.get("TIDEWIRE_DEBUG"):
            raise
        what = f"a defect of Tidewire: {type(error).__name__}: {error}"
        _fail([what, "  fix: please report it, with what TIDEWIRE_DEBUG=1 shows"], 1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _usage_lines(error: typer.TyperException) -> list[str]:
    """typer ships its own click, whose usage errors it gives no public names."""
    message, context = getattr(error, "format_message", error.__str__)(), getattr(error, "ctx", None)
    if message.startswith("Usage:"):
        return [message]
    usage = context.get_usage().removeprefix("Usage: ") if context else "tidewire --help"
    return [message, f"  fix: {usage}"]


def _fail(lines: list[str], status: int) -> NoReturn:
    for line in lines:
        print(*map(output.plain, line.split("\n")), sep="\n", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
