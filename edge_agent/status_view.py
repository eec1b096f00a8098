"""`tidewire-agent status` for people: the facts of status.py as text and one table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge_agent import rate
from edge_agent.buffer_view import how_long, size

_PHASE_STYLES = {"running": "green", "failed": "bold red", "pending": "yellow", "paused": "yellow", "stopped": "dim"}


def show(facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{facts['node']['name']}[/bold] ({facts['node']['id']})  labels: {_pairs(facts['node']['labels'])}")
    console.print(_link(facts["link"]))
    manifest, clock = facts["manifest"], facts["clock"]
    console.print(f"manifest: generation {manifest['generation']}  clock: {clock['quality']}, {clock['wall']}")
    console.print(_backlog(facts["backlog"]))
    console.print(_buffer(facts["backlog"], facts["store"]))
    for line, style in _store(facts["store"]):
        console.print(Text(line, style), soft_wrap=True)
    console.print(_pipelines(facts["pipelines"]) if facts["pipelines"] else "no pipelines")
    for pipeline in facts["pipelines"]:
        for line in [*_gate(pipeline), *_params(pipeline), *_tables(pipeline), *_notes(pipeline)]:
            console.print(Text("  " + line))
    for note in facts["notes"]:
        console.print(Text(_note(note)), soft_wrap=True)
    for fetch in facts["fetches"]:
        console.print(Text(_fetch(fetch), "yellow"), soft_wrap=True)
    for request in facts["requests"]:
        console.print(Text(_request(request), "cyan"), soft_wrap=True)
    for incident in facts["incidents"]:
        console.print(Text(_incident(incident), "yellow" if incident["acknowledged"] else "bold red"))
    for action in [a for a in facts["actions"] if a["status"] != "done"]:
        console.print(Text(f"action {action['kind']} {action['id']}: {action['status']} {action['outcome']}"))


def show_quarantine(rows: list[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    for row in rows:
        place = f"{row['file']}:{row['offset']}" if row["file"] else row["offset"]
        console.print(Text(f"{row['at']}  {row['pipeline']}/{row['source']}  {place}  {row['step']}"), soft_wrap=True)
        for reason in row["reasons"]:
            console.print(Text(f"  {reason}"), soft_wrap=True)
        console.print(Text(f"  {row['raw']}", "dim"), soft_wrap=True)
    if not rows:
        console.print("no rejected records are kept on this node")


def _request(request: dict[str, Any]) -> str:
    words = ", ".join(str(value) for value in request["body"].values() if value)
    who = " ".join(part for part in (f"by {request['by']}" if request["by"] else "", request["reason"]) if part)
    return f"asked for {request['kind']} {request['id']} {who}: {words}"


def _fetch(fetch: dict[str, Any]) -> str:
    done = f"{fetch['bytes'] / fetch['size']:.0%} of {size(fetch['size'])}" if fetch["size"] else "not begun"
    return f"fetching {fetch['kind']} {fetch['digest'][:19]}: {done}" + (f"; {fetch['trouble']}" if fetch["trouble"] else "")


def _link(link: dict[str, Any]) -> Text:
    if link["unknown"]:
        text = (
            "the control plane does not know this node: it was restored from a backup that is older; pipelines and alarms go on"
        )
        return Text(f"{text}\n  to be a node of it again: tidewire-agent join --again TOKEN", "bold red")
    if link["up"]:
        text = f"link: up since {link.get('since', '?')} to {link['url']}, last exchange {link['last_exchange'] or 'none yet'}"
    elif gone := link["removed"]:
        who = " ".join(filter(None, (f"by {gone['by']}" if gone["by"] else "", f'"{gone["reason"]}"' if gone["reason"] else "")))
        text = f"removed from the control plane at {gone['at']} {who}".rstrip() + "; pipelines and alarms go on, nothing is sent"
        return Text(f"{text}\n  to come back as a new node: tidewire-agent join --again TOKEN", "bold red")
    else:
        text = f"link: down since {link.get('since', '?')} ({link.get('reason', '')}); pipelines and alarms go on"
    trouble = "; ".join(filter(None, (link["exchange"], link["upload"]))) if link["up"] else ""
    return Text(text + _pace(link) + (f"; {trouble}" if trouble else ""), "green" if link["up"] and not trouble else "yellow")


def _pace(link: dict[str, Any]) -> str:
    pace = link["pace"]
    if not link["up"] or not pace["rate"]:
        return ""
    words = [f"{pace['rate'] / 1000:,.0f} kB/s", f"answers in {pace['round_trip_s']:g} s", f"window {pace['window'] >> 10} KiB"]
    words += [f"capped at {pace['cap'] / 1000:,.0f} kB/s"] if pace["cap"] else []
    words += [f"a pause of {pace['pause_s']:g} s"] if pace["pause_s"] else []
    words += [f"{pace['backlogs']} streams with a backlog beside what is new"] if pace["backlogs"] else []
    return "; uplink: " + ", ".join(words)


def _backlog(backlog: dict[str, int]) -> str:
    text = f"waiting for the lake: {backlog['rows']} rows in {backlog['segments']} segments, {backlog['bytes']:,} bytes"
    lost = [f"{how}: {backlog[f'{how}_rows']} rows" for how in ("evicted", "damaged") if backlog[f"{how}_rows"]]
    return "; ".join([text, *lost])


def _buffer(backlog: dict[str, int], store: dict[str, Any]) -> str:
    used = f"buffer: {size(backlog['bytes'])} of {size(store['limit_bytes'])} ({backlog['bytes'] / store['limit_bytes']:.1%})"
    return f"{used}; {how_long(store['lasts_s'])}"


def _store(store: dict[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with it, or was; each with a style."""
    lines = []
    if store["trouble"]:
        lines.append((f"the store takes no writes: {store['trouble']}; alarms go on", "bold red"))
    if store["fits_bytes"] < store["limit_bytes"]:
        fits, limit = size(store["fits_bytes"]), size(store["limit_bytes"])
        lines.append((f"the disk has room for {fits} of the buffer's {limit}: it is taken for full there", "yellow"))
    if broke := store["history"]:
        lines.append(
            (f"runs of this node broke off {broke['breaks']} times, the last time at {broke['at']}: {broke['reason']}", "yellow")
        )
    if told := store["salvage"]:
        lost = [f"{told[f'{how}_rows']:,} rows {how}" for how in ("damaged", "evicted") if told[f"{how}_rows"]]
        lost += [f"begun anew: {', '.join(told['restarted'])}"] if told["restarted"] else []
        lost += [f"runs whose end is not known: {told['cut_runs']}"] if told["cut_runs"] else []
        kept = f"{told['rows']:,} rows kept"
        lines.append((f"the store was found damaged at {told['at']} ({told['reason']}): {'; '.join([kept, *lost])}", "yellow"))
    lines += [(f"a damaged store was set aside: {aside['path']}, {size(aside['bytes'])}", "") for aside in store["asides"]]
    return lines


