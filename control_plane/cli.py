"""`tidewire`: thin. It reads words, calls the server over HTTP, prints. Nothing is decided here."""

from __future__ import annotations

import getpass
import logging
import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from control_plane import output
from control_plane.client import Client
from control_plane.config import API_PORT, LOOPBACK, NATS_PORT, ControlConfig, default_data_dir
from pipelines.contract.duration import parse_duration
from pipelines.contract.errors import Problem, SpecError, TidewireError, WrongUsage

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
tokens = typer.Typer(no_args_is_help=True, help="Let new nodes in.")
nodes = typer.Typer(invoke_without_command=True, help="The nodes: what each should run and does.")
incidents = typer.Typer(invoke_without_command=True, help="What was raised, who knows it, who acknowledged it.")
app.add_typer(tokens, name="join-token")
app.add_typer(nodes, name="nodes")
app.add_typer(incidents, name="incidents")

Select = Annotated[str, typer.Option("--select", "-s", help="Which nodes: site=lyon,line in (a,b),!spare or name=pi17 or all.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the change.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Default: $TIDEWIRE_HOME or ~/.tidewire.")]
Params = Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, may repeat.")]


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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run the control plane here until Ctrl-C."""
    from control_plane.server import ControlPlane, configure_logs, serve

    configure_logs(logging.DEBUG if verbose else logging.INFO)
    config = ControlConfig(data_dir or default_data_dir(), api_port, nats_port, listen, public_url)

    def ready(plane: ControlPlane) -> None:
        print(f"control plane is up: nodes dial {plane.nats_url}, commands use {plane.api_url}, data in {config.data_dir}")
        print("  next: tidewire join-token create", flush=True)

    serve(config, ready)


@app.command()
def demo(
    json_output: Json = False,
    fast: Annotated[bool, typer.Option("--fast", help="Shorter, for tests.")] = False,
) -> None:
    """Three agents, one control plane, one cut link: the whole story on this machine."""
    from control_plane.demo import run

    raise typer.Exit(run(json_output=json_output, fast=fast))


@tokens.command("create")
def token_create(
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="KEY=VALUE of the nodes that use it, may repeat.")
    ] = None,
    uses: Annotated[int, typer.Option(min=1, help="How many nodes may use it.")] = 1,
    ttl: Annotated[str, typer.Option(help="How long it lives, such as 8h or 7d.")] = "8h",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a secret that lets nodes join."""
    body = {"labels": _pairs(label or []), "uses": uses, "ttl_s": _seconds(ttl), **_who(reason, dry_run)}
    made = _client().post("/v1/join-tokens", body)
    if as_json:
        output.print_json(made)
    elif dry_run:
        print(f"would make a token for {uses} node(s), valid {ttl}; nothing changed")
    else:
        print(f"# for {uses} node(s), valid {ttl}; on the node: tidewire-agent join TOKEN", file=sys.stderr)
        print(made["token"])


@app.command()
def validate(files: Annotated[list[Path], typer.Argument(help="Pipeline files.")], as_json: Json = False) -> None:
    """Check pipeline files here, without a server. Every problem is printed."""
    from pipelines.engine.plan import load_checked  # DuckDB and Arrow, which no other command needs here

    problems: list[Problem] = []
    for file in files:
        try:
            load_checked(_read(file), str(file))
        except SpecError as error:
            problems += error.problems
    if as_json:
        output.print_json({"problems": [{name: getattr(p, name) for name in p.__slots__} for p in problems]})
    elif not problems:
        print(f"{len(files)} file{'' if len(files) == 1 else 's'} fine")
    if problems and not as_json:
        raise SpecError(problems)
    raise typer.Exit(1 if problems else 0)


