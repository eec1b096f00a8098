"""JSON Schema (draft 2020-12) of pipeline and cases files, for editors; made from the models, short forms included.

Short forms are not listed here: validators that run before a model are asked what they make of a text, a number or a null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from pipelines.contract import artifact
from pipelines.contract.duration import format_duration, parse_duration
from pipelines.contract.language import base, lookups
from pipelines.contract.size import format_size, parse_size
from pipelines.contract.spec import PipelineSpec
from pipelines.tools.cases import INSTANTS, CasesFile

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_LENGTH = r"([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d))+"
DURATION: dict[str, Any] = {
    "type": ["string", "integer"],
    "pattern": f"^{_LENGTH}$",
    "minimum": 0,
    "maximum": 0,
}  # 0 needs no unit
SIZE = {"type": "string", "pattern": "^[0-9]{1,15}(GiB|MiB|KiB|GB|MB|kB|B)$"}
_FORMATS: dict[Any, Callable[[int], str]] = {parse_duration: format_duration, parse_size: format_size}

Schema = dict[str, Any]


def pipeline_schema() -> Schema:
    """What a pipeline file may look like; what its expressions mean is checked by `tidewire validate`."""
    return _finished(PipelineSpec, "Tidewire pipeline")


def cases_schema() -> Schema:
    """What a cases file may look like."""
    schema = _finished(CasesFile, "Tidewire cases")
    definitions = schema["$defs"]
    case, act = definitions["Case"], {"$ref": "#/$defs/Act"}
    del case["properties"][INSTANTS]
    case["patternProperties"] = {rf"^at\s+{_LENGTH}$": _any_of(act, {"type": "array", "items": act}, _NULL)}
    taken = definitions["ActionTaken"]
    del taken["properties"]["kinds"]
    taken["additionalProperties"] = True
    return schema


def to_json(schema: Schema) -> str:
    """The schema as its file has it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _finished(model: type[BaseModel], title: str) -> Schema:
    schema = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return {"$schema": DRAFT, "title": title} | {key: value for key, value in _without_noise(schema).items() if key != "title"}


class _Generator(GenerateJsonSchema):
    """Pydantic's, with durations, names and short forms as they are written."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> Schema:
        made = super().model_schema(schema)
        kinds = [kind.rstrip("_") for kind in getattr(schema["cls"], "ONE_OF", ())]
        if kinds and set(kinds) == set(made["properties"]):
            return {**made, "minProperties": 1, "maxProperties": 1}
        return {**made, "oneOf": [{"required": [kind]} for kind in kinds]} if kinds else made

    def function_before_schema(self, schema: Any) -> Schema:
        function = schema["function"]["function"]
        if function is parse_duration:
            return dict(DURATION)
        if function is parse_size:
            return dict(SIZE)
        inner = self.generate_inner(schema["schema"])
        if isinstance(getattr(function, "__self__", None), type):
            return inner  # a model's own validator checks or sorts keys
        return _any_of(inner, *_short_forms(function, inner, self._resolved(inner)))

    def function_after_schema(self, schema: Any) -> Schema:
        made = self.generate_inner(schema["schema"])
        pattern = _PATTERNS.get(schema["function"]["function"])
        return {**made, "pattern": pattern} if pattern else made

    def default_schema(self, schema: Any) -> Schema:
        made = dict(super().default_schema(schema))
        written = _FORMATS.get(_before(schema["schema"]))
        if written and isinstance(made.get("default"), int):
            made["default"] = written(made["default"])
        return made

    def _resolved(self, schema: Schema) -> Schema:
        """What a reference or a nullable leads to; nothing while that is still under way."""
        while "$ref" in schema or "anyOf" in schema:
            if "$ref" in schema:
                schema = self.definitions.get(self.json_to_defs_refs[schema["$ref"]], {})
            else:
                schema = next((one for one in schema["anyOf"] if one.get("type") != "null"), {})
        return schema


_PATTERNS: dict[Any, str] = {
    base._pipeline_name: base._PIPELINE.pattern.replace(r"\Z", "$").join(("^", "")),
    base._word: "^" + base._WORD.pattern.replace(r"\Z", "$"),
    base._column: "^" + base._WORD.pattern.replace(r"\Z", "$"),
    base._table: "^" + base._WORD.pattern.replace(r"\Z", "$"),
    lookups._reference: "^" + artifact._REFERENCE.pattern.replace(r"\Z", "$"),
}
_NULL: Schema = {"type": "null"}


def _before(schema: Any) -> Any:
    """The function that reads a value of this core schema before anything else, within nullables and checks."""
    while schema.get("type") in ("nullable", "default", "function-after", "function-plain"):
        schema = schema.get("schema") or {}
    return schema["function"]["function"] if schema.get("type") == "function-before" else None


_PROBES: tuple[tuple[Any, Schema], ...] = (
    ("probe", {"type": "string"}),
    ("probe probe", {"type": "string"}),
    (7, {"type": "integer"}),
    (["probe"], {"type": "array"}),
    ([{}], {"type": "array"}),
    ({}, {"type": "object"}),
)


def _short_forms(function: Callable[[Any], Any], inner: Schema, resolved: Schema) -> Iterator[Schema]:
    """What else than `inner` may be written, found by asking the validator."""
    properties: dict[str, Schema] = resolved.get("properties", {})
    kinds = [name for name in properties if _asked(function, name) == {name: {}}]
    if kinds:
        yield {"enum": kinds}
    if bare := [name for name in properties if _asked(function, {name: None}) == {name: {}}]:
        null_or_more = {
            "type": "object",
            "properties": {**properties, **{name: _any_of(properties[name], _NULL) for name in bare}},
        }
        limits: Schema = {key: resolved[key] for key in ("oneOf", "minProperties", "maxProperties") if key in resolved}
        yield {**null_or_more, **limits, "additionalProperties": False}
    if isinstance(_asked(function, "10s"), int):
        yield dict(DURATION)
    for probe, written in _PROBES:
        made = _asked(function, probe)
        if made != probe and not (kinds and isinstance(probe, str)):
            yield _form_of(probe, made, written, resolved)


def _form_of(probe: Any, made: Any, written: Schema, resolved: Schema) -> Schema:
    """The schema of a form that the validator turns into `made`."""
    if made == [probe]:
        return dict(resolved.get("items", written))
    if isinstance(made, dict) and list(made.values()) == [probe]:
        inside = resolved.get("properties", {}).get(next(iter(made)), resolved.get("additionalProperties"))
        return dict(inside) if isinstance(inside, dict) else written
    return written


def _asked(function: Callable[[Any], Any], probe: Any) -> Any:
    try:
        return function(probe)
    except (TypeError, ValueError, LookupError):
        return probe


def _any_of(*schemas: Schema) -> Schema:
    unique: list[Schema] = []
    for schema in schemas:
        for one in schema["anyOf"] if set(schema) == {"anyOf"} else [schema]:
            if one not in unique:
                unique.append(one)
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def _without_noise(schema: Any) -> Any:
    """Without defaults that are whole objects or nothing; descriptions as one paragraph; no keys but those that are named."""
    if isinstance(schema, list):
        return [_without_noise(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    named = ("properties", "patternProperties", "$defs")
    kept: Schema = {
        key: {name: _without_noise(one) for name, one in value.items()} if key in named else _without_noise(value)
        for key, value in schema.items()
        if key != "default" or (value is not None and not isinstance(value, (dict, list)))
    }
    if isinstance(kept.get("description"), str):
        kept["description"] = re.sub(r"\s+", " ", kept["description"]).strip()
    if "patternProperties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept
