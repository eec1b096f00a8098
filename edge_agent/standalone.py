"""One pipeline on one machine, without a control plane: `tidewire-agent run FILE`.

The same store, runner and actions as on a managed node; instead of an uplink, sealed segments are written as Parquet below
DATA/lake, exactly once: a file's name says which segments it holds, so what a crash left unconfirmed is recognised.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.live import Live
from rich.table import Table

from edge_agent.actions import Actions
from edge_agent.config import AgentConfig, make_private_dir, write_private
from edge_agent.host import Given, NodeInfo, Outcome, PipelineHost, Services
from edge_agent.keeper import Keeper
from edge_agent.outbox import Mark, Pending
from edge_agent.policy import Policy
from edge_agent.secret_store import SecretStore
from edge_agent.store import Store
from edge_agent.supervisor import Supervisor
from pipelines.contract.artifact import PIPELINE_VERSION, Artifact
from pipelines.contract.errors import Problem, Refused, SpecError, TidewireError
from pipelines.contract.keys import Key
from pipelines.contract.language.base import LOG
from pipelines.contract.node_state import Scalar
from pipelines.contract.spec import PipelineSpec, load_spec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.contract.version import PipelineVersion
from pipelines.engine.ipc import decode_rows
from pipelines.engine.plan import check_spec, compile_plan

NODE = "standalone"
DRAIN_BYTES = 16 * 1024 * 1024  # of segments that become one Parquet file at most
REASONS_SHOWN = 5
INTERRUPTED = "interrupted, perhaps before the end of its input"
_DROPPED = ("filtered", "deduplicated")  # by a step: each of these words counts per step
_FILE = re.compile(r"(?P<run>[0-9a-f]+)-(?P<first>\d+)-(?P<last>\d+)\.parquet\Z")


@dataclass(frozen=True)
class _Job:
    """What to run, on what it is told of this node."""

    version: PipelineVersion
    params: Mapping[str, Scalar]
    labels: Mapping[str, str]
    until_eof: bool
    json_output: bool
    tables: Given


def run_file(
    path: Path,
    data_dir: Path | None,
    *,
    params: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    artifacts: Mapping[str, str] | None = None,
    until_eof: bool = False,
    json_output: bool = False,
) -> int:
    """Run the pipeline in `path`. Exit status 0 when its input ended or it was interrupted, 1 when it failed."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TidewireError(
            f"cannot read it: {why}", op="run", place=str(path), hint="give the path of a pipeline file"
        ) from None
    spec = load_spec(text, str(path))
    check_spec(spec)
    values = _param_values(spec, params or {})
    compile_plan(spec, values)
    job = _Job(PipelineVersion.of(spec), values, labels or {}, until_eof, json_output, _tables(spec, artifacts or {}))
    return asyncio.run(_run(AgentConfig.load(data_dir), job))


def _param_values(spec: PipelineSpec, words: Mapping[str, str]) -> dict[str, Scalar]:
    """The defaults and what is given instead. Raises `Refused`, or `SpecError` for one without a value."""
    values = spec.defaults()
    for name, word in words.items():
        if name not in spec.params:
            hint = f"its parameters: {', '.join(spec.params) or 'none'}"
            raise Refused(f'there is no parameter "{name}"{did_you_mean(name, spec.params)}', op="--param", hint=hint)
        try:
            values[name] = spec.params[name].parse(word)
        except ValueError as error:
            raise Refused(str(error), op="--param", place=name, hint="give a value that fits its declaration") from None
    unset = [Problem("has no value", f"params.{name}", f"add --param {name}=...") for name, v in values.items() if v is None]
    if unset:
        raise SpecError(map(spec.locate, unset))
    return values


def _tables(spec: PipelineSpec, artifacts: Mapping[str, str]) -> Given:
    """The CSV files that stand for the artifacts that the pipeline names: all of them, and no others."""
    named = sorted({lookup.artifact for lookup in spec.lookups.values() if lookup.artifact})
    for name in artifacts:
        if name not in named:
            cause = f'no lookup table of the pipeline is the artifact "{name}"{did_you_mean(name, named)}'
            raise Refused(cause, op="--artifact", hint=f"its artifacts: {', '.join(named) or 'none'}")
    missing = [name for name in named if name not in artifacts]
    if missing:
        hint = " ".join(f"--artifact {name}=FILE.csv" for name in missing)
        raise Refused(f"it looks things up in {', '.join(missing)}", op=f"run {spec.pipeline}", hint=f"give {hint}")
    tables = {}
    for name, file in artifacts.items():
        path = Path(file).absolute()
        try:
            with path.open("rb") as opened:
                tables[name] = (str(path), f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}")
        except OSError as error:
            raise TidewireError(error.strerror or str(error), op="read", place=file, hint="name a CSV file") from None
    return tables


