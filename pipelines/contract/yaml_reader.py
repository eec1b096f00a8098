"""YAML to plain data with the place of every value, and without YAML's surprises.

A subset of YAML 1.2: one document, no anchors, aliases, tags or duplicate keys, at most 256 KiB and 32 levels. Plain scalars mean
what they look like: only `true`/`false` are booleans, only `null`, `~` and nothing are null, numbers are decimal without leading
zeros; all else is text (`no`, `12:30:00`, `010`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipelines.contract.errors import Problem, SpecError

BYTES_MAX = 256 * 1024
DEPTH_MAX = 32

Path = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z")
_NULLS = frozenset({"", "~", "null"})
_CUT_HINT = "a comma ends a {..} entry and ` #` starts a comment: put the expression in quotes or on its own line"


@dataclass
class Source:
    """Parsed text: plain `data`, and where each path stands. `place(path)` falls back to the nearest parent."""

    data: Any
    file: str = ""
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def place(self, path: Path) -> tuple[int, int]:
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (1, 1))

    def locate(self, problem: Problem) -> Problem:
        return problem.at(*self.place(parse_path(problem.path)), file=self.file)


def read(text: str, file: str = "") -> Source:
    """Parse one document. Raises `SpecError` with line and column."""
    if len(text.encode(errors="surrogatepass")) > BYTES_MAX:
        raise SpecError(
            [Problem(f"the document is over {BYTES_MAX // 1024} KiB", file=file, hint="move long lists into a lookup table")]
        )
    try:
        _check_events(text, file)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise SpecError([_from_yaml_error(error, file)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError([Problem(f"not YAML: {error}", file=file)]) from None
    if root is None:
        raise SpecError([Problem("the document is empty", file=file, line=1, column=1)])
    source = Source(None, file)
    builder = _Builder(source)
    source.data = builder.build(root, ())
    if builder.problems:
        raise SpecError(builder.problems)
    return source


def format_path(path: Path) -> str:
    """`("steps", 2, "filter")` -> `steps[2].filter`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def parse_path(text: str) -> Path:
    """The inverse of `format_path`, for keys without dots and brackets."""
    return tuple(int(i) if i else name for i, name in re.findall(r"\[(\d+)\]|([^.\[\]]+)", text))


def _check_events(text: str, file: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        message, hint = "", ""
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            message, hint = "anchors and aliases are not allowed", "write the value out"
        elif tag := getattr(event, "tag", None):
            message, hint = f"tags like {tag} are not allowed", "remove the tag"
        elif depth > DEPTH_MAX:
            message, hint = f"more than {DEPTH_MAX} levels deep", "flatten the document"
        if message:
            mark = event.start_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            raise SpecError([Problem(message, hint=hint, file=file, line=line, column=column)])


def _from_yaml_error(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    message = error.problem or str(error)
    hint = ""
    if mark and mark.buffer and mark.buffer[mark.pointer : mark.pointer + 1] == "\t":
        hint = "indent with spaces, not tabs"
    elif "cannot start any token" in message:
        hint = "a value cannot start with this character, put it in quotes"
    elif "mapping values are not allowed" in message:
        hint = "a colon followed by a space ends a key: indent the line, or put the value in quotes"
    elif "another document" in message:
        hint = "one file holds one pipeline: remove everything from the second `---` on"
    return Problem(
        message, file=file, line=line, column=column, hint=hint or "see the line above it too: YAML often notices late"
    )


class _Builder:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.source.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode), "a node is a mapping, a sequence or a scalar"
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be a word", "write `key: value`")
                continue
            key = key_node.value
            child = (*path, key)
            if key in result:
                self._problem(key_node, child, f'the key "{key}" stands twice', "remove one of the two")
            self.source.places[child] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = self.build(value_node, child)
            if node.flow_style and _was_cut(key_node, value_node):
                self._problem(key_node, child, f'"{key}" looks like half of an expression', _CUT_HINT)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        if node.style is not None:
            return text
        if text in _NULLS:
            return None
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.match(text):
            return int(text)
        if _NUMBER.match(text):
            return float(text)
        return text

    def _problem(self, node: yaml.Node, path: Path, message: str, hint: str) -> None:
        mark = node.start_mark
        self.problems.append(Problem(message, format_path(path), hint, mark.line + 1, mark.column + 1, self.source.file))


def _was_cut(key: yaml.ScalarNode, value: yaml.Node) -> bool:
    """Whether a flow map's entry shows the signs of an expression cut at a comma."""
    texts = [key.value] + ([value.value] if isinstance(value, yaml.ScalarNode) and value.style is None else [])
    empty = isinstance(value, yaml.ScalarNode) and value.style is None and value.value == ""
    return empty or any(text.count("(") != text.count(")") or text.count("'") % 2 for text in texts)
