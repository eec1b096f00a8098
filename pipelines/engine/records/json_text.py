"""One JSON object as Python values: the definition of how JSON is read. Numbers stay as they were written."""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH_MAX = 100  # levels of nesting
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class Number(str):
    """A JSON number, as it was written."""

    __slots__ = ()


class NotJson(ValueError):
    """Its text says why."""


class Doubled(dict[str, Any]):
    """An object in which `names` stand more than once; the last one counts for whoever does not mind."""

    names: frozenset[str] = frozenset()


def parse(text: str) -> Any:
    """Any JSON value. Raises NotJson: also for lone surrogates, and what is nested too deep. NaN and Infinity, which some
    programs write, are numbers here that no type takes."""
    if (text.count("[") + text.count("{")) > DEPTH_MAX and _depth(text) > DEPTH_MAX:
        raise NotJson(f"nested deeper than {DEPTH_MAX} levels")
    try:
        value = _decode(text)
        if "\\u" in text:
            _check_surrogates(text, value)
    except (ValueError, RecursionError):
        raise NotJson("not JSON") from None
    return value


def parse_object(text: str) -> dict[str, Any]:
    """Raises NotJson."""
    try:
        value = parse(text)
    except NotJson as error:
        raise NotJson("not a JSON object" if str(error) == "not JSON" else str(error)) from None
    if not isinstance(value, dict):
        raise NotJson("not a JSON object")
    return value


def text_of(raw: Any) -> str:
    """A value of the input as text: text itself, a number as written, a list or an object as compact JSON."""
    if isinstance(raw, str):
        return str(raw)
    return to_json(raw)


def to_json(raw: Any) -> str:
    """Compact JSON; numbers as they were written."""
    if isinstance(raw, dict):
        return "{" + ",".join(f"{json.dumps(k, ensure_ascii=False)}:{to_json(v)}" for k, v in raw.items()) + "}"
    if isinstance(raw, list):
        return "[" + ",".join(map(to_json, raw)) + "]"
    if type(raw) is Number:
        return str(raw)
    return json.dumps(raw, ensure_ascii=False)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled = Doubled(found)
    names = [name for name, _ in pairs]
    doubled.names = frozenset(name for name in found if names.count(name) > 1)
    return doubled


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=Number, parse_float=Number, parse_constant=Number)


_SPECIAL = re.compile(r'("(?:[^"\\]|\\.)*")|-?(?:Inf(?:inity)?|NaN)', re.DOTALL)


def _decode(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except ValueError:
        if "Inf" not in text and "NaN" not in text:
            raise
        return _DECODER.decode(_SPECIAL.sub(lambda found: found[1] or "NaN", text))  # as pyarrow spells them


def _check_surrogates(text: str, value: Any) -> None:
    """Half a surrogate pair is no character. Raises ValueError."""
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()


def _depth(text: str) -> int:
    depth = deepest = 0
    for found in _BRACKETS.finditer(text):
        mark = found[0]
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest
