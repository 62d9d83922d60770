"""The double-descent job: packed trials equal single ones; label noise, subsets and data; reduction of curves."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.labels import noisy_labels
from jobs.data.mnist1d import mnist1d
from jobs.double_descent.block import PackData
from jobs.double_descent.gaussian import gaussian_linear, gaussian_teacher
from jobs.double_descent.image_params import ImageParams
from jobs.double_descent.job import DoubleDescent
from jobs.double_descent.pack import _data
from jobs.double_descent.params import DoubleDescentParams, DoubleDescentThresholds
from jobs.job import Member, ParamError, log_spaced_steps
from jobs.packed import random
from orchestrator.trial import Trial
from tests.image_files import write_idx
from tests.packing import assert_packed_is_solo, assert_same_curves, course_of, curves_of
from tests.plain_mlp import plain_curves

JOB = DoubleDescent()
LIMITS = DoubleDescentThresholds()
SMALL: dict[str, Any] = {
    "data": "gaussian_teacher",
    "pool": 60,
    "test_count": 40,
    "inputs": 7,
    "width": 13,
    "depth": 2,
    "batch_size": 16,
    "steps": 25,
    "curve_points": 10,
    "label_noise": 0.2,
    "learning_rate": 0.05,
}
ONE_WRONG = {"train_error": 1.5 / 12, "test_error": 1.5 / 40}
"""A class may change hands where two outputs are equal within rounding: at most one example (of 12 or more)."""


@pytest.fixture(scope="module", autouse=True)
def _small_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and data sets in a folder of the test's own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHASEFRONT_DATA", str(tmp_path_factory.mktemp("data")))
        mnist1d.cache_clear()
        yield
    mnist1d.cache_clear()
    torch.set_num_threads(before)


def member(seed: int = 5, **changes: Any) -> Member[DoubleDescentParams]:
    return Member(params=DoubleDescentParams(**{**SMALL, **changes}), seed=seed)


# A packed trial is the trial.


ORDERS = [
    {"batch_order": "shuffled"},
    {"batch_order": "shuffled", "last_batch": "smaller"},
    {"batch_order": "with_replacement"},
    {"batch_order": "cyclic"},
]


@st.composite
def packs(draw: st.DrawFn) -> list[Member[DoubleDescentParams]]:
    """Two to six trials that may share a pack; everything that may differ inside a pack does."""
    data = draw(st.sampled_from(["gaussian_teacher", "gaussian_linear", "mnist1d"]))
    regression = data == "gaussian_linear"
    optimiser = draw(st.sampled_from(["sgd", "adam", "adamw"]))
    full = draw(st.booleans())
    loss = "squared" if regression else draw(st.sampled_from(["cross_entropy", "squared", "class_mean_squared"]))
    shared = {
        "data": data,
        "pool": 60,
        "test_count": 40,
        "inputs": 40 if data == "mnist1d" else 7,
        "depth": draw(st.integers(0, 3)),
        "loss": loss,
        "optimiser": optimiser,
        "momentum": draw(st.sampled_from([0.0, 0.9])),
        **draw(st.sampled_from(ORDERS)),
        "batch_size": 0 if full else draw(st.integers(1, 11)),
        "noise_convention": draw(st.sampled_from(["redrawn", "incorrect"])),
        "pixels": draw(st.sampled_from(["original", "original", "random"])),
    }
    most = 0.05 if optimiser == "sgd" else 0.01

    def one() -> Member[DoubleDescentParams]:
        own = {
            "width": draw(st.integers(1, 70)),
            "sample_count": draw(st.sampled_from([0, 0, 12, 31, 59])),
            "data_seed": draw(st.sampled_from([0, 0, -1, 3])),
            "label_noise": 0.0 if regression else draw(st.sampled_from([0.0, 0.15, 1.0])),
            "noise_std": draw(st.sampled_from([0.0, 0.7])) if regression else 0.0,
            "init_scale": draw(st.sampled_from([0.3, 1.0, 1.5])),
            "weight_std": draw(st.sampled_from([0.0, 0.0, 0.1])),
            "learning_rate": draw(st.floats(most / 30, most)),
            "weight_decay": draw(st.sampled_from([0.0, 0.01, 0.3])),
            "steps": draw(st.integers(1, 40)),
            "curve_points": draw(st.integers(2, 12)),
        }
        return Member(params=DoubleDescentParams(**shared, **own), seed=draw(st.integers(0, (1 << 64) - 1)))

    return [one() for _ in range(draw(st.integers(2, 6)))]


@given(pack=packs())
@settings(max_examples=40)
def test_a_packed_trial_is_the_trial(pack: list[Member[DoubleDescentParams]]) -> None:
    """Trainings of up to 40 steps: losses to 2e-4, errors to one example; see `assert_packed_is_solo`.

    Adam divides a gradient by its size, so that the rounding of a gradient near zero becomes a whole step: 1e-3.
    """
    rtol = 2e-4 if pack[0].params.optimiser == "sgd" else 1e-3
    course = assert_packed_is_solo(JOB, pack, rtol=rtol, atols=None if pack[0].params.outputs == 1 else ONE_WRONG)
    for position, one in enumerate(pack):
        schedule = log_spaced_steps(one.params.horizon, one.params.curve_points)
        np.testing.assert_array_equal(course.curves[position].step, schedule)
        assert JOB.report_steps(one.params) == len(schedule)


@given(pack=packs(), seed=st.integers(0, 1 << 30))
@settings(max_examples=10)
def test_the_order_of_a_pack_is_irrelevant(pack: list[Member[DoubleDescentParams]], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(pack)).tolist()
    one, other = curves_of(JOB, pack), curves_of(JOB, [pack[k] for k in order])
    atols = None if pack[0].params.outputs == 1 else ONE_WRONG
    rtol = 2e-4 if pack[0].params.optimiser == "sgd" else 1e-3
    for place, position in enumerate(order):
        assert_same_curves(one[position], other[place], rtol=rtol, atol=2e-5, atols=atols)


def test_random_pixels_are_those_of_each_example_in_an_order_of_its_own() -> None:
    pack = [
        member(data="mnist1d", inputs=40, data_seed=own, pixels=kind).params
        for kind in ("original", "random")
        for own in (0, 0, -1)
    ]
    plain, mixed = (_data(part, (1, 2, 3), "cpu") for part in (pack[:3], pack[3:]))
    for before, after in ((plain.x_SND, mixed.x_SND), (plain.xt_STD, mixed.xt_STD)):
        assert len(before) == 2 and torch.equal(before.sort(2).values, after.sort(2).values)
        order = (before[:, :, :, None] == after[:, :, None]).int().argmax(3).reshape(-1, 40)
        assert len(torch.unique(order, dim=0)) == len(order)
    assert torch.equal(plain.y_MN, mixed.y_MN)


def test_a_pack_of_several_blocks_is_its_trials() -> None:
    """Wide and deep enough that a core's cache holds a few models at a time; horizons end in all of them."""
    pack = [
        member(seed=k, width=150 + 9 * k, depth=3, steps=4 + 3 * (k % 5), batch_size=50, learning_rate=0.01)
        for k in range(14)
    ]
    course = assert_packed_is_solo(JOB, pack, atols=ONE_WRONG)
    assert course.reports > 14


