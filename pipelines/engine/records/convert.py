"""Values of the input to values of a field's type.

A value of the input is what JSON knows: text, a number (as it was written), true, false, null, a list, an object.
`Converter.value` is the definition, one value at a time. `texts` and `native` do whole columns with Arrow kernels and must give
exactly the same: where they are not sure, the row is looked at alone.
"""

from __future__ import annotations

import base64
import binascii
import decimal
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.schema import Element, FieldSpec, fit_decimal, precision_of, scale_of
from pipelines.engine.records import timestamps
from pipelines.engine.records.json_template import INTEGER, NUMBER
from pipelines.engine.records.json_text import Doubled, NotJson, Number, parse, text_of
from pipelines.engine.records.spans import bytes_of
from pipelines.engine.records.timestamps import MICROS, Format
from pipelines.engine.types import of_field, to_arrow

TEXT_SHOWN_MAX = 80  # characters of a value in a reason


class Unfit(Exception):
    """A value that is not of the type. `at` leads to the part of it that is not, such as `[2].t`."""

    def __init__(self, why: str, text: str = "", at: str = "") -> None:
        super().__init__(why)
        self.why, self.text, self.at = why, text, at

    def reason(self, name: str, *, sensitive: bool = False) -> str:
        if self.why == "missing":
            return f"{name}{self.at}: missing"
        shown = "the value" if sensitive else f'"{self.text[:TEXT_SHOWN_MAX]}"'
        return f"{name}{self.at}: {shown} {self.why}"


Read = tuple[pa.Array, pa.Array | None]  # values, and the rows to doubt


def either(doubt: pa.Array | None, other: pa.Array | None) -> pa.Array | None:
    """The rows that one of two doubts."""
    if doubt is None or other is None:
        return other if doubt is None else doubt
    return pc.or_kleene(doubt, other)


@dataclass(frozen=True)
class Native:
    """How `pyarrow.json` reads a field, and what is then made of the column."""

    type: pa.DataType
    finish: Callable[[pa.Array, int], Read]


def converter(spec: FieldSpec | Element) -> Converter:
    """Raises ValueError for a format or time zone that there is not."""
    if isinstance(spec, FieldSpec) and spec.map is not None:
        return Mapped(spec)
    return _CONVERTERS[spec.type](spec)


