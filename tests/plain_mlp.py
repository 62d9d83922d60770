"""A double-descent trial in plain PyTorch, one model at a time: nn.Sequential, autograd, torch.optim, float64.

It shares with the packed job what defines a trial (data, label noise, subset, batches, the numbers
that the weights are drawn from) and none of its arithmetic.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from jobs.data.labels import noisy_labels
from jobs.data.mnist1d import mnist1d, package_seed
from jobs.double_descent.gaussian import gaussian_linear, gaussian_teacher
from jobs.double_descent.params import DoubleDescentParams
from jobs.job import Curves, Member, log_spaced_steps
from jobs.packed import random
from jobs.packed.batches import Batches


@dataclass
class Examples:
    """One trial's data: training inputs and noisy targets in the trial's own order, clean test set."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def examples_of(p: DoubleDescentParams, seed: int) -> Examples:
    """The data that a trial trains and is tested on."""
    if p.data == "mnist1d":
        x, y, x_test, y_test = (
            torch.from_numpy(a.copy()) for a in mnist1d(p.pool, p.test_count, package_seed(p.data_seed, seed))
        )
    else:
        seed_of_data = p.data_seed if p.data_seed > 0 else seed
        sizes = {"train": p.pool, "test": p.test_count, "inputs": p.inputs, "device": "cpu"}
        if p.data == "gaussian_linear":
            made = gaussian_linear([seed_of_data], noise_std=[p.noise_std], **sizes)  # type: ignore[arg-type]
        else:
            made = gaussian_teacher([seed_of_data], **sizes)  # type: ignore[arg-type]
        x, y, x_test, y_test = (part[0] for part in made)
    if p.pixels == "random":
        own = package_seed(p.data_seed, seed) if p.data == "mnist1d" else seed_of_data
        x, x_test = (reordered(part, own, name) for part, name in ((x, "train"), (x_test, "test")))
    if p.data != "gaussian_linear":
        noise = {"rates": [p.label_noise], "classes": 10, "convention": p.noise_convention}
        y = noisy_labels(y[None], seeds=[seed], **noise)[0]  # type: ignore[arg-type]
    if p.used < p.pool:
        rows = random.permutation(random.stream_keys([seed], "subset"), p.pool)[0, : p.used]
        x, y = x[rows], y[rows]
    return Examples(x=x, y=y, x_test=x_test, y_test=y_test)


def reordered(x: torch.Tensor, seed: int, part: str) -> torch.Tensor:
    """Each row in the order of random numbers of its own."""
    keys = random.stream_keys([seed], f"pixels/{part}")
    numbers = random.bits(keys, torch.arange(x.numel()))[0].tolist()
    inputs = x.shape[1]
    rows = [numbers[start : start + inputs] for start in range(0, len(numbers), inputs)]
    orders = [sorted(range(inputs), key=row.__getitem__) for row in rows]
    return torch.stack([example[order] for example, order in zip(x, orders, strict=True)])


def network_of(p: DoubleDescentParams, seed: int) -> nn.Sequential:
    """The network with the trial's initial weights: uniform within scale / sqrt(fan in), or normal."""
    sizes = [p.inputs, *[p.width] * p.depth, p.outputs]
    layers: list[nn.Module] = []
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        linear = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        bound = p.init_scale / fan_in**0.5
        counter = torch.arange(fan_in)[:, None] * (1 << 24) + torch.arange(fan_out)
        keys = random.stream_keys([seed], f"init/weight/{layer}")
        weight = (2 * random.uniform(keys, counter[None])[0].double() - 1) * bound
        if p.weight_std:
            weight = random.normal(keys, counter[None])[0].double() * p.weight_std * p.init_scale
        bias = random.uniform(random.stream_keys([seed], f"init/bias/{layer}"), torch.arange(fan_out))[0]
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_((2 * bias.double() - 1) * bound)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loss_of(p: DoubleDescentParams, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean loss as the job defines it."""
    if p.loss == "cross_entropy":
        return nn.functional.cross_entropy(output, y)
    target = y.double()[:, None] if p.outputs == 1 else nn.functional.one_hot(y, p.outputs).double()
    if p.loss == "class_mean_squared":
        return nn.functional.mse_loss(output, target)
    return 0.5 * (output - target).square().sum(1).mean()


@torch.no_grad()
def measured(p: DoubleDescentParams, network: nn.Sequential, data: Examples) -> dict[str, float]:
    """Loss and error on the training labels as they are (noisy) and on the clean test set."""
    result = {}
    for name, x, y in (("train", data.x, data.y), ("test", data.x_test, data.y_test)):
        output = network(x.double())
        result[f"{name}_loss"] = float(loss_of(p, output, y))
        wrong = (output[:, 0] - y).square() if p.outputs == 1 else (output.argmax(1) != y).double()
        result[f"{name}_error"] = float(wrong.mean())
    return result


def plain_curves(member: Member[DoubleDescentParams]) -> Curves:
    """The trial's curves."""
    p, seed = member.params, member.seed
    data, network = examples_of(p, seed), network_of(p, seed)
    order = "whole_epochs" if p.last_batch == "smaller" else p.batch_order
    batches = Batches(seeds=[seed], counts=[p.used], batch_sizes=[p.batch], order=order, device="cpu")
    betas, rate, decay = (p.beta1, p.beta2), p.learning_rate, p.weight_decay
    if p.optimiser == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            network.parameters(), lr=rate, momentum=p.momentum, weight_decay=decay
        )
    else:
        kind = torch.optim.Adam if p.optimiser == "adam" else torch.optim.AdamW
        optimiser = kind(network.parameters(), lr=rate, betas=betas, weight_decay=decay)
    schedule = log_spaced_steps(p.horizon, p.curve_points).tolist()
    points = []
    for step in range(p.horizon):
        rows, weights = batches.draw(step, 1)[0, 0], batches.step_weights(step, 1)
        rows = rows if weights is None else rows[weights[0, 0] > 0]
        for group in optimiser.param_groups:
            group["lr"] = rate * p.rate_decay ** (step // p.decay_steps if p.decay_steps else 0)
        optimiser.zero_grad()
        loss_of(p, network(data.x[rows].double()), data.y[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step + 1 in schedule:
            points.append(measured(p, network, data))
    columns = {name: torch.tensor([point[name] for point in points]).double().numpy() for name in points[0]}
    return Curves(step=log_spaced_steps(p.horizon, p.curve_points), values=columns)
