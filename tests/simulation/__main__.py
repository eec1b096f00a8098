"""`python -m tests.simulation --seeds 200 --from 1 --jobs 2`, or `--seed 7` to replay one with its trace."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.simulation.canaries import CANARIES
from tests.simulation.scenario import Result, simulate, simulate_or_say


def main() -> int:
    options = _options()
    if options.canary:
        found = CANARIES[options.canary]
        for seed in [options.seed] if options.seed is not None else found.seeds:
            result = simulate(seed, found.faults, buffer_bytes=found.buffer_bytes, bug=options.canary, verbose=not options.quiet)
            _tell([result])
        return 0
    if options.seed is not None:
        results = [simulate(options.seed, options.fault or None, verbose=not options.quiet)]
    else:
        results = _many(range(options.first, options.first + options.seeds), options.jobs)
    _tell(results)
    return any(result.complaints for result in results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="replay this one and print its trace")
    parser.add_argument("--canary", choices=CANARIES, help="let this bug in, in the scenario where it shows")
    parser.add_argument("--quiet", action="store_true", help="without the trace")
    parser.add_argument("--fault", action="append", help="have this fault instead of those that the seed draws")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--from", dest="first", type=int, default=1, help="the first")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


def _many(seeds: range, jobs: int) -> list[Result]:
    results = []
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for result in pool.map(simulate_or_say, seeds):
            results.append(result)
            if result.complaints:
                print(f"seed {result.seed} fails; replay it: make sim SEED={result.seed}", flush=True)
                print(*(f"  {text}" for text in result.complaints), sep="\n", flush=True)
    return results


def _tell(results: list[Result]) -> None:
    faults: Counter[str] = sum((result.faults for result in results), Counter())
    print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(faults.items())))
    bad = [result for result in results if result.complaints]
    hours, rows = sum(result.hours for result in results), sum(result.rows for result in results)
    print(f"{len(results)} seeds, {hours:.1f} simulated hours, {rows} rows checked, {len(bad)} seeds failed")
    if len(results) == 1:
        print(f"trace {results[0].trace}")
        print(*results[0].complaints, sep="\n")


if __name__ == "__main__":
    started = time.perf_counter()
    status = main()
    print(f"{time.perf_counter() - started:.1f} s")
    sys.exit(status)
