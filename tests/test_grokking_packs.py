"""Laws of a grokking pack: a packed trial is the trial, and the trial is what plain PyTorch makes of it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import assert_packed_is_solo, assert_same_curves, course_of, curves_of
from plain_grokking import fresh_block, plain_curves

from jobs.grokking.job import Grokking
from jobs.grokking.modular import operation_pairs
from jobs.grokking.params import MODELS, GrokkingParams
from jobs.job import Curves, Member

JOB = Grokking()
OPERATIONS = ("add", "subtract", "multiply", "divide", "polynomial")
SEEDS = st.integers(0, 2**64 - 1)


def member(seed: int = 1, **values: Any) -> Member[GrokkingParams]:
    return Member(params=GrokkingParams(**values), seed=seed)


def accuracy_steps(members: Sequence[Member[GrokkingParams]]) -> dict[str, float]:
    """Tolerance of the accuracies: one pair, that two outputs equal up to rounding may tip."""
    train = min(m.params.train_pairs for m in members)
    test = min(len(operation_pairs(m.params.operation, m.params.modulus)[0]) - m.params.train_pairs for m in members)
    return {"train_accuracy": 1.01 / train, "test_accuracy": 1.01 / test}


# A packed trial is the trial


@st.composite
def packs(draw: st.DrawFn) -> list[Member[GrokkingParams]]:
    """Trials of one pack: what they must share is drawn once, all else for each."""
    model = draw(st.sampled_from(MODELS))
    operation, p = draw(st.sampled_from(OPERATIONS)), draw(st.integers(5, 13))
    optimiser = draw(st.sampled_from(("adamw", "adam", "sgd")))
    heads = draw(st.sampled_from((1, 2, 4)))
    shared = {
        "model": model,
        "operation": operation,
        "modulus": p,
        "optimiser": optimiser,
        "loss": draw(st.sampled_from(("squared", "cross_entropy"))),
        "layers": draw(st.integers(1, 2)),
        "layer_norm": draw(st.booleans()),
        "heads": heads,
        "embedding": draw(st.sampled_from((3, 8))),
        "momentum": draw(st.sampled_from((0.0, 0.9))) if optimiser == "sgd" else 0.0,
        "warmup_steps": draw(st.sampled_from((0, 1, 5, 40))),
        # Less than any of the training sets below, so that all are minibatches.
        "batch_size": draw(st.sampled_from((0, 1, 3))),
        "noise_convention": draw(st.sampled_from(("redrawn", "incorrect"))),
        "stop_accuracy": draw(st.sampled_from((0.0, 0.3))),
        "train_level": draw(st.sampled_from((0.0, 0.3))),
        "test_level": draw(st.sampled_from((0.0, 0.2))),
    }
    # Fewer units make ties among the outputs, and signs of layer norms, whose gradients are rounding alone.
    transformer_width = draw(st.sampled_from((8, 12, 16)))
    rate = 0.05 if optimiser == "sgd" else 0.01
    members = []
    for _ in range(draw(st.integers(2, 5))):
        members.append(
            member(
                draw(SEEDS),
                **shared,
                width=transformer_width if model == "transformer" else draw(st.integers(3, 40)),
                data_fraction=draw(st.floats(0.3, 0.8)),
                label_noise=draw(st.sampled_from((0.0, 0.2, 1.0))),
                init_scale=draw(st.sampled_from((0.5, 1.0, 1.5))),
                learning_rate=rate * draw(st.floats(0.1, 1.0)),
                weight_decay=draw(st.sampled_from((0.0, 1e-3, 1.0))),
                steps=draw(st.integers(1, 30)),
                curve_points=draw(st.integers(2, 12)),
            )
        )
    return members


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Everything is computed in float64: the same code, without the rounding that training amplifies."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(members=packs())
def test_a_packed_trial_is_the_trial(members: list[Member[GrokkingParams]]) -> None:
    """Within 1e-7 relative, in float64. Packs in float32 are held to plain PyTorch below."""
    assert_packed_is_solo(JOB, members, rtol=1e-7, atol=1e-10)


def test_a_member_of_many_blocks_is_the_trial() -> None:
    """More models than one block holds: cut in the order of their widths, reported under their own positions."""
    values = {"modulus": 7, "steps": 12, "curve_points": 6, "learning_rate": 0.01}
    members = [
        member(seed, width=1 + 37 * seed % 64, data_fraction=0.3 + 0.001 * (seed % 400), **values)
        for seed in range(300)
    ]
    packed = course_of(JOB, members)
    assert packed.reports > len(curves_of(JOB, members[:1])[0].step), "the members fit one block: test nothing"
    for position in (0, 1, 77, 150, 298, 299):
        alone = curves_of(JOB, [members[position]])[0]
        near = accuracy_steps([members[position]])
        assert_same_curves(packed.curves[position], alone, rtol=1e-3, atol=1e-5, atols=near)


@pytest.mark.parametrize("model", MODELS)
def test_the_tolerance_tells_trials_apart(model: str) -> None:
    """Another seed, or a little more of one hyper-parameter, is further away than a neighbour's rounding may be."""
    trial = member(
        model=model, modulus=7, width=8, steps=20, weight_decay=0.5, data_fraction=0.5, label_noise=0.2, batch_size=5
    )
    base = curves_of(JOB, [trial])[0]
    changed = [{"learning_rate": 0.0101}, {"weight_decay": 1.0}, {"init_scale": 1.01}, {"data_fraction": 0.55}]
    others = [Member(params=replace(trial.params, **change), seed=trial.seed) for change in changed]
    for other in [Member(params=trial.params, seed=trial.seed + 1), *others]:
        with pytest.raises(AssertionError):
            assert_same_curves(curves_of(JOB, [other])[0], base, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "multiply"},
        {"modulus": 11},
        {"model": "embedding_mlp"},
        {"loss": "cross_entropy"},
        {"optimiser": "sgd"},
        {"warmup_steps": 3},
        {"batch_size": 7},
        {"beta2": 0.99},
        {"layers": 2},
        {"noise_convention": "incorrect"},
        {"stop_accuracy": 0.9},
        {"train_level": 0.9},
        {"test_level": 0.9},
        {"momentum": 0.5},
        {"layer_norm": True},
    ],
)
def test_trials_that_differ_in_what_a_pack_shares_have_different_keys(change: dict[str, Any]) -> None:
    base = GrokkingParams(modulus=7, width=8)
    assert JOB.pack_key(base) != JOB.pack_key(replace(base, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"data_fraction": 0.2},
        {"label_noise": 0.5},
        {"width": 400},
        {"init_scale": 3.0},
        {"learning_rate": 1.0},
        {"weight_decay": 4.0},
        {"steps": 7},
        {"curve_points": 9},
    ],
)
def test_trials_that_differ_in_what_each_model_has_of_its_own_share_a_key(change: dict[str, Any]) -> None:
    base = GrokkingParams(modulus=7, width=8)
    assert JOB.pack_key(base) == JOB.pack_key(replace(base, **change))


