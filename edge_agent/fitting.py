"""Whether a version can run on this node now, with which parameters, or why not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from edge_agent.target import Fit
from pipelines.contract import causes, interpolate
from pipelines.contract.errors import SpecError
from pipelines.contract.folds import effective_params
from pipelines.contract.interpolate import Unset, Values
from pipelines.contract.node_state import Assignment, Note, Scalar
from pipelines.contract.version import LANGUAGES, PipelineVersion


def fit(version: PipelineVersion, pipeline: str, assignment: Assignment, notes: Iterable[Note], *, node: str) -> Fit:
    """What the manifest and people say of its parameters, when it can be read and they all fit."""
    language = json.loads(version.canonical).get("tidewire")
    if type(language) is int and language > LANGUAGES[1]:
        told = f"version {version.number} is written in language {language}, this agent speaks up to {LANGUAGES[1]} (upgrade it)"
        return Fit(None, causes.LANGUAGE, told)
    try:
        declared = version.spec.params
        folded = effective_params(version.spec.defaults(), assignment, notes, node=node, pipeline=pipeline)
    except (SpecError, ValueError) as error:
        return Fit(None, causes.FAILED, str(error))
    if version.pipeline != pipeline:
        return Fit(None, causes.FAILED, f"the version is one of {version.pipeline}")
    values = {name: entry.value for name, entry in folded.items()}
    for name, value in values.items():
        if value is None:
            return Fit(None, causes.PARAM_MISSING, f"parameter {name}: no value is set")
        try:
            declared[name].check(value)
        except ValueError as error:
            return Fit(None, causes.PARAM_INVALID, f"parameter {name}: {error}")
    return Fit(values)


def unset(version: PipelineVersion, params: Mapping[str, Scalar], labels: Mapping[str, str], secrets: Iterable[str]) -> Fit:
    """`Fit(params)`, unless it refers to a label or secret that this node has not. `secrets` are names."""
    values = Values(params, labels, dict.fromkeys(secrets, "set"))
    try:
        interpolate.check_set(interpolate.needs(json.loads(version.canonical)), values)
    except Unset as error:
        return Fit(None, error.code, f"{error} ({error.hint})")
    return Fit(params)
