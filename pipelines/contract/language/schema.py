"""The schema: the contract that a record keeps or is quarantined for."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Context, Decimal, InvalidOperation
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from pipelines.contract.language.base import Column, Expression, Model, check_limits
from pipelines.contract.node_state import Scalar

FieldType = Literal["boolean", "integer", "double", "decimal", "string", "timestamp", "binary", "list", "struct"]

_ORDERED = ("integer", "double", "decimal", "timestamp")
_LISTED = ("boolean", "integer", "double", "decimal", "string")
_EXACT = Context(prec=90)
_EXACT_BELOW = 2**53  # a limit is a double: beyond, it would not be the one that was written


def _element_short_form(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class Element(Model):
    """What a list holds, or one value of a struct: `double` is short for `{type: double}`."""

    type: FieldType
    nullable: bool = False
    format: str | None = None
    timezone: str | None = None
    unit: str | None = None
    decimal: Literal[".", ","] = "."
    precision: int | None = Field(None, ge=1, le=38)
    scale: int | None = Field(None, ge=0, le=38)
    encoding: Literal["base64", "hex"] | None = None
    of: ElementForm | None = None
    fields: dict[Column, ElementForm] | None = Field(None, min_length=1)
    description: str = ""

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        check_shape(self)
        return self


ElementForm = Annotated[Element, BeforeValidator(_element_short_form)]


class FieldSpec(Model):
    """One column of the contract. `from` is a path into the record (`data.t`, `values[0]`), a CSV column, or `meta.*`; default:
    its name."""

    type: FieldType
    from_: str | None = Field(None, alias="from")
    nullable: bool = False
    default: Scalar = None
    min: float | str | None = None  # text: a timestamp, or a decimal that a double cannot hold
    max: float | str | None = None
    one_of: list[Scalar] | None = Field(None, min_length=1)
    event_time: bool = False
    format: str | None = None  # strptime format of a timestamp; default ISO 8601
    unit: str | None = None  # of a timestamp: s, ms, us or ns since 1970; of a number: documentation
    description: str = ""
    timezone: str | None = None  # of a timestamp that does not say its offset; default UTC
    decimal: Literal[".", ","] = "."
    precision: int | None = Field(None, ge=1, le=38)
    scale: int | None = Field(None, ge=0, le=38)
    encoding: Literal["base64", "hex"] | None = None
    of: ElementForm | None = None
    fields: dict[Column, ElementForm] | None = Field(None, min_length=1)
    matches: str | None = Field(None, min_length=1, max_length=4096)
    map: dict[str, Scalar] | None = Field(None, min_length=1)
    check: Expression | None = None
    sensitive: bool = False

    @field_validator("min", "max")
    @classmethod
    def _number_of_a_number(cls, value: float | str | None, info: ValidationInfo) -> float | str | None:
        if isinstance(value, str) and info.data.get("type") not in ("decimal", "timestamp"):
            raise ValueError(f'"{value}" is not a number')
        return value

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        check_shape(self)
        if self.event_time and (self.type != "timestamp" or self.nullable):
            raise ValueError("event_time needs `type: timestamp` and may not be nullable")
        if self.matches is not None and self.type != "string":
            raise ValueError(f"matches is for text, this is a {self.type}")
        self._check_default()
        self._check_bounds()
        self._check_map()
        return self

    def _check_default(self) -> None:
        if self.type not in _LISTED and (self.default is not None or self.one_of):
            raise ValueError(f"a {self.type} has no default and no one_of")
        if self.default is not None and self.nullable:
            raise ValueError("a field with a default is never NULL: remove `nullable`")
        if self.type == "decimal":
            for value in [*(self.one_of or []), *([] if self.default is None else [self.default])]:
                decimal_value(value, self)
        elif self.type in _LISTED and self.type in ("boolean", "string"):
            check_limits(_Unbounded(self))

    def _check_bounds(self) -> None:
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if bounds and self.type not in _ORDERED:
            raise ValueError(f"min and max are for numbers, this is a {self.type}")
        if self.type in ("integer", "double"):
            if self.type == "integer" and any(abs(float(bound)) >= _EXACT_BELOW for bound in bounds):
                raise ValueError("min and max reach to 2^53: write a `check:` for more")
            check_limits(self)
        elif len(bounds) == 2 and self.bound("min") > self.bound("max"):
            raise ValueError(f"the min is above the max: {self.min} > {self.max}")
        else:
            [self.bound(name) for name in ("min", "max") if getattr(self, name) is not None]

    def bound(self, name: Literal["min", "max"]) -> Any:
        """`min` or `max` as a value of the field's type. Raises ValueError."""
        value = getattr(self, name)
        if self.type == "decimal":
            return decimal_value(value, self)
        if self.type == "timestamp":
            return _moment(value)
        return value

    def _check_map(self) -> None:
        if self.map is None:
            return
        if self.type not in ("boolean", "integer", "double", "string"):
            raise ValueError(f"map gives booleans, numbers or text, this is a {self.type}")
        if self.matches or self.one_of or self.min is not None or self.max is not None:
            raise ValueError("map says which values there are: remove min, max, one_of and matches")
        if self.decimal == ",":
            raise ValueError("map compares the text as it is: remove `decimal`")
        for value in self.map.values():
            if value is None:
                raise ValueError("map gives a value for each code, not null")
            check_limits(_Unbounded(self, value))