async def _run(config: AgentConfig, job: _Job) -> int:
    version, key = job.version, _local_key(config.data_dir)
    store = Store.open(config.data_dir, NODE, key, config.buffer_bytes, config.quarantine_bytes)
    secrets = SecretStore(config.data_dir)
    actions = Actions(store, Policy.load(config.data_dir), secrets)
    try:
        services = Services(
            store,
            Supervisor(config.runner_memory_bytes),
            actions,
            Policy.load(config.data_dir),
            NodeInfo(NODE, os.uname().nodename, job.labels),
            config.data_dir,
            secrets,
            config.commit_s,
        )
        with store.telling_damage():
            await actions.resume()
            outcome = await _run_host(services, job, config.data_dir / "lake", key)
            await actions.idle()
        if outcome.kind != "stopped":
            raise TidewireError(outcome.reason, op=f"run {version.pipeline}", hint=outcome.hint)
        await _report(store, version, config.data_dir / "lake", json_output=job.json_output)
        if outcome.reason:
            raise TidewireError(outcome.reason, op=f"run {version.pipeline}", hint="start it again: it goes on where it stopped")
    finally:
        await actions.close()
        store.close()
    return 0


async def _run_host(services: Services, job: _Job, lake: Path, key: Key) -> Outcome:
    version = job.version
    await services.store.put_artifact(Artifact.sign(PIPELINE_VERSION, version.canonical, key), 0)
    await Keeper(services, version, job.params, lambda: None).drain_other_version()
    host = PipelineHost(services, version, job.params, mode="until_eof" if job.until_eof else "follow", tables=job.tables)
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def stop() -> None:
        interrupted.set()
        asyncio.ensure_future(host.stop())  # noqa: RUF006 - `host.run` ends with it

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    is_watched = not job.until_eof and not job.json_output and sys.stdout.isatty()
    watching = asyncio.create_task(_watch(host)) if is_watched else None
    async with _draining(services.store, lake):
        outcome = await host.run()
    if watching is not None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    if job.until_eof and interrupted.is_set() and outcome.kind == "stopped":
        return replace(outcome, reason=INTERRUPTED)
    return outcome


@asynccontextmanager
async def _draining(store: Store, lake: Path) -> AsyncIterator[None]:
    """Within it, what is committed moves from the outbox into Parquet files; at its end, all that is left."""
    more, ended = asyncio.Event(), False

    async def drain() -> None:
        while True:
            more.clear()
            while batch := await store.pending_segments(DRAIN_BYTES):
                await store.confirm(await asyncio.to_thread(_write_batch, batch, lake))
            if ended:
                return
            await more.wait()

    store.on_commit(more.set)
    task = asyncio.create_task(drain())
    try:
        yield
    finally:
        ended = True
        more.set()
        await task


def _write_batch(batch: list[Pending], lake: Path) -> list[Mark]:
    marks = []
    for (run, stream), group in groupby(batch, key=lambda pending: (pending.run, pending.stream)):
        segments = list(group)
        _write_file(segments, lake)
        marks.append(Mark(run, stream, segments[-1].seq, segments[-1].digest))
    return marks


def _write_file(segments: list[Pending], lake: Path) -> None:
    """One file of the segments that no earlier file holds. A run has one table, so its files lie in one folder."""
    table_name = segments[0].header().table.removesuffix(LOG)  # here every revision of a window lies in its table
    if not table_name:
        return
    folder = lake / table_name
    folder.mkdir(parents=True, exist_ok=True)
    run = segments[0].run
    held = max((int(m["last"]) for f in folder.iterdir() if (m := _FILE.match(f.name)) and m["run"] == run), default=0)
    new = [s for s in segments if s.seq > held and s.header().rows]
    if not new:
        return
    for _, alike in groupby(((s, _with_lineage(s)) for s in new), key=lambda each: str(each[1].schema)):
        members = list(alike)  # another version may have made a column of another type
        _write_rows(folder, [s for s, _ in members], pa.concat_tables([rows for _, rows in members]))


def _write_rows(folder: Path, new: list[Pending], rows: pa.Table) -> None:
    run = new[0].run
    target = folder / f"{run}-{new[0].seq:08d}-{new[-1].seq:08d}.parquet"
    half = target.with_suffix(".part")
    pq.write_table(rows, half, compression="zstd")
    with half.open("rb") as written:
        os.fsync(written.fileno())
    half.replace(target)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _with_lineage(pending: Pending) -> pa.Table:
    header = pending.header()
    rows = decode_rows(pending.payload())
    n = rows.num_rows
    lineage: dict[str, Any] = {
        "_node": header.node,
        "_run": header.run,
        "_stream": header.stream,
        "_seq": header.seq,
        "_pipeline": header.pipeline,
        "_version": header.version,
        "_params": header.params,
        "_clock": header.clock,
    }
    for name, value in lineage.items():
        rows = rows.append_column(name, pa.repeat(value, n))
    return rows.append_column("_row", pa.array(range(n), pa.int32()))


