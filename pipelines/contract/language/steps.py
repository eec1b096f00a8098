"""Row steps, in order. Each has exactly one word; what the words mean is in engine/steps/."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipelines.contract.duration import Duration, parse_duration
from pipelines.contract.language.base import Column, Expression, Model, Texts, Word
from pipelines.contract.language.decoders import Decode
from pipelines.contract.language.schema import FieldSpec

GROUPS_MAX = 1_000_000
_SECRET = re.compile(r"\$\{secret:[A-Za-z][A-Za-z0-9_.-]{0,62}\}\Z")
_PERCENT = re.compile(r"[0-9]+(?:\.[0-9]+)?%\Z")


class Parse(Decode):
    """A decoder over a text column: what it gives become columns, as texts or as `fields` type them."""

    from_: Column = Field(alias="from")
    fields: dict[Column, FieldSpec] = {}


def _taken(value: Any) -> Any:
    return {name: name for name in value} if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


Taken = Annotated[dict[Column, str], BeforeValidator(_taken), Field(min_length=1)]


class Lookup(Model):
    """Columns of the row of `table` whose key equals `by`; `take: [a, b]` is short for `take: {a: a, b: b}`."""

    table: Word
    take: Taken
    by: Texts | None = None  # None: columns named as the table's key
    on_missing: Literal["null", "quarantine"] = "null"


def _secret(text: str) -> str:
    if not _SECRET.match(text):
        raise ValueError("the key is a secret of the node, never part of the file: write ${secret:name}")
    return text


class Hash(Model):
    """HMAC-SHA-256 of the value's text in UTF-8, as the first `length` hexadecimal digits."""

    key: Annotated[str, AfterValidator(_secret)]
    length: int = Field(64, ge=8, le=64)


class Mask(Model):
    """Every character becomes `with`, but for those kept; a value that would be kept whole is masked whole."""

    keep_first: int = Field(0, ge=0, le=64)
    keep_last: int = Field(0, ge=0, le=64)
    with_: str = Field("*", alias="with", min_length=1, max_length=1)


def _coarseness(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("write decimals to keep, as in `to: 2`, or a length of time, as in `to: 1h`")
    if isinstance(value, str) and parse_duration(value) <= 0:
        raise ValueError("a length of time to round to is longer than nothing")
    if isinstance(value, int) and not -9 <= value <= 15:
        raise ValueError("decimals to keep lie between -9 and 15")
    return value


class Generalise(Model):
    """A number rounded to some decimals (coordinates), or a time cut down to a multiple of a length of time."""

    to: Annotated[int | str, BeforeValidator(_coarseness)]


class Nothing(Model):
    """The column goes."""


_REDACTIONS = ("drop", "hash", "mask", "pattern", "generalise")


def _redaction_short_form(value: Any) -> Any:
    return {value: {}} if value in ("drop", "mask") else value


class Redaction(Model):
    """What happens to one column: exactly one of drop, hash, mask, pattern (with `with`), generalise."""

    NOUN, ONE_OF = "redaction", _REDACTIONS

    drop: Nothing | None = None
    hash: Hash | None = None
    mask: Mask | None = None
    pattern: str | None = Field(None, min_length=1, max_length=1024)
    with_: str | None = Field(None, alias="with", max_length=64)
    generalise: Generalise | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.with_ is not None and self.pattern is None:
            raise ValueError("`with` belongs to `pattern`")
        return self


class Grouped(Model):
    """A step that remembers something of each group of `by`. Beyond `max_groups`, the tenth whose memory changed longest ago is
    forgotten."""

    by: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = []
    max_groups: int = Field(100_000, ge=10, le=GROUPS_MAX)


def _positive(us: int) -> int:
    if us <= 0:
        raise ValueError("it must be longer than nothing")
    return us


Span = Annotated[Duration, AfterValidator(_positive)]


class Dedupe(Grouped):
    """Drop a row that equals, in `by`, one passed on less than `within` before. Without `by`: in every column."""

    within: Span
    count_into: Column | None = None


def _threshold(value: Any) -> Any:
    if isinstance(value, str) and value != "any" and not _PERCENT.match(value):
        raise ValueError(f'"{value}" is no deadband: write a number, a percentage as in "1%", or any')
    if isinstance(value, int | float) and not 0 <= value < float("inf"):
        raise ValueError("a deadband is zero or more")
    return value


Threshold = Annotated[float | str, BeforeValidator(_threshold)]


class Deadband(Grouped):
    """Pass a row on when one of `of` differs from the last row passed on by more than its deadband, or is due."""

    of: dict[Column, Threshold] = Field(min_length=1)
    at_least_every: Span | None = None


class Sample(Grouped):
    """Keep the first of every `every` rows of a group, or the rows whose hash of `by` falls into a `share`."""

    NOUN, ONE_OF = "sample", ("every", "share")

    every: int | None = Field(None, ge=1)
    share: float | None = Field(None, gt=0, lt=1)


class RateLimit(Grouped):
    """Pass on at most `rows` of a group in each `per` of time."""

    rows: int = Field(ge=1, le=2**31)
    per: Span


class Counter(Grouped):
    """What a counter that only grows has grown by since the group's last row; with `per`, in each `per` of time."""

    of: Column
    into: Column
    wraps_at: float | None = Field(None, gt=0)
    max_step: float | None = Field(None, gt=0)
    on_reset: Literal["from_zero", "null", "skip"] = "from_zero"
    per: Span | None = None


class Previous(Grouped):
    """Columns of the group's row before; NULL in its first row."""

    take: Annotated[dict[Column, str], Field(min_length=1)]


class Changes(Grouped):
    """Pass a row on when one of `of` differs from the group's row before."""

    of: Texts


STEP_KINDS = (
    *("filter", "derive", "select", "drop", "rename", "parse", "enrich", "lookup", "redact"),
    *("dedupe", "deadband", "sample", "rate_limit", "counter", "previous", "changes"),
)


class Step(Model):
    """One row step: exactly one of these words."""

    NOUN, ONE_OF = "step", STEP_KINDS

    filter: Expression | None = None
    derive: dict[Column, Expression] | None = Field(None, min_length=1)
    select: Texts | None = None
    drop: Texts | None = None
    rename: dict[Column, str] | None = Field(None, min_length=1)
    parse: Parse | None = None
    enrich: dict[Column, str] | None = Field(None, min_length=1)
    lookup: Lookup | None = None
    redact: dict[str, Annotated[Redaction, BeforeValidator(_redaction_short_form)]] | None = Field(None, min_length=1)
    dedupe: Dedupe | None = None
    deadband: Deadband | None = None
    sample: Sample | None = None
    rate_limit: RateLimit | None = None
    counter: Counter | None = None
    previous: Previous | None = None
    changes: Changes | None = None

    @property
    def kind(self) -> str:
        return next(kind for kind in STEP_KINDS if getattr(self, kind) is not None)
