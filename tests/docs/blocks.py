"""Fenced blocks of a Markdown file, as a reader meets them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_SAVE_AS = re.compile(r"Save this as `(?P<name>[^`]+)`")


@dataclass(frozen=True)
class Block:
    """`heading` is the one it stands below; `save_as` the file its paragraph tells to save it as, or ""."""

    heading: str
    info: str
    text: str
    save_as: str


def blocks(path: Path) -> list[Block]:
    text = path.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.+)$", before, re.MULTILINE)
        paragraph = before.rstrip().split("\n\n")[-1]
        named = _SAVE_AS.search(paragraph)
        found.append(
            Block(headings[-1] if headings else "", match["info"].strip(), match["text"], named["name"] if named else "")
        )
    return found
