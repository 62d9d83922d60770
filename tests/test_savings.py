"""Savings of a level or ridge search: simulated grids follow the surrogate, and their size matches the error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import qmc
from surfaces_for_phases import Formula, above

from orchestrator.phases.map.box import TrialSlice
from orchestrator.phases.map.savings import Savings, Shows, read_savings, savings, write_savings
from orchestrator.phases.map.surface_map import FittedMap, FittedSlice
from orchestrator.surface.base import Evidence, Surface, Surrogate
from orchestrator.surface.level import LevelSurrogate, level_observations
from orchestrator.surface.ridge import RidgeSurrogate


def even(n: int, seed: int = 0) -> np.ndarray:
    return np.asarray(qmc.Sobol(2, rng=np.random.default_rng(seed)).random_base2(10)[:n])


def told(x: np.ndarray, value: np.ndarray, label: np.ndarray | None = None) -> Evidence:
    labels = np.full(len(x), -1, dtype=np.int64) if label is None else label
    return Evidence(x=x, label=labels, value=value, censored=np.zeros(len(x), dtype=np.bool_))


def one_map(surface: Surface, seen: Evidence, target: Surrogate) -> FittedMap:
    rows = np.arange(len(seen))
    cut = TrialSlice(title="", fixed={}, axes=(), rows=rows, x=seen.x)
    one = FittedSlice(slice=cut, evidence=seen, rows=rows, surface=surface, fit=target.fit)
    return FittedMap(labels=("below", "above", "no value"), slices=(one,))


def height(x: np.ndarray) -> np.ndarray:
    return x[:, 1] - 0.5 - 0.2 * np.sin(5 * x[:, 0])


def cliff(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(1 / (1 + np.exp(-height(x) / 0.03)) + 0.02 * rng.standard_normal(len(x)), 0, 1)


def crest(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Peaks at 0.3 + 0.4 x1 along the first axis, over more than a decade."""
    away = (x[:, 0] - 0.3 - 0.4 * x[:, 1]) / 0.12
    return np.exp(3 * np.exp(-(away**2)) + 0.1 * rng.standard_normal(len(x)))


@pytest.mark.parametrize(
    ("value", "level"), [(np.linspace(0, 1, 101), 0.4), (np.geomspace(3, 5e4, 101), 700.0), (np.arange(9.0), 4.0)]
)
def test_a_warped_value_unwarps_to_itself(value: np.ndarray, level: float) -> None:
    bounds = level_observations(level, value, np.zeros(len(value), dtype=np.bool_), np.full(len(value), -1))
    exact = bounds.kind == 0
    assert exact.sum() >= 3
    assert bounds.transform.inverse(bounds.value[exact]) == pytest.approx(value[exact])
    assert (np.diff(bounds.transform.inverse(np.linspace(-50, 50, 99))) >= 0).all()


def test_simulated_trials_of_a_level_fit_to_the_same_map() -> None:
    rng = np.random.default_rng(0)
    x = even(200)
    lost = x[:, 0] > 0.8
    value = np.where(lost, np.nan, cliff(x, rng))
    label = np.where(lost, 2, value >= 0.5)
    target = LevelSurrogate(level=0.5, classes=3)
    surface = target.fit(told(x, value, label))
    shown = surface.trials(even(300, seed=7), rng)
    assert np.isnan(shown.value).tolist() == (shown.label == 2).tolist()
    assert (shown.label == 2).mean() == pytest.approx(0.2, abs=0.04)
    side = shown.label < 2
    assert ((shown.value[side] >= 0.5) == (shown.label[side] == 1)).all()
    assert np.nanmin(shown.value) >= -0.1 and np.nanmax(shown.value) <= 1.1
    again, at = target.fit(shown), even(1000, seed=9)
    assert (again.label(at) != surface.label(at)).mean() < 0.02


def test_simulated_trials_of_a_ridge_are_the_expected_metric_with_its_noise() -> None:
    x = even(256)
    surface = RidgeSurrogate(along=0).fit(told(x, crest(x, np.random.default_rng(0))))
    at = even(512, seed=3)
    shown = surface.trials(at, np.random.default_rng(1))
    off = np.log(shown.value) - np.log(surface.mean(at))
    assert abs(off.mean()) < 0.02 and np.std(off) == pytest.approx(0.1, rel=0.4)
    assert not shown.censored.any() and (shown.label == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["level", "ridge"])