class Converter:
    """Of one field. `plain` is an RE2 pattern of text that `_cast` takes whenever its value is in range."""

    noun = ""
    plain = ""

    def __init__(self, spec: FieldSpec | Element) -> None:
        self.spec = spec
        self.type: pa.DataType = to_arrow(of_field(spec))

    def value(self, raw: Any, received_us: int) -> Any:
        """The value, for `pa.array(.., self.type)`; `raw` is not null. Raises Unfit."""
        try:
            if type(raw) is Number:
                return self._parse_number(raw, received_us)
            return self._parse(raw if type(raw) is str else text_of(raw), received_us)
        except ValueError as error:
            raise Unfit(str(error) or f"is not {self.noun}", text_of(raw)) from None

    def texts(self, texts: pa.Array, received_us: int) -> tuple[pa.Array, dict[int, Unfit]]:
        """A whole column of text."""
        values, doubt = self.quickly(texts)
        return self._settle(values, doubt, texts, received_us)

    def native(self, kind: str) -> Native | None:
        """How to read JSON values of this kind (string, number, integer, boolean), None: one by one."""
        return Native(pa.string(), self._finish_texts) if kind == "string" else None

    def number_pattern(self, kind: str) -> str:
        """What the JSON numbers look like that may be cast to the type of `native(kind)`: an RE2 pattern."""
        return INTEGER if kind == "integer" else NUMBER

    @property
    def usual_kind(self) -> str:
        """The kind of JSON value that is expected where the first record has none."""
        return "string"

    def _parse(self, text: str, received_us: int) -> Any:
        """Raises ValueError, with why if that is not clear."""
        raise NotImplementedError

    def _parse_number(self, text: str, received_us: int) -> Any:
        """As `_parse`, of a JSON number: it has a decimal point whatever text has."""
        return self._parse(text, received_us)

    def _cast(self, texts: pa.Array) -> Read:
        """Raises ArrowInvalid when some text is not of the type, or of a shape that `_parse` alone takes."""
        raise NotImplementedError

    def _finish_texts(self, texts: pa.Array, received_us: int) -> Read:
        return self.quickly(texts)

    def quickly(self, texts: pa.Array) -> Read:
        """(values, the rows to doubt or None) of a column of text."""
        try:
            return self._cast(texts)
        except pa.ArrowInvalid:
            pass
        if self.plain:
            clean = pc.fill_null(pc.match_substring_regex(texts, self.plain), True)
            try:
                values, doubt = self._cast(pc.if_else(clean, texts, None))
                return values, either(pc.invert(clean), doubt)
            except pa.ArrowInvalid:
                pass
        return pa.nulls(len(texts), self.type), pc.is_valid(texts)

    def _settle(
        self, values: pa.Array, doubt: pa.Array | None, texts: pa.Array, received_us: int
    ) -> tuple[pa.Array, dict[int, Unfit]]:
        rows = [] if doubt is None else pc.indices_nonzero(doubt).to_pylist()
        if not rows:
            return values, {}
        found: list[Any] = []
        unfit: dict[int, Unfit] = {}
        for row, text in zip(rows, texts.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
            try:
                found.append(self.value(text, received_us))
            except Unfit as why:
                unfit[row] = why
                found.append(None)
        mask = pc.fill_null(doubt, False)
        return pc.replace_with_mask(values, mask, pa.array(found, self.type)), unfit


class Boolean(Converter):
    noun = "a boolean"
    usual_kind = "boolean"
    _TRUE, _FALSE = frozenset({"true", "t", "yes", "y", "on", "1"}), frozenset({"false", "f", "no", "n", "off", "0"})
    _SPELT = pa.array(["true", "false", "True", "False", "TRUE", "FALSE", "1", "0", "yes", "no"])
    _MEANT = pa.array([True, False] * 5)
    _QUICK, _LOOK = _SPELT[:8], 16  # those that a cast takes, and how many values are looked at first: one that fails is slow

    def _parse(self, text: str, received_us: int) -> bool:
        word = text.strip(" \t").lower()
        if word in self._TRUE or word in self._FALSE:
            return word in self._TRUE
        raise ValueError

    def _cast(self, texts: pa.Array) -> Read:
        if pc.all(pc.is_in(texts.slice(0, self._LOOK), self._QUICK)).as_py():
            with suppress(pa.ArrowInvalid):
                return texts.cast(pa.bool_()), None  # true and false in any case, 1 and 0
        which = pc.index_in(texts, self._SPELT)
        return self._MEANT.take(which), pc.and_(pc.is_null(which), pc.is_valid(texts))

    def native(self, kind: str) -> Native | None:
        return Native(pa.bool_(), lambda values, _: (values, None)) if kind == "boolean" else super().native(kind)


class Integer(Converter):
    noun = "an integer"
    plain = r"\A-?[0-9]{1,18}\z"
    usual_kind = "integer"
    _TEXT = re.compile(r"[ \t]*[-+]?[0-9]+[ \t]*")

    def _parse(self, text: str, received_us: int) -> int:
        if len(text) < 100 and self._TEXT.fullmatch(text) and -(2**63) <= (number := int(text)) < 2**63:
            return number
        raise ValueError

    def _cast(self, texts: pa.Array) -> Read:
        return texts.cast(pa.int64()), _hexadecimal(texts)

    def native(self, kind: str) -> Native | None:
        return Native(pa.int64(), lambda values, _: (values, None)) if kind in ("integer", "number") else super().native(kind)

    def number_pattern(self, kind: str) -> str:
        return INTEGER


def _hexadecimal(texts: pa.Array) -> pa.Array | None:
    """Arrow reads 0x1F as an integer; here it is none."""
    raw = bytes_of(texts)
    if not len(raw) or raw.max() < ord("X"):
        return None
    return pc.or_(pc.starts_with(texts, "0x"), pc.starts_with(texts, "0X"))


class Double(Converter):
    noun = "a double"
    plain = r"\A[-+]?[0-9]+(\.[0-9]+)?\z"
    usual_kind = "number"
    _TEXT = re.compile(r"[ \t]*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?[ \t]*")

    def _parse(self, text: str, received_us: int) -> float:
        return self._parse_number(_decimal_point(text, self.spec.decimal), received_us)

    def _parse_number(self, text: str, received_us: int) -> float:
        if not self._TEXT.fullmatch(text):
            raise ValueError
        if not math.isfinite(number := float(text)):
            raise ValueError("is not a finite double")
        return number

    def _cast(self, texts: pa.Array) -> Read:
        return _finite(_with_point(texts, self.spec.decimal).cast(pa.float64()))

    def native(self, kind: str) -> Native | None:
        return Native(pa.float64(), lambda values, _: _finite(values)) if kind in ("integer", "number") else super().native(kind)

    def number_pattern(self, kind: str) -> str:
        return NUMBER


def _finite(values: pa.Array) -> Read:
    finite = pc.is_finite(values)
    return values, None if pc.all(finite).as_py() is not False else pc.invert(finite)


def _decimal_point(text: str, mark: str) -> str:
    """Raises ValueError for a point where the comma is the decimal mark: thousands are not separated."""
    if mark == ".":
        return text
    if "." in text or text.count(",") > 1:
        raise ValueError("has a decimal comma and more: thousands are not separated" if "," in text else "")
    return text.replace(",", ".")


def _with_point(texts: pa.Array, mark: str) -> pa.Array:
    if mark == ".":
        return texts
    if pc.any(pc.match_substring(texts, ".")).as_py():
        raise pa.ArrowInvalid("a point")
    return pc.replace_substring(texts, ",", ".")


class Decimal(Converter):
    noun = "a decimal"
    _TEXT = re.compile(r"[ \t]*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?[ \t]*")
    usual_kind = "number"

    def __init__(self, spec: FieldSpec | Element) -> None:
        super().__init__(spec)
        self._precision, self._scale = precision_of(spec), scale_of(spec)
        whole = self._precision - self._scale
        self._largest = decimal.Decimal(10**self._precision - 1).scaleb(-self._scale, decimal.Context(prec=60))
        mark = r"\." if spec.decimal == "." else ","
        self.plain = rf"\A[-+]?[0-9]{{1,{whole}}}({mark}[0-9]{{1,{self._scale}}})?\z" if whole and self._scale else ""

    def _parse(self, text: str, received_us: int) -> Any:
        return self._parse_number(_decimal_point(text, self.spec.decimal), received_us)

    def _parse_number(self, text: str, received_us: int) -> Any:
        if len(text) > 100 or not self._TEXT.fullmatch(text):
            raise ValueError
        try:
            return fit_decimal(text.strip(" \t"), self._precision, self._scale)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(text.strip(" \t") + " ")) from None

    def _cast(self, texts: pa.Array) -> Read:
        exponents = pc.match_substring_regex(texts, "[eE]")  # Arrow takes 1e-309 for zero
        values, doubt = self._within(_with_point(texts, self.spec.decimal).cast(self.type))
        return values, either(exponents, doubt)

    def _within(self, values: pa.Array) -> Read:
        """Arrow keeps more digits than the precision has, where a text has fewer decimals than the scale."""
        bounds = pc.min_max(values).as_py()
        if bounds["max"] is None or (bounds["max"] <= self._largest and bounds["min"] >= -self._largest):
            return values, None
        largest = pa.scalar(self._largest, self.type)
        return values, pc.or_(pc.greater(values, largest), pc.less(values, pc.negate(largest)))

    def native(self, kind: str) -> Native | None:
        if kind in ("integer", "number") and self.spec.decimal == ".":  # it takes text too
            return Native(self.type, lambda values, _: self._within(values))
        return super().native(kind)

    def number_pattern(self, kind: str) -> str:
        whole = min(self._precision - self._scale, 18)
        return rf"-?(?:0|[1-9][0-9]{{0,{whole - 1}}})(?:\.[0-9]{{1,{self._scale}}})?" if whole and self._scale else INTEGER


