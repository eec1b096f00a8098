"""`tidewire tap`, `logs`, `requests` and `query --fleet`: what nodes hold, asked of the nodes themselves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, quoted, who
from pipelines.contract.duration import parse_duration
from pipelines.contract.errors import OutOfReach, TidewireError, WrongUsage

if TYPE_CHECKING:
    from control_plane.client import Client

POLL_S = 0.3
_GRACE_S = 30.0  # until a node learns of it, and its answer is in the lake
app = typer.Typer()
requests = typer.Typer(invoke_without_command=True, help="What nodes are asked, and who has answered.")
app.add_typer(requests, name="requests")


@app.command()
def tap(
    node: str,
    pipeline: str,
    during: Annotated[str, typer.Option("--for", help="How long, at most 10m.")] = "30s",
    rows: Annotated[int, typer.Option(min=1, max=10_000, help="As many at most.")] = 100,
    where: Annotated[str, typer.Option(help="SQL: only rows for which it holds.")] = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a row a line.")] = False,
) -> None:
    """Rows of a pipeline on a node, as it commits them, until the time is over or there are enough."""
    for_s = seconds(during, "--for")
    body = {"node": node, "pipeline": pipeline, "where": where, "max_s": for_s, "max_rows": rows}
    server = client()
    asked = _ask(server, "tap", body, reason, dry_run)
    if asked is None:
        return
    try:
        for row in _follow(server, asked["id"], for_s + _GRACE_S):
            print(output.plain(json.dumps(row, ensure_ascii=False) if as_json else _one_line(row)), flush=True)
    except BaseException:
        _cancel(server, asked["id"])
        raise
    _end(server, asked["id"], _GRACE_S)


@app.command()
def logs(
    node: str,
    lines: Annotated[int, typer.Option(min=1, max=2000, help="The last so many.")] = 200,
    pipeline: Annotated[str, typer.Option(help="Only lines about this pipeline.")] = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """The last lines of a node's agent, what its runners said among them; since the agent started."""
    server = client()
    asked = _ask(server, "logs", {"node": node, "pipeline": pipeline, "max_rows": lines}, reason, dry_run)
    if asked is None:
        return
    try:
        found = list(_follow(server, asked["id"], _GRACE_S))
    except BaseException:
        _cancel(server, asked["id"])
        raise
    if as_json:
        output.print_json(found)
    for line in () if as_json else found:
        head = " ".join(str(line.get(name, "")) for name in ("at", "level", "event"))
        print(output.plain(" ".join([head, *(f"{k}={v}" for k, v in line.items() if k not in ("at", "level", "event"))])))
    _end(server, asked["id"], 0)