def _local_key(data_dir: Path) -> Key:
    """The key that signs this machine's segments, made once."""
    path = data_dir / "standalone.key"
    make_private_dir(data_dir)
    if not path.exists():
        write_private(path, Key.from_entropy(secrets.token_bytes(32)).seed.encode())
    return Key(path.read_text().strip())


@dataclass(frozen=True)
class Report:
    """What went in, what ran, what came out (I4)."""

    pipeline: str
    digest: str
    sources: Mapping[str, Mapping[str, int]]
    streams: Mapping[str, Mapping[str, int]]
    tables: Mapping[str, int]  # rows in Parquet
    reasons: Mapping[str, int]  # the most frequent in quarantine
    open_incidents: int
    incidents: int

    def balanced(self) -> bool:
        """Whether both ledgers add up, and every row that a sink wrote lies in its table."""
        return all(_source_balances(c) for c in self.sources.values()) and all(
            c.get("offered", 0) == c.get("not_selected", 0) + c.get("written", 0) for c in self.streams.values() if "offered" in c
        )


def _source_balances(counts: Mapping[str, int]) -> bool:
    filtered = sum(n for name, n in counts.items() if name.startswith(_DROPPED))
    made = counts["quarantined"] + counts["dropped_invalid"] + filtered + counts["accepted"]
    return counts["read"] == counts["undecodable"] + counts["made"] and counts["made"] == made


async def _report(store: Store, version: PipelineVersion, lake: Path, *, json_output: bool) -> None:
    checkpoint = await store.checkpoint(version.pipeline)
    ledger = checkpoint.ledger or {}
    tables = dict(_count_tables(lake))
    report = Report(
        version.pipeline,
        version.digest,
        ledger.get("sources", {}),
        ledger.get("streams", {}),
        tables,
        _top_reasons(lake / "quarantine"),
        len(await store.incidents()),
        ledger.get("streams", {}).get("_incidents", {}).get("written", 0),
    )
    if json_output:
        sys.stdout.write(json.dumps({**vars(report), "balanced": report.balanced()}) + "\n")
    else:
        _print_report(report, lake)


def _count_tables(lake: Path) -> Iterator[tuple[str, int]]:
    for folder in sorted(lake.glob("*")):
        yield folder.name, sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))


def _top_reasons(quarantine: Path) -> dict[str, int]:
    """The most frequent kinds of reasons, values left out: `temp_c: "x" is not a double` counts with all its like."""
    counts: Counter[str] = Counter()
    for file in quarantine.glob("*.parquet"):
        for reasons in pq.read_table(file, columns=["reasons"], use_threads=False)["reasons"].to_pylist():
            counts.update(re.sub(r'"[^"]*"|(?<=: )-?[\d.]+(?= is)', "...", reason) for reason in reasons)
    return dict(counts.most_common(REASONS_SHOWN))


def _print_report(report: Report, lake: Path) -> None:
    console = Console()
    for name, counts in report.sources.items():
        parts = [f"undecodable {counts['undecodable']}", f"quarantined {counts['quarantined']}", f"accepted {counts['accepted']}"]
        parts += [f"{_step_name(k)} {n}" for k, n in counts.items() if k.startswith(_DROPPED)]
        if counts["dropped_invalid"]:
            parts.append(f"dropped as invalid {counts['dropped_invalid']}")
        console.print(f"source {name}: read {counts['read']} = {' + '.join(parts)}", highlight=False)
    for name, counts in report.streams.items():
        console.print(f"stream {name}: " + ", ".join(f"{k} {n}" for k, n in counts.items()), highlight=False)
    for table, rows in report.tables.items():
        console.print(f"table  {lake / table}: {rows} rows", highlight=False, soft_wrap=True)
    for reason, count in report.reasons.items():
        console.print(f"quarantined {count} times: {reason}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"incidents open: {report.open_incidents}", highlight=False)
    verdict, style = ("ledgers balanced", "green") if report.balanced() else ("LEDGERS DO NOT BALANCE", "red")
    console.print(verdict, style=style)


def _step_name(count: str) -> str:
    word, _, step = count.partition(".")
    return f"{'filtered (NULL)' if word == 'filtered_null' else word} by steps[{step}]"


async def _watch(host: PipelineHost) -> None:
    """A one-screen table, redrawn twice a second."""
    with Live(console=Console(), refresh_per_second=2, transient=True) as live:
        while True:
            live.update(_screen(host))
            await asyncio.sleep(0.5)


def _screen(host: PipelineHost) -> Table:
    table = Table(title=f"{host.version.pipeline}  {host.version.digest[7:19]}  Ctrl-C ends", title_justify="left")
    table.add_column("what")
    table.add_column("now", justify="right")
    for name in ("read", "undecodable", "quarantined", "filtered", "accepted", "open_incidents"):
        table.add_row(name.replace("_", " "), str(host.stats.get(name, 0)))
    for note in list(host.notes)[-3:]:
        table.add_row(str(note.get("level", "note")), str(note.get("text", "")))
    return table
