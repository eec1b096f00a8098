"""A page as a script: every ```console block is run as it stands, and must say what the page says.

`$ tidewire ...` is run; what follows is all that it prints, `...` standing for anything within a line, alone for any lines.
`[exit status N]` ends what exits otherwise than with 0. Between the blocks a test does what the page tells in prose.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs.blocks import Block, blocks

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Said:
    """One command of a block and what it must print."""

    command: str
    expected: tuple[str, ...]


def console_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.info == "console"]


def run_block(page: Path, block: Block, cli: Cli) -> None:
    """With WALK_WRITE=1 the page is written anew instead, with what the commands say now."""
    written = []
    for said in _commands(block.text):
        program, *words = shlex.split(said.command)
        assert program == "tidewire", f"{page.name}: {said.command}"
        done = cli(*words)
        lines = (done.stdout + done.stderr).rstrip("\n").split("\n") if done.stdout + done.stderr else []
        lines += [f"[exit status {done.returncode}]"] if done.returncode else []
        written += [f"$ {said.command}", *lines]
        if not os.environ.get("WALK_WRITE"):
            pattern = "".join(_pattern(line) for line in said.expected)
            told = "".join(f"{line}\n" for line in lines)
            assert re.fullmatch(pattern, told), f"{page.name}: $ {said.command}\nsays:\n{told}"
    if os.environ.get("WALK_WRITE"):
        page.write_text(page.read_text().replace(block.text, "\n".join(written) + "\n", 1))


def _commands(text: str) -> Iterator[Said]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = part.rstrip("\n").split("\n")
        yield Said(command, tuple(expected))


def _pattern(line: str) -> str:
    if line.strip() == "...":
        return r"(?:[^\n]*\n)*"
    return (
        r"[^\n]*".join(re.escape(part.rstrip() if i == line.count("...") else part) for i, part in enumerate(line.split("...")))
        + r"[ ]*\n"
    )
