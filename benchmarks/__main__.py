"""`make bench`: every figure that the documentation publishes. ROWS=n measures with fewer rows than ten million; words name parts
of it: `python -m benchmarks engine device`.

Writes benchmarks/results.json, and the table in docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import action, device, endtoend, engine, fleet, memory, report, throughput

ROWS = int(os.environ.get("ROWS", 10_000_000))
SYSTEM_ROWS = int(os.environ.get("ROWS", 2_000_000))  # through agents and a control plane
HERE = Path(__file__).parent


def main() -> None:
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        suites: dict[str, Callable[[], Iterator[report.Figure]]] = {
            "throughput": lambda: throughput.measure(Path(directory), ROWS),
            "engine": engine.measure,
            "memory": lambda: memory.measure(Path(directory)),
            "endtoend": lambda: endtoend.measure(Path(directory) / "endtoend", SYSTEM_ROWS),
            "action": lambda: action.measure(Path(directory) / "action"),
            "device": lambda: device.measure(Path(directory) / "device"),
            "fleet": lambda: fleet.measure(Path(directory) / "fleet"),
        }
        figures = []
        for name, measure in suites.items():
            if not wanted or name in wanted:
                for figure in measure():
                    print(figure.line(), flush=True)
                    figures.append(figure)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "rows": ROWS}
    if not wanted:
        results = {"format": 1, **machine, "figures": [figure.as_json() for figure in figures]}
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        report.publish(HERE.parent / "docs" / "benchmarks.md", figures, machine)


if __name__ == "__main__":
    main()
