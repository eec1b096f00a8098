"""Bytes on a wire or in a store: a JSON header followed by blobs.

Layout of a frame: magic `TWF1`, header length (u32, big endian), header (UTF-8 JSON, its last member `_blobs` the
lengths of the blobs), the blobs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from pipelines.contract.errors import Refused

MAGIC = b"TWF1"
HEADER_BYTES_MAX = 16 << 20  # a commit of a pipeline with 100,000 open windows names each of them
_LENGTH = struct.Struct(">I")


def canonical_json(value: object) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, UTF-8, no NaN (RFC 8785 without its number rules).

    A dataclass is the object of its fields.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=shallow_dict)
    return text.encode()


def shallow_dict(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name. `dataclasses.asdict` copies all that they hold, which takes longer than to encode it."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def sha256(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pack(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    head = json.dumps({**header, "_blobs": [len(b) for b in blobs]}, separators=(",", ":"), ensure_ascii=False).encode()
    return b"".join((MAGIC, _LENGTH.pack(len(head)), head, *blobs))


def unpack(data: bytes, header_bytes_max: int = HEADER_BYTES_MAX) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the blobs of a frame. Raises `Refused` on anything that `pack` did not write."""
    view = memoryview(data)
    if len(view) < 8 or bytes(view[:4]) != MAGIC:
        raise Refused("not a Tidewire frame", op="unpack")
    (head_bytes,) = _LENGTH.unpack(view[4:8])
    if head_bytes > header_bytes_max or 8 + head_bytes > len(view):
        raise Refused("the frame's header is cut or too long", op="unpack")
    try:
        header = json.loads(bytes(view[8 : 8 + head_bytes]))
        lengths = header.pop("_blobs")
        well_formed = isinstance(lengths, list) and all(type(n) is int and n >= 0 for n in lengths)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise Refused("the frame's header is not JSON of the right shape", op="unpack") from None
    if not well_formed or 8 + head_bytes + sum(lengths) != len(view):
        raise Refused("the frame is cut or has trailing bytes", op="unpack")
    blobs, start = [], 8 + head_bytes
    for length in lengths:
        blobs.append(bytes(view[start : start + length]))
        start += length
    return header, blobs
