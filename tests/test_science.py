"""The checks of `make science` pass, and a wrong formula, task or training makes them fail."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from jobs.grokking import modular
from jobs.grokking import pack as grokking_pack
from jobs.grokking.params import GrokkingParams
from jobs.ridge import random_features
from jobs.theory import descent, minimum_norm, parallelogram, quadratic_weights, ridge_grokking, weight_decay
from tests.science import __main__ as program
from tests.science import analysis, grokking, linear, networks
from tests.science.catalogue import CHECKS
from tests.science.check import Check, Result, absolute, at_least, at_most, mean_against, passed, relative, results_of


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


OURS = (*linear.CHECKS, *grokking.CHECKS, *(check for check in analysis.CHECKS if not check.slow))
"""The trained networks and the coverage of intervals take minutes (`make science`). What the networks do is tested
below at a small size; the statistics have tests of their own."""


@pytest.mark.parametrize(
    "check", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.slow else []) for c in OURS]
)
def test_a_check_passes(check: Check) -> None:
    results = results_of(check)
    assert [r for r in results if not r.passed] == []


def named(name: str) -> Check:
    (found,) = [c for c in CHECKS if c.name == name]
    return found


# Wrong on purpose: each of these is a mistake that somebody could make.


def risk_without_the_one(n: Any, p: Any, *, used: Any, unused: Any, noise_variance: Any) -> Any:
    """p / (n - p) in place of p / (n - p - 1), and so beyond the threshold."""
    left = unused + noise_variance
    return left * (1 + p / (n - p)) if p < n else used * (1 - n / p) + left * (1 + n / (p - n))


def risk_without_bias(n: Any, p: Any, *, used: Any, unused: Any, noise_variance: Any) -> Any:
    return (unused + noise_variance) * (1 + (p / (n - p - 1) if p < n else n / (p - n - 1)))


def risk_without_what_is_unused(n: Any, p: Any, *, used: Any, unused: Any, noise_variance: Any) -> Any:
    return ORIGINAL_RISK(n, p, used=used, unused=0.0, noise_variance=noise_variance)


ORIGINAL_RISK = minimum_norm.belkin_hsu_xu_risk
ORIGINAL_DESCENT = descent.expected_excess_risk
ORIGINAL_CROSSING = ridge_grokking.crossing_steps
ORIGINAL_PAIRS = modular.operation_pairs
ORIGINAL_WEIGHTS = quadratic_weights.gromov_weights


def flow_instead_of_steps(x: Any, steps: Any, *, learning_rate: float, **others: Any) -> Any:
    """Gradient flow at time eta k: what small steps tend to, in place of the steps themselves."""
    fine = 400
    return ORIGINAL_DESCENT(x, np.asarray(steps) * fine, learning_rate=learning_rate / fine, **others)


def half_the_learning_rate(x: Any, steps: Any, *, learning_rate: float, **others: Any) -> Any:
    return ORIGINAL_DESCENT(x, steps, learning_rate=learning_rate / 2, **others)


def crossings_without_weight_decay_in_the_rate(modes: Any, **settings: Any) -> Any:
    return ORIGINAL_CROSSING(modes, **{**settings, "weight_decay": settings["weight_decay"] * 0.98})


def floor_divided(operation: str, modulus: int) -> Any:
    """The mistake of published code: x // y (mod p) for a modular division."""
    x, y, z = ORIGINAL_PAIRS(operation, modulus)
    return (x, y, x // y % modulus) if operation == "divide" else (x, y, z)


def swapped_subtraction(operation: str, modulus: int) -> Any:
    x, y, z = ORIGINAL_PAIRS(operation, modulus)
    return (x, y, (y - x) % modulus) if operation == "subtract" else (x, y, z)


def weights_with_one_phase(p: int, width: int, *, seed: int = 0) -> Any:
    u, v, w2 = ORIGINAL_WEIGHTS(p, width, seed=seed)
    return u, v, np.roll(w2, 1, axis=0)


def rank_of_modular_sums(p: int, chosen: Any) -> Any:
    """Sums modulo p taken for equal: another task."""
    i, j = parallelogram.unordered_pairs(p)
    ranks = []
    for row in chosen[:300]:
        rows = np.zeros((len(i), p))
        np.add.at(rows, (np.arange(len(i)), i), 1.0)
        np.add.at(rows, (np.arange(len(i)), j), 1.0)
        parts = [rows[row & ((i + j) % p == s)] for s in range(p)]
        ranks.append(np.linalg.matrix_rank(np.concatenate([part - part.mean(0) for part in parts if len(part)])))
    return np.resize(ranks, len(chosen))


def kernel_without_the_angle(w_SPD: Any, beta_SD: Any) -> Any:
    _, cross = ORIGINAL_RELU(w_SPD, beta_SD)
    return torch.bmm(w_SPD, w_SPD.transpose(1, 2)), cross


ORIGINAL_RELU = random_features.relu_moments

MUTATIONS: list[tuple[str, Any, str, Callable[..., Any], bool]] = [
    ("sample- and model-wise risk", minimum_norm, "belkin_hsu_xu_risk", risk_without_the_one, True),
    ("sample- and model-wise risk", minimum_norm, "belkin_hsu_xu_risk", risk_without_bias, True),
    ("sample- and model-wise risk", minimum_norm, "belkin_hsu_xu_risk", risk_without_what_is_unused, True),
    (
        "isotropic minimum-norm risk",
        minimum_norm,
        "hastie_excess_risk",
        lambda g, *, signal, noise_variance: signal * max(0, 1 - 1 / g) + noise_variance * g / abs(1 - g),
        True,
    ),
    ("effective parameters", minimum_norm, "effective_parameters", lambda n, p: min(n, p), True),
    (
        "effective parameters",
        minimum_norm,
        "effective_parameters",
        lambda n, p: n * p / (n - p) if p < n else n**2 / (p - n),
        True,
    ),
    ("epoch-wise formula", descent, "expected_excess_risk", flow_instead_of_steps, False),
    ("epoch-wise, any design", descent, "expected_excess_risk", half_the_learning_rate, True),
    ("random features", random_features, "relu_moments", kernel_without_the_angle, False),
    (
        "ridge grokking, every crossing step",
        ridge_grokking,
        "crossing_steps",
        crossings_without_weight_decay_in_the_rate,
        True,
    ),
    (
        "ridge grokking, the law of time",
        ridge_grokking,
        "generalisation_steps",
        lambda null, *, test_level, learning_rate, weight_decay: (
            np.log(null / test_level) / (learning_rate * weight_decay)
        ),
        True,
    ),
    (
        "ridge grokking, the law of time",
        weight_decay,
        "generalisation_time",
        lambda w0, wc, *, weight_decay, learning_rate: np.log(w0 / wc) / (learning_rate * weight_decay**2),
        True,
    ),
    ("the rank criterion", parallelogram, "system_rank", rank_of_modular_sums, False),
    ("analytic weights", quadratic_weights, "gromov_weights", weights_with_one_phase, False),
    ("modular tasks", modular, "operation_pairs", floor_divided, False),
    ("modular tasks", modular, "operation_pairs", swapped_subtraction, False),
]


@pytest.mark.parametrize(
    ("name", "module", "formula", "wrong"),
    [
        pytest.param(
            name,
            module,
            formula,
            wrong,
            marks=[pytest.mark.slow] if slow else [],
            id=f"{formula}-{getattr(wrong, '__name__', '')}-{number}",
        )
        for number, (name, module, formula, wrong, slow) in enumerate(MUTATIONS)
    ],
)
def test_a_wrong_formula_fails(
    name: str, module: Any, formula: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a deviation past the limit, not by an error."""
    monkeypatch.setattr(module, formula, wrong)
    results = results_of(named(name))
    failed = [result for result in results if not result.passed]
    assert failed and all(np.isfinite(result.measured) for result in results), results


# Trained networks, on a few cells or a short range.

CELLS = {cell: networks.PUBLISHED[cell] for cell in ((1.0, 0.5), (5.0, 0.4), (5.0, 0.5))}
QUICK = {cell: networks.PUBLISHED[cell] for cell in ((5.0, 0.5), (5.0, 0.6))}


def failing(results: Iterable[Result]) -> list[Result]:
    found = list(results)
    assert found and all(np.isfinite(result.measured) for result in found), found
    return [result for result in found if not result.passed]


def altered(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[GrokkingParams], dict[str, Any]]) -> None:
    """Train other settings than the check believes."""
    right = getattr(networks, name)

    def wrong(*which: Any) -> GrokkingParams:
        params: GrokkingParams = right(*which)
        return dataclasses.replace(params, **change(params))

    monkeypatch.setattr(networks, name, wrong)


def test_the_published_map_is_within_the_spread_of_seeds() -> None:
    assert failing(networks.small_map(CELLS)) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda params: {"weight_decay": 2 * params.weight_decay}, id="twice the weight decay"),
        pytest.param(lambda params: {"weight_decay": params.weight_decay / 2}, id="half the weight decay"),
        pytest.param(lambda params: {"data_fraction": params.data_fraction + 0.05}, id="more data"),
    ],
)
def test_a_map_of_another_training_is_told_from_the_published_one(
    change: Callable[[GrokkingParams], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(monkeypatch, "map_params", change)
    assert failing(networks.small_map(CELLS))


@pytest.mark.parametrize("result_of", [lambda x, y: x // np.maximum(y, 1), lambda x, y: x * x + x * y + y * y])
def test_a_map_of_another_task_is_told_from_the_published_one(
    result_of: Callable[[Any, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pairs(operation: str, modulus: int) -> Any:
        x, y, _ = ORIGINAL_PAIRS(operation, modulus)
        return x, y, result_of(x, y) % modulus

    monkeypatch.setattr(grokking_pack, "operation_pairs", pairs)
    assert failing(networks.small_map(QUICK, seeds=3))


def test_a_cell_that_generalises_is_told_from_one_that_does_not() -> None:
    assert failing(networks.small_map({(5.0, 0.8): None, (5.0, 0.7): 40}, seeds=3))
    assert failing(networks.small_map({(0.0, 0.4): 40, (5.0, 0.7): 40}, seeds=3))


def test_an_operation_does_not_need_more_data_than_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.TRANSFORMER, "steps", 200)
    assert failing(networks.operations("add", "add", seeds=3))


SHORT = (0.04, 0.08, 0.16)


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.setitem(networks.DIGITS, "width", 32)
    monkeypatch.setattr(networks, "LEVEL", 0.75)


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits")
def test_the_time_to_generalise_is_as_one_over_the_weight_decay() -> None:
    assert failing(networks.omnigrok(SHORT, seeds=2)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda params: {"weight_decay": 0.3 * params.weight_decay**0.5}, id="another exponent"),
        pytest.param(lambda params: {"weight_decay": 2 * params.weight_decay}, id="twice the weight decay"),
    ],
)
def test_another_law_of_the_weight_decay_is_told_from_the_law(
    change: Callable[[GrokkingParams], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(monkeypatch, "digits_params", change)
    assert failing(networks.omnigrok([2 * decay for decay in SHORT], seeds=2))


def test_one_more_draw_is_within_the_spread_as_often_as_the_level_says() -> None:
    """The prediction interval covers: 5% of 2,000 normal samples miss their own next draw."""
    random = np.random.default_rng(0)
    limit = float(stats.t.ppf(0.975, 7))
    drawn = random.normal(3.0, 0.4, (2000, 9))
    missed = sum(not networks.within_spread("", row[:8], row[8], row[8], limit=limit).passed for row in drawn)
    assert abs(missed / 2000 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)


# The program itself.


def result(deviation: float) -> Result:
    return Result(what="x", measured=1.0, expected=1.0, deviation=deviation, limit=1.0, unit="absolute")


def check(*results: Result) -> Check:
    return Check(name="some law", source="nobody", run=lambda: results)


def test_a_check_that_compares_nothing_or_raises_or_meets_nan_has_failed() -> None:
    def broken() -> Iterator[Result]:
        yield result(0.0)
        raise ZeroDivisionError("no law here")

    assert passed(check(result(0.5), result(1.0)))
    assert not passed(check()) and not passed(check(result(0.5), result(1.1))) and not passed(check(result(math.nan)))
    raised = Check(name="a", source="b", run=broken)
    assert not passed(raised) and "no law here" in results_of(raised)[0].what


def test_deviations_are_told_in_their_unit() -> None:
    assert mean_against("", [1.0, 2.0, 3.0], 2.0 + 1 / math.sqrt(3)).deviation == pytest.approx(1.0)
    assert not mean_against("", [2.0, 2.0], 2.1).passed
    assert relative("", 1.02, 1.0, limit=0.03).passed and not relative("", 0.96, 1.0, limit=0.03).passed
    assert at_least("", 0.9, 0.9).passed and not at_least("", 0.89, 0.9).passed
    assert at_most("", 3, 3).passed and not at_most("", math.inf, 3).passed
    assert absolute("", 3, 4, limit=1, unit="steps").passed and not absolute("", 3, 5, limit=1, unit="steps").passed


@pytest.mark.parametrize(("deviation", "code", "word"), [(0.5, 0, "all within"), (2.0, 1, "FAILED: some law")])
def test_the_program_prints_each_comparison_and_ends_with_what_failed(
    deviation: float, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "CHECKS", (check(result(deviation)),))
    assert program.main([]) == code
    said = capsys.readouterr().out
    assert "s of processor time" in said
    assert word in said and ("FAIL " in said) == bool(code) and "nobody" in said
    assert program.main(["-k", "no such name"]) == 2
    assert "some law" in capsys.readouterr().err
