"""Double descent of linear models: the ridge job against its closed forms."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from jobs.job import Curves, Member
from jobs.ridge import random_features
from jobs.ridge.designs import make_problems
from jobs.ridge.job import Ridge
from jobs.ridge.params import RidgeParams
from jobs.theory import descent, minimum_norm
from tests.packing import curves_of
from tests.science.check import Check, Result, absolute, mean_against, relative

JOB = Ridge()
SEEDS, NOISES = 400, 200
EPOCH_WISE: dict[str, Any] = {
    "design": "orthogonal",
    "sample_count": 2000,
    "inputs": 44,
    "covariance": "two_scale",
    "small_features": 4,
    "small_scale": 0.05,
    "signal": 1.0,
    "small_signal": 400.0,
    "teacher": "equal",
    "noise_variance": 50.0,
    "solver": "gradient_descent",
    "learning_rate": 0.2,
    "steps": 12_000,
    "curve_points": 200,
}
"""40 features of scale 1 and 4 of scale 0.05, each group with half of the signal."""


@functools.cache
def trained(settings: tuple[RidgeParams, ...], seeds: int) -> dict[int, Curves]:
    """The curves of every seed of every setting, trained as one pack; once in a process."""
    return curves_of(JOB, [Member(params=params, seed=seed) for params in settings for seed in range(seeds)])


def finals(settings: Sequence[dict[str, Any]], metric: str, *, seeds: int) -> list[np.ndarray]:
    """(seeds,) final values of a metric for each setting."""
    curves = trained(tuple(RidgeParams(**setting) for setting in settings), seeds)
    ends = np.array([curves[position].values[metric][-1] for position in range(len(settings) * seeds)])
    return list(ends.reshape(len(settings), seeds))


def belkin_hsu_xu() -> Iterator[Result]:
    inputs, signal, noise = 150, 2.0, 0.25
    settings = [
        {
            "sample_count": n,
            "inputs": inputs,
            "features": p,
            "signal": signal,
            "noise_variance": noise,
            "teacher": "power_law",
        }
        for n, p in [*((40, p) for p in (5, 15, 25, 30, 50, 60, 90, 150)), *((n, 50) for n in (10, 25, 60, 100, 200))]
    ]
    squares = signal * (1 / np.arange(1, inputs + 1)) / (1 / np.arange(1, inputs + 1)).sum()
    for setting, losses in zip(settings, finals(settings, "test_loss", seeds=SEEDS), strict=True):
        n, p = setting["sample_count"], setting["features"]
        expected = minimum_norm.belkin_hsu_xu_risk(
            n, p, used=squares[:p].sum(), unused=squares[p:].sum(), noise_variance=noise
        )
        yield mean_against(f"risk, n = {n}, p = {p} of {inputs}", losses, float(expected))


def hastie() -> Iterator[Result]:
    n, signal, noise = 240, 3.0, 1.0
    gammas = (0.25, 0.5, 1.5, 2.0, 4.0)
    settings = [
        {"sample_count": n, "inputs": round(n * gamma), "signal": signal, "noise_variance": noise} for gamma in gammas
    ]
    for gamma, risks in zip(gammas, finals(settings, "excess_risk", seeds=40), strict=True):
        expected = minimum_norm.hastie_excess_risk(gamma, signal=signal, noise_variance=noise)
        yield mean_against(f"excess risk, n = {n}, p / n = {gamma}", risks, float(expected))


def curth() -> Iterator[Result]:
    n, sizes = 60, (10, 30, 45, 90, 150, 300)
    settings = [{"sample_count": n, "inputs": p} for p in sizes]
    for p, values in zip(sizes, finals(settings, "effective_parameters", seeds=300), strict=True):
        expected = float(minimum_norm.effective_parameters(n, p))
        yield relative(f"effective parameters, n = {n}, p = {p}", float(values.mean()), expected, limit=0.015)
    params = RidgeParams(sample_count=30, inputs=70)
    (exact,) = finals([{"sample_count": 30, "inputs": 70}], "effective_parameters", seeds=1)
    x = make_problems([params], [0], "cpu").x_SNP[0].numpy()
    fresh = np.random.default_rng(0).standard_normal((20_000, 70))
    sampled = float(minimum_norm.smoother_effective_parameters(fresh @ np.linalg.pinv(x)))
    yield relative(
        "the job's exact value, and the definition on 20,000 fresh inputs", float(exact[0]), sampled, limit=0.015
    )


def epoch_wise_figures() -> Iterator[Result]:
    """The formula alone, on inputs whose sample covariance is exactly the population's."""
    scales = np.r_[np.ones(40), np.full(4, 0.05)]
    x = np.zeros((2000, 44))
    np.fill_diagonal(x, scales * np.sqrt(2000))
    teacher = np.r_[np.full(40, np.sqrt(1 / 40)), np.full(4, 10.0)]
    risk = descent.expected_excess_risk(
        x, np.arange(20_001), teacher=teacher, learning_rate=0.2, noise_variance=50.0, variances=scales**2
    ).total
    low = int(risk[:27].argmin())
    high = low + int(risk[low:].argmax())
    yield absolute("step of the minimum", low, 3, unit="steps")
    yield absolute("step of the peak", high, 27, unit="steps")
    yield absolute("minimum", float(risk[low]), 1.497, limit=0.0005)
    yield absolute("peak", float(risk[high]), 1.969, limit=0.0005)
    yield absolute("end", float(risk[-1]), 1.10, limit=0.005)


