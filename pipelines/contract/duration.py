"""Durations as people write them: `500ms`, `10s`, `1h30m`, `7d`. Microseconds inside."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

US_PER = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
DAYS_MAX = 36_500
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)")
_WHOLE = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h|d))+\Z")


def parse_duration(text: object) -> int:
    """Microseconds. Raises ValueError with what to write instead."""
    if isinstance(text, int) and not isinstance(text, bool) and text == 0:
        return 0
    if not isinstance(text, str) or not _WHOLE.match(text):
        raise ValueError(f"{text!r} is not a duration: write a number with us, ms, s, m, h or d, as in 10s or 1h30m")
    us = round(sum(Decimal(number) * US_PER[unit] for number, unit in _PART.findall(text)))
    if us > DAYS_MAX * US_PER["d"]:
        raise ValueError(f"{text[:40]} is longer than {DAYS_MAX} days")
    return us


def format_duration(us: int) -> str:
    """The shortest exact form: 90_000_000 -> `1m30s`."""
    if us == 0:
        return "0s"
    text = ""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, us = divmod(us, US_PER[unit])
        text += f"{count}{unit}" if count else ""
    return text


Duration = Annotated[int, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]
