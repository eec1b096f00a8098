"""Runner processes: start, limits, end. Forked from a server that has pyarrow and duckdb loaded already."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from edge_agent.config import GIB
from edge_agent.wire import AsyncChannel

RUNNER = "edge_agent.runner:main"
_PRELOAD = ("edge_agent.preload",)
_ENVIRONMENT = {
    # Address space that malloc would reserve per thread, and Arrow for itself, would count against a runner's limit unused.
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OPENBLAS_NUM_THREADS": "1",  # numpy starts threads for it that nothing here uses
    # The columns of one batch lie where those of the last one did: giving them back each time cost a quarter of a runner's CPU.
    # It gives them back when no rows come.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(24 * 1024 * 1024),
}
_OOM_SCORE_ADJ = 500  # the kernel should take a runner before the agent (I11)


class RunnerProcess:
    """One runner and the agent's end of its channel."""

    def __init__(self, process: ForkServerProcess, channel: AsyncChannel) -> None:
        self._process, self.channel = process, channel
        self.is_open = True

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def kill(self) -> None:
        if self.is_open and self._process.is_alive():
            self._process.kill()

    async def wait(self) -> int:
        """The exit status; negative: the signal that ended it."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        status = self._process.exitcode or 0
        self.is_open = False
        self._process.close()
        self.channel.close()
        return status


def warm_up() -> None:
    """Start the fork server now, if it is not there: it loads what runners need while its parent loads what an agent does."""
    _prepare(_PRELOAD)
    with _anonymous_main():
        forkserver.ensure_running()


def _prepare(preload: Sequence[str]) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # the fork server inherits it
    forkserver.set_forkserver_preload(list(preload))


class Supervisor:
    """Starts runner processes. A runner ends by itself when its socket does, so none outlives the agent."""

    def __init__(self, memory_bytes: int = 2 * GIB, entry: str = RUNNER, preload: Sequence[str] = _PRELOAD) -> None:
        """`entry` names the runner's main as `module:function`; it takes the socket."""
        self._memory_bytes, self._entry = memory_bytes, entry
        _prepare(preload)
        self._context = multiprocessing.get_context("forkserver")
        self._starting = asyncio.Lock()

    async def start(self, name: str, entry: str = "", memory_bytes: int = 0) -> RunnerProcess:
        """A runner of the pipeline `name`; or with another `entry` and limit, whoever answers the request of that name."""
        async with self._starting:  # multiprocessing's forkserver takes one at a time
            ours, theirs = socket.socketpair()
            with theirs:
                process = await asyncio.to_thread(self._fork, name, theirs, entry or self._entry, memory_bytes)
        return RunnerProcess(process, await AsyncChannel.open(ours))

    def _fork(self, name: str, theirs: socket.socket, entry: str, memory_bytes: int) -> ForkServerProcess:
        args = (theirs, entry, memory_bytes or self._memory_bytes, os.getpid())
        process = self._context.Process(target=_child, args=args, name=f"runner {name}", daemon=True)
        with _anonymous_main():
            process.start()
        return process


@contextmanager
def _anonymous_main() -> Iterator[None]:
    """Hide where `__main__` came from: the child would import it, and with it the whole agent, for nothing."""
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if getattr(main, name, None) is not None}
    for name in hidden:
        setattr(main, name, None)
    if "__file__" in hidden:
        del main.__file__
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def _child(sock: socket.socket, entry: str, memory_bytes: int, agent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the agent decides when to stop, and says so on the socket
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ))
    module, function = entry.split(":")
    try:
        getattr(importlib.import_module(module), function)(sock)
    except EOFError:
        os._exit(0)  # the agent is gone
