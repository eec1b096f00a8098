"""Records: the lines of a batch decoded and held against the schema."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.schema import FieldSpec, KeepUnknown
from pipelines.contract.language.sources import Source
from pipelines.contract.spec import PipelineSpec
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine import decoders
from pipelines.engine.batch import META, Batch, Lines, meta_column, meta_values
from pipelines.engine.bind import Binder, Column
from pipelines.engine.decoders import TextDecoder
from pipelines.engine.fate import INVALID, UNDECODABLE
from pipelines.engine.records.convert import Converter, Unfit, converter
from pipelines.engine.records.delimited import Delimited
from pipelines.engine.records.enforce import Contract, Reasons, has_sensitive, matching
from pipelines.engine.records.json_reader import JsonField, JsonReader, parse_path
from pipelines.engine.records.table_read import TableRead
from pipelines.engine.records.timestamps import DIRECTIVES
from pipelines.engine.statement import Statement
from pipelines.engine.types import of_field

_META_PREFIX = "meta."


@dataclass(frozen=True)
class Records:
    """The records of a batch, in order, one row each. `columns`: the fields of the schema, then `_meta_*` that the pipeline uses.
    `fate` None: all are alive; `reasons` by row, all of them. `line`: of which line each record is, None: record i is line i."""

    columns: Mapping[str, pa.Array]
    count: int
    fate: pa.Array | None
    reasons: Mapping[int, tuple[str, ...]]
    line: pa.Array | None = None


class _Reader(Protocol):
    def read(self, batch: Batch, lines: Lines) -> TableRead:
        """The fields that do not come from `meta.*`, in order; then the unknown ones where they are kept."""


@dataclass(frozen=True)
class _Field:
    name: str
    spec: FieldSpec
    converter: Converter
    contract: Contract

    @property
    def meta(self) -> str:
        """The word of `meta.*` it comes from, or ""."""
        return self.source.removeprefix(_META_PREFIX) if self.source.startswith(_META_PREFIX) else ""

    @property
    def source(self) -> str:
        return self.spec.from_ or self.name


@dataclass(frozen=True)
class RecordsPlan:
    """`meta`: the words in use, to which later parts of the pipeline may add; `keep`: the column of unknown fields, or "";
    `hides`: reasons show nothing of the record."""

    fields: Sequence[_Field]
    reader: _Reader
    checks: Checks | None
    meta: set[str]
    keep: str
    hides: bool

    def read(self, batch: Batch) -> Records:
        assert batch.lines is not None, "a timer has no records"
        found = self.reader.read(batch, batch.lines)
        meta = {word: _by_record(meta_values(batch, word), found.line) for word in sorted(self.meta)}
        reasons: Reasons = {}
        columns = self._enforce(found, meta, batch.received_at_us, reasons)
        if self.keep:
            columns[self.keep] = found.columns[-1]
        columns |= {meta_column(word): values for word, values in meta.items()}
        for row, names in found.unknown.items():
            reasons.setdefault(row, []).extend("an unknown field" if self.hides else f'unknown field "{name}"' for name in names)
        if self.checks and found.count:
            self.checks.run(columns, found.undecodable, reasons)
        return Records(columns, found.count, _fate(found, reasons), _all_reasons(found, reasons), found.line)

    def _enforce(self, found: TableRead, meta: Mapping[str, pa.Array], received_us: int, reasons: Reasons) -> dict[str, pa.Array]:
        columns: dict[str, pa.Array] = {}
        at = 0
        for field in self.fields:
            if field.meta:
                values, unfit = _from_meta(meta[field.meta], field.converter, received_us)
            else:
                values = found.columns[at]
                unfit = {row: whys[at] for row, whys in found.unfit.items() if at in whys}
                at += 1
            columns[field.name] = field.contract.enforce(values, unfit, found.undecodable, reasons)
        return columns


def _by_record(values: pa.Array, line: pa.Array | None) -> pa.Array:
    return values if line is None else values.take(line)


def _from_meta(values: pa.Array, made: Converter, received_us: int) -> tuple[pa.Array, dict[int, Unfit]]:
    if values.type == made.type and not (isinstance(made.spec, FieldSpec) and made.spec.map):
        return values, {}
    return made.texts(values.cast(pa.string()), received_us)


def _fate(found: TableRead, reasons: Reasons) -> pa.Array | None:
    if not reasons and not found.undecodable:
        return None
    codes = array("h", bytes(2 * found.count))  # ALIVE is 0
    for row in reasons:
        codes[row] = INVALID
    for row in found.undecodable:
        codes[row] = UNDECODABLE
    return pa.Array.from_buffers(pa.int16(), found.count, [None, pa.py_buffer(codes)])


def _all_reasons(found: TableRead, reasons: Reasons) -> Mapping[int, tuple[str, ...]]:
    return {**{row: tuple(why) for row, why in reasons.items()}, **{row: (why,) for row, why in found.undecodable.items()}}


# -- check: conditions over the row


@dataclass(frozen=True)
class Checks:
    """All `check:` of the schema in one statement. As in SQL, NULL passes."""

    statement: Statement
    texts: Sequence[str]
    reads: Sequence[str]

    def run(self, columns: Mapping[str, pa.Array], dead: Mapping[int, str], reasons: Reasons) -> None:
        table = pa.table({name: columns[name] for name in self.reads} | {"_row": pa.arange(0, len(next(iter(columns.values()))))})
        found = self.statement(table)
        for i, text in enumerate(self.texts):
            codes = found[f"_c{i}"].combine_chunks()
            for row in pc.indices_nonzero(codes).to_pylist():
                if row not in dead:
                    failed = codes[row].as_py() == _FAILS
                    why = f"the check fails on this record: {text}" if failed else f"check: {text}"
                    reasons.setdefault(row, []).append(why)


_FALSE, _FAILS = 1, 2


def _compile_checks(binder: Binder, columns: Mapping[str, Column]) -> Checks | None:
    texts: list[str] = []
    sql: list[str] = []
    reads: set[str] = set()
    before = len(binder.problems)
    for name, spec in binder.spec.schema_.items():
        if spec.check is not None:
            bound = binder.row(spec.check, f"schema.{name}.check", columns, "BOOLEAN", meta=False)
            texts.append(f"{name}: {' '.join(spec.check.split())}")
            reads |= bound.reads
            sql.append(f"TRY([{bound.sql}]) AS _t{len(sql)}")
    if not texts or len(binder.problems) > before:
        return None
    codes = ", ".join(
        f"CAST(CASE WHEN _t{i} IS NULL THEN {_FAILS} WHEN _t{i}[1] = false THEN {_FALSE} ELSE 0 END AS TINYINT) AS _c{i}"
        for i in range(len(sql))
    )
    inner = f"SELECT _row, {', '.join(sql)} FROM _in"
    return Checks(Statement(binder.engine, f"SELECT {codes} FROM ({inner}) ORDER BY _row", "_in"), texts, sorted(reads))


# -- readers


@dataclass(frozen=True)
class _JsonLines:
    reader: JsonReader

    def read(self, batch: Batch, lines: Lines) -> TableRead:
        return self.reader.read(lines.spans, lines.bad, batch.received_at_us)


@dataclass(frozen=True)
class _TextLines:
    """Any decoder that gives text columns. `unknown`: what becomes of the header's columns that no field names."""

    decoder: TextDecoder
    sources: Sequence[str]
    converters: Sequence[Converter]
    unknown: str

    def read(self, batch: Batch, lines: Lines) -> TableRead:
        others = [] if self.unknown == "ignore" else [name for name in batch.header if name not in self.sources]
        wanted = list(dict.fromkeys([*self.sources, *others]))
        texts, wrong = self.decoder.columns(lines, wanted, batch.header, batch.received_at_us)
        bad = {**wrong, **lines.bad}
        columns: list[pa.Array] = []
        unfit: dict[int, dict[int, Unfit]] = {}
        for i, (source, made) in enumerate(zip(self.sources, self.converters, strict=True)):
            values, whys = made.texts(texts[source], batch.received_at_us)
            columns.append(values)
            for row, why in whys.items():
                unfit.setdefault(row, {})[i] = why
        unknown = dict.fromkeys(range(len(lines)), others) if others and self.unknown == "reject" else {}
        if self.unknown == "keep":
            columns.append(_kept({name: texts[name] for name in others}, len(lines)))
        return TableRead(columns, len(lines), None, unfit, bad, unknown)


