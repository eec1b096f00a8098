"""Where rows come from, one file per kind. A source is read by its runner, in one thread; it never blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.contract.language.sources import Source as SourceSpec
from pipelines.engine.batch import Lines


@dataclass(frozen=True)
class Block:
    """Whole records that a source had ready. `header` names the columns of CSV lines; `is_awaited`: somebody waits until they are
    committed."""

    lines: Lines
    file: str = ""
    header: tuple[str, ...] = ()
    is_awaited: bool = False


@dataclass(frozen=True)
class SourceContext:
    """What a source may know of its node. `may_read`, `may_listen`: whether local policy allows a path, an address (I13).
    `is_small`: blocks should be, because the pipeline takes more memory for each row (I9)."""

    until_eof: bool
    may_read: Callable[[str], bool]
    node_time_us: Callable[[], int]
    wall_us: Callable[[], int]
    may_listen: Callable[[str], bool] = lambda address: True
    is_small: bool = False


class Source(Protocol):
    """`position` says what was read, as JSON: given to a new instance, it goes on right after the last block returned."""

    @property
    def position(self) -> Mapping[str, Any]: ...

    @property
    def exhausted(self) -> bool:
        """Whether a bounded input has ended: no block will follow."""

    def read(self) -> Block | None:
        """The next block, None when nothing is ready now."""

    def trouble(self) -> str:
        """What keeps this source from giving rows, for an operator; "" when nothing does."""

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """What was read up to `position` is on disk (I1)."""

    def close(self) -> None:
        """It is not read any more."""


def open_source(spec: SourceSpec, position: Mapping[str, Any], context: SourceContext) -> Source:
    from edge_agent.sources.file import FileSource
    from edge_agent.sources.simulate import SimulateSource

    if spec.http is not None:
        from edge_agent.sources.http import HttpSource  # asyncio: 3 MB that few pipelines need

        return HttpSource(spec, position, context)
    if spec.file is not None:
        return FileSource(spec, position, context)
    assert spec.simulate is not None
    return SimulateSource(spec.simulate, position, context)
