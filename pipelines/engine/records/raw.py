"""The bytes of a whole column at once: what holds for none of them holds for no text."""

from __future__ import annotations

import pyarrow as pa


def raw_bytes(texts: pa.Array) -> bytes:
    """All bytes of an array of text; what lies under its nulls is among them."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return b""
    bounds = pa.Array.from_buffers(pa.int32(), len(texts) + 1, [None, offsets], offset=texts.offset)
    first, last = bounds[0].as_py(), bounds[-1].as_py()
    return bytes(data.slice(first, last - first))
