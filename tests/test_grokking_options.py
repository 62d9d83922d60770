"""Laws of the grokking job's options: each is what its paper says, and a packed trial with it is still the trial."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import assert_packed_is_solo, assert_same_curves, curves_of
from plain_grokking import fresh_block, plain_curves, plain_network
from torch.nn import functional

from jobs.grokking import digits
from jobs.grokking.job import Grokking
from jobs.grokking.losses import log_stable, replace_by_gradient, row_loss
from jobs.grokking.modular import OPERATIONS
from jobs.grokking.params import _TRANSFORMER_ONLY, GrokkingParams, GrokkingThresholds
from jobs.grokking.quadratic import QuadraticBlock
from jobs.job import Curves, Member, ParamError, identity, params_from, specs
from jobs.packed import fields, loop, optim
from orchestrator.trial import Trial

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
JOB = Grokking()


def member(seed: int = 1, **values: Any) -> Member[GrokkingParams]:
    return Member(params=GrokkingParams(**values), seed=seed)


# Every option: packed and alone, and against plain PyTorch

TOY = {
    "model": "embedding_mlp",
    "operation": "sum",
    "combine": "sum",
    "embedding": 1,
    "activation": "tanh",
    "embedding_learning_rate": 0.003,
    "decay_embedding": False,
    "embedding_scale": 0.5,
    "layers": 2,
    "width": 20,
    "weight_decay": 2.0,
}
IMAGES = {"model": "image_mlp", "operation": "digits", "data_fraction": 0.02, "width": 20, "layers": 2}
TRANSFORMER = {"model": "transformer", "width": 8, "heads": 2}
NANDA = {
    **TRANSFORMER,
    "init": "nanda",
    "vocabulary": 8,
    "loss": "cross_entropy",
    "warmup_steps": 5,
    "warmup_from_zero": True,
    "count_rounding": "down",
}
POWER = {
    **TRANSFORMER,
    "layers": 2,
    "layer_norm": True,
    "init": "torch",
    "biases": False,
    "positions": "sinusoidal",
    "sequence": "equation",
    "vocabulary": 20,
    "loss": "cross_entropy",
    "warmup_steps": 5,
    "warmup_from_zero": True,
    "label_noise": 0.0,
}
GROKFAST = {
    **TRANSFORMER,
    "operation": "multiply_nonzero",
    "layers": 2,
    "layer_norm": True,
    "norm_order": "grokfast",
    "train_level": 0.9,
    "test_level": 0.9,
    "activation": "gelu",
    "attention_biases": True,
    "init": "torch",
    "sequence": "operator",
    "vocabulary": 9,
    "loss": "cross_entropy",
    # With an L2 term, Adam lets the keys' biases, which change no output, oscillate from rounding alone.
    "optimiser": "adamw",
    "grokfast_lambda": 2.0,
    "count_rounding": "down",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "one-hot inputs": {"model": "embedding_mlp", "embedding": 0, "width": 20},
    "one-hot inputs added": {"model": "embedding_mlp", "embedding": 0, "combine": "sum", "width": 20},
    "tanh": {"model": "embedding_mlp", "embedding": 4, "activation": "tanh", "width": 20, "layers": 2},
    "toy": TOY,
    "toy with Adam": {**TOY, "optimiser": "adam", "weight_decay": 0.1, "warmup_steps": 5},
    "toy by classes": {**TOY, "loss": "cross_entropy"},
    "images": IMAGES,
    "images in minibatches": {**IMAGES, "batch_fraction": 0.5, "init_scale": 4.0, "activation": "tanh"},
    "stablemax": {"loss": "stablemax", "width": 20},
    "stablemax, many outputs": {"loss": "stablemax", "model": "embedding_mlp", "embedding": 6, "width": 20},
    "perpGrad": {"perp_grad": "layers", "width": 20},
    "perpGrad of all": {"perp_grad": "whole", "loss": "stablemax", **TRANSFORMER},
    "Grokfast": {"grokfast_lambda": 2.0, "width": 20, "weight_decay": 1.0},
    "Grokfast and perpGrad": {
        "grokfast_lambda": 1.0,
        "grokfast_alpha": 0.8,
        "perp_grad": "layers",
        "model": "embedding_mlp",
        "embedding": 3,
        "width": 20,
    },
    "half of the train set a step": {"batch_size": 512, "batch_fraction": 0.5, "warmup_steps": 4, "width": 20},
    "a smaller last batch": {"batch_size": 9, "last_batch": "smaller", "width": 20, "warmup_steps": 2},
    "a smaller last batch in autograd": {**TRANSFORMER, "batch_size": 7, "last_batch": "smaller"},
    "no biases": {"model": "embedding_mlp", "embedding": 3, "biases": False, "width": 20, "layers": 2},
    "images without biases": {**IMAGES, "biases": False, "weight_decay": 0.5},
    "small epsilon": {"epsilon": 1e-25, "width": 20},
    "loss in 64 bits": {"loss_precision": 64, "loss": "stablemax", "width": 20},
    "autograd's loss in 64 bits": {"loss_precision": 64, "loss": "cross_entropy", **TRANSFORMER},
    "squared loss in 64 bits": {"loss_precision": 64, "width": 20},
    "nanda": NANDA,
    "liu": {**TOY, "init": "liu", "loss": "cross_entropy", "class_mean": True},
    "power": POWER,
    "power, one layer": {**POWER, "layers": 1, "loss": "stablemax"},
    "power, squared": {**POWER, "loss": "squared", "class_mean": True, "batch_size": 9},
    "doshi": {"width": 20, "class_mean": True, "noise_count": "exact", "count_rounding": "down", "weight_decay": 5.0},
    "grokfast": GROKFAST,
    "grokfast, one layer": {**GROKFAST, "layers": 1},
    "PyTorch's weights": {"model": "embedding_mlp", "embedding": 3, "init": "torch", "width": 20, "layers": 2},
    "PyTorch's weights, quadratic": {"init": "torch", "width": 20, "class_mean": True, "loss": "cross_entropy"},
    "PyTorch's weights, images": {**IMAGES, "init": "torch", "activation": "gelu"},
    "prieto": {
        "model": "embedding_mlp",
        "embedding": 0,
        "biases": False,
        "init": "torch",
        "layers": 2,
        "width": 20,
        "loss": "stablemax",
        "loss_precision": 64,
        "perp_grad": "layers_rescaled",
    },
    "s5 conjugation": {"operation": "s5_conjugate", "data_fraction": 0.002, "width": 20},
}


def three(option: dict[str, Any], *, steps: int) -> list[Member[GrokkingParams]]:
    """The option, and two neighbours that differ in all that is each model's own."""
    base = {"modulus": 7, "steps": steps, "curve_points": 8, "data_fraction": 0.5, "label_noise": 0.2, **option}
    other = {
        **base,
        "learning_rate": 0.004,
        "weight_decay": 0.3,
        "label_noise": 0.0,
        "init_scale": 1.3,
        "data_fraction": min(0.9, base["data_fraction"] * 1.4),
        "steps": steps - 3,
    }
    if base.get("model") != "transformer":
        other["width"] = 37
    for name, value in {
        "grokfast_lambda": 0.5,
        "grokfast_alpha": 0.6,
        "embedding_learning_rate": 0.0,
        "embedding_scale": 2.0,
        "batch_fraction": 0.3,
    }.items():
        if name in option:
            other[name] = value
    return [member(11, **base), member(12, **other), member(13, **base)]


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_a_packed_trial_is_the_trial_with_every_option(option: dict[str, Any]) -> None:
    assert_packed_is_solo(JOB, three(option, steps=15), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_what_plain_pytorch_makes_of_its_formula(option: dict[str, Any]) -> None:
    """Against float64, within 2e-3 relative over some steps; the packed trial has other neighbours."""
    members = three(option, steps=12)
    packed = curves_of(JOB, members)
    for position, trial in enumerate(members[:2]):
        got, params = packed[position], trial.params
        truth = Curves(step=got.step, values=plain_curves(trial, got.step.tolist()))
        one = {
            "train_accuracy": 1.01 / params.train_pairs,
            "test_accuracy": 1.01 / (params.table_size - params.train_pairs),
        }
        assert_same_curves(got, truth, rtol=2e-3, atol=2e-5, atols=one, what=str(params))


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "tanh"},
        {"combine": "sum"},
        {"loss": "stablemax"},
        {"perp_grad": "layers"},
        {"perp_grad": "whole"},
        {"grokfast_lambda": 2.0},
        {"embedding_learning_rate": 0.1},
        {"decay_embedding": False},
        {"embedding_scale": 2.0},
        {"batch_fraction": 0.5},
        {"embedding": 0},
        {"operation": "squares"},
        {"epsilon": 0.01},
        {"biases": False},
        {"activation": "gelu"},
        {"init": "torch"},
        {"init": "liu"},
        {"class_mean": True},
        {"operation": "multiply_nonzero"},
        {"perp_grad": "layers_rescaled"},
        {"warmup_steps": 3, "warmup_from_zero": True},
        {"data_fraction": 0.505},
        {"data_fraction": 0.515, "count_rounding": "down"},
        {"label_noise": 0.3, "noise_count": "exact"},
    ],
    ids=str,
)
def test_every_option_changes_the_trial(change: dict[str, Any]) -> None:
    """An option that is read nowhere would pass all the laws above."""
    base = member(model="embedding_mlp", embedding=4, modulus=7, width=16, steps=20, weight_decay=1.0)
    other = Member(params=dataclasses.replace(base.params, **change), seed=base.seed)
    with pytest.raises(AssertionError):
        assert_same_curves(curves_of(JOB, [other])[0], curves_of(JOB, [base])[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"init": "nanda"},
        {"init": "torch"},
        {"vocabulary": 9},
        {"sequence": "operator"},
        {"sequence": "equation", "vocabulary": 10},
        {"positions": "sinusoidal"},
        {"attention_biases": True},
        {"norm_order": "grokfast"},
        {"activation": "gelu"},
        {"biases": False},
    ],
    ids=str,
)
def test_every_option_changes_the_transformer(change: dict[str, Any]) -> None:
    base = member(**TRANSFORMER, layer_norm=True, modulus=7, steps=20)
    other = Member(params=dataclasses.replace(base.params, **change), seed=base.seed)
    with pytest.raises(AssertionError):
        assert_same_curves(curves_of(JOB, [other])[0], curves_of(JOB, [base])[0], rtol=1e-3, atol=1e-5)


