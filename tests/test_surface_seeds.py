"""The bands given these seeds and over seeds, on boundaries that trials with the same seed share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc
from surfaces_for_phases import one_map

from orchestrator.phases.map.boundary_data import boundary_lines
from orchestrator.phases.map.surface_map import FittedMap
from orchestrator.surface.base import Evidence
from orchestrator.surface.classifier import fit_classifier
from orchestrator.surface.seeds import SeedBands, SeedData, fit_bands
from tests.benchmarks.boundary import coverage
from tests.benchmarks.boundary.coverage import search
from tests.benchmarks.boundary.problems import Problem
from tests.benchmarks.boundary.seeds import SeededProblem

SPREAD = 0.04
SEEDS = 5
ALONG = np.linspace(0.05, 0.95, 19)


class Seeded:
    """Class 1 above a wavy line that each seed moves and tilts."""

    def __init__(self, instance: int) -> None:
        self.random = np.random.default_rng(instance)
        self.wave = self.random.uniform(0, 6)
        self.effect = SPREAD * self.random.standard_normal((2, 100))

    def height(self, x: np.ndarray, seed: np.ndarray | int) -> np.ndarray:
        shift, tilt = self.effect[:, seed]
        return np.asarray(0.5 + 0.15 * np.sin(4 * x + self.wave) + shift + tilt * (2 * x - 1))

    def trials(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions, half of them near the lines, with labels and seeds."""
        x = qmc.Sobol(2, rng=self.random).random_base2(int(np.log2(count)))
        seed = np.arange(count) % SEEDS
        near = np.arange(count) % 2 == 0
        x[near, 1] = self.height(x[near, 0], 99) + 0.3 * (x[near, 1] - 0.5)
        return x, (x[:, 1] > self.height(x[:, 0], seed)).astype(np.int64), seed

    def line(self, seed: int) -> np.ndarray:
        return np.column_stack([ALONG, self.height(ALONG, seed)])

    def of_most_seeds(self) -> np.ndarray:
        return np.column_stack([ALONG, np.median([self.height(ALONG, s) for s in range(SEEDS)], axis=0)])


def bands_of(problem: Seeded, count: int = 128) -> SeedBands:
    x, label, seed = problem.trials(count)
    bands = fit_bands(x, label, seed, classes=2)
    assert bands is not None
    return bands


def test_each_band_covers_the_boundaries_that_it_is_a_band_of() -> None:
    """A band that takes trials with the same seed as independent covers half of the boundaries of other seeds."""
    given, over, before = [], [], []
    for instance in range(8):
        problem = Seeded(instance)
        x, label, _ = problem.trials(128)
        bands = bands_of(problem)
        others = np.concatenate([problem.line(seed) for seed in range(10, 30)])
        assert bands.over_seeds is not None
        given.append(bands.given_seeds.in_band(problem.of_most_seeds()).mean())
        over.append(bands.over_seeds.in_band(others).mean())
        before.append(fit_classifier(x, label, classes=2).in_band(others).mean())
    assert np.mean(before) < 0.65
    assert 0.8 < np.mean(over) < 0.95
    assert 0.85 < np.mean(given) < 0.95


def test_more_trials_narrow_the_band_given_these_seeds_but_not_that_over_seeds() -> None:
    few, many = (bands_of(Seeded(3), count) for count in (64, 256))
    assert few.over_seeds is not None and many.over_seeds is not None
    assert many.given_seeds.uncertain_area() < 0.7 * few.given_seeds.uncertain_area()
    assert many.over_seeds.uncertain_area() > 1.15 * many.given_seeds.uncertain_area()
    assert many.over_seeds.uncertain_area() > SPREAD


