"""JSON lines to the columns of the schema.

Three readers that agree. `_one_by_one` is the definition: Python's json and one value at a time. The others read thousands of
lines at once, ten and twenty times as fast; they take only what they are sure to read the same way. `_templated` takes lines that
look like one of them (json_template.py). `_whole_block` is `pyarrow.json` with an explicit schema:

* a line that does not begin with { and end with }, or is nested deep, is read alone;
* more or fewer objects than lines (two in one line), a value of another kind than the first line has, a key given twice, any
  syntax error: pyarrow refuses the block, and the block is divided until the lines at fault are alone;
* a value at the limits of what both convert alike: its line is read alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from pipelines.engine.records.convert import Converter, Native, Unfit, either
from pipelines.engine.records.json_template import Path, Template, make_template
from pipelines.engine.records.json_text import DEPTH_MAX, Doubled, NotJson, parse_object, to_json
from pipelines.engine.records.spans import Mask, Spans
from pipelines.engine.records.table_read import Part, TableRead, merge

ROWS_MAX = 10_000  # elements of one message's array
BLOCK_ROWS_MIN = 33  # below, one by one is faster
_EXAMPLES = 3  # lines of which the first plain one is the example
_TEMPLATES_MAX = 4  # shapes of lines that are tried, each on what the one before left
_FEW_ALIKE = 4  # a template for less than a quarter of the lines does not pay
_FEW_ODD = 8  # up to an eighth of other lines is put in among those that match
_FEW = 50  # a fiftieth of the lines is read one by one without ado
_ARROW_ROW = re.compile(r" in row (\d+)")
_LONG = 2 * DEPTH_MAX  # a line nested deeper than DEPTH_MAX is longer than this

Some = tuple[Spans, pa.Array | None]  # lines, and their numbers in the batch (None: all, in order)
_Known = tuple[Template, Sequence[Native | None]]  # a shape of lines, and by field what is made of its value


def parse_path(text: str) -> Path:
    """`data.values[0].t` -> ("data", "values", 0, "t")."""
    path: list[str | int] = []
    for word in text.split("."):
        name, *indices = re.split(r"((?:\[\d{1,4}\])+)\Z", word)
        path.append(name)
        path += [int(i) for i in re.findall(r"\d+", indices[0])] if indices else []
    return tuple(path)


@dataclass(frozen=True)
class JsonField:
    path: Path
    converter: Converter


@dataclass(frozen=True)
class _Shape:
    """A block read by one explicit schema: per field where its column is, and what is made of it."""

    schema: pa.Schema
    natives: Sequence[Native]


class JsonReader:
    """`rows` is the path of the array whose elements are the records, None: each line is one; `keep` the keys of the message that
    go into each. `unknown`: what becomes of keys that no field names: ignore, reject, keep (as the last column)."""

    def __init__(self, fields: Sequence[JsonField], rows: Path | None, keep: Sequence[str], unknown: str) -> None:
        self._fields, self._rows, self._keep, self._unknown = fields, rows, tuple(keep), unknown
        self._named = _tree([f.path for f in fields])
        self._ways = [(str(f.path[0]) if len(f.path) == 1 else "", f.path, f.converter.value) for f in fields]
        self._is_flat = not any(pa.types.is_nested(f.converter.type) for f in fields)
        self._has_decimals = any("decimal" in str(f.converter.type) for f in fields)
        self._dirt = _dirt(fields) if rows is None else ""
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}
        self._former: _Known | None = None  # the shape that lines had last: no result depends on it
        self.types = [f.converter.type for f in fields] + ([pa.string()] if unknown == "keep" else [])

    def read(self, lines: Spans, bad: Mapping[int, str], received_us: int) -> TableRead:
        """`bad` lines are undecodable already."""
        parts = list(self._divide(lines, bad, received_us))
        return merge(parts, self.types, len(lines), many=self._rows is not None)

    # -- a block

    def _divide(self, lines: Spans, bad: Mapping[int, str], received_us: int) -> Iterator[Part]:
        """Parts that together hold every line."""
        if len(lines) < BLOCK_ROWS_MIN:
            yield self._one_by_one(lines.texts(), None, bad, received_us)
            return
        rest: Some = (lines, None)
        if bad:
            spoilt = np.zeros(len(lines), np.bool_)
            spoilt[list(bad)] = True
            some, numbers = _pick(*rest, spoilt)
            yield self._one_by_one(some.texts(), numbers, bad, received_us)
            rest = _pick(*rest, ~spoilt)
        for _ in range(_TEMPLATES_MAX):
            parts, left = self._templated(*rest, received_us)
            yield from parts
            if left is None:
                break
            rest = left
            if not len(rest[0]):
                return
        some, numbers = rest
        if len(some) <= len(lines) // _FEW:
            yield self._one_by_one(some.texts(), numbers, {}, received_us)
        else:
            yield from self._general(some.texts(), numbers, received_us)

    def _general(self, texts: pa.Array, lines: pa.Array | None, received_us: int) -> Iterator[Part]:
        alone = self._read_alone(texts)
        work = [(texts, lines)]
        if alone is not None:
            yield self._one_by_one(*_take(texts, lines, alone), {}, received_us)
            work = [_take(texts, lines, pc.invert(alone))]
        screened = False
        while work:
            some, lines = work.pop()
            if len(some) < BLOCK_ROWS_MIN:
                yield self._one_by_one(some, lines, {}, received_us)
                continue
            try:
                yield from self._whole_block(some, lines, received_us)
                continue
            except pa.ArrowInvalid as error:
                why = str(error)
            dirty = None if screened else self._dirty(some)
            screened = True
            if dirty is not None:
                yield self._one_by_one(*_take(some, lines, dirty), {}, received_us)
                work.append(_take(some, lines, pc.invert(dirty)))
            else:
                work += _halves(some, lines, why)

    def _templated(self, texts: Spans, lines: pa.Array | None, received_us: int) -> tuple[list[Part], Some | None]:
        """The lines that look like one of them, and the others; None: it is not worth while."""
        n = len(texts)
        if n >= BLOCK_ROWS_MIN and self._rows is None:
            for known in self._known(texts):
                try:
                    columns, odd, doubt = self._cut(*known, texts, received_us)
                except pa.ArrowInvalid:
                    continue
                count = 0 if odd is None else int(odd.sum())
                if (n - count) * _FEW_ALIKE < n:
                    continue
                self._former = known
                if count <= n // _FEW_ODD and self._is_flat:
                    doubt = either(None if odd is None else pa.array(odd), doubt)
                    return [self._patched(columns, doubt, texts, lines, received_us)], (texts.pick(slice(0, 0)), None)
                others = texts.pick(slice(0, 0)), None
                if odd is not None:
                    alike = pa.array(~odd)
                    columns = [column.filter(alike) for column in columns]
                    doubt = None if doubt is None else doubt.filter(alike)
                    others, (texts, lines) = _pick(texts, lines, odd), _pick(texts, lines, ~odd)
                return list(self._sure(texts, lines, columns, None, doubt, received_us)), others
        return [], None

    def _known(self, texts: Spans) -> Iterator[_Known]:
        """Shapes that the lines may have: the former one, those of the first line and of the middle one."""
        if self._former is not None:
            yield self._former
        for start in (0, len(texts) // 2):
            found = self._template(texts.pick(slice(start, start + _EXAMPLES)).texts().to_pylist())
            if found is not None and found[0] != (self._former and self._former[0]):
                yield found

    def _patched(
        self, columns: Sequence[pa.Array], odd: pa.Array | None, texts: Spans, lines: pa.Array | None, received_us: int
    ) -> Part:
        """All lines, the odd ones read one by one."""
        odd = None if odd is None else pc.fill_null(odd, False)
        if odd is None or not pc.any(odd).as_py():
            return Part(columns, None, lines, len(texts))
        rows = pc.indices_nonzero(odd).cast(pa.int32())
        some = texts.pick(rows.to_numpy()).texts()
        alone = self._one_by_one(some, rows if lines is None else lines.take(rows), {}, received_us)
        columns = [pc.replace_with_mask(column, odd, found) for column, found in zip(columns, alone.columns, strict=True)]
        at = rows.to_pylist()
        unfit = {at[row]: why for row, why in alone.unfit.items()}
        undecodable = {at[row]: why for row, why in alone.undecodable.items()}
        unknown = {at[row]: names for row, names in alone.unknown.items()}
        return Part(columns, None, lines, len(texts), unfit, undecodable, unknown)

    def _template(self, examples: Sequence[str]) -> _Known | None:
        """From the first example that is a plain object."""
        example, record = next(((text, found) for text in examples if (found := _object(text)) is not None), ("", None))
        if record is None or (self._unknown != "ignore" and _unnamed(record, self._named)):
            return None
        try:
            kinds = self._kinds(record, strict=True)
        except _Undecodable:
            return None
        patterns = {f.path: f.converter.number_pattern(kind) for f, kind in zip(self._fields, kinds, strict=True)}
        template = make_template(example, patterns)
        if template is None:
            return None
        natives = [f.converter.native(kind) for f, kind in zip(self._fields, kinds, strict=True)]
        for leaf, native in zip(self._fields, natives, strict=True):
            if native is None if template.kind(leaf.path) != "null" else template.has_below(leaf.path):
                return None
        return template, natives

    def _cut(
        self, template: Template, natives: Sequence[Native | None], texts: Spans, received_us: int
    ) -> tuple[list[pa.Array], Mask | None, pa.Array | None]:
        """(columns, the lines of another shape or None, the rows to doubt or None). Raises ArrowInvalid."""
        types = {f.path: native.type for f, native in zip(self._fields, natives, strict=True) if native is not None}
        found, odd = template.cut(texts, types)
        columns: list[pa.Array] = []
        doubt: pa.Array | None = None
        if odd is not None and odd.all():
            return columns, odd, doubt
        for leaf, native in zip(self._fields, natives, strict=True):
            kind = template.kind(leaf.path)
            if kind == "null" or native is None:
                columns.append(pa.nulls(len(texts), leaf.converter.type))
                continue
            value = found[leaf.path]
            values, unsure = leaf.converter.quickly(value) if kind == "string" else native.finish(value, received_us)
            columns.append(values)
            doubt = either(doubt, unsure)
        if self._unknown == "keep":
            columns.append(pa.nulls(len(texts), pa.string()))
        return columns, odd, doubt

    def _read_alone(self, texts: pa.Array) -> pa.Array | None:
        """The lines that `pyarrow.json` must not see, None: it may see all."""
        whole = pc.and_(pc.starts_with(texts, "{"), pc.ends_with(texts, "}"))
        alone = pc.invert(whole)
        if (pc.max(pc.binary_length(texts)).as_py() or 0) > _LONG:
            brackets = pc.add(pc.count_substring(texts, "["), pc.count_substring(texts, "{"))
            alone = pc.or_(alone, pc.greater(brackets, DEPTH_MAX))
        if self._has_decimals:  # pyarrow takes 1e-309 for a decimal zero
            alone = pc.or_(alone, pc.match_substring_regex(texts, "[0-9.][eE][-+0-9]"))
        return alone if pc.any(alone).as_py() else None

    def _dirty(self, texts: pa.Array) -> pa.Array | None:
        """The lines in which some field looks like another kind of value, if few do. A guess: what it misses is divided out."""
        if not self._dirt:
            return None
        dirty = pc.match_substring_regex(texts, self._dirt)
        count = pc.sum(dirty).as_py()
        return dirty if 0 < count <= len(texts) // 2 else None

    def _whole_block(self, texts: pa.Array, lines: pa.Array | None, received_us: int) -> Iterator[Part]:
        """Raises ArrowInvalid when the block is not plain."""
        shape = self._shape(texts[0].as_py())
        if shape is None:
            raise pa.ArrowInvalid("not to be read as a block")
        table = _read_json(texts, shape.schema, strict=self._unknown != "ignore")
        if table.num_rows != len(texts):
            raise pa.ArrowInvalid("two objects in one line")
        columns, parents, doubt = self._columns(table, shape, received_us)
        yield from self._sure(Spans.of(texts), lines, columns, parents, doubt, received_us)

    def _sure(
        self,
        texts: Spans,
        lines: pa.Array | None,
        columns: list[pa.Array],
        parents: pa.Array | None,
        doubt: pa.Array | None,
        received_us: int,
    ) -> Iterator[Part]:
        """The columns without the lines to doubt, and those read one by one."""
        n = len(texts)
        if doubt is None or not pc.any(doubt).as_py():
            yield Part(columns, parents if lines is None or parents is None else lines.take(parents), lines, n)
            return
        rows = pc.indices_nonzero(pc.fill_null(doubt, False)).cast(pa.int32())
        doubtful = pc.unique(rows if parents is None else parents.take(rows))
        numbers = pa.arange(0, n).cast(pa.int32()) if lines is None else lines
        every = pa.arange(0, n).cast(pa.int32())
        sure = pc.invert(pc.is_in(every, doubtful))
        kept = sure if parents is None else sure.take(parents)
        yield Part(
            [column.filter(kept) for column in columns],
            None if parents is None else numbers.take(parents.filter(kept)),
            numbers.filter(sure),
            len(texts) - len(doubtful),
        )
        yield self._one_by_one(texts.pick(doubtful.to_numpy()).texts(), numbers.take(doubtful), {}, received_us)

    def _columns(
        self, table: pa.Table, shape: _Shape, received_us: int
    ) -> tuple[list[pa.Array], pa.Array | None, pa.Array | None]:
        """(columns, the line of each record or None, the records to doubt or None)."""
        found = {name: table[name].combine_chunks() for name in table.column_names}
        records, parents, doubt = found, None, None
        if self._rows is not None:
            records, parents, doubt = self._elements(found)
        columns = []
        for leaf, native in zip(self._fields, shape.natives, strict=True):
            raw = _leaf(records, leaf.path)
            if parents is not None and leaf.path[0] in self._keep:
                raw = pc.coalesce(raw, _leaf(found, leaf.path).take(parents))
            values, unsure = native.finish(raw, received_us)
            columns.append(values)
            doubt = either(doubt, unsure)
        if self._unknown == "keep":
            columns.append(pa.nulls(table.num_rows if parents is None else len(parents), pa.string()))
        return columns, parents, doubt

    def _elements(self, found: Mapping[str, pa.Array]) -> tuple[dict[str, pa.Array], pa.Array, pa.Array | None]:
        assert self._rows is not None
        lists = _leaf(found, self._rows)
        lengths = pc.list_value_length(lists)
        if lists.null_count or (pc.max(lengths).as_py() or 0) > ROWS_MAX:
            raise pa.ArrowInvalid("a message without its array, or with too long a one")
        flat = lists.flatten()
        if flat.null_count:
            raise pa.ArrowInvalid("an element that is null")
        return dict(zip(flat.type.names, flat.flatten(), strict=True)), pc.list_parent_indices(lists).cast(pa.int32()), None

    # -- the explicit schema

    def _shape(self, example: str) -> _Shape | None:
        """By the kinds of values that the first line has."""
        try:
            record = next(iter(self._records(parse_object(example))), {})
        except (NotJson, _Undecodable):
            record = {}
        kinds = self._kinds(record)
        if kinds not in self._shapes:
            if len(self._shapes) > 64:
                self._shapes.clear()
            self._shapes[kinds] = self._make_shape(kinds)
        return self._shapes[kinds]

    def _kinds(self, record: Any, *, strict: bool = False) -> tuple[str, ...]:
        return tuple(_kind(_walk(record, f.path, strict=strict), f.converter.usual_kind) for f in self._fields)

    def _make_shape(self, kinds: Sequence[str]) -> _Shape | None:
        natives = [f.converter.native(kind) for f, kind in zip(self._fields, kinds, strict=True)]
        ready = [native for native in natives if native is not None]
        if len(ready) < len(natives):
            return None
        try:
            leaves = [(f.path, native.type) for f, native in zip(self._fields, ready, strict=True)]
            if self._rows is None:
                return _Shape(_schema(leaves), ready)
            element = pa.list_(pa.struct(list(_schema(leaves))))
            kept = [leaf for leaf in leaves if leaf[0][0] in self._keep]
            return _Shape(_schema([*kept, (self._rows, element)]), ready)
        except _Collision:
            return None

    # -- one by one

    def _one_by_one(self, texts: pa.Array, lines: pa.Array | None, bad: Mapping[int, str], received_us: int) -> Part:
        made = _Rows([[] for _ in self.types])
        numbers = range(len(texts)) if lines is None else lines.to_pylist()
        for line, text in zip(numbers, texts.to_pylist(), strict=True):
            try:
                if line in bad:
                    raise _Undecodable(bad[line])
                for record in self._records(parse_object(text)):
                    self._record(record, made, line, received_us)
            except (_Undecodable, NotJson) as error:
                made.spoil(line, str(error))
        return made.part(self.types, lines, len(texts))

    def _record(self, record: Mapping[str, Any], made: _Rows, line: int, received_us: int) -> None:
        try:
            raws = [record.get(key) if key and type(record) is dict else _walk(record, path) for key, path, _ in self._ways]
        except _Undecodable as error:
            made.spoil(line, str(error))
            return
        row = len(made.line)
        made.line.append(line)
        for i, raw in enumerate(raws):
            value = None
            if raw is not None:
                try:
                    value = self._ways[i][2](raw, received_us)
                except Unfit as why:
                    made.unfit.setdefault(row, {})[i] = why
            made.columns[i].append(value)
        if self._unknown != "ignore":
            self._tell_unknown(_unnamed(record, self._named), made, row)

    def _tell_unknown(self, unknown: Mapping[str, Any], made: _Rows, row: int) -> None:
        if self._unknown == "keep":
            made.columns[-1].append(to_json(unknown) if unknown else None)
        elif unknown:
            made.unknown[row] = list(_names(unknown, self._named))

    def _records(self, message: Any) -> Iterator[Mapping[str, Any]]:
        """The records of one message. Raises _Undecodable."""
        if self._rows is None:
            yield message
            return
        elements = _walk(message, self._rows)
        where = ".".join(map(str, self._rows))
        if not isinstance(elements, list):
            raise _Undecodable(f"there is no array at {where}")
        if len(elements) > ROWS_MAX:
            raise _Undecodable(f"the array at {where} has {len(elements)} elements, more than {ROWS_MAX}")
        kept = {name: value for name in self._keep if (value := _walk(message, (name,))) is not None}
        for element in elements:
            yield _with_kept(element if isinstance(element, dict) else {"value": element}, kept)


def _object(text: str) -> dict[str, Any] | None:
    try:
        return parse_object(text) if text.startswith("{") else None
    except NotJson:
        return None


class _Undecodable(Exception):
    """Its text says why."""


class _Collision(Exception):
    """Two fields that one explicit schema cannot hold."""


@dataclass
class _Rows:
    """Columns that grow by records."""

    columns: list[list[Any]]
    line: list[int] = field(default_factory=list)
    unfit: dict[int, dict[int, Unfit]] = field(default_factory=dict)
    undecodable: dict[int, str] = field(default_factory=dict)
    unknown: dict[int, list[str]] = field(default_factory=dict)

    def spoil(self, line: int, why: str) -> None:
        """A record that does not decode."""
        self.undecodable[len(self.line)] = why
        self.line.append(line)
        for column in self.columns:
            column.append(None)

    def part(self, types: Sequence[pa.DataType], lines: pa.Array | None, count: int) -> Part:
        columns = [pa.array(values, type_) for values, type_ in zip(self.columns, types, strict=True)]
        return Part(columns, pa.array(self.line, pa.int32()), lines, count, self.unfit, self.undecodable, self.unknown)


def _with_kept(element: dict[str, Any], kept: Mapping[str, Any]) -> Mapping[str, Any]:
    if not kept:
        return element
    own = {name: value for name, value in element.items() if value is not None or name not in kept}
    record = Doubled({**kept, **own})
    record.names = element.names if isinstance(element, Doubled) else frozenset()
    return record


def _walk(value: Any, path: Path, *, strict: bool = True) -> Any:
    """The value at a path, None when there is none. Raises _Undecodable for a key on the way that stands twice."""
    for word in path:
        if isinstance(word, int):
            if not isinstance(value, list) or word >= len(value):
                return None
            value = value[word]
        elif not isinstance(value, dict):
            return None
        else:
            if type(value) is Doubled and strict and word in value.names:
                raise _Undecodable(f'the key "{word}" stands twice')
            value = value.get(word)
    return value


def _kind(raw: Any, usual: str) -> str:
    if raw is None:
        return usual
    if isinstance(raw, bool):
        return "boolean"
    if isinstance(raw, list):
        return "list"
    if isinstance(raw, dict):
        return "struct"
    if type(raw) is str:
        return "string"
    return "number" if re.search("[.eE]", raw) else "integer"


def _tree(paths: Sequence[Path]) -> dict[str, Any]:
    """The keys that the fields name; a value of None: everything below it."""
    tree: dict[str, Any] = {}
    for path in paths:
        below = tree
        for word, after in zip(path, [*path[1:], None], strict=True):
            name = str(word)
            if not isinstance(after, str):
                below[name] = None
                break
            if name in below and below[name] is None:
                break
            below = below.setdefault(name, {})
    return tree


def _unnamed(record: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        if name not in named:
            found[name] = value
        elif named[name] is not None and isinstance(value, dict) and (below := _unnamed(value, named[name])):
            found[name] = below
        elif named[name] is not None and value is not None and not isinstance(value, dict):
            found[name] = value
    return found


def _names(unknown: Mapping[str, Any], named: Mapping[str, Any]) -> Iterator[str]:
    """`data.y` where `data` is named and `y` is not."""
    for name, value in unknown.items():
        if named.get(name) is not None and isinstance(value, dict):
            yield from (f"{name}.{below}" for below in _names(value, named[name]))
        else:
            yield name


def _schema(leaves: Sequence[tuple[Path, pa.DataType]]) -> pa.Schema:
    """Raises _Collision."""
    tree: dict[str, Any] = {}
    for path, type_ in leaves:
        words = path
        while words and isinstance(words[-1], int):
            words, type_ = words[:-1], pa.list_(type_)
        if any(isinstance(word, int) for word in words):
            raise _Collision
        below = tree
        for word in words[:-1]:
            below = below.setdefault(str(word), {})
            if not isinstance(below, dict):
                raise _Collision
        if below.setdefault(str(words[-1]), type_) != type_:
            raise _Collision
    return pa.schema(_fields(tree))


def _fields(tree: Mapping[str, Any]) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.struct(_fields(below)) if isinstance(below, dict) else below) for name, below in tree.items()]


def _leaf(columns: Mapping[str, pa.Array], path: Path) -> pa.Array:
    column = columns[str(path[0])]
    for word in path[1:]:
        if isinstance(word, int):
            long_enough = pc.fill_null(pc.greater(pc.list_value_length(column), word), False)
            column = pc.list_element(pc.if_else(long_enough, column, pa.scalar([None] * (word + 1), column.type)), word)
        else:
            column = pc.struct_field(column, word)
    return column


def _read_json(texts: pa.Array, schema: pa.Schema, *, strict: bool) -> pa.Table:
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts), "\n")[0].as_buffer()
    if not joined.size:
        raise pa.ArrowInvalid("nothing")
    return pa_json.read_json(
        pa.BufferReader(joined),
        pa_json.ReadOptions(use_threads=False, block_size=joined.size + 1),
        pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error" if strict else "ignore"),
    )


def _pick(texts: Spans, lines: pa.Array | None, which: Mask) -> Some:
    chosen = np.flatnonzero(which)
    numbers = pa.array(chosen, pa.int32())
    return texts.pick(chosen), numbers if lines is None else lines.take(numbers)


def _take(texts: pa.Array, lines: pa.Array | None, which: pa.Array) -> tuple[pa.Array, pa.Array]:
    chosen = pc.indices_nonzero(which).cast(pa.int32())
    return texts.take(chosen), chosen if lines is None else lines.take(chosen)


def _halves(texts: pa.Array, lines: pa.Array | None, why: str) -> list[tuple[pa.Array, pa.Array]]:
    """What to try next: what lies before and after the line that pyarrow names, or the two halves."""
    numbers = pa.arange(0, len(texts)).cast(pa.int32()) if lines is None else lines
    found = _ARROW_ROW.search(why)
    cuts = [0, len(texts) // 2, len(texts)]
    if found and int(found[1]) < len(texts):
        at = int(found[1])
        cuts = [0, at, at + 1, len(texts)]
    return [(texts.slice(a, b - a), numbers.slice(a, b - a)) for a, b in pairwise(cuts) if b > a]


_ODD = {
    "integer": r"(?:[^-0-9n\s]|-?[0-9]+[.eE])",
    "number": r"[^-0-9n\s]",
    "string": r'(?:[^"n\s])',
    "boolean": r"[^tfn\s]",
}


def _dirt(fields: Sequence[JsonField]) -> str:
    """A pattern of lines in which a field is not of its usual kind; "" when that cannot be told by a pattern."""
    if any(f.converter.usual_kind not in _ODD for f in fields):
        return ""
    parts = [
        rf'"{re.escape(str(f.path[-1]))}"\s*:\s*{_ODD[f.converter.usual_kind]}' for f in fields if isinstance(f.path[-1], str)
    ]
    return "|".join(parts)
