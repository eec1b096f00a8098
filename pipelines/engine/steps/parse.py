"""parse: a decoder over a text column."""

from __future__ import annotations

from pipelines.contract.language.steps import Parse
from pipelines.engine.stage import Stages


def compile_parse(stages: Stages, spec: Parse, path: str) -> None:
    if stages.known([spec.from_], f"{path}.from"):
        stages.binder.complain(path, "parse is not built yet")
