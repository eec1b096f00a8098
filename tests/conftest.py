"""What all tests share."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """What was imported and collected stays: looking for garbage in it again and again takes a tenth of the suite's CPU time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else DuckDB reports what is left at the end as leaks
