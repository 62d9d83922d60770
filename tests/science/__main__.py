"""`make science`: every check against mathematics, printed with its deviation; exit code 1 if one fails."""

from __future__ import annotations

import argparse
import sys
import time

import torch

from tests.science.catalogue import CHECKS
from tests.science.check import Result, results_of


def line(result: Result) -> str:
    """One comparison as a line of the table."""
    mark = "ok  " if result.passed else "FAIL"
    return (
        f"  {mark} {result.measured:>12.6g} {result.expected:>12.6g} {result.deviation:>9.3g} <= {result.limit:<7.3g} "
        f"{result.unit:<15}  {result.what}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the checks and print them; 0 if all pass, 1 if not, 2 if there is none of the name asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.science", description=__doc__)
    parser.add_argument("-k", metavar="TEXT", default="", help="only the checks whose name or source contains TEXT")
    parser.add_argument("--fast", action="store_true", help="leave out those that take more than a few seconds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wanted = options.k.casefold()
    chosen = [c for c in CHECKS if wanted in f"{c.name} {c.source}".casefold() and not (options.fast and c.slow)]
    if not chosen:
        print(f"no check's name or source contains {options.k!r}; there are:", file=sys.stderr)
        print("\n".join(f"  {c.name} ({c.source})" for c in CHECKS), file=sys.stderr)
        return 2
    failed, compared, began = [], 0, time.perf_counter()
    print(f"       {'measured':>12} {'expected':>12} {'deviation':>9}    {'limit':<7} {'in':<15}")
    for check in chosen:
        print(f"{check.name} ({check.source})", flush=True)
        spent = -time.process_time()
        results = results_of(check)
        spent += time.process_time()
        compared += len(results)
        for result in results:
            print(line(result), flush=True)
        print(f"       {spent:.1f} s of processor time", flush=True)
        if not all(result.passed for result in results):
            failed.append(check.name)
    seconds = time.perf_counter() - began
    print(f"{len(chosen)} checks, {compared} comparisons, {seconds:.0f} s: ", end="")
    print("all within tolerance" if not failed else f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
