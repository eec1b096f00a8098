"""Room on the disk that is held for bad times: given up when the disk is full, so that what frees space can be written (I9)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 24 * 1024 * 1024
_SHARE = 4  # of a small disk at most this fraction
_LOG_SHARE = 2  # the write-ahead log may have this fraction of the reserve: then folding it into the file always finds room


_SPARE_BYTES = 32 * 1024 * 1024  # for the write-ahead log and what other programs write meanwhile ...
_SPARE_SHARE = 8  # ... but of a small disk at most this fraction


def room_bytes(path: Path) -> int:
    """How much the files beside `path` may still grow."""
    disk = os.statvfs(path.parent)
    spare = min(_SPARE_BYTES, disk.f_blocks * disk.f_frsize // _SPARE_SHARE)
    return max(disk.f_bavail * disk.f_frsize - spare, 0)


class Reserve:
    """A file beside the store that only takes room. Used by the store's writing thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        disk = os.statvfs(path.parent)
        self._bytes = min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // _SHARE)
        self.hold()

    @property
    def log_bytes_max(self) -> int:
        return self._bytes // _LOG_SHARE

    @property
    def is_held(self) -> bool:
        """Whether it takes its room: a file that was cut short does not."""
        try:
            return self._path.stat().st_blocks * 512 >= self._bytes
        except OSError:
            return False

    def hold(self) -> bool:
        """Take the room again, where there is twice as much. Whether it is held."""
        with suppress(OSError):
            if self.is_held:
                return True
            self.give_up()
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize >= 2 * self._bytes:
                self._take(self._bytes)
        return self.is_held

    def give_up(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _take(self, size: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
