"""Segments: what goes up. A sealed batch of rows of one stream of one run of one node, in a hash chain.

Wire and store format 1: an envelope (see frames.py) signed by the node, whose frame header is the `SegmentHeader` and
whose only blob is the payload: an Arrow IPC stream (zstd) of `rows` rows, or nothing for a header-only segment.

A stub is a header-only segment in place of segments `first` to `seq`, whose rows are lost (`void` says why). The chain goes on
behind it as if they were there: `stands_for` is the digest of the segment `seq` that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json, sha256, shallow_dict
from pipelines.contract.keys import Key, seal, unseal

FORMAT = 1
PAYLOAD_BYTES_TARGET = 256 * 1024  # seal here
SEGMENT_BYTES_MAX = 512 * 1024  # refuse above: header, signature and payload must fit a NATS message of 1 MiB
NO_SEGMENT = ""  # the `previous` digest of the first segment of a run

ROWS, QUARANTINE, INCIDENTS, LEDGER, REQUESTS = "rows", "quarantine", "incidents", "ledger", "requests"
KINDS = frozenset({ROWS, QUARANTINE, INCIDENTS, LEDGER, REQUESTS})
EVICTED, DAMAGED = "evicted", "damaged"  # by the full buffer, by the disk
VOIDS = frozenset({EVICTED, DAMAGED})
OWN, NODE_TIME, WALL = "", "node", "wall"  # see `SegmentHeader.stamps`
STAMPS = frozenset({OWN, NODE_TIME, WALL})
SYNCED, ANCHORED, UNSYNCED = "synced", "anchored", "unsynced"  # the node's clock: see `SegmentHeader.utc_offset_us`


@dataclass(frozen=True, slots=True, order=True)
class StreamKey:
    """An unbroken history of one stream: `run` is a random id, minted anew whenever the history may have forked."""

    node: str
    run: str
    stream: str

    @property
    def app_id(self) -> str:
        """The name of this history's mark in a Delta table's `txn` actions."""
        return f"{self.node}/{self.run}/{self.stream}"


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Lineage, ledgers and chain of one segment. `seq` counts from 1 without gaps within (node, run, stream).

    `ledgers` are cumulative counts at the seal (I4): `{"source": {source: {...}}, "stream": {...}}`.
    `positions` say what went in: `{source: {"from": ..., "to": ...}}` in the source's own words; `lookups` which bytes of each
    lookup file the rows were made with: `{table: digest}`.
    """

    node: str
    run: str
    stream: str
    seq: int
    previous: str  # digest of segment seq-1 of this run
    kind: str
    table: str  # lake table that takes the rows
    rows: int
    payload_digest: str
    pipeline: str
    version: str  # digest
    number: int
    params: str  # digest of the effective parameters
    sealed_at_us: int  # the node's wall clock, microseconds since 1970; a label, never an order
    node_time_us: int  # BOOTTIME summed over boots
    clock: str  # synced: the wall clock follows a time server; anchored: the control plane told the time since boot; unsynced
    engine: str
    lineage: str  # of the pipeline's state and ledgers: a random id, minted anew when they begin anew
    boot: str  # which boot of the node `node_time_us` is of
    utc_offset_us: int  # UTC minus node time, as well as `clock` knows it
    run_rows: int  # rows of the run through this segment
    first: int  # `seq`; of a stub the first segment that it stands for
    void: str = ""  # of a stub: evicted | damaged; `rows` are then those that are lost
    stands_for: str = ""  # of a stub: the digest of the segment `seq` that was sealed
    stamps: str = OWN  # which clock stamped the rows: "" none of ours; node: node time; wall: the node's wall clock
    positions: Mapping[str, Any] = field(default_factory=dict)
    ledgers: Mapping[str, Any] = field(default_factory=dict)
    lookups: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def key(self) -> StreamKey:
        return StreamKey(self.node, self.run, self.stream)

    @property
    def is_stub(self) -> bool:
        return bool(self.void)


@dataclass(frozen=True)
class Segment:
    """A sealed segment: `data` are its stored and sent bytes, `digest` is theirs; the next one names `link` as `previous`."""

    header: SegmentHeader
    payload: bytes
    data: bytes

    @cached_property
    def digest(self) -> str:
        return sha256(self.data)

    @property
    def link(self) -> str:
        return self.header.stands_for or self.digest


def encode(header: SegmentHeader, payload: bytes, key: Key) -> Segment:
    return Segment(header, payload, seal(key, shallow_dict(header), [payload]))


def decode(data: bytes, public: str) -> Segment:
    """The segment in `data`. Raises `Refused` unless the node that holds the private half of `public` sealed it whole."""
    if len(data) > SEGMENT_BYTES_MAX + 4096:
        raise Refused(f"{len(data)} bytes are more than a segment may have", op="decode segment")
    fields, blobs = unseal(public, data)
    if fields.get("format") != FORMAT:
        raise Refused(f"segment format {fields.get('format')} is not known here", op="decode segment", hint="upgrade this side")
    try:
        header = SegmentHeader(**fields)
    except TypeError as error:
        raise Refused(str(error), op="decode segment") from None
    well_formed = (
        len(blobs) == 1
        and all(type(getattr(header, name)) is kind for name, kind in _TYPES.items())
        and header.kind in KINDS
        and header.stamps in STAMPS
        and 1 <= header.first <= header.seq
        and 0 <= header.rows <= header.run_rows
        and (_is_stub(header, blobs[0]) or _is_whole(header, blobs[0]))
        and _is_storable(fields)
    )
    if not well_formed:
        raise Refused("the header's fields do not fit together", op="decode segment", place=f"{header.node}/{header.stream}")
    if sha256(blobs[0]) != header.payload_digest:
        raise Refused("the payload is not the one that was sealed", op="decode segment", place=f"{header.node}/{header.stream}")
    return Segment(header, blobs[0], data)


def _is_whole(header: SegmentHeader, payload: bytes) -> bool:
    is_one = header.first == header.seq and not header.void and not header.stands_for
    return is_one and (header.rows > 0) == bool(payload)


def _is_stub(header: SegmentHeader, payload: bytes) -> bool:
    return header.void in VOIDS and bool(header.stands_for) and not payload


def _is_storable(fields: dict[str, Any]) -> bool:
    """Whether a table takes every field: 64-bit integers, text without lone surrogates, no NaN, ledgers that are objects."""
    try:
        canonical_json(fields)
    except (ValueError, RecursionError):
        return False
    integers = (value for value in fields.values() if type(value) is int)
    objects = (fields.get("positions", {}), fields.get("ledgers", {}), fields.get("lookups", {}))
    return all(-(2**63) <= n < 2**63 for n in integers) and all(isinstance(value, dict) for value in objects)


_TYPES: dict[str, type] = {
    **dict.fromkeys(("node", "run", "stream", "previous", "kind", "table", "payload_digest"), str),
    **dict.fromkeys(("pipeline", "version", "params", "clock", "engine", "lineage", "boot", "void", "stands_for", "stamps"), str),
    **dict.fromkeys(("seq", "rows", "number", "sealed_at_us", "node_time_us", "utc_offset_us", "run_rows", "first"), int),
}