def _kept(texts: Mapping[str, pa.Array], n: int) -> pa.Array:
    """Per row the columns that have something there, as a JSON object."""
    rows: Iterator[Sequence[str | None]] = (
        zip(*(column.to_pylist() for column in texts.values()), strict=True) if texts else iter(())
    )
    found = [{name: text for name, text in zip(texts, row, strict=True) if text is not None} for row in rows]
    return pa.array(
        [json.dumps(each, ensure_ascii=False, separators=(",", ":")) if each else None for each in found] or [None] * n,
        pa.string(),
    )


# -- compiling


def schema_columns(spec: PipelineSpec) -> dict[str, Column]:
    """The columns that the schema gives, the one of unknown fields included; that one is as sensitive as the schema's fields,
    because a misspelt field ends there."""
    columns = {name: Column(of_field(field), field.sensitive, field.nullable) for name, field in spec.schema_.items()}
    if isinstance(spec.unknown_fields, KeepUnknown):
        columns[spec.unknown_fields.keep] = Column("VARCHAR", has_sensitive(spec), True)
    return columns


def compile_records(binder: Binder, name: str, source: Source) -> RecordsPlan | None:
    """None when there are problems, which the binder has."""
    before = len(binder.problems)
    fields = list(_fields(binder))
    _check_source(binder, name, source, fields)
    checks = _compile_checks(binder, schema_columns(binder.spec))
    if len(binder.problems) > before:
        return None
    unknown = binder.spec.unknown_fields
    keep = unknown.keep if isinstance(unknown, KeepUnknown) else ""
    reader = _reader(source, [field for field in fields if not field.meta], "keep" if keep else str(unknown))
    return RecordsPlan(fields, reader, checks, binder.meta, keep, has_sensitive(binder.spec))


