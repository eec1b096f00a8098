"""grok: patterns put together from named ones, `%{NAME}`, `%{NAME:field}`. They end as one regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipelines.contract.spec_problems import did_you_mean
from pipelines.engine.decoders.base import PatternError
from pipelines.engine.decoders.grok_patterns import PATTERNS
from pipelines.engine.decoders.regex import EXPANDED_MAX

_DEPTH_MAX = 32
_REFERENCE = re.compile(r"%\{([^{}:]*)(?::([^{}:]*))?(?::([^{}]*))?\}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def expand(pattern: str, own: Mapping[str, str]) -> str:
    """The regular expression. Raises `PatternError` for an unknown name, a circle, or one that grows without bounds."""
    return _Expansion({**PATTERNS, **own}, own).expand(pattern, "grok.pattern", ())


class _Expansion:
    def __init__(self, known: Mapping[str, str], own: Mapping[str, str]) -> None:
        self.known, self.own = known, own
        self.length = 0

    def expand(self, pattern: str, path: str, within: tuple[str, ...]) -> str:
        """`within`: the names whose expansion this is part of. A type behind the field is left to the schema."""
        parts, end = [], 0
        for reference in _REFERENCE.finditer(pattern):
            parts += [pattern[end : reference.start()], self._named(reference[1], reference[2] or "", path, within)]
            end = reference.end()
        parts.append(pattern[end:])
        self.length += sum(map(len, parts[::2]))
        if self.length > EXPANDED_MAX:
            raise PatternError(path, f"the pattern grows over {EXPANDED_MAX} characters", "take a simpler one")
        return "".join(parts)

    def _named(self, name: str, field: str, path: str, within: tuple[str, ...]) -> str:
        if name not in self.known:
            hint = "add it under `patterns:`, or take one of the library: docs/language/sources.md lists them"
            raise PatternError(path, f"there is no grok pattern {name}{did_you_mean(name, self.known)}", hint)
        if name in within or len(within) >= _DEPTH_MAX:
            circle = " -> ".join([*within[-3:], name])
            raise PatternError(path, f"the grok pattern {name} contains itself: {circle}", "write it without itself")
        inner_path = f"grok.patterns.{name}" if name in self.own else path
        body = self.expand(self.known[name], inner_path, (*within, name))
        field = _BRACKETS.sub(r"_\1", field).strip("_") if field.startswith("[") else field.replace(".", "_")
        return f"(?P<{field}>{body})" if field else f"(?:{body})"