@requests.callback()
def requests_list(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    found = client().get("/v1/requests")["requests"]
    if as_json:
        output.print_json({"requests": found})
        return
    rows = [(r["id"], r["kind"], r["at"], r["by"], r["select"], r["closed"] or f"until {r['until']}", r["says"]) for r in found]
    output.print_table(("REQUEST", "KIND", "AT", "BY", "NODES", "OPEN", "ANSWERS"), rows)


@requests.command("show")
def requests_show(request: str, as_json: Json = False) -> None:
    """One request: who has answered what so far, and who has not."""
    found = client().get(f"/v1/requests/{quoted(request)}", after="0")
    if as_json:
        output.print_json(found)
        return
    what = ", ".join(f"{name} {value}" for name, value in found["body"].items() if value)
    lines = [["request", f"{found['id']}: {found['kind']} {what}"], ["nodes", found["select"]]]
    lines += [["asked", f"{found['at']} by {found['by'] or 'somebody'} {found['reason']}"]]
    lines += [["open", f"no: {found['closed']}" if found["closed"] else f"until {found['until']}"], ["answers", found["says"]]]
    lines += [[n["node"], f"{n['state']} {n['rows']} rows {n['note']}".strip()] for n in found["nodes"]]
    output.print_lines(lines)
    print_rows(found["rows"])


@requests.command("cancel")
def requests_cancel(request: str, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Ask no node any more; one that works on it stops at once. What came so far stays."""
    done = client().post(f"/v1/requests/{quoted(request)}/cancel", who(reason, dry_run))
    if as_json:
        output.print_json(done)
    elif not done["changed"]:
        print(f"{done['id']} is open no more: {done['closed']}")
    else:
        print(f"{'would cancel' if dry_run else 'cancelled'} {done['id']}")


def query_fleet(
    sql: str, select: str, wait_s: float, limit: int, timeout_s: float, reason: str, *, dry_run: bool, form: str
) -> None:
    """`form` is table, json or csv. Exit status 0 when all nodes in contact answered, 3 when none did, else 1."""
    server = client()
    body = {"sql": sql, "select": select, "max_rows": limit, "max_s": timeout_s}
    asked = _ask(server, "query", body, reason, dry_run)
    if asked is None:
        return
    name, deadline = asked["id"], time.monotonic() + wait_s
    while not server.get(f"/v1/requests/{name}")["settled"] and time.monotonic() < deadline:
        time.sleep(POLL_S)
    found = server.get(f"/v1/requests/{name}", after="0")
    if form == "json":
        output.print_json(found)
    else:
        print_rows(found["rows"], as_csv=form == "csv")
    for note, nodes in _by_note(found["nodes"]).items():
        print(output.plain(f"{', '.join(nodes)}: {note}"), file=sys.stderr)
    see = "" if found["closed"] else f"; see: tidewire requests show {name}"
    print(output.plain(found["says"] + see), file=sys.stderr)
    states = [node["state"] for node in found["nodes"]]
    if "done" not in states:
        raise typer.Exit(1 if {"failed", "refused"} & set(states) else 3)
    if {"failed", "refused", "waiting"} & set(states):
        raise typer.Exit(1)


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_csv: bool = False) -> None:
    """As one table whose first column is the node."""
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row["row"]))
    cells = [[row["node"], *(row["row"].get(column) for column in columns)] for row in rows]
    (output.print_csv if as_csv else output.print_table)(["node", *("_node" if c == "node" else c for c in columns)], cells)


def _by_note(nodes: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in nodes:
        if node["note"] and node["state"] != "missing":
            found.setdefault(f"{node['state']}: {node['note']}", []).append(node["node"])
    return found


def _ask(server: Client, kind: str, body: dict[str, Any], reason: str, dry_run: bool) -> dict[str, Any] | None:
    """Say which nodes it asks, then ask them."""
    plan = server.post(f"/v1/requests/{kind}", {**body, **who(reason, True)})
    print("\n".join(map(output.plain, plan["summary"])), file=sys.stderr)
    if dry_run:
        print("dry run: nothing changed", file=sys.stderr)
        return None
    asked: dict[str, Any] = server.post(f"/v1/requests/{kind}", {**body, **who(reason, False)})
    return asked


def _follow(server: Client, name: str, wait_s: float) -> Iterator[dict[str, Any]]:
    """Rows of the one node as they come, until its answer is over or the time is."""
    after, deadline = 0, time.monotonic() + wait_s
    while True:
        found = server.get(f"/v1/requests/{name}", after=str(after))
        for row in found["rows"]:
            after = row["n"]
            yield row["row"]
        is_over = found["nodes"][0]["state"] not in ("waiting", "missing") or found["closed"]
        if (is_over and after >= found["nodes"][0]["rows"]) or time.monotonic() >= deadline:
            return
        time.sleep(POLL_S)


def _end(server: Client, name: str, wait_s: float) -> None:
    """Say how it ended. Raises what a script should notice."""
    (node,) = server.get(f"/v1/requests/{name}")["nodes"]
    if node["state"] in ("waiting", "missing"):
        _cancel(server, name)
        since = node["note"] or "in contact, but there was no answer in time"
        raise OutOfReach("no answer", place=node["node"], op="ask", hint=f"{since}; see: tidewire nodes show {node['node']}")
    if node["state"] != "done":
        raise TidewireError(node["note"], op=node["state"], place=node["node"])
    if node["note"]:
        print(output.plain(node["note"]), file=sys.stderr)


def _cancel(server: Client, name: str) -> None:
    """Nobody waits for it any more."""
    try:
        server.post(f"/v1/requests/{name}/cancel", who("nobody waits for it any more", False))
    except TidewireError:
        return  # its time will be over


def _one_line(row: Mapping[str, Any]) -> str:
    return " ".join(
        [str(row.get("_stream", "")), *(f"{name}={_value(value)}" for name, value in row.items() if name != "_stream")]
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)


def seconds(text: str, option: str) -> float:
    try:
        return parse_duration(text) / 1e6
    except ValueError as error:
        raise WrongUsage(str(error), place=option) from None
