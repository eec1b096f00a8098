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
DIGITS_MAX = 400  # of an integer: more than any type has
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
            [Problem(f"the document is over {BYTES_MAX // 1024} KiB", "", "move long lists into a lookup table", 1, 1, file)]
        )
    try:
        root = _Loader(text, file).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise SpecError([_from_yaml_error(error, text, file)]) from None
    except yaml.reader.ReaderError as error:
        raise SpecError([_from_reader_error(error, text, file)]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = Problem(f"not YAML: {str(error).splitlines()[0]}", "", "compare it with the examples in the docs", 1, 1, file)
        raise SpecError([problem]) from None
    if root is None:
        raise SpecError([Problem("the document is empty", "", "start with `tidewire: 1`", 1, 1, file)])
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


class _Loader(yaml.SafeLoader):
    """Raises `SpecError` at what the subset leaves out, before anything is made of it."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self._file, self._depth = file, 0

    def get_event(self) -> Any:
        event = super().get_event()  # type: ignore[no-untyped-call]
        message, hint = "", ""
        self._depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            message, hint = "anchors and aliases are not allowed", "write the value out"
        elif tag := getattr(event, "tag", None):
            message = f"tags like {tag} are not allowed"
            hint = (
                "! starts a tag: in an expression write `not`, or put it in quotes" if tag.startswith("!") else "remove the tag"
            )
        elif self._depth > DEPTH_MAX:
            message, hint = f"more than {DEPTH_MAX} levels deep", "flatten the document"
        if message:
            mark = event.start_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise SpecError([Problem(message, hint=hint, file=self._file, line=line, column=column)])
        return event


def decode(data: bytes, file: str = "") -> str:
    """The text of a file. Raises `SpecError` at the first byte that is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        line, column = _line_and_column(before, len(before))
        hint = "save the file as UTF-8; in an editor: Save with encoding"
        raise SpecError([Problem("this byte is not UTF-8 text", "", hint, line, column, file)]) from None


def _line_and_column(text: str, index: int) -> tuple[int, int]:
    before = text[:index].replace("\r\n", "\n").replace("\r", "\n")
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _from_reader_error(error: yaml.reader.ReaderError, text: str, file: str) -> Problem:
    line, column = _line_and_column(text, error.position)
    message = f"the character U+{error.character:04X} is not allowed in YAML"
    return Problem(message, "", "remove it; many editors show it as a box or not at all", line, column, file)


_QUOTE_FIRST = re.compile(r"""(?:^|[:\-,\[{]\s)\s*(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")\s*[^\s,\]}:#]""")
_OTHER_QUOTES = "put the whole value in the other kind of quotes, or on its own line after `>-`"
_WORDS: tuple[tuple[str, str, str], ...] = (
    # (in PyYAML's message, what is wrong, what to do about it)
    ("<stream end>", "the file ends in the middle of something", "a bracket or quote above is never closed"),
    ("cannot start any token", "", "a value cannot start with this character, put it in quotes"),
    (
        "mapping values are not allowed",
        "",
        "a colon followed by a space ends a key: indent the line, or put the value in quotes",
    ),
    (
        "another document",
        "a second document starts here",
        "one file holds one pipeline: remove everything from the second `---` on",
    ),
    (
        "unknown escape",
        "a backslash in double quotes starts an escape",
        "use single quotes: regular expressions keep their backslashes there",
    ),
    (
        "found '<block sequence start>'",
        "this line is indented otherwise than what it belongs to",
        "entries of one list start in one column",
    ),
    (
        "<block end>, but found '-'",
        "this line is indented otherwise than what it belongs to",
        "entries of one list start in one column",
    ),
    (
        "found '<block mapping start>'",
        "this line is indented otherwise than what it belongs to",
        "keys of one map start in one column",
    ),
    (
        "could not find expected ':'",
        "there is a line without `key:`",
        "write `key: value`; YAML often notices late: see the line above too",
    ),
    ("alphabetic or numeric character", "* and & at the start of a value mean something else to YAML", "put the value in quotes"),
    ("a comment or a line break", "> and | at the start of a value begin a block of text", "put the value in quotes"),
    ("chomping or indentation", "> and | at the start of a value begin a block of text", "put the value in quotes"),
    ("expected ',' or '}'", "a {..} map ends here, or misses a comma", _CUT_HINT),
    ("expected ',' or ']'", "a [..] list ends here, or misses a comma", _CUT_HINT),
)


def _from_yaml_error(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    message, hint = error.problem or str(error), "see the line above it too: YAML often notices late"
    if "quoted scalar" in (error.context or "") and "end of" in message:
        mark, message, hint = (
            error.context_mark,
            "this quote is never closed",
            "close it, or double it where it is part of the text",
        )
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    if here[column - 1 : column] == "\t":
        hint = "indent with spaces, not tabs"
    elif _QUOTE_FIRST.search(here[:column]) and ("found '<scalar>'" in message or "comment or a line break" in message):
        message, hint = "the value ends at its closing quote, and there is more", _OTHER_QUOTES
    else:
        found = next(((what, do) for words, what, do in _WORDS if words in message), None)
        message, hint = (found[0] or message, found[1]) if found else (message, hint)
    return Problem(message, file=file, line=line, column=column, hint=hint)


class _Builder:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.source.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(node, child, (*path, i)) for i, child in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode), "a node is a mapping, a sequence or a scalar"
        return self._scalar(node, path)

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

    def _item(self, node: yaml.SequenceNode, child: yaml.Node, path: Path) -> Any:
        if node.flow_style and isinstance(child, yaml.ScalarNode) and child.style is None and _is_unbalanced(child.value):
            self._problem(child, path, f'"{child.value}" looks like half of an expression', _CUT_HINT)
        return self.build(child, path)

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        if node.style is not None:
            return text
        if text in _NULLS:
            return None
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.match(text):
            if len(text) > DIGITS_MAX:
                self._problem(node, path, f"a number of {len(text):,} digits", "put it in quotes if it is meant as text")
                return 0
            return int(text)
        if _NUMBER.match(text):
            return float(text)
        return text

    def _problem(self, node: yaml.Node, path: Path, message: str, hint: str) -> None:
        mark = node.start_mark
        self.problems.append(Problem(message, format_path(path), hint, mark.line + 1, mark.column + 1, self.source.file))


def _was_cut(key: yaml.ScalarNode, value: yaml.Node) -> bool:
    """Whether a flow map's entry shows the signs of an expression cut at a comma. An apostrophe in a value is none: it may be
    prose, and what reads an expression tells of a quote that is not closed."""
    plain = isinstance(value, yaml.ScalarNode) and value.style is None
    cut_value = plain and (value.value == "" or _is_unbalanced(value.value))
    return cut_value or _is_unbalanced(key.value) or key.value.count("'") % 2 == 1


def _is_unbalanced(text: str) -> bool:
    return text.count("(") != text.count(")")