# The trials that were run before an option came stay what they were


def test_an_option_at_its_default_leaves_the_trial_its_identity() -> None:
    """The id of a trial of the first release."""
    trial = Trial(job="grokking", job_version=1, params=GrokkingParams(), replicate=0)
    assert trial.id == "8a1c9b53680e7d237179b68fad35bb8c"


ANOTHER: dict[str, Any] = {
    "batch_fraction": 0.5,
    "activation": "tanh",
    "combine": "sum",
    "embedding_scale": 2.0,
    "embedding_learning_rate": 0.1,
    "decay_embedding": False,
    "perp_grad": "whole",
    "grokfast_lambda": 1.0,
    "grokfast_alpha": 0.5,
    "progress": "basic",
    "archive": "somewhere",
    "epsilon": 1e-25,
    "loss_precision": 64,
    "biases": False,
    "complexity_radius": 1.0,
    "complexity_directions": 3,
    "complexity_points": 7,
    "init": "torch",
    "class_mean": True,
    "count_rounding": "down",
    "noise_count": "exact",
    "warmup_from_zero": True,
    "last_batch": "smaller",
    "sequence": "operator",
    "vocabulary": 200,
    "positions": "sinusoidal",
    "attention_biases": True,
    "norm_order": "grokfast",
    "train_level": 0.9,
    "test_level": 0.9,
    "matmul_precision": "tf32",
    "curve_until": 100,
}
TRANSFORMERS_OWN = {"model": "transformer", "layer_norm": True}
"""What the options that only a transformer has are set beside."""


