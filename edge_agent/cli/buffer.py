"""`tidewire-agent buffer`: what waits on this node for the lake. Works beside a running agent and without one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_agent import buffer_view
from edge_agent.cli.common import AsJson, DataDir
from edge_agent.config import AgentConfig, Identity
from pipelines.contract.errors import Refused, TidewireError, WrongUsage
from pipelines.contract.keys import Key

if TYPE_CHECKING:  # each command imports what reads the store: `tidewire-agent status` shall not wait for it
    from edge_agent.buffer import Held

app = typer.Typer(help="What waits on this node for the lake.", no_args_is_help=True, rich_markup_mode=None)
Stored = Annotated[
    Path | None, typer.Option("--store", help="Of this file instead, say one that was set aside as damaged.", show_default=False)
]


@app.command()
def inspect(
    stream: Annotated[str, typer.Argument(metavar="PIPELINE|STREAM", help="Only these; also as PIPELINE/STREAM.")] = "",
    segment: Annotated[int, typer.Argument(metavar="SEGMENT", help="Show this one: its header and its first rows.")] = 0,
    run: Annotated[str, typer.Option("--run", help="With SEGMENT: of this run, or how its id starts.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="With SEGMENT: so many rows.")] = 10,
    as_json: AsJson = False,
    store: Stored = None,
    data_dir: DataDir = None,
) -> None:
    """What the buffer holds: per stream and run segments, rows, bytes, times, share and limit, and what was lost."""
    from edge_agent import buffer

    config = AgentConfig.load(data_dir)
    with _reading(config, store) as (db, _):
        if segment:
            from edge_agent.export import segment_facts  # pyarrow

            found = segment_facts(_find(db, stream, segment, run), limit)
            print(json.dumps(found, indent=1, default=str)) if as_json else buffer_view.show_segment(found)
            return
        facts = buffer.contents(db, config.buffer_bytes, stream)
    print(json.dumps(facts, indent=1)) if as_json else buffer_view.show(facts)


@app.command()
def verify(as_json: AsJson = False, store: Stored = None, data_dir: DataDir = None) -> None:
    """Check every segment (bytes, signature, chain), the counters and the file. Exit status 1 when something is wrong."""
    from edge_agent import buffer

    with _reading(AgentConfig.load(data_dir), store) as (db, public):
        verdict = buffer.verify(db, public)
    if as_json:
        print(json.dumps(asdict(verdict), indent=1))
        raise typer.Exit(1 if verdict.problems else 0)
    for problem in verdict.problems:
        print(problem)
    print(f"{verdict.segments} segments with {verdict.rows} rows checked; {verdict.stub_rows} rows are lost and counted")
    if verdict.problems:
        hint = "start the agent again: it keeps what verifies and counts the rest" if not store else ""
        raise TidewireError(f"{len(verdict.problems)} problems", op="verify", hint=hint)


@app.command()
def export(
    to: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A directory, or a file for one stream.")],
    stream: Annotated[str, typer.Option("--stream", metavar="PIPELINE|STREAM", help="Only these.")] = "",
    how: Annotated[str, typer.Option("--format", help="arrow, parquet, csv or json.", metavar="FORMAT")] = "",
    as_json: AsJson = False,
    store: Stored = None,
    data_dir: DataDir = None,
) -> None:
    """Copy the rows that wait into files. They stay in the buffer and still go to the lake."""
    from edge_agent import buffer
    from edge_agent import export as files  # pyarrow

    known = files.SUFFIXES.get(to.suffix, "")
    if how and (how not in files.FORMATS or known not in ("", how)):
        raise WrongUsage(f"--format {how}", op="export", hint=f"one of {', '.join(files.FORMATS)}, and as the file's name ends")
    with _reading(AgentConfig.load(data_dir), store) as (db, _):
        written = files.export(db, buffer.runs(db, stream), to, how or known or "parquet")
    if as_json:
        print(json.dumps([{**asdict(one), "path": str(one.path)} for one in written], indent=1))
        return
    for one in written:
        skipped = f"; {one.skipped} damaged segments left out" if one.skipped else ""
        print(f"{one.path}  {one.stream}: {one.rows} rows of {one.segments} segments{skipped}")
    if not written:
        print("no rows wait")


@contextmanager
def _reading(config: AgentConfig, store: Path | None) -> Iterator[tuple[sqlite3.Connection, str]]:
    """The store and the public key that signs its segments."""
    from edge_agent import buffer

    public = _public_key(config.data_dir)
    with buffer.reading(store or config.data_dir / "agent.db", public) as db:
        yield db, public


def _public_key(data_dir: Path) -> str:
    """The node's, or that of stand-alone runs."""
    identity, alone = Identity.load(data_dir), data_dir / "standalone.key"
    if identity is not None:
        return identity.key.public
    return Key(alone.read_text().strip()).public if alone.exists() else ""


def _find(db: sqlite3.Connection, stream: str, seq: int, run: str) -> Held:
    from edge_agent import buffer

    for candidate in buffer.runs(db, stream):
        if candidate.run.startswith(run):
            for held in buffer.held(db, candidate, seq - 1):
                if held.seq == seq:
                    return held
                break
    raise Refused(
        f"segment {seq} of {stream} is not in the buffer", op="inspect", hint="tidewire-agent buffer inspect shows what is"
    )
