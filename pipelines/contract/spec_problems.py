"""Pydantic's errors in a pipeline author's words, with what to do about them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.contract import yaml_reader
from pipelines.contract.errors import Problem

Loc = tuple[Any, ...]


def did_you_mean(word: str, known: Any) -> str:
    close = _closest(word, known)
    return f'; did you mean "{close}"?' if close else ""


def _closest(word: str, known: Any) -> str:
    return next(iter(difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)), "")


def explain(error: ValidationError, model: type[BaseModel], source: yaml_reader.Source | None = None) -> Iterator[Problem]:
    """What is wrong, in the words of someone who wrote the file against `model`; with its place in `source`."""
    items = [(item, tuple(part for part in item["loc"] if part != "[key]")) for item in error.errors(include_url=False)]
    meant = {
        (*loc[:-1], word)
        for item, loc in items
        if item["type"] == "extra_forbidden" and (word := _closest(str(loc[-1]), _known_keys(model, loc[:-1])))
    }
    for item, loc in items:
        if item["type"] == "missing" and loc in meant:
            continue  # it is there, misspelt
        message, hint = _EXPLAIN.get(item["type"], _as_it_says)(item, loc, model)
        if "exactly one kind of" in message and (empty := _empty_key(item["input"])):
            loc, (message, hint) = (*loc, empty), _NOTHING_WRITTEN
        problem = Problem(message, yaml_reader.format_path(_shown(loc, source)), hint)
        yield locate(problem, loc, source) if source else problem


def _shown(loc: Loc, source: yaml_reader.Source | None) -> Loc:
    """`loc` in the words of the file; what is missing in the file ends it."""
    if source is None:
        return loc
    written = _written(loc, source.data)
    return (*written, loc[-1]) if loc and (not written or written[-1] != loc[-1]) else written


def locate(problem: Problem, loc: Loc, source: yaml_reader.Source) -> Problem:
    """`problem` with the place of `loc`, whatever a short form or a validator put into it that the file does not have."""
    return problem.at(*source.place(_written(loc, source.data)), file=source.file)


def _written(loc: Loc, data: Any) -> yaml_reader.Path:
    """The parts of `loc` that the file has."""
    path: list[Any] = []
    for part in loc:
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            path.append(part)
            data = data[part]
    return tuple(path)


_Explained = tuple[str, str]


_INSTRUCTION = re.compile(r"(?:: |; )((?:write|remove|declare|give|put|use|add|set|choose|name|rename|start) .+)\Z", re.DOTALL)


def _as_it_says(item: Any, loc: Loc, model: Any) -> _Explained:
    """A validator's own words; where they end in what to do, that is the hint."""
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message[:2].istitle() else message
    if match := _INSTRUCTION.search(message):
        return message[: match.start()], match[1]
    if "exactly one kind of" in message:
        return message, "write one of them here; the others go into entries of their own"
    return message, f"what may stand here: `{loc[0]}` in the language reference, docs/language" if loc else ""


def _unknown_key(item: Any, loc: Loc, model: Any) -> _Explained:
    known = _known_keys(model, loc[:-1])
    hint = f"known here: {', '.join(known)}" if known else ""
    return f'unknown key "{loc[-1]}"{did_you_mean(str(loc[-1]), known)}', hint


def _missing(item: Any, loc: Loc, model: Any) -> _Explained:
    hint = "start the file with `tidewire: 1`" if loc == ("tidewire",) else f"add `{loc[-1]}:`"
    return f'"{loc[-1]}" is missing', hint


_NOTHING_WRITTEN = (
    "nothing is written here",
    "put an expression in quotes or on its own line: a comma ends a {..} entry, ` #` starts a comment",
)


def _empty_key(value: Any) -> str:
    return next((key for key, one in value.items() if one is None), "") if isinstance(value, dict) else ""


def _is_not(what: str, hint: str) -> Callable[[Any, Loc, Any], _Explained]:
    def explained(item: Any, loc: Loc, model: Any) -> _Explained:
        if item["input"] is None:
            return _NOTHING_WRITTEN
        return f"{json.dumps(item['input'], default=str)[:80]} is {what}", hint

    return explained


def _not_one_of(item: Any, loc: Loc, model: Any) -> _Explained:
    known = re.findall(r"'([^']*)'", item["ctx"]["expected"]) or [item["ctx"]["expected"]]
    written = json.dumps(item["input"], default=str)[:80]
    meant = did_you_mean(str(item["input"]), known)
    return f"{written} is not {item['ctx']['expected']}{meant}", f"write {'one of ' if len(known) > 1 else ''}{', '.join(known)}"


def _last_word(loc: Loc) -> str:
    return next((str(part) for part in reversed(loc) if isinstance(part, str)), "it")


_EXPLAIN: dict[str, Callable[[Any, Loc, Any], _Explained]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "string_type": _is_not("not text", "put it in quotes"),
    "float_type": _is_not("not a number", "write digits, without quotes"),
    "int_type": _is_not("not an integer", "write digits, without quotes"),
    "bool_type": _is_not("neither true nor false", "write true or false"),
    "list_type": _is_not("not a list", "write [a, b], or one entry a line after `- `"),
    "dict_type": _is_not("not a map of keys", "write `key: value`, one a line, indented"),
    "model_type": _is_not("not a map of keys", "write `key: value`, one a line, indented"),
    "too_short": lambda item, loc, model: ("there must be at least one", f"add one, or remove `{_last_word(loc)}`"),
    "string_too_short": lambda item, loc, model: ("there must be at least one character", f"or remove `{_last_word(loc)}`"),
    "literal_error": _not_one_of,
}


def _known_keys(model: Any, loc: Loc) -> list[str]:
    """The keys that the model at `loc` has, found by walking the models' annotations."""
    for part in loc:
        model = _step_into(model, part)
        if model is None:
            return []
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _step_into(annotation: Any, part: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if part in (name, field.alias):
                return _unwrap(field.annotation)
        return None
    args = getattr(annotation, "__args__", ())
    return _unwrap(args[-1]) if args else None


def _unwrap(annotation: Any) -> Any:
    """The model within `X | None` and `Annotated[X, ...]`; containers stay."""
    while True:
        if hasattr(annotation, "__metadata__"):
            annotation = annotation.__origin__
            continue
        args = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
        if len(args) == 1 and getattr(annotation, "__origin__", None) not in (list, dict):
            annotation = args[0]
            continue
        return annotation