def test_an_option_that_is_set_is_part_of_the_identity() -> None:
    added = {name for name, spec in specs(GrokkingParams).items() if spec.added}
    assert added == set(ANOTHER)
    plain = Trial(job="grokking", job_version=1, params=GrokkingParams(), replicate=0)
    ids = {plain.id}
    for name, value in ANOTHER.items():
        others = TRANSFORMERS_OWN if name in _TRANSFORMER_ONLY else {}
        params = GrokkingParams(**{name: value}, **others)
        assert identity(params) == identity(GrokkingParams(**others)) | {name: value}
        ids.add(Trial(job="grokking", job_version=1, params=params, replicate=0).id)
    assert len(ids) == len(ANOTHER) + 1


# StableMax


@given(x=st.floats(-1e4, 1e4))
def test_the_logarithm_is_that_of_stablemax_and_so_is_its_derivative(x: float) -> None:
    value = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    log_stable(value).backward()
    stable, slope = (x + 1, 1.0) if x >= 0 else (1 / (1 - x), 1 / (1 - x) ** 2)
    assert log_stable(value).item() == pytest.approx(math.log(stable), rel=1e-9, abs=1e-12)
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(slope / stable, rel=1e-9)


@pytest.mark.parametrize("margin", [10.0, 30.0])
def test_stablemax_keeps_a_gradient_where_cross_entropy_has_none_left(margin: float) -> None:
    """float32 cross-entropy is exactly 0 once the margin passes ln(2^24 (p - 1)) (Prieto et al. 2025)."""
    p = 113
    outputs = torch.zeros(1, p, 1)
    outputs[0, 3, 0] = margin
    label = torch.tensor([[3]])
    passed = margin > math.log(2**24 * (p - 1))
    assert (row_loss("cross_entropy", outputs, label).item() == 0.0) == passed
    assert row_loss("stablemax", outputs, label).item() > 0.1


