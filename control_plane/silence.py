"""Nodes that fall silent: which become incidents, which are over. Pure: what was heard and how long we listened come in.

Silence is counted only while this control plane listened: its own downtime is not the nodes'. And silence is not failure (I8):
the incident says since when nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

GAP_US = 30_000_000  # nobody listened through a longer gap between two looks: a laptop slept, the process was stopped


@dataclass(frozen=True, slots=True)
class Heard:
    last_seen_us: int  # our clock; only compared with itself
    listened_us: int  # how long we had listened in all when that became known


@dataclass(frozen=True, slots=True)
class Ears:
    """What was heard of each node, by the time for which anybody listened."""

    listened_us: int = 0
    heard: Mapping[str, Heard] = field(default_factory=dict)

    def after(self, elapsed_us: int, seen: Mapping[str, int]) -> Ears:
        """`elapsed_us`: since the last look, 0 when nobody listened; `seen`: when each node was last heard of."""
        listened_us = self.listened_us + (elapsed_us if elapsed_us <= GAP_US else 0)
        heard = {
            node: known if (known := self.heard.get(node)) and known.last_seen_us == at else Heard(at, listened_us)
            for node, at in seen.items()
        }
        return Ears(listened_us, heard)

    def silent_us(self, node: str) -> int:
        known = self.heard.get(node)
        return self.listened_us - known.listened_us if known else 0


def judge(ears: Ears, open_: Mapping[str, int], after_us: int) -> tuple[list[str], list[str]]:
    """(nodes that are silent now, nodes that are back). `open_`: when a node whose silence is an incident was last heard of."""
    silent = [node for node in ears.heard if node not in open_ and ears.silent_us(node) >= after_us]
    back = [node for node, since in open_.items() if node in ears.heard and ears.heard[node].last_seen_us > since]
    gone = [node for node in open_ if node not in ears.heard]  # removed, replaced: nobody waits for it any more
    return sorted(silent), sorted(back + gone)
