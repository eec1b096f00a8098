"""One plant, one fault after the other, one count at the end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prove import disk_faults, faults
from prove.disks import why_not
from prove.faults import Fault, Figures, Size
from prove.plant import plant

ON_DISKS: dict[str, Fault] = {
    "full disk, agent": disk_faults.full_agent_disk,
    "full disk, control plane": disk_faults.full_control_disk,
    "power cuts, agent": disk_faults.power_of_agent,
    "power cuts, control plane": disk_faults.power_of_control,
}
DAMAGE = "damage"  # the last: it may take positions
ALL: dict[str, Fault] = {
    "kills": faults.kills,
    "cuts": faults.cuts,
    "pauses": faults.pauses,
    **ON_DISKS,
    DAMAGE: disk_faults.damage,
}


@dataclass(frozen=True)
class Result:
    """`did` are the faults, `counted` what was found afterwards; `skipped` says why it was not run."""

    did: Figures = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    skipped: str = ""


async def run(names: Sequence[str], home: Path, chance: random.Random, size: Size) -> Result:
    """What needs small disks is left out where nothing can be mounted."""
    why = why_not() if ON_DISKS.keys() & set(names) else ""
    possible = [name for name in names if not (why and name in ON_DISKS)]
    if not possible:
        return Result(skipped=why)
    did: Figures = {}
    async with plant(home, chance, on_disks=bool(ON_DISKS.keys() & set(possible))) as made:
        for name in possible:
            did |= await ALL[name](made, size)
        counted = await made.finish(may_read_again=DAMAGE in names)
    return Result(did, counted.figures(), tuple(made.wrong), why)