def test_equal_trials_of_a_pack_have_equal_curves() -> None:
    found = curves_of(JOB, [member(), member(width=40), member()])
    assert_same_curves(found[0], found[2], rtol=1e-6, atol=1e-7)
    assert not np.allclose(found[0].values["train_loss"], found[1].values["train_loss"])


def test_those_who_finish_early_leave_the_rest_unchanged() -> None:
    long = [member(seed=k, width=8 + k) for k in range(3)]
    short = [member(seed=10 + k, width=60, steps=2 + k, curve_points=2) for k in range(4)]
    mixed = course_of(JOB, [short[0], long[0], short[1], long[1], short[2], long[2], short[3]])
    assert mixed.finished[:4] == [0, 2, 4, 6]
    for place, one in zip((1, 3, 5), long, strict=True):
        assert_same_curves(mixed.curves[place], curves_of(JOB, [one])[0], rtol=2e-4, atol=2e-5, atols=ONE_WRONG)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("batch_size", [0, 16])
def test_a_decaying_rate_is_that_of_plain_pytorch(optimiser: str, batch_size: int) -> None:
    """Rate, momentum and loss as torch.optim has them, when the rate decays three times; packed as alone."""
    common = {
        "optimiser": optimiser,
        "batch_size": batch_size,
        "loss": "class_mean_squared",
        "rate_decay": 0.5,
        "rate_decay_epochs": 3 if batch_size else 10,
        "steps": 45,
        "learning_rate": 0.05 if optimiser == "sgd" else 0.005,
    }
    pack = [member(seed, width=width, weight_std=std, **common) for seed, width, std in [(1, 5, 0.1), (2, 20, 0.0)]]
    course = assert_packed_is_solo(DoubleDescent(), pack)
    for position, alone in enumerate(pack):
        curves = plain_curves(alone)
        assert_same_curves(course.curves[position], curves, rtol=2e-4, atol=2e-5, atols=ONE_WRONG)
    constant = curves_of(DoubleDescent(), [member(1, width=5, weight_std=0.1, **{**common, "rate_decay": 1.0})])[0]
    assert abs(constant.values["train_loss"][-1] / course.curves[0].values["train_loss"][-1] - 1) > 0.001


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "class_mean_squared"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_an_epoch_may_end_with_a_smaller_batch(optimiser: str, loss: str) -> None:
    """Four batches of 60 examples by 16, the last of 12, and others in the same pack; as in plain PyTorch."""
    common = {"optimiser": optimiser, "loss": loss, "last_batch": "smaller", "rate_decay": 0.5, "rate_decay_epochs": 4}
    common |= {"epochs": 10, "momentum": 0.9, "learning_rate": 0.1 if optimiser == "sgd" else 0.01}
    pack = [member(seed, width=width, sample_count=count, **common) for seed, width, count in ((1, 5, 0), (2, 20, 50))]
    near = 1e-4 if optimiser == "sgd" else 1e-3
    course = assert_packed_is_solo(JOB, pack, rtol=near, atols=ONE_WRONG)
    for position, alone in enumerate(pack):
        curves = plain_curves(alone)
        assert_same_curves(course.curves[position], curves, rtol=near, atol=2e-5, atols=ONE_WRONG)
    filled = curves_of(JOB, [member(1, width=5, **{**common, "last_batch": "filled"})])[0]
    ratio = filled.values["train_loss"] / course.curves[0].values["train_loss"]
    assert abs(ratio - 1).max() > near


