"""What the commands of `tidewire` share: their common options, the client, errors as lines."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from control_plane import output
from pipelines.contract.duration import parse_duration
from pipelines.contract.errors import Problem, TidewireError, WrongUsage
from pipelines.contract.yaml_reader import decode

if TYPE_CHECKING:
    from control_plane.client import Client

CASES = ".cases.yaml"
CELL_MAX = 100  # characters of a value in a table of `explain`

Select = Annotated[str, typer.Option("--select", "-s", help="Which nodes: site=lyon,line in (a,b),!spare or name=pi17 or all.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the change.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="The control plane's directory. Default: $TIDEWIRE_HOME or ~/.tidewire.")
]
Params = Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, may repeat.")]


AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Also when no node matches yet.")]


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


def seconds(text: str) -> int:
    try:
        return max(1, parse_duration(text) // 1_000_000)
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def read(file: Path) -> str:
    """The text of a file, or (`-`) of stdin."""
    return decode(read_bytes(file), str(file))


def read_bytes(file: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        cause = error.strerror or str(error)
        raise TidewireError(cause, op="read", place=str(file), hint="name a file that there is") from None


def yaml_files(paths: list[Path], op: str) -> Iterator[Path]:
    """The files, and those in the directories (not below hidden ones)."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [f for f in sorted(path.rglob("*.yaml")) if not any(part.startswith(".") for part in f.relative_to(path).parts)]
        if not found:
            raise TidewireError("no *.yaml in it", op=op, place=str(path), hint="name a pipeline file or a directory of them")
        yield from found


def problem_json(problem: Problem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in problem.__slots__}


def write_whole(file: Path, text: str) -> None:
    """All of it or nothing: a file is never left half written."""
    target = file.resolve()
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        half.write_text(text, encoding="utf-8", newline="\n")
        half.chmod(target.stat().st_mode)
        half.replace(target)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise TidewireError(error.strerror or str(error), op="write", place=str(file)) from None


# -- colours: what was expected is green, what came is red, as in a diff

_ANSI = {"bold": "1", "dim": "2", "missing": "32", "unexpected": "31", "wrong_expected": "1;30;42", "wrong_got": "1;37;41"}


def print_spans(spans: Iterable[tuple[str, str]]) -> None:
    """A line of text in styles; plain where nobody looks."""
    coloured = output.is_coloured(sys.stdout)
    print("".join(_styled(style, output.plain(text), coloured) for style, text in spans).rstrip())


def print_diff(lines: Iterable[str]) -> None:
    for line in lines:
        style = "missing" if line.startswith("+") else "unexpected" if line.startswith("-") else ""
        print_spans([("bold" if line.startswith(("+++", "---")) else style, line)])


def _styled(style: str, text: str, coloured: bool) -> str:
    code = _ANSI.get(style)
    return f"\x1b[{code}m{text}\x1b[0m" if code and text and coloured else text


def print_part(
    title: str, facts: Sequence[tuple[str, str]], columns: Sequence[str], rows: Sequence[Sequence[str]], note: str
) -> None:
    """A titled part of an explanation: facts, a table, a note."""
    print_spans([("bold", title)])
    width = max((len(label) for label, _ in facts), default=0)
    for label, text in facts:
        print_spans([("dim", f"  {label:<{width}}  "), ("", text)])
    if columns and rows:
        output.print_table(columns, [[_short(cell) for cell in row] for row in rows], indent=2)
    if note:
        print_spans([("dim", f"  {note}")])
    print()


def _short(text: str) -> str:
    return text if len(text) <= CELL_MAX else f"{text[: CELL_MAX - 1]}…"