class String(Converter):
    noun = "a string"

    def _parse(self, text: str, received_us: int) -> str:
        return text

    def _parse_number(self, text: str, received_us: int) -> str:
        return _zero(text)

    def _cast(self, texts: pa.Array) -> Read:
        return texts, None

    def native(self, kind: str) -> Native | None:
        if kind in ("integer", "boolean"):
            return Native(pa.int64() if kind == "integer" else pa.bool_(), lambda values, _: (values.cast(pa.string()), None))
        return super().native(kind)


def _zero(text: str) -> str:
    """An integer as text is what it is again after a computer read it: -0 is 0."""
    return "0" if text == "-0" else str(text)


class Timestamp(Converter):
    noun = "a timestamp"
    plain = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[-+][0-9]{2}:?[0-9]{2})?\z"

    def __init__(self, spec: FieldSpec | Element) -> None:
        super().__init__(spec)
        self._form: Format | None = None
        if spec.format and spec.format != "iso":
            self._form, self.plain = timestamps.compile_format(spec.format), ""
        if spec.timezone:
            timestamps.check_zone(spec.timezone)
        self._unit = spec.unit
        if self._unit:
            self.plain = r"\A-?[0-9]{1,15}\z"

    @property
    def usual_kind(self) -> str:
        return "integer" if self._unit else "string"

    def _parse(self, text: str, received_us: int) -> int:
        if self._unit:
            return timestamps.from_number(text.strip(" \t") if len(text) < 100 else "", self._unit)
        return timestamps.from_text(text, self._form, self.spec.timezone, received_us)

    def _cast(self, texts: pa.Array) -> Read:
        if self._form is not None and not self._form.layout:
            raise pa.ArrowInvalid("one by one")
        if not self._unit:
            return timestamps.texts_quickly(texts, self._form, self.spec.timezone)
        try:
            values, doubt = timestamps.numbers_quickly(texts.cast(pa.int64()), self._unit)
            return values, either(doubt, _hexadecimal(texts))
        except pa.ArrowInvalid:
            if self._unit not in ("s", "ms"):
                raise
            return timestamps.numbers_quickly(texts.cast(pa.float64()), self._unit)

    def native(self, kind: str) -> Native | None:
        unit = self._unit
        if unit:
            if kind == "integer":
                return Native(pa.int64(), lambda values, _: timestamps.numbers_quickly(values, unit))
            if kind == "number" and unit in ("s", "ms"):
                return Native(pa.float64(), lambda values, _: timestamps.numbers_quickly(values, unit))
        elif kind == "string" and self._form is None and not self.spec.timezone:
            return Native(pa.timestamp("us", "UTC"), lambda values, _: _between_the_years(values.cast(MICROS)))
        return super().native(kind)


