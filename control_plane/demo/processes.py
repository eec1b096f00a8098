"""The programs of the demo, started and called as a user would, each with its own data directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from control_plane.nats_server import die_with_parent
from pipelines.contract.errors import TidewireError

START_S = 30.0
CONTROL, AGENT = "control_plane", "edge_agent"


class Program:
    """A long-running child; its output goes to a log file."""

    def __init__(self, name: str, args: Sequence[str], cwd: Path, log: Path, env: Mapping[str, str]) -> None:
        self.name, self._args, self._cwd, self._log, self._env = name, list(args), cwd, log, dict(env)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._args,
                cwd=self._cwd,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(os.getpid()),
            )

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self._process is not None and self.is_running:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        if self._process is None or not self.is_running:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    def why_dead(self) -> TidewireError:
        tail = self._log.read_text(errors="replace").strip().splitlines()[-3:] if self._log.exists() else []
        return TidewireError(" / ".join(tail) or "it said nothing", op=f"start {self.name}", hint=f"its log is {self._log}")


def module_command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


async def call(module: str, *words: str, cwd: Path, env: Mapping[str, str]) -> str:
    """Run one command to its end and return what it printed. Raises `TidewireError` with its error line."""
    process = await asyncio.create_subprocess_exec(
        *module_command(module, *words), cwd=cwd, env=dict(env), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        lines = err.decode(errors="replace").strip().splitlines() or ["it failed without a word"]
        raise TidewireError(lines[0], op=" ".join(words[:2]), hint=lines[1].removeprefix("  fix: ") if len(lines) > 1 else "")
    return out.decode()


async def call_json(module: str, *words: str, cwd: Path, env: Mapping[str, str]) -> Any:
    return json.loads(await call(module, *words, "--json", cwd=cwd, env=env))


def environment(**own: str) -> dict[str, str]:
    """This process's environment without settings that would lead a child to another installation."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIDEWIRE_")}
    return {**kept, **own}
