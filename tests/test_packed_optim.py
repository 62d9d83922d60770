"""Each packed optimiser equals PyTorch's, with hyperparameters per model."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from jobs.packed.optim import FlatParameters, Optimiser, OptimiserSettings, make_optimiser

SHAPES = [(5, 3), (1, 3), (3, 2)]
RATES = [0.05, 0.003, 0.2]
DECAYS = [0.0, 0.1, 0.03]
EACH = {"momentum": [0.9, 0.0, 0.5], "beta1": [0.8, 0.0, 0.95], "beta2": [0.95, 0.999, 0.9]}
STEPS = 200
KINDS = ["sgd", "adam", "adamw"]


def settings_of(
    kind: str, *, momentum: float = 0.9, models: int = 3, decays: list[float] | None = None
) -> OptimiserSettings:
    return OptimiserSettings(
        kind=kind,
        learning_rate=torch.tensor(RATES[:models]),
        weight_decay=torch.tensor((decays or DECAYS)[:models]),
        momentum=momentum,
        beta1=0.8,
        beta2=0.95,
    )


def settings_of_each(kind: str) -> OptimiserSettings:
    """All hyperparameters differ between the models."""
    each = {name: torch.tensor(values, dtype=torch.float64) for name, values in EACH.items()}
    return replace(settings_of(kind), momentum=each["momentum"], beta1=each["beta1"], beta2=each["beta2"])


def start(models: int = 3, align: int = 1) -> FlatParameters:
    parameters = FlatParameters(SHAPES, models, "cpu", align)
    generator = torch.Generator().manual_seed(1)
    for view in parameters.views():
        view.copy_(torch.randn(view.shape, generator=generator))
    return parameters


def rows(parameters: FlatParameters) -> torch.Tensor:
    """(M, P) the parameters of each model."""
    return torch.cat([view.flatten(1) for view in parameters.views()], 1)


def pull(weights: torch.Tensor, step: int, model: int) -> torch.Tensor:
    """A gradient that depends on the weights, the step and the model (a noisy quadratic bowl)."""
    generator = torch.Generator().manual_seed(1000 * model + step)
    noise = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
    return weights * torch.linspace(0.1, 2, len(weights), dtype=weights.dtype) + (0.3 * noise).to(weights.dtype)


def feed(optimiser: Optimiser, gradient_MP: torch.Tensor) -> None:
    """Give a gradient as a block does: scaled, and added to what the optimiser wants kept."""
    if optimiser.gradient_scale is not None:
        gradient_MP = gradient_MP * optimiser.gradient_scale.reshape(-1, 1)
    if optimiser.accumulate_flat is not None:
        optimiser.gradient.flat.mul_(optimiser.accumulate_flat)
    done = 0
    for view in optimiser.gradient.views():
        size = view[0].numel()
        if optimiser.accumulate_flat is None:
            view.mul_(optimiser.accumulate)
        view.add_(gradient_MP[:, done : done + size].reshape(view.shape))
        done += size
    optimiser.update()


def packed_steps(
    optimiser: Optimiser, models: list[int], first: int, last: int, rate: Callable[[int], float] | None = None
) -> None:
    for step in range(first, last):
        if rate is not None:
            optimiser.set_rate(rate(step))
        now = rows(optimiser.parameters)
        feed(optimiser, torch.stack([pull(now[place], step, model) for place, model in enumerate(models)]))


def torch_steps(
    settings: OptimiserSettings,
    initial: torch.Tensor,
    model: int,
    steps: int,
    schedule: Callable[[int], float] = lambda step: 1.0,
) -> torch.Tensor:
    """One model with torch.optim, in float64."""
    weights = torch.nn.Parameter(initial.double().clone())
    rate, decay = RATES[model], float(settings.weight_decay.double()[model])
    momentum, *betas = (
        float(value[model]) if isinstance(value, torch.Tensor) else value
        for value in (settings.momentum, settings.beta1, settings.beta2)
    )
    kinds = {
        "sgd": lambda: torch.optim.SGD([weights], lr=rate, momentum=momentum, weight_decay=decay),
        "adam": lambda: torch.optim.Adam([weights], lr=rate, betas=(betas[0], betas[1]), weight_decay=decay),
        "adamw": lambda: torch.optim.AdamW([weights], lr=rate, betas=(betas[0], betas[1]), weight_decay=decay),
    }
    optimiser = kinds[settings.kind]()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * schedule(step)
        weights.grad = pull(weights.detach(), step, model)
        optimiser.step()
    return weights.detach()


@pytest.mark.parametrize("decays", [DECAYS, [0.0, 0.0, 0.0]], ids=["decay", "no decay"])
@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.9), ("sgd", 0.0), ("adam", 0.9), ("adamw", 0.9)])
def test_a_packed_optimiser_is_torchs(kind: str, momentum: float, decays: list[float]) -> None:
    settings = settings_of(kind, momentum=momentum, decays=decays)
    parameters = start()
    initial = rows(parameters).clone()
    packed_steps(make_optimiser(settings, parameters), [0, 1, 2], 0, STEPS)
    for model in range(3):
        expected = torch_steps(settings, initial[model], model, STEPS)
        assert float((expected - initial[model]).abs().max()) > 0.1, "the test must move the weights"
        torch.testing.assert_close(rows(parameters)[model].double(), expected, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_untouched_by_its_neighbours(kind: str) -> None:
    together, alone = start(3), start(3)
    packed_steps(make_optimiser(settings_of(kind), together), [0, 1, 2], 0, 50)
    alone.keep(torch.tensor([1]))
    one = OptimiserSettings(
        kind=kind,
        learning_rate=torch.tensor(RATES[1:2]),
        weight_decay=torch.tensor(DECAYS[1:2]),
        momentum=0.9,
        beta1=0.8,
        beta2=0.95,
    )
    packed_steps(make_optimiser(one, alone), [1], 0, 50)
    torch.testing.assert_close(rows(together)[1:2], rows(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_those_who_stay_keep_their_state(kind: str) -> None:
    settings, parameters = settings_of(kind), start()
    initial = rows(parameters).clone()
    optimiser = make_optimiser(settings, parameters)
    packed_steps(optimiser, [0, 1, 2], 0, 30)
    stay = torch.tensor([2, 0])
    parameters.keep(stay)
    optimiser.keep(stay)
    packed_steps(optimiser, [2, 0], 30, 60)
    for place, model in enumerate((2, 0)):
        expected = torch_steps(settings, initial[model], model, 60)
        torch.testing.assert_close(rows(parameters)[place].double(), expected, rtol=2e-5, atol=5e-6)


def rate_of(step: int) -> float:
    """A warm-up, a plateau and a decay by steps."""
    return min(1.0, (step + 1) / 10) if step < 40 else 0.5 ** ((step - 20) // 20)


@pytest.mark.parametrize("kind", KINDS)
def test_momentum_and_betas_are_each_models_own(kind: str) -> None:
    """Under a schedule; one model leaves, and then all but one."""
    settings, parameters = settings_of_each(kind), start()
    initial = rows(parameters).clone()
    optimiser = make_optimiser(settings, parameters)
    models, done = [0, 1, 2], 0
    for until, stay in ((30, [2, 1]), (50, [1]), (70, [0])):
        packed_steps(optimiser, models, done, until, rate_of)
        for place, model in enumerate(models):
            expected = torch_steps(settings, initial[model], model, until, rate_of)
            torch.testing.assert_close(rows(parameters)[place].double(), expected, rtol=2e-5, atol=5e-6)
        models, done = [models[k] for k in stay if k < len(models)], until
        kept = torch.tensor([k for k in stay if k < optimiser.parameters.models])
        parameters.keep(kept)
        optimiser.keep(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_without_gradient_and_without_value_stays_zero(kind: str) -> None:
    """What exact padding stands on."""
    parameters = FlatParameters([(4,)], 2, "cpu")
    parameters.views()[0][:, :2] = 1.0
    optimiser = make_optimiser(settings_of(kind, models=2, decays=[0.1, 0.5]), parameters)
    for _ in range(20):
        feed(optimiser, torch.tensor([[0.1, 0.1, 0.0, 0.0]]).expand(2, 4))
    assert torch.equal(rows(parameters)[:, 2:], torch.zeros(2, 2))
    assert bool((rows(parameters)[:, :2] != 1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_is_torchs_with_that_learning_rate(kind: str) -> None:
    """The rate is set before every step."""
    settings, parameters = settings_of(kind), start()
    initial = rows(parameters).clone()
    packed_steps(make_optimiser(settings, parameters), [0, 1, 2], 0, 100, rate_of)
    for model in range(3):
        expected = torch_steps(settings, initial[model], model, 100, rate_of)
        torch.testing.assert_close(rows(parameters)[model].double(), expected, rtol=2e-5, atol=5e-6)


def test_views_are_the_parameters() -> None:
    parameters = start()
    assert [view.shape for view in parameters.views()] == [(3, *shape) for shape in SHAPES]
    parameters.views()[1].fill_(7.0)
    assert int((parameters.flat == 7).sum()) == 9
    assert parameters.flat.numel() == 3 * 24
    kept = rows(parameters)[[2, 0]]
    parameters.keep(torch.tensor([2, 0]))
    assert torch.equal(rows(parameters), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_aligned_layers_train_alike(kind: str) -> None:
    """cuDNN fails at layers that do not begin at a multiple of 16 bytes."""
    settings, plain, aligned = settings_of(kind), start(), start(align=4)
    for parameters in (plain, aligned):
        packed_steps(make_optimiser(settings, parameters), [0, 1, 2], 0, 20)
    torch.testing.assert_close(rows(aligned), rows(plain), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(aligned.norm(), plain.norm())
    for _ in range(2):
        assert all(view.data_ptr() % 16 == aligned.flat.data_ptr() % 16 for view in aligned.views())
        assert torch.count_nonzero(aligned.flat) == torch.count_nonzero(rows(aligned))
        kept = rows(aligned)[[2, 0]] if aligned.models == 3 else rows(aligned)
        aligned.keep(torch.tensor([2, 0]) if aligned.models == 3 else torch.tensor([0, 1]))
        assert torch.equal(rows(aligned), kept)