@pytest.mark.parametrize("precision", [32, 64])
@pytest.mark.parametrize("model", ["quadratic_mlp", "embedding_mlp"])
def test_stablemax_needs_64_bits_once_its_outputs_are_large(model: str, precision: int) -> None:
    """With outputs of +-1e6 the wrong answers' probability, 1e-12 each, is below what float32 tells from 1."""
    trial = member(modulus=13, width=8, model=model, embedding=4, loss="stablemax", loss_precision=precision)
    block = fresh_block([trial])
    label = torch.zeros(1, block.batches.width, dtype=torch.int64)
    outputs = torch.full((1, 13, block.batches.width), -1e6)
    outputs[:, 0] = 1e6
    lost = precision == 32
    assert bool((block.losses(outputs, label) == 0).all()) == lost
    outputs.requires_grad_(True)
    (slope,) = torch.autograd.grad(block.losses(outputs, label).sum(), outputs)
    assert bool((slope[:, 0] == 0).all()) == lost
    if isinstance(block, QuadraticBlock):
        by_hand = torch.zeros(1, block._w2.shape[1], block.batches.width)
        by_hand[:, :13] = outputs.detach()
        block._loss_gradient(by_hand, label, block.batches.weights)
        torch.testing.assert_close(by_hand[:, :13], slope * block.batches.weights[:, None], rtol=1e-3, atol=0.0)


# perpGrad


@pytest.mark.parametrize("perp_grad", ["none", "layers", "whole"])
def test_a_filtered_gradient_has_no_part_along_the_weights(perp_grad: str) -> None:
    trial = member(model="embedding_mlp", embedding=4, modulus=7, width=12, perp_grad=perp_grad, init_scale=2.0)
    block = fresh_block([trial, member(2, **{**dataclasses.asdict(trial.params), "width": 20})])
    seen: list[torch.Tensor] = []
    parameters, optimiser = block.parameters, block.optimiser
    for _ in range(5):
        before = [view.clone() for view in parameters.views()]
        block.advance(0, 1)
        # What reached the moments: m = beta1 m + (1 - beta1) g, so one step's difference gives g.
        first = optimiser.first.views()  # type: ignore[attr-defined]
        old = seen or [torch.zeros_like(view) for view in first]
        gradient = [(new - 0.9 * last) / 0.1 for new, last in zip(first, old, strict=True)]
        seen = [view.clone() for view in first]
        dots = torch.stack([(w * g).flatten(1).sum(1) for w, g in zip(before, gradient, strict=True)])
        sizes = torch.stack(
            [w.flatten(1).norm(dim=1) * g.flatten(1).norm(dim=1) for w, g in zip(before, gradient, strict=True)]
        )
        cosine = dots.sum(0) / sizes.sum(0) if perp_grad == "whole" else dots / sizes.clamp(min=1e-12)
        if perp_grad == "none":
            assert float(cosine.abs().max()) > 1e-2
        else:
            assert float(cosine.abs().max()) < 1e-4