def epoch_wise_measured() -> Iterator[Result]:
    """Real gradient descent on the same problem, many draws of the noise."""
    params = RidgeParams(**EPOCH_WISE)
    curves = trained((params,), NOISES)
    step, risk = curves[0].step, np.array([curves[k].values["excess_risk"] for k in range(NOISES)])
    mean = risk.mean(0)
    low = int(mean[: np.searchsorted(step, 27)].argmin())
    high = low + int(mean[low:].argmax())
    yield absolute("step of the minimum", float(step[low]), 3, unit="steps")
    yield absolute("step of the peak (flat: 0.1% from 24 to 31)", float(step[high]), 27, limit=3, unit="steps")
    expected = JOB.theory(params)["excess_risk"].value
    assert isinstance(expected, np.ndarray)
    for k in (3, 27, params.steps):
        at = int(np.searchsorted(step, k))
        yield mean_against(f"excess risk at step {k}", risk[:, at], float(expected[at]))


def epoch_wise_given_x() -> Iterator[Result]:
    """Any design, start and weight decay: every data set against the formula for that data set."""
    cases: list[dict[str, Any]] = [
        {"sample_count": 30, "inputs": 12, "noise_variance": 4.0},
        {"sample_count": 30, "inputs": 60, "noise_variance": 1.0, "init_scale": 2.0},
        {"sample_count": 50, "inputs": 40, "covariance": "power_law", "noise_variance": 2.0, "weight_decay": 0.02},
    ]
    shared = {"solver": "gradient_descent", "learning_rate": 0.1, "steps": 600, "curve_points": 30}
    seeds = 200
    for case in cases:
        params = RidgeParams(**case, **shared)
        curves = trained((params,), seeds)
        problems = make_problems([params] * seeds, list(range(seeds)), "cpu")
        population = problems.population
        rest = np.array(
            [
                curves[k].values["excess_risk"]
                - descent.expected_excess_risk(
                    problems.x_SNP[k].numpy(),
                    curves[k].step,
                    teacher=population.target_SP[k].numpy(),
                    learning_rate=params.learning_rate,
                    noise_variance=params.noise_variance,
                    variances=population.moment[k].numpy(),
                    weight_decay=params.weight_decay,
                    start=problems.start_SP[k].numpy() * params.init_scale,
                ).total
                for k in range(seeds)
            ]
        )
        step = curves[0].step
        for k in (1, 10, int(np.searchsorted(step, 100)), len(step) - 1):
            size = f"n = {params.sample_count}, p = {params.fitted}"
            named = f"{size}, {params.covariance}, lam = {params.weight_decay:g}"
            yield mean_against(f"measured - formula at step {step[k]}; {named}", rest[:, k], 0.0)


def random_feature_moments() -> Iterator[Result]:
    """The moments behind the exact test loss of random features, against sampled inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs, features, count = 5, 4, 400_000

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    w, beta, x = normal(1, features, inputs), normal(1, inputs), normal(1, count, inputs)
    b = torch.rand(1, features, generator=generator, dtype=torch.float64) * 6.28
    target = torch.einsum("snd,sd->sn", x, beta)
    kinds = {
        "relu": (random_features.relu_features(x, w), random_features.relu_moments(w, beta)),
        "fourier": (random_features.fourier_features(x, w, b), random_features.fourier_moments(w, b, beta)),
    }
    for name, (phi, (second, cross)) in kinds.items():
        for i, j in itertools.combinations_with_replacement(range(features), 2):
            sample = (phi[0, :, i] * phi[0, :, j]).numpy()
            # Thirty comparisons: one in some dozens is past 3 by chance alone.
            yield mean_against(f"{name}: E phi_{i} phi_{j}", sample, float(second[0, i, j]), limit=4)
        for i in range(features):
            sample = (phi[0, :, i] * target[0]).numpy()
            yield mean_against(f"{name}: E phi_{i} y", sample, float(cross[0, i]), limit=4)


CHECKS = (
    Check(name="sample- and model-wise risk", source="Belkin, Hsu, Xu 2019, theorem 1", run=belkin_hsu_xu, slow=True),
    Check(name="isotropic minimum-norm risk", source="Hastie et al. 2019", run=hastie, slow=True),
    Check(name="effective parameters", source="Curth et al. 2023", run=curth, slow=True),
    Check(name="epoch-wise formula", source="gradient descent on least squares, given X", run=epoch_wise_figures),
    Check(
        name="epoch-wise double descent", source="the same, 200 draws of the noise", run=epoch_wise_measured, slow=True
    ),
    Check(
        name="epoch-wise, any design",
        source="gradient descent on ridge regression, given X",
        run=epoch_wise_given_x,
        slow=True,
    ),
    Check(name="random features", source="Cho, Saul 2009; Rahimi, Recht 2007", run=random_feature_moments),
)
