"""`make coverage`: how often the bands of a boundary cover exact points of the boundaries that they are bands of.

Every family of `problems` is searched in two ways: each trial has noise of its own, its seed has no effect ("own
noise"); and each of five seeds moves the boundary smoothly ("shared seeds", see `seeds`). After 128, 256 and 512 trials

- the band *given these seeds* is compared with the boundary of the label that most of these seeds show;
- the band *over seeds* is compared with the boundaries of seeds that were not run, shared seeds only.

The coverage of an instance is the share of such points that lie in the band; a row is its mean over instances, with the
90% interval of that mean (Student's t). A row is off where the mean is not 85 to 95%; it is shown to be off where the
interval does not overlap the goal.

Searches do not depend on the bands and are kept; so are the rows of each instance, as long as `orchestrator/surface/`
is the same. A call that is interrupted (SIGINT, SIGTERM) prints the table of what it has, and the next one goes on from
there.
"""

# ruff: noqa: E402 - threads are limited before numpy is imported

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import argparse
import hashlib
import json
import signal
import sys
import time
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


def search(problem: SeededProblem, trials: int) -> tuple[Floats, Labels, Labels]:
    """Positions, labels and seeds of a search, in the order in which they were asked."""
    shared = problem.seeds > 0
    method = Phasefront(problem.problem, problem.problem.seed)
    x, seed, belief = method.begin(), np.empty(0, dtype=np.int64), None
    while True:
        new = np.arange(len(seed), len(seed) + len(x)) % (problem.seeds or OWN_NOISE_SEEDS)
        seed = np.concatenate([seed, new])
        method.tell(x, *(problem.observe(x, new) if shared else problem.problem.observe(x)))
        if len(seed) >= trials:
            return method.x, method.label, seed
        belief = fit_classifier(method.x, method.label, classes=problem.problem.classes, previous=belief)
        x = method.ask(min(BATCH, trials - len(seed)), belief)


def kept_search(problem: SeededProblem, trials: int, folder: Path) -> tuple[Floats, Labels, Labels]:
    """A search of a call before, or a new one."""
    exact = problem.problem
    file = folder / f"{exact.name}-{exact.seed}-{problem.seeds}-{trials}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        x, label, seed = search(problem, trials)
        part = file.with_name(f"{os.getpid()}-{file.name}")
        np.savez(part, x=x, label=label, seed=seed)
        part.replace(file)
    kept = np.load(file)
    return kept["x"], kept["label"], kept["seed"]


def kept_rows(letter: str, instance: int, seeds: int, trials: Sequence[int], folder: Path) -> list[Row]:
    """`measure` of a call before with the same code of the bands, or a new one."""
    file = folder / f"rows-{code()}" / f"{letter}-{instance}-{seeds}-{'-'.join(map(str, trials))}.json"
    if not file.exists():
        rows = list(measure(letter, instance, seeds, trials, folder))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{os.getpid()}-{file.name}")
        part.write_text(json.dumps(rows))
        part.replace(file)
    kept: list[Row] = json.loads(file.read_text())
    return kept


