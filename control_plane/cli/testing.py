"""`tidewire test`: cases of pipelines, played in virtual time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import CASES, Json, print_spans, problem_json, read
from pipelines.contract.errors import Problem, SpecError, TidewireError

if TYPE_CHECKING:
    from pipelines.tools.checks import Failure

app = typer.Typer()


@app.command("test")
def play_cases(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE|DIR...", help="Cases files or their pipelines; default: all below here.")
    ] = None,
    only: Annotated[str, typer.Option("--only", "-k", metavar="TEXT", help="Only cases whose name contains this.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Name the cases that pass too.")] = False,
    as_json: Json = False,
) -> None:
    """Play the cases beside pipelines in virtual time, and show what came otherwise than expected."""
    begun_s = time.monotonic()
    files = list(_cases_files(paths or [Path()]))
    if not files:
        raise TidewireError(
            "there are no *.cases.yaml", op="test", place=str((paths or [Path()])[0]), hint="start with: tidewire new NAME"
        )
    tally = _Tally()
    for file in files:
        _play_file(file, only, tally, verbose=verbose and not as_json, quiet=as_json)
    if not tally.cases and not tally.problems:
        raise TidewireError(f"no case is named like {only!r}", op="test", hint="name a part of a case's name, or leave -k away")
    took_s = time.monotonic() - begun_s
    if as_json:
        output.print_json(tally.as_json(took_s))
    else:
        print(tally.summary(took_s))
    raise typer.Exit(1 if tally.failed else 0)


@dataclass
class _Tally:
    """How the cases went."""

    files: int = 0
    cases: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.problems) or any(not case["passed"] for case in self.cases)

    def as_json(self, took_s: float) -> dict[str, Any]:
        problems = [problem_json(problem) for problem in self.problems]
        return {"passed": not self.failed, "cases": self.cases, "problems": problems, "seconds": round(took_s, 3)}

    def summary(self, took_s: float) -> str:
        failed = sum(not case["passed"] for case in self.cases)
        what = f"{len(self.cases)} case{'' if len(self.cases) == 1 else 's'} in {self.files} file{'' if self.files == 1 else 's'}"
        if not self.failed:
            return f"{what} passed in {took_s:.1f} s"
        words = [f"{failed} failed"] if failed else []
        words += [f"{len(self.problems)} problem{'' if len(self.problems) == 1 else 's'}"] if self.problems else []
        return f"{what}: {', '.join(words)}, {len(self.cases) - failed} passed in {took_s:.1f} s"


def _play_file(file: Path, only: str, tally: _Tally, *, verbose: bool, quiet: bool) -> None:
    """Play the cases of one file. One that cannot be played is a problem, and the next one has its turn."""
    from pipelines.engine.plan import load_checked
    from pipelines.tools.cases import load_cases
    from pipelines.tools.play import Player

    tally.files += 1
    try:
        cases = load_cases(read(file), str(file))
        pipeline = file.parent / cases.pipeline if cases.pipeline else _pipeline_of(file)
        player = Player(load_checked(read(pipeline), str(pipeline)), cases)
    except SpecError as error:
        _problems(error, tally, quiet)
        return
    for index, case in enumerate(cases.cases):
        if only.lower() not in case.name.lower():
            continue
        try:
            result = player.play(index)
        except SpecError as error:
            tally.cases.append({"file": str(file), "name": case.name, "passed": False, "failures": []})
            if not quiet:
                print_spans([("unexpected", "FAIL "), ("bold", case.name), ("dim", f"  {file}")])
            _problems(error, tally, quiet)
            continue
        _tell(file, result.name, result.failures, tally, verbose=verbose, quiet=quiet)


def _tell(file: Path, name: str, failures: Any, tally: _Tally, *, verbose: bool, quiet: bool) -> None:
    from pipelines.tools.report import failure_json, failure_lines

    told: list[Failure] = list(failures)
    tally.cases.append(
        {"file": str(file), "name": name, "passed": not told, "failures": [failure_json(one, str(file)) for one in told]}
    )
    if quiet or not (told or verbose):
        return
    print_spans([("unexpected", "FAIL ") if told else ("missing", "pass "), ("bold", name), ("dim", f"  {file}")])
    for failure in told:
        for line in failure_lines(failure, str(file)):
            print_spans(line)


def _problems(error: SpecError, tally: _Tally, quiet: bool) -> None:
    tally.problems += error.problems
    if not quiet:
        for line in error.lines():
            print(output.plain(line))


def _cases_files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (f for f in sorted(path.rglob(f"*{CASES}")) if "/." not in f"/{f.relative_to(path)}")
        elif path.name.endswith(CASES):
            yield path
        else:
            beside = path.with_name(path.name.removesuffix(path.suffix) + CASES)
            if path.exists() and not beside.exists():
                hint = f"write {beside.name}, or start from one: tidewire new {path.stem}"
                raise TidewireError("it has no cases", op="test", place=str(path), hint=hint)
            yield beside if beside.exists() else path


def _pipeline_of(cases: Path) -> Path:
    return cases.with_name(cases.name.removesuffix(CASES) + ".yaml")