# Batches and warm-up as Power has them


@given(fraction=st.floats(0.05, 0.95), modulus=st.integers(3, 97))
def test_power_s_batch_is_512_or_half_of_the_train_set(fraction: float, modulus: int) -> None:
    params = GrokkingParams(modulus=modulus, data_fraction=fraction, batch_size=512, batch_fraction=0.5)
    assert params.batch == min(512, math.ceil(params.train_pairs / 2))


# Images


def test_the_digits_are_split_by_the_seed_and_no_image_is_on_both_sides() -> None:
    block = fresh_block([member(seed, **IMAGES) for seed in (1, 2)])
    pairs, count = block.pairs, member(**IMAGES).params.train_pairs
    assert pairs.images_PD is not None and pairs.images_PD.shape == (1797, 64)
    assert sorted(pairs.order_MP[0].tolist()) == list(range(1797))
    assert pairs.order_MP[0].tolist() != pairs.order_MP[1].tolist()
    assert int(block._trained.sum(1)[0]) == count
    assert not bool((block._trained & block._tested).any())
    assert bool((block._trained | block._tested).all())


def write_idx(path: Path, array: np.ndarray) -> None:
    """The published format: two zeros, 8 for bytes, the number of dimensions, their sizes, the bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST's four files with 50 training images, all of brightness 51, and 30 test images of 255."""
    monkeypatch.setitem(digits.SOURCES, "mnist", digits.ImageSet(inputs=784, train=50, test=30))
    for part, count, value in (("train", 50, 51), ("t10k", 30, 255)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", np.full((count, 28, 28), value))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    digits.load.cache_clear()
    yield tmp_path
    digits.load.cache_clear()


def test_mnist_is_tested_on_its_own_test_set_and_trained_on_nothing_of_it(small_mnist: Path) -> None:
    values = {**IMAGES, "operation": "mnist", "archive": str(small_mnist), "label_noise": 0.3}
    block = fresh_block([member(1, **{**values, "data_fraction": 0.2}), member(2, **{**values, "data_fraction": 0.6})])
    assert block._fixed is not None
    assert int(block._fixed[0].max()) < 50
    x, _, label, trained, tested = next(block.examples())
    assert trained.sum(1).tolist() == [10, 30]
    assert tested.sum(1).tolist() == [30, 30]
    assert bool((x[tested] >= 50).all()) and bool((x[trained] < 50).all())
    assert block.pairs.images_PD is not None
    assert set(block.pairs.images_PD[x[tested]].flatten().tolist()) == {1.0}
    assert torch.allclose(block.pairs.images_PD[x[trained]], torch.tensor(0.2))
    assert torch.equal(label[tested].view(2, 30)[0], torch.arange(30) % 10), "test labels are never noisy"


@pytest.mark.usefixtures("double_precision")
def test_a_packed_trial_on_mnist_is_the_trial(small_mnist: Path) -> None:
    values = {**IMAGES, "operation": "mnist", "archive": str(small_mnist), "steps": 6, "curve_points": 4}
    members = [member(s, **{**values, "data_fraction": f}) for s, f in ((1, 0.3), (2, 0.7), (3, 0.5))]
    assert_packed_is_solo(JOB, members, rtol=1e-7, atol=1e-10)


def test_without_scikit_learn_the_digits_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    digits.load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ParamError, match=r"pip install scikit-learn.*mnist"):
        list(JOB.train([member(**IMAGES, steps=1)], device="cpu"))


