"""The device law without a device: `python -m tests.gpu_dry`, or `make gpu-dry`.

Trains packs of every job on a device without values (`stand_in.py`), kernel by kernel, and prints for each: operations
that mix devices; reads of the device while a block advances, and at report steps, set-up and saving; uploads while a
block advances; bytes per step that stay on the device ("-": too few steps between two reports to tell); and whether
the states that it offered on the way were loaded again. Exit code 1 if a pack breaks the law.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from tests.gpu_dry.cases import cases
from tests.gpu_dry.faults import FAULTS, plant
from tests.gpu_dry.run import Outcome, dry_run
from tests.gpu_dry.stand_in import register
from tests.image_files import write_cifar

COLUMNS = ("mixed", "reads in advance", "uploads in advance", "other reads", "bytes/step", "loaded")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="TEXT", default="", help="only the packs whose name contains it")
    parser.add_argument("--plant", choices=FAULTS, help="a fault that the command must find")
    arguments = parser.parse_args()
    register()
    if arguments.plant:
        plant(arguments.plant)
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        archive = str(write_cifar(Path(folder) / "small.tar.gz", train=40, test=40))
        outcomes = []
        print(f"{'pack':<32}" + "".join(f"  {title}" for title in COLUMNS))
        for case in cases(archive):
            if arguments.k in case.name:
                outcomes.append(dry_run(case))
                print(row(outcomes[-1]), flush=True)
    print("\nreads by `to_host`, at report steps, when states are saved and at set-up:")
    print("\n".join(places(outcomes)) + "\n")
    broken = [outcome for outcome in outcomes if outcome.violations()]
    for outcome in broken:
        for violation in outcome.violations():
            print(f"{outcome.name}: {violation}")
    print(
        f"{len(outcomes)} packs, {len(broken)} break the device law; "
        f"{time.perf_counter() - began:.0f} s, torch {torch.__version__}"
    )
    return 1 if broken else 0


def row(outcome: Outcome) -> str:
    """One line of the table."""
    numbers = (
        outcome.mixed.total(),
        sum(count for at, count in outcome.reads.items() if at.advancing),
        sum(count for at, count in outcome.uploads.items() if at.advancing),
        sum(count for at, count in outcome.reads.items() if not at.advancing),
        "-" if outcome.growth is None else f"{outcome.growth:.0f}",
        "yes" if outcome.loaded else "no",
    )
    cells = (f"{number:>{len(title) + 2}}" for number, title in zip(numbers, COLUMNS, strict=True))
    return f"{outcome.name:<32}" + "".join(cells)


def places(outcomes: list[Outcome]) -> list[str]:
    """Where the device was read while no block advanced."""
    found: Counter[str] = Counter()
    for outcome in outcomes:
        for at, count in outcome.reads.items():
            if not at.advancing and at.named:
                found[at.line] += count
    return [f"{count:>7} {line}" for line, count in found.most_common()]


if __name__ == "__main__":
    sys.exit(main())
