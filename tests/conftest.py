"""What all tests share."""

from __future__ import annotations

import gc

from hypothesis import settings

settings.register_profile("tidewire", deadline=None, max_examples=70)  # how long an example takes is the machine's business
settings.load_profile("tidewire")


def pytest_collection_finish() -> None:
    """What was imported and collected stays: looking for garbage in it again and again takes a tenth of the suite's CPU time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else DuckDB reports what is left at the end as leaks
