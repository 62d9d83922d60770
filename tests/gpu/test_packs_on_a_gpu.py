"""The same trial on a GPU: packs know one code path, and the device changes no curve beyond rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.double_descent import fused
from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.grokking.job import Grokking
from jobs.grokking.params import GrokkingParams
from jobs.job import Job, Member, Params
from jobs.packed import capture
from tests.image_files import write_cifar

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DESCENT = {
    "data": "gaussian_teacher",
    "pool": 300,
    "test_count": 100,
    "batch_size": 32,
    "steps": 25,
    "curve_points": 10,
}
GROK = {"modulus": 7, "width": 20, "steps": 25, "curve_points": 10}
LEAVING = [{"steps": 25}, {"steps": 7}, {"steps": 13}]
CASES: list[tuple[Job[Any], list[Params]]] = [
    (DoubleDescent(), [DoubleDescentParams(width=w, label_noise=0.2, **DESCENT) for w in (3, 17, 40)]),
    (DoubleDescent(), [DoubleDescentParams(width=w, optimiser="adamw", loss="squared", **DESCENT) for w in (5, 9)]),
    (DoubleDescent(), [DoubleDescentParams(width=8, **DESCENT | own, sample_count=100) for own in LEAVING]),
    (DoubleDescent(), [DoubleDescentParams(width=8, **DESCENT | {"batch_size": 0, "optimiser": "adam"})]),
    (Grokking(), [GrokkingParams(weight_decay=w, data_fraction=0.6, **GROK) for w in (0.0, 1.0)]),
    (Grokking(), [GrokkingParams(batch_size=8, **GROK | own) for own in LEAVING]),
    (Grokking(), [GrokkingParams(model="embedding_mlp", loss="cross_entropy", learning_rate=0.001, **GROK)]),
    (Grokking(), [GrokkingParams(model="transformer", loss="cross_entropy", learning_rate=0.001, **GROK)]),
    (
        Grokking(),
        [GrokkingParams(model="transformer", warmup_steps=5, batch_size=8, optimiser="sgd", momentum=0.9, **GROK)],
    ),
    (Grokking(), [GrokkingParams(grokfast_lambda=2.0, perp_grad="whole", **GROK)]),
    (
        Grokking(),
        [GrokkingParams(train_level=0.3, test_level=0.2, **GROK | own | {"curve_points": 3}) for own in LEAVING],
    ),
]


PERCEPTRONS: list[dict[str, Any]] = [
    {"label_noise": 0.2, "weight_decay": 0.01},
    {"optimiser": "adamw", "weight_decay": 0.01, "learning_rate": 1e-3},
    {"loss": "squared", "batch_order": "with_replacement"},
    {"last_batch": "smaller", "rate_decay": 0.5, "rate_decay_epochs": 1},
]
WIDTHS: list[tuple[int, dict[str, Any]]] = [(3, {"steps": 9}), (17, {"learning_rate": 0.003}), (64, {})]

IMAGES = {"pool": 60, "test_count": 20, "batch_size": 8, "steps": 25, "curve_points": 5, "learning_rate": 1e-3}
CONVOLUTIONS: list[dict[str, Any]] = [
    {"model": "cnn5", "optimiser": "sgd", "momentum": 0.9, "rate_every": 10},
    {"model": "cnn5", "optimiser": "adam", "augment": False},
    {"model": "preact_resnet18", "optimiser": "adam", "steps": 10},
]


def losses(job: Job[Any], params: list[Params], device: str) -> list[list[float]]:
    """The training loss of each member at each report."""
    found: list[list[float]] = [[] for _ in params]
    pack = [Member(params=p, seed=7 + i) for i, p in enumerate(params)]
    for report in job.train(pack, device=device):
        for position, value in zip(report.members, report.values.get("train_loss", ()), strict=True):
            found[position].append(float(value))
    return found


@pytest.mark.parametrize(("job", "params"), CASES)
def test_a_trial_on_a_gpu_is_the_trial_on_a_cpu(job: Job[Any], params: list[Params]) -> None:
    for here, there in zip(losses(job, params, "cpu"), losses(job, params, "cuda"), strict=True):
        np.testing.assert_allclose(there, here, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("way", ["eager", "captured", "fused"])
@pytest.mark.parametrize("settings", PERCEPTRONS)
def test_every_way_to_train_a_perceptron_gives_the_trial(
    settings: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "fused":
        assert fused.available(), "CUDA builds of torch bring triton; it needs a C compiler and Python's headers"
    monkeypatch.setattr(capture, "ENABLED", way == "captured")
    monkeypatch.setattr(fused, "ENABLED", way == "fused")
    monkeypatch.setattr(fused, "ONLY_MEASURED", False)
    params: list[Params] = [DoubleDescentParams(width=w, **(DESCENT | settings | own)) for w, own in WIDTHS]
    for here, there in zip(
        losses(DoubleDescent(), params, "cpu"), losses(DoubleDescent(), params, "cuda"), strict=True
    ):
        np.testing.assert_allclose(there, here, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("settings", CONVOLUTIONS)
def test_a_convolutional_network_on_a_gpu_is_the_one_on_a_cpu(settings: dict[str, Any], tmp_path: Path) -> None:
    archive = str(write_cifar(tmp_path / "small.tar.gz", train=40, test=40))
    params: list[Params] = [ImageParams(archive=archive, width=w, **IMAGES | settings) for w in (2, 3)]
    for here, there in zip(
        losses(ImageDoubleDescent(), params, "cpu"), losses(ImageDoubleDescent(), params, "cuda"), strict=True
    ):
        np.testing.assert_allclose(there, here, rtol=2e-3, atol=2e-4)
