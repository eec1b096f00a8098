"""`tidewire incidents`: what was raised, who knows it, and what people decide about it."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from control_plane import output
from control_plane.cli.common import DryRun, Json, Reason, client, quoted, write
from control_plane.times import parse_time
from pipelines.contract.duration import parse_duration
from pipelines.contract.errors import WrongUsage

app = typer.Typer()
incidents = typer.Typer(invoke_without_command=True, help="What was raised, who knows it, who acknowledged it.")
app.add_typer(incidents, name="incidents")

NodeName = Annotated[str, typer.Option("--node", help="Of this node: its name or id.")]
Pipeline = Annotated[str, typer.Option("--pipeline", help="Of this pipeline.")]
Severity = Annotated[str, typer.Option("--severity", help="critical, warning or info.")]
State = Annotated[str, typer.Option("--state", help="active, cleared, unacknowledged, acknowledged, shelved, chattering ..")]
Selected = Annotated[str, typer.Option("--select", "-s", help="Of these nodes: site=lyon,line in (a,b),!spare or all.")]
Since = Annotated[str, typer.Option("--since", help="What became known since 22:00, for 8h, or since 2026-11-21T14:00.")]
Force = Annotated[bool, typer.Option("--force", help="Also beat what somebody decided on site without knowing of this.")]
Subject = Annotated[str, typer.Argument(metavar="INCIDENT|PIPELINE/TRIGGER", help="One incident, or all of a trigger.")]
_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])\Z")


@incidents.callback()
def incidents_list(
    context: typer.Context,
    node: NodeName = "",
    pipeline: Pipeline = "",
    severity: Severity = "",
    state: State = "",
    select: Selected = "",
    since: Since = "",
    everything: Annotated[bool, typer.Option("--all", help="Also those that need nobody any more.")] = False,
    as_json: Json = False,
) -> None:
    """One line each: those that need somebody, or with --all, --state or --since all that fit."""
    if context.invoked_subcommand is not None:
        return
    words = _filter(node, pipeline, severity, state, select, since)
    found = _get("/v1/incidents", words | {"open_only": not (everything or state or since)})["incidents"]
    if as_json:
        output.print_json({"incidents": found})
        return
    if not found:
        print(
            "no incidents" if everything or words else "no incident needs anybody (those that are over: tidewire incidents --all)"
        )
        return
    columns = ("INCIDENT", "RAISED", "NODE", "TRIGGER", "SEVERITY", "STATE", "ACKED BY", "CLEARED", "LASTED", "REPEATS", "KNOWN")
    output.print_table((*columns, "MESSAGE"), [(*_line(row), row["message"]) for row in found])
    for name, words_ in sorted({(row["node"], row["as_of"]) for row in found if row["as_of"]}):
        print(output.plain(f"{name}: {words_}"))


def _line(row: Mapping[str, Any]) -> tuple[object, ...]:
    trigger = f"{row['pipeline']}/{row['trigger']}" if row["pipeline"] else row["trigger"]
    lasted = "" if row["lasted_s"] is None else _span(row["lasted_s"])
    known = "both" if row["known"] == "both sides" else row["known"] if row["origin"] == "control" else "not on the node yet"
    waits = "".join(f", {what} waits for the node" for what in row["waits"])
    return (
        row["id"],
        row["raised_at"],
        row["node"],
        trigger,
        row["severity"],
        row["state"] + waits,
        row["acked_by"],
        row["cleared_at"],
        lasted,
        row["repeats"] or "",
        known,
    )


@incidents.command("show")
def incidents_show(incident: str, as_json: Json = False) -> None:
    """One incident: what happened, who did what, which side knew it when."""
    row = client().get(f"/v1/incidents/{quoted(incident)}")
    if as_json:
        output.print_json(row)
        return
    lines = [["incident", row["id"]], ["state", row["state"]], ["node", row["node"]], ["message", row["message"]]]
    lines += [["as of", row["as_of"]]] if row["as_of"] else []
    lines += [["trigger", f"{row['pipeline']} {row['trigger']} {row['group']} ({row['severity']})"]]
    lines += [["waits", f"{what}: the node has not done it yet"] for what in row["waits"]]
    lines += [["history", _step(step)] for step in row["steps"]]
    output.print_lines(lines)


def _step(step: Mapping[str, Any]) -> str:
    shelf = f"for {_span(step['for_s'])}" if step["for_s"] else ""
    who = " ".join(part for part in (f"by {step['by']}" if step["by"] else "", shelf, step["reason"], step["text"]) if part)
    if len(step["known_on"]) < 2:
        known = "the node does not know yet" if step["known_on"] == ["control"] and not step["received_at"] else "known here"
    else:
        known = f"here since {step['received_at']}" if step["received_at"] else "known to node and control plane"
    return f"{step['at']} {' '.join((step['transition'], who)).strip()}; {known}"


@incidents.command("ack")
def incidents_ack(
    incident: Annotated[list[str] | None, typer.Argument(metavar="[INCIDENT]..", help="Ids, or how they begin.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All that are unacknowledged, or those that the options name.")
    ] = False,
    node: NodeName = "",
    pipeline: Pipeline = "",
    severity: Severity = "",
    select: Selected = "",
    since: Since = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Acknowledge incidents. It reaches their nodes as soon as those are in contact."""
    words = _filter(node, pipeline, severity, "", select, since)
    if bool(incident) == bool(words or everything):
        raise WrongUsage(
            "name incidents, or say --all, --select, --node ..", hint="tidewire incidents ack i3f2, or ack --all --dry-run"
        )
    body = {"incidents": incident or [], "filter": None if incident else words}
    write("/v1/incidents/acknowledge", body, reason, dry_run, as_json)


