"""A real server process on free ports, the real command line against it, and waiting for conditions."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from control_plane import cli
from control_plane.client import Client
from control_plane.config import ApiAddress

PRESS = """
tidewire: 1
pipeline: press
description: Press temperatures
params:
  limit_c: {type: double, default: 85, min: 0, max: 400}
  mode: {type: string, default: normal, one_of: [normal, night]}
sources:
  sim:
    simulate: {seed: 1}
schema:
  ts: {type: timestamp, event_time: true}
  value: {type: double}
sinks:
  rows: {lake: {table: press_rows}}
  zero: {lake: {table: t0}}
  one: {lake: {table: t1}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """`tidewire up`. Killed and started again it keeps its ports and its data."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir, self.options = data_dir, options
        self.nats_port, self.api_port = free_port(), free_port()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> ServerProcess:
        self.log = (self.data_dir.parent / "server.log").open("a")
        ports = ["--nats-port", str(self.nats_port), "--api-port", str(self.api_port)]
        command = [sys.executable, "-m", "control_plane", "up", "--data-dir", str(self.data_dir), *ports, *self.options]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, text=True)
        wait_until(self._answers, 30, lambda: f"the server does not answer:\n{self.said()}")
        return self

    def apply(self, text: str = PRESS) -> str:
        """Register a version; its digest."""
        file = self.data_dir.parent / "press.yaml"
        file.write_text(text)
        return str(self.json("apply", str(file))["versions"][0]["digest"])

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def said(self) -> str:
        return (self.data_dir.parent / "server.log").read_text()

    @property
    def client(self) -> Client:
        return Client(self.data_dir)

    def cli(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command line in this process: everything but the interpreter's start."""
        return call_cli("--data-dir", str(self.data_dir), *words, **environment)

    def json(self, *words: str) -> Any:
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def token(self, *words: str) -> str:
        return str(self.json("join-token", "create", *words)["token"])

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.said()
        address = ApiAddress.find(self.data_dir)
        return address is not None and address.pid == self.process.pid


def run_cli(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith("TIDEWIRE_")}
    command = [sys.executable, "-m", "control_plane", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={**settings, "TIDEWIRE_USER": "ana", **environment}, timeout=60
    )


def call_cli(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TIDEWIRE_")}
    with (
        patch.dict(os.environ, {**clean, "TIDEWIRE_USER": "ana", **environment}, clear=True),
        patch.object(sys, "argv", ["tidewire", *words]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def wait_until(condition: Callable[[], Any], seconds: float, otherwise: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise() or "the condition did not come true in time"
        time.sleep(0.02)


async def until(condition: Callable[[], Awaitable[Any] | Any], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if (await value) if isinstance(value, Awaitable) else value:
            return
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel it until it is over: nats-py awaits with `wait_for`, which in Python 3.11 may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