def test_near_trials_are_found_to_save_and_a_grid_is_found_to_be_one(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    target: Surrogate = LevelSurrogate(level=0.5) if kind == "level" else RidgeSurrogate(along=0)
    truth = cliff if kind == "level" else crest
    near = rng.random((90, 2))
    if kind == "level":
        near[:, 1] = np.clip(0.5 + 0.2 * np.sin(5 * near[:, 0]) + 0.02 * rng.standard_normal(90), 0, 1)
    else:
        near[:, 0] = np.clip(0.3 + 0.4 * near[:, 1] + 0.05 * rng.standard_normal(90), 0, 1)
    x = np.concatenate([even(30), near])
    seen = told(x, truth(x, rng))
    found = one_map(target.fit(seen), seen, target)
    saved = savings(found, valued=True)
    assert saved.trials == 120 and saved.method in ("simulated", "extrapolated")
    assert saved.grid is not None and saved.grid > 130
    assert saved.what == ("map error" if kind == "level" else "error of the peak's position")
    write_savings(saved, tmp_path / "s.json")
    assert read_savings(tmp_path / "s.json") == saved
    assert savings(found, saved, valued=True) is saved
    sides = 11 if kind == "level" else 16  # a ridge needs finer ones before its map is one to go by
    middles = (np.arange(sides) + 0.5) / sides
    even_ones = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    grid = told(even_ones, truth(even_ones, rng))
    of_grid = savings(one_map(target.fit(grid), grid, target), valued=True)
    assert of_grid.grid is not None and sides**2 / 3 < of_grid.grid < 3 * sides**2


def test_a_surrogate_that_cannot_simulate_trials_reports_that_it_has_no_estimate() -> None:
    half = Formula(heights=above(lambda x: x[:, 0] - 0.5), softness=0.05)
    assert not isinstance(half, Shows)
    x = even(40)
    saved = savings(one_map(half, told(x, x[:, 0]), LevelSurrogate(level=0.5)), valued=True)
    assert (saved.grid, saved.method, saved.simulated) == (None, "none", ())
    assert saved.text() == "40 trials; what a grid of the same map error needs is not estimated"


def test_a_search_that_was_worse_than_a_grid_says_so() -> None:
    few = Savings(trials=60, expected_error=0.1, grid=48.0, method="simulated", key="k")
    assert few.text() == (
        "60 trials; a grid of the same map error needs about 48 (estimate): this search needed more trials than a "
        "grid. It pays off with a larger budget or fewer axes; with so few trials, run a grid ('kind: grid')"
    )
    many = Savings(trials=60, expected_error=0.1, grid=240.0, method="simulated", key="k")
    assert many.text() == "60 trials; a grid of the same map error needs about 240 (estimate)"


@pytest.mark.parametrize(
    ("trials", "says"),
    [
        (3, "3 trials; a grid of 27 trials or fewer is as good (estimate)"),
        (60, "60 trials; a grid of 27 trials or fewer is as good (estimate): this search needed more trials than a "),
    ],
)
def test_no_number_is_claimed_where_the_smallest_grid_is_as_good(trials: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(
        f'{{"trials": {trials}, "expected_error": 0.36, "grid": 27.0, "method": "simulated", '
        '"simulated": [[27, 0.07]], "key": "k", "what": "map error"}'
    )
    old = read_savings(tmp_path / "old.json")
    assert old is not None and (old.grid, old.method) == (None, "at_most"), "an earlier version claimed 27"
    assert old.text().startswith(says)
    write_savings(old, tmp_path / "new.json")
    assert read_savings(tmp_path / "new.json") == old


def test_an_estimate_of_before_there_were_others_reads_as_one_of_a_map(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(
        '{"trials": 9, "expected_error": 0.1, "grid": null, "method": "none", "simulated": [], "key": "k"}'
    )
    old = Savings(trials=9, expected_error=0.1, grid=None, method="none", simulated=(), key="k")
    assert read_savings(tmp_path / "old.json") == old
