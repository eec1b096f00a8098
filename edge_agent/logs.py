"""Logs: plain `key=value` lines on stderr, the last of them also in memory, for `tidewire logs`."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

LINES_KEPT = 2000
VALUE_CHARS_MAX = 1000
_kept: deque[dict[str, str]] = deque(maxlen=LINES_KEPT)


def configure(level: str = "info") -> None:
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns at every end of a TLS connection
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            keep,
            structlog.processors.LogfmtRenderer(key_order=["at", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def keep(logger: object, method: str, line: Any) -> Any:
    """A processor: remember the line, bounded."""
    _kept.append({str(name): str(value)[:VALUE_CHARS_MAX] for name, value in line.items()})
    return line


def recent(limit: int, pipeline: str = "", secrets: Iterable[str] = ()) -> list[Mapping[str, str]]:
    """The last lines since the agent started, oldest first; with `pipeline` only those of it. No value of a secret is in them,
    whoever wrote it."""
    lines = [line for line in list(_kept) if not pipeline or line.get("pipeline") == pipeline][-limit:]
    hidden = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
    return [{name: _without(value, hidden) for name, value in line.items()} for line in lines]


def _without(text: str, hidden: Iterable[str]) -> str:
    for secret in hidden:
        text = text.replace(secret, "***")
    return text
