"""An agent to be killed: `python agent_process.py DATA_DIR SEED DO` runs one fake pipeline until SIGKILL."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from support import fake_version, open_store, services_for

from edge_agent.host import PipelineHost
from pipelines.contract.keys import Key


async def run(data_dir: Path, seed: str, do: str) -> None:
    with open_store(data_dir, Key(seed)) as store:
        print("open", flush=True)
        await PipelineHost(services_for(store, data_dir), fake_version(*json.loads(do)), {}).run()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