@app.command("apply")
def apply_(
    path: Annotated[Path, typer.Argument(help="A pipeline file, or a directory of *.yaml.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Register new versions of pipelines: all of them, or none when one has a problem."""
    files = sorted(f for f in path.glob("*.yaml") if not f.name.endswith(".cases.yaml")) if path.is_dir() else [path]
    if not files:
        raise TidewireError("no *.yaml in it", op="apply", place=str(path), hint="name a pipeline file or a directory of them")
    body = {"files": [{"name": str(file), "text": _read(file)} for file in files], **_who(reason, dry_run)}
    done = _client().post("/v1/versions", body)
    if as_json:
        output.print_json(done)
        return
    for row in done["versions"]:
        what = f"version {row['number']}" if row["new"] else f"unchanged, it is version {row['number']}"
        print(
            f"{row['pipeline']}: {what} ({row['digest'][:19]})" + (" (not registered: dry run)" if dry_run and row["new"] else "")
        )
    if not dry_run and any(row["new"] for row in done["versions"]):
        print(f"  next: tidewire deploy {done['versions'][0]['pipeline']} --select all")


@app.command()
def deploy(
    reference: Annotated[str, typer.Argument(metavar="NAME[@N]", help="A pipeline; without @N its newest version.")],
    select: Select,
    param: Params = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take this target away instead.")] = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Have the selected nodes run a version; nodes that join later too."""
    body = {"reference": reference, "select": select, "params": _pairs(param or []), "remove": remove}
    _write("/v1/deployments", body, reason, dry_run, as_json)


@app.command("set")
def set_(
    pipeline: Annotated[str, typer.Argument(help="A pipeline.")],
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Parameters.")],
    select: Select,
    force: Annotated[bool, typer.Option("--force", help="Beat on-site overrides made before this.")] = False,
    lock: Annotated[bool, typer.Option("--lock", help="Forbid on-site overrides.")] = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set parameters on the selected nodes, without a new version; nodes that join later get them too."""
    body = {"pipeline": pipeline, "params": _pairs(values), "select": select, "force": force, "lock": lock}
    _write("/v1/params", body, reason, dry_run, as_json)


@app.command()
def unset(
    pipeline: Annotated[str, typer.Argument(help="A pipeline.")],
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Parameters.")],
    select: Select,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take back what `set` set for the same selector."""
    body = {"pipeline": pipeline, "names": [name.partition("=")[0] for name in names], "select": select}
    _write("/v1/params/unset", body, reason, dry_run, as_json)


@app.command()
def pipelines(as_json: Json = False) -> None:
    """The pipelines: newest version, where deployed, on how many nodes."""
    found = _client().get("/v1/pipelines")
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            row["pipeline"],
            row["newest"],
            "; ".join(f"{t['select']} -> {t['version']}" for t in row["targets"]) or "deployed nowhere",
            ", ".join(f"{count} {phase}" for phase, count in row["nodes"].items()) or "0",
            row["description"],
        )
        for row in found["pipelines"]
    ]
    output.print_table(("PIPELINE", "NEWEST", "TARGETS", "NODES", "DESCRIPTION"), rows)


@nodes.callback()
def nodes_list(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    found = _client().get("/v1/nodes")
    if as_json:
        output.print_json(found)
        return
    rows = [
        (row["name"], _labels(row["labels"]), row["contact"], _running(row["pipelines"]), row["converged"] or row["why"])
        for row in found["nodes"]
    ]
    output.print_table(("NODE", "LABELS", "CONTACT", "RUNNING", "CONVERGED"), rows)


@nodes.command("show")
def nodes_show(name: str, as_json: Json = False) -> None:
    """Everything about one node."""
    row = _client().get(f"/v1/nodes/{_quoted(name)}")
    if as_json:
        output.print_json(row)
        return
    lines = [["node", f"{row['name']} ({row['id']}), joined {row['joined_at']}"], ["labels", _labels(row["labels"]) or "none"]]
    lines += [["contact", row["contact"]], ["manifest", f"generation {row['generation']}, received {row['received_generation']}"]]
    lines += [["facts", ", ".join(f"{key} {value}" for key, value in row["facts"].items()) or "none"]]
    lines += [["runs", f"{p['pipeline']}: {_versions(p)}{': ' + p['why'] if p['why'] else ''}"] for p in row["pipelines"]]
    lines += [
        ["note", f"{n['kind']} {n['subject']} {n['body'] or ''} by {n['by'] or n['author']} {n['reason']}"] for n in row["notes"]
    ]
    lines += [["audit", f"{a['at']} {a['action']} {a['detail']} {a['by']}".rstrip()] for a in row["audit"]]
    output.print_lines(lines)


@nodes.command("label")
def nodes_label(
    name: str,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="KEY- removes one.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put or remove labels; what the node should run follows."""
    removed = {word[:-1]: None for word in labels if word.endswith("-") and "=" not in word}
    put = _pairs([word for word in labels if not (word.endswith("-") and "=" not in word)])
    _write(f"/v1/nodes/{_quoted(name)}/labels", {"labels": {**put, **removed}}, reason, dry_run, as_json)


@app.command()
def why(
    subject: Annotated[str, typer.Argument(metavar="NODE|PIPELINE")],
    pipeline: Annotated[str | None, typer.Argument(help="With a node: one pipeline on it.")] = None,
    as_json: Json = False,
) -> None:
    """Why a node runs what it runs: cause first, what to do last."""
    answer = _client().get(f"/v1/why/{_quoted(subject)}", pipeline=pipeline)
    if as_json:
        output.print_json(answer)
        return
    output.print_lines([*answer["lines"], ["next", answer["next"]]])


@incidents.callback()
def incidents_list(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are cleared and acknowledged.")] = False,
    as_json: Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    found = [row for row in _client().get("/v1/incidents")["incidents"] if everything or row["needs_somebody"]]
    if as_json:
        output.print_json({"incidents": found})
        return
    if not found:
        print("no incidents" if everything else "no incident needs anybody (those that are over: tidewire incidents --all)")
        return
    rows = [(r["id"], r["raised_at"], r["node"], r["pipeline"], r["severity"], r["state"], r["message"]) for r in found]
    output.print_table(("INCIDENT", "RAISED", "NODE", "PIPELINE", "SEVERITY", "STATE", "MESSAGE"), rows)


@incidents.command("show")
def incidents_show(incident: str, as_json: Json = False) -> None:
    """One incident: what happened, who did what, which side knows it."""
    row = _client().get(f"/v1/incidents/{_quoted(incident)}")
    if as_json:
        output.print_json(row)
        return
    lines = [["incident", row["id"]], ["state", row["state"]], ["node", row["node"]], ["message", row["message"]]]
    lines += [["trigger", f"{row['pipeline']} {row['trigger']} {row['group']} ({row['severity']})"]]
    for step in row["steps"]:
        who = " ".join(part for part in (f"by {step['by']}" if step["by"] else "", step["reason"]) if part)
        known = "known to node and control plane" if len(step["known_on"]) > 1 else "the node does not know yet"
        lines.append(["history", f"{step['at']} {' '.join((step['transition'], who)).strip()}; {known}"])
    output.print_lines(lines)


@incidents.command("ack")
def incidents_ack(incident: str, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Acknowledge an incident. It reaches the node as soon as that is in contact."""
    done = _client().post(f"/v1/incidents/{_quoted(incident)}/acknowledge", _who(reason, dry_run))
    if as_json:
        output.print_json(done)
    elif not done["changed"]:
        print(f"{done['incident']} on {done['node']} was acknowledged already")
    else:
        verb = "would acknowledge" if dry_run else "acknowledged"
        print(output.plain(f"{verb} {done['incident']} on {done['node']}: {done['message']}"))


@app.command()
def query(
    sql: str,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most rows to print.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds before it is stopped.")] = 60,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """One SELECT over the lake."""
    result = _client().post("/v1/query", {"sql": sql, "limit": limit, "timeout_s": float(timeout)})
    if as_json:
        output.print_json([dict(zip(result["columns"], row, strict=True)) for row in result["rows"]])
    else:
        (output.print_csv if as_csv else output.print_table)(result["columns"], result["rows"])
    if result["truncated"]:
        print(f"only the first {limit} rows; more with --limit", file=sys.stderr)


@app.command()
def audit(as_json: Json = False) -> None:
    """Who did what, newest first; and security events."""
    found = _client().get("/v1/audit")
    if as_json:
        output.print_json(found)
        return
    rows = [(r["at"], r["by"], r["action"], r["subject"], r["detail"], r["reason"]) for r in found["audit"]]
    output.print_table(("AT", "BY", "ACTION", "SUBJECT", "DETAIL", "REASON"), rows)


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
    except ModuleNotFoundError as error:
        missing = f"the control plane's part of Tidewire is not installed here (no {error.name})"
        _fail([missing, "  fix: pip install 'tidewire[control]'"], 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _usage_lines(error: typer.TyperException) -> list[str]:
    """typer ships its own click, whose usage errors it gives no public names."""
    message, context = getattr(error, "format_message", error.__str__)(), getattr(error, "ctx", None)
    if message.startswith("Usage:"):
        return [message]
    usage = context.get_usage().removeprefix("Usage: ") if context else "tidewire --help"
    return [message, f"  fix: {usage}"]


def _fail(lines: list[str], status: int) -> None:
    for line in lines:
        print(*map(output.plain, line.split("\n")), sep="\n", file=sys.stderr)
    sys.exit(status)


def _write(path: str, body: dict[str, Any], reason: str, dry_run: bool, as_json: bool) -> None:
    """Say what the write touches, then do it."""
    client = _client()
    plan = client.post(path, {**body, **_who(reason, True)})
    if not as_json:
        print("\n".join(map(output.plain, plan["summary"])))
    if not dry_run:
        plan = client.post(path, {**body, **_who(reason, False)})
    if as_json:
        output.print_json(plan)
    else:
        print("dry run: nothing changed" if dry_run else "done")


def _quoted(name: str) -> str:
    """As one part of a path, whatever is in it."""
    return quote(name, safe="").replace(".", "%2E")


def _client() -> Client:
    return Client(default_data_dir())


def _who(reason: str, dry_run: bool) -> dict[str, Any]:
    return {"by": os.environ.get("TIDEWIRE_USER") or _login(), "reason": reason, "dry_run": dry_run}


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _pairs(words: list[str]) -> dict[str, str]:
    wrong = next((word for word in words if "=" not in word or word.startswith("=")), None)
    if wrong is not None:
        raise WrongUsage(f"{wrong!r} is not NAME=VALUE", hint="write NAME=VALUE without spaces")
    return dict(word.split("=", 1) for word in words)


def _seconds(text: str) -> int:
    try:
        return max(1, parse_duration(text) // 1_000_000)
    except ValueError as error:
        raise WrongUsage(str(error)) from None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise TidewireError(cause or str(error), op="read", place=str(file), hint="name a pipeline file") from None


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _running(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['pipeline']} {_versions(row)}" for row in rows) or "nothing"


def _versions(row: dict[str, Any]) -> str:
    running = f"v{row['running']} {row['phase']}" if row["running"] else "not running"
    return (
        running
        if row["running"] == row["wanted"]
        else f"{running} (wanted {'v' + str(row['wanted']) if row['wanted'] else 'nothing'})"
    )


if __name__ == "__main__":
    main()