def test_a_smaller_last_batch_needs_shuffled_batches() -> None:
    with pytest.raises(ParamError, match="last_batch: may be smaller with batch_order: shuffled"):
        member(batch_order="cyclic", last_batch="smaller")


def test_only_networks_below_the_threshold_decay() -> None:
    """Belkin et al.: 795 * h + 10 parameters on 4,000 images of 10 classes, equal between 50 and 51 units."""
    common: dict[str, Any] = {"data": "mnist", "inputs": 784, "pool": 4000, "depth": 1, "batch_size": 128}
    decay = {"rate_decay": 0.9, "rate_decay_networks": "underparameterised"}
    below, above = (DoubleDescentParams(width=width, **common, **decay) for width in (50, 51))
    assert (below.parameters, below.decay_steps, above.decay_steps) == (39_760, 500 * 32, 0)
    assert DoubleDescentParams(width=51, **common, rate_decay=0.9).decay_steps == 500 * 32
    job = DoubleDescent()
    assert job.pack_key(above) == job.pack_key(DoubleDescentParams(width=50, **common)), "the key as before the option"
    assert job.pack_key(below) != job.pack_key(above)


def test_a_longer_horizon_extends_a_curve() -> None:
    """The seed does not depend on the horizon, nor does anything before its end."""
    short, long = (curves_of(JOB, [member(steps=n, curve_points=320)])[0] for n in (20, 80))
    assert long.step[:20].tolist() == short.step.tolist() == list(range(1, 21))
    for name, values in short.values.items():
        np.testing.assert_allclose(values, long.values[name][:20], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("optimiser", "wild"), [("sgd", {"learning_rate": 100.0}), ("adamw", {"learning_rate": 100.0, "weight_decay": 1e3})]
)
def test_a_diverging_neighbour_leaves_the_others_untouched(optimiser: str, wild: dict[str, Any]) -> None:
    shared = {"loss": "squared", "optimiser": optimiser, "learning_rate": 0.003, "curve_points": 25}
    calm = [member(seed=k, width=9 * (k + 1), **shared) for k in range(3)]
    lost_one = member(seed=77, width=64, **{**shared, **wild})
    course = course_of(JOB, [calm[0], lost_one, calm[1], calm[2]])
    for place, one in zip((0, 2, 3), calm, strict=True):
        alone = curves_of(JOB, [one])[0]
        assert np.isfinite(alone.values["train_loss"]).all()
        assert_same_curves(course.curves[place], alone, rtol=2e-4, atol=2e-5, atols=ONE_WRONG)
    lost = course.curves[1]
    assert course.finished[0] == 1, "it leaves with the report that shows its divergence"
    assert lost.step[-1] < 25
    assert not math.isfinite(lost.values["train_loss"][-1])
    assert np.isfinite(lost.values["train_loss"][:-1]).all()
    seen = JOB.observe(lost_one.params, lost, LIMITS)
    assert seen["diverged_step"] == lost.step[-1]
    assert JOB.phase(lost_one.params, seen, LIMITS) == "diverged"


