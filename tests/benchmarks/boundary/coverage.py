"""`make coverage`: how often the bands of a boundary cover exact points of the boundaries that they are bands of.

Every family of `problems` is searched in two ways: each trial has noise of its own, its seed has no effect ("own
noise"); and each of five seeds moves the boundary smoothly ("shared seeds", see `seeds`). After 128, 256 and 512 trials

- the band *given these seeds* is compared with the boundary of the label that most of these seeds show;
- the band *over seeds* is compared with the boundaries of seeds that were not run, shared seeds only.

The coverage of an instance is the share of such points that lie in the band; a row is its mean over instances, with the
90% interval of that mean (Student's t). A row is off where the mean is not 85 to 95%.
"""

# ruff: noqa: E402 - threads are limited before numpy is imported

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from orchestrator.surface.classifier import fit_classifier
from orchestrator.surface.seeds import fit_bands
from tests.benchmarks.boundary.peers import Phasefront
from tests.benchmarks.boundary.problems import NAMES, Floats, Labels, Problem
from tests.benchmarks.boundary.runs import BATCH
from tests.benchmarks.boundary.seeds import SeededProblem, exact_points

SEEDS = 5
"""R of the searches with shared seeds."""
OWN_NOISE_SEEDS = 64
"""The seeds through which the trials of the others cycle, as those of a sweep file without `replicates` do."""
HELD_OUT = range(1000, 1006)
LOW, HIGH = 0.85, 0.95
FIRST = 100
"""The first instance: smaller ones are for tuning."""

Row = dict[str, Any]


def search(problem: SeededProblem, trials: Sequence[int]) -> Iterator[tuple[Floats, Labels, Labels]]:
    """Positions, labels and seeds of a search after so many trials each."""
    shared = problem.seeds > 0
    method = Phasefront(problem.problem, problem.problem.seed)
    x, seed, belief = method.begin(), np.empty(0, dtype=np.int64), None
    while True:
        new = np.arange(len(seed), len(seed) + len(x)) % (problem.seeds or OWN_NOISE_SEEDS)
        seed = np.concatenate([seed, new])
        method.tell(x, *(problem.observe(x, new) if shared else problem.problem.observe(x)))
        if len(seed) in trials:
            yield method.x, method.label, seed
        if len(seed) >= max(trials):
            return
        belief = fit_classifier(method.x, method.label, classes=problem.problem.classes, previous=belief)
        x = method.ask(min(BATCH, max(trials) - len(seed)), belief)


def measure(letter: str, instance: int, seeds: int, trials: Sequence[int]) -> Iterator[Row]:
    """The coverages of one instance, of both bands and of the search's own belief."""
    problem = SeededProblem(Problem(letter, instance), seeds)
    exact = problem.problem
    if seeds:
        given = exact_points(problem.of_seeds, exact, 200)
        others = [exact_points(lambda x, s=seed: problem.of_seed(x, s), exact, 60) for seed in HELD_OUT]  # type: ignore[misc]
        other = np.concatenate(others)
    else:
        given = other = exact_points(exact.majority, exact, 200)
    for x, label, seed in search(problem, trials):
        own = fit_classifier(x, label, classes=exact.classes)
        bands = fit_bands(x, label, seed, classes=exact.classes)
        assert bands is not None and bands.over_seeds is not None
        yield {
            "problem": letter,
            "instance": instance,
            "seeds": seeds,
            "trials": len(x),
            "given these seeds": float(bands.given_seeds.in_band(given).mean()),
            "over seeds": float(bands.over_seeds.in_band(other).mean()),
            "belief of the search, given": float(own.in_band(given).mean()),
            "belief of the search, over": float(own.in_band(other).mean()),
        }


def interval(values: Floats) -> tuple[float, float, float]:
    """The mean, and the ends of its 90% interval."""
    mean, n = float(values.mean()), len(values)
    half = float(student.ppf(0.95, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else 1.0
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def report(rows: Sequence[Row]) -> tuple[str, int]:
    """The table, and how many of its rows are off."""
    lines = [
        "| band | trials' seeds | problem | trials | n | coverage, % | min - max | search's own belief, % | |",
        "|---" * 9 + "|",
    ]
    off = 0
    for band, before in (("given these seeds", "given"), ("over seeds", "over")):
        for seeds in (0, SEEDS) if before == "given" else (SEEDS,):
            for letter in NAMES:
                for trials in (128, 256, 512):
                    mine = [r for r in rows if (r["problem"], r["seeds"], r["trials"]) == (letter, seeds, trials)]
                    if not mine:
                        continue
                    values = np.array([r[band] for r in mine])
                    earlier = np.mean([r[f"belief of the search, {before}"] for r in mine])
                    mean, low, high = interval(values)
                    is_off = not LOW <= mean <= HIGH
                    off += is_off
                    lines.append(
                        f"| {band} | {'shared' if seeds else 'own noise'} | {letter} | {trials} | {len(mine)} | "
                        f"{100 * mean:.0f} [{100 * low:.0f}, {100 * high:.0f}] | "
                        f"{100 * values.min():.0f} - {100 * values.max():.0f} | {100 * earlier:.0f} | "
                        f"{'OFF' if is_off else ''} |"
                    )
    return "\n".join(lines), off


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.boundary.coverage", description=__doc__)
    parser.add_argument("--problems", default=NAMES, help="letters, default %(default)s")
    parser.add_argument("--instances", type=int, default=20, help="of each, default %(default)s")
    parser.add_argument("--trials", default="128,256,512", help="default %(default)s")
    parser.add_argument(
        "--raw", type=Path, default=Path(".bench/coverage.json"), help="finished runs; kept between calls"
    )
    asked = parser.parse_args(argv)
    trials = tuple(int(n) for n in asked.trials.split(","))
    rows: list[Row] = json.loads(asked.raw.read_text()) if asked.raw.exists() else []
    asked.raw.parent.mkdir(parents=True, exist_ok=True)
    for instance in range(FIRST, FIRST + asked.instances):
        for letter in asked.problems:
            for seeds in (SEEDS, 0):
                have = {
                    r["trials"] for r in rows if (r["problem"], r["instance"], r["seeds"]) == (letter, instance, seeds)
                }
                if set(trials) <= have:
                    continue
                rows += [row for row in measure(letter, instance, seeds, trials) if row["trials"] not in have]
                asked.raw.write_text(json.dumps(rows))
                print(letter, instance, seeds, file=sys.stderr, flush=True)
    table, off = report(rows)
    print(table)
    print(f"\n{off} rows are off" if off else "\nno row is off")
    return 1 if off else 0


if __name__ == "__main__":
    raise SystemExit(main())