@incidents.command("reset")
def incidents_reset(incident: list[str], reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Let go of incidents that a latch holds after their cause is gone, as soon as the node is in contact."""
    write("/v1/incidents/reset", {"incidents": incident}, reason, dry_run, as_json)


@incidents.command("shelve")
def incidents_shelve(
    subject: Subject,
    for_: Annotated[str, typer.Option("--for", help="How long, in the node's own time, such as 8h.")],
    select: Selected = "",
    force: Force = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; whoever finds it shelved reads it.")] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """No actions, reminders and escalation for a while; it goes on being recorded, and is heard again after it."""
    body = {"subject": subject, "select": select, "for_s": _seconds(for_), "force": force}
    write("/v1/incidents/shelve", body, reason, dry_run, as_json)


@incidents.command("unshelve")
def incidents_unshelve(
    subject: Subject,
    select: Selected = "",
    force: Force = False,
    reason: Reason = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take a shelf back: what is active and unacknowledged is annunciated once again."""
    write("/v1/incidents/unshelve", {"subject": subject, "select": select, "force": force}, reason, dry_run, as_json)


@incidents.command("comment")
def incidents_comment(incident: str, text: str, reason: Reason = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Say something about an incident; it is read on both sides."""
    write("/v1/comments", {"subject": incident, "text": text}, reason, dry_run, as_json)


@incidents.command("stats")
def incidents_stats(
    since: Since = "24h",
    node: NodeName = "",
    pipeline: Pipeline = "",
    severity: Severity = "",
    select: Selected = "",
    as_json: Json = False,
) -> None:
    """How many per hour, which triggers most, what chatters, stands for a day or is shelved, how long until somebody looked."""
    told = _get("/v1/incident-stats", _filter(node, pipeline, severity, "", select, since))
    if as_json:
        output.print_json(told)
        return
    busiest, median = told["busiest_hour"], told["acknowledge_median_s"]
    most = f"; most in the hour from {busiest['hour']}: {busiest['raised']}" if busiest else ""
    lines = [["raised", f"{told['raised']} since {told['since']}, {told['per_hour']} per hour{most}"]]
    lines += [["open", f"{told['open']}, {told['unacknowledged']} unacknowledged"]]
    acked = f"{told['acknowledged']}" + (f", half of them within {_span(median)}" if median is not None else "")
    lines += [["acknowledged", acked]]
    for top in told["top"]:
        of = f"{top['pipeline']}/{top['trigger']}" if top["pipeline"] else top["trigger"]
        lines.append(["top", f"{top['raised']} ({top['share']:.0%}) {top['node']} {of}"])
    for word in ("chattering", "standing", "shelved", "suppressed"):
        rows = told[word]
        lines += [
            [word, f"{i['id']} {i['node']} {i['pipeline']} {i['trigger']} since {i['raised_at']}: {i['message']}"] for i in rows
        ]
        lines += [] if rows else [[word, "none" + (" for 24 h" if word == "standing" else "")]]
    output.print_lines(lines)


def _filter(node: str, pipeline: str, severity: str, state: str, select: str, since: str) -> dict[str, Any]:
    words = {"node": node, "pipeline": pipeline, "severity": severity, "state": state, "select": select}
    found: dict[str, Any] = {name: value for name, value in words.items() if value}
    return {**found, "since_us": since_us(since, time.time_ns() // 1000)} if since else found


def since_us(text: str, now_us: int) -> int:
    """Microseconds since 1970: `22:00` is the last time that the clock on the wall said so, here."""
    if found := _CLOCK.match(text):
        now = dt.datetime.fromtimestamp(now_us / 1e6).astimezone()
        at = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
        return int((at if at <= now else at - dt.timedelta(days=1)).timestamp() * 1e6)
    try:
        return parse_time(text, now_us)
    except ValueError as error:
        raise WrongUsage(str(error), hint="write --since 22:00, 8h or 2026-11-21T14:00") from None


def _get(path: str, words: Mapping[str, Any]) -> Any:
    return client().get(path, **{name: str(value) for name, value in words.items()})


def _seconds(text: str) -> float:
    try:
        return parse_duration(text) / 1e6
    except ValueError as error:
        raise WrongUsage(f"--for {text}: {error}", hint="write it like 30m, 8h or 2d") from None


def _span(seconds: float) -> str:
    """As people say it: `45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes % 60):02} min"
    return f"{int(hours // 24)} d {int(hours % 24)} h"
