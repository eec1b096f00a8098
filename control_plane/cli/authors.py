"""The commands for those who write pipelines. They work on a laptop without a control plane, and import what they use only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import Json, read
from pipelines.contract.errors import Problem, SpecError, TidewireError, WrongUsage

if TYPE_CHECKING:
    from pipelines.tools.play import Failure

CASES = ".cases.yaml"

app = typer.Typer()


@app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|DIR...", help="Pipeline and cases files, or directories of them.")],
    as_json: Json = False,
) -> None:
    """Check pipeline files here, without a server. Every problem is printed."""
    from pipelines.engine.plan import load_checked
    from pipelines.tools.cases import load_cases

    problems: list[Problem] = []
    files = list(_yaml_files(paths, "validate"))
    for file in files:
        try:
            (load_cases if file.name.endswith(CASES) else load_checked)(read(file), str(file))
        except SpecError as error:
            problems += error.problems
    if as_json:
        output.print_json({"files": len(files), "problems": [_problem_json(problem) for problem in problems]})
    elif not problems:
        print(f"{len(files)} file{'' if len(files) == 1 else 's'} fine")
    if problems and not as_json:
        raise SpecError(problems)
    raise typer.Exit(1 if problems else 0)


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
        problems = [_problem_json(problem) for problem in self.problems]
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
                _print_line([("unexpected", "FAIL "), ("bold", case.name), ("dim", f"  {file}")])
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
    _print_line([("unexpected", "FAIL ") if told else ("missing", "pass "), ("bold", name), ("dim", f"  {file}")])
    for failure in told:
        for line in failure_lines(failure, str(file)):
            _print_line(line)


def _problems(error: SpecError, tally: _Tally, quiet: bool) -> None:
    tally.problems += error.problems
    if not quiet:
        for line in error.lines():
            print(output.plain(line))


# -- styles: what was expected is green, what came is red, as in a diff

_ANSI = {
    "bold": "1",
    "dim": "2",
    "missing": "32",
    "unexpected": "31",
    "wrong_expected": "1;30;42",
    "wrong_got": "1;37;41",
}


def _print_line(spans: Any) -> None:
    print("".join(_styled(style, output.plain(text)) for style, text in spans).rstrip())


def _styled(style: str, text: str) -> str:
    code = _ANSI.get(style)
    return f"\x1b[{code}m{text}\x1b[0m" if code and text and output.is_coloured(sys.stdout) else text


# -- files


def _yaml_files(paths: list[Path], op: str) -> Iterator[Path]:
    """The files, and those in the directories (not below hidden ones)."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [f for f in sorted(path.rglob("*.yaml")) if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        if not found:
            raise TidewireError("no *.yaml in it", op=op, place=str(path), hint="name a pipeline file or a directory of them")
        yield from found


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


def _problem_json(problem: Problem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in problem.__slots__}


# -- ready pipelines

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
    import re

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
    import re

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
