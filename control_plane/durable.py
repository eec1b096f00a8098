"""Onto the disk: what survives a power cut the moment these functions return."""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """The file system that `directory` is on, held open: Linux tells a write error to each open file once, and to none opened
    later."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self.descriptor)


def sync_filesystem(disk: Disk) -> None:
    """Write out everything of it: files, directories and their names. Raises `OSError`."""
    if _libc.syncfs(disk.descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(disk.directory))


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
