"""How often the bands cover the map of configs/gromov2023/p31_boundary.yaml, with more seeds than a search uses.

Each search has five seeds. Its bands are compared with

- given these seeds: points on the boundary of the label that most of its five seeds show;
- over seeds: points on the boundaries of the seeds of the other searches.

A point is known to 1.3% of the box: neighbours of a grid whose labels differ are bisected between them, by training. A
boundary that runs between the points of this grid (5 x 5) and closes there is not seen.

`python -m tests.benchmarks.boundary.grokking` trains it all, about 430 trainings for each search, and prints the
coverage. What is trained is kept in a folder, so that an interrupted call goes on where it was.
"""

# ruff: noqa: E402 - threads are limited before numpy is imported

from __future__ import annotations

import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.stats import qmc

from jobs.catalogue import load_job
from jobs.job import Curves, Member, params_from
from jobs.packed.loop import set_threads
from orchestrator.reduce import reduce_curves
from orchestrator.surface.base import Evidence
from orchestrator.surface.classifier import fit_classifier
from orchestrator.surface.phase import PhaseSurrogate
from orchestrator.surface.seeds import fit_bands
from orchestrator.trial import replicate_seed
from tests.benchmarks.boundary.coverage import interval
from tests.benchmarks.boundary.problems import Floats, Labels

CONFIG = Path(__file__).parents[3] / "configs/gromov2023/p31_boundary.yaml"
SEEDS = 5
TRIALS, START, BATCH = 128, 64, 32
SIDE, HALVINGS = 5, 3
OTHER_POINTS, GIVEN_POINTS = 4, 8
PACK = 72

Arrays = Mapping[str, NDArray[Any]]


def train(x: Floats, seed: Labels) -> Labels:
    """The phase of each training by its index in the job's list of phases."""
    text = yaml.safe_load(CONFIG.read_text())
    job = load_job(text["job"])
    thresholds = params_from(job.Thresholds, text["phases"])
    members = []
    for position, number in zip(x, seed, strict=True):
        values: dict[str, Any] = dict(text["fixed"])
        for share, (axis, ends) in zip(position, text["axes"].items(), strict=True):
            low, high = (np.log(ends[end]) if ends["scale"] == "log" else ends[end] for end in ("from", "to"))
            value = low + share * (high - low)
            values[axis] = float(np.exp(value) if ends["scale"] == "log" else value)
        members.append(Member(params=job.params_for(values), seed=replicate_seed(text["job"], 0, int(number))))
    label = np.empty(len(x), dtype=np.int64)
    by_fraction = np.argsort(x[:, 1], kind="stable")
    for first in range(0, len(x), PACK):
        rows = by_fraction[first : first + PACK]
        steps: list[list[int]] = [[] for _ in rows]
        curves: list[list[dict[str, float]]] = [[] for _ in rows]
        for report in job.train([members[i] for i in rows], device="cpu"):
            for column, member in enumerate(report.members.tolist()):
                steps[member].append(report.step)
                curves[member].append({name: float(values[column]) for name, values in report.values.items()})
        for i, step, curve in zip(rows, steps, curves, strict=True):
            metrics = {name: np.array([row[name] for row in curve]) for name in curve[0]}
            phase, _ = reduce_curves(job, members[i].params, Curves(step=np.array(step), values=metrics), thresholds)
            label[i] = job.phases.index(phase)
    return label


def most(labels: Labels) -> Labels:
    """(n,) the most frequent of labels (seeds, n); of labels that tie, the first."""
    return np.asarray([(labels == k).sum(axis=0) for k in range(labels.max() + 1)]).argmax(axis=0)


def cells() -> Floats:
    axis = (np.arange(SIDE) + 0.5) / SIDE
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def bisected(grid: Labels, label: Callable[[Floats], Labels], points: int, random: np.random.Generator) -> Floats:
    """(p, 2) up to `points` points between neighbours of the grid whose labels (SIDE^2,) differ."""
    number = np.arange(SIDE**2).reshape(SIDE, SIDE)
    first = np.concatenate([number[:-1].reshape(-1), number[:, :-1].reshape(-1)])
    second = np.concatenate([number[1:].reshape(-1), number[:, 1:].reshape(-1)])
    differ = np.flatnonzero(grid[first] != grid[second])
    chosen = random.choice(differ, min(points, len(differ)), replace=False)
    a, b, at_a = cells()[first[chosen]], cells()[second[chosen]], grid[first[chosen]]
    for _ in range(HALVINGS):
        middle = (a + b) / 2
        same = label(middle) == at_a
        a[same], b[~same] = middle[same], middle[~same]
    return np.asarray((a + b) / 2)


