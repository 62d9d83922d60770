"""Convolutional networks: packed as alone, equal to PyTorch's own modules, and trained on files of CIFAR's format."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.double_descent import networks
from jobs.double_descent.convolution import (
    Applier,
    Running,
    by_layer,
    initialise,
    make_network,
    shapes,
)
from jobs.double_descent.image_block import CROP_PADDING
from jobs.double_descent.image_job import ImageDoubleDescent
from jobs.double_descent.image_pack import _block, _images
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.params import DoubleDescentThresholds
from jobs.job import Curves, Member, ParamError
from jobs.packed.optim import FlatParameters
from tests.image_files import write_cifar
from tests.packing import assert_packed_is_solo, curves_of

JOB = ImageDoubleDescent()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_cifar(tmp_path_factory.mktemp("cifar") / "small.tar.gz", train=40, test=40))


def params(archive: str, **changed: Any) -> ImageParams:
    given: dict[str, Any] = {
        "data": "cifar10",
        "archive": archive,
        "model": "cnn5",
        "pool": 200,
        "test_count": 40,
        "batch_size": 16,
        "steps": 6,
        "curve_points": 4,
        "learning_rate": 1e-3,
    }
    return ImageParams(**{**given, **changed})


def test_the_alignment_that_a_gpu_needs_changes_no_curve(archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = [Member(params=params(archive, width=w, optimiser="adam"), seed=w) for w in (2, 3)]
    plain = curves_of(JOB, pack)
    monkeypatch.setattr("jobs.double_descent.convolution.alignment", lambda device: 4)
    monkeypatch.setattr("jobs.double_descent.image_block.alignment", lambda device: 4)
    for position, curves in curves_of(JOB, pack).items():
        np.testing.assert_allclose(curves.values["train_loss"], plain[position].values["train_loss"], rtol=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("model", ["cnn5", "preact_resnet18"])
def test_a_packed_trial_is_the_trial(archive: str, model: str, optimiser: str) -> None:
    rate = {"sgd": 0.05, "adam": 1e-3}[optimiser]
    small: dict[str, Any] = {"pool": 60, "test_count": 20, "batch_size": 8, "steps": 4, "curve_points": 3}
    common: dict[str, Any] = {"model": model, "optimiser": optimiser, "rate_every": 2, **small}
    members = [
        Member(params=params(archive, width=1, learning_rate=rate, **common), seed=3),
        Member(params=params(archive, width=2, learning_rate=rate / 2, label_noise=0.2, **common), seed=4),
        Member(params=params(archive, width=3, learning_rate=rate, sample_count=30, **common), seed=5),
        Member(params=params(archive, width=6, weight_decay=0.01, **{**common, "learning_rate": rate}), seed=6),
    ]
    assert_packed_is_solo(JOB, members, rtol=2e-3, atol=2e-3)


def test_a_packed_one_dimensional_network_is_the_network() -> None:
    common: dict[str, Any] = {
        "data": "mnist1d",
        "model": "cnn_1d",
        "augment": False,
        "optimiser": "sgd",
        "momentum": 0.9,
        "learning_rate": 0.01,
        "batch_size": 100,
        "curve_points": 4,
        "pool": 1000,
        "test_count": 300,
    }
    members = [
        Member(params=ImageParams(width=width, label_noise=noise, data_seed=data, steps=steps, **common), seed=seed)
        for width, noise, seed, data, steps in (
            (2, 0.0, 1, 0, 20),
            (9, 0.15, 2, -1, 20),
            (24, 0.15, 3, 0, 10),
            (4, 0.0, 3, -1, 20),
        )
    ]
    packed = assert_packed_is_solo(JOB, members, rtol=2e-3, atol=2e-4)
    published = Member(params=dataclasses.replace(members[3].params, data_seed=0), seed=3)
    (other,) = curves_of(JOB, [published]).values()
    assert not np.allclose(packed.curves[3].values["test_loss"], other.values["test_loss"], rtol=2e-3)


def test_images_from_files_have_no_data_seed(archive: str) -> None:
    with pytest.raises(ParamError, match="data_seed: is for data: mnist1d"):
        params(archive, data_seed=-1)


# --- against PyTorch's own modules ---


class _PreAct(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(into)
        self.shortcut = nn.Conv2d(into, out, 1, stride, bias=False) if stride != 1 or into != out else None
        self.first = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.first_norm(x).relu()
        beside = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.second(self.second_norm(self.first(active)).relu()) + beside
        return out


def modules(model: str, k: int) -> nn.Module:
    """The same network made of PyTorch's modules, whose parameters come in the same order."""
    if model == "cnn5":
        layers: list[nn.Module] = []
        into = 3
        for out, pool in ((k, 1), (2 * k, 2), (4 * k, 2), (8 * k, 8)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(pool)]
            into = out
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * k, 10))
    blocks: list[nn.Module] = []
    into = k
    for out, stride in ((k, 1), (k, 1), (2 * k, 2), (2 * k, 1), (4 * k, 2), (4 * k, 1), (8 * k, 2), (8 * k, 1)):
        blocks.append(_PreAct(into, out, stride))
        into = out
    return nn.Sequential(
        nn.Conv2d(3, k, 3, padding=1, bias=False), *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8 * k, 10)
    )


