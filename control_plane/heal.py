"""Tables that a crash, a power cut or a failing disk left in pieces. Delta itself never syncs, and opens an empty commit as one
that says nothing.

No receipt was given for what lies behind a torn commit: receipts follow a sync of everything before them (I3). So it is moved
aside, whole, and the marks before it decide what is sent again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from control_plane.durable import sync_directory
from control_plane.lake_table import MARKS, actions

log = structlog.get_logger()

ASIDE = "_torn"  # beside `_delta_log`; Delta leaves names with _ alone
_MAGIC = b"PAR1"
_DIGITS = 20


def tables(lake: Path) -> list[Path]:
    return sorted(path.parent for path in lake.glob("*/_delta_log"))


def latest_version(table: Path) -> int:
    return max((_number(path) for path in _entries(table)), default=-1)


def heal(table: Path) -> list[str]:
    """Move aside what is torn at the end of the table's history; their names. For when nobody has it open."""
    moved = _move(table, list(_torn_checkpoints(table)))
    entries = sorted(_entries(table))
    begin = max((_number(path) for path in _checkpoints(table)), default=-1)
    tail = [path for path in entries if _number(path) > begin]
    start = begin + 1 if begin >= 0 or not tail else _number(tail[0])
    bad = next((i for i, path in enumerate(tail) if _number(path) != start + i or _is_torn(path)), len(tail))
    bad = min(bad, _first_without_its_file(table, tail[:bad]))
    moved += _move(table, tail[bad:])
    if moved:
        log.error("lake: torn commits moved aside, what they held is asked for again", table=table.name, files=moved)
    return moved


def rewrite_since(table: Path, version: int) -> None:
    """Write once more, and sync, what was committed after `version`: after a failed sync the pages are clean in memory and may be
    missing on the disk, and no later sync would say so. Raises `OSError`."""
    fresh = [path for path in _entries(table) if _number(path) > version]
    files = [path for path in (table / "_delta_log").glob("*checkpoint*") if path.name[0] == "_" or _number(path) > version]
    for path in fresh:
        files += [table / action["add"]["path"] for action in actions(path) if "add" in action]
    for path in [*files, *fresh]:
        if path.exists():
            _rewrite(path)


def remember(lake: Path, versions: Mapping[str, int]) -> None:
    """That a sync failed when `versions` were the last known to be on the disk. As volatile as the pages that it is about."""
    (lake / ".not-synced").write_text(json.dumps(dict(versions)))


def remembered(lake: Path) -> dict[str, int] | None:
    try:
        return {str(name): int(version) for name, version in json.loads((lake / ".not-synced").read_text()).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def forget(lake: Path) -> None:
    (lake / ".not-synced").unlink(missing_ok=True)


def _entries(table: Path) -> Iterator[Path]:
    return (path for path in (table / "_delta_log").glob("*.json") if path.stem.isdigit() and len(path.stem) == _DIGITS)


def _checkpoints(table: Path) -> Iterator[Path]:
    return (p for p in (table / "_delta_log").glob("*.checkpoint*.parquet") if p.name[:_DIGITS].isdigit())


def _torn_checkpoints(table: Path) -> Iterator[Path]:
    """Torn ones, and the pointer to the last one if that is torn or points to one: the log itself is read then."""
    torn = [path for path in _checkpoints(table) if not _is_parquet(path)]
    yield from torn
    pointer = table / "_delta_log" / "_last_checkpoint"
    if pointer.exists():
        try:
            version = int(json.loads(pointer.read_bytes())["version"])
            is_good = any(_number(path) == version and path not in torn for path in _checkpoints(table))
        except (ValueError, KeyError, TypeError):
            is_good = False
        if not is_good:
            yield pointer


def _number(path: Path) -> int:
    return int(path.name[:_DIGITS])


def _is_torn(entry: Path) -> bool:
    """Whether it is empty, cut, or lacks marks that its first line counts."""
    try:
        found = list(actions(entry))
    except ValueError:
        return True
    marks = next((action["commitInfo"].get(MARKS, 0) for action in found if "commitInfo" in action), 0)
    return not found or sum("txn" in action for action in found) < marks


def _first_without_its_file(table: Path, entries: list[Path]) -> int:
    """Which of `entries` adds a data file that is not there whole and that none of them removes."""
    added: dict[str, tuple[int, int]] = {}
    for i, path in enumerate(entries):
        for action in actions(path):
            if "add" in action:
                added[action["add"]["path"]] = (i, action["add"]["size"])
            if "remove" in action:
                added.pop(action["remove"]["path"], None)
    return min((i for name, (i, size) in added.items() if not _is_parquet(table / name, size)), default=len(entries))


def _is_parquet(path: Path, size: int | None = None) -> bool:
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length < 2 * len(_MAGIC) or (size is not None and length != size) or file.read(len(_MAGIC)) != _MAGIC:
                return False
            file.seek(-len(_MAGIC), os.SEEK_END)
            return file.read() == _MAGIC
    except OSError:
        return False


def _move(table: Path, files: list[Path]) -> list[str]:
    for path in sorted(files, reverse=True):  # the newest first: a crash in between leaves a shorter tail, no gap
        aside = table / ASIDE
        aside.mkdir(exist_ok=True)
        path.replace(aside / f"{path.name}.{len(list(aside.iterdir()))}")
        sync_directory(path.parent)
    return [path.name for path in files]


def _rewrite(path: Path) -> None:
    fresh = path.with_name(f".{path.name}.again")
    with fresh.open("wb") as file:
        file.write(path.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)
