"""The packed job against each protocol as its authors train it, at a size for two cores: the same distributions.

`python -m pytest -s tests/test_protocols.py` prints the figures of configs/README.md. Both sides measure at the same
steps. A step that is not reached ranks last.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import authors_protocols as authors
import numpy as np
import pytest
import torch
from packing import curves_of
from scipy.stats import mannwhitneyu

from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Member, log_spaced_steps

pytestmark = pytest.mark.slow
LEVEL, SEEDS, POINTS = 0.9, 12, 60
MEASURES = ("train", "test", "final_train", "final_test")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting of the job, and the authors' training with the same sizes."""

    values: dict[str, Any]
    train: Callable[..., list[authors.Crossing]]
    sizes: dict[str, Any]


LIU: dict[str, Any] = {
    "operation": "sum",
    "modulus": 10,
    "data_fraction": 45 / 55,
    "model": "embedding_mlp",
    "embedding": 1,
    "combine": "sum",
    "activation": "tanh",
    "layers": 2,
    "width": 48,
    "loss": "cross_entropy",
    "beta2": 0.999,
    "embedding_learning_rate": 0.001,
    "decay_embedding": False,
    "learning_rate": 0.002,
    "weight_decay": 1.0,
    "steps": 2500,
}
PRIETO: dict[str, Any] = {
    "modulus": 23,
    "model": "embedding_mlp",
    "embedding": 0,
    "biases": False,
    "init": "torch",
    "count_rounding": "down",
    "layers": 2,
    "width": 100,
    "learning_rate": 0.01,
    "data_fraction": 0.7,
}
CASES = {
    "doshi2023": Case(
        values={
            "modulus": 23,
            "width": 128,
            "class_mean": True,
            "count_rounding": "down",
            "noise_count": "exact",
            "label_noise": 0.1,
            "data_fraction": 0.8,
            "learning_rate": 0.01,
            "weight_decay": 5.0,
            "steps": 400,
        },
        train=authors.doshi,
        sizes={"p": 23, "width": 128, "fraction": 0.8, "noise": 0.1, "decay": 5.0},
    ),
    "prieto2025 perpGrad": Case(
        values={**PRIETO, "loss": "cross_entropy", "perp_grad": "layers_rescaled", "beta2": 0.999, "steps": 300},
        train=authors.prieto,
        sizes={"p": 23, "width": 100, "fraction": 0.7, "loss": "softmax", "orthogonal": True},
    ),
    "liu2022": Case(
        values={**LIU, "init": "liu", "class_mean": True},
        train=authors.liu,
        sizes={"width": 48, "rate": 0.002, "decay": 1.0},
    ),
}


def of_the_job(values: dict[str, Any]) -> np.ndarray:
    """(n, 4) the measures of the job's trials, trained as one pack."""
    params = GrokkingParams(**values, curve_points=POINTS, stop_accuracy=LEVEL)
    rows = []
    for curve in curves_of(Grokking(), [Member(params=params, seed=100 + seed) for seed in range(SEEDS)]).values():
        train, test = (curve.values[f"{name}_accuracy"] for name in ("train", "test"))
        first = [
            next((s for s, a in zip(curve.step, values, strict=True) if a >= LEVEL), math.inf)
            for values in (train, test)
        ]
        rows.append((*first, train[-1], test[-1]))
    return np.array(rows, dtype=float)


def of_the_authors(case: Case) -> np.ndarray:
    """(n, 4) the measures of the authors' trainings."""
    at = log_spaced_steps(case.values["steps"], POINTS).tolist()
    runs = case.train(SEEDS, at, LEVEL, **case.sizes)
    return np.array([[getattr(run, name) for name in MEASURES] for run in runs])


def compared(name: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Measure -> p of the Mann-Whitney test; 1 where all values are equal. Prints medians and quartiles."""
    chances = {}
    for measure, mine, other in zip(MEASURES, ours.T, theirs.T, strict=True):
        ranked = [np.where(np.isfinite(values), values, 1e9) for values in (mine, other)]
        equal = len(np.unique(np.concatenate(ranked))) == 1
        chances[measure] = 1.0 if equal else float(mannwhitneyu(*ranked).pvalue)
        shown = [np.percentile(values, (25, 50, 75), method="nearest") for values in (mine, other)]
        print(f"{name} {measure}: job {shown[0]}, authors {shown[1]}, n = {SEEDS} each, p = {chances[measure]:.2f}")
    return chances


@pytest.mark.parametrize("name", CASES)
def test_the_packed_job_learns_when_the_authors_training_does(name: str) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    ours, theirs = of_the_job(case.values), of_the_authors(case)
    assert np.isfinite(ours[:, 0]).any() or np.isfinite(ours[:, 1]).any(), "nothing to compare"
    chances = compared(name, ours, theirs)
    assert min(chances.values()) > 0.01, chances
