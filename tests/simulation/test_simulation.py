"""Seeds of the simulator, that each is replayed exactly, and that the checkers see what they are for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.canaries import CANARIES
from tests.simulation.faults import FAULTS
from tests.simulation.loop import Stuck, VirtualLoop
from tests.simulation.scenario import simulate

SEEDS, AT_ONCE = 200, 4  # few at once: two workers then end nearly together


@pytest.mark.parametrize("first", range(1, SEEDS + 1, AT_ONCE))
def test_every_invariant_holds(first: int) -> None:
    failed = {seed: found for seed in range(first, min(first + AT_ONCE, SEEDS + 1)) if (found := simulate(seed).complaints)}
    assert not failed, f"replay with: make sim SEED={min(failed)}"


def test_a_seed_is_replayed_exactly_here_and_in_another_process() -> None:
    seed = 7
    result = simulate(seed)
    assert result.trace == simulate(seed).trace
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--quiet"]
    told = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "3"}, capture_output=True, text=True, check=False, timeout=120
    )
    assert f"trace {result.trace}" in told.stdout, told.stdout + told.stderr
    assert result.trace != simulate(seed + 1).trace


@pytest.mark.parametrize("name", CANARIES)
def test_a_deliberate_bug_is_seen(name: str) -> None:
    canary = CANARIES[name]
    for seed in canary.seeds:
        assert not simulate(seed, canary.faults, buffer_bytes=canary.buffer_bytes).complaints, "without the bug all is well"
        found = simulate(seed, canary.faults, buffer_bytes=canary.buffer_bytes, bug=name).complaints
        assert any(text.startswith(canary.sees) for text in found), f"nobody complained about {canary.sees}: {found}"


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_alone_happens_and_heals(name: str) -> None:
    result = simulate(1, [name])
    assert result.faults, "it happened"
    assert not result.complaints


def test_time_that_stands_still_is_told() -> None:
    loop = VirtualLoop()

    async def wait_for_ever() -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        loop.run_until_complete(wait_for_ever())
    loop.bury()
    loop.close()