def _fields(binder: Binder) -> Iterator[_Field]:
    for name, spec in binder.spec.schema_.items():
        try:
            made = converter(spec)
        except ValueError as error:
            hint = f"known parts: {' '.join(f'%{word}' for word in DIRECTIVES)}" if spec.format else "like Europe/Paris or +02:00"
            _complain_once(binder, f"schema.{name}", str(error), hint)
            continue
        if spec.matches is not None:
            try:
                pc.match_substring_regex(pa.array([""]), matching(spec.matches))
            except pa.ArrowInvalid as error:
                why = str(error).removeprefix("Invalid regular expression: ")
                _complain_once(
                    binder,
                    f"schema.{name}.matches",
                    f"not a regular expression: {why}",
                    "the syntax is RE2's: no look-around, no back-references",
                )
                continue
        field = _Field(name, spec, made, Contract(name, spec, made.type, hides=has_sensitive(binder.spec)))
        if field.meta:
            _check_meta(binder, field)
        yield field


def _check_meta(binder: Binder, field: _Field) -> None:
    if field.meta in META or field.meta.count(".") == 1:
        binder.meta.add(field.meta)
    else:
        message = f"there is no meta.{field.meta}{did_you_mean(field.meta, META)}"
        _complain_once(binder, f"schema.{field.name}.from", message, f"known: {', '.join(META)}, topic.<capture>")


def _complain_once(binder: Binder, path: str, message: str, hint: str) -> None:
    """The schema is the same for every source."""
    if not any(problem.path == path for problem in binder.problems):
        binder.complain(path, message, hint)


def _check_source(binder: Binder, name: str, source: Source, fields: Sequence[_Field]) -> None:
    for path, message, hint in decoders.check(source.decode):
        binder.complain(f"sources.{name}.decode.{path}", message, hint)
    for path, message, hint in decoders.check_framing(source):
        binder.complain(f"sources.{name}.{path}", message, hint)
    if binder.spec.unknown_fields != "ignore" and not (source.decode.json_ or source.decode.csv):
        message = "unknown_fields is for json and csv: other decoders give what is asked for only"
        _complain_once(binder, "unknown_fields", message, "remove it")
    if any(path for path, *_ in decoders.check(source.decode)):
        return
    decoder = decoders.text_decoder(source.decode)
    known = decoder.names() if decoder else source.decode.csv.columns if source.decode.csv else None
    for field in fields:
        if known is not None and not field.meta and field.source not in known:
            path = f"schema.{field.name}" + (".from" if field.spec.from_ else "")
            message = f'the source "{name}" gives no "{field.source}"{did_you_mean(field.source, known)}'
            if not field.spec.nullable and field.spec.default is None:
                _complain_once(binder, path, message, f"it gives: {', '.join(known)}")


def _reader(source: Source, fields: Sequence[_Field], unknown: str) -> _Reader:
    if source.decode.json_:
        rows, keep = source.decode.json_.rows, source.decode.json_.keep
        paths = [JsonField(parse_path(field.source), field.converter) for field in fields]
        return _JsonLines(JsonReader(paths, parse_path(rows) if rows else None, keep, unknown))
    csv = source.decode.csv
    decoder = (
        Delimited(csv.delimiter, None if csv.quote == "none" else csv.quote) if csv else decoders.text_decoder(source.decode)
    )
    assert decoder is not None, "every kind of decoder is known"
    return _TextLines(decoder, [field.source for field in fields], [field.converter for field in fields], unknown)
