"""Times as people read them. Inside they are microseconds since 1970."""

from __future__ import annotations

import datetime as dt

from pipelines.contract.duration import parse_duration


def iso(at_us: int) -> str:
    return dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def parse_time(text: str, now_us: int) -> int:
    """Microseconds since 1970 of `2026-11-21T14:00` (in UTC unless it says otherwise) or of `2h` (ago). Raises ValueError."""
    try:
        return now_us - parse_duration(text)
    except ValueError:
        pass
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: write it like 2026-11-21, 2026-11-21T14:00 or 2h (ago)") from None
    return int((at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp() * 1_000_000)


def parse_iso(text: str) -> int:
    """Microseconds since 1970 of what `iso` or the lake wrote; 0 for what is no time."""
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        return 0
    return int((at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp() * 1_000_000)


def clock(at_us: int, now_us: int) -> str:
    """`14:02` today, `12 Nov 14:02` else, in UTC; `never` for 0."""
    if not at_us:
        return "never"
    at, now = (dt.datetime.fromtimestamp(t / 1e6, dt.UTC) for t in (at_us, now_us))
    if at.date() == now.date():
        return f"{at:%H:%M}"
    return f"{at.day} {at:%b %H:%M}" if at.year == now.year else f"{at.day} {at:%b %Y %H:%M}"
