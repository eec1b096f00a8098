"""Fixtures of the tests of the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from world import World

from edge_agent import keeper as keeper_module
from edge_agent import uplink as uplink_module
from tests.nats_broker import Broker


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    broker = Broker(tmp_path)
    yield World(tmp_path, broker)
    broker.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(uplink_module, "_PAUSE_FIRST_S", 0.05)
