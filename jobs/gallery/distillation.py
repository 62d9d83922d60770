"""A small network that is trained on the outputs of a large one: `job: jobs.gallery.distillation:train`.

Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), at the compute of a small network that is trained on labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.data.mnist1d import CLASSES, INPUTS, mnist1d
from jobs.module.models import MLP

TRAIN, BATCH = 4000, 100


def train(
    *,
    width: int = 20,
    teacher_width: int = 0,
    teacher_share: float = 0.5,
    compute: float = 8_260_650,
    temperature: float = 2.0,
    learning_rate: float = 0.01,
    seed: int,
    report: Callable[..., None],
) -> None:
    """Reports the test error of a perceptron with two hidden layers of `width`, and the steps that were trained.

    A seed draws 4,000 training and 4,000 test examples of MNIST-1D. `compute` is in parameters times training steps of
    100 examples. Without a teacher (width 0), all of it trains the network on labels. A teacher is trained on labels
    with `teacher_share` of it, and computes its outputs for the training examples once, at a third of the compute of
    training on them; what is left trains the network on these outputs alone, at `temperature`.
    """
    torch.manual_seed(seed)
    student = MLP(INPUTS, CLASSES, width=width, layers=2)  # the same weights with and without a teacher
    inputs, labels, more_inputs, more_labels = (torch.as_tensor(part) for part in mnist1d(TRAIN, 12_000))
    order = torch.randperm(16_000)
    x, y = torch.cat([inputs, more_inputs])[order], torch.cat([labels, more_labels])[order]
    x, x_test, y, y_test = x[:TRAIN], x[TRAIN : 2 * TRAIN], y[:TRAIN], y[TRAIN : 2 * TRAIN]
    targets, steps = functional.one_hot(y, CLASSES).float(), 0
    found: dict[str, float] = {}
    if teacher_width:
        teacher = MLP(INPUTS, CLASSES, width=teacher_width, layers=2)
        steps = round(teacher_share * compute / size(teacher))
        fit(teacher, x, targets, steps, learning_rate)
        found["teacher_error"] = error(teacher, x_test, y_test)
        compute -= size(teacher) * (steps + TRAIN / BATCH / 3)
        targets = torch.softmax(teacher(x).detach() / temperature, 1)
    own_steps = round(compute / size(student))
    fit(student, x, targets, own_steps, learning_rate, temperature if teacher_width else 1.0)
    report(own_steps, test_error=error(student, x_test, y_test), teacher_steps=steps, own_steps=own_steps, **found)


def size(network: nn.Module) -> int:
    """Its parameters."""
    return sum(weights.numel() for weights in network.parameters())


def fit(
    network: nn.Module, x: Tensor, targets: Tensor, steps: int, learning_rate: float, temperature: float = 1.0
) -> None:
    """Adam along half a cosine; targets are probabilities of the classes."""
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        if step % (TRAIN // BATCH) == 0:
            order = torch.randperm(TRAIN)
        batch = order[step % (TRAIN // BATCH) * BATCH :][:BATCH]
        optimiser.zero_grad()
        torch.autograd.backward(functional.cross_entropy(network(x[batch]) / temperature, targets[batch]))
        optimiser.step()
        schedule.step()


def error(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of wrong classes."""
    return float((network(x).argmax(1) != y).float().mean())