def test_the_beliefs_are_distributions_and_do_not_depend_on_the_order_or_the_numbers_of_the_seeds() -> None:
    x, label, seed = Seeded(0).trials(64)
    label[x[:, 0] > 0.8] = 2
    label[3] = -1
    turn = np.random.default_rng(0).permutation(64)
    first, other = (fit_bands(x[i], label[i], seed[i] + add, classes=4) for i, add in ((np.arange(64), 0), (turn, 70)))
    assert first is not None and other is not None
    at = np.random.default_rng(1).random((50, 2))
    for one, same in zip(first.both, other.both, strict=True):
        assert one is not None and same is not None
        np.testing.assert_allclose(one.belief(at).sum(axis=1), 1.0, atol=1e-6)
        np.testing.assert_array_equal(one.belief(at)[:, 3], 0.0)
        np.testing.assert_array_equal(one.belief(at), same.belief(at))


def test_trials_are_thinned_evenly_and_not_at_random() -> None:
    """A search puts most trials near the boundary; a random sample of them hides why they are there."""
    x = np.random.default_rng(0).random((300, 2))
    x[50:] = 0.5 + 0.002 * (x[50:] - 0.5)
    data = SeedData.of(x, np.arange(300) % 2, np.arange(300) % SEEDS, 2)
    assert data.spread(300) is data
    few = data.spread(40)
    assert len(few.x) == len(few.seed) == len(few.counts.x) == 40
    assert (np.abs(few.x - 0.5).max(axis=1) < 0.002).sum() <= 2


@pytest.mark.slow
def test_the_hyperparameters_are_learned_from_all_trials_of_a_search() -> None:
    """A random half of these trials gives a latent function of a tenth of the amplitude."""
    problem = SeededProblem(Problem("D", 0), 0)
    x, label, seed = search(problem, 512)
    bands = fit_bands(x, label, seed, classes=2)
    assert bands is not None
    assert bands.given_seeds.fitted.kernel.outputscale > 20


def test_one_seed_has_no_band_over_seeds_and_one_class_has_no_band() -> None:
    x, label, seed = Seeded(0).trials(64)
    bands = fit_bands(x, label, np.zeros_like(seed), classes=2)
    assert bands is not None and bands.over_seeds is None
    assert fit_bands(x, np.ones_like(label), seed, classes=2) is None


@pytest.mark.parametrize("seeds", [1, SEEDS])
def test_a_boundary_is_published_with_both_bands(seeds: int) -> None:
    x, label, seed = Seeded(1).trials(64)
    seen = Evidence(x=x, label=label, value=np.full(64, np.nan), censored=np.zeros(64, dtype=np.bool_))
    map_ = one_map(fit_classifier(x, label, classes=2), seen, replicate=seed % seeds)
    assert isinstance(map_, FittedMap)
    for line in boundary_lines(map_):
        width = np.diff(line.offsets, axis=1)[:, 0]
        wider = np.diff(line.over_offsets, axis=1)[:, 0]
        if seeds == 1:
            assert np.isnan(line.over_offsets).all() and np.isnan(line.over_at_5).all()
        else:
            assert np.nanmedian(wider) > 1.2 * np.nanmedian(width)
            assert np.isfinite(line.over_at_95).any()


def test_an_interrupted_measurement_of_coverage_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, int]] = []

    def measure(letter: str, instance: int, seeds: int, *_: object) -> Iterator[dict[str, Any]]:
        if len(measured) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        measured.append((letter, seeds))
        about = {"problem": letter, "instance": instance, "seeds": seeds, "trials": 128, "fit_s": 0.1}
        shares = ("given these seeds", "over seeds", "belief of the search, given", "belief of the search, over")
        yield about | dict.fromkeys(shares, 0.9)

    monkeypatch.setattr(coverage, "measure", measure)
    before = signal.getsignal(signal.SIGTERM)
    call = ["--problems", "AE", "--instances", "1", "--kept", str(tmp_path)]
    try:
        assert coverage.main(call) == 1
        assert measured == [("A", 5), ("A", 0)]
        printed = capsys.readouterr().out
        assert "| over seeds | shared | A | 128 | 1 | 90 " in printed and "| E |" not in printed
        assert "interrupted" in printed
        measured += [("none", 0)]
        assert coverage.main(call) == 0
        assert measured[3:] == [("E", 5), ("E", 0)]
        assert "| over seeds | shared | E | 128 | 1 | 90 " in capsys.readouterr().out
    finally:
        signal.signal(signal.SIGTERM, before)
