"""`tidewire catalog`, `tidewire new`: ready pipelines, and files to start from."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from control_plane import output
from control_plane.cli.common import CASES, Json
from pipelines.contract.errors import TidewireError, WrongUsage

app = typer.Typer()
catalog = typer.Typer(invoke_without_command=True, help="The ready pipelines that come with Tidewire.")
app.add_typer(catalog, name="catalog")


@catalog.callback()
def catalog_list(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    from pipelines.contract.spec import load_spec

    found = []
    for name, text in sorted(_ready().items()):
        spec = load_spec(text, f"{name}.yaml")
        found.append({"pipeline": name, "description": spec.description, "cases": f"{name}{CASES}" in _package_files("catalog")})
    if as_json:
        output.print_json({"catalog": found})
        return
    output.print_table(("PIPELINE", "DESCRIPTION"), [(row["pipeline"], row["description"]) for row in found])
    print("  next: tidewire catalog show NAME, or tidewire new MY-NAME --from NAME", file=sys.stderr)


@catalog.command("show")
def catalog_show(
    name: Annotated[str, typer.Argument(help="A ready pipeline.")],
    cases: Annotated[bool, typer.Option("--cases", help="Its cases instead.")] = False,
) -> None:
    """Print a ready pipeline."""
    text = _ready_one(name)
    if cases:
        text = _package_files("catalog").get(f"{name}{CASES}", "")
        if not text:
            raise TidewireError("it has no cases", op="catalog show", place=name, hint="leave --cases away")
    print(text, end="")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What to call it: lower-case letters, digits, dashes.")],
    template: Annotated[str, typer.Option("--from", metavar="NAME", help="A ready pipeline to start from; see: catalog.")] = "",
) -> None:
    """Write NAME.yaml and NAME.cases.yaml here, to start from. Nothing is overwritten."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
        hint = "lower-case letters, digits and dashes, starting with a letter; at most 63"
        raise WrongUsage(f"{name!r} is no name of a pipeline", op="new", hint=hint)
    text = _ready_one(template) if template else _package_files("starter")["starter.yaml"]
    cases = _package_files("catalog" if template else "starter").get(f"{template or 'starter'}{CASES}", "")
    old = template or "starter"
    texts = {f"{name}.yaml": text, **({f"{name}{CASES}": cases} if cases else {})}
    if taken := [file for file in texts if Path(file).exists()]:
        hint = "choose another name, or move it away"
        raise TidewireError("there is such a file already", op="new", place=taken[0], hint=hint)
    for file, content in texts.items():
        Path(file).write_text(_renamed(content, old, name))
    print(f"wrote {' and '.join(texts)}")
    print(f"  next: tidewire test {name}.yaml" if cases else f"  next: tidewire validate {name}.yaml")


def _renamed(text: str, old: str, new_name: str) -> str:
    """The pipeline's name, and where its own commands and tables name it."""
    text = re.sub(rf"^(pipeline: ){re.escape(old)}$", rf"\g<1>{new_name}", text, flags=re.MULTILINE)
    if old != "starter":
        return text
    return (
        text.replace("tidewire set starter", f"tidewire set {new_name}")
        .replace("starter.yaml", f"{new_name}.yaml")
        .replace("starter_", f"{new_name.replace('-', '_')}_")
    )


def _ready() -> dict[str, str]:
    files = _package_files("catalog")
    return {name.removesuffix(".yaml"): text for name, text in files.items() if not name.endswith(CASES)}


def _ready_one(name: str) -> str:
    from pipelines.contract.spec_problems import did_you_mean

    ready = _ready()
    if name not in ready:
        cause = f'there is no ready pipeline "{name}"{did_you_mean(name, ready)}'
        raise TidewireError(cause, op="catalog", hint="see them all: tidewire catalog")
    return ready[name]


def _package_files(folder: str) -> dict[str, str]:
    """The YAML files that come with the package, by name."""
    from importlib.resources import files

    found = files("pipelines").joinpath(folder).iterdir()
    return {file.name: file.read_text(encoding="utf-8") for file in found if file.name.endswith(".yaml")}
