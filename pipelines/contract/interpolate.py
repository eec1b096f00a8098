"""`${param:x}`, `${label:x}`, `${secret:x}` in settings: checked before anything ships, filled in on the node.

A reference is replaced by text once, from left to right; what it is replaced by is never looked at again, so the value of a
parameter cannot name a secret. `$${` is a plain `${`. A value that is not set, or is empty, is an error, never an empty text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipelines.contract import causes
from pipelines.contract.errors import Problem, Refused, TidewireError
from pipelines.contract.spec_problems import did_you_mean, explain
from pipelines.contract.yaml_reader import format_path

PARAM, LABEL, SECRET = "param", "label", "secret"
if TYPE_CHECKING:
    from pipelines.contract.language.sources import Source

KINDS = (PARAM, LABEL, SECRET)
MASK = "***"
_PIECE = 4  # characters of a secret in a row that are too many to tell
SECRET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}\Z")
_PUBLIC, _ALL, _SECRET, _NONE = (PARAM, LABEL), KINDS, (SECRET,), ()
_REFERENCE = re.compile(r"(?P<plain>\$\$\{)|\$\{(?P<kind>param|label|secret):(?P<name>[A-Za-z][A-Za-z0-9_.-]{0,62})\}")
_SOMETHING = re.compile(r"\$\$\{|\$\{(?P<inside>[^}]*)\}?")
_FORM = "write ${param:x}, ${label:x} or ${secret:x}; $${ is a plain ${"

Path = tuple[str | int, ...]


class Unset(TidewireError):
    """A pipeline refers to what this node has not."""


@dataclass(frozen=True, slots=True)
class Reference:
    kind: str  # one of KINDS
    name: str

    def __str__(self) -> str:
        return f"${{{self.kind}:{self.name}}}"


@dataclass(frozen=True, slots=True)
class Values:
    """What references mean on one node. Never printed: it holds secrets."""

    params: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def text(self, reference: Reference) -> str:
        """Raises `Unset`."""
        known = {PARAM: self.params, LABEL: self.labels, SECRET: self.secrets}[reference.kind]
        text = _as_text(known.get(reference.name))
        if not text:
            missing = f"{reference.kind} {reference.name} is not set on this node"
            raise Unset(missing, hint=_HINTS[reference.kind](reference.name), code=_CODES[reference.kind])
        return text


_CODES = {PARAM: causes.PARAM_MISSING, LABEL: causes.LABEL_MISSING, SECRET: causes.SECRET_MISSING}
_HINTS = {
    PARAM: lambda name: f"set it: tidewire set PIPELINE {name}=... (stand-alone: --param {name}=...)",
    LABEL: lambda name: f"label the node: tidewire nodes label NODE {name}=... (stand-alone: --label {name}=...)",
    SECRET: lambda name: f"on the node: tidewire-agent secret set {name}",
}


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


# -- finding and checking


def references(text: str) -> list[Reference]:
    """The references in one text, in order; what is no reference is plain text here."""
    return [Reference(m["kind"], m["name"]) for m in _REFERENCE.finditer(text) if m["kind"]]


def settings(pipeline: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every text of a pipeline (its canonical JSON) that stands where references are resolved, with its place."""
    return ((path, text) for path, text in _texts(pipeline, ()) if _allowed(path))


def needs(pipeline: Mapping[str, Any]) -> list[Reference]:
    """What a pipeline refers to, each once, in order."""
    return list(dict.fromkeys(found for _, text in settings(pipeline) for found in references(text)))


def secrets_of_runner(pipeline: Mapping[str, Any]) -> set[str]:
    """The secrets that reading and evaluating rows takes: all that a runner is given. Those of actions stay with the agent."""
    return secrets_in([text for path, text in settings(pipeline) if path[0] in ("sources", "steps")])


def secrets_in(value: Any) -> set[str]:
    """The secrets that settings refer to."""
    return {found.name for _, text in _texts(value, ()) for found in references(text) if found.kind == SECRET}