def _between_the_years(values: pa.Array) -> Read:
    return values, timestamps.outside(values.view(pa.int64()), timestamps.FIRST_US, timestamps.LAST_US)


class Binary(Converter):
    def __init__(self, spec: FieldSpec | Element) -> None:
        super().__init__(spec)
        self.noun = f"{spec.encoding or 'base64'} text"

    def _parse(self, text: str, received_us: int) -> bytes:
        try:
            if self.spec.encoding == "hex":
                return bytes.fromhex(text) if " " not in text else _refuse()
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError from None

    def _cast(self, texts: pa.Array) -> Read:
        raise pa.ArrowInvalid("one by one")


def _refuse() -> bytes:
    raise ValueError


class Mapped(Converter):
    """A code table: the text of the value is looked up."""

    def __init__(self, spec: FieldSpec | Element) -> None:
        super().__init__(spec)
        assert isinstance(spec, FieldSpec) and spec.map is not None
        self._map: Mapping[str, Any] = spec.map
        codes = list(self._map)
        self.noun = f"one of {', '.join(codes)}"
        self._codes, self._values = pa.array(codes, pa.string()), pa.array(list(self._map.values()), self.type)

    def _parse(self, text: str, received_us: int) -> Any:
        if text not in self._map:
            raise ValueError
        return self._map[text]

    def _parse_number(self, text: str, received_us: int) -> Any:
        return self._parse(_zero(text), received_us)

    def _cast(self, texts: pa.Array) -> Read:
        which = pc.index_in(texts, self._codes)
        return self._values.take(which), pc.and_(pc.is_null(which), pc.is_valid(texts))

    def native(self, kind: str) -> Native | None:
        if kind in ("integer", "boolean"):
            return Native(pa.int64() if kind == "integer" else pa.bool_(), lambda values, _: self._cast(values.cast(pa.string())))
        return super().native(kind)


