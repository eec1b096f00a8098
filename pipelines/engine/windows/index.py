"""Which cells of a window are open: built from the state's cells, and kept beside them while they grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipelines.engine.state import Cells, Key

Places = dict[Key, dict[Key, None]]


@dataclass
class Index:
    """Mirrors one mapping of cells, known by identity: given any other it is built anew, so that it holds no state of its own.
    Who changes the places in place says `lost` before and `now` after."""

    due_us: int | None = None  # no cell is due before; None: not known
    _cells: Cells | None = None
    _places: Places = field(default_factory=dict)

    def starts(self, cells: Cells) -> Places:
        """The keys of `cells` by their first word."""
        return self._by(cells, "start")

    def groups(self, cells: Cells) -> Places:
        """The keys of `cells` by all words but the first."""
        return self._by(cells, "group")

    def _by(self, cells: Cells, what: Literal["start", "group"]) -> Places:
        if self._cells is not cells:
            self._places, self.due_us = {}, None
            for key in cells:
                self._places.setdefault(key[:1] if what == "start" else key[1:], {})[key] = None
            self._cells = cells
        return self._places

    def now(self, cells: Cells) -> None:
        self._cells = cells

    def lost(self) -> None:
        self._cells = None


def add(places: Places, word: Key, key: Key) -> None:
    places.setdefault(word, {})[key] = None


def remove(places: Places, word: Key, key: Key) -> None:
    mine = places[word]
    del mine[key]
    if not mine:
        del places[word]