@pytest.mark.parametrize("model", ["cnn5", "preact_resnet18"])
def test_a_padded_network_computes_what_pytorch_computes(model: str) -> None:
    """Outputs, gradients and running statistics of each of three models, in training and in evaluation."""
    widths, padded = [1, 3, 4], 4
    network = make_network(model, inputs=3, outputs=10)
    parameters = FlatParameters(shapes(network, padded), len(widths), "cpu")
    initialise(network, parameters, widths, [7, 8, 9], torch.ones(len(widths)))
    running = Running(network, padded, len(widths), "cpu")
    # In float64, so that no rounding moves the largest of a pool.
    parameters.flat = parameters.flat.double()
    for state in (running._means, running._variances):
        state.flat = state.flat.double()
    x_MBCHW = torch.randn(len(widths), 5, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x_MBCHW.transpose(0, 1).flatten(1, 2)
    flat = parameters.flat.requires_grad_(True)

    def outputs(training: bool) -> Tensor:
        apply = Applier(network.layers, by_layer(network, parameters.views()), running.pairs(), training=training)
        return network.forward(apply, x)

    trained = outputs(True)
    (gradient,) = torch.autograd.grad(trained.square().sum(), flat)
    gradients = FlatParameters(parameters.shapes, len(widths), "cpu")
    gradients.flat = gradient
    evaluated = outputs(False).detach()
    for m, width in enumerate(widths):
        alone = modules(model, width).double()
        own = list(alone.parameters())
        assert sum(p.numel() for p in own) == networks.parameters(network.layers, width)
        for parameter, view in zip(own, _in_module_order(parameters, network, m, model), strict=True):
            with torch.no_grad():
                parameter.copy_(_cut(view.detach(), parameter))
        result = alone(x_MBCHW[m])
        torch.testing.assert_close(trained[m].detach(), result.detach(), rtol=1e-8, atol=1e-10)
        result.square().sum().backward()
        for parameter, view in zip(own, _in_module_order(gradients, network, m, model), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(_cut(view, parameter), parameter.grad, rtol=1e-8, atol=1e-9)
            outside = view.clone()
            _cut(outside, parameter).zero_()
            assert not outside.any(), "a padded entry must have no gradient"
        torch.testing.assert_close(evaluated[m], alone.eval()(x_MBCHW[m]).detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("model", ["cnn5", "preact_resnet18"])
def test_a_training_is_that_of_pytorchs_modules(archive: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same initial weights, on the same batches and crops, in float64: weights and final measurements."""
    steps, width = 12, 2
    p = params(archive, model=model, width=width, optimiser="adam", learning_rate=3e-3, label_noise=0.2, steps=steps)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        block = _block([Member(params=p, seed=seed) for seed in (1, 2)], _images(p, "cpu"))
        single = block._normal
        monkeypatch.setattr(block, "_normal", lambda x: single(x).double())
        alone = [modules(model, width) for _ in range(2)]
        with torch.no_grad():
            for m, network in enumerate(alone):
                views = _in_module_order(block._parameters, block._network, m, model)
                for parameter, view in zip(network.parameters(), views, strict=True):
                    parameter.copy_(_cut(view, parameter))
        optimisers = [torch.optim.Adam(network.parameters(), lr=3e-3) for network in alone]
        for step in range(steps):
            rows = block._own(block.batches.draw(step, 1)[0])
            x, y = block._images(rows, step).unflatten(1, (2, 3)), block.data.y_MN.gather(1, rows)
            for m, (network, optimiser) in enumerate(zip(alone, optimisers, strict=True)):
                optimiser.zero_grad()
                functional.cross_entropy(network(x[:, m]), y[m]).backward()
                optimiser.step()
            block.advance(step, 1)
        measured = block.measure()
        every = block._own(torch.arange(p.used).expand(2, -1))
        for m, network in enumerate(alone):
            views = _in_module_order(block._parameters, block._network, m, model)
            for parameter, view in zip(network.parameters(), views, strict=True):
                torch.testing.assert_close(_cut(view, parameter), parameter.detach(), rtol=1e-6, atol=1e-8)
            network.eval()
            with torch.no_grad():
                train = network(block._normal(block.data.x_NCHW[every[m]]))
                test = network(block._normal(block.data.x_TCHW))
            own = functional.cross_entropy(train, block.data.y_MN[m][every[m]])
            torch.testing.assert_close(measured["train_loss"][m], own, rtol=1e-5, atol=0.0)
            wrong = (test.argmax(1) != block.data.y_T).double().mean()
            assert measured["test_error"][m] == wrong
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("model", ["cnn5", "preact_resnet18", "cnn_1d"])
def test_the_observed_parameters_are_those_of_pytorchs_network(model: str) -> None:
    if model == "cnn_1d":
        p = ImageParams(data="mnist1d", model=model, augment=False, width=7, pool=500)
        layers = [nn.Conv1d(1, 7, 5), nn.Conv1d(7, 7, 3), nn.Conv1d(7, 7, 3), nn.Linear(5 * 7, 10)]
        network: nn.Module = nn.Sequential(*layers)
    else:
        p, network = ImageParams(model=model, width=7, pool=500), modules(model, 7)
    row = Curves(step=np.ones(1, dtype=np.int64), values={name: np.zeros(1) for name in JOB.metrics})
    seen = JOB.observe(p, row, DoubleDescentThresholds())
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert seen["parameters"] == trained
    assert seen["parameters_per_label"] == trained / 5000


def _in_module_order(parameters: FlatParameters, network: Any, model: int, kind: str) -> list[Tensor]:
    """A model's layers in the order in which PyTorch's module lists its own (a block's norm, shortcut, ...)."""
    del kind
    return [weight[model] for layer in by_layer(network, parameters.views()) for weight in layer]


def _cut(view: Tensor, like: Tensor) -> Tensor:
    """The part of a padded tensor that is a model's own, in the shape of `like`."""
    if view.dim() == 3:  # the readout: (O, C, taps)
        return view[:, : like.shape[1], 0]
    if view.dim() == 2 and like.dim() == 1:  # its bias: (1, O)
        return view[0]
    return view[tuple(slice(size) for size in like.shape)]


def test_multiply_adds_are_those_of_pytorch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for model in ("cnn5", "preact_resnet18"):
        for k in (2, 5):
            with FlopCounterMode(display=False) as counter:
                modules(model, k)(torch.zeros(1, 3, 32, 32).expand(2, -1, -1, -1))
            counted = counter.get_total_flops() / 2 / 2
            assert networks.multiply_adds(networks.TABLES[model](3, 10), k, (32, 32)) == counted


# --- augmentation, labels, learning ---


def test_an_augmented_image_is_a_crop_of_the_padded_image_flipped_or_not(archive: str) -> None:
    p = params(archive, width=1)
    block = _block([Member(params=p, seed=1), Member(params=p, seed=2)], _images(p, "cpu"))
    rows = torch.arange(12).expand(2, -1)
    drawn = block._images(rows, step=5).view(12, 2, 3, 32, 32)
    plain = functional.pad(block.data.x_NCHW, (CROP_PADDING,) * 4)
    seen = set()
    for m in range(2):
        for b in range(12):
            found = [
                (down, right, flip)
                for down in range(9)
                for right in range(9)
                for flip in (False, True)
                if torch.equal(_normal(block, _crop(plain[b], down, right, flip)), drawn[b, m])
            ]
            assert len(found) == 1
            seen.add(found[0])
    assert len(seen) > 12, "crops must differ between images and models"
    assert {flip for _, _, flip in seen} == {False, True}
    again = block._images(rows, step=5).view(12, 2, 3, 32, 32)
    assert torch.equal(again, drawn)
    assert not torch.equal(block._images(rows, step=6).view(12, 2, 3, 32, 32), drawn)
    assert torch.equal(
        block._images(rows, None).view(12, 2, 3, 32, 32)[:, 0], _normal(block, block.data.x_NCHW[:12])
    ), "measured images are not augmented"


def _crop(padded: Tensor, down: int, right: int, flip: bool) -> Tensor:
    crop = padded[:, down : down + 32, right : right + 32]
    return crop.flip(2) if flip else crop


def _normal(block: Any, x: Tensor) -> Tensor:
    normal: Tensor = block._normal(x)
    return normal


@pytest.mark.parametrize(("convention", "rate"), [("incorrect", 0.4), ("redrawn", 0.36)])
def test_labels_are_noisy_at_the_stated_rate_and_stay_put(archive: str, convention: str, rate: float) -> None:
    p = params(archive, width=1, label_noise=0.4, noise_convention=convention)
    images = _images(p, "cpu")
    members = [Member(params=p, seed=seed) for seed in range(40)]
    noisy = _block(members, images).data.y_MN
    wrong = (noisy != images.y_MN).float().mean()
    assert abs(float(wrong) - rate) < 4 * (rate * (1 - rate) / noisy.numel()) ** 0.5
    assert torch.equal(_block(members[:1], images).data.y_MN[0], noisy[0])


def test_the_learning_rate_falls_as_the_inverse_square_root(archive: str) -> None:
    """Where the gradient hardly changes, the way from the start after n steps is the sum of the rates."""
    import math

    p = params(archive, width=2, optimiser="sgd", learning_rate=1e-6, rate_every=3, augment=False, sample_count=16)
    block = _block([Member(params=p, seed=1)], _images(p, "cpu"))
    start = block._parameters.flat.clone()
    moved = []
    for step in range(12):
        block.advance(step, 1)
        moved.append(float((block._parameters.flat - start).double().norm()))
    rates = np.cumsum([1 / math.sqrt(1 + step // 3) for step in range(12)])
    np.testing.assert_allclose(np.array(moved) / moved[0], rates, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn5", "preact_resnet18"])
def test_a_network_learns_the_pictures(archive: str, model: str) -> None:
    p = params(archive, model=model, width=4, steps=60, optimiser="adam", learning_rate=3e-3, augment=False)
    curve = curves_of(JOB, [Member(params=p, seed=1)])[0]
    assert curve.values["train_error"][-1] < 0.1
    assert curve.values["test_error"][-1] < 0.5 < curve.values["test_error"][0]


def test_what_the_archive_does_not_hold_is_an_error(archive: str) -> None:
    with pytest.raises(ParamError, match="at most 200"):
        curves_of(JOB, [Member(params=params(archive, pool=201), seed=1)])


def test_a_model_that_does_not_fit_the_data_is_an_error() -> None:
    with pytest.raises(ParamError, match="does not fit data: mnist1d"):
        ImageParams(data="mnist1d", model="cnn5", augment=False)


def test_the_published_pool_needs_no_archive_to_be_planned() -> None:
    p = ImageParams(data="cifar100", model="preact_resnet18", width=10, epochs=4000)
    assert (p.used, p.horizon, p.classes) == (50_000, 391 * 4000, 100)
    assert JOB.cost(p, extent=(10,), models=2).matmul_flop == 2 * JOB.cost(p, extent=(10,), models=1).matmul_flop
