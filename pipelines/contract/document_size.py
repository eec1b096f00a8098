"""How much a saved Automerge document takes once its columns are inflated, without inflating more than is allowed.

The library inflates before it can be asked anything: half a megabyte may hold half a gigabyte. Layout, as its format says:
magic, checksum, chunk type, length; then actors, heads, the columns of changes, those of operations (type with bit 8: deflated).
"""

from __future__ import annotations

import zlib

from pipelines.contract.errors import Refused

EXPANDED_BYTES_MAX = 32 * 1024 * 1024  # a month of a flapping fleet of pipelines on one node, three times over
_MAGIC, _DOCUMENT, _DEFLATED = b"\x85oJ\x83", 0, 8
_HEAD_BYTES = 32


def check_size(data: bytes) -> None:
    """Raises `Refused` on what is not one whole document, or would take too much memory."""
    try:
        _check(data)
    except (IndexError, ValueError, zlib.error):
        raise Refused("not a document this build can read (its columns are cut)", op="load document") from None


def _check(data: bytes) -> None:
    if data[:4] != _MAGIC or data[8] != _DOCUMENT:
        raise ValueError("no document")
    length, at = _number(data, 9)
    if at + length != len(data):
        raise ValueError("cut, or more than one")
    actors, at = _number(data, at)
    for _ in range(actors):
        length, at = _number(data, at)
        at += length
    heads, at = _number(data, at)
    columns, at = _columns(data, at + heads * _HEAD_BYTES)
    more, at = _columns(data, at)
    room = EXPANDED_BYTES_MAX
    for kind, length in columns + more:
        room -= _expanded(data[at : at + length], room) if kind & _DEFLATED else length
        at += length
        if room < 0 or at > len(data):
            raise Refused(f"a document that takes more than {EXPANDED_BYTES_MAX} bytes", op="load document")


def _columns(data: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """(type, bytes) of each, and where they end."""
    count, at = _number(data, at)
    found = []
    for _ in range(count):
        kind, at = _number(data, at)
        length, at = _number(data, at)
        found.append((kind, length))
    return found, at


def _expanded(data: bytes, room: int) -> int:
    return len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, room + 1))


def _number(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("too long")