def test_parameters_that_may_differ_in_a_pack_do_not_split_it() -> None:
    keys = {
        JOB.pack_key(member(**changes).params)
        for changes in (
            {},
            {"width": 99},
            {"sample_count": 30},
            {"label_noise": 0.0},
            {"learning_rate": 0.5},
            {"steps": 7},
            {"weight_decay": 0.1},
            {"init_scale": 2.0},
            {"epochs": 3},
            {"curve_points": 5},
            {"data_seed": -1},
        )
    }
    assert len(keys) == 1
    for changes in (
        {"depth": 1},
        {"loss": "squared"},
        {"optimiser": "adam"},
        {"batch_size": 8},
        {"batch_order": "cyclic"},
        {"last_batch": "smaller"},
        {"data": "mnist1d", "inputs": 40},
        {"pool": 61},
        {"noise_convention": "incorrect"},
        {"batch_size": 0},
    ):
        assert JOB.pack_key(member(**changes).params) not in keys, changes


# Independent truth.


def exact_fit(seed: int, pool: int, used: int, noise: float) -> tuple[np.ndarray, ...]:
    """Design with a column of ones, targets, test design, test targets, and the least-squares solution."""
    x, y, x_test, y_test = (
        part[0].double().numpy()
        for part in gaussian_linear([seed], train=pool, test=40, inputs=7, noise_std=[noise], device="cpu")
    )
    if used < pool:
        rows = random.permutation(random.stream_keys([seed], "subset"), pool)[0, :used].numpy()
        x, y = x[rows], y[rows]
    x, x_test = (np.column_stack([part, np.ones(len(part))]) for part in (x, x_test))
    return x, y, x_test, y_test, np.linalg.lstsq(x, y, rcond=None)[0]


LINEAR: dict[str, Any] = {
    "data": "gaussian_linear",
    "loss": "squared",
    "depth": 0,
    "batch_size": 0,
    "label_noise": 0.0,
    "noise_std": 0.5,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "steps": 4000,
    "curve_points": 3,
}


def test_linear_descent_ends_at_least_squares() -> None:
    """More examples than parameters: the one minimum, wherever it begins. All in one pack."""
    cases = [(1, 60), (2, 60), (3, 31), (4, 16)]
    found = curves_of(JOB, [member(seed=seed, sample_count=used, **LINEAR) for seed, used in cases])
    for position, (seed, used) in enumerate(cases):
        x, y, x_test, y_test, w = exact_fit(seed, 60, used, 0.5)
        values = found[position].values
        assert values["train_error"][-1] == pytest.approx(((x @ w - y) ** 2).mean(), rel=1e-4)
        assert values["test_error"][-1] == pytest.approx(((x_test @ w - y_test) ** 2).mean(), rel=1e-4)
        assert values["test_loss"][-1] == pytest.approx(values["test_error"][-1] / 2, rel=1e-6)


def test_linear_descent_from_zero_ends_at_the_shortest_interpolator() -> None:
    """Fewer examples than parameters: the minimum-norm solution, the other side of double descent."""
    pack = [member(seed=seed, sample_count=used, init_scale=1e-6, **LINEAR) for seed, used in ((1, 3), (2, 4), (3, 5))]
    found = curves_of(JOB, pack)
    for position, one in enumerate(pack):
        _, _, x_test, y_test, w = exact_fit(one.seed, 60, one.params.used, 0.5)
        values = found[position].values
        assert values["train_error"][-1] < 1e-6
        assert values["test_error"][-1] == pytest.approx(((x_test @ w - y_test) ** 2).mean(), rel=1e-3)