def check(pipeline: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the references of a pipeline, before anything ships."""
    params = pipeline.get("params") or {}
    for path, text in _texts(pipeline, ()):
        allowed = _allowed(path)
        if allowed:
            yield from _malformed(text, path)
        for found in references(text):
            if found.kind not in allowed:
                yield Problem(f"{found} cannot stand here", format_path(path), _where_instead(found, path, allowed))
            elif found.kind == PARAM and found.name not in params:
                message = f'there is no parameter "{found.name}"{did_you_mean(found.name, params)}'
                yield Problem(message, format_path(path), f"declare it under params, or use {Reference(LABEL, found.name)}")


def _allowed(path: Path) -> tuple[str, ...]:
    """The kinds of reference that may stand at a place of the file."""
    match path:
        case ("sources", _, "http", "token"):
            return _SECRET
        case ("sources", _, kind, *_) if kind != "decode":
            return _PUBLIC
        case ("lookups", _, "file", *_):
            return _PUBLIC
        case ("steps", _, "redact", _, "hash", "key"):
            return _SECRET
        case ("triggers", _, "actions" | "escalate", *rest) if len(rest) > 2:
            return _allowed_in_action([word for word in rest if isinstance(word, str)])
    return _NONE


def _allowed_in_action(words: list[str]) -> tuple[str, ...]:
    """`log` writes where others read, and a refused program is told by name: neither takes a secret."""
    if "log" in words or words[-1] == "program":
        return _PUBLIC
    return _NONE if words[-1] in ("valid_for", "after", "unless") else _ALL


def _malformed(text: str, path: Path) -> Iterator[Problem]:
    for found in _SOMETHING.finditer(text):
        if found["inside"] is None or _REFERENCE.fullmatch(found[0]):
            continue
        kind = found["inside"].partition(":")[0]
        yield Problem(f'"{found[0]}" is no reference{did_you_mean(kind, KINDS)}', format_path(path), _FORM)


def _where_instead(found: Reference, path: Path, allowed: tuple[str, ...]) -> str:
    if found.kind == SECRET:
        return "secrets go into action settings (not into log or program), redact keys and tokens: everything else can be read"
    if path[-1] == "message":
        return f"a message writes {{{found.name}}}"
    if allowed == _SECRET:
        return f"only a secret can: {Reference(SECRET, found.name)}"
    return f"in an expression write {'$' if found.kind == PARAM else 'node.'}{found.name}"


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _texts(item, (*path, i))


# -- filling in


def check_set(wanted: Iterable[Reference], values: Values) -> None:
    """Raise `Unset` for the first reference without a value."""
    for reference in wanted:
        values.text(reference)


def resolve(value: Any, values: Values) -> Any:
    """`value` (nested lists and maps of settings) with every reference replaced. Raises `Unset`."""
    return _replaced(value, lambda m: "${" if m["plain"] else values.text(Reference(m["kind"], m["name"])))


def resolved_source(source: Source, values: Values) -> Source:
    """`source` with its settings resolved; how it is decoded has none. Raises `Unset`, and `Refused` for what cannot be."""
    data = source.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    found = {key: item if key == "decode" else resolve(item, values) for key, item in data.items()}
    try:
        return type(source).model_validate(found)
    except ValidationError as error:
        [problem, *_] = explain(error, type(source))
        raise Refused(problem.message, op="open source", place=problem.path, hint=problem.hint) from None


def taken(value: Any, values: Values) -> dict[str, dict[str, Any]]:
    """Of `values`, the parameters and labels that `value` refers to: what to keep beside settings that are resolved later."""
    found = {reference for _, text in _texts(value, ()) for reference in references(text)}
    return {
        "params": {name: v for name, v in values.params.items() if Reference(PARAM, name) in found},
        "labels": {name: v for name, v in values.labels.items() if Reference(LABEL, name) in found},
    }


def _replaced(value: Any, replacement: Any) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(replacement, value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, replacement) for key, item in value.items()}
    return [_replaced(item, replacement) for item in value] if isinstance(value, list | tuple) else value


def masked(text: str, secrets: Mapping[str, str]) -> str:
    """`text` without any part of a secret, however an error message may spell it: as it is, quoted, cut, or as part of a URL."""
    spellings = {form for v in secrets.values() if v for form in (v, repr(v)[1:-1], json.dumps(v)[1:-1], _in_url(v))}
    pieces = {form[i : i + _PIECE] for form in spellings for i in range(max(1, len(form) - _PIECE + 1))}
    hidden = {
        at + i
        for size in {len(piece) for piece in pieces}
        for at in range(len(text))
        if text[at : at + size] in pieces
        for i in range(size)
    }
    return "".join(letter if i not in hidden else "" if i - 1 in hidden else MASK for i, letter in enumerate(text))


def _in_url(value: str) -> str:
    plain = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in value.encode(errors="replace"))
