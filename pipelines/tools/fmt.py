"""The canonical form of pipeline and cases files: key order of the models, block style, comments kept, meaning never changed.

A map in braces stays one line when the author wrote it so, it fits, and it holds neither an expression nor a comment; everything
else is in block style. Quotes stay, except around expressions that need none. One blank line stays where there was any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from pipelines.contract.errors import TidewireError
from pipelines.contract.yaml_reader import read
from pipelines.tools.json_schema import Schema, cases_schema, pipeline_schema

WIDTH = 120  # of a map in braces, and of an expression before it is folded
FOLD_WIDTH = 100
INDENT = "  "


def format_text(text: str, file: str = "") -> str:
    """`text` in canonical form. Raises `SpecError` when it is not YAML as the reader takes it."""
    data = read(text, file).data
    plain = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    made = _Formatter(plain, _schema_of(file, data)).format()
    if _in_any_order(read(made, file).data) != _in_any_order(data) or _comment_texts(made) != _comment_texts(plain):
        raise TidewireError(
            "its canonical form would say something else", op="fmt", place=file, hint="this is a defect: please report it"
        )
    return made


def _schema_of(file: str, data: Any) -> Schema:
    is_cases = file.endswith(".cases.yaml") or (isinstance(data, dict) and "cases" in data)
    return _cases_schema() if is_cases else _pipeline_schema()


_pipeline_schema, _cases_schema = cache(pipeline_schema), cache(cases_schema)


def _in_any_order(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _in_any_order(value) for key, value in sorted(data.items())}
    return [_in_any_order(one) for one in data] if isinstance(data, list) else (type(data), data)


def _comment_texts(text: str) -> list[str]:
    return sorted(comment.text for comment in _comments(text))


# -- comments


@dataclass(frozen=True)
class Comment:
    """`behind`: what else stands on its line. `after_blank`: an empty line is above it."""

    line: int
    column: int
    text: str
    behind: str
    after_blank: bool


def _comments(text: str) -> list[Comment]:
    """Every comment, in order: a `#` outside of all scalars that stands at the start of a line or after white space."""
    lines = text.split("\n")
    inside = [False] * (len(text) + 1)
    found: list[Comment] = []
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.ScalarToken):
            start = token.start_mark.index
            if token.style in ("|", ">"):
                start = text.find("\n", start)
                head = text[token.start_mark.index : start]
                start = token.start_mark.index + (head.index("#") if "#" in head else len(head))
                start, past_head = token.start_mark.index, start
                inside[start:past_head] = [True] * (past_head - start)
                start = text.find("\n", start)
            if 0 <= start < token.end_mark.index:
                inside[start : token.end_mark.index] = [True] * (token.end_mark.index - start)
    at = 0
    for number, line in enumerate(lines):
        for column in (m.start() for m in re.finditer("#", line)):
            if not inside[at + column] and (column == 0 or line[column - 1] in " \t"):
                blank = number > 0 and not lines[number - 1].strip()
                behind = line[:column].strip()
                found.append(Comment(number, column, line[column:].rstrip(), behind, blank and not behind))
                break
        at += len(line) + 1
    return found


# -- the tree


@dataclass
class Entry:
    """A key with its value, or an item of a list, with the comments that belong to it."""

    key: yaml.ScalarNode | None
    value: yaml.Node
    line: int
    column: int
    in_flow: bool
    parent: Entry | None
    head: list[Comment] = field(default_factory=list)
    trailing: list[Comment] = field(default_factory=list)
    foot: list[Comment] = field(default_factory=list)
    children: list[Entry] = field(default_factory=list)
    after_blank: bool = False

    def last_line(self) -> int:
        if self.children:
            return max(child.last_line() for child in self.children)
        is_block = isinstance(self.value, yaml.ScalarNode) and self.value.style in ("|", ">")
        return int(self.value.end_mark.line) - is_block

    def has_comments(self) -> bool:
        own = bool(self.head or self.trailing or self.foot)
        return own or any(child.has_comments() for child in self.children)


class _Formatter:
    def __init__(self, text: str, schema: Schema) -> None:
        self.text, self.lines, self.schema = text, text.split("\n"), schema
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        assert node is not None, "read() refuses an empty document"
        self.root = Entry(None, node, -1, -1, False, None)
        self.order: list[Entry] = []  # all entries, as they stand
        self._grow(self.root)
        self.before: list[Comment] = []
        self.after: list[Comment] = []
        for comment in _comments(text):
            self._attach(comment)

    def format(self) -> str:
        out: list[str] = []
        for comment in self.before:
            _add_comment(out, comment, "")
        if self.before and self.order and self.order[0].after_blank:
            out.append("")
            self.order[0].after_blank = False  # the line was between the head of the file and it
        if self.root.children:
            out += self._block(self.root, [self.schema], "")
        else:
            out.append(self._inline_value(self.root, [self.schema]))
        for comment in self.after:
            _add_comment(out, comment, "")
        return "\n".join(out).strip("\n") + "\n"

    def _grow(self, parent: Entry) -> None:
        node = parent.value
        in_flow = parent.in_flow or bool(getattr(node, "flow_style", False))
        pairs: Sequence[tuple[Any, Any]] = []
        if isinstance(node, yaml.MappingNode):
            pairs = node.value
        elif isinstance(node, yaml.SequenceNode):
            pairs = [(None, item) for item in node.value]
        for key, value in pairs:
            mark = (key or value).start_mark
            column = mark.column if key is not None or in_flow else self._dash(mark)
            entry = Entry(key, value, mark.line, column, in_flow, parent)
            entry.after_blank = mark.line > 0 and not self.lines[mark.line - 1].strip()
            parent.children.append(entry)
            self.order.append(entry)
            self._grow(entry)

    def _dash(self, mark: Any) -> int:
        """Where the dash of a list's item stands: before it on its line, or on a line above."""
        found = self.lines[mark.line].rfind("-", 0, mark.column)
        return found if found >= 0 else int(mark.column)

    def _attach(self, comment: Comment) -> None:
        following = next((entry for entry in self.order if entry.line > comment.line), None)
        if comment.behind:
            self._attach_trailing(comment)
        elif self.order and self.order[0].line > comment.line:
            self.before.append(comment)
        elif following is None and comment.column == 0:
            self.after.append(comment)
        elif following is not None and (following.column >= comment.column or self._within_flow(following, comment)):
            following.head.append(comment)
        else:
            self._last_before(comment).foot.append(comment)

    def _within_flow(self, following: Entry, comment: Comment) -> bool:
        parent = following.parent
        return following.in_flow and parent is not None and parent.value.start_mark.line <= comment.line

    def _last_before(self, comment: Comment) -> Entry:
        """The entry that a comment below it belongs to: the innermost one that is not further right."""
        entry = [one for one in self.order if one.line < comment.line][-1]
        while entry.column > comment.column and entry.parent is not None and entry.parent is not self.root:
            entry = entry.parent
        return entry

    def _attach_trailing(self, comment: Comment) -> None:
        beginning = next((entry for entry in self.order if entry.line == comment.line), None)
        ending = next((entry for entry in self.order if entry.last_line() == comment.line), None)
        owner = beginning or ending or self._last_before(comment)
        if owner.trailing or (not beginning and not ending):
            owner.foot.append(comment)
        else:
            owner.trailing.append(comment)

    # -- writing

    def _block(self, parent: Entry, schemas: list[Schema], indent: str) -> list[str]:
        out: list[str] = []
        is_map = isinstance(parent.value, yaml.MappingNode)
        for n, entry in enumerate(self._ordered(parent, schemas)):
            below = _child(schemas, entry.key.value if entry.key is not None else None)
            lines: list[str] = []
            for comment in entry.head:
                _add_comment(lines, comment, indent)
            if entry.after_blank:
                lines.append("")
            if n == 0:
                while lines and not lines[0]:
                    lines.pop(0)
            out += _join_blanks(out, lines)
            out += self._entry(entry, below, indent, "" if is_map else "- ")
            foot: list[str] = []
            for comment in entry.foot:
                _add_comment(foot, comment, indent)
            out += foot
        return out

    def _entry(self, entry: Entry, schemas: list[Schema], indent: str, dash: str) -> list[str]:
        key = f"{self._key(entry.key)}:" if entry.key is not None else ""
        deeper = indent + INDENT
        if self._is_inline(entry, schemas):
            text = self._scalar_lines(entry, schemas, indent + dash, key, deeper)
            return _with_trailing(text, entry.trailing)
        inner = self._block(entry, schemas, deeper)
        if not dash:
            return _with_trailing([f"{indent}{key}"], entry.trailing) + inner
        at = next(i for i, line in enumerate(inner) if line.strip() and not line.strip().startswith("#"))
        inner[at] = f"{indent}- {inner[at][len(deeper) :]}"
        return inner[:at] + _with_trailing([inner[at]], entry.trailing) + inner[at + 1 :]

    def _ordered(self, parent: Entry, schemas: list[Schema]) -> list[Entry]:
        if not isinstance(parent.value, yaml.MappingNode):
            return parent.children
        order = _key_order(schemas, [_key_text(child) for child in parent.children])
        return sorted(parent.children, key=lambda child: order[_key_text(child)])

    def _is_inline(self, entry: Entry, schemas: list[Schema]) -> bool:
        node = entry.value
        if isinstance(node, yaml.ScalarNode) or not entry.children:
            return True
        if not getattr(node, "flow_style", False) or any(child.has_comments() for child in entry.children):
            return False
        if _holds_expression(entry, schemas) or _holds_lines(entry):
            return False
        depth = 0
        above = entry.parent
        while above is not None:
            depth, above = depth + 1, above.parent
        key = len(_key_text(entry)) + 2 if entry.key is not None else 2
        return len(self._inline_value(entry, schemas)) + key + len(INDENT) * (depth - 1) <= WIDTH

    def _inline_value(self, entry: Entry, schemas: list[Schema], *, in_flow: bool = False) -> str:
        node = entry.value
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, schemas, in_flow=in_flow)
        parts = []
        for child in self._ordered(entry, schemas):
            value = self._inline_value(child, _child(schemas, _key_text(child) if child.key is not None else None), in_flow=True)
            parts.append(f"{self._key(child.key, in_flow=True)}: {value}".rstrip() if child.key is not None else value)
        return "{" + ", ".join(parts) + "}" if isinstance(node, yaml.MappingNode) else "[" + ", ".join(parts) + "]"

    def _key(self, node: yaml.ScalarNode, *, in_flow: bool = False) -> str:
        if node.style is None:
            return str(node.value)
        return str(node.value) if _is_plain_key(node.value) else _quoted(node.value)

    def _scalar_lines(self, entry: Entry, schemas: list[Schema], start: str, key: str, deeper: str) -> list[str]:
        """A value behind its key; a block scalar as it is, at its new indentation."""
        node, begin = entry.value, f"{start}{key}{' ' if key else ''}"
        if not isinstance(node, yaml.ScalarNode):
            return [begin + self._inline_value(entry, schemas)]
        if node.style in ("|", ">") and (block := self._block_scalar(node, deeper)):
            return [f"{begin}{block[0]}", *block[1:]]
        text = self._scalar(node, schemas)
        if _is_expression(schemas) and len(begin) + len(text) > WIDTH and (folded := _fold(node.value)):
            return [f"{begin}>-", *(f"{deeper}{line}" for line in folded)]
        return [f"{begin}{text}".rstrip()]

    def _block_scalar(self, node: yaml.ScalarNode, indent: str) -> list[str]:
        """The lines of a block scalar, moved; none when its header asks for more than moving."""
        raw = self.text[node.start_mark.index : node.end_mark.index]
        head, _, body = raw.partition("\n")
        head = head.partition("#")[0].strip()
        if head not in ("|", "|-", ">", ">-") or "\t" in body:
            return []
        if len(head) == 1 and not node.value.endswith("\n"):
            head += "-"  # the file ends there, without the end of a line
        lines = body.split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        filled = [line for line in lines if line.strip()]
        if not filled:
            return []
        depth = len(filled[0]) - len(filled[0].lstrip(" "))
        if any(len(line) > depth for line in lines if not line.strip()):
            return []  # spaces that count
        return [head, *(f"{indent}{line[depth:]}" if line.strip() else "" for line in lines)]

    def _scalar(self, node: yaml.ScalarNode, schemas: list[Schema], *, in_flow: bool = False) -> str:
        text: str = node.value
        if node.style is None:
            return text if text == "" or _is_plain(text, in_flow=in_flow) else _quoted(text)
        if _is_expression(schemas) and not in_flow and _is_plain(text, in_flow=False) and _is_text(text):
            return text
        return _quoted(text)


