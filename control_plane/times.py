"""Times as people read them. Inside they are microseconds since 1970."""

from __future__ import annotations

import datetime as dt


def iso(at_us: int) -> str:
    return dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def clock(at_us: int, now_us: int) -> str:
    """`14:02` today, `12 Nov 14:02` else, in UTC; `never` for 0."""
    if not at_us:
        return "never"
    at, now = (dt.datetime.fromtimestamp(t / 1e6, dt.UTC) for t in (at_us, now_us))
    if at.date() == now.date():
        return f"{at:%H:%M}"
    return f"{at.day} {at:%b %H:%M}" if at.year == now.year else f"{at.day} {at:%b %Y %H:%M}"
