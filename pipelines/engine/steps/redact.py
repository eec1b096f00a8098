"""redact: a column loses what it must not tell, by a keyed hash, a mask, a pattern, coarser values, or altogether.

All of it is SQL, so that it costs no statement of its own. DuckDB has no HMAC, but HMAC is two hashes over padded keys
(RFC 2104).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import duckdb

from pipelines.contract.duration import parse_duration
from pipelines.contract.language.steps import Hash, Mask, Redaction
from pipelines.engine.bind import Bound, first_line
from pipelines.engine.connection import literal, quote
from pipelines.engine.stage import Stages

_BLOCK = 64  # bytes of a SHA-256 block
_TEXTS = ("VARCHAR",)


def compile_redact(stages: Stages, redactions: Mapping[str, Redaction], path: str) -> None:
    for name, redaction in redactions.items():
        if stages.known([name], f"{path}.{name}"):
            _redact(stages, name, redaction, f"{path}.{name}")
    if not stages.columns:
        stages.binder.complain(path, "no column is left", "keep at least one")


def _redact(stages: Stages, name: str, redaction: Redaction, path: str) -> None:
    if redaction.drop:
        stages.keep_only([column for column in stages.columns if column != name])
        return
    type_, value = stages.columns[name].type, quote(name)
    sql, made = "", "VARCHAR"
    if redaction.hash:
        sql = _hashed(stages, redaction.hash, value, type_, f"{path}.hash.key")
    elif redaction.mask:
        sql = masked(redaction.mask, f"CAST({value} AS VARCHAR)")
    elif redaction.pattern is not None:
        sql = _replaced(stages, redaction, value, type_, path)
    elif redaction.generalise:
        sql, made = _generalised(stages, redaction.generalise.to, value, type_, path), type_
    if sql:
        bound = Bound(sql, made, frozenset({name}))
        stamps = stages.place_of(name) == stages.time_place
        stages.derive(name, bound, path, bounded=False, why=f"{path}: the value cannot be redacted", replaces=True)
        if stamps and made == "TIMESTAMP":
            stages.move_time(name)


def hmac_sql(key: bytes, text: str) -> str:
    """SQL of the HMAC-SHA-256 of a text expression, in hexadecimal."""
    block = (hashlib.sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    inner, outer = (bytes(byte ^ pad for byte in block).hex() for pad in (0x36, 0x5C))
    return f"sha256(unhex('{outer}') || unhex(sha256(unhex('{inner}') || encode({text}))))"


def masked(mask: Mask, text: str) -> str:
    """Every character hidden but the kept ones; a short value is hidden whole, since its kept parts would be all of it."""
    with_, kept = literal(mask.with_), mask.keep_first + mask.keep_last
    hidden = f"repeat({with_}, length({text}) - {kept})"
    some = f"left({text}, {mask.keep_first}) || {hidden} || right({text}, {mask.keep_last})"
    return f"CASE WHEN length({text}) > {kept} THEN {some} ELSE repeat({with_}, length({text})) END"


def _hashed(stages: Stages, hash_: Hash, value: str, type_: str, path: str) -> str:
    if type_.endswith(("[]", ")")) and not type_.startswith("DECIMAL"):
        stages.binder.complain(
            path.removesuffix(".key"), "a list or a struct has no text to hash", "derive a text from it before"
        )
        return ""
    name, secrets = hash_.key.removeprefix("${secret:").removesuffix("}"), stages.binder.secrets
    key = secrets.get(name, "") if secrets is not None else "only checked"
    if not key:
        message = f"secret {name} is not set on this node"
        stages.binder.complain(path, message, f"on the node: tidewire-agent secret set {name}")
        return ""
    text = f"CAST({value} AS VARCHAR)"
    return f"left({hmac_sql(key.encode(), text)}, {hash_.length})"


def _replaced(stages: Stages, redaction: Redaction, value: str, type_: str, path: str) -> str:
    if type_ not in _TEXTS:
        stages.binder.complain(path, f"a pattern is for texts, this is {type_}", "hash, mask, generalise or drop it")
        return ""
    pattern, with_ = literal(redaction.pattern), literal((redaction.with_ or "***").replace("\\", "\\\\"))
    try:
        stages.binder.engine.execute(f"SELECT regexp_replace('', {pattern}, {with_}, 'g')").fetchall()
    except duckdb.Error as error:
        stages.binder.complain(
            f"{path}.pattern", f"not a pattern: {first_line(error)}", "patterns are RE2: no look-around, no \\1"
        )
        return ""
    return f"regexp_replace({value}, {pattern}, {with_}, 'g')"


def _generalised(stages: Stages, to: int | str, value: str, type_: str, path: str) -> str:
    if isinstance(to, str):
        if type_ != "TIMESTAMP":
            stages.binder.complain(path, f"only a timestamp is rounded to {to}, this is {type_}", "for a number write decimals")
            return ""
        us = parse_duration(to)
        return f"make_timestamp(epoch_us({value}) - ((epoch_us({value}) % {us}) + {us}) % {us})"
    if type_ == "BIGINT" and to < 0:
        return f"CAST(round(CAST({value} AS DECIMAL(38, 0)), {to}) AS BIGINT)"
    if type_ != "DOUBLE" and not type_.startswith("DECIMAL"):
        hint = "for a time write a length, as in `to: 1h`; for whole numbers a negative count, as in `to: -3`"
        stages.binder.complain(path, f"there are no {to} decimals to keep, this is {type_}", hint)
        return ""
    return f"round({value}, {to})"