def _add_comment(out: list[str], comment: Comment, indent: str) -> None:
    if comment.after_blank and (not out or out[-1]):
        out.append("")
    out.append(f"{indent}{comment.text}")


def _join_blanks(out: list[str], lines: list[str]) -> list[str]:
    return lines[1:] if out and not out[-1] and lines and not lines[0] else lines


def _with_trailing(lines: list[str], comments: Sequence[Comment]) -> list[str]:
    """A comment at the end of the first line: where it stood, behind what it stood behind."""
    if not comments:
        return lines
    (comment,) = comments
    is_same = comment.behind.strip() == lines[0].strip()
    return [f"{lines[0].ljust(comment.column - 2) if is_same else lines[0]}  {comment.text}", *lines[1:]]


def _key_text(entry: Entry) -> str:
    return str(entry.key.value) if entry.key is not None else ""


# -- scalars


_YAML_1_1 = yaml.SafeLoader("")  # its resolver knows what other readers of YAML take for something else than text


def _is_text(text: str) -> bool:
    """Whether plain `text` is text to every reader of YAML."""
    tag = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # the stubs leave it out
    return bool(tag == "tag:yaml.org,2002:str")


@cache
def _is_plain(text: str, *, in_flow: bool) -> bool:
    """Whether `text` can stand without quotes."""
    if "\n" in text or text != text.strip():
        return False
    try:
        node = yaml.compose(f"{{a: {text}}}" if in_flow else f"a: {text}", Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return False
    values = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else []
    return len(values) == 1 and isinstance(values[0], yaml.ScalarNode) and values[0].style is None and values[0].value == text


def _is_plain_key(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_ ./-]*", text) is not None and text == text.strip() and _is_text(text)


def _quoted(text: str) -> str:
    """In double quotes; in single ones where those need no escapes."""
    if ("\\" in text or '"' in text) and text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _fold(text: str) -> list[str]:
    """The lines of a folded scalar that reads back as `text`; none when it cannot."""
    if re.search(r"\s\s|[\n\t]|^\s|\s$", text):
        return []
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= FOLD_WIDTH:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


# -- what the schema says of a place


def _alternatives(schemas: Sequence[Schema]) -> Iterator[Schema]:
    for schema in schemas:
        if "$ref" in schema:
            yield from _alternatives([_definition(schema["$ref"])])
        elif "anyOf" in schema:
            yield from _alternatives(schema["anyOf"])
        else:
            yield schema


def _definition(reference: str) -> Schema:
    name = reference.rpartition("/")[2]
    found = _pipeline_schema()["$defs"].get(name)
    return dict(found if found is not None else _cases_schema()["$defs"][name])


def _child(schemas: Sequence[Schema], key: str | None) -> list[Schema]:
    """What may stand below a key, or (None) as an item of a list."""
    found: list[Schema] = []
    for schema in _alternatives(schemas):
        if key is None:
            found += [schema["items"]] if isinstance(schema.get("items"), dict) else []
        elif key in schema.get("properties", {}):
            found.append(schema["properties"][key])
        else:
            found += [one for pattern, one in schema.get("patternProperties", {}).items() if re.search(pattern, key)]
            found += [schema["additionalProperties"]] if isinstance(schema.get("additionalProperties"), dict) else []
    return found


def _is_expression(schemas: Sequence[Schema]) -> bool:
    return any(schema.get("format") == "sql" for schema in _alternatives(schemas))


def _holds_expression(entry: Entry, schemas: list[Schema]) -> bool:
    for child in entry.children:
        below = _child(schemas, _key_text(child) if child.key is not None else None)
        if (isinstance(child.value, yaml.ScalarNode) and _is_expression(below)) or _holds_expression(child, below):
            return True
    return False


def _holds_lines(entry: Entry) -> bool:
    if isinstance(entry.value, yaml.ScalarNode):
        return "\n" in entry.value.value
    return any(_holds_lines(child) for child in entry.children)


def _key_order(schemas: Sequence[Schema], keys: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where each key stands: as in the model that knows most of them; others behind, but before a closing `expect`."""
    known = max(
        (list(s["properties"]) for s in _alternatives(schemas) if "properties" in s and s.get("additionalProperties") is False),
        key=lambda names: len(set(names) & set(keys)),
        default=[],
    )
    last = len(known) - 1 if known and known[-1] == "expect" else len(known)
    ranks = {name: (n if n < last else last + 1) for n, name in enumerate(known)}
    return {key: (ranks.get(key, last), i) for i, key in enumerate(keys)}
