"""`tidewire-agent validate`: would this pipeline work on this node?"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent import rate
from edge_agent.cli.common import AsJson, DataDir, call
from edge_agent.config import AgentConfig, Identity
from edge_agent.policy import Policy
from edge_agent.secret_store import SecretStore
from pipelines.contract.errors import OutOfReach, Refused, SpecError, TidewireError

if TYPE_CHECKING:  # imported when it is asked for: no other command shall wait for it
    from edge_agent.node_check import Here
    from pipelines.contract.spec import PipelineSpec

app = typer.Typer()


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A pipeline file.")], as_json: AsJson = False, data_dir: DataDir = None
) -> None:
    """Check a pipeline file, and whether it can work on this node: paths, policy, secrets, and how long the buffer lasts."""
    from edge_agent.node_check import problems, warnings
    from pipelines.engine.plan import compile_plan, example_params, load_checked  # DuckDB

    config = AgentConfig.load(data_dir)
    spec = load_checked(_text(file), str(file))
    here = _here(config)
    found, told = problems(spec, here), [*compile_plan(spec, example_params(spec)).warnings, *warnings(spec, here)]
    lasts_s = _lasts_s(config, spec)
    if as_json:
        facts: dict[str, Any] = {
            "problems": [asdict(p) for p in found],
            "warnings": [asdict(w) for w in told],
            "lasts_s": lasts_s,
        }
        print(json.dumps(facts, indent=1))
        raise typer.Exit(1 if found else 0)
    for warning in told:
        print(f"{warning} (a warning)", *([f"  fix: {warning.hint}"] if warning.hint else []), sep="\n", file=sys.stderr)
    if found:
        raise SpecError(found)
    print(f"{spec.pipeline} can run on this node")
    print(_estimate(lasts_s))


def _estimate(lasts_s: float | None) -> str:
    if lasts_s is None:
        return "how long the buffer lasts is not known: the pipeline has not run here for a minute yet"
    return f"at the measured rate this buffer lasts {rate.text(lasts_s)}"


def _here(config: AgentConfig) -> Here:
    from edge_agent.node_check import Here

    identity = Identity.load(config.data_dir)
    labels = dict(identity.labels) if identity else {}
    held_bytes = 0
    with suppress(OutOfReach):
        facts = call(config.data_dir, "GET", "/status")
        labels, held_bytes = facts["node"]["labels"], facts["backlog"]["bytes"]
    secrets = frozenset(SecretStore(config.data_dir).all())
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Here(config.data_dir, Policy.load(config.data_dir), secrets, labels, config.buffer_bytes, held_bytes)


def _lasts_s(config: AgentConfig, spec: PipelineSpec) -> float | None:
    """With all that runs here, when this pipeline is among it; of its own part when it has one."""
    from edge_agent import buffer

    with suppress(Refused), buffer.reading(config.data_dir / "agent.db", "") as db:
        rates, now_us = buffer.measured(db)
        own = {stream: one for stream, one in rates.items() if stream.startswith(f"{spec.pipeline}/")}
        if not own:
            return None
        node = buffer.lasts_s(db, config.buffer_bytes)
        if spec.buffer.max_size is None:
            return node
        held = sum(run["bytes"] for stream in buffer.contents(db, config.buffer_bytes)["streams"]
                   if stream["pipeline"] == spec.pipeline for run in stream["runs"])  # fmt: skip
        part = rate.lasts_s(own.values(), spec.buffer.max_size - held, now_us)
        return min((s for s in (node, part) if s is not None), default=None)
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TidewireError(
            f"cannot read it: {why}", op="validate", place=str(file), hint="give the path of a pipeline file"
        ) from None