def search(number: int) -> Arrays:
    """Positions, labels and seeds of a search."""
    random, surrogate, surface = np.random.default_rng(500 + number), PhaseSurrogate(classes=classes()), None
    x = np.asarray(qmc.Sobol(2, rng=np.random.default_rng(300 + number)).random(START))
    seed = np.arange(START) % SEEDS + SEEDS * number
    label = train(x, seed)
    while len(x) < TRIALS:
        nothing = np.full(len(x), np.nan)
        evidence = Evidence(x=x, label=label, value=nothing, censored=np.zeros(len(x), dtype=bool))
        surface = surrogate.fit(evidence, previous=surface)
        new = surrogate.suggest(
            surface, evidence, pending=np.empty((0, 2)), count=BATCH, snap=lambda at: at, rng=random
        )
        new_seed = np.arange(len(x), len(x) + len(new)) % SEEDS + SEEDS * number
        label = np.concatenate([label, train(new, new_seed)])
        x, seed = np.concatenate([x, new]), np.concatenate([seed, new_seed])
    return {"x": x, "label": label, "seed": seed}


def classes() -> int:
    return len(load_job(yaml.safe_load(CONFIG.read_text())["job"]).phases)


def of_seed(x: Floats, *, seed: int) -> Labels:
    return train(x, np.full(len(x), seed))


def of_most(x: Floats, *, seeds: range) -> Labels:
    return most(train(np.tile(x, (len(seeds), 1)), np.repeat(list(seeds), len(x))).reshape(len(seeds), -1))


@dataclass(frozen=True)
class Trainings:
    """What is trained once and kept in a folder."""

    folder: Path

    def kept(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        file = self.folder / f"{name}.npz"
        if not file.exists():
            print(name, file=sys.stderr, flush=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{os.getpid()}-{file.name}")
            np.savez(part, **make())
            part.replace(file)
        return dict(np.load(file))

    def grid(self, seed: int) -> Labels:
        return self.kept(f"grid-{seed}", lambda: {"label": of_seed(cells(), seed=seed)})["label"]

    def own(self, seed: int) -> Floats:
        """Points on the boundary of a seed."""
        label, random = partial(of_seed, seed=seed), np.random.default_rng(seed)
        return self.kept(f"own-{seed}", lambda: {"x": bisected(self.grid(seed), label, OTHER_POINTS, random)})["x"]

    def given(self, number: int) -> Floats:
        """Points on the boundary of the label that most seeds of a search show."""
        grid = most(np.stack([self.grid(seed) for seed in seeds_of(number)]))
        label, random = partial(of_most, seeds=seeds_of(number)), np.random.default_rng(100 + number)
        return self.kept(f"given-{number}", lambda: {"x": bisected(grid, label, GIVEN_POINTS, random)})["x"]

    def search(self, number: int) -> Arrays:
        return self.kept(f"search-{number}", lambda: search(number))


def seeds_of(number: int) -> range:
    return range(SEEDS * number, SEEDS * (number + 1))


def report(name: str, shares: Floats) -> str:
    """Of (searches, seeds) shares, NaN where a search has the seed: each search, and their mean."""
    each = ", ".join(f"{100 * share:.0f}" for share in np.nanmean(shares, axis=1))
    if shares.shape[1] == 1:
        return f"{name}: {100 * shares.mean():.0f}% (searches: {each}); no interval"
    mean, low, high = interval(np.nanmean(shares, axis=0))
    return f"{name}: {100 * mean:.0f}% [{100 * low:.0f}, {100 * high:.0f}] (searches: {each})"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.boundary.grokking", description=__doc__)
    parser.add_argument("--kept", type=Path, default=Path(".bench/p31"), help="folder of finished trainings")
    parser.add_argument("--searches", type=int, default=2, help="at least 2, default %(default)s")
    asked = parser.parse_args(argv)
    set_threads(1)
    trainings, searches, seeds = Trainings(asked.kept), asked.searches, SEEDS * asked.searches
    given, over, belief = np.empty((searches, 1)), *np.full((2, searches, seeds), np.nan)
    points = 0
    for number in range(searches):
        trials = trainings.search(number)
        bands = fit_bands(trials["x"], trials["label"], trials["seed"], classes=classes())
        assert bands is not None and bands.over_seeds is not None
        own = fit_classifier(trials["x"], trials["label"], classes=classes())
        at = trainings.given(number)
        given[number], points = bands.given_seeds.in_band(at).mean(), points + len(at)
        for seed in set(range(seeds)) - set(seeds_of(number)):
            at = trainings.own(seed)
            over[number, seed], belief[number, seed] = bands.over_seeds.in_band(at).mean(), own.in_band(at).mean()
    print(f"{searches} searches of {TRIALS} trials, {SEEDS} seeds each; {points} points given these seeds, ", end="")
    print(f"{sum(len(trainings.own(seed)) for seed in range(seeds))} on the boundaries of seeds")
    print(report("given these seeds", given))
    print(report("over seeds, 90% interval over the other seeds", over))
    print(report("the search's own belief, over seeds", belief))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
