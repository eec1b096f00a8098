"""Summaries of bounded size that merge in any order: how many different values there were, and where they lie.

Values of a quantile fall into buckets that grow by 2 %, after DDSketch (Masson, Rim and Lee 2019): the answer is within 1 % of
the true one. Distinct values are kept as 64-bit hashes, exactly up to `DISTINCT_EXACT`, then as HyperLogLog registers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

ACCURACY = 0.01
GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_OFFSET = 100_000  # above every |log| of a double, so that a bucket's sign is that of its values
BUCKETS_MAX = 2048  # of one sign: 17 decades below the largest value, what is smaller falls into the last

DISTINCT_EXACT = 1000
_BITS = 12  # 4096 registers: within 1.6 %
_REGISTERS = 1 << _BITS
_LEFT = 64 - _BITS


def bucket_sql(x: str) -> str:
    """SQL of the bucket of a double: larger values have larger buckets. Only here is it computed, so that all paths agree."""
    size = f"CAST(ceil(ln(abs({x})) / {math.log(GAMMA)!r}) AS BIGINT) + {_OFFSET}"
    return f"CASE WHEN {x} > 0 THEN {size} WHEN {x} < 0 THEN -({size}) WHEN {x} = 0 THEN 0 END"


def middle_of(bucket: int) -> float:
    """The value that is within `ACCURACY` of all in the bucket."""
    if bucket == 0:
        return 0.0
    try:
        size = 2 * math.exp((abs(bucket) - _OFFSET) * math.log(GAMMA)) / (GAMMA + 1)
    except OverflowError:
        size = math.inf
    return math.copysign(size, bucket)


def bounded(counts: Mapping[int, int]) -> Mapping[int, int]:
    """The counts with the buckets of the smallest sizes put together. Where it cuts depends on the largest sizes only, so that
    it may be done at any time and in any order."""
    floor, ceiling = max(counts) - BUCKETS_MAX, min(counts) + BUCKETS_MAX
    if all(bucket >= floor if bucket > 0 else bucket <= ceiling for bucket in counts if bucket):
        return counts
    found: dict[int, int] = {}
    for bucket, n in counts.items():
        kept = max(bucket, floor) if bucket > 0 else min(bucket, ceiling) if bucket < 0 else 0
        found[kept] = found.get(kept, 0) + n
    return found


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """The value below which the share `q` of the values lies; between two values, in proportion (as SQL's quantile_cont)."""
    if not counts:
        return None
    rank = q * (sum(counts.values()) - 1)
    low, high = _at(counts, math.floor(rank)), _at(counts, math.ceil(rank))
    return low + (high - low) * (rank - math.floor(rank))


def _at(counts: Mapping[int, int], rank: int) -> float:
    """The value with so many below it."""
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen > rank:
            break
    return middle_of(bucket)


Distinct = tuple[int, ...] | bytes  # sorted hashes | registers


def distinct_of(values: Iterable[Any]) -> Distinct:
    return _packed({_hash(value) for value in values})


def merge_distinct(a: Distinct, b: Distinct) -> Distinct:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return _packed({*a, *b})
    return bytes(map(max, _registers(a), _registers(b)))


def count_distinct(distinct: Distinct) -> int:
    return len(distinct) if isinstance(distinct, tuple) else round(_estimate(distinct))


def _hash(value: Any) -> int:
    if isinstance(value, float):
        value += 0.0  # -0.0 is 0.0
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big")


def _packed(hashes: set[int]) -> Distinct:
    found = tuple(sorted(hashes))
    return found if len(found) <= DISTINCT_EXACT else _registers(found)


def _registers(distinct: Distinct) -> bytes:
    if isinstance(distinct, bytes):
        return distinct
    registers = bytearray(_REGISTERS)
    for hash_ in distinct:
        place, rest = hash_ >> _LEFT, hash_ & ((1 << _LEFT) - 1)
        rank = _LEFT - rest.bit_length() + 1
        registers[place] = max(registers[place], rank)
    return bytes(registers)


def _estimate(registers: bytes) -> float:
    """Ertl's improved raw estimator (2017): no bias at any count, no tables."""
    counts = [0] * (_LEFT + 2)
    for rank in registers:
        counts[rank] += 1
    m = float(_REGISTERS)
    z = m * _tau(1 - counts[_LEFT + 1] / m)
    for rank in range(_LEFT, 0, -1):
        z = 0.5 * (z + counts[rank])
    z += m * _sigma(counts[0] / m)
    return m * m / (2 * math.log(2)) / z


def _sigma(x: float) -> float:
    if x == 1.0:
        return math.inf
    y, z, last = 1.0, x, -1.0
    while z != last:
        x, last = x * x, z
        z += x * y
        y += y
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, last = 1.0, 1 - x, -1.0
    while z != last:
        x, last = math.sqrt(x), z
        y *= 0.5
        z -= (1 - x) ** 2 * y
    return z / 3
