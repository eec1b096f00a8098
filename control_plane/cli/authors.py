"""`tidewire validate`, `fmt`, `schema`, `explain`: for those who write pipelines, on a laptop, without a control plane.

Nothing of a control plane is imported here, and nothing heavy before it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane import output
from control_plane.cli.common import (
    CASES,
    Json,
    pairs,
    print_diff,
    print_part,
    problem_json,
    read,
    read_bytes,
    write_whole,
    yaml_files,
)
from pipelines.contract.errors import Problem, SpecError, TidewireError, WrongUsage

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.contract.spec import PipelineSpec

app = typer.Typer()


@app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR...", help="Pipeline and cases files, or directories of them.")],
    as_json: Json = False,
) -> None:
    """Check pipeline files here, without a server. Every problem is printed."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    files = list(yaml_files(paths, "validate"))
    for file in files:
        try:
            warnings += _check(file)
        except SpecError as error:
            problems += error.problems
    if as_json:
        told = {"problems": problems, "warnings": warnings}
        output.print_json({"files": len(files), **{name: [problem_json(one) for one in all_] for name, all_ in told.items()}})
        raise typer.Exit(1 if problems else 0)
    for warning in warnings:
        print(
            output.plain(f"{warning} (a warning)"),
            *([f"  fix: {warning.hint}"] if warning.hint else []),
            sep="\n",
            file=sys.stderr,
        )
    if problems:
        raise SpecError(problems)
    print(f"{len(files)} file{'' if len(files) == 1 else 's'} fine")


def _check(file: Path) -> Sequence[Problem]:
    """Its warnings. Raises `SpecError`."""
    if file.name.endswith(CASES):
        from pipelines.tools.cases import load_cases

        load_cases(read(file), str(file))
        return ()
    from pipelines.contract.spec import load_spec
    from pipelines.engine.plan import compile_plan, example_params

    spec = load_spec(read(file), str(file))
    return compile_plan(spec, example_params(spec)).warnings


@app.command()
def fmt(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR...", help="Pipeline and cases files; - reads stdin.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit status 1 and a list if a file would change.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; print what would change.")] = False,
    stdout: Annotated[bool, typer.Option("--stdout", help="Print the canonical form instead of writing it.")] = False,
) -> None:
    """Write pipeline files in their canonical form. Comments stay, and so does the meaning."""
    from pipelines.tools.fmt import format_text

    changed = 0
    problems: list[Problem] = []
    files = list(yaml_files(paths, "fmt"))
    for file in files:
        try:
            before = read(file)
            after = format_text(before, str(file))
        except SpecError as error:
            problems += error.problems
            continue
        if stdout or str(file) == "-":
            print(after, end="")
        elif after != before:
            changed += 1
            _tell_change(file, before, after, check=check, diff=diff)
    if problems:
        raise SpecError(problems)
    if not (stdout or check or diff or files == [Path("-")]):
        print(f"{changed} of {len(files)} file{'' if len(files) == 1 else 's'} changed")
    raise typer.Exit(1 if changed and (check or diff) else 0)


def _tell_change(file: Path, before: str, after: str, *, check: bool, diff: bool) -> None:
    import difflib

    if diff:
        print_diff(difflib.unified_diff(before.splitlines(), after.splitlines(), str(file), f"{file} (canonical)", lineterm=""))
    elif check:
        print(f"would change {file}")
    else:
        write_whole(file, after)
        print(f"changed {file}")


@app.command()
def schema(
    cases: Annotated[bool, typer.Option("--cases", help="Of cases files instead.")] = False,
) -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    from pipelines.tools.json_schema import cases_schema, pipeline_schema, to_json

    print(to_json(cases_schema() if cases else pipeline_schema()), end="")


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A pipeline file.")],
    given: Annotated[
        Path | None, typer.Option("--input", "-i", metavar="ROWS", help="Raw records as the source would read them; - is stdin.")
    ] = None,
    source: Annotated[str, typer.Option("--source", help="Whose records they are, when there are several sources.")] = "",
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=10_000, help="How many records of the input to follow.")] = 20,
    artifacts: Annotated[
        list[str] | None, typer.Option("--artifact", metavar="NAME=FILE", help="The CSV of a lookup table that is an artifact.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a pipeline does; with --input, show the rows after every step and why the others fell out."""
    from pipelines.contract.spec import load_spec
    from pipelines.tools import explain as explaining

    spec = load_spec(read(file), str(file))
    if given is None:
        parts = explaining.explain(spec)
    else:
        name = source or (next(iter(spec.sources)) if len(spec.sources) == 1 else "")
        if not name:
            raise WrongUsage("whose records are these?", op="explain", hint=f"add --source, one of {', '.join(spec.sources)}")
        parts = explaining.walk(
            spec, explaining.open_input(spec, name, read_bytes(given), rows), _lookup_tables(spec, pairs(artifacts or []))
        )
    if as_json:
        output.print_json({"pipeline": spec.pipeline, "parts": [part.as_json() for part in parts]})
        return
    for part in parts:
        print_part(part.title, part.facts, part.columns, part.rows, part.note)


def _lookup_tables(spec: PipelineSpec, artifacts: Mapping[str, str]) -> dict[str, pa.Table | None]:
    """The lookup tables whose CSV is here, as texts; None for one that is not: then nothing is found in it."""
    from pipelines.engine.lookup_csv import read_table

    named = {lookup.artifact for lookup in spec.lookups.values()}
    if unknown := sorted(artifacts.keys() - named):
        raise WrongUsage(
            f"no lookup table of the pipeline names the artifact {unknown[0]}", op="explain", hint="see its lookups:"
        )
    tables: dict[str, pa.Table | None] = {}
    for name, lookup in spec.lookups.items():
        path = artifacts.get(lookup.artifact or "", lookup.file)
        if lookup.rows is not None:
            continue
        if path is None or not Path(path).is_file():
            give = f"give --artifact {lookup.artifact}=FILE" if path is None else f"{path} is not here"
            print(f"lookup table {name}: {give}, so nothing is found in it", file=sys.stderr)
            tables[name] = None
            continue
        try:
            tables[name] = read_table(read_bytes(Path(path)))
        except ValueError as error:
            raise TidewireError(str(error), op="read", place=path, hint="a CSV file in UTF-8 with a header line") from None
    return tables