def test_the_gaussian_teacher_is_a_unit_vector_and_its_noise_as_asked() -> None:
    x, y, x_test, y_test = gaussian_linear([1, 2], train=20_000, test=50, inputs=5, noise_std=[0.0, 0.7], device="cpu")
    for s, noise in enumerate((0.0, 0.7)):
        beta = np.linalg.lstsq(x_test[s].double().numpy(), y_test[s].double().numpy(), rcond=None)[0]
        assert np.linalg.norm(beta) == pytest.approx(1, abs=1e-5)
        left = y[s].double().numpy() - x[s].double().numpy() @ beta
        assert left.std() == pytest.approx(noise, rel=0.03, abs=1e-6)
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.std()) == pytest.approx(1, abs=0.02)


def test_a_data_set_depends_on_its_seed_only() -> None:
    sizes = {"train": 30, "test": 20, "inputs": 6, "device": "cpu"}
    for together, alone in (
        (gaussian_teacher([7, 8], **sizes), gaussian_teacher([8], **sizes)),  # type: ignore[arg-type]
        (
            gaussian_linear([7, 8], noise_std=[0.3, 0.4], **sizes),  # type: ignore[arg-type]
            gaussian_linear([8], noise_std=[0.4], **sizes),  # type: ignore[arg-type]
        ),
    ):
        for part, own in zip(together, alone, strict=True):
            torch.testing.assert_close(part[1], own[0], rtol=1e-6, atol=1e-6)
            assert not torch.equal(part[0], part[1])


def test_a_teacher_uses_every_class() -> None:
    _, y, _, y_test = gaussian_teacher([1, 2, 3], train=4000, test=1000, inputs=40, device="cpu")
    for s in range(3):
        shares = torch.bincount(y[s], minlength=10) / 4000
        assert float(shares.min()) > 0.01
        assert float(shares.max()) < 0.5
        assert set(y_test[s].tolist()) == set(range(10))


# Label noise.


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.6, 1.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_both_conventions_have_their_effective_rate(rate: float, classes: int) -> None:
    """Of all classes: p (K - 1) / K of the labels change; of the wrong ones: p."""
    count = 100_000
    labels = torch.randint(classes, (1, count), generator=torch.Generator().manual_seed(1))
    for convention, effective in (("redrawn", rate * (classes - 1) / classes), ("incorrect", rate)):
        noisy = noisy_labels(labels, seeds=[3], rates=[rate], classes=classes, convention=convention)
        changed = noisy != labels
        deviation = math.sqrt(effective * (1 - effective) / count)
        assert float(changed.double().mean()) == pytest.approx(effective, abs=5 * deviation + 1e-12)
        if rate:
            shift = ((noisy - labels) % classes)[changed]
            shares = torch.bincount(shift, minlength=classes)[1:].double() / len(shift)
            assert float((shares - 1 / (classes - 1)).abs().max()) < 5 / math.sqrt(len(shift))
        assert int(noisy.min()) >= 0
        assert int(noisy.max()) < classes


@pytest.mark.parametrize("convention", ["redrawn", "incorrect"])
def test_a_noisy_label_stays_put(convention: str) -> None:
    """Alone or among others, asked again, and at a higher rate: what was replaced stays as it was replaced."""
    labels = torch.arange(5000).remainder(10).expand(3, -1)
    before = labels.clone()
    seeds, rates = [1, 2, 1], [0.2, 0.2, 0.5]
    noisy = noisy_labels(labels, seeds=seeds, rates=rates, classes=10, convention=convention)
    assert torch.equal(labels, before), "the given labels are not changed"
    assert torch.equal(noisy, noisy_labels(labels, seeds=seeds, rates=rates, classes=10, convention=convention))
    for k in range(3):
        alone = noisy_labels(labels[:1], seeds=[seeds[k]], rates=[rates[k]], classes=10, convention=convention)
        assert torch.equal(noisy[k], alone[0])
    changed = noisy[0] != labels[0]
    assert torch.equal(noisy[2][changed], noisy[0][changed])
    assert int((noisy[2] != labels[2]).sum()) > int(changed.sum())
    assert not torch.equal(noisy[0], noisy[1])