def code() -> str:
    """A hash of the code that the bands and the points depend on."""
    files = sorted((Path(__file__).parents[3] / "orchestrator/surface").glob("*.py"))
    files += [Path(__file__).with_name(name) for name in ("problems.py", "seeds.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def measure(letter: str, instance: int, seeds: int, trials: Sequence[int], folder: Path) -> Iterator[Row]:
    """The coverages of one instance."""
    problem = SeededProblem(Problem(letter, instance), seeds)
    exact = problem.problem
    x, label, seed = kept_search(problem, max(trials), folder)
    if seeds:
        given = exact_points(problem.of_seeds, exact, 200)
        others = [exact_points(lambda x, s=seed: problem.of_seed(x, s), exact, 60) for seed in HELD_OUT]  # type: ignore[misc]
        other = np.concatenate(others)
    else:
        given = other = exact_points(exact.majority, exact, 200)
    about = {"problem": letter, "instance": instance, "seeds": seeds}
    for n in trials:
        yield {**about, **covered(x[:n], label[:n], seed[:n], given, other, exact.classes)}


def covered(x: Floats, label: Labels, seed: Labels, given: Floats, other: Floats, classes: int) -> Row:
    """The shares of the points `given` and `other` that the bands cover, and the belief of the search."""
    own = fit_classifier(x, label, classes=classes)
    began = time.process_time()
    bands = fit_bands(x, label, seed, classes=classes)
    fit_s = time.process_time() - began
    assert bands is not None and bands.over_seeds is not None
    return {
        "trials": len(x),
        "given these seeds": float(bands.given_seeds.in_band(given).mean()),
        "over seeds": float(bands.over_seeds.in_band(other).mean()),
        "belief of the search, given": float(own.in_band(given).mean()),
        "belief of the search, over": float(own.in_band(other).mean()),
        "fit_s": fit_s,
    }


def interval(values: Floats) -> tuple[float, float, float]:
    """The mean, and the ends of its 90% interval."""
    mean, n = float(values.mean()), len(values)
    half = float(student.ppf(0.95, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else 1.0
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def verdict(mean: float, low: float, high: float) -> str:
    """Whether a row is off, and whether its interval shows it."""
    if LOW <= mean <= HIGH:
        return ""
    return "off, not shown" if low <= HIGH and high >= LOW else "OFF"


def report(rows: Sequence[Row]) -> tuple[str, int]:
    """The table, and how many of its rows are off."""
    lines = [
        "| band | trials' seeds | problem | trials | n | coverage, % | min - max | search's own belief, % | |",
        "|---" * 9 + "|",
    ]
    verdicts = []
    for band, before in (("given these seeds", "given"), ("over seeds", "over")):
        for seeds in (0, SEEDS) if before == "given" else (SEEDS,):
            groups = {(r["problem"], r["trials"]) for r in rows if r["seeds"] == seeds}
            for letter, trials in sorted(groups):
                mine = [r for r in rows if (r["problem"], r["seeds"], r["trials"]) == (letter, seeds, trials)]
                values = np.array([r[band] for r in mine])
                earlier = np.mean([r[f"belief of the search, {before}"] for r in mine])
                mean, low, high = interval(values)
                verdicts.append(verdict(mean, low, high))
                lines.append(
                    f"| {band} | {'shared' if seeds else 'own noise'} | {letter} | {trials} | {len(mine)} | "
                    f"{100 * mean:.0f} [{100 * low:.0f}, {100 * high:.0f}] | "
                    f"{100 * values.min():.0f} - {100 * values.max():.0f} | {100 * earlier:.0f} | {verdicts[-1]} |"
                )
    off = sum(map(bool, verdicts))
    lines += ["", f"{off} of {len(verdicts)} rows are off, {verdicts.count('OFF')} of them by their interval"]
    for trials in sorted({r["trials"] for r in rows}):
        fits = [r["fit_s"] for r in rows if r["trials"] == trials]
        lines.append(
            f"fit of both bands, {trials} trials: {np.mean(fits):.2f} s of processor time, at most {max(fits):.2f}"
        )
    return "\n".join(lines), off


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.boundary.coverage", description=__doc__)
    parser.add_argument("--problems", default=NAMES, help="letters, default %(default)s")
    parser.add_argument("--first", type=int, default=FIRST, help="first instance, default %(default)s; below: tuning")
    parser.add_argument("--instances", type=int, default=20, help="of each, default %(default)s")
    parser.add_argument("--trials", default="128,256,512", help="default %(default)s")
    parser.add_argument("--kept", type=Path, default=Path(".bench/coverage"), help="folder of finished searches")
    asked = parser.parse_args(argv)
    trials = tuple(int(n) for n in asked.trials.split(","))
    rows: list[Row] = []
    complete = True
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for instance in range(asked.first, asked.first + asked.instances):
            for letter in asked.problems:
                for seeds in (SEEDS, 0):
                    rows += kept_rows(letter, instance, seeds, trials, asked.kept)
                    print(letter, instance, seeds, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        complete = False
    table, off = report(rows)
    print(table)
    if not complete:
        print("interrupted: the same command goes on from here")
    return 1 if off or not complete else 0


if __name__ == "__main__":
    raise SystemExit(main())
