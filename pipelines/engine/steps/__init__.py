"""The steps of a pipeline, by kind: each turns its part of the spec into layers of a statement or into a stage of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.engine.stage import Stages
from pipelines.engine.steps import lookup, parse, plain, redact, series, thin

COMPILE: Mapping[str, Callable[[Stages, Any, str], None]] = {
    "filter": plain.compile_filter,
    "derive": plain.compile_derive,
    "select": plain.compile_select,
    "drop": plain.compile_drop,
    "rename": plain.compile_rename,
    "parse": parse.compile_parse,
    "enrich": plain.compile_enrich,
    "lookup": lookup.compile_lookup,
    "redact": redact.compile_redact,
    "dedupe": thin.compile_dedupe,
    "deadband": thin.compile_deadband,
    "sample": thin.compile_sample,
    "rate_limit": thin.compile_rate_limit,
    "counter": series.compile_counter,
    "previous": series.compile_previous,
    "changes": thin.compile_changes,
}
