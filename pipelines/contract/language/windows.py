"""Event-time windows: tumbling, sliding, sessions, shifts of the day, and windows over windows."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from pipelines.contract.duration import US_PER, Duration
from pipelines.contract.language.base import Column, Expression, Model, Word

OPEN_MAX = 10_000  # windows that one row or one lateness can keep open at a time

_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)\Z")


def _time_of_day(text: str) -> str:
    if not _TIME.match(text):
        raise ValueError(f'"{text}" is not a time of the day: write "06:00", between 00:00 and 23:59, in quotes')
    return text


@cache
def is_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _timezone(name: str) -> str:
    if not is_timezone(name):
        raise ValueError(f'there is no time zone "{name}": write one like Europe/Paris, or UTC')
    return name


class Window(Model):
    """Rows of a stretch of event time as one row per group of `by`. Exactly one kind: `every` (with `slide`: sliding), `gap`
    (a session, at most `max` long) or `at` (times of the day in `timezone`)."""

    NOUN, ONE_OF = "window", ("every", "gap", "at")

    every: Duration | None = None
    slide: Duration | None = None
    gap: Duration | None = None
    max: Duration | None = None
    at: list[Annotated[str, AfterValidator(_time_of_day)]] | None = Field(None, min_length=1, max_length=48)
    timezone: Annotated[str, AfterValidator(_timezone)] | None = None
    from_: Word | None = Field(None, alias="from")
    by: list[Column] = []
    where: Expression | None = None
    select: dict[Column, Expression] = Field(min_length=1)
    lateness: Duration = 0
    keep: Duration | None = None
    max_groups: int = Field(10_000, ge=1, le=1_000_000)

    @property
    def times(self) -> list[str]:
        """The times of the day at which a window starts; empty for those without a time zone."""
        return self.at or (["00:00"] if self.timezone else [])

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        for name in ("every", "slide", "gap", "max"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be longer than nothing")
        if self.lateness < 0 or (self.keep is not None and self.keep < 0):
            raise ValueError("lateness and keep cannot be negative")
        if twice := set(self.by) & set(self.select):
            raise ValueError(f'"{sorted(twice)[0]}" stands in both by and select')
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        self._check_slide()
        self._check_session()
        self._check_times()
        step = self.slide or self.every or US_PER["h"]
        if self.gap is None and ((self.every or 0) + max(self.lateness, self.keep or 0)) // step > OPEN_MAX:
            raise ValueError(
                f"more than {OPEN_MAX:,} windows would be open at a time: shorten lateness or keep, or lengthen slide"
            )
        return self

    def _check_slide(self) -> None:
        if self.slide is None:
            return
        if self.every is None:
            raise ValueError("slide goes with every: a window of `every`, again each `slide`")
        if self.every % self.slide:
            raise ValueError("every must be a multiple of slide, as 10m of 1m")

    def _check_session(self) -> None:
        if self.gap is None:
            if self.max is not None:
                raise ValueError("max goes with gap: the longest that a session may be")
            return
        if self.keep is not None:
            raise ValueError("a session takes no corrections, its bounds would move: use lateness instead of keep")
        if self.max is not None and self.max < self.gap:
            raise ValueError("the max of a session is no shorter than its gap")

    def _check_times(self) -> None:
        if self.at is not None:
            if self.timezone is None:
                raise ValueError("at: goes with timezone:, as in Europe/Paris, or UTC")
            if self.at != sorted(set(self.at)):
                raise ValueError("the times of at: stand in order, each once")
        elif self.timezone is not None and (self.every != US_PER["d"] or self.slide is not None):
            raise ValueError("timezone goes with at: or every: 1d; other windows are the same in every zone")
