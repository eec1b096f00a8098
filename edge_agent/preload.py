"""Loaded once by the fork server: what every runner needs, so that runners share its memory."""

from __future__ import annotations

import gc
import importlib
from contextlib import suppress

for _module in (
    "duckdb",
    "pyarrow",
    "pyarrow.compute",
    "pyarrow.ipc",
    "pipelines.contract.spec",
    "pipelines.engine.plan",
    "pipelines.engine.run",
    "edge_agent.runner",
    "edge_agent.sources",
    "edge_agent.uncommitted",
):
    with suppress(ImportError):  # a runner that needs it says so itself
        importlib.import_module(_module)

gc.collect()
gc.freeze()  # a collection in a runner would otherwise touch, and so copy, every page of the above
