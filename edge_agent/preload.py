"""Loaded once by the fork server: what every runner needs, so that runners share its memory."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
from contextlib import suppress

gc.disable()  # nothing of what follows becomes garbage
for _module in (
    "duckdb",
    "pyarrow",
    "pyarrow.compute",
    "pyarrow.ipc",
    "pipelines.contract.spec",
    "pipelines.engine.plan",
    "pipelines.engine.run",
    "pipelines.engine.answers",
    "pipelines.engine.sql",
    "edge_agent.answering",
    "edge_agent.runner",
    "edge_agent.lookups",
    "edge_agent.sources",
    "edge_agent.uncommitted",
):
    with suppress(ImportError):  # a runner that needs it says so itself
        importlib.import_module(_module)

gc.enable()
gc.freeze()  # a collection in a runner would otherwise touch, and so copy, every page of the above
atexit.register(os._exit, 0)  # the fork server has nothing to tidy up, and duckdb would report its frozen objects as leaks