class _Unbounded:
    """A field as `check_limits` looks at it, without bounds."""

    def __init__(self, spec: FieldSpec, default: Scalar = None) -> None:
        self.type, self.min, self.max = spec.type, None, None
        self.default = spec.default if default is None else default
        self.one_of = spec.one_of


class KeepUnknown(Model):
    """What the schema does not name is kept as JSON text in this column."""

    keep: Column


UnknownFields = Literal["ignore", "reject"] | KeepUnknown


def check_shape(spec: Element | FieldSpec) -> None:
    """Raise ValueError unless each option is one of the type."""
    if (spec.of is not None) != (spec.type == "list"):
        raise ValueError(
            "a list says what it holds: `of: double`" if spec.type == "list" else f"`of` is for lists, this is a {spec.type}"
        )
    if (spec.fields is not None) != (spec.type == "struct"):
        raise ValueError(
            "a struct says its `fields:`" if spec.type == "struct" else f"`fields` is for structs, this is a {spec.type}"
        )
    if len({name.lower() for name in spec.fields or {}}) != len(spec.fields or {}):
        raise ValueError("two fields differ only in upper and lower case: SQL does not tell them apart")
    if spec.encoding and spec.type != "binary":
        raise ValueError(f"encoding is for binary, this is a {spec.type}")
    if spec.decimal == "," and spec.type not in ("double", "decimal"):
        raise ValueError(f"`decimal` is for double and decimal, this is a {spec.type}")
    if (spec.precision is not None or spec.scale is not None) and spec.type != "decimal":
        raise ValueError(f"precision and scale are for decimal, this is a {spec.type}")
    if spec.type == "decimal" and scale_of(spec) > precision_of(spec):
        raise ValueError(f"the scale is above the precision: {scale_of(spec)} > {precision_of(spec)}")
    _check_time(spec)


def _check_time(spec: Element | FieldSpec) -> None:
    if spec.type != "timestamp":
        if spec.format:
            raise ValueError("format is for timestamps")
        if spec.timezone:
            raise ValueError("timezone is for timestamps")
        return None
    if spec.format == "iso":
        return _check_zone(spec)
    if spec.format and "%" not in spec.format:
        like = f"; write `unit: {spec.format}`" if spec.format in ("s", "ms", "us", "ns") else ", like %d/%m/%Y %H:%M:%S, or iso"
        raise ValueError(f'"{spec.format}" is not a strptime format{like}')
    if spec.unit not in (None, "s", "ms", "us", "ns"):
        raise ValueError(f"the unit of a timestamp is s, ms, us or ns, not {spec.unit}")
    if spec.unit and spec.format:
        raise ValueError("a timestamp has a `format` (text) or a `unit` (a number since 1970), not both")
    return _check_zone(spec)


def _check_zone(spec: Element | FieldSpec) -> None:
    if spec.timezone and spec.unit:
        raise ValueError("a number since 1970 has no time zone: remove `timezone`")


def precision_of(spec: Element | FieldSpec) -> int:
    return 18 if spec.precision is None else spec.precision


def scale_of(spec: Element | FieldSpec) -> int:
    return min(4, precision_of(spec)) if spec.scale is None else spec.scale


def decimal_value(value: object, spec: Element | FieldSpec) -> Decimal:
    """A decimal as it is written. Raises ValueError when it is none, or does not fit precision and scale."""
    text = value if isinstance(value, str) else repr(value)
    if isinstance(value, bool) or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", text, re.ASCII):
        raise ValueError(f"{text} is not of type decimal")
    return fit_decimal(text, precision_of(spec), scale_of(spec))


def fit_decimal(text: str, precision: int, scale: int) -> Decimal:
    """Exactly this number, with `scale` digits after the point. Raises ValueError when there are more digits."""
    try:
        number = Decimal(text)
        fitted = number.quantize(Decimal(1).scaleb(-scale), context=_EXACT)
    except InvalidOperation:
        raise ValueError(f"{text} has more than {precision - scale} digits before the point") from None
    if fitted != number:
        raise ValueError(f"{text} has more than {scale} digits after the point")
    if fitted.adjusted() >= precision - scale and fitted:
        raise ValueError(f"{text} has more than {precision - scale} digits before the point")
    return fitted


def _moment(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{value} is not a timestamp: write 2026-01-31T12:00:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
