"""Names, types and limits that every part of a pipeline file shares."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

RESERVED_TABLES = frozenset({"segments", "quarantine", "incidents", "ledgers", "nodes", "requests"})
LOG = "__log"  # ends the names of tables that take every revision of a window's rows
RESERVED_COLUMNS = frozenset({"node", "meta"})

_PIPELINE = re.compile(r"[a-z][a-z0-9-]{0,62}\Z")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}\Z")


def _pipeline_name(text: str) -> str:
    if not _PIPELINE.match(text):
        raise ValueError(
            "a pipeline's name has lower-case letters, digits and dashes, starts with a letter, and has at most 63 characters"
        )
    return text


def _word(text: str) -> str:
    if text.startswith("_"):
        raise ValueError("names that start with _ are Tidewire's own")
    if not _WORD.match(text):
        raise ValueError("a name has letters, digits and underscores, starts with a letter, and has at most 63 characters")
    return text


def _column(text: str) -> str:
    if text.lower() in RESERVED_COLUMNS:
        raise ValueError(f'"{text}" is a reserved word: {text}.* are the facts of the {"node" if text == "node" else "row"}')
    return _word(text)


def _table(text: str) -> str:
    if text.lower() in RESERVED_TABLES:
        raise ValueError(f'"{text}" is one of Tidewire\'s own tables')
    if text.lower().endswith(LOG):
        raise ValueError("tables that end in __log are Tidewire's own: all revisions of a window's rows")
    return _word(text).lower()


def listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


PipelineName = Annotated[str, AfterValidator(_pipeline_name)]
Word = Annotated[str, AfterValidator(_word)]
Column = Annotated[str, AfterValidator(_column)]
Table = Annotated[str, AfterValidator(_table)]
Expression = Annotated[str, Field(min_length=1, max_length=8192, json_schema_extra={"format": "sql"})]
Texts = Annotated[list[str], BeforeValidator(listed), Field(min_length=1)]
Type = Literal["boolean", "integer", "double", "string", "timestamp"]

_PYTHON: dict[str, type | tuple[type, ...]] = {"boolean": bool, "integer": int, "double": (int, float), "string": str}


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)
    ONE_OF: ClassVar[tuple[str, ...]] = ()  # exactly one of these fields is given
    NOUN: ClassVar[str] = ""  # what such a model is called

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [kind.rstrip("_") for kind in self.ONE_OF if getattr(self, kind) is not None]
        if self.ONE_OF and len(given) != 1:
            names = ", ".join(kind.rstrip("_") for kind in self.ONE_OF)
            here = f"; here are {' and '.join(given)}" if given else ""
            raise ValueError(f"a {self.NOUN} has exactly one kind of: {names}{here}")
        return self


class _Limited(Protocol):
    """What a value may be: a parameter or a field."""

    type: Any
    default: Any
    min: Any
    max: Any
    one_of: Any


def check_limits(limited: _Limited) -> None:
    """Raise ValueError unless default and limits fit the type and each other."""
    if limited.min is not None and limited.max is not None and limited.min > limited.max:
        raise ValueError(f"the min is above the max: {limited.min:g} > {limited.max:g}")
    for value in limited.one_of or []:
        check_type(limited.type, value)
    if limited.default is not None:
        check_type(limited.type, limited.default)
        check_value(limited, limited.default)


def check_type(type_: str, value: object) -> None:
    if not isinstance(value, _PYTHON[type_]) or (isinstance(value, bool) and type_ != "boolean"):
        raise ValueError(f"{json.dumps(value, default=str)} is not of type {type_}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if type_ == "integer" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} is not an integer of 64 bits")


def check_value(limited: _Limited, value: Any) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if limited.min is not None and value < limited.min:
            raise ValueError(f"{value} is below the minimum {limited.min:g}")
        if limited.max is not None and value > limited.max:
            raise ValueError(f"{value} is above the maximum {limited.max:g}")
    if limited.one_of is not None and value not in limited.one_of:
        raise ValueError(f"{json.dumps(value)} is not one of {', '.join(map(str, limited.one_of))}")
