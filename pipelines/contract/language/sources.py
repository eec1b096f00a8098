"""Sources: where rows come from, and how their bytes become records."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.contract.duration import Duration
from pipelines.contract.language.base import Model, Texts, exactly_one
from pipelines.contract.language.decoders import Decode, decode_short_form


class FileSource(Model):
    """Lines of the files that match; follows growing and new files, resumes where the last commit stood."""

    path: Texts


class SimulatedValue(Model):
    base: float = 20.0
    swing: Annotated[float, Field(ge=0)] = 0.0
    period: Duration = 600_000_000
    noise: Annotated[float, Field(ge=0)] = 0.0


class SimulatedFault(Model):
    """`offset` adds `by` to the value of the first `sensors` sensors from `at` on for `lasts`, again each `every`.
    `garbage`, `missing` and `text` spoil a `share` of the rows: bytes that do not decode, no value, a value that is no number."""

    kind: Literal["offset", "garbage", "missing", "text"]
    at: Duration = 0
    lasts: Duration = 0
    every: Duration = 0
    sensors: int = Field(1, ge=1)
    by: float = 0.0
    share: float = Field(0.0, ge=0, le=1)


class SimulateSource(Model):
    """Seeded sensors: the same seed gives the same rows `{"ts", "sensor", "value", "n"}` as JSON lines, for ever."""

    seed: int = 0
    sensors: int = Field(4, ge=1, le=10_000)
    every: Duration = 1_000_000  # each sensor speaks once in this time
    rows: int | None = Field(None, ge=1)  # then it ends; None: for ever
    start: str | None = None  # event time of the first row (ISO 8601, UTC); None: when the pipeline first starts
    value: SimulatedValue = SimulatedValue()
    faults: list[SimulatedFault] = []


class Source(Model):
    """Where rows come from: exactly one kind, and how its bytes are decoded."""

    file: FileSource | None = None
    simulate: SimulateSource | None = None
    decode: Annotated[Decode, BeforeValidator(decode_short_form)] = Decode.model_validate({"json": {}})

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        exactly_one(self, "source", ("file", "simulate"))
        if self.simulate and not self.decode.json_:
            raise ValueError("a simulate source gives JSON lines: remove `decode` or write `decode: json`")
        return self
