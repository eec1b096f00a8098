"""SIGKILL at any moment: what was committed is there once, in an unbroken chain (I1, I2)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
from support import new_key, numbers_in_outbox, open_store

HERE = Path(__file__).parent
USUAL_START_S = 0.4  # of this test's agent; on a busy machine the rounds are as much longer
ROUNDS = 10


def start(data_dir: Path, seed: str) -> subprocess.Popen[bytes]:
    do = json.dumps([{"ready": 1}, {"number_rows": 3}])
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.Popen(
        [sys.executable, str(HERE / "agent_process.py"), str(data_dir), seed, do], stdout=subprocess.PIPE, env=environment
    )


def is_alive(child: psutil.Process) -> bool:
    try:
        return bool(child.is_running() and child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def assert_gone(children: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 10
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline, "a runner outlived its agent"
        time.sleep(0.02)


def test_i1_i2_every_number_is_in_the_outbox_exactly_once_after_ten_kills(tmp_path: Path) -> None:
    key, seed = new_key(), random.randrange(1 << 32)
    print("seed", seed)  # a failure prints it
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        begun = time.monotonic()
        agent = start(tmp_path, key.seed)
        assert agent.stdout is not None and agent.stdout.readline() == b"open\n"
        slowness = max(1.0, (time.monotonic() - begun) / USUAL_START_S)
        children = psutil.Process(agent.pid).children(recursive=True)
        time.sleep(chance.uniform(0.05, 0.8) * slowness)
        children += psutil.Process(agent.pid).children(recursive=True)
        agent.kill()
        agent.wait()
        assert_gone(children)
    with open_store(tmp_path, key) as store:
        numbers = asyncio.run(numbers_in_outbox(store))
        checkpoint = asyncio.run(store.checkpoint("p"))
    assert len(numbers) > 30, "the rounds were too short to test anything"
    assert numbers == list(range(len(numbers)))
    assert checkpoint.positions == {"numbers": len(numbers)}