def test_a_batch_that_holds_the_whole_train_set_packs_apart_from_minibatches() -> None:
    few, many = (GrokkingParams(modulus=7, batch_size=20, data_fraction=f) for f in (0.3, 0.8))
    assert JOB.pack_key(few) != JOB.pack_key(many)


def test_transformers_of_different_width_pack_apart() -> None:
    narrow, wide = (GrokkingParams(modulus=7, model="transformer", width=w) for w in (8, 16))
    assert JOB.pack_key(narrow) != JOB.pack_key(wide)


# The packed trial against the same networks in plain PyTorch

ARCHITECTURES = [
    {"model": "quadratic_mlp", "width": 20},
    {"model": "embedding_mlp", "width": 20, "embedding": 6},
    {"model": "embedding_mlp", "width": 20, "embedding": 6, "layers": 3},
    {"model": "transformer", "width": 12, "heads": 3},
    {"model": "transformer", "width": 12, "heads": 3, "layer_norm": True},
    {"model": "transformer", "width": 8, "heads": 2, "layers": 2},
    {"model": "transformer", "width": 8, "heads": 2, "layers": 3, "layer_norm": True},
]
OPTIMISERS = [
    {"optimiser": "adamw", "weight_decay": 1.0},
    {"optimiser": "adam", "weight_decay": 0.01, "beta1": 0.8, "warmup_steps": 6},
    {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.005, "warmup_steps": 6},
    {"optimiser": "sgd", "learning_rate": 0.01},
]


