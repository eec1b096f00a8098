"""Processes of the simulation: whose code is running, on which machine, and what time it is there."""

from __future__ import annotations

import random
from contextvars import ContextVar
from dataclasses import dataclass, field

LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


class Crashed(BaseException):
    """The process that runs this is killed here. No `except Exception` survives it."""


@dataclass(eq=False)
class Machine:
    """Where processes live: a wall clock that may be wrong, and a boot that begins anew."""

    name: str
    entropy: random.Random
    wall_offset_s: float = 0.0  # what its wall clock shows beyond true time
    boot: int = 1
    booted_s: float = 0.0  # virtual time of the boot
    hardware: str = "first"
    is_synced: bool = True

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boot}"


@dataclass(eq=False)
class Life:
    """One process, from its start to its end. Nothing of it runs once it `is_dead`."""

    machine: Machine
    name: str
    is_dead: bool = False
    cleanups: list[object] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Life({self.name})"
