"""Sizes as people write them: `256KiB`, `2GiB`, `500kB`. Bytes inside."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

BYTES_PER = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1}
_SIZE = re.compile(r"([0-9]{1,15})(GiB|MiB|KiB|GB|MB|kB|B)\Z")


def parse_size(text: object) -> int:
    """Bytes. Raises ValueError with what to write instead."""
    match = _SIZE.match(text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"{text!r} is not a size: write a whole number with B, KiB, MiB or GiB, as in 256KiB")
    return int(match[1]) * BYTES_PER[match[2]]


def format_size(size: int) -> str:
    """The shortest exact form: 262144 -> `256KiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % BYTES_PER[unit] == 0:
            return f"{size // BYTES_PER[unit]}{unit}"
    return f"{size}B"


def shown_size(size: int) -> str:
    """For people, in the units in which sizes are written: 1181116006 -> `1.1 GiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= BYTES_PER[unit]:
            return f"{size / BYTES_PER[unit]:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"


Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size, return_type=str)]
