"""Identities that this node had before: set aside whole, so that what was never sent can still be read (`join --again`)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from edge_agent import buffer
from edge_agent.config import Identity, make_private_dir
from edge_agent.store import lock_directory


def directory_of(data_dir: Path, identity: Identity) -> Path:
    return data_dir / "former" / identity.node


@contextmanager
def unused(data_dir: Path) -> Iterator[None]:
    """While no agent runs on the directory. Raises `TidewireError` when one does."""
    descriptor = lock_directory(data_dir)
    try:
        yield
    finally:
        os.close(descriptor)


def set_aside(data_dir: Path, identity: Identity) -> None:
    """Move the store of `identity` beside a copy of it. Interrupted, it goes on where it was; nothing else is touched."""
    place, path = directory_of(data_dir, identity), data_dir / "agent.db"
    make_private_dir(place)
    identity.save(place)
    if path.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:  # a damaged one moves as it is
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for file in data_dir.glob("agent.db*"):
        file.replace(place / file.name)
    for directory in (place, place.parent, data_dir):
        _sync(directory)


def unsent(data_dir: Path, identity: Identity) -> list[tuple[str, int]]:
    """What was never sent of an identity that was set aside: (pipeline/stream, rows)."""
    path = directory_of(data_dir, identity) / "agent.db"
    if not path.exists():
        return []
    with buffer.reading(path, identity.key.public) as db:
        streams = buffer.contents(db, 1)["streams"]
    return [(f"{row['pipeline']}/{row['stream']}", row["rows"]) for row in streams if row["rows"]]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