def test_noise_touches_neither_the_test_set_nor_the_data_set() -> None:
    """Labels that are all wrong are learnt, and what is learnt from them is wrong on the clean test set."""
    changes = {
        "inputs": 3,
        "pool": 200,
        "test_count": 500,
        "noise_convention": "incorrect",
        "optimiser": "adam",
        "learning_rate": 0.01,
        "steps": 300,
        "curve_points": 2,
        "width": 96,
        "batch_size": 0,
    }
    clean, wrong = curves_of(JOB, [member(label_noise=noise, **changes) for noise in (0.0, 1.0)]).values()
    assert clean.values["train_error"][-1] < 0.02
    assert wrong.values["train_error"][-1] < 0.05
    assert clean.values["test_error"][-1] < 0.4
    assert wrong.values["test_error"][-1] > 0.85
    before = [part.copy() for part in mnist1d(60, 40)]
    curves_of(JOB, [member(data="mnist1d", inputs=40, label_noise=1.0)])
    for part, kept in zip(mnist1d(60, 40), before, strict=True):
        np.testing.assert_array_equal(part, kept)


# Subsets and data.


def test_the_subset_depends_on_the_seed() -> None:
    """From (almost) zero weights the first full-batch step is a function of the examples alone."""
    changes = {
        "data": "mnist1d",
        "inputs": 40,
        "depth": 0,
        "batch_size": 0,
        "steps": 1,
        "init_scale": 1e-6,
        "label_noise": 0.0,
        "learning_rate": 1.0,
    }

    def losses(sample_count: int) -> np.ndarray:
        found = curves_of(JOB, [member(seed=k, sample_count=sample_count, **changes) for k in (1, 2)])
        return np.array([curve.values["test_loss"][-1] for curve in found.values()])

    assert abs(np.diff(losses(0))[0]) < 1e-5
    assert abs(np.diff(losses(60))[0]) < 1e-5
    assert abs(np.diff(losses(20))[0]) > 1e-3


def test_a_pack_holds_the_examples_that_it_uses() -> None:
    """Not the pool of every model: 40 models on 250 images of a pool of 4,000 took 500 MB."""
    pack = [member(seed=k, sample_count=count) for k, count in ((1, 20), (2, 31))]
    data = _data([one.params for one in pack], [one.seed for one in pack], "cpu")
    assert data.x_SND.shape[:2] == (2, 31) and data.y_MN.shape == (2, 31)
    for position, curves in curves_of(JOB, pack).items():
        assert_same_curves(curves, plain_curves(pack[position]), rtol=2e-4, atol=2e-5, atols=ONE_WRONG)