def named(settings: dict[str, Any]) -> str:
    return "-".join(str(value) for value in settings.values())


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=named)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=named)
@pytest.mark.parametrize(("batch_size", "loss"), [(0, "squared"), (10, "cross_entropy")])
def test_a_packed_trial_is_what_plain_pytorch_makes_of_it(
    architecture: dict[str, Any], optimiser: dict[str, Any], batch_size: int, loss: str
) -> None:
    """Against float64, within 2e-3 relative over 20 steps; the packed trial has wider and longer neighbours."""
    settings = {"modulus": 7, "steps": 20, "curve_points": 20, "batch_size": batch_size, "loss": loss}
    first = {**settings, **architecture, **optimiser, "data_fraction": 0.5, "label_noise": 0.2}
    second = {**first, "data_fraction": 0.7, "label_noise": 0.0, "steps": 15, "weight_decay": 0.0}
    if architecture["model"] != "transformer":
        second["width"] = 33
    members = [member(11, **first), member(12, **second)]
    packed = curves_of(JOB, members)
    for position, trial in enumerate(members):
        got = packed[position]
        truth = Curves(step=got.step, values=plain_curves(trial, got.step.tolist()))
        assert_same_curves(got, truth, rtol=2e-3, atol=1e-5, atols=accuracy_steps([trial]), what=str(trial))


@pytest.mark.parametrize("frequencies", [range(1, 49), [1, 2, 3, 5, 8, 13, 21, 34]], ids=["all", "few"])
def test_gromovs_analytic_weights_solve_addition(frequencies: Sequence[int]) -> None:
    """W1 = [cos(2 pi k a / p + s_k), cos(2 pi k b / p + t_k)], W2 = cos(2 pi k q / p + s_k + t_k); p = 97, N = 256.

    Accuracy is 1 with every frequency among the units, and not with a few.
    """
    p, units = 97, 256
    block = fresh_block([member(modulus=p, width=units)])
    k = torch.tensor([frequencies[unit % len(frequencies)] for unit in range(units)])
    first, second = 2 * math.pi * torch.rand(2, units, generator=torch.Generator().manual_seed(1))
    angle = 2 * math.pi * (k * torch.arange(p)[:, None] % p) / p
    u, v, w2 = (view[0] for view in block.parameters.views())
    for view in (u, v, w2):
        view.zero_()
    u[:, :units] = torch.cos(angle + first)
    v[:, :units] = torch.cos(angle + second)
    w2[:p, :units] = torch.cos(angle + first + second)
    measured = block.measure()
    accuracies = [float(measured[name]) for name in ("train_accuracy", "test_accuracy")]
    if len(frequencies) == 48:
        assert accuracies == [1.0, 1.0]
    else:
        assert max(accuracies) < 1.0


# Splits, batches and initial weights


