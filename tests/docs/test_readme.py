"""The README's first pipeline, word for word, as a newcomer types it: each block in its terminal, in order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from control_plane.demo.proxy import free_port
from tests.docs.blocks import blocks

README = Path(__file__).parents[2] / "README.md"
HEADING = "A first pipeline in five minutes"
SET_UP = "make setup\nsource .venv/bin/activate\n"  # this test runs within what they make
KEEPS_RUNNING = {"tidewire up": "control plane is up", "tidewire-agent run --data-dir pi-1": "link up"}
WAIT_S = 40.0


@pytest.mark.slow
def test_the_first_pipeline_works_word_for_word(tmp_path: Path) -> None:
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("TIDEWIRE_")},
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TIDEWIRE_API_PORT": str(free_port()),
        "TIDEWIRE_NATS_PORT": str(free_port()),
    }
    outputs: dict[str, str] = {}
    with terminals(tmp_path, env) as start:
        for block in blocks(README):
            if block.heading != HEADING or block.text == SET_UP:
                continue
            if block.save_as:
                (tmp_path / block.save_as).write_text(block.text)
                continue
            for command in block.text.strip().splitlines():
                if command in KEEPS_RUNNING:
                    start(command, KEEPS_RUNNING[command])
                else:
                    outputs[command] = run(command, tmp_path, env)
    check(outputs)


def check(outputs: dict[str, str]) -> None:
    def of(beginning: str) -> str:
        return next(text for command, text in outputs.items() if command.startswith(beginning))

    assert "fine" in of("tidewire validate")
    alone = of("tidewire-agent run boiler.yaml")
    assert "read 2000 = " in alone
    assert "ledgers balanced" in alone
    assert "pi-1" in of("tidewire nodes")
    assert "s1" in of("tidewire query")
    why = of("tidewire why")
    assert "limit_c" in why
    assert "inspection today" in why
    assert "new insulation" in why or "82" in why
    assert "boiler" in of("tidewire-agent status")


def run(command: str, cwd: Path, env: dict[str, str]) -> str:
    """Until it succeeds: "a few seconds later" is when the reader types, too."""
    deadline = time.monotonic() + WAIT_S
    while True:
        done = subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        has_rows = done.stdout.count("\n") > 1 or "tidewire query" not in command  # a table may be there before its first rows
        if done.returncode == 0 and done.stdout.strip() and has_rows:
            return done.stdout
        assert time.monotonic() < deadline, f"$ {command}\n{done.stdout}{done.stderr}"
        time.sleep(0.5)


@contextmanager
def terminals(cwd: Path, env: dict[str, str]) -> Iterator[object]:
    running: list[subprocess.Popen[bytes]] = []

    def start(command: str, until: str) -> None:
        log = cwd / f"terminal-{len(running)}.log"
        with log.open("wb") as out:
            running.append(subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=cwd, env=env, stdout=out, stderr=out))
        deadline = time.monotonic() + WAIT_S
        while until not in log.read_text():
            assert time.monotonic() < deadline and running[-1].poll() is None, f"$ {command}\n{log.read_text()}"
            time.sleep(0.1)

    try:
        yield start
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(30)
