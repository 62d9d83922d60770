"""Module jobs: what stacked trials do not share is each trial's own; shapes of targets and parameters."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_module_job import Small, members
from torch import Tensor, nn
from torch.nn import functional

from jobs.job import Member
from jobs.module import Data, Random
from jobs.module.network import Network
from jobs.module.pack import why_alone
from jobs.module.remarks import remarks
from tests.packing import assert_packed_is_solo, curves_of


class ReadingLoss(Small):
    def loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        return super().loss(params, output, target) * (1 + 20 * params.learning_rate + params.label_noise)


class Smoothed(Small):
    def training_loss(self, params: Any, output: Any, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, label_smoothing=0.9, reduction="none")


def test_a_loss_that_is_trained_alone_is_not_measured() -> None:
    """At the first step, whose batch is all the data, both jobs have one model; afterwards they differ."""
    (member,) = members(Small(), 1, batch_size=0, steps=30, curve_points=30, learning_rate=0.01)
    plain, smoothed = (curves_of(job, [member])[0].values["train_loss"] for job in (Small(), Smoothed()))
    for losses in (plain, smoothed):
        assert losses[0] == pytest.approx(plain[0], rel=0.02), "smoothing would more than double the distance to log 3"
    assert plain[-1] < smoothed[-1] - 0.01
    assert_packed_is_solo(Smoothed(), members(Smoothed(), 3))


class ReadingRegulariser(Small):
    def regulariser(self, params: Any, weights: Any) -> Tensor:
        return params.weight_decay * sum(w.square().sum() for w in weights.values())


class ReadingMasks(Small):
    def weight_masks(self, params: Any, weights: Any) -> dict[str, Tensor]:
        return {"0.weight": (weights["0.weight"].abs() > 4 * params.learning_rate).float()}


class ReadingProbe(Small):
    def probe(self, params: Any, model: Any, weights: Any, data: Data) -> dict[str, Tensor]:
        return {"rate": weights["0.bias"].sum() * 0 + params.learning_rate}


class ReadingBatch(Small):
    """Reads it only from the tenth step on, when its trials are stacked already."""

    def batch(self, params: Any, random: Random, step: Tensor) -> tuple[Tensor, Tensor]:
        scale = params.learning_rate if int(step) >= 10 else 1.0
        return scale * random.normal("online", 16, 6), random.integers("target", 3, 16)


@pytest.mark.parametrize("job", [ReadingLoss(), ReadingRegulariser(), ReadingMasks(), ReadingProbe(), ReadingBatch()])
def test_what_a_method_reads_is_the_value_of_each_trial(job: Small) -> None:
    trained = members(job, 3)
    assert_packed_is_solo(job, trained)
    assert why_alone(job, trained[0].params) == ""


def test_trials_of_equal_values_are_stacked_and_the_plan_names_what_is_read() -> None:
    job = ReadingLoss()
    equal = members(job, 4, learning_rate=0.02, label_noise=0.1, weight_decay=0.0)
    assert_packed_is_solo(job, equal)
    (line,) = remarks(job, [member.params for member in members(job, 3)], measure=False)
    assert (
        line == "apart     trials that differ in label_noise, learning_rate train apart: a method of the job reads it"
    )


class Scalars(Small):
    """One number for each example, and a parameter without dimensions."""

    def model(self, params: Any) -> nn.Module:
        class Scaled(nn.Linear):
            def __init__(self) -> None:
                super().__init__(6, 1)
                self.scale = nn.Parameter(torch.tensor(1.5))

            def forward(self, x: Tensor) -> Tensor:
                return self.scale * super().forward(x)

        return Scaled()

    def data(self, params: Any, random: Random) -> Data:
        x = random.normal("x", 90, 6)
        return Data(train=(x[:60], x[:60, 0]), test=(x[60:], x[60:, 0]))


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_targets_and_parameters_without_dimensions(clip_norm: float) -> None:
    job = Scalars()
    trained = members(job, 3, clip_norm=clip_norm, label_noise=0.0)
    assert_packed_is_solo(job, trained)
    assert why_alone(job, trained[0].params) == ""


def test_a_stop_at_an_accuracy_that_is_not_measured_is_named() -> None:
    job = Scalars()
    with pytest.raises(ValueError, match="stop_accuracy needs an accuracy, and this job measures none"):
        curves_of(job, members(job, 2, stop_accuracy=0.9, label_noise=0.0))


class Tokens(Small):
    """Two tokens of three classes an example; a mask of the examples, zero for most."""

    def model(self, params: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (2, 3)))

    def data(self, params: Any, random: Random) -> Data:
        x, y = random.normal("x", 90, 6), random.integers("y", 3, 90, 2)
        mask = (torch.arange(90) % 30 == 0).float()
        return Data(train=(x[:60], y[:60], mask[:60]), test=(x[60:], y[60:], mask[60:]))


def test_a_mask_of_examples_counts_for_their_tokens_and_may_leave_a_batch_empty() -> None:
    job = Tokens()
    trained = members(job, 2, batch_size=2, label_noise=0.0)
    course = assert_packed_is_solo(job, trained)
    values = course.curves[0].values
    assert all(0 < value < 10 for value in values["train_loss"])
    data, network = job.data(None, Random.of_seed(trained[0].seed)), Network.of(job, trained[0])
    output = network.module(data.test[0][:1]).detach()
    assert values["test_loss"][0] == pytest.approx(functional.cross_entropy(output[0], data.test[1][0]).item(), 1e-5)
    right = (output[0].argmax(-1) == data.test[1][0]).float().mean()
    assert values["test_accuracy"][0] == pytest.approx(right.item())


def _network(extra: Callable[[nn.Linear], Any], seed: int) -> Network:
    class Extra(Small):
        def model(self, params: Any) -> nn.Module:
            module = nn.Linear(6, 3)
            module._extra = extra(module)
            return module

    job = Extra()
    return Network.of(job, Member(params=job.params_for({}), seed=seed))


def _scaled(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: factor * x


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (lambda m: 0.1, lambda m: 0.2, False),
        (lambda m: functional.relu, lambda m: functional.gelu, False),
        (lambda m: _scaled(1.0), lambda m: _scaled(2.0), False),
        (lambda m: _scaled(2.0), lambda m: _scaled(2.0), True),
        (lambda m: functools.partial(torch.add, 1), lambda m: functools.partial(torch.add, 2), False),
        (lambda m: [m, m.weight], lambda m: [m, m.weight], True),
        (lambda m: [m.weight.detach().clone()], lambda m: [m.weight.detach().clone()], False),
        (lambda m: m.forward, lambda m: m.forward, True),
    ],
)
def test_modules_with_other_private_attributes_or_functions_differ(one: Any, two: Any, same: bool) -> None:
    assert _network(one, 1).difference(_network(two, 2)) == ("" if same else "the attribute _extra")


class Noisy(Small):
    """It draws in the forward pass, also while it is measured."""

    def model(self, params: Any) -> nn.Module:
        class Noise(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + torch.randn(len(x), 3)

        return Noise(6, 3)


def test_what_a_module_draws_while_it_is_measured_is_drawn_under_the_seed_of_the_trial() -> None:
    job = Noisy()
    torch.manual_seed(1)
    assert_packed_is_solo(job, members(job, 2), rtol=0, atol=0)


class Quasi(Small):
    def torch_optimiser(self, params: Any, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(weights, max_iter=3, line_search_fn="strong_wolfe")


def test_an_optimiser_that_needs_a_closure() -> None:
    job = Quasi()
    curve = curves_of(job, members(job, 1, batch_size=0, steps=5))[0].values["train_loss"]
    assert curve[-1] < 0.9 * curve[0]


@pytest.mark.parametrize("classes", [2, 10, 16, 40])
@pytest.mark.parametrize("shape", [(7,), (7, 5)], ids=["examples", "tokens"])
def test_the_default_loss_is_cross_entropy(shape: tuple[int, ...], classes: int) -> None:
    output = torch.randn(*shape, classes, generator=torch.Generator().manual_seed(1), requires_grad=True)
    target = torch.arange(output[..., 0].numel()).reshape(shape) % classes
    loss = Small().loss(Small().params_for({}), output, target)
    expected = functional.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="none").reshape(shape)
    torch.testing.assert_close(loss, expected)
    gradient, theirs = (torch.autograd.grad(values.sum(), output)[0] for values in (loss, expected))
    torch.testing.assert_close(gradient, theirs)
