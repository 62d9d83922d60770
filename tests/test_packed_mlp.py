"""The packed perceptron compared with plain PyTorch: initial weights, hand-written gradients, measurements."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.params import DoubleDescentParams
from jobs.job import Member, as_dict
from tests.packing import assert_same_curves, curves_of
from tests.plain_mlp import examples_of, loss_of, measured, network_of, plain_curves

JOB = DoubleDescent()
SMALL: dict[str, Any] = {
    "data": "gaussian_teacher",
    "pool": 60,
    "test_count": 50,
    "inputs": 7,
    "width": 13,
    "depth": 2,
    "batch_size": 16,
    "steps": 30,
    "curve_points": 30,
    "label_noise": 0.2,
    "learning_rate": 0.05,
}
NEAR = {"rtol": 2e-4, "atol": 2e-5}
"""float32 against float64 over some dozens of steps."""
ONE_WRONG = {"train_error": 1.5 / 50, "test_error": 1.5 / 50}
"""A class may change hands where two outputs are equal within rounding: at most one example of some fifty."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def member(seed: int = 5, **changes: Any) -> Member[DoubleDescentParams]:
    return Member(params=DoubleDescentParams(**{**SMALL, **changes}), seed=seed)


def hardly_trained(p: DoubleDescentParams) -> DoubleDescentParams:
    """The same network after one step too small to see in float32."""
    values = as_dict(p) | {"steps": 1, "learning_rate": 1e-12, "optimiser": "sgd", "momentum": 0.0}
    return DoubleDescentParams(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_measurements_equal_those_of_the_plain_network(depth: int, loss: str) -> None:
    """Initial weights, forward pass, losses on noisy training labels and clean test labels."""
    for p in (
        DoubleDescentParams(**{**SMALL, "depth": depth, "loss": loss, "sample_count": 41}),
        DoubleDescentParams(**{**SMALL, "depth": depth, "loss": loss, "init_scale": 3.0, "width": 33}),
    ):
        one = Member(params=hardly_trained(p), seed=9)
        found = curves_of(JOB, [one])[0]
        expected = measured(p, network_of(p, 9), examples_of(p, 9))
        for name, value in expected.items():
            assert found.values[name][0] == pytest.approx(value, rel=1e-5), name


def test_measurements_do_not_depend_on_the_chunk_size() -> None:
    """More test examples than one evaluation holds, several models with counts of their own."""
    members = [
        Member(params=hardly_trained(member(pool=3000, test_count=5000, width=60, sample_count=n).params), seed=n)
        for n in (700, 3000, 17, 2999)
    ]
    found = curves_of(JOB, members)
    for position, one in enumerate(members):
        expected = measured(one.params, network_of(one.params, one.seed), examples_of(one.params, one.seed))
        for name, value in expected.items():
            assert found[position].values[name][0] == pytest.approx(value, rel=1e-5, abs=1.5 / 3000), name


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("batch_size", [16, 0])
def test_one_step_follows_autograds_gradient(depth: int, loss: str, batch_size: int) -> None:
    """A step of plain descent moves each loss by what the exact gradient says, to five digits."""
    one = member(depth=depth, loss=loss, batch_size=batch_size, steps=1, momentum=0.0, learning_rate=0.5)
    found, expected = curves_of(JOB, [one])[0], plain_curves(one)
    start = measured(one.params, network_of(one.params, one.seed), examples_of(one.params, one.seed))
    for name in ("train_loss", "test_loss"):
        moved, should = found.values[name][0] - start[name], expected.values[name][0] - start[name]
        assert abs(should) > 1e-3
        assert moved == pytest.approx(should, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_training_is_the_plain_networks(depth: int, loss: str, optimiser: str) -> None:
    one = member(
        depth=depth,
        loss=loss,
        optimiser=optimiser,
        weight_decay=0.01,
        learning_rate=0.05 if optimiser == "sgd" else 0.003,
    )
    found, expected = curves_of(JOB, [one])[0], plain_curves(one)
    assert abs(expected.values["train_loss"][-1] - expected.values["train_loss"][0]) > 0.01, "it must learn something"
    assert_same_curves(found, expected, **NEAR, atols=ONE_WRONG)


@pytest.mark.parametrize("loss", ["squared"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_regression_is_the_plain_networks(depth: int, loss: str) -> None:
    one = member(data="gaussian_linear", label_noise=0.0, noise_std=0.5, loss=loss, depth=depth, sample_count=33)
    assert_same_curves(curves_of(JOB, [one])[0], plain_curves(one), **NEAR)


@pytest.mark.parametrize("order", ["shuffled", "with_replacement", "cyclic"])
def test_the_plain_network_sees_the_same_batches(order: str) -> None:
    one = member(batch_order=order, sample_count=50, momentum=0.5)
    assert_same_curves(curves_of(JOB, [one])[0], plain_curves(one), **NEAR, atols=ONE_WRONG)


def test_on_mnist1d_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greydanus's protocol, shortened: a pack of his widths is as many plain trainings."""
    monkeypatch.setenv("PHASEFRONT_DATA", str(tmp_path))
    members = [
        Member(
            params=DoubleDescentParams(
                pool=400, test_count=100, width=width, label_noise=0.15, steps=60, curve_points=12
            ),
            seed=width,
        )
        for width in (2, 13, 61, 104)
    ]
    found = curves_of(JOB, members)
    for position, one in enumerate(members):
        atols = {"train_error": 1.5 / 400, "test_error": 1.5 / 100}
        assert_same_curves(found[position], plain_curves(one), **NEAR, atols=atols, what=str(one.params.width))


def test_initial_weights_fill_their_bounds_evenly() -> None:
    """PyTorch's default: within 1 / sqrt(fan in) times the scale, for weights and biases."""
    p = DoubleDescentParams(**{**SMALL, "width": 300, "depth": 2, "init_scale": 2.5})
    network = network_of(p, 3)
    for layer, fan_in in ((network[0], 7), (network[2], 300), (network[4], 300)):
        bound = 2.5 / fan_in**0.5
        for part in (layer.weight, layer.bias):
            assert float(part.detach().abs().max()) <= bound
        assert float(layer.weight.detach().abs().max()) > 0.99 * bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    # That the packed job starts from these very weights is the first test of this file.


def test_a_wider_network_begins_with_the_narrow_ones_numbers() -> None:
    """An entry's number is named by its place, so a width changes the bound and nothing else."""
    narrow = network_of(DoubleDescentParams(**{**SMALL, "width": 10}), 3)
    wide = network_of(DoubleDescentParams(**{**SMALL, "width": 40}), 3)
    torch.testing.assert_close(wide[2].weight[:10, :10] * 2, narrow[2].weight)


def test_the_reference_is_float64_and_its_loss_is_torchs() -> None:
    p = DoubleDescentParams(**{**SMALL, "loss": "squared"})
    network, data = network_of(p, 1), examples_of(p, 1)
    assert all(part.dtype == torch.float64 for part in network.parameters())
    output = network(data.x.double()).detach()
    hot = torch.nn.functional.one_hot(data.y, 10).double()
    assert float(loss_of(p, output, data.y)) == pytest.approx(
        float(torch.nn.functional.mse_loss(output, hot, reduction="sum")) / 2 / len(hot)
    )
