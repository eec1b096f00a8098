"""parse: a decoder of sources over a text column, and the schema's contract over what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contract.language.schema import FieldSpec
from pipelines.contract.language.steps import Parse
from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine import decoders
from pipelines.engine.batch import Lines, meta_column
from pipelines.engine.bind import Column
from pipelines.engine.decoders import TextDecoder
from pipelines.engine.fate import ALIVE
from pipelines.engine.records.convert import Converter, Unfit, converter
from pipelines.engine.records.delimited import Delimited
from pipelines.engine.records.enforce import Contract, Reasons, has_sensitive
from pipelines.engine.records.json_reader import JsonField, JsonReader, parse_path
from pipelines.engine.records.spans import Spans
from pipelines.engine.stage import Stages, attach
from pipelines.engine.state import State
from pipelines.engine.steps.fold import spread
from pipelines.engine.types import of_field

_RECEIVED = "received_at"
_Read = tuple[Sequence[pa.Array], Mapping[int, Mapping[int, Unfit]], Mapping[int, str]]  # columns, unfit, undecodable


@dataclass(frozen=True)
class _Field:
    """`place` is where its column stands, `fails` the fate of a row whose value breaks the contract."""

    source: str
    converter: Converter
    contract: Contract
    place: str
    fails: int


def compile_parse(stages: Stages, spec: Parse, path: str) -> None:
    if not stages.known([spec.from_], f"{path}.from") or not _check(stages, spec, path):
        return
    names = _names(spec)
    if names is None and not spec.fields:
        stages.binder.complain(path, "any name may occur in the text", "say under `fields:` which become columns")
        return
    wanted = spec.fields or {name: FieldSpec.model_validate({"type": "string", "nullable": True}) for name in names or ()}
    fields = [made for name, field in wanted.items() if (made := _field(stages, spec, name, field, names, path))]
    if len(fields) < len(wanted):
        return
    undecodable = stages.fates.add("failed", stages.step, f"{path}: the text does not decode")
    stages.binder.meta.add(_RECEIVED)
    text, received = stages.place_of(spec.from_), meta_column(_RECEIVED)
    stages.then(
        _ParseStage(text, received, fields, _reader(spec, fields), undecodable), [text, received], [f.place for f in fields]
    )


def _check(stages: Stages, spec: Parse, path: str) -> bool:
    before = len(stages.binder.problems)
    if stages.columns[spec.from_].type != "VARCHAR":
        stages.binder.complain(f"{path}.from", f'"{spec.from_}" is {stages.columns[spec.from_].type}, not a text')
    for below, message, hint in decoders.check(spec):
        stages.binder.complain(f"{path}.{below}", message, hint)
    if spec.json_ and (spec.json_.rows or spec.json_.keep):
        stages.binder.complain(
            f"{path}.json", "a step makes one row of one", "`rows` and `keep` belong to the `decode` of a source"
        )
    if spec.csv and not spec.csv.columns:
        stages.binder.complain(f"{path}.csv", "a text has no header", "name the columns: `csv: {columns: [a, b]}`")
    return len(stages.binder.problems) == before


def _names(spec: Parse) -> Sequence[str] | None:
    """The names that the decoder can give, None where any may occur."""
    decoder = decoders.text_decoder(spec)
    return decoder.names() if decoder else spec.csv.columns if spec.csv else None


def _field(stages: Stages, spec: Parse, name: str, field: FieldSpec, names: Sequence[str] | None, path: str) -> _Field | None:
    here = f"{path}.fields.{name}" if spec.fields else path
    source = field.from_ or name
    if name.startswith("_"):
        stages.binder.complain(here, f'"{name}" cannot be a column', "name it under `fields:`, with `from:`")
        return None
    if field.event_time or field.check or source.startswith("meta."):
        message = "event_time, check and meta.* belong to the schema"
        stages.binder.complain(here, message, "the time of a row is known before the steps; check with a filter after this step")
        return None
    if names is not None and source not in names:
        stages.binder.complain(
            here, f'the text gives no "{source}"{did_you_mean(source, names)}', f"it gives: {', '.join(names)}"
        )
        return None
    try:
        made = converter(field)
    except ValueError as error:
        stages.binder.complain(here, str(error))
        return None
    if not stages.is_new(name, here):
        return None
    sensitive = field.sensitive or stages.columns[spec.from_].sensitive
    nullable = field.nullable or stages.columns[spec.from_].nullable
    place = stages.place(name, Column(of_field(field), sensitive, nullable))
    why = f"{path}.{name}: missing, or not as `fields` says"
    return _Field(
        source,
        made,
        Contract(name, field, made.type, hides=has_sensitive(stages.binder.spec)),
        place,
        stages.fates.add("failed", stages.step, why),
    )


class _Reader:
    """Texts to values of the fields."""

    def __init__(self, fields: Sequence[_Field]) -> None:
        self.fields = fields

    def read(self, texts: pa.Array, received_us: int) -> _Read:
        raise NotImplementedError


class _Json(_Reader):
    def __init__(self, fields: Sequence[_Field]) -> None:
        super().__init__(fields)
        self._reader = JsonReader([JsonField(parse_path(f.source), f.converter) for f in fields], None, (), "ignore")

    def read(self, texts: pa.Array, received_us: int) -> _Read:
        found = self._reader.read(Spans.of(texts), {}, received_us)
        return found.columns, found.unfit, found.undecodable


class _Text(_Reader):
    def __init__(self, fields: Sequence[_Field], decoder: TextDecoder, header: Sequence[str]) -> None:
        super().__init__(fields)
        self._decoder, self._header = decoder, header

    def read(self, texts: pa.Array, received_us: int) -> _Read:
        lines = Lines(texts, pa.nulls(len(texts), pa.int64()))
        found, bad = self._decoder.columns(lines, list(dict.fromkeys(f.source for f in self.fields)), self._header, received_us)
        columns, unfit = [], dict[int, dict[int, Unfit]]()
        for i, field in enumerate(self.fields):
            values, whys = field.converter.texts(found[field.source], received_us)
            columns.append(values)
            for row, why in whys.items():
                unfit.setdefault(row, {})[i] = why
        return columns, unfit, bad


def _reader(spec: Parse, fields: Sequence[_Field]) -> _Reader:
    if spec.json_:
        return _Json(fields)
    if spec.csv:
        quote = None if spec.csv.quote == "none" else spec.csv.quote
        return _Text(fields, Delimited(spec.csv.delimiter, quote), spec.csv.columns or ())
    decoder = decoders.text_decoder(spec)
    assert decoder is not None, "every kind of decoder is known"
    return _Text(fields, decoder, ())


@dataclass(frozen=True)
class _ParseStage:
    text: str
    received: str
    fields: Sequence[_Field]
    reader: _Reader
    undecodable: int

    def __call__(self, state: State, rows: pa.Table) -> tuple[State, pa.Table]:
        texts, fate = rows[self.text].combine_chunks(), rows["_fate"].combine_chunks()
        alive = pc.and_(pc.equal(fate, ALIVE), pc.is_valid(texts))
        if not alive.true_count:
            return state, attach(rows, {f.place: pa.nulls(rows.num_rows, f.converter.type) for f in self.fields})
        received_us = rows[self.received][0].cast(pa.int64()).as_py()
        columns, fates = self._parse(texts.filter(alive), received_us)
        made = {f.place: spread(values, alive, None) for f, values in zip(self.fields, columns, strict=True)}
        if any(fates):
            made["_fate"] = spread(pa.array(fates, pa.int16()), alive, fate)
        return state, attach(rows, made)

    def _parse(self, texts: pa.Array, received_us: int) -> tuple[Sequence[pa.Array], Sequence[int]]:
        columns, unfit, bad = self.reader.read(texts, received_us)
        fates, enforced = [ALIVE] * len(texts), []
        for i, (field, values) in enumerate(zip(self.fields, columns, strict=True)):
            reasons: Reasons = {}
            whys = {row: found[i] for row, found in unfit.items() if i in found}
            enforced.append(field.contract.enforce(values, whys, bad, reasons))
            for row in reasons:
                fates[row] = fates[row] or field.fails
        for row in bad:
            fates[row] = self.undecodable
        return enforced, fates
