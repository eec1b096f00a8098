"""The figures of ISA-18.2 over what `incidents` shows: how many, which ones, how long nobody looked. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from control_plane.times import iso, parse_iso

TOP = 10
STANDING_S = 24 * 3600
HOUR_US = 3_600_000_000


def stats(incidents: Sequence[Mapping[str, Any]], since_us: int, now_us: int) -> dict[str, Any]:
    """What was raised since then, and how what is open stands now."""
    raises = [(at, i) for i in incidents for at in map(parse_iso, i["raises"]) if since_us <= at <= now_us]
    hours = max((now_us - since_us) / HOUR_US, 1 / 60)
    by_hour = Counter((at // HOUR_US) * HOUR_US for at, _ in raises)
    by_trigger = Counter((i["node"], i["pipeline"], i["trigger"]) for _, i in raises)
    busiest = max(by_hour.items(), key=lambda found: (found[1], found[0]), default=None)
    waits = [wait for i in incidents if (wait := _waited_s(i, since_us, now_us)) is not None]
    open_ = [i for i in incidents if not i["closed"]]
    return {
        "since": iso(since_us),
        "until": iso(now_us),
        "raised": len(raises),
        "by_severity": dict(Counter(str(i["severity"]) for _, i in raises)),
        "per_hour": round(len(raises) / hours, 2),
        "busiest_hour": {"hour": iso(busiest[0]), "raised": busiest[1]} if busiest else None,
        "top": [
            {"node": node, "pipeline": pipeline, "trigger": trigger, "raised": n, "share": round(n / len(raises), 3)}
            for (node, pipeline, trigger), n in sorted(by_trigger.items(), key=lambda found: (-found[1], found[0]))[:TOP]
        ],
        "acknowledged": len(waits),
        "acknowledge_median_s": round(median(waits), 1) if waits else None,
        "open": len(open_),
        "unacknowledged": sum(not i["acknowledged"] for i in open_),
        "chattering": [_name(i) for i in open_ if "chattering" in i["words"]],
        "standing": [_name(i) for i in open_ if "active" in i["words"] and _stands_s(i, now_us) >= STANDING_S],
        "shelved": [_name(i) for i in open_ if "shelved" in i["words"]],
        "suppressed": [_name(i) for i in open_ if "suppressed" in i["words"]],
    }


def _waited_s(incident: Mapping[str, Any], since_us: int, now_us: int) -> float | None:
    """From the last raise to the acknowledgement that followed it."""
    raised_us = parse_iso(incident["raises"][-1]) if incident["raises"] else 0
    acked_us = parse_iso(incident["acked_at"])
    return (acked_us - raised_us) / 1e6 if since_us <= raised_us <= acked_us <= now_us else None


def _stands_s(incident: Mapping[str, Any], now_us: int) -> float:
    raised_us = parse_iso(incident["raised_at"])
    return (now_us - raised_us) / 1e6 if raised_us else 0.0


def _name(incident: Mapping[str, Any]) -> dict[str, Any]:
    return {name: incident[name] for name in ("id", "node", "pipeline", "trigger", "raised_at", "message")}
