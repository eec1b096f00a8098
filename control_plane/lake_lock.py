"""Who has the lake open: a file lock that all its processes share, and that one alone may hold while it heals."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Self


class LakeLock:
    """Held until the process ends. `is_alone`: no other process has the lake open, and none will until `share`."""

    def __init__(self, data_dir: Path) -> None:
        self._file = (data_dir / "lake.lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_alone = True
        except OSError:
            self.is_alone = False
            self.share()

    def share(self) -> None:
        """Let others open the lake, too. Waits for one that heals."""
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
