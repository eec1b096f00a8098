"""Disks that can be filled and whose power can be cut. Both need root; `why_not` says so."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path

_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/ext4.h
_WITHOUT_FLUSHING_THE_LOG = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH
_BUSY_S = 10.0
_BITE_S = 0.1


@cache
def why_not() -> str:
    """Why nothing can be mounted here; "" when it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    for program in ("mount", "umount", "mkfs.ext4", "losetup"):
        if subprocess.run(["which", program], capture_output=True, check=False).returncode:
            return f"{program} is not installed"
    done = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@asynccontextmanager
async def full(directory: Path) -> AsyncIterator[None]:
    """Another file takes what is left, to the last byte, and whatever is given up meanwhile. Then it goes."""
    path, is_over = directory / "ballast", threading.Event()
    eating = asyncio.create_task(asyncio.to_thread(_eat, path, is_over))
    try:
        yield
    finally:
        is_over.set()
        await eating
        path.unlink()


def _eat(path: Path, is_over: threading.Event) -> None:
    with path.open("wb", buffering=0) as file:
        while not is_over.wait(_BITE_S):
            for size in (1 << 20, 1 << 16, 1 << 12):
                with suppress(OSError):
                    while not is_over.is_set() and file.write(bytes(size)) == size:
                        pass


class PoweredDisk:
    """An ext4 image, loop-mounted at `at`. `cut` loses what its filesystem had not written, as pulling the plug does."""

    def __init__(self, image: Path, at: Path, size: int) -> None:
        self._image, self._at = image, at
        at.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(size)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        self.mount()

    def mount(self) -> None:
        """After a cut this replays the journal."""
        _run("mount", "-o", "loop", str(self._image), str(self._at))
        self._at.chmod(0o700)

    def cut(self) -> None:
        """Nothing more reaches the disk: dirty pages and the open journal transaction are gone, whoever writes gets EIO."""
        descriptor = os.open(self._at, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_FLUSHING_THE_LOG))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        _unmount(self._at)


@contextmanager
def powered_disk(image: Path, at: Path, size: int) -> Iterator[PoweredDisk]:
    disk = PoweredDisk(image, at, size)
    try:
        yield disk
    finally:
        with suppress(subprocess.CalledProcessError):
            disk.unmount()
        image.unlink(missing_ok=True)


async def power_cycle(disk: PoweredDisk, kill: Callable[[], object], *, disk_first: bool) -> None:
    """Cut the power of a machine: its disk and its processes, one a moment before the other."""
    (disk.cut if disk_first else kill)()
    if disk_first:
        await asyncio.sleep(0.2)
    (kill if disk_first else disk.cut)()
    await asyncio.to_thread(disk.unmount)
    await asyncio.to_thread(disk.mount)


def _unmount(at: Path) -> None:
    """Waits for the last process to let go."""
    deadline = time.monotonic() + _BUSY_S
    while time.monotonic() < deadline:
        if subprocess.run(["umount", str(at)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    _run("umount", "-l", str(at))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