# What is refused


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"operation": "digits"}, "model"),
        ({"model": "image_mlp"}, "operation"),
        ({"progress": "fourier", "operation": "divide"}, "progress"),
        ({"progress": "fourier", "operation": "s5"}, "progress"),
        ({"optimiser": "sgd", "perp_grad": "layers"}, "optimiser"),
        ({"optimiser": "sgd", "grokfast_lambda": 1.0}, "optimiser"),
        ({"optimiser": "sgd", "embedding_learning_rate": 0.1}, "optimiser"),
        ({"optimiser": "sgd", "decay_embedding": False}, "optimiser"),
        ({"optimiser": "sgd", "epsilon": 1e-4}, "optimiser"),
        ({"perp_grad": "some"}, "perp_grad"),
        ({"loss_precision": 16}, "loss_precision"),
        ({"batch_fraction": 0.0}, "batch_fraction"),
        ({"optimiser": "sgd", "warmup_from_zero": True}, "optimiser"),
        ({"init": "nanda"}, "init"),
        ({"init": "liu"}, "init"),
        ({"init": "liu", "model": "embedding_mlp", "embedding": 0}, "init"),
        ({"init": "liu", "model": "transformer"}, "init"),
        ({"sequence": "operator"}, "model"),
        ({"positions": "sinusoidal", "model": "embedding_mlp"}, "model"),
        ({"model": "transformer", "vocabulary": 97}, "vocabulary"),
        ({"model": "transformer", "vocabulary": 98, "sequence": "operator"}, "vocabulary"),
        ({"model": "transformer", "vocabulary": 150, "operation": "sum"}, "vocabulary"),
        ({"model": "transformer", "norm_order": "grokfast"}, "norm_order"),
        ({"model": "transformer", "sequence": "equation"}, "sequence"),
        ({"model": "transformer", "sequence": "equation", "vocabulary": 200, "operation": "sum"}, "sequence"),
        ({"model": "transformer", "sequence": "equation", "vocabulary": 200, "label_noise": 0.1}, "label_noise"),
        ({"model": "transformer", "sequence": "equation", "vocabulary": 200, "progress": "fourier"}, "progress"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ParamError) as caught:
        params_from(GrokkingParams, values)
    assert caught.value.name == field


@given(
    operation=st.sampled_from(OPERATIONS),
    model=st.sampled_from(("quadratic_mlp", "embedding_mlp", "transformer")),
    combine=st.sampled_from(("sum", "concatenate")),
    embedding=st.sampled_from((0, 1, 5)),
    loss=st.sampled_from(("squared", "cross_entropy", "stablemax")),
)
def test_the_counted_parameters_are_those_of_the_block(**values: Any) -> None:
    """With 16 times as many outputs none are padding; transformers have layer norms apart."""
    from jobs.grokking import cost as modular_cost

    params = GrokkingParams(**values, modulus=11, width=16, data_fraction=0.05)
    held = sum(math.prod(shape) for shape in fresh_block([Member(params=params, seed=1)]).parameters.shapes)
    padding = modular_cost.padded_outputs(params.outputs) / params.outputs
    counted = modular_cost.parameters(params, 16)
    assert counted <= held * 1.05 <= counted * padding * 1.1


@given(
    model=st.sampled_from(("quadratic_mlp", "embedding_mlp", "image_mlp", "transformer")),
    combine=st.sampled_from(("sum", "concatenate")),
    embedding=st.sampled_from((0, 5)),
    layers=st.integers(1, 3),
    layer_norm=st.booleans(),
    biases=st.booleans(),
    width=st.sampled_from((4, 12, 20)),
)
@settings(max_examples=30)
def test_the_observed_parameters_are_those_that_plain_pytorch_trains(model: str, **values: Any) -> None:
    data = {"operation": "digits"} if model == "image_mlp" else {"modulus": 7}
    params = GrokkingParams(**values, **data, model=model, data_fraction=0.3, optimiser="sgd")
    network = plain_network(
        params, [view[0] for view in fresh_block([Member(params=params, seed=1)]).parameters.views()]
    )
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    row = Curves(step=np.ones(1, dtype=np.int64), values={name: np.zeros(1) for name in params.metrics})
    seen = JOB.observe(params, row, GrokkingThresholds())
    assert seen["parameters"] == trained
    assert seen["parameters_per_label"] == trained / (params.train_pairs * params.outputs)


