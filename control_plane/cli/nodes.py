"""`tidewire join-token`, `tidewire nodes`, `tidewire why`: who is in the fleet, and what each runs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, pairs, quoted, seconds, who, write

app = typer.Typer()
tokens = typer.Typer(no_args_is_help=True, help="Let new nodes in.")
nodes = typer.Typer(invoke_without_command=True, help="The nodes: what each should run and does.")
app.add_typer(tokens, name="join-token")
app.add_typer(nodes, name="nodes")


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
    body = {"labels": pairs(label or []), "uses": uses, "ttl_s": seconds(ttl), **who(reason, dry_run)}
    made = client().post("/v1/join-tokens", body)
    if as_json:
        output.print_json(made)
    elif dry_run:
        print(f"would make a token for {uses} node(s), valid {ttl}; nothing changed")
    else:
        print(f"# for {uses} node(s), valid {ttl}; on the node: tidewire-agent join TOKEN", file=sys.stderr)
        print(made["token"])


@nodes.callback()
def nodes_list(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were removed.")] = False,
    as_json: Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    found = client().get("/v1/nodes", all="1" if all_ else None)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (row["name"], _labels(row["labels"]), row["contact"], _running(row["pipelines"]), row["converged"] or row["why"])
        for row in found["nodes"]
    ]
    rows += [
        (f"{row['name']} ({row['id']})", _labels(row["labels"]), f"removed {row['at']}", "unknown", _by(row))
        for row in found.get("removed", ())
    ]
    output.print_table(("NODE", "LABELS", "CONTACT", "RUNNING", "CONVERGED"), rows)


@nodes.command("show")
def nodes_show(name: str, as_json: Json = False) -> None:
    """Everything about one node."""
    row = client().get(f"/v1/nodes/{quoted(name)}")
    if as_json:
        output.print_json(row)
        return
    lines = [["node", f"{row['name']} ({row['id']}), joined {row['joined_at']}"], ["labels", _labels(row["labels"]) or "none"]]
    lines += [["contact", row["contact"]], ["manifest", f"generation {row['generation']}, received {row['received_generation']}"]]
    lines += [["buffer", _buffer(row["backlog"])]] if row["backlog"] else []
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
    put = pairs([word for word in labels if not (word.endswith("-") and "=" not in word)])
    write(f"/v1/nodes/{quoted(name)}/labels", {"labels": {**put, **removed}}, reason, dry_run, as_json)


@nodes.command("replace")
def nodes_replace(
    name: str,
    ttl: Annotated[str, typer.Option(help="How long the token lives, such as 8h or 7d.")] = "8h",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a token for a new card that takes a node's place: its name, labels and pipelines."""
    made = client().post(f"/v1/nodes/{quoted(name)}/replace", {"ttl_s": seconds(ttl), **who(reason, dry_run)})
    if as_json:
        output.print_json(made)
        return
    print("\n".join(map(output.plain, made["summary"])), file=sys.stderr)
    if dry_run:
        print("dry run: nothing changed")
    else:
        print(f"# for one node, valid {ttl}; on the new card: tidewire-agent join TOKEN", file=sys.stderr)
        print(made["token"])


@nodes.command("remove")
def nodes_remove(name: str, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Let a node in no more: its login is revoked, its name is free, what it sent stays."""
    write(f"/v1/nodes/{quoted(name)}/remove", {}, reason, dry_run, as_json)


@app.command()
def recover(reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Go on after this control plane was restored from a backup: what it issues now beats what nodes hold."""
    write("/v1/recover", {}, reason, dry_run, as_json)


@app.command()
def why(
    subject: Annotated[str, typer.Argument(metavar="NODE|PIPELINE")],
    pipeline: Annotated[str | None, typer.Argument(help="With a node: one pipeline on it.")] = None,
    as_json: Json = False,
) -> None:
    """Why a node runs what it runs: cause first, what to do last."""
    answer = client().get(f"/v1/why/{quoted(subject)}", pipeline=pipeline)
    if as_json:
        output.print_json(answer)
        return
    output.print_lines([*answer["lines"], ["next", answer["next"]]])


def _by(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (f"by {row['by']}" if row["by"] else "", row["reason"])))


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


def _buffer(backlog: dict[str, int]) -> str:
    text = f"{backlog['rows']:,} rows wait, {backlog['bytes']:,} bytes"
    text += f", {backlog['lost_rows']:,} rows are lost" if backlog["lost_rows"] else ""
    return text + (f"; at the measured rate it lasts {backlog['lasts_s'] / 3600:,.1f} h" if backlog["lasts_s"] >= 0 else "")