class _Nested(Converter):
    """A list or a struct; as text, it is JSON."""

    def value(self, raw: Any, received_us: int) -> Any:
        if isinstance(raw, str) and type(raw) is not Number:
            try:
                raw = parse(raw)
            except NotJson:
                raise Unfit(f"is not {self.noun}", str(raw)) from None
        return self._build(raw, received_us)

    def _build(self, raw: Any, received_us: int) -> Any:
        raise NotImplementedError

    def _member(self, inner: Converter, raw: Any, at: str, received_us: int) -> Any:
        if raw is None:
            if inner.spec.nullable:
                return None
            raise Unfit("missing", at=at)
        try:
            return inner.value(raw, received_us)
        except Unfit as why:
            raise Unfit(why.why, why.text, at + why.at) from None

    def quickly(self, texts: pa.Array) -> Read:
        return pa.nulls(len(texts), self.type), pc.is_valid(texts)

    def _settle(
        self, values: pa.Array, doubt: pa.Array | None, texts: pa.Array, received_us: int
    ) -> tuple[pa.Array, dict[int, Unfit]]:
        found: list[Any] = []
        unfit: dict[int, Unfit] = {}
        for row, text in enumerate(texts.to_pylist()):
            try:
                found.append(None if text is None else self.value(text, received_us))
            except Unfit as why:
                unfit[row] = why
                found.append(None)
        return pa.array(found, self.type), unfit

    def native(self, kind: str) -> Native | None:
        return None


class List(_Nested):
    noun = "a list"

    def __init__(self, spec: FieldSpec | Element) -> None:
        super().__init__(spec)
        assert spec.of is not None
        self._of = converter(spec.of)

    @property
    def usual_kind(self) -> str:
        return "list"

    def _build(self, raw: Any, received_us: int) -> list[Any]:
        if not isinstance(raw, list):
            raise Unfit("is not a list", text_of(raw))
        return [self._member(self._of, value, f"[{i}]", received_us) for i, value in enumerate(raw)]

    def native(self, kind: str) -> Native | None:
        inner = self._of.native(self._of.usual_kind)
        if kind != "list" or inner is None or isinstance(self._of, _Nested):
            return None
        finish, nullable, type_ = inner.finish, self._of.spec.nullable, self.type

        def whole(lists: pa.Array, received_us: int) -> Read:
            flat, doubt = finish(lists.flatten(), received_us)
            if not nullable and flat.null_count:
                doubt = either(doubt, pc.is_null(flat))
            made = pa.ListArray.from_arrays(
                _own_offsets(lists), flat, type=type_, mask=pc.is_null(lists) if lists.null_count else None
            )
            if doubt is None or not pc.any(doubt).as_py():
                return made, None
            rows = pc.list_parent_indices(lists).filter(pc.fill_null(doubt, False))
            return made, pc.is_in(pa.array(range(len(lists)), rows.type), rows)

        return Native(pa.list_(inner.type), whole)


def _own_offsets(lists: pa.Array) -> pa.Array:
    """The offsets of the values that `flatten` gives."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])


class Struct(_Nested):
    noun = "an object"

    def __init__(self, spec: FieldSpec | Element) -> None:
        super().__init__(spec)
        self._fields = {name: converter(element) for name, element in (spec.fields or {}).items()}

    def _build(self, raw: Any, received_us: int) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise Unfit("is not an object", text_of(raw))
        if isinstance(raw, Doubled) and raw.names & self._fields.keys():
            raise Unfit("has a key twice", text_of(raw))
        return {name: self._member(inner, raw.get(name), f".{name}", received_us) for name, inner in self._fields.items()}


_CONVERTERS: Mapping[str, type[Converter]] = {
    "boolean": Boolean,
    "integer": Integer,
    "double": Double,
    "decimal": Decimal,
    "string": String,
    "timestamp": Timestamp,
    "binary": Binary,
    "list": List,
    "struct": Struct,
}