@given(
    seeds=st.lists(SEEDS, min_size=2, max_size=5, unique=True),
    operation=st.sampled_from(OPERATIONS),
    fraction=st.floats(0.1, 0.9),
)
@settings(max_examples=30)
def test_a_split_is_the_seeds_own_and_shares_no_pair(seeds: list[int], operation: str, fraction: float) -> None:
    """Train and test pairs are the two parts of one order of all pairs; another seed has another order."""
    values = {"modulus": 11, "operation": operation}
    members = [member(seed, data_fraction=fraction, **values) for seed in seeds]
    pairs = fresh_block(members).pairs
    count = len(pairs.x_P)
    for order in pairs.order_MP:
        assert sorted(order.tolist()) == list(range(count))
    assert len({tuple(order.tolist()) for order in pairs.order_MP}) == len(seeds)
    alone = fresh_block([member(seeds[-1], data_fraction=0.5, **values)]).pairs
    assert torch.equal(alone.order_MP[0], pairs.order_MP[-1]), "the split must not depend on the neighbours"


def test_training_does_not_see_the_answers_to_the_test_pairs() -> None:
    """With every answer outside the train set replaced, the weights move as before; only the test metrics change."""
    for batch_size in (0, 6):
        blocks = [fresh_block([member(modulus=7, width=16, batch_size=batch_size)]) for _ in range(2)]
        pairs = blocks[1].pairs
        test = pairs.order_MP[0, GrokkingParams(modulus=7).train_pairs :]
        wrong, labels = pairs.result_P.clone(), pairs.labels_MP.clone()
        wrong[test] = (wrong[test] + 1) % 7
        labels[0, test] = wrong[test]
        blocks[1].pairs = replace(pairs, result_P=wrong, labels_MP=labels)
        for block in blocks:
            block.keep(torch.tensor([0]))
            block.advance(0, 20)
        clean, changed = (block.measure() for block in blocks)
        for name in ("train_loss", "train_accuracy", "weight_norm"):
            assert torch.equal(clean[name], changed[name]), name
        assert clean["test_loss"] != changed["test_loss"]


@given(seed=SEEDS, batch_size=st.integers(1, 11), fraction=st.floats(0.25, 0.9))
@settings(max_examples=30)
def test_minibatches_go_through_the_train_set_once_an_epoch(seed: int, batch_size: int, fraction: float) -> None:
    trial = member(seed, modulus=7, data_fraction=fraction, batch_size=batch_size)
    count = trial.params.train_pairs
    steps = 3 * count // batch_size + 1
    rows = fresh_block([trial]).batches.draw(0, steps)[:, 0].flatten().tolist()
    epochs = [rows[start : start + count] for start in range(0, 3 * count, count)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def squared_norm(params: GrokkingParams) -> float:
    """Expected sum of the squared initial weights, from the protocol: variance scale^2 / fan in, norms' gains 1."""
    p, width, scale = params.elements, params.width, params.init_scale**2
    if params.model == "quadratic_mlp":
        return 3 * p * width * scale * (0.5 / (2 * width) ** (1 / 3)) ** 2
    if params.model == "embedding_mlp":
        embedding, first, hidden, readout = p, 2 * width, (params.layers - 1) * width, p
        return scale * (embedding + first + hidden + readout)
    tokens, positions, readout = p + 1, 3, p
    attention, perceptron = 4 * width, 4 * width + width
    gains = 2 * width * params.layers if params.layer_norm else 0
    return scale * (tokens + positions + params.layers * (attention + perceptron) + readout) + gains


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=named)
def test_initial_weights_have_the_protocols_size(architecture: dict[str, Any], scale: float) -> None:
    """The mean over 60 seeds, within 2%. Padding must not count: 57 outputs are stored as 64, 20 units as 32."""
    values = {**architecture, "modulus": 57, "data_fraction": 0.01, "init_scale": scale, "learning_rate": 1e-12}
    members = [member(seed, **values, steps=1) for seed in range(60)]
    norms = [curve.values["weight_norm"][0] for curve in curves_of(JOB, members).values()]
    assert np.mean(np.square(norms)) == pytest.approx(squared_norm(members[0].params), rel=0.02)
    assert len(set(norms)) == len(norms)
