"""`python -m prove [NAME...]`: break things, print what was counted, exit 1 when anything is wrong."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from prove.faults import FULL, SHORT
from prove.report import line, write
from prove.run import ALL, Result, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(ALL)}; all of them when none is given")
    parser.add_argument("--seed", type=int, default=1, help="decides what is broken and how, not when the processes run")
    parser.add_argument("--short", action="store_true", help="less of each, as in make test")
    parser.add_argument("--keep", action="store_true", help="leave the directories with logs and lakes, and say where")
    given = parser.parse_args()
    if unknown := set(given.names) - ALL.keys():
        parser.error(f"nothing is called {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that mounts and processes go on either
    print(f"SEED={given.seed}", flush=True)
    results: dict[str, Result] = {}
    for name in given.names or ALL:
        started = time.monotonic()
        results[name] = _run(name, given.seed, short=given.short, keep=given.keep)
        print(f"{line(name, results[name])}  [{time.monotonic() - started:.0f} s]", flush=True)
    if not given.short and not any(found.wrong for found in results.values()):
        write(given.seed, results)
    return int(any(found.wrong for found in results.values()))


def _run(name: str, seed: int, *, short: bool, keep: bool) -> Result:
    home = Path(tempfile.mkdtemp(prefix="prove-"))
    try:
        return asyncio.run(run([name], home / "plant", random.Random(f"{seed} {name}"), SHORT if short else FULL))
    finally:
        print(f"  {home}") if keep else shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