def _pipelines(pipelines: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("pipeline", "version", "phase", "since", "counts", "why"):
        table.add_column(column)
    for p in pipelines:
        wanted = f" (wanted {p['wanted']})" if p["wanted"] not in (None, p["number"]) else ""
        phase = Text(p["phase"] + (f": {p['reason']}" if p["reason"] else ""), _PHASE_STYLES.get(p["phase"], ""))
        why = " ".join(filter(None, (p["why"].get("by"), p["why"].get("reason"))))
        table.add_row(p["pipeline"], f"{p['number']}{wanted}", phase, p["since"], _counts(p["counts"]), why)
    return table


def _counts(counts: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in counts.items() if isinstance(value, int | float) and value)


def _gate(pipeline: dict[str, Any]) -> list[str]:
    """Only what somebody may want to act on: a version that passed is no news."""
    gate, name = pipeline["gate"], pipeline["pipeline"]
    told = {
        "soaking": f"soaking {gate['soaked_s']:.0f} of {gate['soak_s']:g} s",
        "held": f"held at {gate['soaked_s']:.0f} of {gate['soak_s']:g} s: {gate['why']}",
        "failed": f"failed: {gate['why']}",
    }.get(gate["state"])
    back = f"; the node would go back to version {gate['last_good']['number']}" if gate["last_good"] else ""
    lines = [f"{name} gate: {told}{back}"] if told else []
    return lines + [f"{name} version {b['number']} is banned here since {b['at']}: {b['reason']}" for b in pipeline["bans"]]


def _params(pipeline: dict[str, Any]) -> list[str]:
    lines = []
    for name, entry in pipeline["params"].items():
        who = " ".join(filter(None, (entry["origin"], entry["by"] and f"by {entry['by']}", entry["reason"])))
        losing = ", ".join(f"{value} ({origin})" for origin, value in entry["losing"])
        lines.append(f"{pipeline['pipeline']} {name} = {entry['value']} ({who})" + (f"; beats {losing}" if losing else ""))
    return lines


def _note(note: dict[str, Any]) -> str:
    """Something that people set: what, who, why, until when, and what it beat."""
    return _decided(note) + (f"; beats {_decided(note['beats'])}" if note["beats"] else "")


def _decided(note: dict[str, Any]) -> str:
    body, subject = note["body"], note["subject"]
    what = {
        "param": f"{subject} {body.get('name')} set to {body.get('value')}",
        "unset": f"{subject} {body.get('name')} unset",
        "pin": f"{subject} pinned to version {body.get('number')}",
        "pause": f"{subject} paused",
        "label": f"label {body.get('name')}={body.get('value')}",
        "shelve": f"{subject} shelved",
    }.get(note["note"], f"{subject} {note['note']}")
    left = "" if note["left_s"] is None else f", {rate.text(note['left_s'])} left"
    return f"{what} {note['where']} by {note['by']}" + (f": {note['reason']}" if note["reason"] else "") + left


def _tables(pipeline: dict[str, Any]) -> list[str]:
    return [f"{pipeline['pipeline']} table {name} = {digest[:19]}" for name, digest in pipeline["tables"].items()]


def _notes(pipeline: dict[str, Any]) -> list[str]:
    return [f"{pipeline['pipeline']} {note.get('level', '')}: {note.get('text', '')}" for note in pipeline["notes"][-3:]]


def _incident(incident: dict[str, Any]) -> str:
    state = ("back to normal, " if incident.get("state") == "cleared" else "") + (
        "acknowledged" if incident["acknowledged"] else "OPEN"
    )
    state += ", out of service" if incident["out_of_service"] else ""
    flags = incident.get("flags") or ()
    state += "".join(f", {flag}" for flag in (flags.split(",") if isinstance(flags, str) else flags) if flag)
    return f"incident {incident['incident']} {incident.get('severity', '')} {state}: {incident.get('message', '')}"


def _pairs(labels: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items()) or "none"
