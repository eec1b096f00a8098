"""Decoders: how the text of a record becomes named values."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.contract.language.base import Model


class Json(Model):
    """One JSON object a line (RFC 8259, jsonlines). `rows`: the path of an array, each element of which is a record; `keep`: keys
    of the message that go into each of them."""

    rows: str | None = Field(None, min_length=1)
    keep: list[str] = []

    @model_validator(mode="after")
    def _keep_needs_rows(self) -> Self:
        if self.keep and self.rows is None:
            raise ValueError("`keep` copies into the records of `rows`, which is missing")
        return self


def _one_character(value: Any) -> Any:
    value = "\t" if value in ("\\t", "tab") else value
    if not isinstance(value, str) or len(value) != 1:
        raise ValueError("the delimiter is one character, or tab")
    return value


class Csv(Model):
    """Delimited lines. The first line of each file names the columns, unless `columns` does."""

    delimiter: Annotated[str, BeforeValidator(_one_character)] = ","
    columns: list[str] | None = Field(None, min_length=1)
    quote: Literal['"', "'", "none"] = '"'

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if self.delimiter in (self.quote, "\n", "\r"):
            raise ValueError("the delimiter cannot be the quote or a line end")
        doubled = next((name for name in self.columns or [] if (self.columns or []).count(name) > 1), None)
        if doubled is not None:
            raise ValueError(f'the column "{doubled}" stands twice')
        return self


class Logfmt(Model):
    """`key=value key2="a value"`, parted by blanks. A word without `=` is a key whose value is `true`."""


class KeyValue(Model):
    """Pairs of a name and a value. `pair` parts the pairs (blanks: any run of them), `separator` the name from the value, with or
    without blanks around it; a value may stand in double quotes."""

    pair: str = Field(";", min_length=1, max_length=16)
    separator: str = Field("=", min_length=1, max_length=16)

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        if not self.separator.strip():
            raise ValueError("`separator` is blank: take decode: regex or grok")
        if self.separator.strip() in self.pair or self.pair in self.separator.strip():
            raise ValueError("`pair` and `separator` cannot be told apart")
        if '"' in self.pair + self.separator:
            raise ValueError("a double quote encloses values: it can be neither `pair` nor `separator`")
        return self


class Regex(Model):
    """The named groups `(?P<name>...)` of a pattern (RE2), wherever it is found in the record."""

    pattern: str = Field(min_length=1, max_length=8192)


class Grok(Model):
    """A pattern of named parts, `%{IP:client} %{WORD:method}`. `patterns` adds names to the library, or replaces some of its."""

    pattern: str = Field(min_length=1, max_length=8192)
    patterns: dict[str, Annotated[str, Field(min_length=1, max_length=8192)]] = {}


class Syslog(Model):
    """RFC 5424 and RFC 3164, with and without the priority. `year`: of stamps that have none; default: by the time of arrival."""

    format: Literal["auto", "rfc3164", "rfc5424"] = "auto"
    year: int | None = Field(None, ge=1970, le=9999)


class Value(Model):
    """The whole record is one value, called `value`."""


def decode_short_form(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


_KINDS = ("json_", "csv", "logfmt", "keyvalue", "regex", "grok", "syslog", "value")


class Decode(Model):
    """How a record becomes named values: exactly one kind; `decode: json` is short for `decode: {json: {}}`."""

    NOUN, ONE_OF = "decoder", _KINDS

    json_: Json | None = Field(None, alias="json")
    csv: Csv | None = None
    logfmt: Logfmt | None = None
    keyvalue: KeyValue | None = None
    regex: Regex | None = None
    grok: Grok | None = None
    syslog: Syslog | None = None
    value: Value | None = None
