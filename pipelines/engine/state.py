"""What a pipeline remembers between batches: watermarks, cells, ledgers. Values are never changed in place.

`entries` and `restore` turn it into named blobs and back, so that a commit writes only what differs from the last one (I1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from pipelines.contract.frames import canonical_json
from pipelines.engine.ipc import decode_rows, encode_rows

Group = tuple[Any, ...]  # the values of `by`, in its order
Counts = Mapping[str, int]
Key = tuple[Any, ...]  # of JSON scalars
Cells = Mapping[Key, Any]  # values: scalars, text, bytes, times, decimals, tuples and maps of them, or one Arrow table
_NO_CELLS: Cells = {}


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far event time has come in one source, in microseconds; None before the first row. See watermark.py."""

    us: int | None = None
    arrival_us: int = 0  # node time of the newest row
    streak: int = 0  # rows in a row that are far from the watermark
    streak_us: int = 0  # the farthest of them
    key: str | None = None  # the key of the first row
    many: bool = False  # rows of another key were seen
    streak_key: str | None = None  # the same of the streak
    streak_many: bool = False


@dataclass(frozen=True)
class State:
    """`lineage` is the random id of this unbroken history on this node; `epoch` counts commits and names new chunks."""

    lineage: str
    epoch: int = 1
    watermarks: Mapping[str, Watermark] = field(default_factory=dict)
    cells: Mapping[str, Cells] = field(default_factory=dict)  # by owner: all that a step, window or trigger keeps
    sources: Mapping[str, Counts] = field(default_factory=dict)  # source ledgers (I4)
    streams: Mapping[str, Counts] = field(default_factory=dict)  # stream ledgers (I4), windows as `windows.<name>`

    def of(self, owner: str) -> Cells:
        """What `owner` keeps. Never changed in place."""
        return self.cells.get(owner, _NO_CELLS)

    def put(self, owner: str, cells: Cells) -> State:
        """The state with all that `owner` keeps replaced; an owner of nothing is forgotten."""
        if cells is self.cells.get(owner):
            return self
        rest = dict(self.cells)
        rest.pop(owner, None)
        if cells:
            rest[owner] = cells
        return replace(self, cells=rest)

    def ledger(self) -> dict[str, Any]:
        return {"sources": dict(self.sources), "streams": dict(self.streams)}

    def with_counts(self, kind: str, name: str, counts: Counts) -> State:
        """The state with `counts` added to one ledger; `kind` is `sources` or `streams`."""
        ledgers: Mapping[str, Counts] = getattr(self, kind)
        old = ledgers.get(name, {})
        summed = {k: old.get(k, 0) + counts.get(k, 0) for k in [*old, *(k for k in counts if k not in old)]}
        new = {**ledgers, name: summed}
        return replace(self, sources=new) if kind == "sources" else replace(self, streams=new)


def entries(state: State, since: State | None) -> tuple[dict[str, bytes], list[str]]:
    """What to store and what to delete so that a store that holds `since` holds `state`. Ledgers are not in it."""
    old = _parts(since) if since else {}
    new = _parts(state)
    put = {key: _encode(value) for key, value in new.items() if old.get(key) is not value and old.get(key) != value}
    gone = [key for key in old if key not in new]
    cells, gone_cells = _cell_changes(state, since)
    return {**put, **cells}, [*gone, *gone_cells]


def _cell_changes(state: State, since: State | None) -> tuple[dict[str, bytes], list[str]]:
    """Of the cells: only owners whose mapping is another are looked into."""
    put: dict[str, bytes] = {}
    gone: list[str] = []
    old_owners = since.cells if since else {}
    for owner in {**old_owners, **state.cells}:
        old, new = old_owners.get(owner, _NO_CELLS), state.of(owner)
        if old is new:
            continue
        put |= {
            _key("cell", owner, *map(_pack, k)): _encode_cell(v) for k, v in new.items() if k not in old or _differs(old[k], v)
        }
        gone += [_key("cell", owner, *map(_pack, k)) for k in old if k not in new]
    return put, gone


def _differs(a: Any, b: Any) -> bool:
    return a is not b and (isinstance(a, pa.Table) or type(a) is not type(b) or bool(a != b))


_TABLE, _JSON = b"T", b"J"


def _encode_cell(value: Any) -> bytes:
    if isinstance(value, pa.Table):
        return _TABLE + encode_rows(value)
    return _JSON + json.dumps(_pack(value), ensure_ascii=False, separators=(",", ":")).encode()


def _decode_cell(data: bytes) -> Any:
    return decode_rows(data[1:]) if data[:1] == _TABLE else _unpack(json.loads(data[1:]))


def _pack(value: Any) -> Any:
    """JSON of a cell: tuples as lists, what JSON has no word for as {"kind": text}, maps as {"map": pairs}."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_pack(item) for item in value]
    if isinstance(value, datetime):
        return {"at": round((value.replace(tzinfo=None) - _EPOCH) / timedelta(microseconds=1)), "utc": value.tzinfo is not None}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    assert isinstance(value, Mapping), f"a cell of type {type(value)} has no stored form"
    return {"map": [[_pack(k), _pack(v)] for k, v in value.items()]}


def _unpack(value: Any) -> Any:
    """The inverse of `_pack`; sequences become tuples."""
    if isinstance(value, list):
        return tuple(_unpack(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "at" in value:
        at = _EPOCH + timedelta(microseconds=value["at"])
        return at.replace(tzinfo=UTC) if value["utc"] else at
    if "decimal" in value:
        return Decimal(value["decimal"])
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    return {_unpack(k): _unpack(v) for k, v in value["map"]}


_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the naive UTC of DuckDB's timestamps


def restore(lineage: str, stored: Iterable[tuple[str, bytes]], ledger: Mapping[str, Any], epoch: int) -> State:
    """The state from the entries of earlier commits."""
    watermarks: dict[str, Watermark] = {}
    cells: dict[str, dict[Key, Any]] = {}
    for key, data in stored:
        kind, *rest = json.loads(key)
        if kind == "cell":
            owner, *words = rest
            cells.setdefault(owner, {})[_unpack(words)] = _decode_cell(data)
            continue
        value = json.loads(data)
        if kind == "watermark":
            watermarks[rest[0]] = Watermark(**value)
    ledgers = dict(ledger.get("sources", {})), dict(ledger.get("streams", {}))
    return State(lineage, epoch, watermarks, cells, *ledgers)


def _parts(state: State) -> dict[str, Any]:
    return {_key("watermark", name): mark for name, mark in state.watermarks.items()}


def _encode(value: Any) -> bytes:
    return canonical_json(asdict(value))


def _key(kind: str, *words: Any) -> str:
    return json.dumps([kind, *words], ensure_ascii=False, separators=(",", ":"))