def test_a_subset_as_large_as_the_pool_is_the_pool() -> None:
    whole, named = curves_of(JOB, [member(sample_count=0), member(sample_count=60)]).values()
    assert_same_curves(whole, named, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("data", ["mnist1d", "gaussian_teacher"])
def test_the_data_seed_tells_which_data_set_is_drawn(data: str) -> None:
    """0: as it was; -1: each seed's own; else the same for all seeds."""
    values: dict[str, Any] = {"data": data, "inputs": 40, "steps": 3, "curve_points": 2}
    published, third, own = (data_of(seed=5, data_seed=d, **values) for d in (0, 3, -1))
    same = {d: data_of(seed=6, data_seed=d, **values) for d in (0, 3, -1)}
    assert torch.equal(third.x_SND, same[3].x_SND)
    assert not torch.equal(own.x_SND, same[-1].x_SND)
    assert torch.equal(published.x_SND, same[0].x_SND) == (data == "mnist1d")
    assert torch.equal(published.x_SND, own.x_SND) == (data != "mnist1d")
    assert not torch.equal(third.x_SND, published.x_SND)


def data_of(seed: int, **values: Any) -> PackData:
    one = member(seed, **values)
    return _data([one.params], [one.seed], "cpu")


def test_replicates_may_have_data_of_their_own_in_one_pack() -> None:
    """Three data sets of MNIST-1D in one pack; each trial is as in plain PyTorch."""
    pack = [
        member(seed, data="mnist1d", inputs=40, data_seed=-1, width=width, steps=12, sample_count=count)
        for seed, width, count in ((1, 9, 0), (2, 33, 30), (1, 20, 30), (3, 9, 0))
    ]
    for position, curves in curves_of(JOB, pack).items():
        assert_same_curves(curves, plain_curves(pack[position]), rtol=2e-4, atol=2e-5, atols=ONE_WRONG)


@pytest.mark.slow
def test_mnist1d_is_the_packages_own() -> None:
    from mnist1d.data import get_dataset_args, make_dataset

    theirs = make_dataset(get_dataset_args())
    x, y, x_test, y_test = mnist1d(4000, 1000)
    np.testing.assert_array_equal(x, theirs["x"].astype(np.float32))
    np.testing.assert_array_equal(y, theirs["y"])
    np.testing.assert_array_equal(x_test, theirs["x_test"].astype(np.float32))
    np.testing.assert_array_equal(y_test, theirs["y_test"])


@pytest.mark.parametrize(
    ("job", "params", "trial_id"),
    [
        ("double_descent", DoubleDescentParams(), "d69524298ffefc4201892382808268f0"),
        ("image_double_descent", ImageParams(), "cb7293b36355be9180bdfaae9ac1d44b"),
    ],
)
def test_the_default_data_seed_leaves_a_trial_its_identity(job: str, params: Any, trial_id: str) -> None:
    """The ids are those before the option."""
    assert Trial(job=job, job_version=1, params=params, replicate=0).id == trial_id


def test_the_data_seed_is_the_packages_seed() -> None:
    """42 is the package's own: the published data."""
    for part, published, other in zip(mnist1d(60, 40, 42), mnist1d(60, 40), mnist1d(60, 40, 7), strict=True):
        np.testing.assert_array_equal(part, published)
        assert not np.array_equal(part, other)


@pytest.mark.parametrize(("train", "test"), [(60, 40), (70, 130), (63, 41), (33, 10)])
def test_mnist1d_has_the_sizes_asked_for(train: int, test: int) -> None:
    x, y, x_test, y_test = mnist1d(train, test)
    assert x.shape == (train, 40)
    assert x.dtype == np.float32
    assert x_test.shape == (test, 40)
    assert (y.shape, y_test.shape) == ((train,), (test,))
    assert y.dtype == np.int64
    labels = np.concatenate([y, y_test])
    assert set(labels.tolist()) <= set(range(10))
    if (train + test) % 10 == 0:
        assert np.bincount(labels, minlength=10).tolist() == [(train + test) // 10] * 10
    again = mnist1d.__wrapped__(train, test)
    for part, kept in zip((x, y, x_test, y_test), again, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_a_horizon_in_epochs_counts_whole_passes() -> None:
    assert member(epochs=3, steps=999).params.horizon == 3 * 4
    assert member(epochs=3, batch_size=0).params.horizon == 3
    assert member(epochs=2, sample_count=17).params.horizon == 2 * 2
    assert member(epochs=0, steps=7).params.horizon == 7


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sample_count": 61}, "sample_count"),
        ({"data": "mnist1d"}, "inputs"),
        ({"data": "gaussian_linear", "label_noise": 0.0}, "loss"),
        ({"data": "gaussian_linear", "loss": "squared"}, "label_noise"),
        ({"noise_std": 1.0}, "noise_std"),
        ({"width": 0}, "width"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"optimiser": "adamax"}, "optimiser"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ParamError) as refused:
        member(**changes)
    assert refused.value.name == name


def test_perceptrons_learn_images_from_the_published_files(tmp_path: Path) -> None:
    """Two-layer networks with the squared loss on MNIST's format, packed as alone; the pool is the archive's first."""
    archive = str(write_idx(tmp_path / "mnist", train=120, test=60))
    common: dict[str, Any] = {
        "data": "mnist",
        "archive": archive,
        "inputs": 784,
        "pool": 100,
        "test_count": 60,
        "depth": 1,
        "loss": "squared",
        "batch_size": 20,
        "learning_rate": 0.02,
        "steps": 150,
        "curve_points": 6,
    }
    members = [
        Member(params=DoubleDescentParams(width=32, **common), seed=1),
        Member(params=DoubleDescentParams(width=9, sample_count=50, label_noise=0.1, **common), seed=2),
    ]
    course = assert_packed_is_solo(DoubleDescent(), members, rtol=2e-3, atol=2e-3)
    assert course.curves[0].values["test_error"][-1] < 0.2 < course.curves[0].values["test_error"][0]
    with pytest.raises(ParamError, match="inputs: must be 784"):
        DoubleDescentParams(**{**common, "inputs": 40})
    with pytest.raises(ParamError, match="at most 120"):
        curves_of(DoubleDescent(), [Member(params=DoubleDescentParams(**{**common, "pool": 121}), seed=1)])
