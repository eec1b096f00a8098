"""What a version needs before it may start: its lookup tables, and room on the disk. Pure.

Tables are no part of a version: the manifest says which bytes a name stands for, and other bytes reach what runs without a new
version. A version that has run here goes on with the tables it had (I12) until those it should have are here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from edge_agent import shares
from pipelines.contract import causes
from pipelines.contract.artifact import is_digest
from pipelines.contract.size import shown_size

Tables = Mapping[str, str]  # what a version calls an artifact -> digest of the bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """What a version (its canonical bytes) asks of the node."""

    tables: frozenset[str] = frozenset()
    buffer_bytes: int = 0  # 0: it takes what there is

    @classmethod
    def of(cls, canonical: bytes) -> Needs:
        try:
            lookups = json.loads(canonical).get("lookups", {}).values()
            tables = frozenset(lookup["artifact"] for lookup in lookups if "artifact" in lookup)
            return cls(tables, shares.declared(canonical).max_bytes)
        except (ValueError, TypeError, AttributeError):
            return cls()  # it cannot be read here, and its start says so


@dataclass(frozen=True, slots=True)
class Provision:
    """`tables` are those to run with; without `may_start` it does not start, nor replace what runs."""

    tables: Tables = field(default_factory=dict)
    may_start: bool = True
    code: str = ""
    reason: str = ""


def provide(
    needs: Needs, wanted: Tables, here: Collection[str], former: Tables | None, troubles: Mapping[str, tuple[str, str]], room: int
) -> Provision:
    """`wanted` is what the manifest names, `here` what is on the node, `former` what the version ran with (None: it never ran),
    `troubles` why something does not come (digest -> code, reason), `room` the bytes that the buffer can have."""
    tables, missing = dict[str, str](), dict[str, tuple[str, str]]()
    for name in sorted(needs.tables):
        digest = wanted.get(name, "")
        if digest in here:
            tables[name] = digest
            continue
        missing[name] = _why(digest, troubles)
        if former and former.get(name) in here:
            tables[name] = former[name]
    may_start = tables.keys() == needs.tables
    if missing:
        code, words = next(iter(missing.values()))
        reason = f"table {', '.join(missing)} {words}" + ("; the former one is in use" if may_start else "")
        return Provision(tables, may_start, code, reason)
    if former is None and needs.buffer_bytes > room:
        reason = f"needs {shown_size(needs.buffer_bytes)} for its buffer, {shown_size(room)} free"
        return Provision(tables, may_start=False, code=causes.DISK, reason=reason)
    return Provision(tables)


def to_fetch(needs: Needs, wanted: Tables, here: Collection[str]) -> set[str]:
    digests = {wanted[name] for name in needs.tables if name in wanted}
    return {digest for digest in digests if is_digest(digest)} - set(here)


def _why(digest: str, troubles: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    if not is_digest(digest):
        return causes.ARTIFACT_MISSING, "is not in the manifest"
    code, trouble = troubles.get(digest, ("", ""))
    return code or causes.ARTIFACT_MISSING, f"is not here yet: {trouble}" if trouble else "is being fetched"