@pytest.mark.parametrize("loss", specs(GrokkingParams)["loss"].choices)
def test_the_gradient_of_a_loss_is_the_derivative_of_its_value(loss: str) -> None:
    outputs = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.tensor([[0, 4, 2], [3, 3, 1]])
    (expected,) = torch.autograd.grad(row_loss(loss, outputs, label).sum(), outputs)
    gradient = outputs.detach().clone()
    replace_by_gradient(loss, gradient, label, torch.full((2, 1, 3), -1.0, dtype=torch.float64))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_an_unknown_loss_is_refused() -> None:
    outputs, label = torch.zeros(1, 2, 1), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        row_loss("hinge", outputs, label)
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        replace_by_gradient("hinge", outputs, label, -torch.ones(1, 1, 1))


# Numbers below the smallest normal one


def with_gradients_scaled(by: float, **values: Any) -> Curves:
    """Curves of a trial of which Adam sees every gradient times `by`."""
    update = optim.Adam.update

    def scaled(self: optim.Adam) -> None:
        self.gradient.flat.mul_(by)
        update(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim.Adam, "update", scaled)
        return curves_of(JOB, [member(optimiser="adam", steps=60, modulus=7, width=16, **values)])[0]


def test_with_a_small_epsilon_the_size_of_the_gradient_does_not_matter_to_adam() -> None:
    """Second moments below 1.2e-38 are in its denominator, also on a CPU; as zeros, the training would blow up."""
    plain, tiny = (with_gradients_scaled(by, epsilon=1e-30) for by in (1.0, 1e-15))
    np.testing.assert_allclose(tiny.values["weight_norm"], plain.values["weight_norm"], rtol=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "stablemax"])
def test_in_float32_the_loss_of_confident_networks_is_as_small_as_pytorchs(loss: str) -> None:
    """Exponentials that are added to a 1 one by one are lost: loss and gradient were 0 at a loss of 3e-7."""
    models, outputs, batch = 2, 114, 500
    random = torch.Generator().manual_seed(0)
    scores = 1.5 * torch.randn(models, outputs, batch, generator=random)
    label = torch.zeros(models, batch, dtype=torch.int64)
    scores[:, 0] = scores[:, 1:].max(1).values + 17
    if loss == "stablemax":  # outputs whose log s are these scores
        scores = scores.sign() * torch.expm1(scores.abs())
    exact_of = log_stable(scores.double()) if loss == "stablemax" else scores.double()
    exact = -torch.log_softmax(exact_of, 1)[:, 0]
    assert 2e-7 < exact.mean() < 5e-7
    theirs = functional.cross_entropy(exact_of.float().transpose(1, 2).flatten(0, 1), label.flatten())
    given = scores.clone().requires_grad_(True)
    found = row_loss(loss, given, label)
    assert abs(found.mean() / exact.mean() - 1) < 0.25 and abs(theirs / exact.mean() - 1) < 0.25
    (by_autograd,) = torch.autograd.grad(found.sum(), given)
    written_out = scores.clone()
    replace_by_gradient(loss, written_out, label, torch.full((models, 1, batch), -1.0))
    slope = 1 / (1 + scores[:, 0].abs()) if loss == "stablemax" else torch.ones(models, batch)
    for gradient in (by_autograd, written_out):
        assert abs((gradient[:, 0] / slope).mean() / -exact.mean() - 1) < 0.25


@pytest.mark.parametrize("by", [1.0, 1e-10, 1e-15, 1e-18, 1e-20, 1e-23])
def test_where_small_numbers_are_treated_as_zero_no_step_changes(by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fields.hides_denormals("adam", 1e-11)
    flushed = with_gradients_scaled(by, epsilon=1e-11)
    monkeypatch.setattr(loop, "flushed_denormals", contextlib.nullcontext)
    exact = with_gradients_scaled(by, epsilon=1e-11)
    for name in exact.values:
        np.testing.assert_allclose(flushed.values[name], exact.values[name], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("options", "doubtful"),
    [({"biases": False}, True), ({"activation": "tanh"}, True), ({}, False), ({"model": "embedding_mlp"}, False)],
)
def test_transformers_whose_options_an_earlier_version_ignored_are_doubtful(
    options: dict[str, Any], doubtful: bool
) -> None:
    params = GrokkingParams(**{"model": "transformer", "activation": "relu", **options})
    assert ("trained their transformers with biases and relu" in Grokking().doubt(params, {})) is doubtful
    assert Grokking().doubt(params, {"blow_up_step": 3.0}) == ""
