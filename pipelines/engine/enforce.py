"""The schema contract as SQL: per field a typed value, whether it keeps the contract, and if not, why.

A conversion that fails gives NULL and is told from an absent value by the raw text beside it. Raw text is looked at only for
rows where the typed value is NULL, so a clean row pays for one conversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.contract.language.schema import FieldSpec
from pipelines.engine.connection import literal, quote
from pipelines.engine.decode import META

SQL_TYPES = {"boolean": "BOOLEAN", "integer": "BIGINT", "double": "DOUBLE", "string": "VARCHAR", "timestamp": "TIMESTAMP"}
_EPOCH_US = {"s": "* 1000000", "ms": "* 1000", "us": "", "ns": "/ 1000"}


@dataclass(frozen=True)
class FieldSql:
    """`typed` and `raw` are expressions over `_in` (and `_doc`, the parsed JSON); `raw` is NULL when the value is absent."""

    name: str
    spec: FieldSpec
    typed: str
    raw: str

    @property
    def value(self) -> str:
        if self.spec.default is None:
            return self.typed
        return f"CASE WHEN ({self.raw}) IS NULL THEN {literal(self.spec.default)} ELSE {self.typed} END"

    @property
    def keeps_contract(self) -> str:
        """A condition over the typed column and `raw`: never NULL."""
        column, limits = quote(self.name), " AND ".join(f"({condition})" for condition, _ in self._limits()) or "true"
        absent = f"({self.raw}) IS NULL" if self.spec.nullable else "false"
        return f"CASE WHEN {column} IS NOT NULL THEN {limits} ELSE {absent} END"

    @property
    def reasons(self) -> list[str]:
        """One expression per way to break the contract: its text, or NULL."""
        column, name = quote(self.name), self.name
        article = "an" if self.spec.type[0] in "aeiou" else "a"
        unfit = f"concat('{name}: \"', left({self.raw}, 80), '\" is not {article} {self.spec.type}')"
        checks = [f"CASE WHEN {column} IS NULL AND ({self.raw}) IS NOT NULL THEN {unfit} END"]
        if not self.spec.nullable:
            checks.append(f"CASE WHEN {column} IS NULL AND ({self.raw}) IS NULL THEN '{name}: missing' END")
        for condition, why in self._limits():
            told = f"concat('{name}: ', {column}, {literal(' ' + why)})"
            checks.append(f"CASE WHEN {column} IS NOT NULL AND NOT ({condition}) THEN {told} END")
        return checks

    def _limits(self) -> list[tuple[str, str]]:
        column, spec = quote(self.name), self.spec
        limits = []
        if spec.type == "double":
            limits.append((f"isfinite({column})", "is not finite"))
        if spec.type == "timestamp":
            limits.append((in_calendar(column), "is not between the years 1 and 9999"))
        if spec.min is not None:
            limits.append((f"{column} >= {spec.min!r}", f"is below the minimum {spec.min:g}"))
        if spec.max is not None:
            limits.append((f"{column} <= {spec.max!r}", f"is above the maximum {spec.max:g}"))
        if spec.one_of is not None:
            listed = ", ".join(literal(value) for value in spec.one_of)
            limits.append((f"{column} IN ({listed})", f"is not one of {', '.join(map(str, spec.one_of))}"))
        return limits


def in_calendar(column: str) -> str:
    """Whether a timestamp lies where every reader of the lake can follow."""
    return f"{column} BETWEEN TIMESTAMP '0001-01-01' AND TIMESTAMP '9999-12-31 23:59:59.999999'"


def csv_fields(fields: dict[str, FieldSpec]) -> tuple[list[FieldSql], list[tuple[str, str]]]:
    """The fields over text columns `_c<i>`, and which CSV column feeds each."""
    result, feeds = [], []
    for i, (name, spec) in enumerate(fields.items()):
        source = spec.from_ or name
        if source.startswith("meta."):
            result.append(_meta_field(name, spec, source))
            continue
        raw = f"nullif(_c{i}, '')"
        feeds.append((f"_c{i}", source))
        result.append(FieldSql(name, spec, convert(spec, raw), raw))
    return result, feeds


def json_fields(fields: dict[str, FieldSpec]) -> tuple[list[FieldSql], str]:
    """The fields over `_doc`, and the structure that `json_transform` reads all of them with in one pass."""
    shape: dict[str, object] = {}
    result = []
    for name, spec in fields.items():
        source = spec.from_ or name
        if source.startswith("meta."):
            result.append(_meta_field(name, spec, source))
            continue
        words = source.split(".")
        raw = f"json_extract_string(_json, {literal('$.' + '.'.join(_json_word(w) for w in words))})"
        value = "_doc." + ".".join(quote(w) for w in words) if _place(shape, words) else raw
        result.append(FieldSql(name, spec, convert(spec, value), raw))
    return result, _structure(shape)


def convert(spec: FieldSpec, text: str) -> str:
    """SQL from a text expression to the field's type; NULL when it does not convert."""
    if spec.type == "string":
        return text
    if spec.type == "integer":
        return f"CASE WHEN regexp_full_match({text}, '\\s*[-+]?[0-9]+\\s*') THEN TRY_CAST({text} AS BIGINT) END"
    if spec.type != "timestamp":
        return f"TRY_CAST({text} AS {SQL_TYPES[spec.type]})"
    if spec.unit is not None:
        return f"TRY(make_timestamp(TRY_CAST(round(TRY_CAST({text} AS DOUBLE) {_EPOCH_US[spec.unit]}) AS BIGINT)))"
    if spec.format is not None:
        return f"try_strptime({text}, {literal(spec.format)})"
    return f"TRY(make_timestamp(epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))))"


def _meta_field(name: str, spec: FieldSpec, source: str) -> FieldSql:
    word = source.removeprefix("meta.")
    column = f"_meta_{word}"
    raw = f"CAST({column} AS VARCHAR)"
    return FieldSql(name, spec, column if META.get(word) == SQL_TYPES[spec.type] else convert(spec, raw), raw)


def meta_words(fields: Sequence[FieldSpec]) -> list[str]:
    """The words of `meta.*` that fields take their values from."""
    return [f.from_.removeprefix("meta.") for f in fields if f.from_ and f.from_.startswith("meta.")]


def _json_word(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _place(shape: dict[str, object], words: list[str]) -> bool:
    """Enter a path into the structure. False when it collides with one that is there: DuckDB's struct keys ignore case."""
    for word in words[:-1]:
        if any(k.lower() == word.lower() and k != word for k in shape):
            return False
        below = shape.setdefault(word, {})
        if not isinstance(below, dict):
            return False
        shape = below
    if any(k.lower() == words[-1].lower() for k in shape):
        return False
    shape[words[-1]] = "VARCHAR"  # as text: as DOUBLE, `true` would be read as 1.0
    return True


def _structure(shape: object) -> str:
    if isinstance(shape, dict):
        return "{" + ",".join(f"{_json_word(k)}:{_structure(v)}" for k, v in shape.items()) + "}"
    return f'"{shape}"'
