"""Commands of both programs in this process: everything but the interpreter's start, which costs more than most commands do.

What runs for long (`tidewire up`, `tidewire-agent run`) is a process as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from control_plane import cli as control_cli
from control_plane.demo.processes import AGENT, CONTROL
from edge_agent import cli as agent_cli
from pipelines.contract.errors import TidewireError
from prove.cluster import Cluster

_MAIN = {CONTROL: control_cli.main, AGENT: agent_cli.main}


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def run(module: str, *words: str, cwd: Path, env: Mapping[str, str]) -> Ended:
    """One command to its end, as `python -m MODULE WORDS` in `cwd` with `env`."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        patch.dict(os.environ, dict(env), clear=True),
        patch.object(sys, "argv", [module, *words]),
        contextlib.chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            _MAIN[module]()
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Ended(status, out.getvalue(), err.getvalue())


class Here(Cluster):
    """A cluster whose commands run in a thread of this process, one at a time: the link goes on meanwhile."""

    def __init__(self, home: Path, rhythm: str = "commit_s: 1\n", options: Sequence[str] = ()) -> None:
        super().__init__(home, rhythm, options)
        self._one_at_a_time = asyncio.Lock()  # output, environment and working directory are the process's

    async def end(self, module: str, *words: str, cwd: Path) -> Ended:
        async with self._one_at_a_time:
            return await asyncio.to_thread(run, module, *words, cwd=cwd, env=self.env)

    async def tidewire(self, *words: str) -> str:
        return _output(words, await self.end(CONTROL, *words, cwd=self.home))

    async def agent(self, name: str, *words: str) -> str:
        words = (*words, "--data-dir", str(self.home / name / "agent"))
        return _output(words, await self.end(AGENT, *words, cwd=self.home / name))


def _output(words: tuple[str, ...], ended: Ended) -> str:
    """Raises `TidewireError` with the error line, as `processes.call` does."""
    if ended.status:
        first, *more = ended.err.strip().splitlines() or ["it failed without a word"]
        raise TidewireError(first, op=" ".join(words[:2]), hint=more[0].removeprefix("  fix: ") if more else "")
    return ended.out


@asynccontextmanager
async def cluster(home: Path, rhythm: str = "commit_s: 1\n", options: Sequence[str] = ()) -> AsyncIterator[Here]:
    made = Here(home, rhythm, options)
    try:
        await made.open()
        yield made
    finally:
        await made.close()
